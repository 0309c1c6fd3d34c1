package classify

import (
	"net/netip"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

// Allow makes sources allowed, instead of those that were: nothing that they send counts for an attack. What is in force
// already against one of them stays until it ends.
func (e *Engine) Allow(sources policy.Cover) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.allowed = sources
}

// allows reports whether a source is allowed. An invalid address is none.
func (e *Engine) allows(src netip.Addr) bool {
	_, ok := e.allowed.Find(netip.PrefixFrom(src, src.BitLen()))
	return ok
}

// tries are what an allowed source began in a window with the host that it tried most.
type tries struct {
	host netip.Addr
	n    uint64
}

func (e *Engine) noteAllowed(w *flowv1.Window) {
	e.tried = e.tried[:0]
	for _, s := range w.GetSources() {
		if len(s.GetAddr()) == 16 && len(s.GetTopHost()) == 16 && e.allows(flow.AddrBytes(s.GetAddr())) {
			e.tried = append(e.tried, tries{flow.AddrBytes(s.GetTopHost()), s.GetTopHostAttempts()})
		}
	}
}

// allowedSYN is how many SYNs to p's hosts the window tells to be of allowed sources. Their tries by UDP are among them.
func (e *Engine) allowedSYN(p netip.Prefix) (n uint64) {
	for _, t := range e.tried {
		if p.Contains(t.host) {
			n += t.n
		}
	}
	return n
}

// leaveAllowed takes samples of allowed sources out of e.facts and e.raw, so that no verdict is chosen by them.
func (e *Engine) leaveAllowed() {
	n := 0
	for i := range e.facts {
		f := &e.facts[i]
		if !e.allows(flow.Addr(f.Src)) {
			e.facts[n], e.raw[n] = e.facts[i], e.raw[i]
			n++
		}
	}
	e.facts, e.raw = e.facts[:n], e.raw[:n]
}
