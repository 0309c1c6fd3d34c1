package enforce

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus/bustest"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// keepHitting lets so many packets match a rule each tenth of a second until the returned stop.
func (r *rig) keepHitting(id string, packets uint64) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				r.gate.hit(policy.NumericID(id), packets)
			}
		}
	}()
	return func() { cancel(); <-done }
}

// TestEscalation: a rate limit that is exceeded drops all, and limits again when less comes; both are events.
func TestEscalation(t *testing.T) {
	r := newRig(t, nil)
	r.startReady()
	rule := drop("limit", 0)
	rule.Action, rule.RatePPS, rule.EscalateAfter, rule.Origin, rule.AttackID = policy.RateLimit, 100, time.Second, policy.OriginUser, ""
	r.put(rule)
	r.waitEntry("limit")
	entry := func() xdp.Rule { e, _ := r.gate.get(policy.NumericID("limit")); return e }
	if e := entry(); e.Action != policy.RateLimit || e.RatePPS != 100 {
		t.Fatalf("it begins as %+v", e)
	}
	time.Sleep(2500 * time.Millisecond)
	if n := r.count("limit", evApplied); n != 1 {
		t.Errorf("%d versions of a limit that nothing exceeds", n)
	}
	stop := r.keepHitting("limit", 50)
	defer func() { stop() }()
	bustest.Wait(t, "that it drops all", func() bool { return entry().Action == policy.Drop && entry().RatePPS == 0 })
	bustest.Wait(t, "its event", func() bool { return r.count("limit", evApplied) == 2 })
	e := r.event("limit", evApplied)
	if e.GetBy() != byNode || e.GetDetail() != "node-1: it drops all: its limit was exceeded for 1s" || e.GetBefore().GetEscalated() || !e.GetRule().GetEscalated() ||
		e.GetRule().GetRatePps() != 100 || policy.Action(e.GetAction()) != policy.Drop {
		t.Errorf("escalated: %v", e)
	}
	time.Sleep(2500 * time.Millisecond)
	if entry().Action != policy.Drop {
		t.Error("it is given its rate back while the flood goes on")
	}
	stop()
	stop = r.keepHitting("limit", 5)
	bustest.Wait(t, "that it limits again", func() bool { return entry().Action == policy.RateLimit && entry().RatePPS == 100 })
	bustest.Wait(t, "the event of that", func() bool { return r.count("limit", evApplied) == 3 })
	if e := r.event("limit", evApplied); e.GetBy() != byNode || !strings.Contains(e.GetDetail(), "less than that came") || !e.GetBefore().GetEscalated() || e.GetRule().GetEscalated() {
		t.Errorf("back: %v", e)
	}
}

// TestEscalatedElsewhere: what another node made drop all gets its rate back in the end, should that node be gone.
func TestEscalatedElsewhere(t *testing.T) {
	s := &Service{cfg: Config{Node: "node-1"}}
	r := &ruleState{rule: drop("limit", 0)}
	r.rule.Action, r.rule.RatePPS, r.rule.EscalateAfter, r.rule.Escalated, r.rule.Changed = policy.RateLimit, 100, time.Second, true, "gone: it drops all"
	now := time.Now()
	for after, want := range map[time.Duration]bool{0: false, time.Minute: false, abandoned + time.Second: true} {
		next := r.rule
		r.turning = now
		if why := s.escalate(r, &next, now.Add(after)); (why != "") != want || next.Escalated == want {
			t.Errorf("after %s: %q", after, why)
		}
	}
	next := r.rule
	r.stat.Packets = 101 // since the last look
	if why := s.escalate(r, &next, now.Add(2*abandoned)); why != "" || !r.turning.IsZero() {
		t.Errorf("while it is exceeded here: %q", why)
	}
}

