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

// TestLostBucket takes the server's storage away under a running node: rules in force stay until their leases end.
func TestLostBucket(t *testing.T) {
	dir, listen := filepath.Join(t.TempDir(), "nats"), "127.0.0.1:0"
	start := func() *bus.Embedded {
		e, err := bus.StartEmbedded(context.Background(), dir, bus.Listen{Addr: listen, Insecure: true})
		if err != nil {
			t.Fatal(err)
		}
		listen = e.Addr()
		return e
	}
	e := start()
	t.Cleanup(func() { e.Shutdown() })
	b := bustest.Open(t, bus.Config{URL: "nats://" + listen})
	gate := newFakeGate()
	cfg := DefaultConfig()
	cfg.Ifaces, cfg.Node, cfg.Enforce = []string{"test0"}, "node-1", true
	svc, err := New(cfg, Deps{Telemetry: telemetry.Discard("enforce"), Bus: b, Open: func(string) (Gate, error) { return gate, nil }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- svc.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	bustest.Wait(t, "readiness", func() bool { return svc.ready() == nil })
	short, long := drop("short", 5*time.Second), drop("long", time.Minute)
	for _, r := range []policy.Rule{short, long} {
		if err := b.PutRule(ctx, r); err != nil {
			t.Fatal(err)
		}
		bustest.Wait(t, "the entry", func() bool { _, ok := gate.get(policy.NumericID(r.ID)); return ok })
	}

	e.Shutdown()
	bustest.Wait(t, "readiness to notice", func() bool { return svc.ready() != nil })
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	e = start()
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
