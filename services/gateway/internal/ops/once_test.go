package ops

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/bus/bustest"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/caller"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/mesh"
)

// overNATS gives two gateways at one NATS server, and the bus.
func overNATS(t *testing.T) (a, b *Operations, nats *bus.Bus) {
	t.Helper()
	srv, err := bus.StartEmbedded(context.Background(), t.TempDir(), bus.Listen{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Shutdown)
	nats = bustest.Open(t, bus.Config{Embedded: srv})
	gateway := func() *Operations {
		o, err := New(Deps{Telemetry: telemetry.Discard("gateway"), Mesh: &mesh.Mesh{}, Bus: nats})
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	return gateway(), gateway(), nats
}

func answer(code int, body string) func(context.Context) Stored {
	return func(context.Context) Stored {
		return Stored{Status: code, Header: map[string]string{"ETag": `"1"`}, Body: []byte(body)}
	}
}

func TestOnce(t *testing.T) {
	a, b, _ := overNATS(t)
	ctx := asOperator(t)
	fresh, replayed, err := a.Once(ctx, "k 1/*>", []byte("POST x"), answer(201, "made"))
	if err != nil || replayed || string(fresh.Body) != "made" {
		t.Fatalf("first: %+v, %v, %v", fresh, replayed, err)
	}
	never := func(context.Context) Stored { t.Error("it ran again"); return Stored{} }
	again, replayed, err := b.Once(ctx, "k 1/*>", []byte("POST x"), never)
	if err != nil || !replayed || again.Status != 201 || string(again.Body) != "made" || again.Header["ETag"] != `"1"` {
		t.Errorf("again: %+v, %v, %v", again, replayed, err)
	}
	_, _, err = b.Once(ctx, "k 1/*>", []byte("POST y"), never)
	if p := wantProblem(t, err, 422); p.Reason != "idempotency_key_reused" {
		t.Errorf("problem %+v", p)
	}
	other := caller.With(ctx, caller.Caller{Subject: "bob"})
	if s, replayed, err := b.Once(other, "k 1/*>", []byte("POST x"), answer(201, "of bob")); err != nil || replayed || string(s.Body) != "of bob" {
		t.Errorf("another caller's key: %+v, %v, %v", s, replayed, err)
	}
}

func TestOnceOfManyAtATime(t *testing.T) {
	a, b, _ := overNATS(t)
	var runs, running atomic.Int32
	release := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 20 {
		o := a
		if i%2 == 0 {
			o = b
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			_, _, err := o.Once(asOperator(t), "k", []byte("x"), func(context.Context) Stored {
				runs.Add(1)
				<-release
				return Stored{Status: 200}
			})
			var p *api.Problem
			if errors.As(err, &p) && p.Status == 409 && p.Reason == api.ReasonRunning {
				running.Add(1)
			} else if err != nil {
				t.Error(err)
			}
		}()
	}
	bustest.Wait(t, "all but one to be told that it runs", func() bool { return running.Load() == 19 })
	close(release)
	wg.Wait()
	if runs.Load() != 1 {
		t.Errorf("it ran %d times", runs.Load())
	}
}

func TestOnceReleasesFailures(t *testing.T) {
	a, _, _ := overNATS(t)
	for _, code := range []int{503, 429, 500} {
		if _, replayed, err := a.Once(asOperator(t), "k", []byte("x"), answer(code, "")); err != nil || replayed {
			t.Errorf("%d: replayed %v, %v", code, replayed, err)
		}
	}
	func() {
		defer func() { _ = recover() }()
		_, _, _ = a.Once(asOperator(t), "k", []byte("x"), func(context.Context) Stored { panic("broken") })
	}()
	if s, replayed, err := a.Once(asOperator(t), "k", []byte("x"), answer(201, "made")); err != nil || replayed || s.Status != 201 {
		t.Errorf("retry: %+v, %v, %v", s, replayed, err)
	}
	large := func(context.Context) Stored { return Stored{Status: 200, Body: make([]byte, maxStored+1)} }
	for range 2 {
		if _, replayed, err := a.Once(asOperator(t), "large", []byte("x"), large); err != nil || replayed {
			t.Errorf("a large answer: replayed %v, %v", replayed, err)
		}
	}
}

func TestOnceTakesOverFromTheDead(t *testing.T) {
	a, b, _ := overNATS(t)
	ctx := asOperator(t)
	if _, _, err := a.claim(ctx, hashed("ada", "k"), hashed("x")); err != nil { // and then the process dies
		t.Fatal(err)
	}
	_, _, err := b.Once(ctx, "k", []byte("x"), answer(200, ""))
	wantProblem(t, err, 409)
	b.now = func() time.Time { return time.Now().Add(pendingTime + time.Second) }
	if s, replayed, err := b.Once(ctx, "k", []byte("x"), answer(200, "")); err != nil || replayed || s.Status != 200 {
		t.Errorf("taken over: %+v, %v, %v", s, replayed, err)
	}
}

func TestOnceWithoutNATS(t *testing.T) {
	r := newRig(t)
	_, _, err := r.Once(asOperator(t), "k", []byte("x"), func(context.Context) Stored { t.Error("it ran"); return Stored{} })
	if p := wantProblem(t, err, 503); p.Service != "nats" {
		t.Errorf("problem %+v", p)
	}
	r.errorsCounted("idempotency_key", 1)
}

func TestAuditIsInTheStream(t *testing.T) {
	_, _, nats := overNATS(t)
	r := newRig(t, "n1")
	r.nodes["n1"].store()
	o, err := New(Deps{Telemetry: r.tel, Mesh: r.mesh, Bus: nats})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.AddRule(asOperator(t), drop); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(asOperator(t))
	defer cancel()
	var got []*eventv1.Audit
	err = nats.FollowEvents(ctx, 0, nil, func(m bus.EventMsg) {
		if m.Audit != nil {
			got = append(got, m.Audit)
		}
		if len(got) == 2 {
			cancel()
		}
	}, func(bus.Gap) {})
	if err != nil || len(got) != 2 {
		t.Fatalf("entries %v, %v", got, err)
	}
	if got[0].GetRevision() != 1 || got[1].GetRevision() != 2 || got[1].GetOutcome() != eventv1.AuditOutcome_AUDIT_OUTCOME_DONE || got[1].GetTarget() != "derived" {
		t.Errorf("entries %v", got)
	}
}
