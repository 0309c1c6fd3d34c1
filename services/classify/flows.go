package classify

import (
	"fmt"
	"hash/maphash"
	"strconv"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/app"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/detect"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/hostlist"
)

// Unknown is the label of flows whose payload names no application.
const Unknown = "unknown"

// flowID names a flow within the engine: ids are unique within a sensor's epoch.
type flowID struct {
	stream uint32
	id     uint64
}

// flowState is what is known of a flow that has not ended.
type flowState struct {
	id      flowID
	key     flow.Key
	label   *app.Flow   // nil until payload came, and again when the label is final
	result  *app.Result // nil until the label is final; several flows may have the same one
	lastNs  int64
	head    detect.Head
	payload uint8 // bit 0: from the source, bit 1: towards it
	final   bool  // the label is final
	said    bool  // … and was told in Enough
	good    bool  // noted as good peers
	stalled bool  // its request is noted as unfinished
	denied  bool  // the server refused a log-in
}

// streamNumber gives sensor and epoch a small number.
func (e *Engine) streamNumber(sensor string, epoch uint64) uint32 {
	if e.lastStream.number != 0 && e.lastStream.sensor == sensor && e.lastStream.epoch == epoch {
		return e.lastStream.number
	}
	k := sensor + "/" + strconv.FormatUint(epoch, 10)
	n, ok := e.streams[k]
	if !ok {
		e.streamCount++
		n = e.streamCount
		if len(e.streams) >= maxStreams {
			clear(e.streams)
		}
		e.streams[k] = n
	}
	e.lastStream.sensor, e.lastStream.epoch, e.lastStream.number = sensor, epoch, n
	return n
}

// maxStreams bounds the memory of sensors and their restarts; forgetting one only loses labels of its flows.
const maxStreams = 4_096

