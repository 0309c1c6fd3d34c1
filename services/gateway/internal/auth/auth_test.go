package auth

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/tidegate-mesh/tidegate/libs/token"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/caller"
)

var algorithms = []string{"EdDSA", "ES256", "RS256"}

func TestGoodTokens(t *testing.T) {
	for _, alg := range algorithms {
		s := newSigner(t, alg, "k1")
		a, tel := newAuth(t, fileConfig(t, keySetOf(t, s)), nil)
		if err := a.Ready(); err != nil {
			t.Fatal(err)
		}
		if n := value(t, tel.Registry, "tidegate_gateway_token_keys", nil); n != 1 {
			t.Errorf("%s: %v keys in the metric", alg, n)
		}
		for name, change := range map[string]func(jwt.MapClaims){
			"plain":              func(jwt.MapClaims) {},
			"several audiences":  func(c jwt.MapClaims) { c["aud"] = []string{"other", "tidegate-gateway"} },
			"expired within 30s": func(c jwt.MapClaims) { c["exp"] = time.Now().Add(-20 * time.Second).Unix() },
			"early within 30s":   func(c jwt.MapClaims) { c["nbf"] = time.Now().Add(20 * time.Second).Unix() },
			"no nbf and iat":     func(c jwt.MapClaims) { delete(c, "nbf"); delete(c, "iat") },
		} {
			claims := goodClaims()
			change(claims)
			id, err := a.Verify(context.Background(), s.sign(t, claims, nil))
			if err != nil || id.Subject != "ada" || id.Role != caller.Operator {
				t.Errorf("%s, %s: %+v, %v", alg, name, id, err)
			}
		}
		// With one key a token need not name it.
		if _, err := a.Verify(context.Background(), s.sign(t, goodClaims(), map[string]any{"kid": nil})); err != nil {
			t.Errorf("%s without a key id: %v", alg, err)
		}
	}
}

