package detect

import (
	"net/netip"

	"github.com/tidegate-mesh/tidegate/services/classify/internal/header"
)

const (
	echoNs    = int64(300e9)
	maxEchoes = 4_096
	echoSlots = 16 // requests remembered of a pair
)

// Echoes compares echo answers with their requests. An answer returns the data it got (RFC 792, RFC 4443 4.2); one that
// has other data than every request of its id and number remembered is the other end of a tunnel. Of a pair of hosts within
// five minutes: such answers ≥ EchoData, and at least a fifth of all answers. One goroutine owns it.
type Echoes struct{ pairs map[[2]netip.Addr]*echoPair }

type echoPair struct {
	since, newest    int64
	requests         [echoSlots]header.Echo
	next             int
	answers, changed uint64
}

func (e *echoPair) last() int64 { return e.newest }

// NewEchoes returns an empty memory.
func NewEchoes() *Echoes { return &Echoes{pairs: make(map[[2]netip.Addr]*echoPair)} }

// Add takes in an echo message from src to dst.
func (e *Echoes) Add(src, dst netip.Addr, m header.Echo, nowNs int64, t *Thresholds) (Scan, bool) {
	k := [2]netip.Addr{src, dst}
	if m.Reply {
		k = [2]netip.Addr{dst, src}
		if e.pairs[k] == nil {
			return Scan{}, false
		}
	}
	p := remember(e.pairs, k, maxEchoes, func() *echoPair { return &echoPair{since: nowNs} })
	if d := nowNs - p.since; d > echoNs || d < -echoNs {
		*p = echoPair{since: nowNs}
	}
	p.newest = nowNs
	if !m.Reply {
		p.requests[p.next] = m
		p.next = (p.next + 1) % echoSlots
		return Scan{}, false
	}
	asked, same := false, false
	for i := range p.requests {
		if r := &p.requests[i]; r.Data != 0 && r.ID == m.ID && r.Seq == m.Seq {
			asked = true
			same = same || r.Data == m.Data
		}
	}
	if !asked {
		return Scan{}, false
	}
	p.answers++
	if same {
		return Scan{}, false
	}
	p.changed++
	n := float64(p.changed)
	return Scan{
		Type: ICMPTunnel, Target: netip.PrefixFrom(src, src.BitLen()), Host: src, Packets: p.answers, Sources: 1, FirstNs: p.since, Alert: true,
		What: "%s exchanges data in echo messages with %s",
		Measure: Measure{Level: n / t.EchoData, Packets: p.answers, Features: map[string]float64{"changed_echoes": n, "echo_answers": float64(p.answers)},
			Limits: map[string]float64{"changed_echoes": t.EchoData}},
	}, n >= t.EchoData && 5*p.changed >= p.answers
}
