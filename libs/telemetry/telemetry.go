// Package telemetry gives a process its logger, metrics registry, tracer and health endpoints.
//
// There is one Telemetry a process. Services that share a process share its registry and exporter; each takes its own
// view with For, so that logs and error counts name the right one. Nothing here touches the global state of
// OpenTelemetry or slog.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// DefaultMetricsListen is loopback: metrics and profiles are nobody else's business unless the operator says so.
const DefaultMetricsListen = "127.0.0.1:9090"

// Config says where logs, metrics and spans go. The tags let command lines embed it.
type Config struct {
	Service  string `kong:"-"` // short name: ingest, classify, enforce, persist, tidegate
	Instance string `name:"instance" help:"Name of this instance in metrics, logs and traces; the host name by default."`

	MetricsListen string  `name:"metrics-listen" default:"127.0.0.1:9090" help:"Address of /metrics, /healthz and /readyz; empty serves none."`
	OTLPEndpoint  string  `name:"otlp-endpoint" help:"OTLP gRPC receiver of traces, host:port or URL; https:// uses TLS. Default: OTEL_EXPORTER_OTLP_ENDPOINT, else no export."`
	SampleRatio   float64 `name:"sample-ratio" default:"0.01" help:"Share of traces to sample, 0 to 1; verdicts are always sampled."`
	LogLevel      string  `name:"log-level" default:"info" enum:"debug,info,warn,error" help:"Least severe log level: debug, info, warn or error."`
	LogFormat     string  `name:"log-format" default:"json" enum:"json,text" help:"Log format on standard error: json or text."`
}

// DefaultConfig is the configuration of a service without flags. The environment variable
// TIDEGATE_<SERVICE>_METRICS_LISTEN replaces the metrics address.
func DefaultConfig(service string) Config {
	cfg := Config{
		Service:       service,
		MetricsListen: DefaultMetricsListen,
		SampleRatio:   0.01,
		LogLevel:      "info",
		LogFormat:     "json",
	}
	if listen, ok := os.LookupEnv(metricsVariable(service)); ok {
		cfg.MetricsListen = listen
	}
	return cfg
}

func metricsVariable(service string) string {
	name := strings.ToUpper(strings.ReplaceAll(service, "-", "_"))
	if name == "TIDEGATE" {
		return "TIDEGATE_METRICS_LISTEN"
	}
	return "TIDEGATE_" + name + "_METRICS_LISTEN"
}

// Telemetry is one service's view of the process's telemetry. All methods may be called from several goroutines.
type Telemetry struct {
	Log      *slog.Logger
	Registry *prometheus.Registry
	Tracer   trace.Tracer

	service string
	core    *core
}

// core is what all views of a process share.
type core struct {
	config   Config
	errors   *prometheus.CounterVec
	provider trace.TracerProvider
	sdk      *sdktrace.TracerProvider // nil: no export
	giveUp   context.CancelFunc       // ends exports; nil without export
	listener net.Listener             // nil: no endpoints

	mu     sync.Mutex
	checks []check
	expiry func() time.Time // nil: no certificate
}

type check struct {
	name string
	f    func() error
}

// New sets everything up and binds the metrics address, but serves only in Run. The exporter connects in the
// background: an absent receiver is no error, it is counted as op otlp_export.
func New(ctx context.Context, cfg Config) (*Telemetry, error) {
	if cfg.Service == "" {
		return nil, errors.New("telemetry: the service has no name")
	}
	if cfg.SampleRatio < 0 || cfg.SampleRatio > 1 {
		return nil, fmt.Errorf("telemetry: sample ratio %g: use 0 to 1", cfg.SampleRatio)
	}
	if cfg.Instance == "" {
		host, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("telemetry: find the host name: %w", err)
		}
		cfg.Instance = host
	}
	log, err := newLogger(os.Stderr, cfg)
	if err != nil {
		return nil, err
	}
	c, registry, err := newCore(cfg)
	if err != nil {
		return nil, err
	}
	if cfg.MetricsListen != "" {
		if c.listener, err = listen(ctx, cfg); err != nil {
			return nil, err
		}
	}
	t := &Telemetry{Log: log, Registry: registry, service: cfg.Service, core: c}
	if endpoint := exportEndpoint(cfg); endpoint != "" {
		c.sdk, err = newProvider(ctx, cfg, endpoint, t)
		if err != nil {
			if c.listener != nil {
				_ = c.listener.Close()
			}
			return nil, err
		}
		c.provider = c.sdk
	}
	t.Tracer = c.provider.Tracer(tracerName)
	return t, nil
}

// Discard is a Telemetry for tests: an own registry, no listener, no export, no log output. Spans are recorded in
// the sense that they have ids and propagate; they go nowhere.
func Discard(service string) *Telemetry {
	cfg := Config{Service: service, Instance: "test", SampleRatio: 0}
	c, registry, err := newCore(cfg)
	if err != nil { // only a double registration could fail, on a registry that is new
		panic(err)
	}
	return &Telemetry{
		Log:      slog.New(slog.NewTextHandler(io.Discard, nil)),
		Registry: registry,
		Tracer:   c.provider.Tracer(tracerName),
		service:  service,
		core:     c,
	}
}

// For is the view of another service in the same process: it shares registry, exporter, checks and endpoints, but
// logs and counts errors under its own name.
func (t *Telemetry) For(service string) *Telemetry {
	view := *t
	view.service = service
	view.Log = t.Log.With("component", service)
	return &view
}

// Service is the name that errors are counted under.
func (t *Telemetry) Service() string { return t.service }

