package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs a Telemetry until the test ends and gives its base URL.
func start(t *testing.T, cfg Config) (*Telemetry, string) {
	t.Helper()
	tel, err := New(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- tel.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	return tel, "http://" + tel.Addr().String()
}

func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	resp, err := http.Get(url) //nolint:gosec // a loopback address of this test
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(data)
}

func testConfig() Config {
	cfg := DefaultConfig("ingest")
	cfg.MetricsListen = "127.0.0.1:0"
	cfg.Instance = "sensor-1"
	return cfg
}

func TestEndpoints(t *testing.T) {
	tel, url := start(t, testConfig())
	tel.CountError("decode")
	tel.CountError("decode")
	tel.For("classify").CountError("publish")

	status, body := get(t, url+"/metrics")
	if status != http.StatusOK {
		t.Fatalf("/metrics: %d", status)
	}
	for _, line := range []string{
		`tidegate_errors_total{op="decode",service="ingest"} 2`,
		`tidegate_errors_total{op="publish",service="classify"} 1`,
		`tidegate_build_info{`, `go_goroutines `, `go_memstats_heap_alloc_bytes `, `process_open_fds `,
	} {
		if !strings.Contains(body, line) {
			t.Errorf("/metrics lacks %q", line)
		}
	}
	if status, _ := get(t, url+"/healthz"); status != http.StatusOK {
		t.Errorf("/healthz: %d", status)
	}
	if status, _ := get(t, url+"/debug/pprof/goroutine?debug=1"); status != http.StatusOK {
		t.Errorf("profiles on loopback: %d", status)
	}
	if status, _ := get(t, url+"/nothing"); status != http.StatusNotFound {
		t.Errorf("unknown path: %d", status)
	}
}

func TestReadiness(t *testing.T) {
	tel, url := start(t, testConfig())
	if status, body := get(t, url+"/readyz"); status != http.StatusOK || body != "ready\n" {
		t.Errorf("without checks: %d %q", status, body)
	}
	var busDown, gateDown error
	tel.Check("bus", func() error { return busDown })
	tel.For("enforce").Check("xdp", func() error { return gateDown })
	for _, c := range []struct {
		bus, gate error
		status    int
		body      string
	}{
		{nil, nil, 200, "ready\n"},
		{errors.New("no NATS server answers at nats://127.0.0.1:4222"), nil, 503, "bus: no NATS server answers at nats://127.0.0.1:4222\n"},
		{errors.New("down"), errors.New("no program on eth0"), 503, "bus: down\nxdp: no program on eth0\n"},
		{nil, errors.Join(errors.New("no program on eth0"), errors.New("nor on eth1")), 503, "xdp: no program on eth0\nxdp: nor on eth1\n"},
	} {
		busDown, gateDown = c.bus, c.gate
		if status, body := get(t, url+"/readyz"); status != c.status || body != c.body {
			t.Errorf("bus %v, gate %v: %d %q, want %d %q", c.bus, c.gate, status, body, c.status, c.body)
		}
		if status, _ := get(t, url+"/healthz"); status != http.StatusOK {
			t.Errorf("/healthz must not depend on checks: %d", status)
		}
	}
	if got := tel.Problems("xdp", "absent"); !slices.Equal(got, []string{"no program on eth0", "nor on eth1"}) {
		t.Errorf("the problems of one check: %q", got)
	}
	tel.Check("bus", func() error { return errors.New("still down") })
	if got := tel.Ready(); len(got) != 3 || got[0] != "bus: still down" {
		t.Errorf("a check of the same name must replace the earlier: %q", got)
	}
}

func TestProfilesOnlyOnLoopback(t *testing.T) {
	cfg := testConfig()
	cfg.MetricsListen = "0.0.0.0:0"
	tel, err := New(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer tel.core.listener.Close()
	recorder := httptest.NewRecorder()
	tel.Handler().ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, "/debug/pprof/", nil))
	if recorder.Code != http.StatusNotFound {
		t.Errorf("profiles on all addresses: %d", recorder.Code)
	}
}

func TestPortInUse(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	cfg := testConfig()
	cfg.MetricsListen = ln.Addr().String()
	_, err = New(context.Background(), cfg)
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("error %v", err)
	}
	for _, part := range []string{ln.Addr().String(), "--metrics-listen", "TIDEGATE_INGEST_METRICS_LISTEN"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q lacks %q", err, part)
		}
	}
}

