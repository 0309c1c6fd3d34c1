package bustest

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

// Rule is a valid drop rule.
func Rule(id string) policy.Rule {
	return policy.Rule{
		ID: id, Action: policy.Drop, Match: policy.Match{Src: netip.MustParsePrefix("192.0.2.1/32")},
		Origin: policy.OriginDetector, Lease: time.Minute, Expires: time.Now().Add(time.Minute).UTC(),
		AttackFirstNs: 42, Traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
	}
}

func rules(t *testing.T, s Server) {
	b := Open(t, s.Config)
	ctx := context.Background()
	r := Rule("r1")
	if err := b.PutRule(ctx, r); err != nil {
		t.Fatal(err)
	}
	m, err := b.Rules(ctx)
	if err != nil || len(m) != 1 || m["r1"].Rule != r {
		t.Fatalf("rules %v (%v), want %v", m, err, r)
	}
	r.Priority = 5
	rev, err := b.UpdateRule(ctx, r, m["r1"].Revision)
	if err != nil || rev <= m["r1"].Revision {
		t.Fatalf("update: revision %d (%v)", rev, err)
	}
	if _, err := b.UpdateRule(ctx, r, m["r1"].Revision); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("update with an old revision: %v, want ErrConflict", err)
	}
	if _, err := b.UpdateRule(ctx, r, 0); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("create of an existing key: %v, want ErrConflict", err)
	}
	if err := b.DeleteRuleRevision(ctx, "r1", m["r1"].Revision); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("delete of an old revision: %v, want ErrConflict", err)
	}
	if err := b.DeleteRuleRevision(ctx, "r1", rev); err != nil {
		t.Fatal(err)
	}
	if _, err := b.UpdateRule(ctx, r, 0); err != nil {
		t.Fatalf("create after a deletion: %v", err)
	}
	if err := errors.Join(b.DeleteRule(ctx, "r1"), b.DeleteRule(ctx, "never-there")); err != nil {
		t.Fatal(err)
	}
	if m, err := b.Rules(ctx); err != nil || len(m) != 0 {
		t.Errorf("after the deletion: %v (%v)", m, err)
	}
	if err := b.PutRule(ctx, Rule("white space")); !errors.Is(err, bus.ErrInvalidKey) {
		t.Errorf("id with a space: %v, want ErrInvalidKey", err)
	}
	if err := b.PutRule(ctx, policy.Rule{ID: "x"}); err == nil {
		t.Error("a rule without an action was written")
	}
}

// Watcher records what WatchRules says.
type Watcher struct {
	mu        sync.Mutex
	Rules     map[string]policy.Rule
	Deleted   map[string]bool
	Restarted int
	Synced    int
}

func (w *Watcher) update(u bus.RuleUpdate) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case u.Restarted:
		w.Restarted++
	case u.Synced:
		w.Synced++
	case u.Rule == nil:
		delete(w.Rules, u.ID)
		w.Deleted[u.ID] = true
	default:
		w.Rules[u.ID] = *u.Rule
	}
}

func (w *Watcher) is(f func() bool) func() bool {
	return func() bool { w.mu.Lock(); defer w.mu.Unlock(); return f() }
}

func startWatch(t *testing.T, b *bus.Bus) *Watcher {
	w := &Watcher{Rules: map[string]policy.Rule{}, Deleted: map[string]bool{}}
	background(t, func(ctx context.Context) error { return b.WatchRules(ctx, w.update) })
	return w
}

func watch(t *testing.T, s Server) {
	b := Open(t, s.Config)
	ctx := context.Background()
	empty := startWatch(t, b)
	Wait(t, "the sync of an empty bucket", empty.is(func() bool { return empty.Synced == 1 && empty.Restarted == 1 }))
	if err := errors.Join(b.PutRule(ctx, Rule("a")), b.PutRule(ctx, Rule("b"))); err != nil {
		t.Fatal(err)
	}
	w := startWatch(t, b)
	Wait(t, "the sync", w.is(func() bool { return w.Synced == 1 && len(w.Rules) == 2 }))
	if err := errors.Join(b.DeleteRule(ctx, "a"), b.PutRule(ctx, Rule("c"))); err != nil {
		t.Fatal(err)
	}
	Wait(t, "changes", w.is(func() bool { return w.Deleted["a"] && len(w.Rules) == 2 && w.Rules["c"].ID == "c" }))
	Wait(t, "changes in the first watch", empty.is(func() bool { return len(empty.Rules) == 2 }))
}