// Instance is the configured name of this instance, the host name by default.
func (t *Telemetry) Instance() string { return t.core.config.Instance }

// TracerProvider serves instrumentation libraries that want the provider instead of a tracer.
func (t *Telemetry) TracerProvider() trace.TracerProvider { return t.core.provider }

// CountError adds one to tidegate_errors_total{service,op}. op is a constant of the caller's code, never input.
func (t *Telemetry) CountError(op string) {
	t.core.errors.WithLabelValues(t.service, op).Inc()
}

// ErrorCounter is the counter behind CountError for one op, for hot loops.
func (t *Telemetry) ErrorCounter(op string) prometheus.Counter {
	return t.core.errors.WithLabelValues(t.service, op)
}

func newCore(cfg Config) (*core, *prometheus.Registry, error) {
	registry := prometheus.NewRegistry()
	c := &core{
		config: cfg,
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidegate_errors_total",
			Help: "Errors by service and the operation that failed.",
		}, []string{"service", "op"}),
		provider: localProvider(cfg),
	}
	for _, collector := range []prometheus.Collector{
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		c.errors,
		buildInfo(cfg),
	} {
		if err := registry.Register(collector); err != nil {
			return nil, nil, fmt.Errorf("telemetry: register metrics: %w", err)
		}
	}
	return c, registry, nil
}

// buildInfo is the constant 1 with the build's facts as labels.
func buildInfo(cfg Config) prometheus.Collector {
	version, revision := Build()
	gauge := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "tidegate_build_info",
		Help: "Constant 1; the labels tell what was built.",
		ConstLabels: prometheus.Labels{
			"service": cfg.Service, "version": version, "revision": revision, "go_version": runtime.Version(),
		},
	})
	gauge.Set(1)
	return gauge
}

// Version is what `make build` and the images set by the linker; empty in other builds.
var Version string

// Build gives the version, else the main module's, and the VCS revision, each "unknown" when the build did not record it.
func Build() (version, revision string) {
	version, revision = "unknown", "unknown"
	if Version != "" {
		version = Version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return version, revision
	}
	if Version == "" && info.Main.Version != "" {
		version = info.Main.Version
	}
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" {
			revision = setting.Value
		}
	}
	return version, revision
}

func newLogger(w io.Writer, cfg Config) (*slog.Logger, error) {
	var level slog.Level
	if cfg.LogLevel != "" {
		if err := level.UnmarshalText([]byte(cfg.LogLevel)); err != nil {
			return nil, fmt.Errorf("log level %q: use debug, info, warn or error", cfg.LogLevel)
		}
	}
	options := &slog.HandlerOptions{Level: level, ReplaceAttr: readable}
	var handler slog.Handler
	switch cfg.LogFormat {
	case "", "json":
		handler = slog.NewJSONHandler(w, options)
	case "text":
		handler = slog.NewTextHandler(w, options)
	default:
		return nil, fmt.Errorf("log format %q: use json or text", cfg.LogFormat)
	}
	return slog.New(traceHandler{handler}).With("service", cfg.Service, "instance", cfg.Instance), nil
}

// readable writes durations as "1.2s", where JSON's own form is nanoseconds.
func readable(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() != slog.KindDuration {
		return a
	}
	d := a.Value.Duration()
	if d >= time.Second {
		d = d.Round(100 * time.Millisecond)
	}
	return slog.String(a.Key, d.String())
}

// listen binds the metrics address.
func listen(ctx context.Context, cfg Config) (net.Listener, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", cfg.MetricsListen)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("metrics address %s is in use by another process: choose another with --metrics-listen or %s (%w)",
			cfg.MetricsListen, metricsVariable(cfg.Service), syscall.EADDRINUSE)
	case err != nil:
		return nil, fmt.Errorf("listen on the metrics address %s (--metrics-listen, %s): %w",
			cfg.MetricsListen, metricsVariable(cfg.Service), err)
	}
	return ln, nil
}

// Addr is the bound metrics address, nil without one. With port 0 it tells the port.
func (t *Telemetry) Addr() net.Addr {
	if t.core.listener == nil {
		return nil
	}
	return t.core.listener.Addr()
}

// Spans that wait at the end get flushTime to be sent; then exports fail at once, so that the exporter itself ends
// well within drainTime.
const (
	flushTime = 2 * time.Second
	drainTime = 4 * time.Second
)

// Run serves the endpoints until ctx ends, then sends the spans that wait and stops the server, within 4 s.
// It returns nil after a clean end; lost spans are counted and logged, they are no error.
func (t *Telemetry) Run(ctx context.Context) error {
	failed := make(chan error, 1)
	var server *http.Server
	if ln := t.core.listener; ln != nil {
		server = &http.Server{
			Handler:           t.Handler(),
			ReadHeaderTimeout: 5 * time.Second,
			IdleTimeout:       time.Minute,
			ErrorLog:          slog.NewLogLogger(t.Log.Handler(), slog.LevelDebug),
		}
		go func() { failed <- server.Serve(ln) }()
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
		err = fmt.Errorf("serve metrics: %w", err)
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	// Spans first: a request that still runs can take all the time.
	if t.core.sdk != nil {
		defer t.core.giveUp()
		defer time.AfterFunc(flushTime, t.core.giveUp).Stop()
		if flush := t.core.sdk.Shutdown(drain); flush != nil {
			t.CountError("otlp_export")
			t.Log.Warn("spans were lost at the end", "error", flush)
		}
	}
	if server != nil {
		if stop := server.Shutdown(drain); stop != nil { // a scrape or profile still runs
			_ = server.Close()
		}
	}
	return err
}
