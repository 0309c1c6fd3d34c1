package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api/client"
	"github.com/tidegate-mesh/tidegate/libs/config"
	"github.com/tidegate-mesh/tidegate/libs/pki"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/libs/token"
	"github.com/tidegate-mesh/tidegate/services/gateway"
)

const (
	localSubject = "local-root"
	localFor     = 24 * time.Hour
	localRenew   = localFor / 4
	localLook    = 30 * time.Second // for the file
)

// secureGateway names the gateway's certificate and key set where the configuration names none: those of the folder of
// certificates, else ones made in the data folder.
func secureGateway(g *gateway.Config, certs, data string) error {
	if g.Listen == "" {
		return nil
	}
	if g.HTTPSCert == "" {
		if certs == "" { // no folder, or --insecure, which is about the other services
			certs = filepath.Join(data, "certs")
			if err := ensureCerts(certs, g.Listen); err != nil {
				return err
			}
		}
		files := pki.FilesOf(certs, pki.Gateway)
		g.HTTPSCert, g.HTTPSKey = files.Cert, files.Key
	}
	if g.Tokens.JWKSURL != "" || g.Tokens.JWKSFile != gateway.DefaultConfig().Tokens.JWKSFile {
		return nil
	}
	if _, err := os.Stat(g.Tokens.JWKSFile); !errors.Is(err, fs.ErrNotExist) {
		return nil // the machine's own, or one whose error is told by the gateway
	}
	if _, err := token.Init(data); err != nil {
		return err
	}
	g.Tokens.JWKSFile = filepath.Join(data, token.JWKSFile)
	return nil
}

// localAccess keeps a file with an administrator's token, readable by the user who runs Tidegate alone, so that the
// command line works on the same machine without a log-in.
type localAccess struct {
	file string // empty: none is written
	keys string // folder of the token key
	c    client.Credentials
	g    gateway.Config
	t    *telemetry.Telemetry

	look    time.Duration // localLook, less in tests
	written time.Time
}

// newLocalAccess writes the file. Without a local token key, or where it cannot be written, there is none.
func newLocalAccess(t *telemetry.Telemetry, c stackConfig) (*localAccess, error) {
	l := &localAccess{keys: filepath.Dir(c.gateway.Tokens.JWKSFile), g: c.gateway, t: t, look: localLook}
	_, err := os.Stat(filepath.Join(l.keys, token.KeyFile))
	if c.local == "" || c.gateway.Tokens.JWKSURL != "" || err != nil {
		return l, nil
	}
	ca, err := os.ReadFile(filepath.Join(filepath.Dir(c.gateway.HTTPSCert), "ca.pem"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // missing: a public certificate
		return nil, fmt.Errorf("local access: %w", err)
	}
	l.c = client.Credentials{URL: "https://" + reachable(c.gateway.Listen), CA: string(ca)}
	l.file = c.local
	if err := l.write(); err != nil {
		l.file = ""
		t.Log.Warn("no credentials for this machine's command line: log in with tidegate login, or name a file with --local-credentials", "error", err)
	}
	return l, nil
}

// write issues a token and stores it.
func (l *localAccess) write() (err error) {
	l.c.Token, err = token.Issue(l.keys, token.Claims{
		Subject: localSubject, Role: "admin", For: localFor, Issuer: l.g.Tokens.Issuer, Audience: l.g.Tokens.Audience,
	})
	if err != nil {
		return err
	}
	l.written = time.Now()
	return client.SaveCredentials(l.file, l.c)
}

// Run renews the token until ctx ends, then removes the file, unless another process has written it since. One that did, as a
// demo beside a run, takes the file away at its end: then it is written again.
func (l *localAccess) Run(ctx context.Context) error {
	tick := time.NewTicker(l.look)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			if now, err := client.LoadCredentials(l.file); err == nil && now.Token == l.c.Token {
				_ = os.Remove(l.file) // what stays is a token of a key that this machine holds anyway
			}
			return nil
		case <-tick.C:
			if l.file == "" {
				continue
			}
			if _, err := os.Stat(l.file); !errors.Is(err, fs.ErrNotExist) && time.Since(l.written) < localRenew {
				continue
			}
			if err := l.write(); err != nil {
				l.t.CountError("local_credentials")
				l.t.Log.Error("the credentials of this machine's command line cannot be renewed", "error", err)
			}
		}
	}
}

// reachable is the address by which this machine reaches a listener: loopback where it listens everywhere.
func reachable(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if ip := net.ParseIP(host); err == nil && (host == "" || ip != nil && ip.IsUnspecified()) {
		return net.JoinHostPort("localhost", port)
	}
	return listen
}

// ensureCerts makes the authority and the certificates in a folder that has none, good for the hosts of the addresses.
func ensureCerts(dir string, addrs ...string) error {
	if _, err := pki.Ensure(dir, listenHosts(addrs...), false); err != nil {
		return config.Usagef("certificates: %w", err)
	}
	return nil
}