func nodes(t *testing.T, s Server) {
	b := Open(t, s.Config)
	ctx := context.Background()
	for _, in := range []string{"host-2.example", "host-1.example", "host-1.example"} {
		if err := b.Heartbeat(ctx, &eventv1.NodeHeartbeat{Service: "enforce", Instance: in, TimeNs: 1}); err != nil {
			t.Fatal(err)
		}
	}
	n, err := b.Nodes(ctx)
	if err != nil || len(n) != 2 || n[0].GetInstance() != "host-1.example" {
		t.Errorf("nodes %v (%v)", n, err)
	}
}

func windows(t *testing.T, s Server) {
	b := Open(t, s.Config)
	got := make(chan string, 64)
	background(t, func(ctx context.Context) error {
		return b.SubscribeWindows(ctx, func(sensor string, _ *flowv1.Window) { got <- sensor })
	})
	Wait(t, "a window", func() bool {
		if err := b.PublishWindow(context.Background(), "edge.1", &flowv1.Window{}); err != nil {
			t.Fatal(err)
		}
		select {
		case sensor := <-got:
			return sensor == "edge_1"
		case <-time.After(20 * time.Millisecond):
			return false
		}
	})
}

func interrupted(t *testing.T, s Server) {
	if s.Stop == nil {
		t.Log("the connection is in-process: it cannot be interrupted")
		return
	}
	b := Open(t, s.Config)
	ctx := context.Background()
	_, err := b.PublishFlows(ctx, records(1, 1))
	if err = errors.Join(b.PutRule(ctx, Rule("a")), err); err != nil {
		t.Fatal(err)
	}
	w := startWatch(t, b)
	Wait(t, "the sync", w.is(func() bool { return w.Synced == 1 && len(w.Rules) == 1 }))
	var mu sync.Mutex
	seen := map[uint64]bool{}
	background(t, func(ctx context.Context) error {
		return b.ConsumeFlows(ctx, "persist", func(_ context.Context, msgs []bus.FlowMsg) error {
			mu.Lock()
			defer mu.Unlock()
			for _, m := range msgs {
				seen[m.Records.GetBatch()] = true
			}
			return nil
		})
	})
	live := make(chan bus.EventMsg, 64)
	background(t, func(ctx context.Context) error {
		return b.ConsumeEventsEphemeral(ctx, nil, func(m bus.EventMsg) { live <- m })
	})
	Wait(t, "the first batch", func() bool { mu.Lock(); defer mu.Unlock(); return seen[1] })

	s.Stop(t)
	Wait(t, "Ready to notice", func() bool { return errors.Is(b.Ready(), bus.ErrUnavailable) })
	begin := time.Now()
	if _, err := b.PublishFlows(ctx, records(2, 1)); !errors.Is(err, bus.ErrUnavailable) {
		t.Errorf("publish without a server: %v, want ErrUnavailable", err)
	}
	if d := time.Since(begin); d > 6*time.Second {
		t.Errorf("the refusal took %s", d)
	}
	published := make(chan error, 1)
	go func() { published <- b.PublishAttack(ctx, &eventv1.Attack{Id: "during", Revision: 1}) }()
	s.Start(t)

	if err := <-published; err != nil {
		t.Errorf("the event published while the server was away: %v", err)
	}
	Wait(t, "Ready", func() bool { return b.Ready() == nil })
	if _, err := b.PublishFlows(ctx, records(2, 1)); err != nil {
		t.Fatal(err)
	}
	Wait(t, "the batch after the restart", func() bool { mu.Lock(); defer mu.Unlock(); return seen[2] })
	Wait(t, "a second sync", w.is(func() bool { return w.Synced == 2 && w.Restarted == 2 && len(w.Rules) == 1 }))
	if err := b.PutRule(ctx, Rule("b")); err != nil {
		t.Fatal(err)
	}
	Wait(t, "a rule after the restart", w.is(func() bool { return len(w.Rules) == 2 }))
	n := uint32(1)
	Wait(t, "live events after the restart", func() bool {
		n++
		if err := b.PublishAttack(ctx, &eventv1.Attack{Id: "later", Revision: n}); err != nil {
			t.Fatal(err)
		}
		select {
		case m := <-live:
			return m.Attack.GetId() == "later"
		case <-time.After(20 * time.Millisecond):
			return false
		}
	})
}