// TestRefusals is the matrix of tokens that must not pass, with every accepted algorithm.
func TestRefusals(t *testing.T) {
	edit := func(f func(jwt.MapClaims)) func(signer) string {
		return func(s signer) string { c := goodClaims(); f(c); return s.sign(t, c, nil) }
	}
	ago := func(d time.Duration) int64 { return time.Now().Add(-d).Unix() }
	type row struct {
		name   string
		make   func(signer) string
		want   error
		reason string
	}
	rows := []row{
		{"expired", edit(func(c jwt.MapClaims) { c["exp"] = ago(time.Minute) }), ErrExpired, "expired"},
		{"no expiry", edit(func(c jwt.MapClaims) { delete(c, "exp") }), ErrClaims, "claims"},
		{"expiry is text", edit(func(c jwt.MapClaims) { c["exp"] = "tomorrow" }), ErrClaims, "claims"},
		{"not yet valid", edit(func(c jwt.MapClaims) { c["nbf"] = ago(-time.Minute) }), ErrClaims, "not_yet"},
		{"issued in the future", edit(func(c jwt.MapClaims) { c["iat"] = ago(-time.Minute) }), ErrClaims, "not_yet"},
		{"wrong audience", edit(func(c jwt.MapClaims) { c["aud"] = "other" }), ErrClaims, "audience"},
		{"no audience", edit(func(c jwt.MapClaims) { delete(c, "aud") }), ErrClaims, "claims"},
		{"wrong issuer", edit(func(c jwt.MapClaims) { c["iss"] = "evil" }), ErrClaims, "issuer"},
		{"no issuer", edit(func(c jwt.MapClaims) { delete(c, "iss") }), ErrClaims, "claims"},
		{"no role", edit(func(c jwt.MapClaims) { delete(c, "role") }), ErrClaims, "role"},
		{"unknown role", edit(func(c jwt.MapClaims) { c["role"] = "root" }), ErrClaims, "role"},
		{"empty role", edit(func(c jwt.MapClaims) { c["role"] = "" }), ErrClaims, "role"},
		{"list of roles", edit(func(c jwt.MapClaims) { c["role"] = []string{"admin"} }), ErrClaims, "role"},
		{"no subject", edit(func(c jwt.MapClaims) { delete(c, "sub") }), ErrClaims, "subject"},
		{"subject with a newline", edit(func(c jwt.MapClaims) { c["sub"] = "a\nb" }), ErrClaims, "subject"},
		{"long subject", edit(func(c jwt.MapClaims) { c["sub"] = strings.Repeat("a", 257) }), ErrClaims, "subject"},
		{"unknown key id", func(s signer) string { return s.sign(t, goodClaims(), map[string]any{"kid": "other"}) }, ErrInvalid, "unknown_key"},
		{"key id is a number", func(s signer) string { return s.sign(t, goodClaims(), map[string]any{"kid": 7}) }, ErrInvalid, "malformed"},
		{"no key id among several keys", func(s signer) string { return s.sign(t, goodClaims(), map[string]any{"kid": nil}) }, ErrInvalid, "malformed"},
		{"critical extension", func(s signer) string { return s.sign(t, goodClaims(), map[string]any{"crit": []string{"x"}, "x": 1}) }, ErrInvalid, "malformed"},
		{"forged by another key", func(s signer) string {
			if s.method.Alg() == "RS256" {
				k, err := rsa.GenerateKey(rand.Reader, 2048)
				if err != nil {
					t.Fatal(err)
				}
				return signer{method: s.method, private: k, kid: s.kid}.sign(t, goodClaims(), nil)
			}
			return newSigner(t, s.method.Alg(), s.kid).sign(t, goodClaims(), nil)
		}, ErrInvalid, "signature"},
		{"alg none", func(s signer) string {
			return signer{method: jwt.SigningMethodNone, private: jwt.UnsafeAllowNoneSignatureType, kid: s.kid}.sign(t, goodClaims(), nil)
		}, ErrInvalid, "signature"},
		{"alg none with the signature left", func(s signer) string {
			parts := strings.Split(s.sign(t, goodClaims(), nil), ".")
			return b64([]byte(`{"alg":"none","kid":"`+s.kid+`"}`)) + "." + parts[1] + "." + parts[2]
		}, ErrInvalid, "signature"},
		{"HS256 with the public key as secret", func(s signer) string {
			secret, err := json.Marshal(s.jwk)
			if err != nil {
				t.Fatal(err)
			}
			return signer{method: jwt.SigningMethodHS256, private: secret, kid: s.kid}.sign(t, goodClaims(), nil)
		}, ErrInvalid, "signature"},
		{"another accepted algorithm under this key's id", func(s signer) string {
			other := "ES256"
			if s.method.Alg() == other {
				other = "EdDSA"
			}
			return newSigner(t, other, s.kid).sign(t, goodClaims(), nil)
		}, ErrInvalid, "signature"},
		{"payload exchanged", func(s signer) string {
			admin := goodClaims()
			admin["role"] = "admin"
			a, b := strings.Split(s.sign(t, goodClaims(), nil), "."), strings.Split(s.sign(t, admin, nil), ".")
			return a[0] + "." + b[1] + "." + a[2]
		}, ErrInvalid, "signature"},
		{"signature cut", func(s signer) string { r := s.sign(t, goodClaims(), nil); return r[:len(r)-6] }, ErrInvalid, "signature"},
		{"no signature", func(s signer) string { r := s.sign(t, goodClaims(), nil); return r[:strings.LastIndexByte(r, '.')+1] }, ErrInvalid, "signature"},
		{"two parts", func(s signer) string { r := s.sign(t, goodClaims(), nil); return r[:strings.LastIndexByte(r, '.')] }, ErrInvalid, "malformed"},
		{"five parts", func(s signer) string { return s.sign(t, goodClaims(), nil) + ".x.y" }, ErrInvalid, "malformed"},
		{"padding", func(s signer) string { return s.sign(t, goodClaims(), nil) + "==" }, ErrInvalid, "malformed"},
		{"empty", func(signer) string { return "" }, ErrInvalid, "malformed"},
		{"dots", func(signer) string { return ".." }, ErrInvalid, "malformed"},
		{"NUL", func(s signer) string { return s.sign(t, goodClaims(), nil) + "\x00" }, ErrInvalid, "malformed"},
		{"huge", func(signer) string { return strings.Repeat("a", MaxToken+1) }, ErrInvalid, "malformed"},
		{"header is no JSON", func(s signer) string {
			r := s.sign(t, goodClaims(), nil)
			return b64([]byte("{")) + r[strings.IndexByte(r, '.'):]
		}, ErrInvalid, "malformed"},
	}
	for _, alg := range []string{"HS384", "HS512", "RS384", "RS512", "PS256"} {
		rows = append(rows, row{"algorithm " + alg, func(s signer) string {
			o := signer{method: jwt.GetSigningMethod(alg), private: rsaKey(), kid: s.kid}
			if alg[0] == 'H' {
				o.private = []byte("secret")
			}
			return o.sign(t, goodClaims(), nil)
		}, ErrInvalid, "signature"})
	}
	for _, alg := range algorithms {
		s := newSigner(t, alg, "k1")
		// A second key, so that naming the key is demanded.
		a, _ := newAuth(t, fileConfig(t, keySetOf(t, s, newSigner(t, "ES256", "k2"))), nil)
		a.source.demandGap = 0
		a.source.demanded = time.Now().Add(time.Hour) // nobody runs it, so there is nothing to wait for
		for _, row := range rows {
			raw := row.make(s)
			id, reason, err := a.verify(context.Background(), raw)
			if !errors.Is(err, row.want) || reason != row.reason || id != (Identity{}) {
				t.Errorf("%s, %s: identity %+v, reason %q (want %q), error %v (want %v)", alg, row.name, id, reason, row.reason, err, row.want)
			}
			if _, ok := a.cached(raw); ok {
				t.Errorf("%s, %s: the refused token is cached", alg, row.name)
			}
		}
	}
}

