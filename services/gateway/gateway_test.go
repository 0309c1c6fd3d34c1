package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/golang-jwt/jwt/v5"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/pki"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/libs/token"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/auth"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/caller"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/mesh"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeBus keeps audit entries and can be away. It has no events.
type fakeBus struct {
	Bus
	mu     sync.Mutex
	audits []*eventv1.Audit
	down   error
}

func (b *fakeBus) PublishAudit(_ context.Context, e *eventv1.Audit) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.audits = append(b.audits, e)
	return nil
}

func (b *fakeBus) Heartbeat(context.Context, *eventv1.NodeHeartbeat) error { return nil }

func (b *fakeBus) State(context.Context, string) (bus.StreamState, error) {
	return bus.StreamState{}, bus.ErrUnavailable
}

func (b *fakeBus) SubscribeWindows(context.Context, func(string, *flowv1.Window)) error {
	return bus.ErrUnavailable
}

func (b *fakeBus) Ready() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.down
}

// config is a gateway on loopback with a local authority and a local token key in dir.
func config(t *testing.T, dir string) Config {
	t.Helper()
	if _, err := pki.Ensure(dir, []string{"127.0.0.1"}, false); err != nil {
		t.Fatal(err)
	}
	files := pki.FilesOf(dir, pki.Gateway)
	cfg := DefaultConfig()
	cfg.Listen = "127.0.0.1:0"
	cfg.HTTPSCert, cfg.HTTPSKey = files.Cert, files.Key
	cfg.Tokens.JWKSFile = filepath.Join(dir, token.JWKSFile)
	return cfg
}

func TestService(t *testing.T) {
	dir := t.TempDir()
	if _, err := token.Init(dir); err != nil {
		t.Fatal(err)
	}
	tel, b := telemetry.Discard("gateway"), &fakeBus{}
	s, err := New(config(t, dir), Deps{Telemetry: tel, Bus: b, Mesh: &mesh.Mesh{}})
	if err != nil {
		t.Fatal(err)
	}
	if failing := tel.Ready(); len(failing) != 0 {
		t.Errorf("not ready: %v", failing)
	}
	b.mu.Lock()
	b.down = errors.New("no NATS")
	b.mu.Unlock()
	if failing := tel.Ready(); len(failing) != 1 || !strings.Contains(failing[0], "no NATS") {
		t.Errorf("with NATS away: %v", failing)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	addr := (<-s.bound).String()
	pem, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true}
	client := &http.Client{Transport: tr, Timeout: 10 * time.Second}
	ask := func(path, raw string) (int, api.Problem) {
		t.Helper()
		req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "https://"+addr+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		if raw != "" {
			req.Header.Set("Authorization", "Bearer "+raw)
		}
		answer, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		var p api.Problem
		if err := json.Unmarshal(body, &p); err != nil && strings.HasPrefix(path, "/api/") {
			t.Errorf("%s: %s", path, body)
		}
		return answer.StatusCode, p
	}
	good, err := token.Issue(dir, token.Claims{Subject: "ada", Role: "viewer"})
	if err != nil {
		t.Fatal(err)
	}
	if code, _ := ask("/api/v1/none", good); code != 404 {
		t.Errorf("an unknown path with a token: %d", code)
	}
	if code, _ := ask("/api/v1", good); code != 404 {
		t.Errorf("a prefix without its slash: %d", code) // a ServeMux would redirect
	}
	for range 10 {
		if code, _ := ask("/api/v1/none", good+"x"); code != 401 {
			t.Fatalf("a forged token: %d", code)
		}
	}
	other, err := token.Issue(dir, token.Claims{Subject: "eve", Role: "viewer"})
	if err != nil {
		t.Fatal(err)
	}
	if code, p := ask("/api/v1/none", other); code != 429 || p.Reason != "locked" {
		t.Errorf("after ten forged tokens: %d %+v", code, p)
	}
	if code, _ := ask("/api/v1/none", good); code != 404 {
		t.Errorf("a token that was in before the lock: %d", code)
	}
	tr.CloseIdleConnections()
	begin := time.Now()
	cancel()
	if err := <-ended; err != nil || time.Since(begin) > 5*time.Second {
		t.Errorf("the end: %v after %s", err, time.Since(begin))
	}
	if len(b.audits) != 1 || b.audits[0].Action != "login.locked" || b.audits[0].Remote != "127.0.0.1" {
		t.Errorf("audit entries %v", b.audits)
	}
}

