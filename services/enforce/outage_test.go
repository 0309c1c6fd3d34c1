package enforce

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/bus/bustest"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
)

// outage is a node and its NATS server, which can be stopped and started again.
type outage struct {
	t      *testing.T
	dir    string // the server's storage
	listen string
	server *bus.Embedded
	bus    *bus.Bus
	gate   *fakeGate
	svc    *Service
}

// newOutage starts both and waits until the node is ready; they end with the test.
func newOutage(t *testing.T) *outage {
	t.Helper()
	r := &outage{t: t, dir: filepath.Join(t.TempDir(), "nats"), listen: "127.0.0.1:0", gate: newFakeGate()}
	r.start()
	t.Cleanup(func() { r.server.Shutdown() })
	r.bus = bustest.Open(t, bus.Config{URL: "nats://" + r.listen})
	cfg := DefaultConfig()
	cfg.Ifaces, cfg.Node, cfg.Enforce = []string{"test0"}, "node-1", true
	var err error
	r.svc, err = New(cfg, Deps{Telemetry: telemetry.Discard("enforce"), Bus: r.bus, Open: func(string) (Gate, error) { return r.gate, nil }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.svc.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	waitReady(t, r.svc)
	return r
}

// start starts the server, at the address that it had before.
func (r *outage) start() {
	r.t.Helper()
	var err error
	if r.server, err = bus.StartEmbedded(context.Background(), r.dir, bus.Listen{Addr: r.listen, Insecure: true}); err != nil {
		r.t.Fatal(err)
	}
	r.listen = r.server.Addr()
}

// stop stops the server and waits until the node knows.
func (r *outage) stop() {
	r.t.Helper()
	r.server.Shutdown()
	bustest.Wait(r.t, "readiness to notice", func() bool { return r.svc.ready() != nil })
}

// TestLostBucket takes the server's storage away under a running node: rules in force stay until their leases end.
func TestLostBucket(t *testing.T) {
	r := newOutage(t)
	svc, b, gate, ctx := r.svc, r.bus, r.gate, context.Background()
	short, long := drop("short", 5*time.Second), drop("long", time.Minute)
	for _, r := range []policy.Rule{short, long} {
		if err := b.PutRule(ctx, r); err != nil {
			t.Fatal(err)
		}
		bustest.Wait(t, "the entry", func() bool { _, ok := gate.get(policy.NumericID(r.ID)); return ok })
	}

	r.stop()
	if err := os.RemoveAll(r.dir); err != nil {
		t.Fatal(err)
	}
	r.start()
	bustest.Wait(t, "readiness on the empty server", func() bool {
		svc.mu.Lock()
		defer svc.mu.Unlock()
		return b.Ready() == nil && svc.rules["long"] != nil && svc.rules["long"].revision == 0 && !svc.syncing
	})
	if _, ok := gate.get(policy.NumericID("long")); !ok {
		t.Error("the empty bucket removed a rule in force")
	}
	bustest.Wait(t, "the short lease's end", func() bool { _, ok := gate.get(policy.NumericID("short")); return !ok })
	if _, ok := gate.get(policy.NumericID("long")); !ok {
		t.Error("the long lease ended too")
	}
	// The bucket counts from 1 again: a new version under a known id is taken.
	again := long
	again.Priority = 3
	bustest.Wait(t, "the bucket", func() bool { return b.PutRule(ctx, again) == nil })
	bustest.Wait(t, "the new version", func() bool { e, _ := gate.get(policy.NumericID("long")); return e.Priority == 3 })
}

// TestTwoNodes: a node whose own link is quiet keeps a rule that another node renews.
func TestTwoNodes(t *testing.T) {
	r := newRig(t, nil)
	r.startReady()
	quiet := newFakeGate()
	r.second(nil, func(string) (Gate, error) { return quiet, nil })
	const lease = time.Second
	number := policy.NumericID("r1")
	r.put(drop("r1", lease))
	bustest.Wait(t, "both entries", func() bool {
		_, a := r.gate.get(number)
		_, b := quiet.get(number)
		return a && b
	})
	for begin := time.Now(); time.Since(begin) < 3*lease; time.Sleep(20 * time.Millisecond) {
		r.gate.hit(number, 1)
		if e, ok := quiet.get(number); !ok || e.Expires.Before(time.Now()) {
			t.Fatal("the quiet node let the rule go")
		}
	}
	bustest.Wait(t, "the end on both", func() bool {
		_, a := r.gate.get(number)
		_, b := quiet.get(number)
		return !a && !b
	})
	if n := r.count("r1", evRevoked); n != 0 {
		t.Error("an expiry was told as a revocation by the other node")
	}
}
