package edge

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/tidegate-mesh/tidegate/libs/pki"
)

func newReader(s string) *bufio.Reader { return bufio.NewReader(strings.NewReader(s)) }

func utf8Valid(s string) bool { return utf8.ValidString(s) }

func TestBothProtocols(t *testing.T) {
	r := serve(t, nil, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(w, "%s %s %s", r.Proto, r.Method, body)
	})
	for h2, proto := range map[bool]string{false: "HTTP/1.1", true: "HTTP/2.0"} {
		client := r.client(t, h2)
		for range 3 {
			req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, "https://"+r.addr+"/api/v1/x", strings.NewReader(`{"a":1}`))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set(bearer, "Bearer admin")
			answer, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(answer.Body)
			answer.Body.Close()
			if answer.StatusCode != 200 || string(body) != proto+` POST {"a":1}` {
				t.Errorf("%s: %d %s", proto, answer.StatusCode, body)
			}
		}
		// Too large, with and without a length.
		for _, body := range []io.Reader{bytes.NewReader(make([]byte, 1<<20)), io.LimitReader(zeros{}, 1<<20)} {
			req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, "https://"+r.addr+"/api/v1/x", body)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set(bearer, "Bearer admin")
			answer, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			text, _ := io.ReadAll(answer.Body)
			answer.Body.Close()
			if p := problem(t, answer.Header.Get("Content-Type"), text); answer.StatusCode != 413 || p.Reason != "body_too_large" {
				t.Errorf("%s, 1 MiB: %d %+v", proto, answer.StatusCode, p)
			}
		}
	}
	eventually(t, "the connections are counted", func() bool { return metric(t, r.tel.Registry, "tidegate_gateway_connections", nil) >= 1 })
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestTLS(t *testing.T) {
	r := serve(t, nil, nil)
	dial := func(change func(*tls.Config)) (tls.ConnectionState, error) {
		cfg := &tls.Config{RootCAs: r.roots, MinVersion: tls.VersionTLS10, NextProtos: []string{"h2", "http/1.1"}} //nolint:gosec // the test is what is refused
		change(cfg)
		d := tls.Dialer{Config: cfg}
		conn, err := d.DialContext(context.Background(), "tcp", r.addr)
		if err != nil {
			return tls.ConnectionState{}, err
		}
		defer conn.Close()
		c, _ := conn.(*tls.Conn)
		return c.ConnectionState(), nil
	}
	if s, err := dial(func(*tls.Config) {}); err != nil || s.Version != tls.VersionTLS13 || s.NegotiatedProtocol != "h2" {
		t.Errorf("newest: %x %s, %v", s.Version, s.NegotiatedProtocol, err)
	}
	for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS11} {
		if _, err := dial(func(c *tls.Config) { c.MaxVersion = version }); err == nil {
			t.Errorf("%s is taken", tls.VersionName(version))
		}
	}
	if s, err := dial(func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }); err != nil || s.Version != tls.VersionTLS12 {
		t.Errorf("TLS 1.2: %x, %v", s.Version, err)
	}
	for _, suite := range []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA, tls.TLS_RSA_WITH_AES_128_GCM_SHA256} {
		if _, err := dial(func(c *tls.Config) { c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{suite} }); err == nil {
			t.Errorf("%s is taken", tls.CipherSuiteName(suite))
		}
	}
	conn, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	answer, body := readAnswer(t, conn)
	if answer.StatusCode != 400 || !strings.Contains(body, "HTTPS") {
		t.Errorf("plain HTTP: %d %q", answer.StatusCode, body)
	}
}

