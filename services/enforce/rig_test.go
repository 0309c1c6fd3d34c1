package enforce

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/bus/bustest"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// rig is a node on an embedded NATS server with fake gates.
type rig struct {
	t    testing.TB
	bus  *bus.Bus
	gate *fakeGate
	cfg  Config

	registrar grpc.ServiceRegistrar // nil: no gRPC

	svc  *Service
	tel  *telemetry.Telemetry
	stop func()

	mu     sync.Mutex
	events []*eventv1.Enforcement
}

func newRig(t testing.TB, change func(*Config)) *rig {
	t.Helper()
	e, err := bus.StartEmbedded(context.Background(), t.TempDir(), bus.Listen{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Shutdown)
	r := &rig{t: t, bus: bustest.Open(t, bus.Config{Embedded: e}), gate: newFakeGate(), cfg: DefaultConfig()}
	r.cfg.Ifaces, r.cfg.Node, r.cfg.Enforce = []string{"test0"}, "node-1", true
	if change != nil {
		change(&r.cfg)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = r.bus.ConsumeEvents(ctx, "test", []string{bus.AllEnforcements}, func(_ context.Context, msgs []bus.EventMsg) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			for _, m := range msgs {
				r.events = append(r.events, m.Enforcement)
			}
			return nil
		})
	}()
	t.Cleanup(func() { cancel(); <-done })
	return r
}

// start runs the service; with the rig's gate unless open is given.
func (r *rig) start(open Opener) {
	r.t.Helper()
	if open == nil {
		open = func(string) (Gate, error) { return r.gate, nil }
	}
	r.tel = telemetry.Discard("enforce")
	svc, err := New(r.cfg, Deps{Telemetry: r.tel, Registrar: r.registrar, Bus: r.bus, Open: open})
	if err != nil {
		r.t.Fatal(err)
	}
	r.svc = svc
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- svc.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("Run: %v", err)
		}
	})
	r.t.Cleanup(r.stop)
}

func (r *rig) startReady() {
	r.t.Helper()
	r.start(nil)
	waitReady(r.t, r.svc)
}

// idle is a node that does not run and has read the desired state: a test hands it the updates. The gates are those of
// interfaces test0, test1 and so on.
func idle(t *testing.T, b Bus, gates ...Gate) *Service {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Node, cfg.Enforce = "node-1", true
	for i := range gates {
		cfg.Ifaces = append(cfg.Ifaces, fmt.Sprintf("test%d", i))
	}
	s, err := New(cfg, Deps{Telemetry: telemetry.Discard("enforce"), Bus: b})
	if err != nil {
		t.Fatal(err)
	}
	for i, g := range gates {
		s.ports[i].gate = g
	}
	s.synced = true
	return s
}

// watched is an update as the watch brings it.
func watched(u bus.RuleUpdate) delivery { return delivery{u, time.Now()} }

// waitReady waits until a node is ready, and says what kept it from that.
func waitReady(t testing.TB, svc *Service) {
	t.Helper()
	defer func() {
		if err := svc.ready(); err != nil {
			t.Logf("node %s is not ready: %v", svc.cfg.Node, err)
		}
	}()
	bustest.Wait(t, "readiness", func() bool { return svc.ready() == nil })
}

// second runs another node on the rig's bus.
func (r *rig) second(change func(*Config), open Opener) (svc *Service) {
	r.t.Helper()
	cfg := r.cfg
	cfg.Node = "node-2"
	if change != nil {
		change(&cfg)
	}
	svc, err := New(cfg, Deps{Telemetry: telemetry.Discard("enforce"), Bus: r.bus, Open: open})
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- svc.Run(ctx) }()
	r.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("Run of the second node: %v", err)
		}
	})
	waitReady(r.t, svc)
	return svc
}

func (r *rig) count(rule string, state eventv1.EnforcementState) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.GetRuleId() == rule && e.GetState() == state {
			n++
		}
	}
	return n
}

// event waits for an event about a rule.
func (r *rig) event(rule string, state eventv1.EnforcementState) *eventv1.Enforcement {
	r.t.Helper()
	var found *eventv1.Enforcement
	bustest.Wait(r.t, rule+" "+state.String(), func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, e := range r.events {
			if e.GetRuleId() == rule && e.GetState() == state {
				found = e
			}
		}
		return found != nil
	})
	return found
}

func (r *rig) put(rule policy.Rule) {
	r.t.Helper()
	if err := r.bus.PutRule(context.Background(), rule); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) metric(want string, names ...string) {
	r.t.Helper()
	if err := testutil.GatherAndCompare(r.tel.Registry, strings.NewReader(want), names...); err != nil {
		r.t.Error(err)
	}
}

func drop(id string, lease time.Duration) policy.Rule {
	r := policy.Rule{
		ID: id, Action: policy.Drop, Match: policy.Match{Src: netip.MustParsePrefix("198.51.100.7/32")},
		Origin: policy.OriginDetector, AttackID: "attack-1", Lease: lease,
		AttackFirstNs: time.Now().Add(-100 * time.Millisecond).UnixNano(),
		Traceparent:   "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
	}
	if lease > 0 {
		r.Expires = time.Now().Add(lease).UTC()
	}
	return r
}

// refusePriority lets the kernel refuse entries of this priority for their mask.
func (r *rig) refusePriority(priority int32) {
	r.gate.set(func(g *fakeGate) {
		g.putErr = func(e *xdp.Rule) error {
			if e.Priority == priority {
				return xdp.ErrMaskLimit
			}
			return nil
		}
	})
}

func (r *rig) waitEntry(id string) {
	r.t.Helper()
	bustest.Wait(r.t, "the entry of "+id, func() bool { _, ok := r.gate.get(policy.NumericID(id)); return ok })
}
