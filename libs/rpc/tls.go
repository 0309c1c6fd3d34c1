package rpc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/tidegate-mesh/tidegate/libs/pki"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
)

// TLS names the certificates of a service. The zero value is plain text, for tests and in-memory servers. Of a
// command line it must pass Resolve first.
//
// A server needs Cert and Key; with CA it demands a client certificate signed by CA (mutual TLS). A client needs CA
// to verify a server of a private authority, and Cert and Key when the server demands them. The files are read
// again at the first handshake after any of them has changed; connections that exist live on. TLS 1.2 is the least.
type TLS struct {
	Dir      string `name:"tls-dir" placeholder:"DIR" env:"TIDEGATE_TLS_DIR" help:"Folder of the certificates that tidegate certs makes: ca.pem, SERVICE.pem, SERVICE-key.pem (default: /etc/tidegate/certs; tidegate run makes its own in certs of --data)."`
	CA       string `name:"tls-ca" placeholder:"FILE" help:"PEM file of the certificate authority that signs the peers, instead of the folder's."`
	Cert     string `name:"tls-cert" placeholder:"FILE" help:"PEM file of the own certificate, chain included, instead of the folder's."`
	Key      string `name:"tls-key" placeholder:"FILE" help:"PEM file of the own private key, instead of the folder's."`
	Insecure bool   `name:"insecure" env:"TIDEGATE_INSECURE" help:"Plain text instead of mutual TLS, to the other services and to NATS."`

	// Server is the identity that a client expects of the server's certificate; empty: any that is valid for the host.
	// The all-in-one stands for every service.
	Server string `kong:"-" yaml:"-"`
}

// Resolve names the files of a service: those given, the rest from the folder. With Insecure no files are named and
// none may be. An error says which file is missing and what to do.
func (f TLS) Resolve(service string) (TLS, error) {
	named := f.CA != "" || f.Cert != "" || f.Key != ""
	if f.Insecure {
		if named {
			return f, errors.New("--insecure and --tls-ca, --tls-cert or --tls-key exclude each other")
		}
		f.Dir = ""
		return f, nil
	}
	if (f.Cert == "") != (f.Key == "") {
		return f, errors.New("--tls-cert and --tls-key belong together: give both or none")
	}
	dir := f.Dir
	if dir == "" {
		dir = pki.DefaultDir
	}
	f.Dir = ""
	files := pki.FilesOf(dir, service)
	if f.CA == "" {
		f.CA = files.CA
	}
	if f.Cert == "" {
		f.Cert, f.Key = files.Cert, files.Key
	}
	for _, path := range []string{f.CA, f.Cert, f.Key} {
		file, err := os.Open(path) //nolint:gosec // the operator's file
		switch {
		case errors.Is(err, fs.ErrPermission):
			return f, fmt.Errorf("no certificate for %s (%w): make the file readable for the user that runs %s", service, err, service)
		case err != nil:
			return f, fmt.Errorf("no certificate for %s (%w): run `tidegate certs --dir %s`, or start with --insecure for plain text", service, err, dir)
		}
		_ = file.Close() // it was only opened for the error
	}
	id, err := f.read()
	if err != nil {
		return f, err
	}
	// Peers would refuse every call; here the mistake still has the file's name.
	if name := id.cert.Leaf.Subject.CommonName; name != service && name != pki.Tidegate {
		return f, fmt.Errorf("the certificate %s is of %q and this is %s: name the files of %s", f.Cert, name, service, service)
	}
	return f, nil
}

// Expect is for a connection to that service alone: another identity's server is refused.
func (f TLS) Expect(service string) TLS {
	f.Server = service
	return f
}

// plain tells whether no files are named. A command line's TLS that was not resolved is an error rather than
// plain text by accident.
func (f TLS) plain() (bool, error) {
	if f.CA != "" || f.Cert != "" || f.Key != "" {
		return false, nil
	}
	if f.Dir != "" && !f.Insecure {
		return false, errors.New("TLS: a folder is named but its files are not: this is a mistake of the program (Resolve was not called)")
	}
	return true, nil
}

// nextProtos is what gRPC requires both sides to negotiate by ALPN.
var nextProtos = []string{"h2"}

// identity is what the files held when last read.
type identity struct {
	cert *tls.Certificate // nil: none configured
	pool *x509.CertPool   // nil: none configured
	ends time.Time        // the earlier of the certificate's end and the authorities' last; zero: none configured
}