func TestCertificateReload(t *testing.T) {
	r := serve(t, nil, nil)
	serial := func() string {
		s := r.raw(t).ConnectionState()
		return s.PeerCertificates[0].SerialNumber.String()
	}
	first := serial()
	if _, err := pki.Ensure(r.certs, []string{"localhost", "127.0.0.1"}, true); err != nil {
		t.Fatal(err)
	}
	second := serial()
	if second == first {
		t.Error("the renewed certificate is not used")
	}
	expires := metric(t, r.tel.Registry, "tidegate_gateway_certificate_expires_seconds", nil)
	if want := r.raw(t).ConnectionState().PeerCertificates[0].NotAfter.Unix(); expires != float64(want) {
		t.Errorf("expiry %v in the metric, want %d", expires, want)
	}
	// A key that does not fit changes nothing but a count.
	copyFile(t, pki.FilesOf(r.certs, pki.Enforce).Key, pki.FilesOf(r.certs, pki.Gateway).Key)
	for range 3 {
		if serial() != second {
			t.Error("a broken pair is used")
		}
	}
	if n := metric(t, r.tel.Registry, "tidegate_errors_total", map[string]string{"op": "tls_reload"}); n != 1 {
		t.Errorf("%v errors counted, want 1", n)
	}
	if err := r.chain.Ready(); err != nil {
		t.Error(err)
	}
}

// A certificate that went away is told of once, not at each handshake, which anybody can make; so is one that comes back.
func TestCertificateAway(t *testing.T) {
	r := newChain(t, nil, nil)
	dir := t.TempDir()
	if _, err := pki.Ensure(dir, nil, false); err != nil {
		t.Fatal(err)
	}
	files := pki.FilesOf(dir, pki.Gateway)
	if err := r.chain.UseCertificate(files.Cert, files.Key); err != nil {
		t.Fatal(err)
	}
	wantErrors := func(want float64) {
		t.Helper()
		for range 5 {
			if err := r.chain.Ready(); err != nil {
				t.Error(err)
			}
		}
		if n := metric(t, r.tel.Registry, "tidegate_errors_total", map[string]string{"op": "tls_reload"}); n != want {
			t.Errorf("%v errors, want %v", n, want)
		}
	}
	for i := range 2 {
		if err := os.Rename(files.Key, files.Key+".away"); err != nil {
			t.Fatal(err)
		}
		wantErrors(float64(i + 1))
		if err := os.Rename(files.Key+".away", files.Key); err != nil {
			t.Fatal(err)
		}
		wantErrors(float64(i + 1))
	}
}

// Files that root has renewed can be read only after a chown, which leaves time and size as they are: what could not be used
// then is tried again.
func TestCertificateBecomesReadable(t *testing.T) {
	r := serve(t, nil, nil)
	files := pki.FilesOf(r.certs, pki.Gateway)
	if _, err := pki.Ensure(r.certs, nil, true); err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(files.Key)
	if err != nil {
		t.Fatal(err)
	}
	written := time.Now().Add(-time.Minute)
	put := func(content []byte) {
		t.Helper()
		if err := errors.Join(os.WriteFile(files.Key, content, 0o600), os.Chtimes(files.Key, written, written)); err != nil {
			t.Fatal(err)
		}
	}
	put(bytes.Repeat([]byte{'-'}, len(key))) // root reads everything, so a test cannot take the right away
	before := r.raw(t).ConnectionState().PeerCertificates[0].SerialNumber
	time.Sleep(20 * time.Millisecond) // file systems count in ticks of the kernel
	put(key)
	if after := r.raw(t).ConnectionState().PeerCertificates[0].SerialNumber; after.Cmp(before) == 0 {
		t.Error("the renewed certificate is not used")
	}
}

