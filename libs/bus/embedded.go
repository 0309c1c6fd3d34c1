package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// Embedded is a NATS server inside this process, with JetStream on files.
type Embedded struct {
	srv    *server.Server
	access *access  // nil: whoever reaches the server has all rights
	lock   *os.File // of the folder; closing it releases the lock
}

// Listen is where the embedded server takes other processes.
type Listen struct {
	Addr string // "address:port"; empty: none but this process can connect
	// TLS is the server's certificate and the authority of its clients: all three files. Each client then has the
	// rights of its certificate's common name (Permissions).
	TLS TLS
	// Insecure listens in plain text and gives everybody all rights; TLS must be empty.
	Insecure bool
}

// maxStore is in place of three quarters of the space that is free at the start, NATS's default: what streams may take is bounded
// by their own limits, and a stream whose limit is above that is not made, nor loaded again on a disk that has filled up since.
// NATS heeds it with a bound of memory only, in which nothing is kept.
const (
	maxStore  = 1 << 40
	maxMemory = 1 << 30
)

const embeddedStart = 15 * time.Second // opening large streams after a hard stop takes seconds

// StartEmbedded starts a server that stores under dir, which belongs to one server at a time. Connections inside the
// process have all rights, those of others what listen says. The server installs no signal handlers; ctx bounds the
// start only, Shutdown ends it.
func StartEmbedded(ctx context.Context, dir string, listen Listen) (_ *Embedded, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("embedded NATS: data directory: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = lock.Close() // it was not written to
		}
	}()
	opts := &server.Options{
		ServerName: "tidegate", JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true, DontListen: true,
		DisableJetStreamBanner: true, MaxPayload: 1 << 20, // as a separate server: a program runs the same on both
		JetStreamMaxStore: maxStore, JetStreamMaxMemory: maxMemory,
	}
	e := &Embedded{lock: lock}
	if listen.Addr != "" {
		if listen.Insecure == (listen.TLS != TLS{}) {
			return nil, errors.New("embedded NATS: to listen it needs either certificates or the word that plain text is wanted (--insecure)")
		}
		if !listen.Insecure {
			var err error
			if opts.TLSConfig, err = listen.TLS.serverConfig(); err != nil {
				return nil, err
			}
			e.access = newAccess()
			opts.TLS, opts.TLSVerify, opts.TLSTimeout, opts.CustomClientAuthentication = true, true, 5, e.access
		}
		host, port, err := net.SplitHostPort(listen.Addr)
		if err != nil {
			return nil, fmt.Errorf("embedded NATS: listen address %q: %w", listen.Addr, err)
		}
		n, err := strconv.Atoi(port)
		if err != nil || n < 0 || n > 65535 {
			return nil, fmt.Errorf("embedded NATS: listen address %q: port is not a number up to 65535", listen.Addr)
		}
		// The server exits the process when it cannot listen; ask first.
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", listen.Addr)
		if err != nil {
			return nil, fmt.Errorf("embedded NATS: cannot listen on %s, another program may use it: %w", listen.Addr, err)
		}
		if bound, ok := l.Addr().(*net.TCPAddr); ok {
			n = bound.Port // chosen by the kernel when 0 was asked for
		}
		if err := l.Close(); err != nil {
			return nil, fmt.Errorf("embedded NATS: %w", err)
		}
		opts.DontListen, opts.Host, opts.Port = false, host, n
	}
	srv, err := server.NewServer(opts)
	if err != nil {
		return nil, fmt.Errorf("embedded NATS: %w", err)
	}
	srv.SetLoggerV2(problems{}, false, false, false)
	go srv.Start()
	for deadline := time.Now().Add(embeddedStart); !srv.ReadyForConnections(100 * time.Millisecond); {
		if err := ctx.Err(); err != nil || time.Now().After(deadline) {
			srv.Shutdown()
			return nil, fmt.Errorf("embedded NATS did not start within %s: is %s in use by another process or its disk full?", embeddedStart, dir)
		}
	}
	if !srv.JetStreamEnabled() {
		srv.Shutdown()
		return nil, fmt.Errorf("embedded NATS: JetStream cannot use %s", dir)
	}
	e.srv = srv
	return e, nil
}

// Addr is the address others connect to, empty when the server does not listen.
func (e *Embedded) Addr() string {
	if a, ok := e.srv.Addr().(*net.TCPAddr); ok && a != nil {
		return a.String()
	}
	return ""
}

// Shutdown stops the server after its stores are written and waits for it.
func (e *Embedded) Shutdown() {
	e.srv.Shutdown()
	e.srv.WaitForShutdown()
	_ = e.lock.Close() // it was not written to
}

// lockDir takes a folder for one server: NATS itself does not look, and two servers write over each other's messages.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600) //nolint:gosec // the operator's folder
	if err != nil {
		return nil, fmt.Errorf("embedded NATS: lock the data directory: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		return f, nil
	}
	_ = f.Close() // the error says more
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, fmt.Errorf("embedded NATS: %s is in use by another process: end that one, or name another folder with --data", dir)
	}
	return nil, fmt.Errorf("embedded NATS: lock the data directory: %w", err)
}

// problems passes on what an operator must know and drops the rest.
type problems struct{}

func (problems) Noticef(string, ...any) {}
func (problems) Debugf(string, ...any)  {}
func (problems) Tracef(string, ...any)  {}
func (problems) Warnf(format string, v ...any) {
	slog.Warn("embedded NATS: " + fmt.Sprintf(format, v...))
}
func (problems) Errorf(format string, v ...any) {
	slog.Error("embedded NATS: " + fmt.Sprintf(format, v...))
}
func (problems) Fatalf(format string, v ...any) {
	slog.Error("embedded NATS: " + fmt.Sprintf(format, v...))
}
