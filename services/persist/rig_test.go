package persist

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/dbtest"
	"github.com/tidegate-mesh/tidegate/libs/rpc"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	queryv1 "github.com/tidegate-mesh/tidegate/proto/query/v1"
)

// rig is a service on a real bus, asked over gRPC.
type rig struct {
	t      *testing.T
	nats   *bus.Embedded
	bus    *bus.Bus // the publishers'
	cfg    Config
	tel    *telemetry.Telemetry
	svc    *Service
	client queryv1.QueryServiceClient
	stop   func()
	spans  *tracetest.InMemoryExporter
	log    io.Writer // the service's
}

func newRig(t *testing.T, cfg Config) *rig {
	t.Helper()
	return newRigLogging(t, cfg, io.Discard)
}

func newRigLogging(t *testing.T, cfg Config, log io.Writer) *rig {
	t.Helper()
	ctx := context.Background()
	e, err := bus.StartEmbedded(ctx, t.TempDir(), bus.Listen{Addr: "127.0.0.1:0", Insecure: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Shutdown)
	b, err := bus.Connect(ctx, telemetry.Discard("publisher"), "publisher", bus.Config{Embedded: e})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	if err := b.EnsureStreams(ctx); err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, nats: e, bus: b, cfg: cfg, log: log}
	r.start()
	return r
}

// start runs a new instance of the service; stop, or the test's end, ends it.
func (r *rig) start() {
	r.t.Helper()
	r.tel = telemetry.Discard("persist")
	r.tel.Log = slog.New(slog.NewTextHandler(r.log, nil))
	r.spans = tracetest.NewInMemoryExporter()
	tp := sdktrace.NewTracerProvider(sdktrace.WithSyncer(r.spans))
	r.tel.Tracer = tp.Tracer("test")
	srv, _, err := rpc.NewServer(r.tel, rpc.TLS{})
	if err != nil {
		r.t.Fatal(err)
	}
	b, err := bus.Connect(context.Background(), r.tel, "persist", bus.Config{Embedded: r.nats})
	if err != nil {
		r.t.Fatal(err)
	}
	if r.svc, err = New(r.cfg, Deps{Telemetry: r.tel, Registrar: srv, Bus: b}); err != nil {
		r.t.Fatal(err)
	}
	dial, serve := rpc.InMemory(srv)
	conn, err := dial(r.tel)
	if err != nil {
		r.t.Fatal(err)
	}
	r.client = queryv1.NewQueryServiceClient(conn)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- r.svc.Run(ctx) }()
	go func() { done <- serve(ctx) }()
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		_ = conn.Close()
		cancel()
		for range 2 {
			select {
			case err := <-done:
				if err != nil {
					r.t.Errorf("Run: %v", err)
				}
			case <-time.After(15 * time.Second):
				r.t.Fatal("the service did not stop")
			}
		}
		_ = b.Close()
	}
	r.t.Cleanup(r.stop)
}

func (r *rig) status() *queryv1.StatusResponse {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	st, err := r.client.Status(ctx, &queryv1.StatusRequest{})
	if err != nil {
		r.t.Fatal(err)
	}
	return st
}

// until waits for a ledger term or another condition of the status.
func (r *rig) until(what string, f func(*queryv1.StatusResponse) bool) *queryv1.StatusResponse {
	r.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(30 * time.Millisecond) {
		st := r.status()
		if f(st) {
			return st
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("waited for %s: %v", what, st)
		}
	}
}

func ledger(st *queryv1.StatusResponse) map[string]uint64 {
	return st.GetStatus().GetLedger().GetTerms()
}

var begin = time.Now().Add(-time.Hour).UnixNano()

// publish sends n messages of records each, numbered from first on.
func (r *rig) publish(first, n, records int) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for i := first; i < first+n; i++ {
		m := &eventv1.FlowRecords{Sensor: "edge-1", Epoch: 42, Batch: uint64(i)}
		for j := range records {
			m.Records = append(m.Records, record(i, j))
		}
		if _, err := r.bus.PublishFlows(ctx, m); err != nil {
			r.t.Fatal(err)
		}
	}
}

func record(i, j int) *eventv1.FlowRecord {
	ts := begin + int64(i)*1e6 + int64(j)
	src := [16]byte{10: 0xff, 11: 0xff, 12: 10, 13: 1, 14: byte(i), 15: byte(j)}
	dst := [16]byte{10: 0xff, 11: 0xff, 12: 192, 13: 0, 14: 2, 15: 1}
	return &eventv1.FlowRecord{
		Id: fmt.Sprintf("edge-1/42/%d/%d", i*1000+j, 0), SrcIp: src[:], DstIp: dst[:], SrcPort: 40000, DstPort: 443, Protocol: 6,
		FirstNs: ts, LastNs: ts + 1e9, PacketsFwd: 10, PacketsRev: 9, BytesFwd: 1000, BytesRev: 9000, TcpFlagsFwd: 0x1b,
		TcpFlagsRev: 0x1b, EndReason: 3, App: "tls", Host: "example.org", Alpn: "h2",
	}
}

func eachDatabase(t *testing.T, f func(t *testing.T, cfg Config)) {
	t.Run("sqlite", func(t *testing.T) {
		cfg := DefaultConfig()
		cfg.DBType, cfg.DataDir = "sqlite", t.TempDir()
		f(t, cfg)
	})
	t.Run("postgresql", func(t *testing.T) {
		cfg := DefaultConfig()
		cfg.DBType, cfg.DatabaseURL = "postgresql", dbtest.Start(t, dbtest.PostgreSQL).URL
		f(t, cfg)
	})
}