// store keeps the identity current. It may be used by several goroutines.
type store struct {
	t     *telemetry.Telemetry
	files TLS

	mu     sync.Mutex
	stamps [3]stamp
	now    identity
	told   string // the error that was logged, until the files can be used again
}

// stamp tells one version of a file from another. A rename over the file changes modification time or size as well.
type stamp struct {
	modified time.Time
	size     int64
}

func openStore(t *telemetry.Telemetry, files TLS) (*store, error) {
	if (files.Cert == "") != (files.Key == "") {
		return nil, errors.New("TLS: certificate and key files belong together: set both or none")
	}
	s := &store{t: t, files: files}
	stamps, err := files.stamps()
	if err != nil {
		return nil, err
	}
	if s.now, err = files.read(); err != nil {
		return nil, err
	}
	s.stamps = stamps
	if s.now.ends.IsZero() {
		return s, nil
	}
	first := t.SetExpiry(func() time.Time { return s.current().ends })
	t.Check("certificate", func() error { return pki.Expired(files.Cert, s.current().ends, time.Now()) })
	if first && time.Until(s.now.ends) < pki.RenewWithin {
		t.Log.Warn("the certificate or its authority ends soon or has ended: run `tidegate certs`", "cert", files.Cert, "ca", files.CA, "ends", s.now.ends)
	}
	return s, nil
}

// current gives the identity, read again if a file has changed. While the files are unreadable or do not fit together,
// as between the writes of a rotation, the former identity stays; the error is logged once and counted as tls_reload, and
// the next handshake tries again.
func (s *store) current() identity {
	s.mu.Lock()
	defer s.mu.Unlock()
	// Stamps are taken before the content: a change between the two is seen at the next handshake.
	stamps, err := s.files.stamps()
	if err == nil && stamps == s.stamps {
		s.told = ""
		return s.now
	}
	var next identity
	if err == nil {
		next, err = s.files.read()
	}
	if err != nil {
		s.t.CountError("tls_reload")
		if text := err.Error(); text != s.told {
			s.told = text
			s.t.Log.Warn("certificate files changed but cannot be used, the former ones stay", "error", err)
		}
		return s.now
	}
	s.now, s.stamps, s.told = next, stamps, ""
	s.t.Log.Info("certificates reloaded", "cert", s.files.Cert, "ca", s.files.CA)
	return s.now
}

func (f *TLS) stamps() (all [3]stamp, err error) {
	for i, path := range []string{f.CA, f.Cert, f.Key} {
		if path == "" {
			continue
		}
		info, err := os.Stat(path)
		if err != nil {
			return all, fmt.Errorf("TLS: %w", err)
		}
		all[i] = stamp{info.ModTime(), info.Size()}
	}
	return all, nil
}

func (f *TLS) read() (identity, error) {
	var id identity
	if f.Cert != "" {
		cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
		if err != nil {
			return id, fmt.Errorf("TLS: load certificate %s with key %s: %w", f.Cert, f.Key, err)
		}
		id.cert, id.ends = &cert, cert.Leaf.NotAfter
	}
	if f.CA != "" {
		content, err := os.ReadFile(f.CA)
		if err != nil {
			return id, fmt.Errorf("TLS: read authority: %w", err)
		}
		id.pool = x509.NewCertPool()
		if !id.pool.AppendCertsFromPEM(content) {
			return id, fmt.Errorf("TLS: authority file %s holds no PEM certificate", f.CA)
		}
		if last := lastEnd(content); id.ends.IsZero() || last.Before(id.ends) {
			id.ends = last
		}
	}
	return id, nil
}

// lastEnd is the last end of the certificates in a PEM file: while an authority is exchanged, the former may end.
func lastEnd(content []byte) (last time.Time) {
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil && cert.NotAfter.After(last) {
			last = cert.NotAfter
		}
	}
	return last
}

