// Package bus is the mesh's message bus on NATS JetStream: flow records, events, leased rules and heartbeats.
//
// Everything that must not be lost is acknowledged by a file-backed stream before a publish returns, and
// carries a message id, so that a retry within the stream's duplicate window is stored once.
package bus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidegate-mesh/tidegate/libs/pki"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
)

// Errors of this package, wrapped with the operation.
var (
	// ErrUnavailable: NATS cannot be reached or did not acknowledge in time. Retrying the same call is safe.
	ErrUnavailable = errors.New("NATS is unavailable")
	// ErrConflict: the key has another revision than the caller read.
	ErrConflict = errors.New("the rule was changed by someone else")
	// ErrTooLarge: the message is above the server's largest payload; split it.
	ErrTooLarge = errors.New("message is larger than the NATS server accepts")
	// ErrInvalidKey: an id holds characters that a key cannot: use letters, digits, '-', '_', '.', '=' and '/'.
	ErrInvalidKey = errors.New("id is not usable as a key: use letters, digits, '-', '_', '.', '=' and '/'")
)

// TLS names PEM files. All empty: plain text. They are read again at each connection, so a renewed
// certificate is used from the next reconnect on.
type TLS struct {
	CA   string `name:"ca" help:"CA certificate (PEM) of the NATS server, if not that of the services" env:"TIDEGATE_NATS_CA"`
	Cert string `name:"cert" help:"client certificate (PEM) for NATS, if not the service's own" env:"TIDEGATE_NATS_CERT"`
	Key  string `name:"key" help:"key (PEM) of the client certificate" env:"TIDEGATE_NATS_KEY"`
}

// Or fills what is not named from the service's own files: its authority, and its certificate with key.
func (f TLS) Or(ca, cert, key string) TLS {
	if f.CA == "" {
		f.CA = ca
	}
	if f.Cert == "" && f.Key == "" {
		f.Cert, f.Key = cert, key
	}
	return f
}

// Config is how to reach NATS and how large the streams may get.
type Config struct {
	URL            string `name:"url" help:"NATS server, several separated by commas" default:"nats://127.0.0.1:4222" env:"NATS_URL"`
	TLS            TLS    `embed:"" prefix:"tls-"`
	Replicas       int    `name:"replicas" help:"copies of each stream in a NATS cluster; 0 keeps what is there" default:"0" env:"TIDEGATE_NATS_REPLICAS"`
	EventsMaxBytes int64  `name:"events-max-bytes" help:"size limit of the event stream; 0 keeps what is there (new: 1 GiB)" default:"0" env:"TIDEGATE_NATS_EVENTS_MAX_BYTES"`
	FlowsMaxBytes  int64  `name:"flows-max-bytes" help:"size limit of the flow stream; 0 keeps what is there (new: 8 GiB, embedded 1 GiB)" default:"0" env:"TIDEGATE_NATS_FLOWS_MAX_BYTES"`

	// Embedded connects inside the process instead of URL.
	Embedded *Embedded `kong:"-" yaml:"-"`
	// OnBad is told of each message or rule that cannot be read; it is called by the consumer's goroutine.
	OnBad func(subject string, err error) `kong:"-" yaml:"-"`
}

// DefaultConfig is a server on this machine.
func DefaultConfig() Config { return Config{URL: "nats://127.0.0.1:4222"} }

const (
	dialTimeout  = 2 * time.Second // one server of the list, at start and at each reconnect
	ackTimeout   = 5 * time.Second // publish and key-value requests whose context has no deadline
	reconnectMin = 100 * time.Millisecond
	reconnectMax = 2 * time.Second

	// Who needs the streams asks for them every few seconds until they are there. An error that is older was of a moment,
	// in a cluster without a leader for example, and what was asked for went through afterwards.
	setupStale = 30 * time.Second
)

