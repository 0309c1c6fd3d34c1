package enforce

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/bus/bustest"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

func (r *rig) inBucket(id string) (there bool) {
	r.t.Helper()
	m, err := r.bus.Rules(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	_, there = m[id]
	return there
}

// TestHeldLease: what panic holds outlives its lease without a word, and ends after it unless it is hit.
func TestHeldLease(t *testing.T) {
	r := newRig(t, nil)
	r.startReady()
	const lease = time.Second
	for _, id := range []string{"hit", "idle"} {
		r.put(drop(id, lease))
		r.event(id, evApplied)
	}
	bare := drop("bare", 0) // a deadline without a lease is not moved
	bare.Expires = time.Now().Add(2 * lease).UTC()
	r.put(bare)
	r.event("bare", evApplied)
	setPanic(t, r.svc, true, "ada")
	since := func(id string) time.Time { return r.svc.find(id).since }
	heldSince := since("hit")

	for begin := time.Now(); time.Since(begin) < 4*lease; time.Sleep(20 * time.Millisecond) {
		for _, id := range []string{"hit", "idle"} {
			if s := stateOf(t, r.svc, id); s.GetState() != "held" || s.GetReason() != string(Panic) {
				t.Fatalf("after %s %s is %q (%s)", time.Since(begin), id, s.GetState(), s.GetReason())
			}
		}
		if n := r.gate.blocking(); n != 0 {
			t.Fatalf("%d entries keep packets back", n)
		}
	}
	if s := stateOf(t, r.svc, "bare").GetState(); s != "expired" || r.inBucket("bare") {
		t.Errorf("the rule without a lease is %q", s)
	}
	if p := setPanic(t, r.svc, true, "bob"); p.GetHeld() != 2 {
		t.Errorf("%d rules held", p.GetHeld())
	}
	if !since("hit").Equal(heldSince) {
		t.Errorf("held since %s, then since %s", heldSince, since("hit"))
	}
	if n := testutil.ToFloat64(r.svc.m.refusals.WithLabelValues(string(Panic))); n != 3 {
		t.Errorf("%v rules counted as held, want each once", n)
	}

	setPanic(t, r.svc, false, "ada")
	released := time.Now()
	for time.Since(released) < 2*lease {
		if !r.gate.hit(policy.NumericID("hit"), 1) {
			t.Fatalf("%s after panic the rule that is hit does not act", time.Since(released))
		}
		time.Sleep(20 * time.Millisecond)
	}
	if s := stateOf(t, r.svc, "idle").GetState(); s != "expired" || r.inBucket("idle") {
		t.Errorf("two leases after panic the rule that nothing hits is %q", s)
	}
	r.event("idle", evExpired)
	for _, id := range []string{"hit", "idle"} {
		if a, n := r.count(id, evApplied), r.count(id, evRefused); a != 2 || n != 1 {
			t.Errorf("%s was told as applied %d times, as held %d times", id, a, n)
		}
	}
	if n := r.count("idle", evRenewed); n != 0 {
		t.Errorf("%d renewals were told of a rule that nothing hit", n)
	}
}

// TestHeldLeaseOfAnUnsharedPanic: where other nodes apply the rule, their hits decide.
func TestHeldLeaseOfAnUnsharedPanic(t *testing.T) {
	r := newRig(t, nil)
	r.startReady()
	if err := r.svc.handPanic(context.Background(), panicChange{state: &eventv1.Panic{On: true, SinceNs: time.Now().UnixNano()}}); err != nil {
		t.Fatal(err)
	}
	r.put(drop("auto", 600*time.Millisecond))
	r.event("auto", evRefused)
	bustest.Wait(t, "the end of the lease", func() bool { return stateOf(t, r.svc, "auto").GetState() == "expired" && !r.inBucket("auto") })
}

// TestRenewalToldOnce: a node that refuses a rule says so once, however often another renews it.
func TestRenewalToldOnce(t *testing.T) {
	r := newRig(t, func(c *Config) { c.NeverBlock = []string{"198.51.100.7/32"} })
	r.startReady()
	rule := drop("auto", time.Minute)
	for i := range 5 {
		rule.Expires = rule.Expires.Add(time.Second)
		r.put(rule)
		bustest.Wait(t, "the version", func() bool { s := r.svc.find("auto"); return s != nil && s.rule.Expires.Equal(rule.Expires) })
		if n := testutil.ToFloat64(r.svc.m.refusals.WithLabelValues(string(NeverBlock))); n != 1 {
			t.Fatalf("version %d: %v refusals counted", i, n)
		}
	}
	rule.Comment = "not only its deadline changed"
	r.put(rule)
	bustest.Wait(t, "the new rule's refusal", func() bool { return r.count("auto", evRefused) == 2 })
}

// heldTable is a node in panic, not running, with that many rules that have a third of their lease left.
func heldTable(t *testing.T, limit, rules int, now time.Time) *Service {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Ifaces, cfg.Node, cfg.RuleLimit = []string{"test0"}, "node-1", limit
	s, err := New(cfg, Deps{Telemetry: telemetry.Discard("enforce"), Bus: (*bus.Bus)(nil)})
	if err != nil {
		t.Fatal(err)
	}
	s.guard.panic, s.panicShared = panicState{on: true, since: now}, true
	for i := range rules {
		rule := drop(fmt.Sprint("auto-", i), 15*time.Second)
		rule.Expires = now.Add(5 * time.Second)
		s.rules[rule.ID] = &ruleState{rule: rule, number: policy.NumericID(rule.ID), revision: uint64(i) + 1, state: refused, refusal: refusal{reason: Panic}}
	}
	return s
}

// renewals takes what is queued.
func renewals(s *Service) (ids map[string]bool, twice bool) {
	ids = make(map[string]bool)
	for len(s.jobs) > 0 {
		j := <-s.jobs
		twice = twice || ids[j.rule.ID]
		ids[j.rule.ID] = true
	}
	return ids, twice
}

// TestHeldLeaseQueue: many renewals due at once leave room in the queue and are asked for once each.
func TestHeldLeaseQueue(t *testing.T) {
	const rules = 8000
	now := time.Now()
	s := heldTable(t, 10_000, rules, now)
	all := make(map[string]bool)
	for tick := 0; len(all) < rules; tick++ {
		if tick == 4 {
			t.Fatalf("%d of %d rules renewed in %d ticks", len(all), rules, tick)
		}
		now = now.Add(slowTick)
		s.leases(now)
		if len(s.jobs) > cap(s.jobs)/2 {
			t.Fatalf("%d of %d places taken", len(s.jobs), cap(s.jobs))
		}
		s.leases(now) // the queue is full, or nothing is left to ask for
		ids, twice := renewals(s)
		if twice {
			t.Fatal("a renewal was asked for twice")
		}
		for id := range ids {
			if all[id] {
				t.Fatalf("%s was asked for twice", id)
			}
			all[id] = true
			r := s.rules[id]
			next := r.rule
			next.Expires = now.Add(r.rule.Lease)
			s.settle(jobResult{job: job{kind: jobRenew, rule: next, revision: r.revision}, revision: r.revision + rules})
		}
	}
	s.leases(now.Add(slowTick))
	if len(s.jobs) != 0 {
		t.Errorf("%d renewals of fresh leases", len(s.jobs))
	}
	s.leases(now.Add(8 * time.Second)) // half a lease on
	if len(s.jobs) != cap(s.jobs)/2 {
		t.Errorf("%d renewals half a lease later", len(s.jobs))
	}
	if n := len(s.events[0]) + len(s.events[1]) + len(s.events[2]) + len(s.events[3]); n != 0 {
		t.Errorf("%d events", n)
	}
}

// TestHeldLeaseLimit: what could not act after panic is not kept, and two nodes keep the same.
func TestHeldLeaseLimit(t *testing.T) {
	const limit, rules, acting, fresh = 1000, 600, 500, 100
	now := time.Now()
	var first map[string]bool
	for node := range 2 {
		s := heldTable(t, limit, rules, now)
		for i := range acting + fresh {
			rule := drop(fmt.Sprint("other-", i), 15*time.Second)
			r := &ruleState{rule: rule, number: policy.NumericID(rule.ID), revision: 1, state: refused, refusal: refusal{reason: Panic}}
			if i < acting {
				r.state, r.rule.Action = active, policy.Count
			}
			s.rules[rule.ID] = r
		}
		s.leases(now)
		ids, _ := renewals(s)
		if want := limit - acting - fresh; len(ids) != want {
			t.Fatalf("%d renewals, want %d", len(ids), want)
		}
		if node == 0 {
			first = ids
			continue
		}
		for id := range ids {
			if !first[id] {
				t.Errorf("only one node keeps %s", id)
			}
		}
	}
}

// TestHeldLeaseOnTwoLinks: a rule that two nodes with an XDP program each hold for four leases stops its packets again.
func TestHeldLeaseOnTwoLinks(t *testing.T) {
	const lease = time.Second
	links := []*link{newLink(t, 0), newLink(t, 1)}
	conf := func(l *link) func(c *Config) {
		return func(c *Config) { c.Ifaces, c.BPFFS = []string{l.iface}, l.bpffs }
	}
	r := newRig(t, conf(links[0]))
	r.start(openXDP(links[0].bpffs, telemetry.Discard("enforce")))
	waitReady(t, r.svc)
	nodes := []*Service{r.svc, r.second(conf(links[1]), openXDP(links[1].bpffs, telemetry.Discard("enforce")))}
	rule := drop("auto", lease)
	rule.Match = policy.Match{Src: netip.PrefixFrom(links[0].from, 24).Masked()} // both links' senders
	put := time.Now()
	r.put(rule)
	silence := func() {
		t.Helper()
		for _, l := range links {
			bustest.Wait(t, "silence", func() bool { return l.during(20*time.Millisecond) == 0 })
		}
	}
	silence()

	setPanic(t, nodes[0], true, "ada")
	begin := time.Now()
	for time.Since(begin) < 4*lease {
		for i, s := range nodes {
			if state := stateOf(t, s, "auto").GetState(); state != "held" && (i == 0 || time.Since(begin) > lease/2) {
				t.Fatalf("after %s the rule is %q on node %d", time.Since(begin), state, i+1)
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	for _, l := range links {
		if l.during(50*time.Millisecond) == 0 {
			t.Error("no packet passes under panic")
		}
	}
	m, err := r.bus.Rules(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	// Revision 1 is the rule as it was put.
	if rev, most := m["auto"].Revision, 1+uint64(2*time.Since(put)/lease); rev < 5 || rev > most {
		t.Errorf("revision %d after four leases, want at most %d: one renewal a half lease, whichever node makes it", rev, most)
	}
	if n := r.count("auto", evRefused); n != len(nodes) {
		t.Errorf("told as held %d times", n)
	}
	setPanic(t, nodes[1], false, "ada")
	silence()
	for _, s := range nodes { // the packets renew it from now on
		bustest.Wait(t, "the rule in force", func() bool { return stateOf(t, s, "auto").GetState() == "active" })
	}
	for begin := time.Now(); time.Since(begin) < 2*lease; {
		for _, l := range links {
			if n := l.during(20 * time.Millisecond); n != 0 {
				t.Fatalf("%d packets %s after panic", n, time.Since(begin))
			}
		}
	}
	if a, n := r.count("auto", evApplied), r.count("auto", evRefused); a != 2*len(nodes) || n != len(nodes) {
		t.Errorf("told as applied %d times, as held %d times", a, n)
	}
}
