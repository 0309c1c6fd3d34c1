package edge

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/pki"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/auth"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/caller"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeAuth knows the tokens viewer, operator and admin; "locked", "nokeys" and "old" fail in those ways.
type fakeAuth struct {
	mu     sync.Mutex
	failed int
}

func (f *fakeAuth) Login(_ context.Context, raw string, from netip.Addr, _ string) (auth.Identity, error) {
	if !from.IsValid() {
		panic("a request without an address")
	}
	role, ok := caller.ParseRole(raw)
	if ok {
		id := auth.Identity{Subject: "s-" + raw, Role: role, Expires: time.Now().Add(time.Hour)}
		copy(id.Token[:], raw)
		return id, nil
	}
	switch raw {
	case "locked":
		return auth.Identity{}, &auth.LockedError{RetryAfter: 29500 * time.Millisecond}
	case "nokeys":
		return auth.Identity{}, auth.ErrUnavailable
	case "old":
		return auth.Identity{}, auth.ErrExpired
	}
	f.Failed(from, "")
	return auth.Identity{}, auth.ErrInvalid
}

func (f *fakeAuth) Failed(netip.Addr, string) {
	f.mu.Lock()
	f.failed++
	f.mu.Unlock()
}

func (f *fakeAuth) failures() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failed
}

type rig struct {
	chain *Chain
	auth  *fakeAuth
	tel   *telemetry.Telemetry
	addr  string
	roots *x509.CertPool
	certs string
}

func quiet(change func(*Config)) Config {
	cfg := DefaultConfig()
	cfg.ViewerReads, cfg.OperatorReads, cfg.OperatorWrites, cfg.NobodyRequests = 0, 0, 0, 0
	if change != nil {
		change(&cfg)
	}
	return cfg
}

// newChain is the chain alone, without limits of rate unless change sets some.
func newChain(t testing.TB, change func(*Config), next http.HandlerFunc) *rig {
	t.Helper()
	r := &rig{auth: &fakeAuth{}, tel: telemetry.Discard("gateway")}
	if next == nil {
		next = func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }
	}
	var err error
	if r.chain, err = New(quiet(change), r.tel, r.auth, next); err != nil {
		t.Fatal(err)
	}
	return r
}

// serve is the chain behind real TLS until the test ends.
func serve(t testing.TB, change func(*Config), next http.HandlerFunc) *rig {
	t.Helper()
	r := newChain(t, change, next)
	r.certs = t.TempDir()
	if _, err := pki.Ensure(r.certs, []string{"localhost", "127.0.0.1"}, false); err != nil {
		t.Fatal(err)
	}
	files := pki.FilesOf(r.certs, pki.Gateway)
	if err := r.chain.UseCertificate(files.Cert, files.Key); err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(files.CA)
	if err != nil {
		t.Fatal(err)
	}
	r.roots = x509.NewCertPool()
	r.roots.AppendCertsFromPEM(pem)
	ln, err := Listen(context.Background(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.chain.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return r
}

// client speaks HTTP/2 or HTTP/1.1 with the rig.
func (r *rig) client(t testing.TB, h2 bool) *http.Client {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: r.roots, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: h2, DisableCompression: true}
	if !h2 {
		tr.TLSClientConfig.NextProtos = []string{"http/1.1"}
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func (r *rig) raw(t testing.TB) *tls.Conn {
	t.Helper()
	d := tls.Dialer{Config: &tls.Config{RootCAs: r.roots, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12}}
	conn, err := d.DialContext(context.Background(), "tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(15 * time.Second))
	c, _ := conn.(*tls.Conn)
	return c
}

// exchangeRaw sends text as it is and reads the answer.
func (r *rig) exchangeRaw(t testing.TB, text string) (reply, string) {
	t.Helper()
	conn := r.raw(t)
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	return readAnswer(t, conn)
}

// reply is an answer whose body was read.
type reply struct {
	StatusCode int
	Header     http.Header
	Close      bool
}

func readAnswer(t testing.TB, conn net.Conn) (reply, string) {
	t.Helper()
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	return reply{answer.StatusCode, answer.Header, answer.Close}, string(body)
}

// ask runs a request through the chain alone. headers alternate name and value.
func (r *rig) ask(method, target, body string, headers ...string) *httptest.ResponseRecorder {
	var in io.Reader
	if body != "" {
		in = strings.NewReader(body)
	}
	req := httptest.NewRequest(method, "https://gate.example/", in)
	req.RequestURI = target
	u := *req.URL
	if parsed, err := u.Parse(target); err == nil {
		req.URL = parsed
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	w := &deadlineRecorder{httptest.NewRecorder()}
	r.chain.ServeHTTP(w, req)
	return w.ResponseRecorder
}

// deadlineRecorder takes deadlines as a connection does.
type deadlineRecorder struct{ *httptest.ResponseRecorder }

func (deadlineRecorder) SetReadDeadline(time.Time) error { return nil }

func (deadlineRecorder) SetWriteDeadline(time.Time) error { return nil }

func problem(t testing.TB, kind string, body []byte) api.Problem {
	t.Helper()
	var p api.Problem
	if kind != "application/problem+json" {
		t.Errorf("content type %q, want problem+json; body %s", kind, body)
	}
	if err := json.Unmarshal(body, &p); err != nil {
		t.Errorf("body %q: %v", body, err)
	}
	return p
}

// wantProblem checks that a recorded answer is a whole problem.
func wantProblem(t testing.TB, what string, w *httptest.ResponseRecorder, status int, reason string) {
	t.Helper()
	p := problem(t, w.Header().Get("Content-Type"), w.Body.Bytes())
	if w.Code != status || p.Status != status || (reason != "" && p.Reason != reason) || p.Title == "" || p.RequestID == "" || p.RequestID != w.Header().Get("X-Request-Id") {
		t.Errorf("%s: status %d, problem %+v; want %d %s", what, w.Code, p, status, reason)
	}
}

// metric sums counters, gauges and observation counts of the series that have these labels.
func metric(t testing.TB, r *prometheus.Registry, name string, labels map[string]string) (sum float64) {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.Metric {
			match := 0
			for _, l := range m.Label {
				if labels[l.GetName()] == l.GetValue() {
					match++
				}
			}
			if match == len(labels) {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return sum
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	data, err := os.ReadFile(filepath.Clean(from))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o600); err != nil {
		t.Fatal(err)
	}
}