// TestEscalationSparesGood: what may not be dropped is limited on.
func TestEscalationSparesGood(t *testing.T) {
	r := newRig(t, nil)
	r.startReady()
	r.publishGood(200, time.Now().Add(-time.Minute))
	rule := drop("limit", 0)
	rule.Action, rule.RatePPS, rule.EscalateAfter, rule.Origin, rule.AttackID = policy.RateLimit, 100, time.Second, policy.OriginUser, ""
	rule.Match = policy.Match{Dst: netip.MustParsePrefix("203.0.113.1/32")}
	r.put(rule)
	r.waitEntry("limit")
	defer r.keepHitting("limit", 50)()
	refused := func() int {
		r.svc.mu.Lock()
		defer r.svc.mu.Unlock()
		if r.svc.rules["limit"].kept == GoodTraffic {
			return 1
		}
		return 0
	}
	bustest.Wait(t, "a refusal", func() bool { return refused() == 1 })
	time.Sleep(2 * time.Second)
	if e := r.event("limit", evUnchanged); e.GetReason() != "good_traffic" || e.GetBy() != byNode || r.count("limit", evUnchanged) != 1 {
		t.Errorf("not escalated, %d times: %v", r.count("limit", evUnchanged), e)
	}
	if e, _ := r.gate.get(policy.NumericID("limit")); e.Action != policy.RateLimit {
		t.Errorf("the entry is %+v", e)
	}
	r.metric("# HELP tidegate_enforce_refusals_total Rules, and entries of address lists, that a guardrail or the kernel refused.\n"+
		"# TYPE tidegate_enforce_refusals_total counter\n"+refusalsBut("good_traffic", 1), "tidegate_enforce_refusals_total")
}

// TestPromotion: a detector's rule in shadow acts after it has counted and hit little of what is good, and not otherwise.
func TestPromotion(t *testing.T) {
	r := newRig(t, func(c *Config) { c.PromoteAfter, c.PromoteBelow = time.Second, 0.02 })
	r.startReady()
	shadowed := func(id, src string) policy.Rule {
		p := drop(id, time.Minute)
		p.Shadow, p.Match.Src, p.AttackFirstNs = true, netip.MustParsePrefix(src), time.Now().UnixNano()
		r.put(p)
		r.waitEntry(id)
		return p
	}
	acts := func(id string) bool { e, ok := r.gate.get(policy.NumericID(id)); return ok && !e.WouldDrop }
	shadowed("stranger", "198.51.100.7/32")
	shadowed("client", "192.0.2.0/28") // 16 of 200
	shadowed("idle", "198.51.100.8/32")
	mine := userDrop("mine")
	mine.Shadow, mine.Match.Src = true, netip.MustParsePrefix("198.51.100.9/32")
	r.put(mine)
	r.waitEntry("mine")
	for _, id := range []string{"stranger", "client", "mine"} {
		defer r.keepHitting(id, 10)()
	}
	time.Sleep(2500 * time.Millisecond)
	if acts("stranger") {
		t.Fatal("a rule acts while nothing is known of good traffic")
	}
	r.publishGood(200, time.Now().Add(-time.Minute))
	bustest.Wait(t, "a promotion", func() bool { return acts("stranger") })
	bustest.Wait(t, "its event", func() bool { return r.count("stranger", evApplied) == 2 })
	e := r.event("stranger", evApplied)
	if e.GetBy() != byNode || !strings.HasPrefix(e.GetDetail(), "node-1: it acts now, after ") || !strings.HasSuffix(e.GetDetail(), "it hits 0% of the good flows of the last hour") ||
		!e.GetBefore().GetShadow() || e.GetRule().GetShadow() || e.GetShadow() {
		t.Errorf("promoted: %v", e)
	}
	time.Sleep(2500 * time.Millisecond)
	for _, id := range []string{"client", "idle", "mine"} {
		if acts(id) {
			t.Errorf("%s acts", id)
		}
	}
	if e := r.event("client", evUnchanged); e.GetBy() != byNode || e.GetReason() != "good_traffic" || !e.GetRule().GetShadow() ||
		!strings.HasPrefix(e.GetDetail(), "it stays in shadow: it hits ") || !strings.HasSuffix(e.GetDetail(), "of the good flows of the last hour, and may act below 2%") {
		t.Errorf("not promoted: %v", e)
	}
	for id, want := range map[string]int{"client": 1, "idle": 0, "mine": 0, "stranger": 0} {
		if n := r.count(id, evUnchanged); n != want {
			t.Errorf("%s: told %d times that it stays", id, n)
		}
	}
	mine.Shadow = false // its owner may
	r.put(mine)
	bustest.Wait(t, "that the user's rule acts", func() bool { return acts("mine") && r.count("mine", evApplied) == 2 })
	if e := r.event("mine", evApplied); e.GetBy() != policy.OriginUser || !e.GetBefore().GetShadow() {
		t.Errorf("a user's change: %v", e)
	}
}

