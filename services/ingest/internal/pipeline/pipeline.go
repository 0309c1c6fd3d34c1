// Package pipeline runs one rx queue: frame, decode, flow table, window, batch. All of it is plain function calls
// in the goroutine that owns the queue; other goroutines may only read the counts.
package pipeline

import (
	"sync/atomic"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/packet"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	"github.com/tidegate-mesh/tidegate/services/ingest/internal/flowtable"
	"github.com/tidegate-mesh/tidegate/services/ingest/internal/window"
)

// MaxBatchBytes is the largest batch: what fits a 1 MiB message with room for its sensor and trace context.
const MaxBatchBytes = 1<<20 - 1<<12

// headroom below MaxBatchBytes at which a batch is handed over: one call of the flow table adds at most about 2,048
// ends with parts and updates, and a thousand summaries.
const headroom = 1 << 19

// Config of a Queue.
type Config struct {
	Flow   flowtable.Config
	Window window.Config
	// BatchAge is how old a batch may grow before it is handed over. 0 = 4 ms, so that with the time between two
	// calls of Poll the delay stays below 5 ms. Negative = never because of age.
	BatchAge time.Duration
	// BatchBytes is the size at which a batch is handed over whatever its age. 0 = the largest that leaves headroom below
	// MaxBatchBytes.
	BatchBytes int
	// Inner: Frames accounts a tunnelled packet by what it carries, as FrameLink always does.
	Inner bool
	// CountAge is how old Counts and Flows may be. 0 = 1 ms.
	CountAge time.Duration
	// WindowLength is the time between window boundaries, which are multiples of it. 0 = 100 ms.
	WindowLength time.Duration

	// Classifiers is how many batches are filled side by side, one for each; 0 = 1. They are handed over together, and
	// BatchBytes is of all of them.
	Classifiers int
	// Choose says whose batch a flow's records go to, by its key in the direction of its first packet. Required for more
	// than one.
	Choose func(*flow.Key) int
	// OnBatch takes a classifier's batch over and returns an empty one for what follows; it must not block. Required.
	OnBatch func(classifier int, b *flowv1.FlowBatch) *flowv1.FlowBatch
	// OnWindow takes the builder of a window that ended, with StartNs, EndNs and Flows set, and returns an empty
	// one; it must not block. When it returns nil it took nothing, and the window goes on to the next boundary.
	// Without OnWindow there are no windows: batches are handed over by their age and size only.
	OnWindow func(*window.Builder) *window.Builder
	// OnSpent is told of flows of which no more payload will be copied though nothing came against them (see
	// flowtable.Observation); it may call Enough. Where one side of flows is never seen, classify waits for it in vain.
	OnSpent func(id uint64)
	// OnBack is told by how much Poll's time is behind the newest that it was given: the system's clock was set back. nil is allowed.
	OnBack func(by time.Duration)
}

// clockBack is how far Poll's time may be behind the newest. Less than that is waited for: windows with times that others had
// before would be added to those, as those of several sensors are.
const clockBack = int64(2 * time.Second)

// DefaultConfig returns the defaults for live traffic; the callbacks are the caller's.
func DefaultConfig() Config {
	return Config{
		Flow: flowtable.DefaultConfig(), Window: window.DefaultConfig(),
		BatchAge: 4 * time.Millisecond, WindowLength: 100 * time.Millisecond,
	}
}

// Queue is one rx queue's pipeline. Its methods, but for Counts and Flows, belong to one goroutine.
type Queue struct {
	cfg   Config
	table *flowtable.Table
	w     *window.Builder // nil: no windows
	out   flowtable.Out

	batchNs     int64 // when the batch got its first record
	batchBegun  bool
	polled      int64 // the newest time that Poll was given
	windowStart int64
	windowEnd   int64
	atWindow    flowtable.Stats // when the window began
	failed      func(*flowtable.Failure)
	publishedNs int64

	// The frames at hand.
	packets       [flowtable.WarmMax]packet.Packet
	reasons       [flowtable.WarmMax]packet.Reason
	hashes, known [flowtable.WarmMax]uint32

	// Plain counts of the owner; publish makes them visible.
	received, accounted, bytes uint64
	undecodable                [packet.NumReasons]uint64
	tunnels                    [packet.NumTunnels]uint64
	unopened                   [numUnopened]uint64
	inner                      packet.Packet // of unwrap
	public                     struct {
		received, accounted, bytes atomic.Uint64
		undecodable                [packet.NumReasons]atomic.Uint64
		tunnels                    [packet.NumTunnels]atomic.Uint64
		unopened                   [numUnopened]atomic.Uint64
		flows                      [7]atomic.Uint64
	}
}

