package telemetry

import (
	"context"
	"encoding/hex"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
)

// collector is a real OTLP receiver that keeps what arrives.
type collector struct {
	collectorv1.UnimplementedTraceServiceServer

	mu       sync.Mutex
	received []*tracev1.ResourceSpans
}

func (c *collector) Export(_ context.Context, req *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.received = append(c.received, req.ResourceSpans...)
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

// span finds a span and its resource by the span's name.
func (c *collector) span(name string) (*tracev1.ResourceSpans, *tracev1.Span) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rs := range c.received {
		for _, scope := range rs.ScopeSpans {
			for _, span := range scope.Spans {
				if span.Name == name {
					return rs, span
				}
			}
		}
	}
	return nil, nil
}

func startCollector(t *testing.T) (*collector, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{}
	srv := grpc.NewServer()
	collectorv1.RegisterTraceServiceServer(srv, c)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(ln)
	}()
	t.Cleanup(func() {
		srv.Stop()
		<-done
	})
	return c, ln.Addr().String()
}

func TestSpansArrive(t *testing.T) {
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
	for _, c := range []struct {
		name      string
		configure func(t *testing.T, cfg *Config, addr string)
	}{
		{"endpoint of the configuration", func(_ *testing.T, cfg *Config, addr string) { cfg.OTLPEndpoint = addr }},
		{"URL of the standard variable", func(t *testing.T, _ *Config, addr string) {
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+addr)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			receiver, addr := startCollector(t)
			cfg := testConfig()
			cfg.MetricsListen = ""
			cfg.SampleRatio = 0
			c.configure(t, &cfg, addr)
			tel, err := New(context.Background(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			ctx := Extract(context.Background(), parent)
			_, verdict := tel.Tracer.Start(AlwaysSample(ctx), "verdict")
			verdict.End()
			_, unsampled := tel.Tracer.Start(ctx, "batch")
			unsampled.End()

			// The end of Run flushes: nothing waits for the batch timer.
			ended, cancel := context.WithCancel(context.Background())
			cancel()
			if err := tel.Run(ended); err != nil {
				t.Fatal(err)
			}
			resource, span := receiver.span("verdict")
			if span == nil {
				t.Fatal("the span did not arrive")
			}
			if got := hex.EncodeToString(span.TraceId); got != "0af7651916cd43dd8448eb211c80319c" {
				t.Errorf("trace id %s", got)
			}
			if got := hex.EncodeToString(span.ParentSpanId); got != "b7ad6b7169203331" {
				t.Errorf("parent %s", got)
			}
			attributes := map[string]string{}
			for _, kv := range resource.Resource.Attributes {
				attributes[kv.Key] = kv.Value.GetStringValue()
			}
			if attributes["service.name"] != "tidegate-ingest" || attributes["service.instance.id"] != "sensor-1" {
				t.Errorf("resource %v", attributes)
			}
			if _, span := receiver.span("batch"); span != nil {
				t.Error("an unsampled span was exported")
			}
			if got := testutil.ToFloat64(tel.ErrorCounter("otlp_export")); got != 0 {
				t.Errorf("%v export errors", got)
			}
		})
	}
}

// TestSpansArriveDuringRequest: a request that does not end, a profile of half a minute for example, takes no time from the
// spans that wait.
func TestSpansArriveDuringRequest(t *testing.T) {
	receiver, addr := startCollector(t)
	cfg := testConfig()
	cfg.OTLPEndpoint = addr
	tel, err := New(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	asked, release := make(chan struct{}), make(chan struct{})
	tel.Check("slow", func() error { close(asked); <-release; return nil })
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		if resp, err := http.Get("http://" + tel.Addr().String() + "/readyz"); err == nil { //nolint:noctx // the server ends it
			_ = resp.Body.Close()
		}
	}()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- tel.Run(ctx) }()
	<-asked
	_, span := tel.Tracer.Start(AlwaysSample(context.Background()), "verdict")
	span.End()
	cancel()
	err = <-done
	close(release)
	<-answered
	http.DefaultClient.CloseIdleConnections()
	if err != nil {
		t.Fatal(err)
	}
	if _, span := receiver.span("verdict"); span == nil || testutil.ToFloat64(tel.ErrorCounter("otlp_export")) != 0 {
		t.Error("the span did not arrive")
	}
}

func TestAbsentReceiverIsCounted(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close() // nobody answers here now
	cfg := testConfig()
	cfg.MetricsListen = ""
	cfg.OTLPEndpoint = addr
	tel, err := New(context.Background(), cfg)
	if err != nil {
		t.Fatalf("an absent receiver must not stop the start: %v", err)
	}
	_, span := tel.Tracer.Start(AlwaysSample(context.Background()), "verdict")
	span.End()
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	begin := time.Now()
	if err := tel.Run(ended); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > drainTime {
		t.Errorf("the end took %s", took)
	}
	if got := testutil.ToFloat64(tel.ErrorCounter("otlp_export")); got < 1 {
		t.Errorf("%v export errors counted, want at least 1", got)
	}
}

func TestTracedName(t *testing.T) {
	for service, want := range map[string]string{"ingest": "tidegate-ingest", "tidegate-ingest": "tidegate-ingest", "tidegate": "tidegate"} {
		if got := tracedName(service); got != want {
			t.Errorf("%s is %s in traces, want %s", service, got, want)
		}
	}
}