// Batch takes in one batch and fills out: records of flows that ended, and flows whose label is final. out is
// overwritten. The error names a malformed batch, nothing of which was used.
func (e *Engine) Batch(b *flowv1.FlowBatch, out *BatchResult) error {
	*out = BatchResult{Records: out.Records[:0], Enough: out.Enough[:0], Named: out.Named[:0], Reuse: out.Reuse, facts: out.facts}
	if err := flow.Validate(b); err != nil {
		return fmt.Errorf("batch %d of %s: %w", b.GetBatch(), b.GetSensor(), err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	stream := e.streamNumber(b.GetSensor(), b.GetEpoch())
	if c := b.GetOpens(); c != nil {
		for i := range int(c.Count) {
			e.warm(stream, c.FlowId, i)
			o := flow.OpenAt(c, i)
			e.open(flowID{stream, o.ID}, &o)
		}
	}
	if c := b.GetSegments(); c != nil {
		at := 0
		for i := range int(c.Count) {
			e.warm(stream, c.FlowId, i)
			n := int(flow.Column(c.Length).U16(i))
			id := flowID{stream, flow.Column(c.FlowId).U64(i)}
			e.segment(id, c.Direction[i]&1, flow.Column(c.Offset).U32(i), int64(flow.Column(c.TimeNs).U64(i)), c.Data[at:at+n], out) //nolint:gosec // written from an int64
			at += n
		}
	}
	if c := b.GetUpdates(); c != nil {
		for i := range int(c.Count) {
			e.warm(stream, c.FlowId, i)
			if f := e.flows.find(flowID{stream, flow.Column(c.FlowId).U64(i)}); f != nil {
				f.lastNs = int64(flow.Column(c.LastNs).U64(i)) //nolint:gosec // written from an int64
				e.answered(f, flow.Column(c.PacketsFwd).U64(i), flow.Column(c.PacketsRev).U64(i))
			}
		}
	}
	if c := b.GetEnds(); c != nil {
		for i := range int(c.Count) {
			e.warm(stream, c.FlowId, i)
			x := flow.EndAt(c, i)
			e.end(flowID{stream, x.ID}, &x, b, out)
		}
	}
	for _, s := range b.GetSummaries() {
		out.Summarised += s.GetFlows()
	}
	return nil
}

// warm is called before flow i of a column of ids is looked up.
func (e *Engine) warm(stream uint32, ids []byte, i int) {
	if i%warmMax != 0 {
		return
	}
	var next [warmMax]uint64
	n := min(warmMax, len(ids)/8-i)
	for k := range n {
		next[k] = flow.Column(ids).U64(i + k)
	}
	e.flows.warm(stream, next[:n])
}

func (e *Engine) open(id flowID, o *flow.Open) {
	if e.flows.find(id) != nil {
		return
	}
	if e.flows.len() >= e.cfg.MaxFlows {
		e.evictFlow()
	}
	f := e.flows.add(id)
	f.key, f.lastNs = o.Key, o.FirstNs
}

// forget ends what is known of a flow; f is for another one afterwards.
func (e *Engine) forget(f *flowState) {
	if f.label != nil {
		f.label.Release()
	}
	e.flows.remove(f.id)
}

// evictTries is how many an eviction looks at: a few of a map that has no order, or the next few of the flows.
const evictTries = 8

func (e *Engine) evictFlow() {
	f := e.flows.idlest()
	if f == nil {
		return // all that were looked at are empty: the next flow tries others
	}
	e.over(f)
	e.forget(f)
	e.flowsEvicted++
}

// final keeps what a flow's label is, and gives back what it came from.
func (e *Engine) final(f *flowState) {
	f.result = e.shared(f.label.Result())
	f.label.Release()
	f.label, f.final = nil, true
}

// said is what a flow's payload says so far. It is valid until the next call.
func (e *Engine) said(f *flowState) *app.Result {
	switch {
	case f.label != nil:
		e.result = f.label.Result()
		return &e.result
	case f.result != nil:
		return f.result
	}
	return &nothing
}

var nothing app.Result

// sharedResults is how many results are kept for flows that say the same.
const sharedResults = 1 << 12

// shared is a result for a flow to keep: another flow's, where that says the same.
func (e *Engine) shared(r app.Result) *app.Result {
	kept := &e.results[maphash.Comparable(e.seed, r)%sharedResults]
	if *kept == nil || **kept != r {
		own := r // not r itself, which would be on the heap each time
		*kept = &own
	}
	return *kept
}

func (e *Engine) segment(id flowID, direction uint8, offset uint32, timeNs int64, data []byte, out *BatchResult) {
	f := e.flows.find(id)
	if f == nil {
		return
	}
	f.lastNs = max(f.lastNs, timeNs)
	f.payload |= 1 << direction
	if !e.cfg.LabelsOnly {
		e.dialogue(f, direction, offset, timeNs, data)
		if f.payload == 3 {
			e.good(f)
		}
	}
	if !f.final {
		if f.label == nil {
			f.label = e.apps.Open(f.key)
		}
		final := f.label.Segment(direction, offset, data)
		if t := e.hosts.Load(); t != nil {
			if host, ok := f.label.NewServerName(); ok {
				f.lookUp(t, host, direction, timeNs, out)
			}
		}
		if final {
			e.final(f)
		}
	}
	// Once the kernel forwards a flow no payload comes any more, so a TCP flow waits for its answer: it tells
	// good peers.
	if f.final && !f.said && (f.payload == 3 || f.key.Protocol != 6 || e.cfg.LabelsOnly) {
		f.said = true
		out.Enough = append(out.Enough, id.id)
	}
}

// lookUp asks the lists of domains about the host that a flow has just named.
func (f *flowState) lookUp(t *hostlist.Table, host string, direction uint8, timeNs int64, out *BatchResult) {
	n := NamedFlow{Key: f.key, Host: host, TimeNs: timeNs}
	if direction == 1 { // the sensor met the flow in its middle
		n.Key = n.Key.Reverse()
	}
	var ok bool
	if n.Found, ok = t.Find(host, &n.Key, timeNs); ok {
		out.Named = append(out.Named, n)
	}
}

// answered notes good peers by packets both ways, because payload may have been seen by the kernel only. TCP
// needs more of them and a segment, so that a SYN with its answers is not enough.
func (e *Engine) answered(f *flowState, fwd, rev uint64) {
	if e.cfg.LabelsOnly {
		return
	}
	if f.key.Protocol != 6 && fwd > 0 && rev > 0 || f.payload != 0 && fwd >= 3 && rev >= 3 {
		e.good(f)
	}
}

// good notes both ends of a flow as good peers of each other. During a flood without handshake answers prove
// nothing, so nobody new is taken in then.
func (e *Engine) good(f *flowState) {
	if f.good || f.key.Protocol == flow.ProtocolARP {
		return
	}
	f.good = true
	if f.key.Protocol != 6 && e.flooded[f.key.Dst] > 0 {
		return
	}
	e.peers.Observe(f.key, f.lastNs)
}
