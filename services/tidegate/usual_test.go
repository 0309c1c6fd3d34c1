package main

import (
	"context"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/rpc"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	"github.com/tidegate-mesh/tidegate/services/classify"
	"github.com/tidegate-mesh/tidegate/services/persist"
)

// logged is a log that is written by others.
type logged struct {
	mu   sync.Mutex
	text strings.Builder
}

func (w *logged) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.Write(b)
}

func (w *logged) clear() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text.Reset()
}

func (w *logged) has(s string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Contains(w.text.String(), s)
}

// running is a part of the system that a test starts and stops.
type running struct{ stop func() }

func start(t *testing.T, run func(ctx context.Context) error) running {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stopped := false
	r := running{func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Error("it did not stop")
		}
	}}
	t.Cleanup(r.stop)
	return r
}

// TestUsualRatesSurviveARestart: classify, persist with SQLite and NATS learn for a day, all stop, and what starts again on the
// same folder has the thresholds: without persist the configured ones, and as soon as it answers those that were learned.
func TestUsualRatesSurviveARestart(t *testing.T) {
	const (
		minutes = 400
		dayNs   = int64(86400e9)
	)
	dir := t.TempDir()
	var clock atomic.Int64
	begin := time.Now().UnixNano()/dayNs*dayNs - dayNs // yesterday: retention goes by the real clock
	clock.Store(begin)
	host := netip.MustParseAddr("192.0.2.7")

	startNATS := func() *bus.Embedded {
		e, err := bus.StartEmbedded(context.Background(), filepath.Join(dir, "nats"), bus.Listen{Addr: "127.0.0.1:0", Insecure: true})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	var log logged
	connect := func(e *bus.Embedded, tel *telemetry.Telemetry) *bus.Bus {
		b, err := bus.Connect(context.Background(), tel, "test", bus.Config{Embedded: e})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = b.Close() })
		return b
	}
	startPersist := func(e *bus.Embedded) running {
		cfg := persist.DefaultConfig()
		cfg.DataDir = dir
		tel := telemetry.Discard("persist")
		p, err := persist.New(cfg, persist.Deps{Telemetry: tel, Bus: connect(e, tel)})
		if err != nil {
			t.Fatal(err)
		}
		return start(t, p.Run)
	}
	startClassify := func(e *bus.Embedded) (running, classifyv1.ClassifyServiceClient) {
		cfg := classify.DefaultConfig()
		cfg.Engine.Now = clock.Load
		tel := telemetry.Discard("classify")
		tel.Log = slog.New(slog.NewTextHandler(&log, nil))
		srv, _, err := rpc.NewServer(tel, rpc.TLS{})
		if err != nil {
			t.Fatal(err)
		}
		c, err := classify.New(cfg, classify.Deps{Telemetry: tel, Registrar: srv, Bus: connect(e, tel)})
		if err != nil {
			t.Fatal(err)
		}
		dial, serve := rpc.InMemory(srv)
		conn, err := dial(tel)
		if err != nil {
			t.Fatal(err)
		}
		start(t, serve)
		t.Cleanup(func() { _ = conn.Close() })
		return start(t, c.Run), classifyv1.NewClassifyServiceClient(conn)
	}
	threshold := func(c classifyv1.ClassifyServiceClient) float64 {
		t.Helper()
		g, err := c.ListGroups(context.Background(), &classifyv1.ListGroupsRequest{})
		if err != nil || len(g.GetGroups()) != 1 || g.GetGroups()[0].GetThresholds()["icmp"] != 500 {
			t.Fatal(g, err)
		}
		for _, h := range g.GetGroups()[0].GetLearned() {
			if h.GetHost() == host.String() {
				return h.GetThresholds()["icmp"]
			}
		}
		return 500
	}
	until := func(what string, f func() bool) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); !f(); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("waited for %s", what)
			}
		}
	}

	nats := startNATS()
	store := startPersist(nats)
	judge, client := startClassify(nats)
	until("what there is to be restored", func() bool { return log.has("is restored") }) // only then anything is stored
	stream, err := client.Stream(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	addr, seq := host.As16(), uint64(0)
	for _, at := range []struct {
		day     int64
		minutes int
	}{{0, minutes}, {1, 2}} {
		for i := range at.minutes {
			seq++
			now := begin + at.day*dayNs + int64(i)*60e9
			clock.Store(now + 100e6)
			w := &flowv1.Window{Sensor: "s", Epoch: 1, Sequence: seq, StartNs: now, EndNs: now + 100e6, Targets: []*flowv1.Target{{
				Addr: addr[:], PrefixLen: 128, Counters: &flowv1.Counters{Packets: 300, Icmp: 300, Bytes: 30_000},
			}}}
			if err := stream.Send(&classifyv1.StreamRequest{Item: &classifyv1.StreamRequest_Window{Window: w}}); err != nil {
				t.Fatal(err)
			}
			if r, err := stream.Recv(); err != nil || r.GetWindow() != seq {
				t.Fatal(r, err)
			}
		}
	}
	if got := threshold(client); got != 625 { // a quarter more on the second day
		t.Fatalf("learned %v", got)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	judge.stop() // stores
	store.stop()
	nats.Shutdown()
	log.clear()

	nats = startNATS()
	defer nats.Shutdown()
	_, client = startClassify(nats)
	until("an attempt without persist", func() bool { return log.has("not restored yet") })
	if got := threshold(client); got != 500 {
		t.Errorf("without persist the threshold is %v", got)
	}
	startPersist(nats)
	until("the threshold that was learned", func() bool { return threshold(client) == 625 })
}
