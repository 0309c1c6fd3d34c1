package enforce

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/policy"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

const (
	goodMinutes   = 60
	goodPerMinute = 128 // flows remembered of a minute: 7,680 in all, of about 100 bytes
	goodMessages  = 20  // messages of flows read a second at most
	goodEnough    = 100 // remembered flows below which a share says nothing
)

// goodTraffic is a random sample of the good flows of the last hour. Its user holds the service's lock.
type goodTraffic [goodMinutes]goodMinute

type goodMinute struct {
	number int64   // of the minute, Unix time
	seen   float64 // good flows in it, estimated
	read   int     // of them those that came by
	flows  []goodFlow
}

// goodFlow is a flow in both of whose directions there was more than a question and a refusal.
type goodFlow struct {
	src, dst         netip.Addr
	srcPort, dstPort uint16
	protocol         uint8
	fwdFlags         uint8
	revFlags         uint8
	firstNs          int64
}

// isGood: both sides took part. TCP has been established: what scans and floods leave behind has not.
func isGood(f *eventv1.FlowRecord) bool {
	if f.GetPacketsFwd() == 0 || f.GetPacketsRev() == 0 {
		return false
	}
	if f.GetProtocol() != 6 {
		return true
	}
	acked := func(flags uint32) bool { return flags&uint32(policy.ACK) != 0 }
	return acked(f.GetTcpFlagsFwd()) && acked(f.GetTcpFlagsRev()) && f.GetPacketsFwd() >= 3 && f.GetPacketsRev() >= 2
}

// watchFlows takes in flows until ctx ends.
func (s *Service) watchFlows(ctx context.Context) {
	if s.cfg.GoodLimit == 0 && s.cfg.PromoteAfter == 0 {
		return
	}
	// The error is that of the context.
	_ = s.bus.SampleFlows(ctx, goodMessages, func(stands float64, f *eventv1.FlowRecords) {
		now := time.Now()
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, r := range f.GetRecords() {
			if isGood(r) {
				s.guard.good.add(r, stands, now)
			}
		}
	})
}

// add takes a flow that stands for so many. Of each minute a random choice is kept.
func (g *goodTraffic) add(r *eventv1.FlowRecord, stands float64, now time.Time) {
	src, ok := netip.AddrFromSlice(r.GetSrcIp())
	dst, ok2 := netip.AddrFromSlice(r.GetDstIp())
	if !ok || !ok2 {
		return
	}
	number := r.GetLastNs() / int64(time.Minute)
	m := &g[uint64(number)%goodMinutes] //nolint:gosec // times are after 1970
	switch {
	case number < m.number:
		return // more than an hour old
	case number > now.UnixNano()/int64(time.Minute)+1:
		return // a sensor's clock is ahead: the minute is not over for the others
	case number > m.number:
		*m = goodMinute{number: number, flows: m.flows[:0]}
	}
	m.seen += stands
	m.read++
	f := goodFlow{
		src: src.Unmap(), dst: dst.Unmap(), srcPort: uint16(r.GetSrcPort()), dstPort: uint16(r.GetDstPort()), protocol: uint8(r.GetProtocol()), //nolint:gosec // fields of packets
		fwdFlags: uint8(r.GetTcpFlagsFwd()), revFlags: uint8(r.GetTcpFlagsRev()), firstNs: r.GetFirstNs(), //nolint:gosec // fields of packets
	}
	if len(m.flows) < goodPerMinute {
		m.flows = append(m.flows, f)
	} else if i := rand.IntN(m.read); i < goodPerMinute { //nolint:gosec // a sample, not a secret
		m.flows[i] = f
	}
}

// share is how much of the good traffic a match hits, 0 to 1, and the number of flows that tell. Flows that began after
// beforeNs, if it is not 0, do not count: they may be the attack's own.
func (g *goodTraffic) share(m *policy.Match, beforeNs int64, now time.Time) (share float64, told int) {
	hit, all := 0.0, 0.0
	oldest := now.Add(-goodMinutes*time.Minute).UnixNano() / int64(time.Minute)
	for i := range g {
		minute := &g[i]
		if minute.number <= oldest || len(minute.flows) == 0 {
			continue
		}
		weight := minute.seen / float64(len(minute.flows))
		for j := range minute.flows {
			f := &minute.flows[j]
			if beforeNs != 0 && f.firstNs >= beforeNs {
				continue
			}
			told++
			all += weight
			if f.hit(m) {
				hit += weight
			}
		}
	}
	if all == 0 {
		return 0, 0
	}
	return hit / all, told
}

// hit reports whether a match may select packets of the flow. What records do not tell, length and TTL, selects all;
// fragments and what is out of state are not of good flows.
func (f *goodFlow) hit(m *policy.Match) bool {
	if m.OutOfState || m.Fragment == policy.FragmentsOnly || m.HasProtocol && m.Protocol != f.protocol {
		return false
	}
	way := func(src, dst netip.Addr, srcPort, dstPort uint16, flags uint8) bool {
		return (!m.Src.IsValid() || m.Src.Contains(src)) && (!m.Dst.IsValid() || m.Dst.Contains(dst)) &&
			(!m.HasSrcPort || m.SrcPort == srcPort) && (!m.HasDstPort || m.DstPort == dstPort) &&
			flags&m.TCPFlags == m.TCPFlags // the flow's are those of all its packets
	}
	return way(f.src, f.dst, f.srcPort, f.dstPort, f.fwdFlags) || way(f.dst, f.src, f.dstPort, f.srcPort, f.revFlags)
}

// goodShare is how much of the last hour's good traffic a rule would hit; false: too little is known. A detector that
// names no source has compared headers itself, so of the target's flows its own share counts.
func (g *guard) goodShare(r *policy.Rule, now time.Time) (float64, bool) {
	if r.Origin != policy.OriginDetector || r.Match.Src.IsValid() {
		share, told := g.good.share(&r.Match, r.AttackFirstNs, now)
		return share, told >= goodEnough
	}
	share, told := g.good.share(&policy.Match{Dst: r.Match.Dst}, r.AttackFirstNs, now)
	return share * r.GoodShare, told >= goodEnough
}

// sparesGood refuses a rule that drops too much of what was good in the last hour. A rate limit lets through what is
// within its rate, and is not judged.
func (g *guard) sparesGood(r *policy.Rule, now time.Time) *refusal {
	if g.goodLimit == 0 || r.InForce() != policy.Drop || r.Shadow || r.Match.Host != "" || g.allowBroadUser && r.Origin == policy.OriginUser {
		return nil
	}
	if share, known := g.goodShare(r, now); known && share > g.goodLimit {
		return &refusal{GoodTraffic, fmt.Sprintf("it would hit %.0f%% of the good flows of the last hour, more than %.0f%%", 100*share, 100*g.goodLimit)}
	}
	return nil
}
