// Package bustest is the conformance suite of the bus: the same tests pass on the embedded server and on a separate one.
package bustest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// Server is a NATS server under test, with empty storage.
type Server struct {
	Config bus.Config
	// Stop and Start interrupt the server and bring it back with its data; nil when that is not possible
	// (in-process connections die with the process).
	Stop, Start func(t *testing.T)
}

// Run runs the suite; start gives each test a server of its own, which ends with the test.
func Run(t *testing.T, start func(t *testing.T) Server) {
	for _, c := range []struct {
		name string
		f    func(t *testing.T, s Server)
	}{
		{"streams", streams}, {"flows once", flowsOnce}, {"handler error", handlerError}, {"malformed", malformed},
		{"events", events}, {"older stream", olderStream}, {"ephemeral", ephemeral}, {"follow", follow}, {"follow gap", followGap},
		{"follow interrupted", followInterrupted}, {"too large", tooLarge}, {"event stream full", full},
		{"rules", rules}, {"watch", watch}, {"control", control}, {"bad control", badControl}, {"lists", lists}, {"nodes", nodes}, {"windows", windows}, {"interrupted server", interrupted},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // most of the time is waiting
			c.f(t, start(t))
		})
	}
}

// Wait polls until ok holds, at most 10 s.
func Wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timed out waiting for %s", what)
		}
	}
}