func TestSlowClients(t *testing.T) {
	r := serve(t, func(c *Config) {
		c.HeaderTimeout, c.ReadTimeout, c.IdleTimeout = 500*time.Millisecond, time.Second, time.Second
	}, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/api/v1/long" {
			select {
			case <-r.Context().Done():
				t.Error("a long answer without a body was ended")
			case <-time.After(1500 * time.Millisecond):
			}
		}
	})
	const head = "POST /api/v1/x HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer admin\r\nContent-Type: application/json\r\n"
	for name, text := range map[string]string{
		"with a length": head + "Content-Length: 100\r\n\r\n{",
		"chunked":       head + "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
	} {
		begin := time.Now()
		answer, body := r.exchangeRaw(t, text)
		if p := problem(t, answer.Header.Get("Content-Type"), []byte(body)); answer.StatusCode != 408 || p.Reason != "slow_body" || !answer.Close {
			t.Errorf("slow body %s: %d %+v", name, answer.StatusCode, p)
		}
		if took := time.Since(begin); took < 900*time.Millisecond || took > 5*time.Second {
			t.Errorf("slow body %s ended after %s", name, took)
		}
	}
	// Drops of body keep nobody connected beyond the time of the whole request.
	conn := r.raw(t)
	_, _ = io.WriteString(conn, head+"Content-Length: 100\r\n\r\n")
	stop := make(chan struct{})
	dripped := make(chan struct{})
	go func() {
		defer close(dripped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
				_, _ = conn.Write([]byte(" "))
			}
		}
	}()
	if answer, _ := readAnswer(t, conn); answer.StatusCode != 408 {
		t.Errorf("dripping body: %d", answer.StatusCode)
	}
	close(stop)
	<-dripped
	// A refused request's body is not waited for either.
	conn = r.raw(t)
	_, _ = io.WriteString(conn, strings.Replace(head, "Bearer admin", "Bearer forged", 1)+"Content-Length: 100\r\n\r\n")
	if answer, _ := readAnswer(t, conn); answer.StatusCode != 401 {
		t.Errorf("refused with a body to come: %d", answer.StatusCode)
	}
	wantClosed(t, "after the refusal", conn)
	conn = r.raw(t)
	_, _ = io.WriteString(conn, "GET /api/v1/x HTTP/1.1\r\nHost: h\r\nX-Slow: ")
	wantClosed(t, "slow header", conn)
	wantClosed(t, "idle", r.raw(t))
	if answer, _ := r.exchangeRaw(t, "GET /api/v1/long HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer viewer\r\n\r\n"); answer.StatusCode != 200 {
		t.Errorf("a long answer: %d", answer.StatusCode)
	}
	if n := metric(t, r.tel.Registry, "tidegate_gateway_requests_seconds", map[string]string{"code": "408"}); n != 3 {
		t.Errorf("%v requests with 408, want 3", n)
	}
}

// wantClosed waits for the server to close a connection on which nothing whole was sent.
func wantClosed(t *testing.T, what string, conn net.Conn) {
	t.Helper()
	begin := time.Now()
	_ = conn.SetReadDeadline(begin.Add(8 * time.Second))
	_, err := io.Copy(io.Discard, conn)
	var wait net.Error
	if errors.As(err, &wait) && wait.Timeout() {
		t.Errorf("%s: the connection is still open after %s", what, time.Since(begin))
	}
}

func TestHeaderLimit(t *testing.T) {
	r := serve(t, nil, nil)
	for size, problemWanted := range map[int]bool{maxHeader + 1: true, 200 << 10: false} {
		conn := r.raw(t)
		go func() { // the server may answer and close before it has taken everything
			_, _ = io.WriteString(conn, "GET /api/v1/x HTTP/1.1\r\nHost: h\r\nX-Long: "+strings.Repeat("a", size)+"\r\n\r\n")
		}()
		answer, body := readAnswer(t, conn)
		if answer.StatusCode != 431 {
			t.Errorf("%d bytes: %d %s", size, answer.StatusCode, body)
		}
		if problemWanted {
			problem(t, answer.Header.Get("Content-Type"), []byte(body))
		}
	}
}

func TestConnectionLimits(t *testing.T) {
	for reason, change := range map[string]func(*Config){
		"client": func(c *Config) { c.MaxConnsClient = 3 },
		"all":    func(c *Config) { c.MaxConns = 3 },
	} {
		r := serve(t, change, nil)
		held := make([]net.Conn, 3)
		for i := range held {
			held[i] = r.raw(t)
		}
		d := tls.Dialer{Config: &tls.Config{RootCAs: r.roots}}
		if conn, err := d.DialContext(context.Background(), "tcp", r.addr); err == nil {
			conn.Close()
			t.Errorf("%s: a fourth connection of three", reason)
		}
		if n := metric(t, r.tel.Registry, "tidegate_gateway_connections_refused_total", map[string]string{"reason": reason}); n != 1 {
			t.Errorf("%v refusals counted for %s, want 1", n, reason)
		}
		if n := metric(t, r.tel.Registry, "tidegate_gateway_connections", nil); n != 3 {
			t.Errorf("%v connections, want 3", n)
		}
		held[0].Close()
		eventually(t, "a place is free", func() bool { return metric(t, r.tel.Registry, "tidegate_gateway_connections", nil) == 2 })
		r.raw(t)
	}
}

