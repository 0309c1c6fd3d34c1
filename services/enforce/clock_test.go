package enforce

import (
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/bus/bustest"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
)

// TestClockSetBack: the kernel's entry of a leased rule ends by the kernel's clock, and the rule is renewed in time although its
// deadline lies an hour ahead by the clock that was set back.
func TestClockSetBack(t *testing.T) {
	r := newRig(t, nil)
	r.startReady()
	rule := drop("auto", 2*time.Second)
	rule.Expires = time.Now().Add(time.Hour).UTC()
	r.put(rule)
	r.event("auto", evApplied)
	bustest.Wait(t, "a deadline within the lease", func() bool {
		e, ok := r.gate.get(policy.NumericID("auto"))
		return ok && time.Until(e.Expires) <= 2*time.Second
	})
	if e := r.event("auto", evRenewed); e.GetDetail() != "the clock was set back" {
		t.Errorf("renewed: %v", e)
	}
	stop := r.keepHitting("auto", 1)
	defer stop()
	bustest.Wait(t, "a renewal for its hits", func() bool { return r.event("auto", evRenewed).GetDetail() == "it was hit since its last renewal" })
}

// TestClockStep: deadlines in the maps are of the kernel's clock, and follow the other one.
func TestClockStep(t *testing.T) {
	gate := newFakeGate()
	s := idle(t, newRig(t, nil).bus, gate)
	rule := userDrop("timed")
	rule.Expires = time.Now().Add(time.Hour).UTC()
	s.apply([]delivery{watched(bus.RuleUpdate{ID: rule.ID, Revision: 1, Rule: &rule})})
	var c clocks
	s.tick(&c, time.Now())
	number := policy.NumericID(rule.ID)
	step := func(by time.Duration) { // of the wall clock: the entry's deadline moves along when it is read
		c.ahead += int64(by)
		c.hits = time.Time{}
		gate.set(func(g *fakeGate) {
			e := g.rules[number]
			e.Expires = e.Expires.Add(-by)
			g.rules[number] = e
		})
		s.tick(&c, time.Now())
	}
	puts := gate.written()
	step(100 * time.Millisecond)
	if gate.written() != puts {
		t.Error("entries are written for a clock that is only corrected")
	}
	for _, by := range []time.Duration{time.Hour, -30 * time.Minute} {
		step(by)
		if e, _ := gate.get(number); !sameEntry(e, xdp.Rule{ID: number, Match: rule.Match, Action: policy.Drop, Expires: rule.Expires}) {
			t.Errorf("after a step of %s the entry is %+v", by, e)
		}
	}
	if len(s.events[number%publishers]) != 1 {
		t.Errorf("%d events, want the first alone", len(s.events[number%publishers]))
	}
}