func TestBadConfig(t *testing.T) {
	for name, spoil := range map[string]func(*Config){
		"level":    func(c *Config) { c.LogLevel = "loud" },
		"format":   func(c *Config) { c.LogFormat = "xml" },
		"ratio":    func(c *Config) { c.SampleRatio = 2 },
		"service":  func(c *Config) { c.Service = "" },
		"address":  func(c *Config) { c.MetricsListen = "nowhere" },
		"endpoint": func(c *Config) { c.OTLPEndpoint = "ftp://collector" },
	} {
		cfg := testConfig()
		spoil(&cfg)
		if _, err := New(context.Background(), cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestDefaultConfigReadsEnvironment(t *testing.T) {
	if got := DefaultConfig("ingest").MetricsListen; got != "127.0.0.1:9090" {
		t.Errorf("default %q", got)
	}
	t.Setenv("TIDEGATE_INGEST_METRICS_LISTEN", "127.0.0.1:9191")
	t.Setenv("TIDEGATE_METRICS_LISTEN", "127.0.0.1:9292")
	for service, want := range map[string]string{"ingest": "127.0.0.1:9191", "tidegate": "127.0.0.1:9292", "persist": "127.0.0.1:9090"} {
		if got := DefaultConfig(service).MetricsListen; got != want {
			t.Errorf("%s: %q, want %q", service, got, want)
		}
	}
}

func TestLogsCarryTrace(t *testing.T) {
	var buf bytes.Buffer
	log, err := newLogger(&buf, testConfig())
	if err != nil {
		t.Fatal(err)
	}
	tel := Discard("ingest")
	ctx, span := tel.Tracer.Start(context.Background(), "op")
	defer span.End()
	log.With("queue", 3).InfoContext(ctx, "hello")
	log.Debug("too detailed")
	var record map[string]any
	if err := json.Unmarshal(buf.Bytes(), &record); err != nil {
		t.Fatalf("%v in %s", err, buf.String())
	}
	for key, want := range map[string]any{
		"msg": "hello", "service": "ingest", "instance": "sensor-1", "queue": 3.0, "trace_id": TraceID(ctx), "level": slog.LevelInfo.String(),
	} {
		if record[key] != want {
			t.Errorf("%s = %v, want %v", key, record[key], want)
		}
	}
}

func TestPropagation(t *testing.T) {
	tel := Discard("classify")
	if got := Inject(context.Background()); got != "" {
		t.Errorf("traceparent without a span: %q", got)
	}
	if got := TraceID(context.Background()); got != "" {
		t.Errorf("trace id without a span: %q", got)
	}
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	ctx := Extract(context.Background(), parent)
	if got := TraceID(ctx); got != "0af7651916cd43dd8448eb211c80319c" {
		t.Errorf("trace id %q", got)
	}
	if got := Inject(ctx); got != parent {
		t.Errorf("traceparent %q, want %q", got, parent)
	}
	child, span := tel.Tracer.Start(ctx, "child")
	defer span.End()
	if TraceID(child) != TraceID(ctx) {
		t.Error("the child has another trace")
	}
	for _, bad := range []string{"", "nonsense", "00-00000000000000000000000000000000-b7ad6b7169203331-01"} {
		if got := TraceID(Extract(context.Background(), bad)); got != "" {
			t.Errorf("%q gave trace %q", bad, got)
		}
	}
}

func TestSampling(t *testing.T) {
	tel := Discard("classify") // ratio 0
	sampled := func(ctx context.Context) bool {
		_, span := tel.Tracer.Start(ctx, "op")
		defer span.End()
		return span.SpanContext().IsSampled()
	}
	unsampledParent := "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
	background := context.Background()
	for _, c := range []struct {
		name string
		ctx  context.Context
		want bool
	}{
		{"root at ratio 0", background, false},
		{"marked root", AlwaysSample(background), true},
		{"unsampled parent", Extract(background, unsampledParent), false},
		{"marked under an unsampled parent", AlwaysSample(Extract(background, unsampledParent)), true},
		{"sampled parent", Extract(background, strings.TrimSuffix(unsampledParent, "0")+"1"), true},
	} {
		if got := sampled(c.ctx); got != c.want {
			t.Errorf("%s: sampled %v, want %v", c.name, got, c.want)
		}
	}
	ctx, span := tel.Tracer.Start(AlwaysSample(background), "verdict")
	defer span.End()
	if remote := trace.SpanContextFromContext(Extract(background, Inject(ctx))); !remote.IsSampled() {
		t.Error("the sampled flag does not travel")
	}
}

func TestDiscardCounts(t *testing.T) {
	tel := Discard("persist")
	tel.CountError("insert")
	tel.ErrorCounter("insert").Add(2)
	if got := testutil.ToFloat64(tel.core.errors.WithLabelValues("persist", "insert")); got != 3 {
		t.Errorf("counted %v errors, want 3", got)
	}
	if tel.Addr() != nil {
		t.Error("a discarding Telemetry listens")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if err := tel.Run(ctx); err != nil {
		t.Errorf("Run: %v", err)
	}
}
