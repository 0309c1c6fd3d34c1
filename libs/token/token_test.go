package token

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// publicOf is the key that the written set holds, decoded without this package's types.
func publicOf(t *testing.T, dir string) (kid string, key ed25519.PublicKey) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, JWKSFile))
	if err != nil {
		t.Fatal(err)
	}
	var set struct{ Keys []map[string]string }
	if err := json.Unmarshal(data, &set); err != nil {
		t.Fatal(err)
	}
	if len(set.Keys) != 1 || set.Keys[0]["kty"] != "OKP" || set.Keys[0]["crv"] != "Ed25519" || set.Keys[0]["alg"] != "EdDSA" || set.Keys[0]["d"] != "" {
		t.Fatalf("key set %s", data)
	}
	key, err = base64.RawURLEncoding.DecodeString(set.Keys[0]["x"])
	if err != nil || len(key) != ed25519.PublicKeySize {
		t.Fatalf("x %q: %v", set.Keys[0]["x"], err)
	}
	return set.Keys[0]["kid"], key
}

func TestInitAndIssue(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "by", "init")
	if _, err := Issue(dir, Claims{Subject: "a", Role: "viewer"}); !errors.Is(err, ErrNoKey) {
		t.Fatalf("issue without a key: %v", err)
	}
	kid, err := Init(dir)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, KeyFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("key file: %v, %v", info.Mode(), err)
	}
	gotKid, public := publicOf(t, dir)
	if gotKid != kid {
		t.Errorf("key id %q in the set, %q returned", gotKid, kid)
	}
	if again, err := Init(dir); err != nil || again != kid {
		t.Errorf("a second Init gives %q, %v: want %q", again, err, kid)
	}

	signed, err := Issue(dir, Claims{Subject: "ada", Role: "operator", For: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	claims := jwt.MapClaims{}
	parsed, err := jwt.ParseWithClaims(signed, claims, func(*jwt.Token) (any, error) { return public, nil },
		jwt.WithValidMethods([]string{"EdDSA"}), jwt.WithIssuer(DefaultIssuer), jwt.WithAudience(DefaultAudience), jwt.WithExpirationRequired())
	if err != nil {
		t.Fatal(err)
	}
	if parsed.Header["kid"] != kid || claims["sub"] != "ada" || claims[RoleClaim] != "operator" || claims["jti"] == "" {
		t.Errorf("header %v, claims %v", parsed.Header, claims)
	}
	exp, _ := claims.GetExpirationTime()
	iat, _ := claims.GetIssuedAt()
	if exp.Sub(iat.Time) != time.Minute {
		t.Errorf("lives %s, want 1m", exp.Sub(iat.Time))
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 2 {
		t.Errorf("files %v, %v: want the key and the set only", files, err)
	}
}

func TestReplacingTheKey(t *testing.T) {
	dir := t.TempDir()
	old, err := Init(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, KeyFile)); err != nil {
		t.Fatal(err)
	}
	next, err := Init(dir)
	if err != nil {
		t.Fatal(err)
	}
	inSet, _ := publicOf(t, dir)
	if next == old || inSet != next {
		t.Errorf("old key %q, new %q, in the set %q", old, next, inSet)
	}
}

// The set of a gateway may hold other keys besides.
func TestInitKeepsAnExtendedSet(t *testing.T) {
	dir := t.TempDir()
	kid, err := Init(dir)
	if err != nil {
		t.Fatal(err)
	}
	extended := []byte(`{"keys":[{"kid":"other"},{"kid":"` + kid + `"}]}`)
	if err := os.WriteFile(filepath.Join(dir, JWKSFile), extended, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Init(dir); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(filepath.Join(dir, JWKSFile)); string(got) != string(extended) {
		t.Errorf("the set became %s", got)
	}
}

func TestInitAtOnce(t *testing.T) {
	dir := t.TempDir()
	kids := make([]string, 8)
	var wg sync.WaitGroup
	for i := range kids {
		wg.Add(1)
		go func() {
			defer wg.Done()
			var err error
			if kids[i], err = Init(dir); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	inSet, _ := publicOf(t, dir)
	for _, kid := range kids {
		if kid != inSet {
			t.Errorf("a caller got key %q, the set holds %q", kid, inSet)
		}
	}
}

func TestIssueRefuses(t *testing.T) {
	dir := t.TempDir()
	if _, err := Init(dir); err != nil {
		t.Fatal(err)
	}
	good := Claims{Subject: "a", Role: "viewer"}
	for name, c := range map[string]struct {
		change func(*Claims)
		want   string
	}{
		"no subject":      {func(c *Claims) { c.Subject = "" }, "needs a subject"},
		"newline":         {func(c *Claims) { c.Subject = "a\nb" }, "control characters"},
		"invalid UTF-8":   {func(c *Claims) { c.Subject = "\xff" }, "control characters"},
		"long subject":    {func(c *Claims) { c.Subject = strings.Repeat("a", maxSubject+1) }, "at most"},
		"unknown role":    {func(c *Claims) { c.Role = "root" }, "viewer, operator or admin"},
		"no role":         {func(c *Claims) { c.Role = "" }, "viewer, operator or admin"},
		"negative life":   {func(c *Claims) { c.For = -time.Hour }, "use 1s to"},
		"too long a life": {func(c *Claims) { c.For = MaxFor + time.Second }, "use 1s to"},
	} {
		claims := good
		c.change(&claims)
		if _, err := Issue(dir, claims); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestUnusableKey(t *testing.T) {
	for name, content := range map[string]string{
		"empty":   "",
		"no DER":  "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
		"garbage": "hello",
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, KeyFile), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Init(dir); err == nil || !strings.Contains(err.Error(), KeyFile) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