// TestRepeatOffender: what is blocked again within a day has a longer lease each time, up to a bound.
func TestRepeatOffender(t *testing.T) {
	r := newRig(t, func(c *Config) { c.LeaseMax = 3 * time.Second })
	r.startReady()
	block := func(id string) {
		t.Helper()
		r.put(drop(id, time.Second))
		r.waitEntry(id)
		r.gate.hit(policy.NumericID(id), 5)
	}
	block("first")
	r.event("first", evExpired)
	if n := r.count("first", evApplied); n != 1 {
		t.Errorf("%d versions of the first rule", n)
	}
	for i, want := range []time.Duration{2 * time.Second, 3 * time.Second} {
		id := []string{"second", "third"}[i]
		block(id)
		stop := r.keepHitting(id, 1)
		var e *eventv1.Enforcement
		bustest.Wait(t, "a longer lease of "+id, func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			for _, e = range r.events {
				if e.GetRuleId() == id && e.GetState() == evRenewed && e.GetBefore().GetRepeat() < e.GetRule().GetRepeat() {
					return true
				}
			}
			return false
		})
		if e.GetRule().GetRepeat() != uint32(i+1) || time.Duration(e.GetRule().GetLeaseNs()) != want || time.Duration(e.GetBefore().GetLeaseNs()) != time.Second || e.GetBy() != byNode || !strings.Contains(e.GetDetail(), "within a day") { //nolint:gosec // small
			t.Errorf("%s: %v", id, e)
		}
		stop()
		r.event(id, evExpired)
	}
	r.put(func() policy.Rule {
		p := drop("other", time.Second)
		p.Match.Src = netip.MustParsePrefix("198.51.100.99/32")
		return p
	}())
	r.event("other", evExpired)
	if e := r.event("other", evApplied); e.GetRule().GetRepeat() != 0 {
		t.Errorf("something else: %v", e)
	}
}

func TestOffendersBounded(t *testing.T) {
	o, now := make(offenders), time.Now()
	rule := func(i int) *ruleState {
		p := drop("x", time.Second)
		p.Match.Src = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32)
		return &ruleState{rule: p, stat: xdp.RuleStat{FirstDrop: now}}
	}
	for i := range 2 * offendersMax {
		o.note(rule(i), now.Add(time.Duration(i)*time.Second))
	}
	if len(o) != offendersMax {
		t.Errorf("%d are remembered", len(o))
	}
	last := rule(2*offendersMax - 1).rule.Match
	at := now.Add(2 * offendersMax * time.Second)
	if o.times(last, at) != 1 || o.times(rule(0).rule.Match, at) != 0 || o.times(last, at.Add(offenceKept)) != 0 {
		t.Error("the wrong ones are remembered")
	}
	idle := rule(2*offendersMax + 1)
	idle.stat.FirstDrop = time.Time{}
	if o.note(idle, at); o.times(idle.rule.Match, at) != 0 {
		t.Error("a rule that dropped nothing is an offence")
	}
}