func TestCacheFollowsKeysAndExpiry(t *testing.T) {
	s := newSigner(t, "EdDSA", "k1")
	cfg := fileConfig(t, keySetOf(t, s))
	a, _ := newAuth(t, cfg, nil)
	now := time.Now()
	a.now = func() time.Time { return now }
	claims := goodClaims()
	claims["exp"] = now.Add(10 * time.Second).Unix()
	short, long := s.sign(t, claims, nil), s.sign(t, goodClaims(), nil)
	for _, raw := range []string{short, long} {
		if _, err := a.Verify(context.Background(), raw); err != nil {
			t.Fatal(err)
		}
		if _, ok := a.cached(raw); !ok {
			t.Fatal("a verified token is not cached")
		}
	}
	now = now.Add(11 * time.Second)
	if _, ok := a.cached(short); ok {
		t.Error("a token is cached beyond its expiry")
	}
	if _, ok := a.cached(long); !ok {
		t.Error("a token left the cache early")
	}
	now = now.Add(cacheFor)
	if _, ok := a.cached(long); ok {
		t.Error("a token is cached for more than a minute")
	}
	if _, err := a.Verify(context.Background(), long); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cfg.JWKSFile, keySetOf(t, newSigner(t, "EdDSA", "k2")), 0o600); err != nil {
		t.Fatal(err)
	}
	a.refresh(context.Background())
	if _, ok := a.cached(long); ok {
		t.Error("a token outlived its key in the cache")
	}
	if _, err := a.parse(long, a.keys.Load()); !errors.Is(err, errUnknownKey) {
		t.Errorf("after its key is gone: %v", err)
	}
}

func TestCacheIsBounded(t *testing.T) {
	c := newCache()
	now := time.Now()
	for i := range cacheSize * 2 {
		var sum [sha256.Size]byte
		binary.LittleEndian.PutUint64(sum[:], uint64(i))
		c.put(sum, Identity{Expires: now.Add(time.Hour)}, now)
	}
	if n := len(c.entries); n > cacheSize || n < cacheSize/2 {
		t.Errorf("%d entries, the bound is %d", n, cacheSize)
	}
}

// The key that `tidegate token init` makes, and what it issues, work with the defaults.
func TestLocalKey(t *testing.T) {
	dir := t.TempDir()
	cfg := DefaultConfig()
	cfg.JWKSFile = filepath.Join(dir, token.JWKSFile)
	a, tel := newAuth(t, cfg, nil)
	if err := a.Ready(); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "tidegate token init") {
		t.Fatalf("without a key set: %v", err)
	}
	if _, err := a.Verify(context.Background(), "a.b.c"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a token without a key set: %v", err)
	}
	if n := value(t, tel.Registry, "tidegate_errors_total", map[string]string{"op": "key_set"}); n != 1 {
		t.Errorf("%v errors counted, want 1", n)
	}
	runAuth(t, a)
	if _, err := token.Init(dir); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the key set appears", func() bool { return a.Ready() == nil })
	for _, role := range []string{"viewer", "operator", "admin"} {
		raw, err := token.Issue(dir, token.Claims{Subject: "grace", Role: role})
		if err != nil {
			t.Fatal(err)
		}
		if id, err := a.Verify(context.Background(), raw); err != nil || id.Role.String() != role {
			t.Errorf("%s: %+v, %v", role, id, err)
		}
	}
}

func TestConfig(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"default":          {func(*Config) {}, ""},
		"https":            {func(c *Config) { c.JWKSURL = "https://id.example/keys" }, ""},
		"http on loopback": {func(c *Config) { c.JWKSURL = "http://127.0.0.1:9/keys" }, ""},
		"http elsewhere":   {func(c *Config) { c.JWKSURL = "http://id.example/keys" }, "use https"},
		"file URL":         {func(c *Config) { c.JWKSURL = "file:///etc/passwd" }, "use https"},
		"no source":        {func(c *Config) { c.JWKSFile = "" }, "--jwks-url"},
		"no audience":      {func(c *Config) { c.Audience = "" }, "must not be empty"},
		"large skew":       {func(c *Config) { c.Skew = time.Hour }, "use 0 to 5m"},
		"no refresh":       {func(c *Config) { c.JWKSURL, c.Refresh = "https://id.example/keys", 0 }, "1s or more"},
	} {
		cfg := DefaultConfig()
		c.change(&cfg)
		if err := cfg.Validate(); (c.want == "") != (err == nil) || (err != nil && !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzVerify: no text passes that was not signed here, and none panics.
func FuzzVerify(f *testing.F) {
	s := newSigner(f, "ES256", "k1")
	a, _ := newAuth(f, fileConfig(f, keySetOf(f, s)), nil)
	a.source.demanded = time.Now().Add(24 * time.Hour)
	other := newSigner(f, "ES256", "k1")
	f.Add(other.sign(f, goodClaims(), nil))
	f.Add("a.b.c")
	f.Add(b64([]byte(`{"alg":"none"}`)) + "." + b64([]byte(`{"sub":"x"}`)) + ".")
	f.Fuzz(func(t *testing.T, raw string) {
		if id, err := a.Verify(context.Background(), raw); err == nil {
			t.Fatalf("%q passes as %+v", raw, id)
		}
	})
}
