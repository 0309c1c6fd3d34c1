package classify

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/app"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/detect"
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
	key     flow.Key
	label   labeller // nil until payload came, and again when the label is final
	result  labelled
	lastNs  int64
	payload uint8 // bit 0: from the source, bit 1: towards it
	final   bool  // the label is final
	said    bool  // … and was told in Enough
	good    bool  // noted as good peers
	stalled bool  // its request is noted as unfinished
	denied  bool  // the server refused a log-in
	head    detect.Head
}

// labeller reads a flow's payload; see internal/app.
type labeller interface {
	segment(direction uint8, offset uint32, data []byte) (done bool)
	result() labelled
	release()
}

// labelled is what a labeller says of a flow; empty fields are not known.
type labelled struct {
	app, host, hostSource string
	alpn                  string
	confidence            app.Confidence
	app.Facts
}

// streamNumber gives sensor and epoch a small number.
func (e *Engine) streamNumber(sensor string, epoch uint64) uint32 {
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
	return n
}

// maxStreams bounds the memory of sensors and their restarts; forgetting one only loses labels of its flows.
const maxStreams = 4_096

// Batch takes in one batch and fills out: records of flows that ended, and flows whose label is final. out is
// overwritten. The error names a malformed batch, nothing of which was used.
func (e *Engine) Batch(b *flowv1.FlowBatch, out *BatchResult) error {
	*out = BatchResult{Records: out.Records[:0], Enough: out.Enough[:0]}
	if err := flow.Validate(b); err != nil {
		return fmt.Errorf("batch %d of %s: %w", b.GetBatch(), b.GetSensor(), err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	stream := e.streamNumber(b.GetSensor(), b.GetEpoch())
	if c := b.GetOpens(); c != nil {
		for i := range int(c.Count) {
			o := flow.OpenAt(c, i)
			e.open(flowID{stream, o.ID}, &o)
		}
	}
	if c := b.GetSegments(); c != nil {
		at := 0
		for i := range int(c.Count) {
			n := int(flow.Column(c.Length).U16(i))
			id := flowID{stream, flow.Column(c.FlowId).U64(i)}
			e.segment(id, c.Direction[i]&1, flow.Column(c.Offset).U32(i), int64(flow.Column(c.TimeNs).U64(i)), c.Data[at:at+n], out) //nolint:gosec // written from an int64
			at += n
		}
	}
	if c := b.GetUpdates(); c != nil {
		for i := range int(c.Count) {
			if f := e.flows[flowID{stream, flow.Column(c.FlowId).U64(i)}]; f != nil {
				f.lastNs = int64(flow.Column(c.LastNs).U64(i)) //nolint:gosec // written from an int64
				e.answered(f, flow.Column(c.PacketsFwd).U64(i), flow.Column(c.PacketsRev).U64(i))
			}
		}
	}
	if c := b.GetEnds(); c != nil {
		for i := range int(c.Count) {
			x := flow.EndAt(c, i)
			out.Records = append(out.Records, e.end(flowID{stream, x.ID}, &x, b))
		}
	}
	for _, s := range b.GetSummaries() {
		out.Summarised += s.GetFlows()
	}
	return nil
}

func (e *Engine) open(id flowID, o *flow.Open) {
	if e.flows[id] != nil {
		return
	}
	if len(e.flows) >= e.cfg.MaxFlows {
		e.evictFlow()
	}
	e.flows[id] = &flowState{key: o.Key, lastNs: o.FirstNs}
}

// evictTries is how many flows an eviction looks at; a map's order is random enough for it.
const evictTries = 8

func (e *Engine) evictFlow() {
	var oldest flowID
	var found *flowState
	n := 0
	for id, f := range e.flows {
		if found == nil || f.lastNs < found.lastNs {
			oldest, found = id, f
		}
		if n++; n == evictTries {
			break
		}
	}
	e.over(oldest, found)
	found.close()
	delete(e.flows, oldest)
	e.flowsEvicted++
}

func (f *flowState) close() {
	if f.label != nil {
		f.result = f.label.result()
		f.label.release()
		f.label = nil
	}
}

func (e *Engine) segment(id flowID, direction uint8, offset uint32, timeNs int64, data []byte, out *BatchResult) {
	f := e.flows[id]
	if f == nil {
		return
	}
	f.lastNs = max(f.lastNs, timeNs)
	f.payload |= 1 << direction
	e.dialogue(id, f, direction, offset, timeNs, data)
	if f.payload == 3 {
		e.good(f)
	}
	if !f.final {
		if f.label == nil {
			f.label = e.newLabel(f.key)
		}
		if f.label.segment(direction, offset, data) {
			f.close()
			f.final = true
		}
	}
	// Once the kernel forwards a flow no payload comes any more, so a TCP flow waits for its answer: it tells
	// good peers.
	if f.final && !f.said && (f.payload == 3 || f.key.Protocol != 6) {
		f.said = true
		out.Enough = append(out.Enough, id.id)
	}
}

// answered notes good peers by packets both ways, because payload may have been seen by the kernel only. TCP
// needs more of them and a segment, so that a SYN with its answers is not enough.
func (e *Engine) answered(f *flowState, fwd, rev uint64) {
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

// facts copies what the payload says beside label and names.
func (l *labelled) facts(r *eventv1.FlowRecord) {
	r.Confidence, r.Risks = l.confidence.String(), l.Risks.Names()
	r.Ja3, r.Ja4, r.Hassh, r.TlsVersion = l.JA3, l.JA4, l.HASSH, l.TLSVersion
	r.UserAgent, r.HttpMethod = l.UserAgent, l.Method
	r.DnsType, r.DnsRcode, r.DnsAnswers = l.DNSType, l.DNSRcode, strings.Fields(l.DNSAnswers)
}

func (e *Engine) end(id flowID, x *flow.End, b *flowv1.FlowBatch) *eventv1.FlowRecord {
	r := &eventv1.FlowRecord{
		Id: b.GetSensor() + "/" + strconv.FormatUint(b.GetEpoch(), 10) + "/" + strconv.FormatUint(x.ID, 10) + "/" +
			strconv.FormatUint(uint64(x.Part), 10),
		SrcIp: append([]byte(nil), x.Key.Src[:]...), DstIp: append([]byte(nil), x.Key.Dst[:]...),
		SrcPort: uint32(x.Key.SrcPort), DstPort: uint32(x.Key.DstPort), Protocol: uint32(x.Key.Protocol), Vlan: uint32(x.Key.VLAN),
		FirstNs: x.FirstNs, LastNs: x.LastNs, PacketsFwd: x.Totals.PacketsFwd, PacketsRev: x.Totals.PacketsRev,
		BytesFwd: x.Totals.BytesFwd, BytesRev: x.Totals.BytesRev, TcpFlagsFwd: uint32(x.FlagsFwd), TcpFlagsRev: uint32(x.FlagsRev),
		EndReason: uint32(x.Reason), App: Unknown, //nolint:gosec // an enum of a few values
	}
	if f := e.flows[id]; f != nil {
		f.lastNs = max(f.lastNs, x.LastNs)
		e.answered(f, x.Totals.PacketsFwd, x.Totals.PacketsRev)
		if x.Reason == flowv1.EndReason_END_REASON_ACTIVE {
			if f.label != nil {
				f.result = f.label.result()
			}
		} else {
			e.over(id, f)
			f.close()
			delete(e.flows, id)
			e.session(f, x)
		}
		r.App, r.Alpn, r.Host, r.HostSource = f.result.app, f.result.alpn, f.result.host, f.result.hostSource
		f.result.facts(r)
	}
	if r.App == "" || r.App == Unknown {
		if r.App = app.LabelOf(x.Key.Protocol); r.App == "" {
			r.App = Unknown
		} else {
			r.Confidence = app.Payload.String()
		}
	}
	return r
}
