package auth

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// provider is an identity provider's key set over real HTTPS.
type provider struct {
	*httptest.Server
	body  atomic.Pointer[[]byte]
	code  atomic.Int64
	reads atomic.Int64
}

func newProvider(t *testing.T, set []byte) (*provider, Config) {
	t.Helper()
	p := &provider{}
	p.body.Store(&set)
	p.code.Store(http.StatusOK)
	p.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		p.reads.Add(1)
		w.WriteHeader(int(p.code.Load()))
		_, _ = w.Write(*p.body.Load())
	}))
	t.Cleanup(p.Close)
	cfg := DefaultConfig()
	cfg.JWKSURL = p.URL
	cfg.JWKSCA = filepath.Join(t.TempDir(), "ca.pem")
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw})
	if err := os.WriteFile(cfg.JWKSCA, ca, 0o600); err != nil {
		t.Fatal(err)
	}
	return p, cfg
}

func TestRotationOverHTTPS(t *testing.T) {
	old, next := newSigner(t, "ES256", "old"), newSigner(t, "RS256", "next")
	p, cfg := newProvider(t, keySetOf(t, old))
	a, tel := newAuth(t, cfg, nil)
	runAuth(t, a)
	ctx := context.Background()
	oldToken, newToken := old.sign(t, goodClaims(), nil), next.sign(t, goodClaims(), nil)
	if _, err := a.Verify(ctx, oldToken); err != nil {
		t.Fatal(err)
	}
	// The provider goes over to a new key. The first tokens of it come at once, and pass after one read.
	set := keySetOf(t, next)
	p.body.Store(&set)
	var wg sync.WaitGroup
	for range 16 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if _, err := a.Verify(ctx, newToken); err != nil {
				t.Errorf("a token of the new key: %v", err)
			}
		}()
	}
	wg.Wait()
	if n := p.reads.Load(); n != 2 {
		t.Errorf("the key set was read %d times, want 2", n)
	}
	// The cached token of the key that is gone is refused, and unknown keys do not make the gateway a load generator.
	for range 50 {
		if _, err := a.Verify(ctx, oldToken); !errors.Is(err, ErrInvalid) {
			t.Fatalf("a token of the old key: %v", err)
		}
	}
	if n := p.reads.Load(); n != 2 {
		t.Errorf("unknown keys had the set read %d times", n)
	}
	// A provider that is away, or talks nonsense, changes nothing.
	for name, breakIt := range map[string]func(){
		"500":      func() { p.code.Store(500) },
		"no JSON":  func() { b := []byte("<html>"); p.code.Store(200); p.body.Store(&b) },
		"no keys":  func() { b := []byte(`{"keys":[]}`); p.body.Store(&b) },
		"too much": func() { b := make([]byte, maxKeySet+1); p.body.Store(&b) },
	} {
		before := value(t, tel.Registry, "tidegate_errors_total", map[string]string{"op": "key_set"})
		breakIt()
		a.source.mu.Lock()
		a.source.demanded = time.Time{}
		a.source.mu.Unlock()
		a.source.demand(ctx)
		if after := value(t, tel.Registry, "tidegate_errors_total", map[string]string{"op": "key_set"}); after != before+1 {
			t.Errorf("%s: %v errors, want one more than %v", name, after, before)
		}
		if _, err := a.Verify(ctx, newToken); err != nil || a.Ready() != nil {
			t.Errorf("%s: %v, ready: %v", name, err, a.Ready())
		}
	}
}

func TestRegularRefresh(t *testing.T) {
	one := newSigner(t, "EdDSA", "one")
	p, cfg := newProvider(t, keySetOf(t, one))
	cfg.Refresh = time.Second
	a, tel := newAuth(t, cfg, nil)
	runAuth(t, a)
	set := keySetOf(t, one, newSigner(t, "EdDSA", "two"))
	p.body.Store(&set)
	eventually(t, "the second key is loaded", func() bool {
		return value(t, tel.Registry, "tidegate_gateway_token_keys", nil) == 2
	})
}

