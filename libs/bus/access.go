package bus

import (
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"github.com/nats-io/nats-server/v2/server"
)

// access lets clients into the embedded server: over TCP by the common name of their certificate, inside the process by
// a password that never leaves it.
type access struct {
	password string
	users    map[string]*server.User
}

func newAccess() *access {
	a := &access{password: rand.Text(), users: map[string]*server.User{}}
	for name, p := range Permissions() {
		a.users[name] = &server.User{Username: name, Permissions: p.serverPermissions()}
	}
	return a
}

// Check implements the server's Authentication.
func (a *access) Check(c server.ClientAuthentication) bool {
	state := c.GetTLSConnectionState()
	if state == nil { // TCP clients always have TLS here
		if subtle.ConstantTimeCompare([]byte(c.GetOpts().Password), []byte(a.password)) != 1 {
			return false
		}
		c.RegisterUser(&server.User{Username: "in-process"})
		return true
	}
	if len(state.VerifiedChains) == 0 {
		return false
	}
	u := a.users[state.VerifiedChains[0][0].Subject.CommonName]
	if u == nil {
		return false
	}
	c.RegisterUser(u)
	return true
}

// serverConfig demands client certificates. The files are read at each handshake; while they cannot be, as between
// the writes of a renewal, what was read last stays.
func (f TLS) serverConfig() (*tls.Config, error) {
	if f.CA == "" || f.Cert == "" || f.Key == "" {
		return nil, errors.New("embedded NATS: listening needs an authority, a certificate and its key")
	}
	last, err := f.load()
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	base := last.Clone()
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		mu.Lock()
		defer mu.Unlock()
		next, err := f.load()
		if err != nil {
			slog.Warn("embedded NATS: the certificate files cannot be used, the former ones stay", "error", err)
			return last, nil
		}
		last = next
		return last, nil
	}
	return base, nil
}

func (f TLS) load() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, fmt.Errorf("NATS certificate: %w", err)
	}
	pem, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, fmt.Errorf("NATS CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("NATS CA: %s holds no certificate", f.CA)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, SessionTicketsDisabled: true,
	}, nil
}
