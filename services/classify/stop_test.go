package classify

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// waitFor polls until ok.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

// TestStreamEndsWhileNATSIsAway: batches that wait for others to be published do not keep the service from stopping, and are
// not in its ledger when their stream ends: they come again.
func TestStreamEndsWhileNATSIsAway(t *testing.T) {
	for _, stop := range []bool{false, true} {
		t.Run(fmt.Sprintf("service stops %v", stop), func(t *testing.T) {
			b := &fakeBus{rules: make(map[string]policy.Rule)}
			r := newRig(t, b)
			waitFor(t, "ready", func() bool { return r.svc.problem.Load() == nil })
			b.setFail(errors.New("no servers available"))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			st, err := r.client.Stream(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for i := range uint64(3) { // one more than may be in flight
				if err := st.Send(ends(i+1, 5)); err != nil {
					t.Fatal(err)
				}
			}
			waitFor(t, "received", func() bool { return r.svc.batches.Load() == 3 })
			if stop {
				stopped := make(chan struct{})
				go func() { defer close(stopped); r.svc.stop() }()
				select {
				case <-stopped:
				case <-time.After(drain + 5*time.Second):
					t.Error("it does not stop")
				}
			} else {
				cancel()
			}
			waitFor(t, "ledger", func() bool { return r.svc.Ledger()["records_received"] == 0 })
		})
	}
}

// slowBus answers nothing about what is usual, as while NATS is away.
type slowBus struct{ *fakeBus }

func (slowBus) StoreUsual(ctx context.Context, _ *eventv1.UsualDay) error {
	<-ctx.Done()
	return ctx.Err()
}

// TestStopsInTime: what is left to publish and what is left to store have their time together, not one after the other: a
// process gives the service five seconds.
func TestStopsInTime(t *testing.T) {
	svc, err := New(DefaultConfig(), Deps{Telemetry: telemetry.Discard("classify"), Bus: slowBus{&fakeBus{rules: make(map[string]policy.Rule)}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- svc.Run(ctx) }()
	waitFor(t, "ready", func() bool { return svc.problem.Load() == nil })
	time.Sleep(100 * time.Millisecond) // what was learned is restored
	svc.engine.usualAgain(1)
	svc.streams.Add(1) // a stream with a batch that nobody takes
	go func() {
		defer svc.streams.Done()
		<-svc.base.Done()
	}()
	begin := time.Now()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if d := time.Since(begin); d > drain+time.Second {
		t.Errorf("it took %s to stop", d)
	}
}