// serverCredentials takes the identity anew for each handshake.
func serverCredentials(t *telemetry.Telemetry, files TLS) (credentials.TransportCredentials, error) {
	if files.Cert == "" {
		return nil, errors.New("TLS: a server needs a certificate and a key file, not only an authority")
	}
	s, err := openStore(t, files)
	if err != nil {
		return nil, err
	}
	return &telling{TransportCredentials: credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: nextProtos,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			id := s.current()
			cfg := &tls.Config{
				MinVersion:   tls.VersionTLS12,
				NextProtos:   nextProtos,
				Certificates: []tls.Certificate{*id.cert},
				// Resumption would let a client of a replaced authority back in.
				SessionTicketsDisabled: true,
			}
			if id.pool != nil {
				cfg.ClientAuth = tls.RequireAndVerifyClientCert
				cfg.ClientCAs = id.pool
			}
			return cfg, nil
		},
	}), store: s, told: new(atomic.Int64)}, nil
}

// telling logs why clients are turned away: gRPC itself keeps it to itself, and over TLS 1.3 the client only learns an
// alert's number.
type telling struct {
	credentials.TransportCredentials
	store *store
	told  *atomic.Int64 // Unix seconds of the last line: anybody can cause one
}

func (s *telling) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	secured, info, err := s.TransportCredentials.ServerHandshake(conn)
	err = s.store.files.explain(err, "the client at "+conn.RemoteAddr().String())
	var why *pki.HandshakeError
	if errors.As(err, &why) {
		s.store.t.CountError("tls_handshake")
		if now := time.Now().Unix(); s.told.Swap(now) != now {
			s.store.t.Log.Warn("a client is turned away", "error", why)
		}
	}
	return secured, info, err
}

func (s *telling) Clone() credentials.TransportCredentials {
	return &telling{TransportCredentials: s.TransportCredentials.Clone(), store: s.store, told: s.told}
}

func (f *TLS) explain(err error, peer string) error {
	return pki.Explain(err, peer, pki.Files{CA: f.CA, Cert: f.Cert, Key: f.Key})
}

// clientCredentials wraps gRPC's own TLS credentials, whose authority pool is fixed once made.
func clientCredentials(t *telemetry.Telemetry, files TLS) (credentials.TransportCredentials, error) {
	s, err := openStore(t, files)
	if err != nil {
		return nil, err
	}
	return &reloading{store: s}, nil
}

type reloading struct {
	store *store
	name  string // set by OverrideServerName
}

func (r *reloading) fresh() credentials.TransportCredentials {
	id := r.store.current()
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: nextProtos, ServerName: r.name, RootCAs: id.pool}
	if want := r.store.files.Server; want != "" {
		cfg.VerifyConnection = func(s tls.ConnectionState) error {
			if got := s.PeerCertificates[0].Subject.CommonName; got != want && got != pki.Tidegate {
				return fmt.Errorf("TLS: the server's certificate is of %q, expected %s", got, want)
			}
			return nil
		}
	}
	if id.cert != nil {
		cfg.Certificates = []tls.Certificate{*id.cert}
	}
	return credentials.NewTLS(cfg)
}

func (r *reloading) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	peer := r.store.files.Server
	if peer == "" {
		peer = "the server"
	}
	peer += " at " + conn.RemoteAddr().String()
	secured, info, err := r.fresh().ClientHandshake(ctx, authority, conn)
	if err != nil {
		return nil, nil, r.store.files.explain(err, peer)
	}
	return &explained{
		Conn: secured, explain: func(err error) error { return r.store.files.explain(err, peer) }, broken: make(chan struct{}),
	}, info, nil
}

// refusalWait is how long a failed write waits for what the server had to say.
const refusalWait = 200 * time.Millisecond

// explained is a connection whose errors name the certificate: with TLS 1.3 the server's refusal arrives after the
// handshake, at the first read, while a write may already find the connection closed.
type explained struct {
	net.Conn
	explain func(error) error

	once   sync.Once
	broken chan struct{} // closed after why is set by the first failed read
	why    error
}

func (c *explained) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		err = c.explain(err)
		c.once.Do(func() {
			c.why = err
			close(c.broken)
		})
	}
	return n, err
}

func (c *explained) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err == nil {
		return n, nil
	}
	select {
	case <-c.broken:
		var why *pki.HandshakeError
		if errors.As(c.why, &why) {
			return n, why
		}
	case <-time.After(refusalWait):
	}
	return n, err
}

func (r *reloading) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("TLS: these credentials are a client's")
}

func (r *reloading) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls", ServerName: r.name}
}

func (r *reloading) Clone() credentials.TransportCredentials {
	return &reloading{store: r.store, name: r.name}
}

// OverrideServerName is part of the interface, deprecated there.
func (r *reloading) OverrideServerName(name string) error {
	r.name = name
	return nil
}