// At the end streams end at once and requests are finished.
func TestGracefulStop(t *testing.T) {
	r := newChain(t, nil, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/api/v1/stream" {
			w.Header().Set("Content-Type", eventStream)
			rc := http.NewResponseController(w)
			if err := errors.Join(rc.SetWriteDeadline(time.Time{}), rc.SetReadDeadline(time.Time{}), rc.Flush()); err != nil {
				t.Error(err)
			}
			<-r.Context().Done()
			return
		}
		_, _ = io.WriteString(w, "begun ")
		_ = http.NewResponseController(w).Flush()
		time.Sleep(300 * time.Millisecond)
		_, _ = io.WriteString(w, "whole")
	})
	dir := t.TempDir()
	if _, err := pki.Ensure(dir, []string{"127.0.0.1"}, false); err != nil {
		t.Fatal(err)
	}
	files := pki.FilesOf(dir, pki.Gateway)
	if err := r.chain.UseCertificate(files.Cert, files.Key); err != nil {
		t.Fatal(err)
	}
	ln, err := Listen(context.Background(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(context.Background(), ln.Addr().String()); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("second listener: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.chain.Serve(ctx, ln) }()
	var bodies []io.Reader
	for _, h2 := range []bool{false, true} {
		tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: h2, DisableCompression: true} //nolint:gosec // certificates are another test's
		if !h2 {
			tr.TLSClientConfig.NextProtos = []string{"http/1.1"}
		}
		defer tr.CloseIdleConnections()
		for _, path := range []string{"/api/v1/stream", "/api/v1/slow"} {
			req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "https://"+ln.Addr().String()+path, http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set(bearer, "Bearer viewer")
			if path == "/api/v1/stream" {
				req.Header.Set("Accept", eventStream)
			}
			answer, err := tr.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			defer answer.Body.Close()
			bodies = append(bodies, answer.Body)
		}
	}
	begin := time.Now()
	cancel()
	for i, want := range []string{"", "begun whole", "", "begun whole"} {
		if body, err := io.ReadAll(bodies[i]); err != nil || string(body) != want {
			t.Errorf("answer %d: %q, %v; want %q", i, body, err, want)
		}
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("the end took %s", took)
	}
}

func TestUnusableCertificate(t *testing.T) {
	r := newChain(t, nil, nil)
	if err := r.chain.UseCertificate("", ""); err == nil || !strings.Contains(err.Error(), "--https-cert") {
		t.Errorf("no files: %v", err)
	}
	if err := r.chain.UseCertificate("/nowhere.pem", "/nowhere-key.pem"); err == nil || !strings.Contains(err.Error(), "tidegate certs") {
		t.Errorf("missing files: %v", err)
	}
	if err := r.chain.Ready(); err == nil {
		t.Error("ready without a certificate")
	}
	ln, err := Listen(context.Background(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.chain.Serve(context.Background(), ln); err == nil {
		t.Error("serves without a certificate")
	}
}

func TestConfig(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"tiny body": func(c *Config) { c.MaxBody = 1 }, "no connections": func(c *Config) { c.MaxConns = 0 },
		"no timeout": func(c *Config) { c.WriteTimeout = 0 }, "negative rate": func(c *Config) { c.ViewerReads = -1 },
	} {
		cfg := DefaultConfig()
		change(&cfg)
		if cfg.Validate() == nil {
			t.Errorf("%s is valid", name)
		}
	}
	if err := DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
}