// Counts are packets since New: Received = Accounted + the sum of Undecodable. Frames that are not IP are
// accounted.
type Counts struct {
	Received, Accounted, Bytes uint64
	Undecodable                [packet.NumReasons]uint64 // by packet.Reason; those of OK and NotIP stay 0
	// Where packets are accounted by what tunnels carry: how many tunnels were looked into, by packet.Tunnel, and how many
	// not, by Unopened. A packet in several tunnels counts for each of them.
	Tunnels  [packet.NumTunnels]uint64
	Unopened [numUnopened]uint64
}

// Unopened says why a tunnelled packet is accounted by its outer header though it is not to be.
type Unopened uint8

// The reasons. Their String forms are fixed: they are metric labels.
const (
	// Fragment is a part of a tunnel packet; all its parts stay with the tunnel's flow.
	Fragment Unopened = iota
	// NoPacket is a tunnel packet in which no IP packet with whole headers begins: one of the tunnel's own protocol, one
	// with ARP or another protocol inside, or a damaged one.
	NoPacket
	// TooDeep is a tunnel in four others: a loop, or a crafted packet.
	TooDeep

	numUnopened
)

// String returns the fixed name of the reason.
func (u Unopened) String() string { return [...]string{"fragment", "no_packet", "too_deep"}[u] }

// New returns a queue with an empty batch and window. queue must differ between the queues of a sensor.
func New(cfg Config, queue uint8) *Queue {
	if cfg.BatchAge == 0 {
		cfg.BatchAge = 4 * time.Millisecond
	}
	if cfg.BatchBytes <= 0 {
		cfg.BatchBytes = MaxBatchBytes - headroom
	}
	if cfg.CountAge <= 0 {
		cfg.CountAge = time.Millisecond
	}
	if cfg.WindowLength <= 0 {
		cfg.WindowLength = 100 * time.Millisecond
	}
	q := &Queue{
		cfg: cfg, table: flowtable.New(cfg.Flow, queue), out: flowtable.Out{Choose: cfg.Choose},
		failed: func(*flowtable.Failure) {},
	}
	for range max(cfg.Classifiers, 1) {
		q.out.Batches = append(q.out.Batches, &flowv1.FlowBatch{})
	}
	if cfg.OnWindow != nil {
		q.w = window.New(cfg.Window)
		q.failed = func(f *flowtable.Failure) { q.w.Failure(f) }
	}
	return q
}

// Frames takes a batch of frames that arrived at nowNs (Unix ns) on the sensor's interface port, after running
// timers and boundaries up to nowNs. The frames are borrowed for the call.
func (q *Queue) Frames(frames [][]byte, nowNs int64, port uint8) {
	q.Poll(nowNs)
	for len(frames) > 0 {
		n := min(len(frames), flowtable.WarmMax)
		known := 0
		for i, f := range frames[:n] {
			q.reasons[i] = q.packets[i].Decode(f)
			if q.reasons[i] == packet.OK {
				if q.cfg.Inner {
					q.unwrap(&q.packets[i], f)
				}
				q.hashes[i] = q.table.Hash(&q.packets[i])
				q.known[known] = q.hashes[i]
				known++
			}
		}
		q.table.Warm(q.known[:known])
		for i, f := range frames[:n] {
			q.account(&q.packets[i], q.reasons[i], q.hashes[i], f, nowNs, port)
		}
		frames = frames[n:]
	}
}

// maxTunnels bounds how many tunnels in each other are looked into.
const maxTunnels = 4

// unwrap makes p what the tunnels carry that it belongs to, if any.
func (q *Queue) unwrap(p *packet.Packet, frame []byte) {
	for depth := 0; ; depth++ {
		kind := p.Carrier()
		switch {
		case kind == packet.NoTunnel:
			return
		case depth == maxTunnels:
			q.unopened[TooDeep]++
			return
		case p.Fragment:
			q.unopened[Fragment]++
			return
		case !p.Inner(frame, &q.inner):
			q.unopened[NoPacket]++
			return
		}
		q.tunnels[kind]++
		*p = q.inner
	}
}

// FrameLink takes one frame of a capture file's link type, borrowed for the call. Poll or Settle must be called before.
// A tunnelled packet is accounted by what it carries, at most maxTunnels deep. Frames looks into tunnels only if it is
// told to: the XDP program matches outer headers, and what is judged live must be what can be stopped.
func (q *Queue) FrameLink(linkType int, frame []byte, nowNs int64, port uint8) packet.Reason {
	p := &q.packets[0]
	r := p.DecodeLink(linkType, frame)
	hash := uint32(0)
	if r == packet.OK {
		q.unwrap(p, frame)
		hash = q.table.Hash(p)
	}
	q.account(p, r, hash, frame, nowNs, port)
	return r
}

