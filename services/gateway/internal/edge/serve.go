package edge

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/tidegate-mesh/tidegate/services/gateway/internal/auth"
)

// drainTime bounds the graceful end; requests that still run then are cut.
const drainTime = 8 * time.Second

// suites are the AEAD suites with ephemeral keys of TLS 1.2; those of TLS 1.3 are fixed.
var suites = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
}

// UseCertificate names the PEM files of the HTTPS certificate. It is called before Serve.
func (c *Chain) UseCertificate(cert, key string) (err error) {
	c.tls, err = openCertificate(c.t, c.m, cert, key)
	return err
}

// Ready is nil while the HTTPS certificate is valid.
func (c *Chain) Ready() error {
	if c.tls == nil {
		return errors.New("no HTTPS certificate is loaded")
	}
	return c.tls.ready()
}

// Listen binds a TCP address.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("HTTPS address %s is in use by another process: choose another with --listen, or --gateway-listen of the all-in-one (%w)", address, syscall.EADDRINUSE)
	case err != nil:
		return nil, fmt.Errorf("listen for HTTPS on %s: %w", address, err)
	}
	return ln, nil
}

// Serve speaks HTTP/2 and HTTP/1.1 over TLS on ln, which it closes, until ctx ends. Then event streams end, so that
// their clients go to another gateway or come back, running requests get 8 s, and Serve returns nil.
func (c *Chain) Serve(ctx context.Context, ln net.Listener) error {
	defer c.endAll()
	if c.tls == nil {
		_ = ln.Close() // the error that counts is the missing certificate
		return errors.New("serve HTTPS: no certificate was named")
	}
	server := &http.Server{
		Handler: c,
		TLSConfig: &tls.Config{
			MinVersion: tls.VersionTLS12, CipherSuites: suites, GetCertificate: c.tls.get, NextProtos: []string{"h2", "http/1.1"},
		},
		ReadHeaderTimeout: c.cfg.HeaderTimeout,
		// No ReadTimeout: it would also end requests that have no body and take long. ServeHTTP sets one for bodies.
		WriteTimeout: c.cfg.WriteTimeout,
		IdleTimeout:  c.cfg.IdleTimeout,
		// Between maxHeader and this the answer is a problem; above it the library's own 431.
		MaxHeaderBytes: 2 * maxHeader,
		HTTP2:          &http.HTTP2Config{MaxConcurrentStreams: 100, MaxReadFrameSize: 64 << 10, MaxReceiveBufferPerConnection: 256 << 10, MaxReceiveBufferPerStream: 128 << 10},
		ErrorLog:       slog.NewLogLogger(c.t.Log.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() {
		failed <- server.ServeTLS(&limitListener{Listener: ln, c: c, open: map[netip.Addr]int{}}, "", "")
	}()
	select {
	case err := <-failed:
		return fmt.Errorf("serve HTTPS on %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	c.endAll()
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	if server.Shutdown(drain) != nil {
		c.t.Log.Warn("requests still ran at the end and were cut")
		_ = server.Close()
	}
	<-failed
	return nil
}

// limitListener closes connections above the limits at once: one that waited would hold a socket all the same.
type limitListener struct {
	net.Listener
	c *Chain

	mu   sync.Mutex
	all  int
	open map[netip.Addr]int
}

func (l *limitListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := netip.Addr{}
		if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
			from = auth.Origin(a.AddrPort().Addr())
		}
		if reason := l.enter(from); reason != "" {
			l.c.m.dropped.WithLabelValues(reason).Inc()
			_ = conn.Close()
			continue
		}
		l.c.m.conns.Inc()
		return &limitedConn{Conn: conn, l: l, from: from}, nil
	}
}

// enter counts a connection, or names the limit that forbids it.
func (l *limitListener) enter(from netip.Addr) (reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.all >= l.c.cfg.MaxConns:
		return "all"
	case l.open[from] >= l.c.cfg.MaxConnsClient:
		return "client"
	}
	l.all++
	l.open[from]++
	return ""
}

type limitedConn struct {
	net.Conn
	l    *limitListener
	from netip.Addr
	once sync.Once
}

func (c *limitedConn) Close() error {
	c.once.Do(func() {
		c.l.mu.Lock()
		c.l.all--
		if c.l.open[c.from]--; c.l.open[c.from] == 0 {
			delete(c.l.open, c.from)
		}
		c.l.mu.Unlock()
		c.l.c.m.conns.Dec()
	})
	return c.Conn.Close()
}
