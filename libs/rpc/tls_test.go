package rpc

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"

	"github.com/tidegate-mesh/tidegate/libs/pki"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
)

// authority signs certificates for 127.0.0.1.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

var serial int64

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

// issue writes a certificate, its key and the authority to the files and returns the serial number.
func (a *authority) issue(t *testing.T, files TLS) int64 {
	t.Helper()
	return a.issueFor(t, files, time.Now().Add(time.Hour), net.IPv4(127, 0, 0, 1))
}

func (a *authority) issueFor(t *testing.T, files TLS, until time.Time, address net.IP) int64 {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "test peer"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: until,
		IPAddresses: []net.IP{address},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, files.Cert, "CERTIFICATE", der)
	writePEM(t, files.Key, "PRIVATE KEY", keyDER)
	writePEM(t, files.CA, "CERTIFICATE", a.cert.Raw)
	return serial
}

// writePEM replaces the file by renaming, the way certificate tools do.
func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	data := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func pemFiles(t *testing.T) TLS {
	t.Helper()
	dir := t.TempDir()
	return TLS{CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
}

// serveTLS runs a server with these files until the test ends.
func serveTLS(t *testing.T, tel *telemetry.Telemetry, files TLS) (addr string) {
	t.Helper()
	srv, state, err := NewServer(tel, files)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- ServeListener(ctx, srv, state, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String()
}

// check makes one call over a new connection and gives the server certificate's serial number.
func check(t *testing.T, tel *telemetry.Telemetry, addr string, files TLS) (int64, error) {
	t.Helper()
	conn, err := Dial(tel, addr, files)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var p peer.Peer
	if _, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{}, grpc.Peer(&p)); err != nil {
		return 0, err
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return 0, nil
	}
	if info.State.Version < tls.VersionTLS12 {
		t.Errorf("TLS version %#x", info.State.Version)
	}
	return info.State.PeerCertificates[0].SerialNumber.Int64(), nil
}

func TestMutualTLS(t *testing.T) {
	tel := telemetry.Discard("ingest")
	ca, stranger := newAuthority(t), newAuthority(t)
	server, client, foreign := pemFiles(t), pemFiles(t), pemFiles(t)
	want := ca.issue(t, server)
	ca.issue(t, client)
	stranger.issue(t, foreign)
	addr := serveTLS(t, tel, server)

	for _, c := range []struct {
		name  string
		files TLS
		good  bool
	}{
		{"both of one authority", client, true},
		{"client without certificate", TLS{CA: client.CA}, false},
		{"client of another authority", TLS{CA: client.CA, Cert: foreign.Cert, Key: foreign.Key}, false},
		{"server of another authority", TLS{CA: foreign.CA, Cert: client.Cert, Key: client.Key}, false},
		{"plain text", TLS{}, false},
	} {
		got, err := check(t, tel, addr, c.files)
		if (err == nil) != c.good {
			t.Errorf("%s: %v", c.name, err)
		}
		if c.good && got != want {
			t.Errorf("%s: server certificate %d, want %d", c.name, got, want)
		}
	}

	old := &tls.Config{MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10, InsecureSkipVerify: true} //nolint:gosec // the refusal is under test
	if conn, err := tls.Dial("tcp", addr, old); err == nil {
		conn.Close()
		t.Error("TLS 1.1 was accepted")
	}
}

// TestHandshakeSentences: both sides say whose certificate is at fault.
func TestHandshakeSentences(t *testing.T) {
	ca, stranger := newAuthority(t), newAuthority(t)
	good, expired, future, foreign := pemFiles(t), pemFiles(t), pemFiles(t), pemFiles(t)
	ca.issue(t, good)
	ca.issueFor(t, expired, time.Now().Add(-time.Minute), net.IPv4(127, 0, 0, 1))
	ca.issueFor(t, future, time.Now().Add(time.Hour), net.IPv4(192, 0, 2, 1))
	stranger.issue(t, foreign)
	foreign.CA = good.CA

	for _, c := range []struct {
		name           string
		server, client TLS
		clientSays     []string
		serverSays     string // empty: it cannot know
	}{
		{"the server's has expired", expired, good, []string{`the certificate 'test peer' of the server at 127.0.0.1:`, "expired 20", "tidegate certs"}, ""},
		{"the server's is of another authority", foreign, good, []string{"is not signed by " + good.CA}, ""},
		{"the server's has another name", future, good, []string{"not good for the name 127.0.0.1", "--host 127.0.0.1"}, ""},
		{"the client's has expired", good, expired, []string{"refuses the certificate " + expired.Cert, "has expired"}, `the certificate 'test peer' of the client at 127.0.0.1:`},
		{"the client's is of another authority", good, foreign, []string{"refuses the certificate " + foreign.Cert}, "is not signed by " + good.CA},
		{"the client has none", good, TLS{CA: good.CA}, []string{"demands a certificate and this side has none"}, ""},
		{"the client speaks plain text", good, TLS{}, []string{""}, "speaks plain text"},
		{"the server speaks plain text", TLS{}, good, []string{"speaks plain text"}, ""},
	} {
		tel := telemetry.Discard("persist")
		var log strings.Builder
		tel.Log = slog.New(slog.NewTextHandler(&log, nil))
		t.Run(c.name, func(t *testing.T) {
			addr := serveTLS(t, tel, c.server)
			var sentence string
			says := func(part string) bool { return strings.Contains(sentence, part) }
			// A server that closes with data unread resets the connection, and then its alert is lost now and then.
			for try := 0; try == 0 || try < 20 && !says(c.clientSays[0]); try++ {
				_, err := check(t, telemetry.Discard("gateway"), addr, c.client)
				if err == nil {
					t.Fatal("the handshake succeeded")
				}
				sentence = Sentence(err)
			}
			for _, part := range c.clientSays {
				if !says(part) {
					t.Errorf("the client does not say %q: %s", part, sentence)
				}
			}
		})
		if !strings.Contains(log.String(), c.serverSays) {
			t.Errorf("%s: the server does not say %q: %s", c.name, c.serverSays, log.String())
		}
	}
}

// TestExpiry: a certificate that ended is not ready, in a sentence, until it is renewed.
func TestExpiry(t *testing.T) {
	ca, files := newAuthority(t), pemFiles(t)
	ca.issueFor(t, files, time.Now().Add(-time.Minute), net.IPv4(127, 0, 0, 1))
	tel := telemetry.Discard("persist")
	serveTLS(t, tel, files)
	if got := strings.Join(tel.Ready(), ""); !strings.HasPrefix(got, "certificate: the certificate "+files.Cert) || !strings.Contains(got, "expired 20") {
		t.Errorf("an expired certificate: %q", got)
	}
	ca.issueFor(t, files, time.Now().Add(48*time.Hour), net.IPv4(127, 0, 0, 1))
	if got := tel.Ready(); len(got) != 0 {
		t.Errorf("a renewed certificate: %q", got)
	}
	if got := time.Unix(0, tel.ExpiryNs()); !got.Equal(ca.cert.NotAfter) {
		t.Errorf("ends %v, want the authority's end %v", got, ca.cert.NotAfter)
	}
}

func TestServerAuthenticationOnly(t *testing.T) {
	tel := telemetry.Discard("gateway")
	files := pemFiles(t)
	want := newAuthority(t).issue(t, files)
	addr := serveTLS(t, tel, TLS{Cert: files.Cert, Key: files.Key})
	if got, err := check(t, tel, addr, TLS{CA: files.CA}); err != nil || got != want {
		t.Errorf("certificate %d, %v", got, err)
	}
}

func TestRotation(t *testing.T) {
	tel := telemetry.Discard("enforce")
	first, second := newAuthority(t), newAuthority(t)
	server, client, stale := pemFiles(t), pemFiles(t), pemFiles(t)
	before := first.issue(t, server)
	first.issue(t, client)
	first.issue(t, stale)
	addr := serveTLS(t, tel, server)
	long, err := Dial(tel, addr, client) // lives through the rotation
	if err != nil {
		t.Fatal(err)
	}
	defer long.Close()
	longHealth := healthv1.NewHealthClient(long)
	if _, err := longHealth.Check(within(t), &healthv1.HealthCheckRequest{}); err != nil {
		t.Fatal(err)
	}
	if got, err := check(t, tel, addr, client); err != nil || got != before {
		t.Fatalf("before: certificate %d, %v", got, err)
	}

	// A new certificate of the same authority.
	renewed := first.issue(t, server)
	if got, err := check(t, tel, addr, client); err != nil || got != renewed {
		t.Errorf("after the renewal: certificate %d, want %d, %v", got, renewed, err)
	}

	// A half-written rotation keeps the former one and is counted.
	good, err := os.ReadFile(server.Key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(server.Key, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := check(t, tel, addr, client); err != nil || got != renewed {
		t.Errorf("with a broken key file: certificate %d, want %d, %v", got, renewed, err)
	}
	if got := counted(t, tel.Registry, "tls_reload"); got < 1 {
		t.Errorf("%v reload errors counted, want at least 1", got)
	}
	if err := os.WriteFile(server.Key, good, 0o600); err != nil {
		t.Fatal(err)
	}

	// Another authority on both sides: the stale client is refused from now on, connections that exist live on.
	replaced := second.issue(t, server)
	if _, err := check(t, tel, addr, stale); err == nil {
		t.Error("a client of the replaced authority was let in")
	}
	second.issue(t, client)
	if got, err := check(t, tel, addr, client); err != nil || got != replaced {
		t.Errorf("after the change of authority: certificate %d, want %d, %v", got, replaced, err)
	}
	if _, err := longHealth.Check(within(t), &healthv1.HealthCheckRequest{}); err != nil {
		t.Errorf("the connection from before: %v", err)
	}
}

// What cannot be read is told once, not at each handshake and each look at the readiness, until it can be read again.
func TestUnreadableIsToldOnce(t *testing.T) {
	dir := t.TempDir()
	if _, err := pki.Ensure(dir, nil, false); err != nil {
		t.Fatal(err)
	}
	files := identityFiles(t, dir, pki.Persist)
	tel := telemetry.Discard("persist")
	var log bytes.Buffer
	tel.Log = slog.New(slog.NewTextHandler(&log, nil))
	s, err := openStore(tel, files)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := os.Rename(files.Key, files.Key+".away"); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			s.current()
		}
		if err := os.Rename(files.Key+".away", files.Key); err != nil {
			t.Fatal(err)
		}
		s.current()
	}
	if n := strings.Count(log.String(), "cannot be used"); n != 2 {
		t.Errorf("told %d times, want 2:\n%s", n, log.String())
	}
}

func TestBadFiles(t *testing.T) {
	tel := telemetry.Discard("x")
	files := pemFiles(t)
	newAuthority(t).issue(t, files)
	junk := filepath.Join(t.TempDir(), "junk.pem")
	if err := os.WriteFile(junk, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		files TLS
		part  string
	}{
		"certificate without key": {TLS{CA: files.CA, Cert: files.Cert}, "belong together"},
		"absent key":              {TLS{Cert: files.Cert, Key: "/nonexistent/key.pem"}, "/nonexistent/key.pem"},
		"authority without PEM":   {TLS{CA: junk, Cert: files.Cert, Key: files.Key}, junk},
		"certificate without PEM": {TLS{Cert: junk, Key: files.Key}, junk},
	} {
		if _, err := Dial(tel, "127.0.0.1:1", c.files); err == nil || !strings.Contains(err.Error(), c.part) {
			t.Errorf("client, %s: %v", name, err)
		}
		if _, _, err := NewServer(tel, c.files); err == nil {
			t.Errorf("server, %s: accepted", name)
		}
	}
	if _, _, err := NewServer(tel, TLS{CA: files.CA}); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a server without certificate: %v", err)
	}
}