func (q *Queue) account(p *packet.Packet, r packet.Reason, hash uint32, frame []byte, nowNs int64, port uint8) {
	q.received++
	if r != packet.OK {
		if r.Undecodable() {
			q.undecodable[r]++
			return
		}
		q.accounted++
		if q.w != nil {
			var arp []byte
			if p.IsARP {
				arp = frame[p.L3:]
			}
			q.w.Add(p, arp, nowNs, &noFlow)
		}
		return
	}
	q.accounted++
	q.bytes += uint64(p.IPLen)
	o := q.table.AccountHashed(p, hash, frame[p.Payload:p.Payload+p.PayloadLen], nowNs, port, &q.out)
	if q.w != nil {
		q.w.Add(p, frame[p.L3:], nowNs, &o)
	}
	if o.Spent && q.cfg.OnSpent != nil {
		q.cfg.OnSpent(o.ID)
	}
	if !q.batchBegun || q.size() > q.cfg.BatchBytes {
		q.age(nowNs)
	}
}

// noFlow is what frames that are not IP mean to a flow.
var noFlow flowtable.Observation

// age notes when a batch begins and hands it over when it is old or large.
func (q *Queue) age(nowNs int64) {
	n := q.size()
	if n == 0 {
		return
	}
	if !q.batchBegun {
		q.batchBegun, q.batchNs = true, nowNs
	}
	if n > q.cfg.BatchBytes || q.cfg.BatchAge > 0 && nowNs-q.batchNs >= int64(q.cfg.BatchAge) {
		q.cut()
	}
}

func (q *Queue) cut() {
	q.batchBegun = false
	for i, b := range q.out.Batches {
		if len(q.out.Batches) == 1 || size(b) > 0 {
			q.out.Batches[i] = q.cfg.OnBatch(i, b)
		}
	}
}

// size is that of all batches.
func (q *Queue) size() int {
	n := size(q.out.Batches[0])
	for _, b := range q.out.Batches[1:] {
		n += size(b)
	}
	return n
}

// size is about how many bytes a batch takes on the wire; never less than it does.
func size(b *flowv1.FlowBatch) int {
	n := 0
	if c := b.Opens; c != nil {
		n += int(c.Count) * flow.OpenBytes
	}
	if c := b.Segments; c != nil {
		n += int(c.Count)*flow.SegmentBytes + len(c.Data)
	}
	if c := b.Updates; c != nil {
		n += int(c.Count) * flow.UpdateBytes
	}
	if c := b.Ends; c != nil {
		n += int(c.Count) * flow.EndBytes
	}
	return n + len(b.Summaries)*flow.SummaryBytes
}

// Poll runs timers and window boundaries up to nowNs and hands the batch over when it is time. Call it at least
// every few milliseconds, also when no frames arrive.
func (q *Queue) Poll(nowNs int64) {
	if nowNs < q.polled-clockBack {
		q.back(nowNs)
	}
	q.polled = max(q.polled, nowNs)
	if q.windowEnd == 0 && q.w != nil {
		q.begin(nowNs)
	}
	for q.w != nil && nowNs >= q.windowEnd {
		q.table.Advance(q.windowEnd-1, &q.out, q.failed)
		q.age(nowNs)
		q.boundary(nowNs)
	}
	q.table.Advance(nowNs, &q.out, q.failed)
	q.age(nowNs)
	q.count(nowNs)
}

// back goes on from nowNs: the window and the batch at hand end early, and flows keep what is left of their timeouts.
func (q *Queue) back(nowNs int64) {
	if q.cfg.OnBack != nil {
		q.cfg.OnBack(time.Duration(q.polled - nowNs))
	}
	q.polled, q.publishedNs = nowNs, 0
	q.table.Back(nowNs)
	if q.w == nil {
		q.cut()
		return
	}
	q.boundary(q.windowEnd)
	q.begin(nowNs)
}

// count publishes when the public counts are too old.
func (q *Queue) count(nowNs int64) {
	if nowNs-q.publishedNs >= int64(q.cfg.CountAge) {
		q.publishedNs = nowNs
		q.publish()
	}
}

// begin sets the bounds of the window that nowNs is in.
func (q *Queue) begin(nowNs int64) {
	length := int64(q.cfg.WindowLength)
	q.windowStart = nowNs - (nowNs%length+length)%length
	q.windowEnd = q.windowStart + length
	q.atWindow = q.table.Stats()
}

