package ingest

import (
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

var t0 = time.Unix(1_700_000_000, 0)

// batchOf returns a batch with n opens and about extra bytes of payload.
func batchOf(o *outbox, n, extra int) *flowv1.FlowBatch {
	b := o.empty()
	for i := range n {
		flow.AppendOpen(b, &flow.Open{ID: uint64(i)})
	}
	if extra > 0 {
		flow.AppendSegment(b, 0, 0, 0, 1, make([]byte, extra))
	}
	return b
}

func checkCounts(t *testing.T, o *outbox, want outboxCounts) {
	t.Helper()
	got := o.stats()
	if got.BatchesMade != got.BatchesAcked+got.BatchesDropped+got.BatchesPending {
		t.Errorf("batches do not add up: %+v", got)
	}
	if got.WindowsMade != got.WindowsAcked+got.WindowsDropped+got.WindowsPending {
		t.Errorf("windows do not add up: %+v", got)
	}
	got.BytesPending = 0
	if got != want {
		t.Errorf("counts\n got %+v\nwant %+v", got, want)
	}
}

func TestOutboxAcknowledges(t *testing.T) {
	o := newOutbox(newStock("s", 7), 1<<20)
	for range 3 {
		o.put(batchOf(o, 2, 0), t0)
	}
	var taken []*parcel
	for p := o.take(t0); p != nil; p = o.take(t0) {
		o.sent(p)
		taken = append(taken, p)
	}
	if len(taken) != 3 || taken[2].number != 3 || taken[0].batch.Sensor != "s" || taken[0].batch.Epoch != 7 || taken[0].batch.Batch != 1 {
		t.Fatalf("took %d parcels: %+v", len(taken), taken)
	}
	// Out of order, twice, and numbers that were never given.
	for _, c := range []struct {
		number uint64
		want   bool
	}{{2, true}, {2, false}, {0, false}, {9, false}, {1, true}, {1, false}, {3, true}, {3, false}} {
		if got := o.ackBatch(c.number, 2, 1, t0); got != c.want {
			t.Errorf("ack of %d: %v, want %v", c.number, got, c.want)
		}
	}
	checkCounts(t, o, outboxCounts{BatchesMade: 3, BatchesAcked: 3, RecordsAcked: 6, Published: 6, Unpublished: 3})
	if !o.idle() || o.stats().BytesPending != 0 {
		t.Error("the outbox is not empty")
	}
}

func TestOutboxDropsTheOldest(t *testing.T) {
	o := newOutbox(newStock("s", 1), 10_000)
	for range 5 {
		o.put(batchOf(o, 1, 3000), t0) // three fit
	}
	checkCounts(t, o, outboxCounts{BatchesMade: 5, BatchesDropped: 2, BatchesPending: 3, RecordsDropped: 4})
	p := o.take(t0)
	if p.number != 3 {
		t.Fatalf("the oldest left is %d, want 3", p.number)
	}
	// A batch that is on its way may be dropped too; its late acknowledgement does not count.
	o.put(batchOf(o, 1, 3000), t0)
	o.sent(p)
	if o.ackBatch(3, 2, 0, t0) {
		t.Error("a dropped batch was acknowledged")
	}
	checkCounts(t, o, outboxCounts{BatchesMade: 6, BatchesDropped: 3, BatchesPending: 3, RecordsDropped: 6})
	if p := o.take(t0); p.number != 4 {
		t.Errorf("next is %d, want 4", p.number)
	}
	// A batch larger than the bound alone is kept: dropping it would drop everything forever.
	o = newOutbox(newStock("s", 1), 10)
	o.put(batchOf(o, 1, 100), t0)
	checkCounts(t, o, outboxCounts{BatchesMade: 1, BatchesPending: 1})
}

func TestOutboxSendsAgain(t *testing.T) {
	o := newOutbox(newStock("s", 1), 1<<20)
	for range 4 {
		o.put(batchOf(o, 1, 0), t0)
	}
	for range 3 {
		o.sent(o.take(t0))
	}
	o.ackBatch(2, 1, 0, t0)
	o.rewind(t0)
	var again []uint64
	for p := o.take(t0); p != nil; p = o.take(t0) {
		o.sent(p)
		again = append(again, p.number)
	}
	if len(again) != 3 || again[0] != 1 || again[1] != 3 || again[2] != 4 {
		t.Fatalf("sent again %v, want [1 3 4]", again)
	}
	checkCounts(t, o, outboxCounts{BatchesMade: 4, BatchesAcked: 1, BatchesPending: 3, RecordsAcked: 1, Published: 1, Resent: 2})
}

func TestOutboxReusesMemoryOnlyWhenFree(t *testing.T) {
	o := newOutbox(newStock("s", 1), 1<<20)
	o.put(batchOf(o, 1, 0), t0)
	p := o.take(t0)
	o.ackBatch(1, 1, 0, t0) // the answer overtakes the end of Send
	if p.batch.Opens.Count != 1 {
		t.Fatal("the batch was emptied while gRPC had it")
	}
	o.sent(p)
	if p.batch.Opens.Count != 0 {
		t.Fatal("the batch was not emptied for reuse")
	}
}

func TestOutboxWindows(t *testing.T) {
	o := newOutbox(newStock("s", 1), 1<<20)
	o.put(batchOf(o, 1, 0), t0)
	o.putWindow(o.stamp(&flowv1.Window{}), t0)
	p := o.take(t0)
	if p.window == nil || p.window.Sequence != 1 || p.window.Sensor != "s" {
		t.Fatalf("a window goes first; got %+v", p)
	}
	o.sent(p)
	if o.ackWindow(1, t0) == nil || o.ackWindow(1, t0) != nil {
		t.Error("a window is acknowledged once")
	}
	// Too old to be sent, whether it never was or has to be again.
	o.putWindow(o.stamp(&flowv1.Window{}), t0)
	o.sent(o.take(t0))
	o.putWindow(o.stamp(&flowv1.Window{}), t0.Add(900*time.Millisecond))
	o.rewind(t0.Add(1500 * time.Millisecond))
	if p := o.take(t0.Add(1500 * time.Millisecond)); p.number != 3 {
		t.Errorf("window %d is next, want 3", p.number)
	}
	checkCounts(t, o, outboxCounts{BatchesMade: 1, BatchesPending: 1,
		WindowsMade: 3, WindowsAcked: 1, WindowsDropped: 1, WindowsPending: 1})
	// The number of windows is bounded even if they are fresh.
	for range 3 * windowLimit {
		o.putWindow(o.stamp(&flowv1.Window{}), t0.Add(1600*time.Millisecond))
	}
	if n := o.stats().WindowsPending; n != windowLimit {
		t.Errorf("%d windows wait, want %d", n, windowLimit)
	}
}

func TestOutboxSilence(t *testing.T) {
	o := newOutbox(newStock("s", 1), 1<<20)
	at := func(d time.Duration) time.Time { return t0.Add(d) }
	if d := o.silence(at(time.Hour)); d != 0 {
		t.Errorf("nothing was sent, silence is %v", d)
	}
	o.put(batchOf(o, 1, 0), t0)
	o.put(batchOf(o, 1, 0), t0)
	if d := o.silence(at(time.Hour)); d != 0 {
		t.Errorf("nothing was sent, silence is %v", d)
	}
	o.sent(o.take(at(0)))
	o.sent(o.take(at(time.Second)))
	if d := o.silence(at(3 * time.Second)); d != 3*time.Second {
		t.Errorf("silence is %v, want 3s", d)
	}
	// Only the oldest counts: an answer that is missing among others is missing.
	o.putWindow(o.stamp(&flowv1.Window{}), at(2*time.Second))
	o.sent(o.take(at(2 * time.Second)))
	o.ackWindow(1, at(2500*time.Millisecond))
	o.ackBatch(2, 1, 0, at(2500*time.Millisecond))
	if d := o.silence(at(3 * time.Second)); d != 3*time.Second {
		t.Errorf("silence is %v, want 3s", d)
	}
	o.put(batchOf(o, 1, 0), t0)
	o.sent(o.take(at(time.Second)))
	// Progress counts: a slow classifier is not a silent one.
	o.ackBatch(1, 1, 0, at(2*time.Second))
	if d := o.silence(at(3 * time.Second)); d != time.Second {
		t.Errorf("silence is %v, want 1s", d)
	}
	o.rewind(at(4 * time.Second))
	if d := o.silence(at(9 * time.Second)); d != 0 {
		t.Errorf("nothing was sent on the new stream, silence is %v", d)
	}
}

func TestOutboxAllocations(t *testing.T) {
	o := newOutbox(newStock("s", 1), 1<<20)
	n := testing.AllocsPerRun(100, func() {
		o.put(batchOf(o, 10, 100), t0)
		p := o.take(t0)
		o.sent(p)
		o.ackBatch(p.number, 10, 0, t0)
	})
	// The parcel and, now and then, the list; never the columns.
	if n > 4 {
		t.Errorf("%v allocations a batch", n)
	}
}
