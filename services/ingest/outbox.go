package ingest

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

const (
	// windowWorth is the age at which a window is no longer worth sending: detection is about now. A capture's windows wait.
	windowWorth = time.Second
	// windowLimit bounds the windows that wait for an acknowledgement.
	windowLimit = 64
	// readyBatches are kept for reuse, each with room for batchPayload bytes of payload, 4 MiB in all. That room is what the
	// payload of a flood takes in one batch; a batch that has to find it first stops its queue for milliseconds.
	readyBatches = 32
	batchPayload = 1 << 17
)

// stock is what a sensor's outboxes share: numbers, and empty batches. Its methods may be called by several goroutines.
type stock struct {
	sensor           string
	epoch            uint64
	number, sequence atomic.Uint64 // of the last batch and window made

	readyMu sync.Mutex
	ready   []*flowv1.FlowBatch // empty ones
}

// outbox keeps batches and windows for a classifier from when a queue hands them over until it acknowledges them. It is
// bounded in bytes of batches: Put never blocks, it drops the oldest batch. All methods may be called by
// several goroutines; take and sent belong to the one that sends.
//
// Numbers are the sensor's, because what a batch leads to is stored under its number: those of one outbox have gaps and
// ascend. Batches leave at the front only.
type outbox struct {
	*stock
	limit int64
	worth time.Duration // the age at which a window that was not sent is dropped
	wake  chan struct{} // holds one token while there may be something to send

	mu      sync.Mutex
	parcels []*parcel // by number; acknowledged ones in the middle stay until the front moves on
	next    int       // index of the first that may not be sent
	bytes   int64     // of batches not acknowledged
	windows []*parcel
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
	Resent, Moved, BytesPending                               uint64
}

func (c *outboxCounts) add(o outboxCounts) {
	c.BatchesMade, c.BatchesAcked, c.BatchesDropped = c.BatchesMade+o.BatchesMade, c.BatchesAcked+o.BatchesAcked, c.BatchesDropped+o.BatchesDropped
	c.BatchesPending, c.Resent, c.Moved, c.BytesPending = c.BatchesPending+o.BatchesPending, c.Resent+o.Resent, c.Moved+o.Moved, c.BytesPending+o.BytesPending
	c.RecordsAcked, c.RecordsDropped = c.RecordsAcked+o.RecordsAcked, c.RecordsDropped+o.RecordsDropped
	c.Published, c.Unpublished = c.Published+o.Published, c.Unpublished+o.Unpublished
	c.WindowsMade, c.WindowsAcked, c.WindowsDropped = c.WindowsMade+o.WindowsMade, c.WindowsAcked+o.WindowsAcked, c.WindowsDropped+o.WindowsDropped
	c.WindowsPending += o.WindowsPending
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
	gone    bool      // acknowledged, dropped or moved
	moved   bool      // it was in two outboxes: its memory is not reused, because either sender may have it
}

func newStock(sensor string, epoch uint64) *stock {
	s := &stock{sensor: sensor, epoch: epoch}
	for range readyBatches {
		data := make([]byte, batchPayload)
		clear(data) // written, so that the memory is there
		s.ready = append(s.ready, &flowv1.FlowBatch{Segments: &flowv1.FlowSegments{Data: data[:0]}})
	}
	return s
}

// empty returns a batch to fill, the one given back last: its columns have grown to what traffic takes.
func (s *stock) empty() *flowv1.FlowBatch {
	s.readyMu.Lock()
	defer s.readyMu.Unlock()
	last := len(s.ready) - 1
	if last < 0 {
		return &flowv1.FlowBatch{}
	}
	b := s.ready[last]
	s.ready = s.ready[:last]
	return b
}

func (s *stock) recycle(b *flowv1.FlowBatch) {
	flow.Reset(b)
	s.readyMu.Lock()
	defer s.readyMu.Unlock()
	if len(s.ready) < readyBatches {
		s.ready = append(s.ready, b)
	}
}