// boundary hands the batch and the window over; the next is the one that nowNs is in, so that a pause gives one window.
func (q *Queue) boundary(nowNs int64) {
	if q.size() > 0 {
		q.cut()
	}
	s := q.table.Stats()
	w := q.w
	w.StartNs, w.EndNs = q.windowStart, q.windowEnd
	w.Flows = window.Flows{
		Opened: s.Created - q.atWindow.Created, Active: s.Active, Summarised: s.Summarised - q.atWindow.Summarised,
	}
	fresh := q.cfg.OnWindow(w)
	if fresh == nil {
		q.windowEnd = nowNs - nowNs%int64(q.cfg.WindowLength) + int64(q.cfg.WindowLength)
		return
	}
	q.w = fresh
	q.begin(max(nowNs, q.windowEnd))
}

// WindowEnd is the next window boundary, 0 before the first Poll and without windows.
func (q *Queue) WindowEnd() int64 { return q.windowEnd }

// Pending tells whether a batch waits for its age: Poll is due within milliseconds.
func (q *Queue) Pending() bool { return q.batchBegun }

// Idle tells whether no flow is active and the window is empty: time may jump.
func (q *Queue) Idle() bool { return q.table.Stats().Active == 0 && (q.w == nil || q.w.Empty()) }

// Settle runs timers up to nowNs without a bound on the work, handing over batches as they fill. It is for
// captures, whose clock jumps; without windows it stands for Poll too.
func (q *Queue) Settle(nowNs int64) {
	if q.cfg.BatchAge < 0 && q.table.Calm(nowNs) {
		return // the batch is as it was, and its age does not count
	}
	for q.table.Advance(nowNs, &q.out, q.failed) {
		q.age(nowNs)
	}
	q.age(nowNs)
	q.count(nowNs)
}

// Meter adds what the kernel forwarded of a flow in k's direction to the flow and the window. It reports whether
// the flow is in the table.
func (q *Queue) Meter(k flow.Key, packets, bytes uint64, lastNs int64) bool {
	_, ok := q.table.Meter(k, packets, bytes, lastNs)
	if q.w != nil {
		q.w.Metered(k, packets, bytes)
	}
	return ok
}

// Enough says that a flow's label is final; see flowtable.Table.Enough.
func (q *Queue) Enough(id uint64) (flow.Key, bool) { return q.table.Enough(id) }

// Close ends all flows, hands over the last batches, and the last window with what the flush found. The queue
// must not be used afterwards; counts stay readable.
func (q *Queue) Close(nowNs int64) {
	if q.windowEnd == 0 && q.w != nil {
		q.begin(nowNs)
	}
	for q.table.Flush(nowNs, &q.out, q.failed) {
		q.cut()
	}
	switch {
	case q.w != nil:
		q.boundary(q.windowEnd)
	case q.size() > 0:
		q.cut()
	}
	q.publish()
}

// publish makes the counts visible to other goroutines.
func (q *Queue) publish() {
	q.public.received.Store(q.received)
	q.public.accounted.Store(q.accounted)
	q.public.bytes.Store(q.bytes)
	for i := range q.undecodable {
		if n := q.undecodable[i]; n != 0 {
			q.public.undecodable[i].Store(n)
		}
	}
	for i, n := range q.tunnels {
		if n != 0 {
			q.public.tunnels[i].Store(n)
		}
	}
	for i, n := range q.unopened {
		if n != 0 {
			q.public.unopened[i].Store(n)
		}
	}
	s := q.table.Stats()
	for i, n := range [...]uint64{s.Created, s.Ended, s.Active, s.Summarised, s.Evicted, s.Untracked, s.Withheld} {
		q.public.flows[i].Store(n)
	}
}

// Counts returns the packet counts, at most CountAge older than the last Poll. Any goroutine may call it.
func (q *Queue) Counts() Counts {
	c := Counts{
		Received: q.public.received.Load(), Accounted: q.public.accounted.Load(), Bytes: q.public.bytes.Load(),
	}
	for i := range c.Undecodable {
		c.Undecodable[i] = q.public.undecodable[i].Load()
	}
	for i := range c.Tunnels {
		c.Tunnels[i] = q.public.tunnels[i].Load()
	}
	for i := range c.Unopened {
		c.Unopened[i] = q.public.unopened[i].Load()
	}
	return c
}

// Flows returns the flow counts, as old as Counts'. Any goroutine may call it; between two Polls the
// terms may be of different moments.
func (q *Queue) Flows() flowtable.Stats {
	f := &q.public.flows
	return flowtable.Stats{
		Created: f[0].Load(), Ended: f[1].Load(), Active: f[2].Load(), Summarised: f[3].Load(),
		Evicted: f[4].Load(), Untracked: f[5].Load(), Withheld: f[6].Load(),
	}
}