// Open connects, sets the streams up and closes with the test.
func Open(t testing.TB, cfg bus.Config) *bus.Bus {
	t.Helper()
	b, err := bus.Connect(context.Background(), telemetry.Discard("bustest"), t.Name(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	if err := b.EnsureStreams(context.Background()); err != nil {
		t.Fatal(err)
	}
	return b
}

// background runs f until the test ends and waits for it.
func background(t *testing.T, f func(ctx context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("returned %v after its context ended", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("did not return within 10 s of its context's end")
		}
	})
	t.Cleanup(stop)
	return stop
}

func records(batch uint64, n int) *eventv1.FlowRecords {
	f := &eventv1.FlowRecords{Sensor: "edge.1", Epoch: 7, Batch: batch}
	for i := range n {
		f.Records = append(f.Records, &eventv1.FlowRecord{Id: fmt.Sprintf("edge.1/7/%d/%d", batch, i), App: "tls", PacketsFwd: 3})
	}
	return f
}

func streams(t *testing.T, s Server) {
	b := Open(t, s.Config)
	if err := b.EnsureStreams(context.Background()); err != nil {
		t.Fatalf("second time: %v", err)
	}
	cfg := s.Config
	cfg.FlowsMaxBytes, cfg.EventsMaxBytes = 64<<20, 32<<20
	Open(t, cfg) // an explicit limit changes the stream
	if err := b.Ready(); err != nil {
		t.Fatal(err)
	}
}

func flowsOnce(t *testing.T, s Server) {
	b := Open(t, s.Config)
	ctx, span := telemetry.Discard("t").Tracer.Start(telemetry.AlwaysSample(context.Background()), "batch")
	defer span.End()
	for range 3 { // the same message three times, as a publisher does that lost the acknowledgement
		if _, err := b.PublishFlows(ctx, records(1, 10)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.PublishFlows(ctx, records(2, 5)); err != nil {
		t.Fatal(err)
	}
	st, err := b.State(ctx, bus.StreamFlows)
	if err != nil || st.Messages != 2 {
		t.Fatalf("stream holds %d messages (%v), want 2", st.Messages, err)
	}
	var got atomic.Int64
	traceID := make(chan string, 8)
	stop := background(t, func(run context.Context) error {
		return b.ConsumeFlows(run, "persist", func(ctx context.Context, msgs []bus.FlowMsg) error {
			for i := range msgs {
				got.Add(int64(len(msgs[i].Records.GetRecords())))
				traceID <- telemetry.TraceID(msgs[i].Context(ctx))
			}
			return nil
		})
	})
	Wait(t, "15 records", func() bool { return got.Load() == 15 })
	if want, have := telemetry.TraceID(ctx), <-traceID; have != want {
		t.Errorf("trace id %q, want %q", have, want)
	}
	Wait(t, "an empty backlog", func() bool {
		n, err := b.Backlog(ctx, bus.StreamFlows, "persist")
		return err == nil && n == 0
	})
	stop()
	if _, err := b.PublishFlows(ctx, records(3, 1)); err != nil {
		t.Fatal(err)
	}
	Wait(t, "a backlog of 1", func() bool {
		n, err := b.Backlog(ctx, bus.StreamFlows, "persist")
		return err == nil && n == 1
	})
}

func handlerError(t *testing.T, s Server) {
	b := Open(t, s.Config)
	if _, err := b.PublishFlows(context.Background(), records(1, 1)); err != nil {
		t.Fatal(err)
	}
	var calls atomic.Int64
	var again atomic.Bool
	background(t, func(ctx context.Context) error {
		return b.ConsumeFlows(ctx, "d", func(_ context.Context, m []bus.FlowMsg) error {
			if calls.Add(1) == 1 {
				return errors.New("the database is away")
			}
			again.Store(m[0].Redelivered)
			return nil
		})
	})
	Wait(t, "the second delivery", func() bool { return calls.Load() == 2 && again.Load() })
}

func malformed(t *testing.T, s Server) {
	var mu sync.Mutex
	var bad []string
	cfg := s.Config
	cfg.OnBad = func(subject string, _ error) {
		mu.Lock()
		defer mu.Unlock()
		bad = append(bad, subject)
	}
	b := Open(t, cfg)
	ctx := context.Background()
	if err := b.Raw(ctx, bus.SubjectAttack+"x", []byte("{not json")); err != nil {
		t.Fatal(err)
	}
	if err := b.PublishAttack(ctx, &eventv1.Attack{Id: "a", Revision: 1, Sensor: "x"}); err != nil {
		t.Fatal(err)
	}
	good := make(chan bus.EventMsg, 4)
	background(t, func(ctx context.Context) error {
		return b.ConsumeEvents(ctx, "d", nil, func(_ context.Context, msgs []bus.EventMsg) error {
			for _, m := range msgs {
				good <- m
			}
			return nil
		})
	})
	if m := <-good; m.Attack.GetId() != "a" {
		t.Errorf("got %v", m)
	}
	Wait(t, "both settled", func() bool {
		n, err := b.Backlog(ctx, bus.StreamEvents, "d")
		return err == nil && n == 0
	})
	mu.Lock()
	defer mu.Unlock()
	if len(bad) != 1 || bad[0] != bus.SubjectAttack+"x" {
		t.Errorf("reported %q, want the malformed one once", bad)
	}
}

func events(t *testing.T, s Server) {
	b := Open(t, s.Config)
	ctx := context.Background()
	v := &eventv1.Verdict{Id: "v1", AttackId: "a1", Sensor: "edge 1", Traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
	for range 2 {
		if err := errors.Join(
			b.PublishAttack(ctx, &eventv1.Attack{Id: "a1", Revision: 1, Sensor: "edge 1", Type: "syn_flood"}),
			b.PublishAttack(ctx, &eventv1.Attack{Id: "a1", Revision: 2, Sensor: "edge 1", Type: "syn_flood"}),
			b.PublishVerdict(ctx, v),
			b.PublishEnforcement(ctx, &eventv1.Enforcement{Id: "e1", Node: "n", RuleId: "r"}),
			b.PublishAudit(ctx, &eventv1.Audit{Id: "c1", Revision: 1, Gateway: "gw.1", Outcome: eventv1.AuditOutcome_AUDIT_OUTCOME_REQUESTED}),
			b.PublishAudit(ctx, &eventv1.Audit{Id: "c1", Revision: 2, Gateway: "gw.1", Outcome: eventv1.AuditOutcome_AUDIT_OUTCOME_DONE, After: `{"id": "r"}`}),
		); err != nil {
			t.Fatal(err)
		}
	}
	collect := func(durable string, want int, subjects ...string) []bus.EventMsg {
		var mu sync.Mutex
		var got []bus.EventMsg
		stop := background(t, func(ctx context.Context) error {
			return b.ConsumeEvents(ctx, durable, subjects, func(_ context.Context, msgs []bus.EventMsg) error {
				mu.Lock()
				defer mu.Unlock()
				got = append(got, msgs...)
				return nil
			})
		})
		Wait(t, fmt.Sprintf("%d events", want), func() bool { mu.Lock(); defer mu.Unlock(); return len(got) >= want })
		time.Sleep(50 * time.Millisecond)
		stop()
		if len(got) != want {
			t.Errorf("%s: %d events, want %d", durable, len(got), want)
		}
		return got
	}
	all := collect("all", 6)
	if all[0].Attack.GetRevision() != 1 || all[1].Attack.GetRevision() != 2 || all[2].Verdict == nil || all[3].Enforcement == nil {
		t.Errorf("order or kind: %v", all)
	}
	if a := all[5].Audit; all[4].Audit.GetRevision() != 1 || a.GetRevision() != 2 || a.GetAfter() != `{"id": "r"}` || all[5].Subject != bus.SubjectAudit+"gw_1" {
		t.Errorf("audits: %v", all[4:])
	}
	if id := telemetry.TraceID(all[2].Context(ctx)); id != "4bf92f3577b34da6a3ce929d0e0e4736" {
		t.Errorf("verdict's trace id is %q", id)
	}
	if !strings.HasSuffix(all[0].Subject, ".edge_1") || all[0].StreamSeq == 0 {
		t.Errorf("subject %q, sequence %d", all[0].Subject, all[0].StreamSeq)
	}
	collect("some", 3, bus.AllAttacks, bus.AllEnforcements)
	collect("audits", 2, bus.AllAudits)
}

func ephemeral(t *testing.T, s Server) {
	b := Open(t, s.Config)
	ctx := context.Background()
	if err := b.PublishAttack(ctx, &eventv1.Attack{Id: "before", Revision: 1}); err != nil {
		t.Fatal(err)
	}
	got := make(chan bus.EventMsg, 256)
	background(t, func(ctx context.Context) error {
		return b.ConsumeEventsEphemeral(ctx, []string{bus.AllAttacks}, func(m bus.EventMsg) { got <- m })
	})
	// "From now" begins when the consumer is there; publish until the first arrives.
	var first bus.EventMsg
	for i := uint32(1); first.Attack == nil; i++ {
		if err := b.PublishAttack(ctx, &eventv1.Attack{Id: "after", Revision: i}); err != nil {
			t.Fatal(err)
		}
		select {
		case first = <-got:
		case <-time.After(50 * time.Millisecond):
		}
	}
	if first.Attack.GetId() != "after" {
		t.Errorf("got %q, an event of before", first.Attack.GetId())
	}
}

func tooLarge(t *testing.T, s Server) {
	b := Open(t, s.Config)
	f := records(1, 1)
	f.Records[0].Host = strings.Repeat("x", 2<<20)
	if _, err := b.PublishFlows(context.Background(), f); !errors.Is(err, bus.ErrTooLarge) {
		t.Errorf("flows: %v, want ErrTooLarge", err)
	}
	if err := b.PublishAttack(context.Background(), &eventv1.Attack{Id: "a", Type: f.Records[0].Host}); !errors.Is(err, bus.ErrTooLarge) {
		t.Errorf("event: %v, want ErrTooLarge at once", err)
	}
}

func full(t *testing.T, s Server) {
	cfg := s.Config
	cfg.EventsMaxBytes = 1 << 20
	b := Open(t, cfg)
	pad := strings.Repeat("y", 32<<10)
	n := uint32(0)
	publish := func(limit time.Duration) error {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		n++
		return b.PublishAttack(ctx, &eventv1.Attack{Id: "a", Revision: n, Type: pad})
	}
	for range 64 { // twice the size, no durable consumer: the older half makes room
		if err := publish(20 * time.Second); err != nil {
			t.Fatalf("event %d: %v", n, err)
		}
	}
	// A durable consumer that does not acknowledge keeps its messages: the publisher waits and says so.
	hold := make(chan struct{})
	background(t, func(ctx context.Context) error {
		return b.ConsumeEvents(ctx, "slow", nil, func(ctx context.Context, _ []bus.EventMsg) error {
			select {
			case <-hold:
			case <-ctx.Done():
			}
			return nil
		})
	})
	Wait(t, "the consumer", func() bool {
		_, err := b.Backlog(context.Background(), bus.StreamEvents, "slow")
		return err == nil
	})
	var err error
	for range 64 {
		if err = publish(3 * time.Second); err != nil {
			break
		}
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("publishing into a full stream: %v, want the context's end", err)
	}
	close(hold)
	if err := publish(20 * time.Second); err != nil {
		t.Fatalf("after the consumer caught up: %v", err)
	}
}
