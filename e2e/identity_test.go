package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/pki"
	"github.com/tidegate-mesh/tidegate/libs/rpc"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	queryv1 "github.com/tidegate-mesh/tidegate/proto/query/v1"
)

// persistApart is persist as a process of its own, with NATS over mutual TLS and SQLite.
type persistApart struct {
	certs, addr, natsURL string
	process              *rig.Process
}

func startPersist(t *testing.T) *persistApart {
	t.Helper()
	p := &persistApart{certs: rig.Certs(t), addr: rig.FreeAddr(t)}
	_, p.natsURL = rig.NATS(t, p.certs)
	p.process = rig.Start(t, rig.Binary(t, "tidegate-persist"), nil, "--tls-dir", p.certs, "--nats-url", p.natsURL,
		"--db-type", "sqlite", "--data-dir", t.TempDir(), "--listen", p.addr, "--metrics-listen", rig.FreeAddr(t))
	err := rig.Eventually(30*time.Second, func() error { return p.list(t, p.files(t, pki.Tidegate)) })
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *persistApart) files(t *testing.T, identity string) rpc.TLS {
	t.Helper()
	files, err := rpc.TLS{Dir: p.certs}.Resolve(identity)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func (p *persistApart) dial(t *testing.T, files rpc.TLS) *grpc.ClientConn {
	t.Helper()
	conn, err := rpc.Dial(telemetry.Discard("e2e"), p.addr, files)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// list makes one call over a new connection.
func (p *persistApart) list(t *testing.T, files rpc.TLS) error {
	t.Helper()
	return listFlows(t, p.dial(t, files))
}

func listFlows(t *testing.T, conn *grpc.ClientConn) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, err := queryv1.NewQueryServiceClient(conn).ListFlows(ctx, &queryv1.ListFlowsRequest{Limit: 1})
	return err
}

// serial is the serial number of the certificate with which the service greets.
func (p *persistApart) serial(t *testing.T) string {
	t.Helper()
	operator := pki.FilesOf(p.certs, pki.Tidegate)
	pair, err := tls.LoadX509KeyPair(operator.Cert, operator.Key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(operator.CA)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	conn, err := tls.Dial("tcp", p.addr, &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

// TestIdentities: over processes, each service lets in whom the table names, and nobody without a certificate.
func TestIdentities(t *testing.T) {
	p := startPersist(t)
	if err := p.list(t, p.files(t, pki.Gateway)); err != nil {
		t.Errorf("the gateway: %v", err)
	}
	err := p.list(t, p.files(t, pki.Classify))
	if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "classify") {
		t.Errorf("classify's certificate: %v, want PermissionDenied", err)
	}
	if err := p.list(t, rpc.TLS{}); status.Code(err) != codes.Unavailable {
		t.Errorf("plain text: %v, want no connection", err)
	}
	if err := p.list(t, rpc.TLS{CA: p.files(t, pki.Gateway).CA}); status.Code(err) != codes.Unavailable {
		t.Errorf("no certificate: %v, want no connection", err)
	}
	// A service that was given another's certificate gets nowhere on NATS: ingest has no rights there.
	stray := pki.FilesOf(p.certs, pki.Ingest)
	other := rig.Start(t, rig.Binary(t, "tidegate-classify"), nil, "--tls-dir", p.certs, "--nats-url", p.natsURL,
		"--nats-tls-cert", stray.Cert, "--nats-tls-key", stray.Key, "--listen", rig.FreeAddr(t), "--metrics-listen", rig.FreeAddr(t))
	err = rig.Eventually(10*time.Second, func() error {
		if !strings.Contains(other.Log(), "Authorization Violation") {
			return context.DeadlineExceeded
		}
		return nil
	})
	if err != nil {
		t.Errorf("classify with ingest's certificate was not refused by NATS: %s", other.Log())
	}
}

// TestRenewal: tidegate certs --renew under running services needs no restart.
func TestRenewal(t *testing.T) {
	p := startPersist(t)
	long := p.dial(t, p.files(t, pki.Tidegate))
	if err := listFlows(t, long); err != nil {
		t.Fatal(err)
	}
	before := p.serial(t)
	rig.MakeCerts(t, p.certs, "--renew")
	if after := p.serial(t); after == before {
		t.Error("a new connection still sees the former certificate")
	}
	if err := p.list(t, p.files(t, pki.Tidegate)); err != nil {
		t.Errorf("a new connection: %v", err)
	}
	if err := listFlows(t, long); err != nil {
		t.Errorf("the connection from before: %v", err)
	}
}

// TestNoCertificates: a service that finds none says what to do.
func TestNoCertificates(t *testing.T) {
	for _, name := range []string{"ingest", "classify", "enforce", "persist", "gateway"} {
		args := []string{"--tls-dir", t.TempDir()}
		switch name {
		case "ingest":
			args = append(args, "--mode", "tap", "--iface", "lo", "--classify", "127.0.0.1:1")
		case "enforce":
			args = append(args, "--iface", "lo")
		}
		exit, stderr := endBinary(t, rig.Binary(t, "tidegate-"+name), nil, args...)
		if last := lastLine(stderr); exit != 2 || !strings.Contains(last, "tidegate certs --dir") || !strings.Contains(last, "--insecure") {
			t.Errorf("%s: exit status %d: %s", name, exit, stderr)
		}
	}
}
