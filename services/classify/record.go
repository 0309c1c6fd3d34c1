package classify

import (
	"strconv"
	"strings"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/app"
)

// record adds an empty record to the result; its slices may have memory from an earlier use.
func (out *BatchResult) record() *eventv1.FlowRecord {
	n := len(out.Records)
	if !out.Reuse || n == cap(out.Records) || out.Records[:n+1][n] == nil {
		out.Records = append(out.Records, &eventv1.FlowRecord{})
		return out.Records[n]
	}
	out.Records = out.Records[:n+1]
	r := out.Records[n]
	src, dst, risks, answers := r.SrcIp[:0], r.DstIp[:0], r.Risks[:0], r.DnsAnswers[:0]
	if r.Tcp != nil {
		out.facts = append(out.facts, r.Tcp)
	}
	r.Reset()
	r.SrcIp, r.DstIp, r.Risks, r.DnsAnswers = src, dst, risks, answers
	return r
}

const protocolTCP = 6

// tcp returns facts to fill in, of an earlier record if there are any. All of them are set anew.
func (out *BatchResult) tcp() *eventv1.TcpFacts {
	n := len(out.facts)
	if n == 0 {
		return &eventv1.TcpFacts{}
	}
	f := out.facts[n-1]
	out.facts = out.facts[:n-1]
	return f
}

// end writes the record of a flow, or of a part of it, that is over.
func (e *Engine) end(id flowID, x *flow.End, b *flowv1.FlowBatch, out *BatchResult) {
	r := out.record()
	if !out.Reuse {
		r.Id = b.GetSensor() + "/" + strconv.FormatUint(b.GetEpoch(), 10) + "/" + strconv.FormatUint(x.ID, 10) + "/" +
			strconv.FormatUint(uint64(x.Part), 10)
	}
	r.SrcIp, r.DstIp = append(r.SrcIp, x.Key.Src[:]...), append(r.DstIp, x.Key.Dst[:]...)
	r.SrcPort, r.DstPort, r.Protocol, r.Vlan = uint32(x.Key.SrcPort), uint32(x.Key.DstPort), uint32(x.Key.Protocol), uint32(x.Key.VLAN)
	r.Tunnel = x.Key.Tunnel
	r.FirstNs, r.LastNs = x.FirstNs, x.LastNs
	r.PacketsFwd, r.PacketsRev, r.BytesFwd, r.BytesRev = x.Totals.PacketsFwd, x.Totals.PacketsRev, x.Totals.BytesFwd, x.Totals.BytesRev
	r.TcpFlagsFwd, r.TcpFlagsRev = uint32(x.FlagsFwd), uint32(x.FlagsRev)
	r.EndReason = uint32(x.Reason) //nolint:gosec // an enum of a few values
	if x.Key.Protocol == protocolTCP && !x.NoTCP {
		r.Tcp = out.tcp()
		r.Tcp.RttClientUs, r.Tcp.RttServerUs = x.TCP.RTTClientUs, x.TCP.RTTServerUs
		r.Tcp.RetransmitsFwd, r.Tcp.RetransmitsRev = x.TCP.RetransmitsFwd, x.TCP.RetransmitsRev
	}
	if f := e.flows.find(id); f != nil {
		f.lastNs = max(f.lastNs, x.LastNs)
		e.answered(f, x.Totals.PacketsFwd, x.Totals.PacketsRev)
		if x.Reason == flowv1.EndReason_END_REASON_ACTIVE {
			says(r, e.said(f))
		} else {
			e.over(f)
			said := e.said(f)
			e.session(f, x, said.App)
			says(r, said)
			e.forget(f)
		}
	}
	if r.App == "" || r.App == Unknown {
		if r.App = app.LabelOf(x.Key.Protocol); r.App == "" {
			r.App = Unknown
		} else {
			r.Confidence = app.Payload.String()
		}
	}
}

// says copies what a flow's payload says.
func says(r *eventv1.FlowRecord, l *app.Result) {
	r.App, r.Alpn, r.Host, r.HostSource = l.App, l.ALPN, l.Host, l.HostSource
	r.Confidence, r.Risks = l.Confidence.String(), l.Risks.AppendNames(r.Risks)
	r.Ja3, r.Ja4, r.Hassh, r.TlsVersion = l.JA3, l.JA4, l.HASSH, l.TLSVersion
	r.UserAgent, r.HttpMethod = l.UserAgent, l.Method
	r.DnsType, r.DnsRcode = l.DNSType, l.DNSRcode
	for rest := l.DNSAnswers; rest != ""; {
		var one string
		one, rest, _ = strings.Cut(rest, " ")
		r.DnsAnswers = append(r.DnsAnswers, one)
	}
}