func TestSession(t *testing.T) {
	dir := t.TempDir()
	s, err := New(config(t, dir), Deps{Telemetry: telemetry.Discard("gateway"), Bus: &fakeBus{}, Mesh: &mesh.Mesh{}})
	if err != nil {
		t.Fatal(err)
	}
	from := func(addr string) *http.Request {
		r := httptest.NewRequest(http.MethodPost, "/login", nil)
		return r.WithContext(caller.With(r.Context(), caller.Caller{Remote: netip.MustParseAddr(addr), RequestID: "r1"}))
	}
	login := func(addr, raw string, status int, reason string) {
		t.Helper()
		c, err := s.login(from(addr), raw)
		var p *api.Problem
		if !errors.As(err, &p) || p.Status != status || p.Reason != reason || p.RequestID != "r1" || c != nil {
			t.Errorf("login: a cookie %v, %+v; want %d %s", c != nil, p, status, reason)
		}
	}
	login("192.0.2.1", "a.b.c", 503, "no_keys")
	if _, err := token.Init(dir); err != nil {
		t.Fatal(err)
	}
	if s, err = New(config(t, dir), Deps{Telemetry: telemetry.Discard("gateway"), Bus: &fakeBus{}, Mesh: &mesh.Mesh{}}); err != nil {
		t.Fatal(err)
	}
	raw, err := token.Issue(dir, token.Claims{Subject: "ada", Role: "operator", For: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.login(from("192.0.2.1"), raw)
	if err != nil || c.Name != auth.CookieName || c.Value != raw || time.Until(c.Expires) > time.Hour {
		t.Fatalf("login: %v, %v", c, err)
	}
	login("192.0.2.1", padded(t, dir, raw, 4<<10), 422, "token_size") // browsers would drop its cookie without a word
	for range 10 {
		login("192.0.2.2", "a.b.c", 401, "unauthorized")
	}
	login("192.0.2.2", "a.b.c", 429, "locked")
	if c := logout(nil); c.MaxAge >= 0 || c.Name != auth.CookieName {
		t.Errorf("logout: %v", c)
	}
}

// padded is a token with the claims of another and so many bytes more.
func padded(t *testing.T, dir, raw string, size int) string {
	t.Helper()
	claims := jwt.MapClaims{}
	first, _, err := jwt.NewParser().ParseUnverified(raw, claims)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, token.KeyFile))
	if err != nil {
		t.Fatal(err)
	}
	key, err := jwt.ParseEdPrivateKeyFromPEM(text)
	if err != nil {
		t.Fatal(err)
	}
	claims["groups"] = strings.Repeat("g", size)
	large := jwt.NewWithClaims(jwt.SigningMethodEdDSA, claims)
	large.Header["kid"] = first.Header["kid"]
	signed, err := large.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func TestNewRefuses(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"listen":          {func(c *Config) { c.Listen = "8080" }, "host:port"},
		"cert alone":      {func(c *Config) { c.HTTPSKey = "" }, "belong together"},
		"no certificate":  {func(c *Config) { c.HTTPSCert, c.HTTPSKey = "", "" }, "--https-cert"},
		"absent":          {func(c *Config) { c.HTTPSCert = "/nowhere.pem" }, "tidegate certs"},
		"tokens":          {func(c *Config) { c.Tokens.Skew = -1 }, "skew"},
		"limits":          {func(c *Config) { c.Edge.MaxBody = 0 }, "body"},
		"authority's PEM": {func(c *Config) { c.Tokens.JWKSURL, c.Tokens.JWKSCA = "https://id.example/", "/nowhere.pem" }, "authority"},
	} {
		cfg := config(t, dir)
		c.change(&cfg)
		if _, err := New(cfg, Deps{Telemetry: telemetry.Discard("gateway"), Bus: &fakeBus{}, Mesh: &mesh.Mesh{}}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := New(config(t, dir), Deps{}); err == nil {
		t.Error("New works without telemetry and bus")
	}
}

// A port that is taken ends Run with an error that names the address.
func TestRunOnTakenPort(t *testing.T) {
	dir := t.TempDir()
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	cfg := config(t, dir)
	cfg.Listen = strings.TrimPrefix(server.URL, "http://")
	s, err := New(cfg, Deps{Telemetry: telemetry.Discard("gateway"), Bus: &fakeBus{}, Mesh: &mesh.Mesh{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(context.Background()); err == nil || !strings.Contains(err.Error(), cfg.Listen) {
		t.Errorf("run: %v", err)
	}
}