// Redirects must not lead the key set off https.
func TestRedirectToPlainHTTP(t *testing.T) {
	cfg := DefaultConfig()
	server := httptest.NewTLSServer(http.RedirectHandler("http://id.example/keys", http.StatusFound))
	defer server.Close()
	cfg.JWKSURL = server.URL
	s, err := newSource(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.client.Transport = server.Client().Transport
	if _, err := s.content(context.Background()); err == nil || !strings.Contains(err.Error(), "loopback only") {
		t.Errorf("a redirect to plain http: %v", err)
	}
	server.Client().CloseIdleConnections()
}

func TestFileReload(t *testing.T) {
	old, next := newSigner(t, "EdDSA", "old"), newSigner(t, "ES256", "next")
	cfg := fileConfig(t, keySetOf(t, old))
	a, _ := newAuth(t, cfg, nil)
	runAuth(t, a)
	if err := os.WriteFile(cfg.JWKSFile, keySetOf(t, next), 0o600); err != nil {
		t.Fatal(err)
	}
	// No wait: a token with an unknown key has the file read.
	if _, err := a.Verify(context.Background(), next.sign(t, goodClaims(), nil)); err != nil {
		t.Errorf("a token of the new key: %v", err)
	}
	if _, err := a.Verify(context.Background(), old.sign(t, goodClaims(), nil)); !errors.Is(err, ErrInvalid) {
		t.Errorf("a token of the old key: %v", err)
	}
}

func TestKeySets(t *testing.T) {
	small, err := rsa.GenerateKey(rand.Reader, 1024) //nolint:gosec // the test is that it is not taken
	if err != nil {
		t.Fatal(err)
	}
	good := newSigner(t, "ES256", "good").jwk
	with := func(base map[string]any, k string, v any) map[string]any {
		out := map[string]any{}
		for n, x := range base {
			out[n] = x
		}
		out[k] = v
		return out
	}
	weak := rsaJWK(&small.PublicKey)
	for name, c := range map[string]struct {
		keys []any
		want int
		err  string
	}{
		"one":                 {[]any{good}, 1, ""},
		"symmetric beside":    {[]any{good, map[string]any{"kty": "oct", "k": "AAAA"}}, 1, ""},
		"encryption beside":   {[]any{good, with(with(good, "use", "enc"), "kid", "x")}, 1, ""},
		"other operation":     {[]any{good, with(with(good, "key_ops", []string{"encrypt"}), "kid", "x")}, 1, ""},
		"RS512 beside":        {[]any{good, with(rsaJWK(&rsaKey().PublicKey), "alg", "RS512")}, 1, ""},
		"weak RSA only":       {[]any{weak}, 0, "2048"},
		"weak RSA beside":     {[]any{good, weak}, 1, ""},
		"P-384 only":          {[]any{with(good, "crv", "P-384")}, 0, "no key"},
		"none":                {nil, 0, "no key"},
		"private":             {[]any{with(good, "d", "AAAA")}, 0, "private key"},
		"two of one id":       {[]any{good, good}, 0, "have the id"},
		"point off the curve": {[]any{with(good, "x", good["y"])}, 0, "curve"},
		"short number":        {[]any{with(good, "x", "AAAA")}, 0, "bytes"},
		"no base64":           {[]any{with(good, "x", "!")}, 0, "base64url"},
		"even exponent":       {[]any{with(rsaJWK(&rsaKey().PublicKey), "e", "Ag")}, 0, "exponent"},
		"huge exponent":       {[]any{with(rsaJWK(&rsaKey().PublicKey), "e", b64(make([]byte, 12))+"AQAB")}, 1, ""}, // leading zeros
		"too many":            {make([]any, maxKeys+1), 0, "at most"},
	} {
		data, err := json.Marshal(map[string]any{"keys": c.keys})
		if err != nil {
			t.Fatal(err)
		}
		set, err := parseKeys(data)
		if (c.err == "") != (err == nil) || (err != nil && !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil && len(set.all) != c.want {
			t.Errorf("%s: %d keys, want %d", name, len(set.all), c.want)
		}
	}
	if _, err := parseKeys([]byte("{")); err == nil {
		t.Error("broken JSON is a key set")
	}
}
