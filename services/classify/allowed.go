package classify

import (
	"net/netip"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/policy"
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
