package bus_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/bus/bustest"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
)

// authority signs certificates into a folder.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.issue(name, true)
	return a
}

// issue writes NAME.pem and NAME.key; the authority's own certificate is self-signed.
func (a *authority) issue(name string, ca bool) (cert, key string) {
	a.t.Helper()
	check := func(err error) {
		a.t.Helper()
		if err != nil {
			a.t.Fatal(err)
		}
	}
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), IsCA: ca, BasicConstraintsValid: ca,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	parent, signer := a.cert, a.key
	if ca {
		parent, signer = c, k
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &k.PublicKey, signer)
	check(err)
	if ca {
		a.cert, err = x509.ParseCertificate(der)
		check(err)
		a.key = k
	}
	keyDER, err := x509.MarshalECPrivateKey(k)
	check(err)
	cert, key = filepath.Join(a.dir, name+".pem"), filepath.Join(a.dir, name+".key")
	check(os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	check(os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}), 0o600))
	return cert, key
}

func TestMutualTLS(t *testing.T) {
	ca := newAuthority(t, "ca")
	caFile := filepath.Join(ca.dir, "ca.pem")
	serverCert, serverKey := ca.issue("server", false)
	pair, err := tls.LoadX509KeyPair(serverCert, serverKey)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	srv, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true, TLSVerify: true,
		TLS: true, TLSTimeout: 5,
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert},
	})
	if err != nil {
		t.Fatal(err)
	}
	go srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(5 * time.Second) {
		t.Fatal("the server did not start")
	}
	url := "tls://" + srv.Addr().String()
	clientCert, clientKey := ca.issue("client", false)
	stranger := newAuthority(t, "stranger")
	strangeCert, strangeKey := stranger.issue("client", false)
	for _, c := range []struct {
		name string
		tls  bus.TLS
		ok   bool
	}{
		{"client of the authority", bus.TLS{CA: caFile, Cert: clientCert, Key: clientKey}, true},
		{"without a certificate", bus.TLS{CA: caFile}, false},
		{"certificate of another authority", bus.TLS{CA: caFile, Cert: strangeCert, Key: strangeKey}, false},
		{"server of another authority", bus.TLS{CA: filepath.Join(stranger.dir, "stranger.pem"), Cert: clientCert, Key: clientKey}, false},
		{"certificate without key", bus.TLS{CA: caFile, Cert: clientCert}, false},
		{"missing file", bus.TLS{CA: filepath.Join(ca.dir, "none.pem")}, false},
	} {
		b, err := bus.Connect(context.Background(), telemetry.Discard("t"), "t", bus.Config{URL: url, TLS: c.tls})
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
		if b != nil {
			if err := errors.Join(b.EnsureStreams(context.Background()), b.PutRule(context.Background(), bustest.Rule("r"))); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			_ = b.Close()
		}
	}
}
