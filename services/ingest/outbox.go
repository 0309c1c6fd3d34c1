package ingest

import (
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

const (
	// windowWorth is the age at which a window is no longer worth sending: detection is about now.
	windowWorth = time.Second
	// windowLimit bounds the windows that wait for an acknowledgement.
	windowLimit = 64
	// readyBatches are kept for reuse, each with room for batchPayload bytes of payload, 4 MiB in all. That room is what the
	// payload of a flood takes in one batch; a batch that has to find it first stops its queue for milliseconds.
	readyBatches = 32
	batchPayload = 1 << 17
)

// outbox keeps batches and windows from when a queue hands them over until classify acknowledges them. It is
// bounded in bytes of batches: Put never blocks, it drops the oldest batch. All methods may be called by
// several goroutines; take and sent belong to the one that sends.
//
// Batches are numbered without gaps in the order of Put and leave at the front only, so a number finds its
// parcel by subtraction.
type outbox struct {
	sensor string
	epoch  uint64
	limit  int64
	wake   chan struct{} // holds one token while there may be something to send

	readyMu sync.Mutex
	ready   []*flowv1.FlowBatch // empty ones

	mu       sync.Mutex
	parcels  []*parcel // oldest first; acknowledged ones in the middle stay until the front moves on
	next     int       // index of the first that is not sent
	number   uint64    // of the last batch made
	bytes    int64     // of batches not acknowledged
	windows  []*parcel
	sequence uint64
	// When the oldest batch or window was last acknowledged or dropped, so that another became the oldest.
	batchMoved, windowMoved time.Time
	counts                  outboxCounts
}

// outboxCounts are the outbox's part of the ledger: batches made = acked + dropped + pending, and the same for
// windows.
type outboxCounts struct {
	BatchesMade, BatchesAcked, BatchesDropped, BatchesPending uint64
	RecordsAcked, RecordsDropped, Published, Unpublished      uint64
	WindowsMade, WindowsAcked, WindowsDropped, WindowsPending uint64
	Resent, BytesPending                                      uint64
}

// parcel is one batch or one window on its way.
type parcel struct {
	batch   *flowv1.FlowBatch
	window  *flowv1.Window
	number  uint64
	records int
	bytes   int64
	made    time.Time
	sentAt  time.Time // zero: waiting
	again   bool      // was sent before
	busy    bool      // being marshalled by the sender
	gone    bool      // acknowledged or dropped
}

func newOutbox(sensor string, epoch uint64, limit int64) *outbox {
	o := &outbox{
		sensor: sensor, epoch: epoch, limit: limit, wake: make(chan struct{}, 1),
	}
	for range readyBatches {
		data := make([]byte, batchPayload)
		clear(data) // written, so that the memory is there
		o.ready = append(o.ready, &flowv1.FlowBatch{Segments: &flowv1.FlowSegments{Data: data[:0]}})
	}
	return o
}

// empty returns a batch to fill, the one given back last: its columns have grown to what traffic takes.
func (o *outbox) empty() *flowv1.FlowBatch {
	o.readyMu.Lock()
	defer o.readyMu.Unlock()
	last := len(o.ready) - 1
	if last < 0 {
		return &flowv1.FlowBatch{}
	}
	b := o.ready[last]
	o.ready = o.ready[:last]
	return b
}

func (o *outbox) recycle(b *flowv1.FlowBatch) {
	flow.Reset(b)
	o.readyMu.Lock()
	defer o.readyMu.Unlock()
	if len(o.ready) < readyBatches {
		o.ready = append(o.ready, b)
	}
}

// put takes a batch over, numbers it, and drops the oldest batches that no longer fit.
func (o *outbox) put(b *flowv1.FlowBatch, now time.Time) {
	b.Sensor, b.Epoch = o.sensor, o.epoch
	size := int64(proto.Size(b))
	p := &parcel{batch: b, records: flow.Records(b), bytes: size, made: now}
	o.mu.Lock()
	o.number++
	p.number, b.Batch = o.number, o.number
	o.parcels = append(o.parcels, p)
	o.bytes += size
	o.counts.BatchesMade++
	for o.bytes > o.limit && len(o.parcels) > 1 {
		o.dropOldest(now)
	}
	o.mu.Unlock()
	o.signal()
}

// dropOldest takes the front parcel out unacknowledged. Its memory is not reused: it may be with gRPC.
func (o *outbox) dropOldest(now time.Time) {
	p := o.parcels[0]
	if !p.gone {
		p.gone = true
		o.bytes -= p.bytes
		o.counts.BatchesDropped++
		o.counts.RecordsDropped += uint64(p.records) //nolint:gosec // a count
	}
	o.advance(now)
}

// advance removes parcels that are done with from the front.
func (o *outbox) advance(now time.Time) {
	n := 0
	for n < len(o.parcels) && o.parcels[n].gone {
		o.parcels[n] = nil
		n++
	}
	if n > 0 {
		o.batchMoved = now
	}
	o.parcels = o.parcels[n:]
	o.next = max(o.next-n, 0)
}

// putWindow takes a window over and numbers it.
func (o *outbox) putWindow(w *flowv1.Window, now time.Time) {
	w.Sensor, w.Epoch = o.sensor, o.epoch
	o.mu.Lock()
	o.sequence++
	w.Sequence = o.sequence
	o.windows = append(o.windows, &parcel{window: w, number: o.sequence, made: now})
	o.counts.WindowsMade++
	o.expireWindows(now)
	o.mu.Unlock()
	o.signal()
}

// expireWindows drops waiting windows that are too old, and the oldest ones beyond the limit.
func (o *outbox) expireWindows(now time.Time) {
	kept := o.windows[:0]
	excess := len(o.windows) - windowLimit
	for i, p := range o.windows {
		if i < excess || (p.sentAt.IsZero() && now.Sub(p.made) > windowWorth) {
			o.counts.WindowsDropped++
			continue
		}
		kept = append(kept, p)
	}
	if len(kept) < len(o.windows) {
		o.windowMoved = now
	}
	clear(o.windows[len(kept):])
	o.windows = kept
}

func (o *outbox) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// take returns the next window or batch to send and marks it as sent, or nil. sent must follow before the
// next take.
func (o *outbox) take(now time.Time) *parcel {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.expireWindows(now)
	for _, p := range o.windows {
		if p.sentAt.IsZero() {
			p.sentAt, p.busy = now, true
			return p
		}
	}
	for ; o.next < len(o.parcels); o.next++ {
		p := o.parcels[o.next]
		if p.gone {
			continue
		}
		o.next++
		p.sentAt, p.busy = now, true
		if p.again {
			o.counts.Resent++
		}
		return p
	}
	return nil
}

// sent says that gRPC is done with the parcel's memory.
func (o *outbox) sent(p *parcel) {
	o.mu.Lock()
	p.busy = false
	reuse := p.gone && p.batch != nil
	o.mu.Unlock()
	if reuse {
		o.recycle(p.batch)
	}
}

// ackBatch takes an acknowledged batch out. An unknown number (dropped meanwhile, acknowledged twice) is false.
func (o *outbox) ackBatch(number, published, unpublished uint64, now time.Time) bool {
	o.mu.Lock()
	if len(o.parcels) == 0 || number < o.parcels[0].number || number > o.number {
		o.mu.Unlock()
		return false
	}
	p := o.parcels[number-o.parcels[0].number]
	if p.gone {
		o.mu.Unlock()
		return false
	}
	p.gone = true
	o.bytes -= p.bytes
	o.counts.BatchesAcked++
	o.counts.RecordsAcked += uint64(p.records) //nolint:gosec // a count
	o.counts.Published += published
	o.counts.Unpublished += unpublished
	o.advance(now)
	reuse := !p.busy
	o.mu.Unlock()
	if reuse {
		o.recycle(p.batch)
	}
	return true
}

// ackWindow takes an acknowledged window out and returns its parcel, nil if it is not there any more.
func (o *outbox) ackWindow(number uint64, now time.Time) *parcel {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, p := range o.windows {
		if p.number == number {
			if i == 0 {
				o.windowMoved = now
			}
			o.windows = slices.Delete(o.windows, i, i+1)
			o.counts.WindowsAcked++
			return p
		}
	}
	return nil
}

// rewind makes everything unacknowledged wait again, for a new stream.
func (o *outbox) rewind(now time.Time) {
	o.mu.Lock()
	for _, list := range [][]*parcel{o.parcels, o.windows} {
		for _, p := range list {
			if !p.sentAt.IsZero() && !p.gone {
				p.sentAt, p.again = time.Time{}, true
			}
		}
	}
	o.next = 0
	o.expireWindows(now)
	o.mu.Unlock()
	o.signal()
}

// silence is how long the oldest batch or window that was sent has been the oldest without being
// acknowledged; 0 when nothing is on its way. A classifier that works through a backlog in order is slow, not
// silent.
func (o *outbox) silence(now time.Time) time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	return max(waited(o.parcels, o.batchMoved, now), waited(o.windows, o.windowMoved, now))
}

func waited(list []*parcel, moved, now time.Time) time.Duration {
	if len(list) == 0 || list[0].sentAt.IsZero() {
		return 0
	}
	since := list[0].sentAt
	if moved.After(since) {
		since = moved
	}
	return now.Sub(since)
}

// idle reports whether nothing waits for an acknowledgement.
func (o *outbox) idle() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.parcels) == 0 && len(o.windows) == 0
}

// stats returns the counts at one moment.
func (o *outbox) stats() outboxCounts {
	o.mu.Lock()
	defer o.mu.Unlock()
	c := o.counts
	c.BatchesPending = c.BatchesMade - c.BatchesAcked - c.BatchesDropped
	c.WindowsPending = uint64(len(o.windows))
	c.BytesPending = uint64(max(o.bytes, 0)) //nolint:gosec // not negative
	return c
}
