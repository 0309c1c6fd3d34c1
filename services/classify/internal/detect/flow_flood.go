package detect

import "net/netip"

// rates are what a source tried to begin in each slot of the last second.
type rates struct {
	newest int64
	n      [Slots]uint64
}

func (r *rates) add(startNs int64, n uint64) {
	at := startNs / int64(Slot)
	if at <= r.newest-Slots || at >= r.newest+Slots {
		*r = rates{newest: at}
	}
	for ; r.newest < at; r.newest++ {
		r.n[index(r.newest+1)] = 0
	}
	r.n[index(at)] += n
}

// sustained is the sum of a second in which at least eight slots had a twentieth of limit each, else 0: a scan's burst is
// over, or blocked, sooner.
func (r *rates) sustained(limit float64) float64 {
	sum, busy := uint64(0), 0
	for _, n := range r.n {
		sum += n
		if float64(n) >= limit/20 {
			busy++
		}
	}
	if busy < 8 {
		return 0
	}
	return float64(sum)
}

// known is how much more a peer may that exchanged payload with the host before, as a proxy in front of it does.
const known = 10

// FlowFlood: one source begins ≥ Flows TCP flows with one host in a second, at a steady rate. A settled peer may ten times
// as many.
func (s *Scanner) FlowFlood(t *Thresholds, settled bool) (Scan, bool) {
	limit := t.Flows
	if settled {
		limit *= known
	}
	n := s.opens.sustained(t.Flows)
	if n < limit/2 || s.benign() {
		return Scan{}, false
	}
	for i := range s.Samples {
		if s.Samples[i].Protocol != 6 {
			return Scan{}, false
		}
	}
	host := s.Host()
	return Scan{
		Type: FlowFlood, Target: netip.PrefixFrom(host, host.BitLen()), Host: host, Fast: true, Packets: uint64(n), Sources: 1,
		What: "%s began flow after flow with %s",
		Measure: Measure{Level: n / limit, Packets: uint64(n), Features: map[string]float64{"flows": n},
			Limits: map[string]float64{"flows": limit}},
	}, n >= limit
}