// stamp says whose window it is and numbers it; the parts that it is split into have the same number.
func (s *stock) stamp(w *flowv1.Window) *flowv1.Window {
	w.Sensor, w.Epoch, w.Sequence = s.sensor, s.epoch, s.sequence.Add(1)
	return w
}

func newOutbox(s *stock, limit int64) *outbox {
	return &outbox{stock: s, limit: limit, worth: windowWorth, wake: make(chan struct{}, 1)}
}

// put takes a batch over, numbers it, and drops the oldest batches that no longer fit.
func (o *outbox) put(b *flowv1.FlowBatch, now time.Time) {
	b.Sensor, b.Epoch = o.sensor, o.epoch
	size := int64(proto.Size(b))
	p := &parcel{batch: b, records: flow.Records(b), bytes: size, made: now}
	o.mu.Lock()
	p.number = o.number.Add(1)
	b.Batch = p.number
	o.parcels = append(o.parcels, p)
	o.bytes += size
	o.counts.BatchesMade++
	for o.bytes > o.limit && len(o.parcels) > 1 {
		o.dropOldest(now)
	}
	o.mu.Unlock()
	o.signal()
}

// room reports whether less than half of what may wait does, so that who can wait puts nothing that would be dropped.
func (o *outbox) room() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.bytes <= o.limit/2 && len(o.windows) <= windowLimit/2
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

// putWindow takes a stamped window over.
func (o *outbox) putWindow(w *flowv1.Window, now time.Time) {
	o.mu.Lock()
	o.windows = append(o.windows, &parcel{window: w, number: w.GetSequence(), made: now})
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
		if i < excess || (p.sentAt.IsZero() && now.Sub(p.made) > o.worth) {
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
		if p.gone || !p.sentAt.IsZero() {
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
	reuse := p.gone && p.batch != nil && !p.moved
	o.mu.Unlock()
	if reuse {
		o.recycle(p.batch)
	}
}

// ackBatch takes an acknowledged batch out. An unknown number (dropped or moved meanwhile, acknowledged twice) is false.
func (o *outbox) ackBatch(number, published, unpublished uint64, now time.Time) bool {
	o.mu.Lock()
	i, ok := slices.BinarySearchFunc(o.parcels, number, func(p *parcel, n uint64) int { return cmp.Compare(p.number, n) })
	if !ok || o.parcels[i].gone {
		o.mu.Unlock()
		return false
	}
	p := o.parcels[i]
	p.gone = true
	o.bytes -= p.bytes
	o.counts.BatchesAcked++
	o.counts.RecordsAcked += uint64(p.records) //nolint:gosec // a count
	o.counts.Published += published
	o.counts.Unpublished += unpublished
	o.advance(now)
	reuse := !p.busy && !p.moved
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

// leave takes every batch out that is not acknowledged, for the outbox of another classifier. Windows stay: they are about
// now, and too old by the time a classifier is given up.
func (o *outbox) leave() []*parcel {
	o.mu.Lock()
	defer o.mu.Unlock()
	var list []*parcel
	for _, p := range o.parcels {
		if p.gone {
			continue
		}
		list = append(list, &parcel{
			batch: p.batch, number: p.number, records: p.records, bytes: p.bytes, made: p.made, again: p.again || !p.sentAt.IsZero(), moved: true,
		})
		p.gone, p.moved = true, true
		o.bytes -= p.bytes
	}
	o.counts.BatchesMade -= uint64(len(list)) // they count where they are now
	o.parcels, o.next = nil, 0
	return list
}

// takeOver takes the batches in that left another outbox, and drops the oldest batches that no longer fit.
func (o *outbox) takeOver(list []*parcel, now time.Time) {
	if len(list) == 0 {
		return
	}
	o.mu.Lock()
	for _, p := range list {
		o.bytes += p.bytes
	}
	o.counts.BatchesMade += uint64(len(list))
	o.counts.Moved += uint64(len(list))
	o.parcels = append(o.parcels, list...)
	slices.SortFunc(o.parcels, func(a, b *parcel) int { return cmp.Compare(a.number, b.number) })
	o.next = 0
	for o.bytes > o.limit && len(o.parcels) > 1 {
		o.dropOldest(now)
	}
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