// Bus is one connection. All methods may be called by any number of goroutines.
type Bus struct {
	cfg Config
	t   *telemetry.Telemetry
	nc  *nats.Conn
	js  jetstream.JetStream

	mu          sync.Mutex
	reconnected chan struct{} // closed and replaced at each reconnect
	lastErr     error         // why the connection was lost
	lostAt      time.Time
	setupErr    error // of the last EnsureStreams; nil also before the first
	setupAt     time.Time

	reclaimMu sync.Mutex // one reclaim at a time
	reclaimed time.Time
	buckets   sync.Map      // bucket name → jetstream.KeyValue
	deletes   atomic.Uint64 // deleted rules, for the clean-up of their markers
}

// Connect opens the connection and answers within a few seconds per server: an error wraps ErrUnavailable when
// none can be reached. After the first success the connection comes back by itself, for ever; until then
// publishes fail at once with ErrUnavailable and Ready says why.
func Connect(ctx context.Context, t *telemetry.Telemetry, name string, cfg Config) (*Bus, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("connect to NATS: %w", err)
	}
	b := &Bus{cfg: cfg, t: t, reconnected: make(chan struct{})}
	opts := []nats.Option{
		nats.Name(name),
		nats.Timeout(dialTimeout),
		nats.MaxReconnects(-1),
		nats.RetryOnFailedConnect(false),
		nats.ReconnectBufSize(-1), // fail at once while disconnected: who publishes decides what to keep
		nats.PingInterval(5 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.CustomReconnectDelay(func(attempts int) time.Duration {
			return min(reconnectMin<<min(attempts, 5), reconnectMax)
		}),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { b.lost(err) }),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) { b.stillLost(err) }),
		nats.ReconnectHandler(func(*nats.Conn) { b.back() }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrPermissionViolation) {
				// The server does not answer a refused request, so the caller only sees a timeout.
				t.CountError("nats_denied")
				t.Log.Error("NATS refuses this service a right: is the certificate another service's, or nats.conf of an older version?", "error", err)
				return
			}
			t.CountError("nats_async")
		}),
	}
	url := cfg.URL
	if cfg.Embedded != nil {
		url = "nats://in-process" // never dialled; a tls scheme would ask for TLS within the process
		opts = append(opts, nats.InProcessServer(cfg.Embedded.srv))
		if a := cfg.Embedded.access; a != nil {
			opts = append(opts, nats.UserInfo("in-process", a.password))
		}
	} else {
		for _, one := range strings.Split(url, ",") {
			if _, err := parseURL(one); err != nil {
				return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
			}
		}
		tlsOpts, err := cfg.TLS.options()
		if err != nil {
			return nil, err
		}
		opts = append(opts, tlsOpts...)
	}
	nc, err := nats.Connect(url, opts...)
	if errors.Is(err, nats.ErrSecureConnWanted) {
		return nil, fmt.Errorf("connect to NATS at %s: %w: the server speaks plain text: start it with the nats.conf of `tidegate certs`, or everything with --insecure", redact(url), ErrUnavailable)
	}
	if err != nil {
		return nil, cfg.TLS.explain(err, redact(url))
	}
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(ackTimeout))
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("open JetStream: %w", err)
	}
	b.nc, b.js = nc, js
	return b, nil
}

// Close sends what is buffered and closes the connection. Consumers and watches end with an error.
func (b *Bus) Close() error {
	var err error
	if b.nc.IsConnected() {
		err = b.nc.FlushTimeout(time.Second)
	}
	b.nc.Close()
	if err != nil {
		return fmt.Errorf("flush NATS: %w", err)
	}
	return nil
}

// Ready is nil while messages can be stored; otherwise it says in a sentence what is wrong and for how long.
func (b *Bus) Ready() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.nc.IsConnected() {
		where := redact(b.nc.Opts.Url)
		if b.nc.IsClosed() {
			return fmt.Errorf("%w: the connection to %s is closed", ErrUnavailable, where)
		}
		if b.lostAt.IsZero() {
			return fmt.Errorf("%w: the connection to %s is being restored", ErrUnavailable, where)
		}
		return fmt.Errorf("%w (connection lost %s ago)", b.cfg.TLS.explain(b.lastErr, where), time.Since(b.lostAt).Round(time.Second))
	}
	if b.setupErr != nil && time.Since(b.setupAt) < setupStale {
		return fmt.Errorf("streams are not set up: %w", b.setupErr)
	}
	return nil
}

