// Package token makes the tokens of an installation that has no identity provider: a private key in a file of the
// machine that issues, its public half in a key set (RFC 7517) that the gateway reads, and JWTs (RFC 7519) signed by
// EdDSA (RFC 8037).
//
// Nothing remembers what was issued. A token ends by its expiry, or together with all others when the key is replaced:
// remove both files and call Init again.
package token

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/golang-jwt/jwt/v5"
)

// Names in the directory.
const (
	KeyFile  = "token-key.pem"   // PKCS #8, mode 0600; only who issues needs it
	JWKSFile = "token-jwks.json" // public; the gateway needs it
)

// What a gateway expects unless it is told otherwise.
const (
	DefaultIssuer   = "tidegate"
	DefaultAudience = "tidegate-gateway"
	RoleClaim       = "role"
)

// Life of a token.
const (
	DefaultFor = 12 * time.Hour
	MaxFor     = 365 * 24 * time.Hour
)

// maxSubject is in bytes. The subject appears in every audit entry.
const maxSubject = 256

// ErrNoKey: the directory holds no key yet; call Init, or `tidegate token init`.
var ErrNoKey = errors.New("there is no token key: make one with `tidegate token init`")

// Claims are what a token says. Zero values of For, Issuer and Audience mean the defaults.
type Claims struct {
	Subject  string        // who; shown in the audit log
	Role     string        // viewer, operator or admin
	For      time.Duration // from now; at most MaxFor
	Issuer   string
	Audience string
}

// Init makes the private key and the key set in dir, which is made too. Files that exist are kept: a second call
// changes nothing, and of several callers at once all use the same key. It returns the key's id.
func Init(dir string) (kid string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // the key set in it is public, the key has its own mode
		return "", fmt.Errorf("make the token directory: %w", err)
	}
	key, err := load(dir)
	if errors.Is(err, ErrNoKey) {
		if err = create(dir); err == nil {
			key, err = load(dir)
		}
	}
	if err != nil {
		return "", err
	}
	public, _ := key.Public().(ed25519.PublicKey)
	set := keySet{Keys: []publicKey{describe(public)}}
	kid = set.Keys[0].ID
	want, err := json.MarshalIndent(set, "", "  ")
	if err != nil {
		return "", fmt.Errorf("encode the key set: %w", err)
	}
	path := filepath.Join(dir, JWKSFile)
	// A set that was extended by hand is kept as long as it has this key.
	if have, err := os.ReadFile(path); err == nil {
		var now struct {
			Keys []struct {
				ID string `json:"kid"`
			} `json:"keys"`
		}
		if json.Unmarshal(have, &now) == nil {
			for _, k := range now.Keys {
				if k.ID == kid {
					return kid, nil
				}
			}
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read the key set: %w", err)
	}
	if err := replace(path, append(want, '\n'), 0o644); err != nil {
		return "", fmt.Errorf("write the key set: %w", err)
	}
	return kid, nil
}

// Issue signs a token with the key in dir. The error wraps ErrNoKey when there is none.
func Issue(dir string, c Claims) (string, error) {
	if c.For == 0 {
		c.For = DefaultFor
	}
	if c.Issuer == "" {
		c.Issuer = DefaultIssuer
	}
	if c.Audience == "" {
		c.Audience = DefaultAudience
	}
	if err := c.check(); err != nil {
		return "", err
	}
	key, err := load(dir)
	if err != nil {
		return "", err
	}
	public, _ := key.Public().(ed25519.PublicKey)
	now := time.Now()
	t := jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.MapClaims{
		"iss":     c.Issuer,
		"aud":     c.Audience,
		"sub":     c.Subject,
		RoleClaim: c.Role,
		"iat":     now.Unix(),
		"nbf":     now.Unix(),
		"exp":     now.Add(c.For).Unix(),
		"jti":     rand.Text(),
	})
	t.Header["kid"] = describe(public).ID
	signed, err := t.SignedString(key)
	if err != nil {
		return "", fmt.Errorf("sign the token: %w", err)
	}
	return signed, nil
}

func (c Claims) check() error {
	switch {
	case c.Subject == "":
		return errors.New("a token needs a subject: say whose it is")
	case len(c.Subject) > maxSubject || !utf8.ValidString(c.Subject) || strings.ContainsFunc(c.Subject, unicode.IsControl):
		return fmt.Errorf("the subject must be text of at most %d bytes without control characters", maxSubject)
	case c.Role != "viewer" && c.Role != "operator" && c.Role != "admin":
		return fmt.Errorf("role %q: use viewer, operator or admin", c.Role)
	case c.For < time.Second || c.For > MaxFor:
		return fmt.Errorf("a token for %s: use 1s to %s", c.For, MaxFor)
	}
	return nil
}

// keySet and publicKey are the members of RFC 7517 and RFC 8037 section 2 that an Ed25519 key needs.
type keySet struct {
	Keys []publicKey `json:"keys"`
}

type publicKey struct {
	Type      string `json:"kty"`
	Curve     string `json:"crv"`
	X         string `json:"x"`
	ID        string `json:"kid"`
	Algorithm string `json:"alg"`
	Use       string `json:"use"`
}

// describe gives the key the id of RFC 7638: the hash of its required members in alphabetical order.
func describe(public ed25519.PublicKey) publicKey {
	k := publicKey{Type: "OKP", Curve: "Ed25519", X: base64.RawURLEncoding.EncodeToString(public), Algorithm: "EdDSA", Use: "sig"}
	sum := sha256.Sum256(fmt.Appendf(nil, `{"crv":%q,"kty":%q,"x":%q}`, k.Curve, k.Type, k.X))
	k.ID = base64.RawURLEncoding.EncodeToString(sum[:])
	return k
}

func load(dir string) (ed25519.PrivateKey, error) {
	path := filepath.Join(dir, KeyFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", path, ErrNoKey)
	}
	if err != nil {
		return nil, fmt.Errorf("read the token key: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("token key %s holds no PEM block", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse token key %s: %w", path, err)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("token key %s is a %T: it must be an Ed25519 key", path, parsed)
	}
	return key, nil
}

// create writes a new key unless another process was faster.
func create(dir string) error {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("make the token key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode the token key: %w", err)
	}
	path := filepath.Join(dir, KeyFile)
	temporary, err := write(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
	if err != nil {
		return fmt.Errorf("write the token key: %w", err)
	}
	defer func() { _ = os.Remove(temporary) }()
	// A link, unlike a rename, does not replace a key that appeared meanwhile.
	if err := os.Link(temporary, path); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("write the token key: %w", err)
	}
	return nil
}

// replace is atomic: a reader sees the old content or the new one.
func replace(path string, data []byte, mode fs.FileMode) error {
	temporary, err := write(path, data, mode)
	if err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		_ = os.Remove(temporary)
		return err
	}
	return nil
}

// write stores data in a synced file beside path and returns its name.
func write(path string, data []byte, mode fs.FileMode) (temporary string, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	return f.Name(), errors.Join(err, f.Close())
}
