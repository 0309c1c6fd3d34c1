package bus_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/bus/bustest"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

const hookName = bus.HookDurable + "webhook-1"

// reader collects what one DeliverEvents hands over.
type reader struct {
	mu     sync.Mutex
	ids    []string
	places []bus.Place
	block  func(id string) error // called before an event is taken
	stop   func()
}

// read starts a reader and returns when its consumer is there.
func read(t *testing.T, b *bus.Bus, block func(string) error) *reader {
	t.Helper()
	r := &reader{block: block}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := b.DeliverEvents(ctx, hookName, func(ctx context.Context, m *bus.EventMsg, at bus.Place) error {
			if r.block != nil {
				if err := r.block(m.Attack.GetId()); err != nil {
					return err
				}
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			r.ids, r.places = append(r.ids, m.Attack.GetId()), append(r.places, at)
			return nil
		}); err != nil {
			t.Error(err)
		}
	}()
	r.stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(r.stop)
	bustest.Wait(t, "the consumer", func() bool {
		_, err := b.Backlog(context.Background(), bus.StreamEvents, hookName)
		return err == nil
	})
	return r
}

func (r *reader) taken() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.ids)
}

func publish(t *testing.T, b *bus.Bus, from, to int) (ids []string) {
	t.Helper()
	for i := from; i < to; i++ {
		id := fmt.Sprintf("a%04d", i)
		if err := b.PublishAttack(context.Background(), &eventv1.Attack{Id: id, Revision: 1, Sensor: "s"}); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	return ids
}

func embedded(t *testing.T) (*bus.Bus, *bus.Embedded) {
	t.Helper()
	e, err := bus.StartEmbedded(context.Background(), t.TempDir(), bus.Listen{Addr: "127.0.0.1:0", Insecure: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Shutdown)
	b := bustest.Open(t, bus.Config{Embedded: e})
	return b, e
}

// TestDeliverInOrderOnce: a hook begins with what comes after it was first there, gets everything once and in order,
// over clean restarts, also what was published while it was away.
func TestDeliverInOrderOnce(t *testing.T) {
	b, _ := embedded(t)
	publish(t, b, 0, 5) // before: not for the hook
	var want, got []string
	for round := range 4 {
		r := read(t, b, nil)
		want = append(want, publish(t, b, 100*(round+1), 100*(round+1)+40)...)
		bustest.Wait(t, "some", func() bool { return len(r.taken()) >= 20 })
		r.stop() // in the middle
		for _, p := range r.places {
			if p.Lost != 0 || p.ID == "" || p.Stored.IsZero() {
				t.Errorf("place %+v", p)
			}
		}
		got = append(got, r.taken()...)
		want = append(want, publish(t, b, 100*(round+1)+50, 100*(round+1)+55)...)
	}
	r := read(t, b, nil)
	bustest.Wait(t, "the rest", func() bool { return len(got)+len(r.taken()) >= len(want) })
	r.stop()
	if got = append(got, r.taken()...); !slices.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

// TestDeliverFailsComesFirst: what fails comes again before anything later.
func TestDeliverFailsComesFirst(t *testing.T) {
	b, _ := embedded(t)
	failures := 2
	r := read(t, b, func(id string) error {
		if id == "a0003" && failures > 0 {
			failures--
			return fmt.Errorf("not now")
		}
		return nil
	})
	want := publish(t, b, 0, 8)
	bustest.Wait(t, "all", func() bool { return len(r.taken()) >= len(want) })
	if got := r.taken(); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if r.places[3].Seq != 4 || !r.places[3].Redelivered {
		t.Errorf("the fourth is at %+v", r.places[3])
	}
}

// TestDeliverAfterKill: a reader that vanishes with a message in hand leaves it to the next one, before later ones.
func TestDeliverAfterKill(t *testing.T) {
	b, e := embedded(t)
	dying := bustest.Open(t, bus.Config{Embedded: e})
	hang := make(chan struct{})
	r := read(t, dying, func(id string) error {
		if id == "a0003" {
			<-hang
		}
		return nil
	})
	t.Cleanup(func() { close(hang) }) // before the reader's own
	want := publish(t, b, 0, 6)
	bustest.Wait(t, "three", func() bool { return len(r.taken()) == 3 })
	if err := dying.Close(); err != nil { // its keep-alives end with the connection, as with a killed process
		t.Fatal(err)
	}
	next := read(t, b, nil)
	bustest.Wait(t, "the others", func() bool { return len(next.taken()) == 3 })
	if got := next.taken(); !slices.Equal(got, want[3:]) {
		t.Errorf("the next reader got %v, want %v", got, want[3:])
	}
	if !next.places[0].Redelivered || next.places[1].Redelivered {
		t.Errorf("places %+v", next.places)
	}
}

// TestDeliverShared: two readers share the work and the order stays.
func TestDeliverShared(t *testing.T) {
	b, e := embedded(t)
	other := bustest.Open(t, bus.Config{Embedded: e})
	var mu sync.Mutex
	var got []string
	note := func(id string) error {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, id)
		return nil
	}
	x, y := read(t, b, note), read(t, other, note)
	want := publish(t, b, 0, 200)
	bustest.Wait(t, "all", func() bool { return len(x.taken())+len(y.taken()) >= len(want) })
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	x.stop()
	y.stop()
	for _, p := range append(x.places, y.places...) {
		if p.Lost != 0 {
			t.Errorf("%+v counts what the other reader had", p)
		}
	}
}

// TestDeliverConsumerLost: a consumer that was removed is made again where it was, also when this process has handled
// nothing yet: because the hook is new, and because an earlier process did.
func TestDeliverConsumerLost(t *testing.T) {
	b, e := embedded(t)
	nc, err := nats.Connect("nats://" + e.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	publish(t, b, 0, 5) // before: not for the hook
	for round := range 2 {
		r := read(t, b, nil)
		if err := js.DeleteConsumer(context.Background(), bus.StreamEvents, hookName); err != nil {
			t.Fatal(err)
		}
		want := publish(t, b, 100*(round+1), 100*(round+1)+3)
		bustest.Wait(t, "all", func() bool { return len(r.taken()) >= len(want) })
		r.stop()
		if got := r.taken(); !slices.Equal(got, want) {
			t.Errorf("round %d: got %v, want %v", round, got, want)
		}
	}
}

// TestDeliverCountsLost: a hook that is behind loses what the stream removes, and knows how many.
func TestDeliverCountsLost(t *testing.T) {
	b, e := embedded(t)
	down, up := make(chan struct{}), make(chan struct{})
	r := read(t, b, func(id string) error {
		if id == "a0003" {
			close(down)
			<-up
		}
		return nil
	})
	publish(t, b, 0, 10)
	<-down
	nc, err := nats.Connect("nats://" + e.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(context.Background(), bus.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(context.Background(), jetstream.WithPurgeSequence(8)); err != nil { // 4, in the hook's hands, to 7
		t.Fatal(err)
	}
	close(up)
	bustest.Wait(t, "the rest", func() bool { return len(r.taken()) == 7 })
	r.stop()
	if r.places[3].Seq != 4 || r.places[4].Seq != 8 || r.places[4].Lost != 3 || r.places[5].Lost != 0 {
		t.Errorf("places %+v", r.places)
	}
}

// TestHookDoesNotHoldTheStream: the full event stream makes room past a hook that nobody reads, and says so.
func TestHookDoesNotHoldTheStream(t *testing.T) {
	e, err := bus.StartEmbedded(context.Background(), t.TempDir(), bus.Listen{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Shutdown)
	tel := telemetry.Discard("classify")
	b, err := bus.Connect(context.Background(), tel, t.Name(), bus.Config{Embedded: e, EventsMaxBytes: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	if err := b.EnsureStreams(context.Background()); err != nil {
		t.Fatal(err)
	}
	r := read(t, b, nil)
	r.stop()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for i := range 90 { // about 1 KiB each
		a := &eventv1.Attack{Id: fmt.Sprintf("b%d", i), Revision: 1, Sensor: "s", TopSources: slices.Repeat([]string{"192.0.2.1"}, 80)}
		if err := b.PublishAttack(ctx, a); err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
	}
	st, err := b.State(ctx, bus.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	if got := testutil.ToFloat64(tel.ErrorCounter("hook_lost")); got == 0 || got != float64(st.FirstSeq-1) {
		t.Errorf("%v events are counted as lost, the stream begins at %d", got, st.FirstSeq)
	}
}

// TestEVEStoredOnce: a line that is published again is stored once.
func TestEVEStoredOnce(t *testing.T) {
	b, _ := embedded(t)
	ctx := context.Background()
	if err := b.EnsureEVE(ctx); err != nil {
		t.Fatal(err)
	}
	lines := []bus.EVELine{{Type: "alert", ID: "1", JSON: []byte(`{"a":1}`)}, {Type: "flow", ID: "2", JSON: []byte(`{"b":2}`)}}
	for range 2 {
		if err := b.PublishEVE(ctx, lines); err != nil {
			t.Fatal(err)
		}
	}
	if st, err := b.State(ctx, bus.StreamEVE); err != nil || st.Messages != 2 {
		t.Errorf("the stream holds %+v, %v", st, err)
	}
}

// BenchmarkDeliver is how fast one hook goes through events, one at a time, on an embedded server.
func BenchmarkDeliver(bench *testing.B) {
	e, err := bus.StartEmbedded(context.Background(), bench.TempDir(), bus.Listen{})
	if err != nil {
		bench.Fatal(err)
	}
	defer e.Shutdown()
	b := bustest.Open(bench, bus.Config{Embedded: e})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	n, total := 0, bench.N
	all, there, begin := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		_ = b.DeliverEvents(ctx, hookName, func(context.Context, *bus.EventMsg, bus.Place) error {
			if n++; n == 1 {
				close(there)
				<-begin
			}
			if n == total+1 {
				close(all)
			}
			return nil
		})
	}()
	for i := 0; ; i++ { // until the consumer is there
		if err := b.PublishAttack(ctx, &eventv1.Attack{Id: fmt.Sprint("w", i), Revision: 1, Sensor: "s"}); err != nil {
			bench.Fatal(err)
		}
		select {
		case <-there:
		case <-time.After(50 * time.Millisecond):
			continue
		}
		break
	}
	for i := range total {
		if err := b.PublishAttack(ctx, &eventv1.Attack{Id: fmt.Sprint("x", i), Revision: 1, Sensor: "s"}); err != nil {
			bench.Fatal(err)
		}
	}
	bench.ResetTimer()
	close(begin)
	<-all
}