// URL is the server connected to, without credentials; empty while disconnected or inside the process.
func (b *Bus) URL() string {
	if b.cfg.Embedded != nil {
		return ""
	}
	return b.nc.ConnectedUrlRedacted()
}

// ServerAddr is the server's "address:port" of the connection in use; empty while disconnected or inside the process.
func (b *Bus) ServerAddr() string {
	if b.cfg.Embedded != nil {
		return ""
	}
	return b.nc.ConnectedAddr()
}

func (b *Bus) lost(err error) {
	if err == nil {
		err = errors.New("connection closed")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lastErr, b.lostAt = err, time.Now()
}

// stillLost notes why the connection does not come back, which may differ from why it was lost.
func (b *Bus) stillLost(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lastErr = err
}

func (b *Bus) back() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.reconnected)
	b.reconnected = make(chan struct{})
	b.lostAt, b.lastErr = time.Time{}, nil
}

// reconnectSignal is closed at the next reconnect.
func (b *Bus) reconnectSignal() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.reconnected
}

func (b *Bus) bad(op, subject string, err error) {
	b.t.CountError(op)
	if b.cfg.OnBad != nil {
		b.cfg.OnBad(subject, err)
	}
}

// explain makes a sentence of why there is no connection; it wraps ErrUnavailable.
func (f TLS) explain(err error, where string) error {
	why := pki.Explain(err, "NATS at "+where, pki.Files{CA: f.CA, Cert: f.Cert, Key: f.Key})
	var certificate *pki.HandshakeError
	if errors.As(why, &certificate) {
		return fmt.Errorf("%w (%w)", ErrUnavailable, why)
	}
	if f.Cert != "" && (errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)) {
		return fmt.Errorf("%w at %s, which cut the connection (%w): it may have stopped, or refuse the certificate %s: its log says which", ErrUnavailable, where, err, f.Cert)
	}
	return fmt.Errorf("%w at %s (%w): check NATS_URL and that the server runs", ErrUnavailable, where, err)
}

// options reads the files at each connection.
func (f TLS) options() ([]nats.Option, error) {
	if f == (TLS{}) {
		return nil, nil
	}
	if (f.Cert == "") != (f.Key == "") {
		return nil, errors.New("NATS TLS: give both the certificate and its key, or neither")
	}
	identity := ""
	var certs func() (tls.Certificate, error)
	if f.Cert != "" {
		certs = func() (tls.Certificate, error) {
			c, err := tls.LoadX509KeyPair(f.Cert, f.Key)
			if err != nil {
				return c, fmt.Errorf("NATS client certificate: %w", err)
			}
			return c, nil
		}
		pair, err := certs() // a mistake in the files is told at the start
		if err != nil {
			return nil, err
		}
		if pair.Leaf != nil {
			identity = pair.Leaf.Subject.CommonName
		}
	}
	var roots func() (*x509.CertPool, error)
	if f.CA != "" {
		roots = func() (*x509.CertPool, error) {
			pem, err := os.ReadFile(f.CA) //nolint:gosec // the operator's file
			if err != nil {
				return nil, fmt.Errorf("NATS CA: %w", err)
			}
			pool := x509.NewCertPool()
			if !pool.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("NATS CA: %s holds no certificate", f.CA)
			}
			return pool, nil
		}
	}
	opts := []nats.Option{nats.Secure(&tls.Config{MinVersion: tls.VersionTLS12}), nats.ClientTLSConfig(certs, roots)}
	if identity != "" {
		opts = append(opts, nats.CustomInboxPrefix(inboxPrefix(identity)))
	}
	return opts, nil
}

// unavailable marks errors of the transport, so that callers can tell them from refusals.
func unavailable(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, nats.ErrMaxPayload):
		return fmt.Errorf("%w (%w)", ErrTooLarge, err)
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, jetstream.ErrInvalidKey):
		return fmt.Errorf("%w (%w)", ErrInvalidKey, err)
	}
	var api *jetstream.APIError
	if errors.As(err, &api) && api.Code < 500 {
		return err
	}
	return fmt.Errorf("%w (%w)", ErrUnavailable, err)
}
