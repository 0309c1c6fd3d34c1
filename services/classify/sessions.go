package classify

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/detect"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/header"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/verdict"
)

// maxPending bounds the findings that wait for a window.
const maxPending = 256

// number makes one number of a flow's stream and id.
func (id flowID) number() uint64 { return id.id ^ uint64(id.stream)<<48 }

// thresholdsOf are those of a host's group, nil when it is not protected.
func (e *Engine) thresholdsOf(host netip.Addr) *detect.Thresholds {
	if g := e.groups.of(host); g != nil {
		return &g.thresholds
	}
	return nil
}

// either are the thresholds of the protected one of two hosts.
func (e *Engine) either(a, b netip.Addr) *detect.Thresholds {
	if t := e.thresholdsOf(a); t != nil {
		return t
	}
	return e.thresholdsOf(b)
}

// find keeps a finding for the next window.
func (e *Engine) find(f finding) {
	if len(e.pending) < maxPending {
		e.pending = append(e.pending, f)
	}
}

// dialogue looks at a segment for what makes requests and log-ins attacks.
func (e *Engine) dialogue(f *flowState, direction uint8, offset uint32, timeNs int64, data []byte) {
	switch {
	case f.key.Protocol == 17 && f.key.DstPort == 53 && direction == 0:
		if q, ok := header.Query(data); ok {
			e.query(flow.Addr(f.key.Src), flow.Addr(f.key.Dst), &q, timeNs)
		}
	case f.key.Protocol != 6:
	case direction == 1:
		f.denied = f.denied || detect.Denial(data)
		e.over(f)
	case f.head.Read(offset, data):
		if f.payload&2 == 0 {
			f.stalled = true
			e.stallers.Begin(flow.Addr(f.key.Src), flow.Addr(f.key.Dst), f.key.DstPort, f.id.number(), timeNs)
		}
	default:
		e.over(f)
	}
}

// over: a flow's request is not unfinished any more.
func (e *Engine) over(f *flowState) {
	if f.stalled {
		f.stalled = false
		e.stallers.Finish(flow.Addr(f.key.Src), flow.Addr(f.key.Dst), f.key.DstPort, f.id.number())
	}
}

// session judges a flow that ended, with the label that it has. Of one that was exported in parts x is only the last: it was long.
func (e *Engine) session(f *flowState, x *flow.End, label string) {
	if x.Key.Protocol != 6 || x.Part > 0 || e.cfg.LabelsOnly {
		return
	}
	src, dst := flow.Addr(x.Key.Src), flow.Addr(x.Key.Dst)
	t := e.thresholdsOf(dst)
	if t == nil {
		return
	}
	s := detect.Session{Src: src, Dst: dst, Port: x.Key.DstPort, App: label, FirstNs: x.FirstNs, LastNs: x.LastNs, Answered: f.payload == 3,
		Denied: f.denied, Packets: x.Totals.PacketsFwd + x.Totals.PacketsRev, Bytes: x.Totals.BytesFwd + x.Totals.BytesRev}
	if scan, ok := e.logins.Add(&s, t); ok {
		e.find(finding{scan: scan, source: src, firstNs: scan.FirstNs, toward: true})
	}
}

// query looks at a DNS query for a tunnel.
func (e *Engine) query(client, server netip.Addr, q *header.Question, timeNs int64) {
	if t := e.either(client, server); t != nil {
		if scan, ok := e.names.Add(client, server, q, timeNs, t); ok {
			e.find(finding{scan: scan, source: client, firstNs: scan.FirstNs})
		}
	}
}

// samples looks at e.facts for what single packets tell: DNS names, echo messages, repeated SYN-ACKs.
func (e *Engine) samples(w *flowv1.Window) {
	for i := range e.facts {
		f := &e.facts[i]
		src, dst := flow.Addr(f.Src), flow.Addr(f.Dst)
		switch {
		case f.Asks == header.DNS:
			if q, ok := header.SampledQuery(e.raw[i]); ok {
				e.query(src, dst, &q, f.TimeNs)
			}
		case f.Protocol == 1 || f.Protocol == 58:
			m, ok := header.ReadEcho(e.raw[i], f.Length)
			if t := e.either(src, dst); ok && t != nil {
				if scan, ok := e.echoes.Add(src, dst, m, f.TimeNs, t); ok {
					e.find(finding{scan: scan, source: dst, firstNs: scan.FirstNs, facts: []header.Facts{*f}, raw: [][]byte{slices.Clone(e.raw[i])}})
				}
			}
		case f.Protocol == 6:
			if t := e.thresholdsOf(dst); t != nil {
				if scan, ok := e.repeats.Add(f, t); ok {
					e.find(finding{scan: scan, source: src, firstNs: scan.FirstNs, toward: true})
				}
			}
		}
	}
	e.lastEnd, e.sensor = max(e.lastEnd, w.GetEndNs()), w.GetSensor()
}

// sessions reports what batches and samples led to, and once a second sources with unfinished requests.
func (e *Engine) sessions(w *flowv1.Window, out *WindowResult) {
	if d := w.GetEndNs() - e.checked; d >= 1e9 || d < 0 {
		e.checked = w.GetEndNs()
		e.stallers.Each(w.GetEndNs(), e.thresholdsOf, func(src netip.Addr, s detect.Scan) {
			e.find(finding{scan: s, source: src, firstNs: s.FirstNs, toward: true})
		})
	}
	if len(e.pending) == 0 {
		return
	}
	found := e.pending
	e.pending = nil
	e.report(w, found, out)
}

// bindings looks at what ARP said. The one who said it has no address of its own to name.
func (e *Engine) bindings(w *flowv1.Window) {
	for _, b := range w.GetArpBindings() {
		t := e.thresholdsOf(flow.AddrBytes(b.GetAddr()))
		if t == nil {
			continue
		}
		if scan, text, ok := e.stations.Add(w.GetSensor(), b, t); ok {
			e.find(finding{scan: scan, firstNs: scan.FirstNs, text: text + "; nothing is blocked, because rules match IP packets and ARP is none."})
		}
	}
}

// alert tells of an attack that no rule would stop without stopping what is wanted too: names and echo messages are
// carried by resolvers and hosts that others need.
func (e *Engine) alert(w *flowv1.Window, a *attack, list []finding, out *WindowResult) {
	f := &list[0]
	c := verdict.Choice{Key: verdict.KeyNone, Explanation: f.text}
	if c.Explanation == "" {
		c.Explanation = fmt.Sprintf(f.scan.What, f.source, f.scan.Host) + "; nothing is blocked, because a rule would stop wanted traffic too."
	}
	m := f.scan.Measure
	e.verdict(w, a, &c, m.Features, m.Limits, []uint64{w.GetSequence()}, f.facts, f.raw, out)
}
