package auth

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"

	"github.com/golang-jwt/jwt/v5"
)

// errUnknownKey: a later key set may have the key.
var errUnknownKey = errors.New("the token's key is not in the key set")

// Sizes of RSA keys in bits that are used: RFC 7518, section 3.3 wants the least; more than the most is slow to check.
const (
	minRSA = 2048
	maxRSA = 8192
)

// maxKeys bounds a key set.
const maxKeys = 100

// keys is one version of the key set with the tokens that it verified.
type keys struct {
	all   []key
	cache *cache
}

type key struct {
	id     string
	alg    string
	public crypto.PublicKey
}

// jwk has the members of RFC 7517, RFC 7518 section 6 and RFC 8037 section 2 that public keys use, and those that
// give away a private or shared one.
type jwk struct {
	Type    string   `json:"kty"`
	Curve   string   `json:"crv"`
	X       string   `json:"x"`
	Y       string   `json:"y"`
	N       string   `json:"n"`
	E       string   `json:"e"`
	ID      string   `json:"kid"`
	Alg     string   `json:"alg"`
	Use     string   `json:"use"`
	Ops     []string `json:"key_ops"`
	Private any      `json:"d"`
}

// parseKeys reads a key set. Keys of other kinds and uses are passed over, as RFC 7517 section 5 asks; a private key,
// a malformed one, two of one id, or none of use, are errors.
func parseKeys(data []byte) (*keys, error) {
	var set struct {
		Keys []jwk `json:"keys"`
	}
	if err := json.Unmarshal(data, &set); err != nil {
		return nil, fmt.Errorf("the key set is no JSON of RFC 7517: %w", err)
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("the key set has %d keys: at most %d are read", len(set.Keys), maxKeys)
	}
	out := &keys{cache: newCache()}
	ids := map[string]bool{}
	for i, j := range set.Keys {
		if j.Private != nil {
			return nil, fmt.Errorf("key %d of the key set is a private key: publish its public half only, and replace the key", i)
		}
		public, alg, err := j.public()
		if err != nil {
			return nil, fmt.Errorf("key %d (%q) of the key set: %w", i, j.ID, err)
		}
		if public == nil || (j.Alg != "" && j.Alg != alg) || !j.verifies() {
			continue
		}
		if ids[j.ID] {
			return nil, fmt.Errorf("two keys of the key set have the id %q", j.ID)
		}
		ids[j.ID] = true
		out.all = append(out.all, key{j.ID, alg, public})
	}
	if len(out.all) == 0 {
		return nil, fmt.Errorf("the key set has no key for ES256, EdDSA or RS256 (of %d bits or more)", minRSA)
	}
	return out, nil
}

func (j jwk) verifies() bool {
	if j.Use != "" && j.Use != "sig" {
		return false
	}
	for _, op := range j.Ops {
		if op == "verify" {
			return true
		}
	}
	return len(j.Ops) == 0
}

// public gives no key and no error for one that is not used here.
func (j jwk) public() (crypto.PublicKey, string, error) {
	switch {
	case j.Type == "OKP" && j.Curve == "Ed25519":
		x, err := number(j.X, ed25519.PublicKeySize)
		return ed25519.PublicKey(x), jwt.SigningMethodEdDSA.Alg(), err
	case j.Type == "EC" && j.Curve == "P-256":
		x, err := number(j.X, 32)
		if err != nil {
			return nil, "", err
		}
		y, err := number(j.Y, 32)
		if err != nil {
			return nil, "", err
		}
		public := &ecdsa.PublicKey{Curve: elliptic.P256(), X: new(big.Int).SetBytes(x), Y: new(big.Int).SetBytes(y)}
		if _, err := public.ECDH(); err != nil {
			return nil, "", fmt.Errorf("the point is not on the curve: %w", err)
		}
		return public, jwt.SigningMethodES256.Alg(), nil
	case j.Type == "RSA":
		n, err := number(j.N, 0)
		if err != nil {
			return nil, "", err
		}
		e, err := number(j.E, 0)
		if err != nil {
			return nil, "", err
		}
		public := &rsa.PublicKey{N: new(big.Int).SetBytes(n)}
		exponent := new(big.Int).SetBytes(e)
		if bits := public.N.BitLen(); bits < minRSA || bits > maxRSA {
			return nil, "", nil
		}
		if !exponent.IsInt64() || exponent.Int64() < 3 || exponent.Int64() > 1<<31-1 || exponent.Bit(0) == 0 {
			return nil, "", errors.New("the RSA exponent is out of range")
		}
		public.E = int(exponent.Int64())
		return public, jwt.SigningMethodRS256.Alg(), nil
	}
	return nil, "", nil
}

// number decodes base64url; size is the exact length in bytes, 0 any up to that of the largest RSA key.
func number(text string, size int) ([]byte, error) {
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("a number is not base64url: %w", err)
	}
	b = append(bytes.TrimLeft(b[:max(0, len(b)-size)], "\x00"), b[max(0, len(b)-size):]...)
	if len(b) == 0 || (size > 0 && len(b) != size) || len(b) > 4*maxRSA/8 {
		return nil, fmt.Errorf("a number has %d bytes", len(b))
	}
	return b, nil
}

// find gives the key for a token. A token need not name its key when there is only one. The algorithm must be the
// key's own, so that a token cannot choose how a key is used.
func (k *keys) find(id string, named bool, alg string) (crypto.PublicKey, error) {
	if !named {
		if len(k.all) != 1 {
			return nil, errors.New("the token names no key and the key set has several")
		}
		if k.all[0].alg != alg {
			return nil, fmt.Errorf("the algorithm is not the key's: %w", jwt.ErrTokenSignatureInvalid)
		}
		return k.all[0].public, nil
	}
	for _, c := range k.all {
		if c.id != id {
			continue
		}
		if c.alg != alg {
			return nil, fmt.Errorf("the algorithm is not the key's: %w", jwt.ErrTokenSignatureInvalid)
		}
		return c.public, nil
	}
	return nil, errUnknownKey
}
