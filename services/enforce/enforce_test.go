package enforce

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tidegate-mesh/tidegate/libs/bus/bustest"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
	enforcev1 "github.com/tidegate-mesh/tidegate/proto/enforce/v1"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
)

const (
	evApplied   = eventv1.EnforcementState_ENFORCEMENT_STATE_APPLIED
	evRefused   = eventv1.EnforcementState_ENFORCEMENT_STATE_REFUSED
	evFirstDrop = eventv1.EnforcementState_ENFORCEMENT_STATE_FIRST_DROP
	evHits      = eventv1.EnforcementState_ENFORCEMENT_STATE_HITS
	evRenewed   = eventv1.EnforcementState_ENFORCEMENT_STATE_RENEWED
	evExpired   = eventv1.EnforcementState_ENFORCEMENT_STATE_EXPIRED
	evRevoked   = eventv1.EnforcementState_ENFORCEMENT_STATE_REVOKED
)

func TestDefaultConfigEqualsTags(t *testing.T) {
	var c Config
	p, err := kong.New(&c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Parse([]string{"--iface", "a"}); err != nil {
		t.Fatal(err)
	}
	c.Ifaces = nil
	if want := DefaultConfig(); !reflect.DeepEqual(c, want) {
		t.Errorf("tags give %+v, DefaultConfig %+v", c, want)
	}
}

func TestApplyDropAndHits(t *testing.T) {
	r := newRig(t, nil)
	r.startReady()
	rule := drop("r1", time.Minute)
	n := policy.NumericID("r1")
	r.put(rule)
	e := r.event("r1", evApplied)
	if e.GetApplyNs() <= 0 || e.GetApplyNs() > int64(time.Second) || e.GetShadow() || e.GetAttackId() != "attack-1" || e.GetNode() != "node-1" {
		t.Errorf("applied: %v", e)
	}
	if e.GetTraceId() != "4bf92f3577b34da6a3ce929d0e0e4736" {
		t.Errorf("the event is not in the verdict's trace: %q", e.GetTraceId())
	}
	got, ok := r.gate.get(n)
	if !ok || got.WouldDrop || got.Action != policy.Drop || got.Match != rule.Match || got.Expires != rule.Expires {
		t.Fatalf("entry %+v", got)
	}
	r.gate.hit(n, 10)
	at := r.gate.stats[n].FirstDrop
	f := r.event("r1", evFirstDrop)
	if f.GetFirstDropNs() != at.UnixNano() || f.GetTimeToFirstDropNs() != at.UnixNano()-rule.AttackFirstNs {
		t.Errorf("first drop %v, want the entry's time %d", f, at.UnixNano())
	}
	h := r.event("r1", evHits)
	if h.GetPackets() != 10 || h.GetBytes() != 600 {
		t.Errorf("hits %v", h)
	}
	r.gate.hit(n, 5)
	bustest.Wait(t, "the total", func() bool {
		h = r.event("r1", evHits)
		return h.GetPackets() == 15
	})
	time.Sleep(1200 * time.Millisecond)
	if hits := r.count("r1", evHits); hits != 2 {
		t.Errorf("%d hits events, want one for each second in which counters advanced", hits)
	}
	if n := r.count("r1", evFirstDrop); n != 1 {
		t.Errorf("%d first drops", n)
	}
	if n := testutil.CollectAndCount(r.svc.m.firstDrop); n != 1 {
		t.Errorf("time to first drop: %d series", n)
	}
	r.metric(`
# HELP tidegate_enforce_rules Rules on this node.
# TYPE tidegate_enforce_rules gauge
tidegate_enforce_rules{action="drop",state="active"} 1
`, "tidegate_enforce_rules")
	if got := histogramCount(t, r, "tidegate_time_to_first_drop_seconds"); got != 1 {
		t.Errorf("time to first drop was observed %d times", got)
	}
	if got := histogramCount(t, r, "tidegate_enforce_apply_seconds"); got != 1 {
		t.Errorf("apply was observed %d times", got)
	}
}

func histogramCount(t *testing.T, r *rig, name string) uint64 {
	t.Helper()
	families, err := r.tel.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetHistogram().GetSampleCount()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

func TestShadow(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Enforce = false })
	r.startReady()
	r.put(drop("r1", time.Minute))
	allow := policy.Rule{ID: "a1", Action: policy.Allow, Match: policy.Match{Src: netip.MustParsePrefix("192.0.2.9/32")}}
	r.put(allow)
	if e := r.event("r1", evApplied); !e.GetShadow() {
		t.Errorf("not marked as shadow: %v", e)
	}
	r.event("a1", evApplied)
	if e, _ := r.gate.get(policy.NumericID("r1")); !e.WouldDrop {
		t.Error("the entry drops in shadow mode")
	}
	if e, _ := r.gate.get(policy.NumericID("a1")); e.WouldDrop {
		t.Error("an allow rule is not to be counted instead")
	}
	r.gate.hit(policy.NumericID("r1"), 3)
	if e := r.event("r1", evHits); e.GetPackets() != 3 || !e.GetShadow() {
		t.Errorf("hits %v", e)
	}
	list, _ := r.svc.ListRules(context.Background(), nil)
	if len(list.GetRules()) != 2 || list.GetRules()[0].GetState() != "active" || list.GetRules()[1].GetState() != "shadow" {
		t.Errorf("list %v", list)
	}
}

func TestRenewExpire(t *testing.T) {
	r := newRig(t, nil)
	r.startReady()
	const lease = 800 * time.Millisecond
	r.put(drop("hit", lease))
	r.put(drop("idle", lease))
	bare := drop("bare", 0) // a deadline without a lease: hits do not prolong it
	bare.Expires = time.Now().Add(lease).UTC()
	r.put(bare)
	r.event("bare", evApplied)
	for begin := time.Now(); time.Since(begin) < 3*lease; time.Sleep(20 * time.Millisecond) {
		if !r.gate.hit(policy.NumericID("hit"), 1) {
			t.Fatal("the renewed rule had a gap")
		}
		r.gate.hit(policy.NumericID("bare"), 1)
	}
	if n := r.count("hit", evRenewed); n < 2 {
		t.Errorf("renewed %d times in three leases", n)
	}
	r.event("idle", evExpired)
	r.event("bare", evExpired)
	last := time.Now()
	r.event("hit", evExpired)
	if d := time.Since(last); d > 2*lease {
		t.Errorf("expired %s after the last hit", d)
	}
	for _, id := range []string{"hit", "idle", "bare"} {
		bustest.Wait(t, "no entry "+id, func() bool { _, ok := r.gate.get(policy.NumericID(id)); return !ok })
		if n := r.count(id, evRevoked); n != 0 {
			t.Errorf("%s: the deletion of an expired key was told as a revocation", id)
		}
	}
	bustest.Wait(t, "an empty bucket", func() bool {
		m, err := r.bus.Rules(context.Background())
		return err == nil && len(m) == 0
	})
}

func TestRevoke(t *testing.T) {
	r := newRig(t, nil)
	r.startReady()
	r.put(drop("r1", 0))
	r.event("r1", evApplied)
	if err := r.bus.DeleteRule(context.Background(), "r1"); err != nil {
		t.Fatal(err)
	}
	r.event("r1", evRevoked)
	if _, ok := r.gate.get(policy.NumericID("r1")); ok {
		t.Error("the entry is still there")
	}
}

func TestRestart(t *testing.T) {
	r := newRig(t, nil)
	r.startReady()
	for _, id := range []string{"keep", "revoked", "changed"} {
		r.put(drop(id, time.Minute))
		r.event(id, evApplied)
	}
	r.gate.hit(policy.NumericID("keep"), 7)
	r.event("keep", evFirstDrop)
	r.stop()
	if n := len(r.gate.rules); n != 3 {
		t.Fatalf("%d entries after the shutdown, want all 3", n)
	}
	ctx := context.Background()
	if err := r.bus.DeleteRule(ctx, "revoked"); err != nil {
		t.Fatal(err)
	}
	changed := drop("changed", time.Minute)
	changed.Priority = 9
	r.put(changed)
	r.put(drop("new", time.Minute))
	// An entry of a rule that the bucket has never heard of, for example of another mesh.
	r.gate.set(func(g *fakeGate) { g.rules[4711] = xdp.Rule{ID: 4711, Action: policy.Drop} })
	before := r.gate.written()
	r.startReady()
	r.event("new", evApplied)
	bustest.Wait(t, "the diff", func() bool {
		_, stale := r.gate.get(4711)
		_, revoked := r.gate.get(policy.NumericID("revoked"))
		c, _ := r.gate.get(policy.NumericID("changed"))
		return !stale && !revoked && c.Priority == 9
	})
	if n := r.gate.written() - before; n != 2 {
		t.Errorf("%d entries written, want the changed and the new one only", n)
	}
	if r.gate.stats[policy.NumericID("keep")].Packets != 7 {
		t.Error("the kept entry lost its counters")
	}
	if n := histogramCount(t, r, "tidegate_time_to_first_drop_seconds"); n != 0 {
		t.Error("a first drop of the earlier run was observed again")
	}
	if n := r.count("keep", evApplied); n != 1 {
		t.Errorf("%d applied events of the kept rule", n)
	}
}

func TestEmptyBucketRemovesNothing(t *testing.T) {
	r := newRig(t, nil)
	stay := xdp.Rule{ID: 99, Action: policy.Drop, Expires: time.Now().Add(time.Minute)}
	r.gate.rules[99] = stay
	r.startReady()
	time.Sleep(100 * time.Millisecond)
	if _, ok := r.gate.get(99); !ok {
		t.Fatal("an empty bucket removed an entry")
	}
	st, err := r.svc.Status(context.Background(), nil)
	if err != nil || !strings.Contains(strings.Join(st.GetStatus().GetProblems(), " "), "1 entries of an earlier run") {
		t.Errorf("status does not tell: %v (%v)", st, err)
	}
}

func TestInterfaceMissing(t *testing.T) {
	r := newRig(t, nil)
	var up bool
	r.gate.set(func(*fakeGate) {}) // publishes the gate to the opener's goroutine
	r.start(func(string) (Gate, error) {
		r.gate.mu.Lock()
		defer r.gate.mu.Unlock()
		if !up {
			return nil, fmt.Errorf("test0: %w", xdp.ErrNoInterface)
		}
		return r.gate, nil
	})
	bustest.Wait(t, "readiness to name the interface", func() bool {
		err := r.svc.ready()
		return err != nil && strings.Contains(err.Error(), "test0") && strings.Contains(err.Error(), "no such interface")
	})
	r.put(drop("r1", time.Minute))
	bustest.Wait(t, "a pending rule", func() bool {
		l, _ := r.svc.ListRules(context.Background(), nil)
		return len(l.GetRules()) == 1 && l.GetRules()[0].GetState() == "pending"
	})
	r.gate.set(func(*fakeGate) { up = true })
	r.event("r1", evApplied)
	waitReady(t, r.svc)

	// The interface is made again: a new gate without entries.
	old := r.gate
	fresh := newFakeGate()
	old.mu.Lock()
	r.gate = fresh
	old.dead = errors.New("the interface is gone")
	old.mu.Unlock()
	bustest.Wait(t, "the rule in the new gate", func() bool { _, ok := fresh.get(policy.NumericID("r1")); return ok })
	waitReady(t, r.svc)
	if n := r.count("r1", evApplied); n != 1 {
		t.Errorf("applied was told %d times", n)
	}
}

func TestKernelRefusals(t *testing.T) {
	r := newRig(t, nil)
	r.gate.putErr = func(e *xdp.Rule) error {
		if e.ID == policy.NumericID("mask") {
			return xdp.ErrMaskLimit
		}
		return nil
	}
	r.startReady()
	r.put(drop("mask", time.Minute))
	r.put(drop("good", time.Minute))
	r.event("good", evApplied)
	if e := r.event("mask", evRefused); e.GetReason() != string(MaskLimit) {
		t.Errorf("refused for %q", e.GetReason())
	}
	if n := testutil.ToFloat64(r.svc.m.refusals.WithLabelValues("mask_limit")); n != 1 {
		t.Errorf("%v refusals counted", n)
	}
	r.gate.set(func(g *fakeGate) { g.putErr = nil })
	r.event("mask", evApplied) // tried again
	if n := r.count("mask", evRefused); n != 1 {
		t.Errorf("refused %d times, want to be told once", n)
	}
}

func TestRateAndRuleLimit(t *testing.T) {
	r := newRig(t, func(c *Config) { c.RuleBurst, c.RulesPerSecond, c.RuleLimit = 3, 2, 5 })
	r.startReady()
	for i := range 7 {
		r.put(drop(fmt.Sprint("r", i), time.Minute))
	}
	bustest.Wait(t, "the limit", func() bool { return len(mustRules(t, r.gate)) == 5 })
	for _, reason := range []Reason{RateOfRules, RuleLimit} {
		bustest.Wait(t, "refusals for "+string(reason), func() bool {
			return testutil.ToFloat64(r.svc.m.refusals.WithLabelValues(string(reason))) > 0
		})
	}
	if err := r.bus.DeleteRule(context.Background(), "r0"); err != nil {
		t.Fatal(err)
	}
	bustest.Wait(t, "a waiting rule in the freed place", func() bool {
		_, gone := r.gate.get(policy.NumericID("r0"))
		return !gone && len(mustRules(t, r.gate)) == 5
	})
}

func mustRules(t *testing.T, g *fakeGate) []xdp.Rule {
	t.Helper()
	l, err := g.Rules()
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestInvalidAndExpiredInBucket(t *testing.T) {
	r := newRig(t, nil)
	late := drop("late", time.Minute)
	late.Expires = time.Now().Add(-time.Second).UTC()
	r.put(late)
	r.startReady()
	if e := r.event("late", evRefused); e.GetReason() != string(Expired) {
		t.Errorf("refused for %q", e.GetReason())
	}
	bustest.Wait(t, "the key's deletion", func() bool {
		m, err := r.bus.Rules(context.Background())
		return err == nil && len(m) == 0
	})
	if len(mustRules(t, r.gate)) != 0 {
		t.Error("an expired rule reached the map")
	}
	if err := r.bus.Raw(context.Background(), "$KV.tg_rules.broken", []byte("{")); err != nil {
		t.Fatal(err)
	}
	if e := r.event("broken", evRefused); e.GetReason() != string(Invalid) {
		t.Errorf("refused for %q", e.GetReason())
	}
}

func TestService(t *testing.T) {
	r := newRig(t, func(c *Config) { c.NeverBlock = []string{"203.0.113.0/24"}; c.Management = []string{"198.51.100.200"} })
	r.gate.counter = xdp.Counters{Seen: 100, Drop: 20, RateLimited: 10, Pass: 5, Forward: 30, Redirect: 34, NoReader: 1, Count: 3, OutOfState: 7, Forgotten: 4}
	r.startReady()
	ctx := context.Background()
	add := func(src string, set func(*policyv1.Rule)) (*enforcev1.AddRuleResponse, error) {
		p := &policyv1.Rule{Action: policyv1.Action_ACTION_DROP, Match: &policyv1.Match{Src: src}}
		if set != nil {
			set(p)
		}
		return r.svc.AddRule(ctx, &enforcev1.AddRuleRequest{Rule: p})
	}
	a, err := add("198.18.0.1", nil)
	if err != nil {
		t.Fatal(err)
	}
	id := a.GetRule().GetId()
	if id == "" || a.GetRule().GetOrigin() != policy.OriginUser || a.GetRule().GetCreatedNs() == 0 {
		t.Errorf("added %v", a)
	}
	if _, ok := r.gate.get(policy.NumericID(id)); !ok {
		t.Error("AddRule returned before the entry was there")
	}
	if b, err := add("198.18.0.1", nil); err != nil || b.GetRule().GetId() != id {
		t.Errorf("the same rule again: %v (%v)", b, err)
	}
	for _, c := range []struct {
		src  string
		set  func(*policyv1.Rule)
		code codes.Code
		say  string
	}{
		{"203.0.113.9", nil, codes.FailedPrecondition, "never_block"},
		{"198.51.100.200", nil, codes.FailedPrecondition, "management"},
		{"10.0.0.0/8", nil, codes.FailedPrecondition, "blast_radius"},
		{"", nil, codes.FailedPrecondition, "blast_radius"},
		{"198.18.0.2", func(p *policyv1.Rule) { p.ExpiresNs = 1 }, codes.FailedPrecondition, "expired"},
		{"not an address", nil, codes.InvalidArgument, "neither an address nor a prefix"},
		{"198.18.0.2", func(p *policyv1.Rule) { p.Action = 0 }, codes.InvalidArgument, "unknown action"},
		{"198.18.0.2", func(p *policyv1.Rule) { p.Id = "a b" }, codes.InvalidArgument, "not usable as a key"},
		{"198.18.0.2", func(p *policyv1.Rule) { p.RatePps = 5 }, codes.InvalidArgument, "rate-limit"},
	} {
		_, err := add(c.src, c.set)
		if status.Code(err) != c.code || !strings.Contains(status.Convert(err).Message(), c.say) {
			t.Errorf("%q: %v, want %v with %q", c.src, err, c.code, c.say)
		}
	}
	r.gate.hit(policy.NumericID(id), 2)
	bustest.Wait(t, "the explanation to tell of the hits", func() bool {
		x, err := r.svc.ExplainRule(ctx, &enforcev1.ExplainRuleRequest{Id: id})
		return err == nil && strings.Contains(x.GetExplanation(), "Drops packets that match: src 198.18.0.1/32. A user made it. It is in force.") &&
			strings.Contains(x.GetExplanation(), "matched 2 packets") && x.GetState().GetFirstDropNs() > 0
	})
	st, err := r.svc.Status(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	terms := st.GetStatus().GetLedger().GetTerms()
	if terms["dropped"] != 30 || terms["xdp_seen"] != terms["dropped"]+terms["passed"]+terms["forwarded"]+terms["no_reader"]+terms["redirected"] {
		t.Errorf("ledger %v does not add up", terms)
	}
	if !st.GetStatus().GetReady() || !st.GetEnforcing() || st.GetInterfaces()[0] != "test0" {
		t.Errorf("status %v", st)
	}
	for _, want := range []string{"203.0.113.0/24", "198.51.100.200/32"} {
		if !strings.Contains(strings.Join(st.GetNeverBlock(), " "), want) || r.gate.never[netip.MustParsePrefix(want)].Prefix.String() != want {
			t.Errorf("%s is not in the never-block list %v", want, st.GetNeverBlock())
		}
	}
	r.metric(`
# HELP tidegate_xdp_packets_total Packets of the XDP program by what happened to them; count overlaps the others.
# TYPE tidegate_xdp_packets_total counter
tidegate_xdp_packets_total{action="count",iface="test0"} 3
tidegate_xdp_packets_total{action="drop",iface="test0"} 20
tidegate_xdp_packets_total{action="forward",iface="test0"} 30
tidegate_xdp_packets_total{action="no_reader",iface="test0"} 1
tidegate_xdp_packets_total{action="pass",iface="test0"} 5
tidegate_xdp_packets_total{action="rate_limited",iface="test0"} 10
tidegate_xdp_packets_total{action="redirect",iface="test0"} 34
`, "tidegate_xdp_packets_total")
	r.metric(`
# HELP tidegate_xdp_sources_forgotten_total Sources that another one pushed out of the full table of rules with a rate of each source, and that begin anew.
# TYPE tidegate_xdp_sources_forgotten_total counter
tidegate_xdp_sources_forgotten_total{iface="test0"} 4
`, "tidegate_xdp_sources_forgotten_total")
	r.metric(`
# HELP tidegate_xdp_out_of_state_total Packets dropped as out of state; they are also in tidegate_xdp_packets_total as drop.
# TYPE tidegate_xdp_out_of_state_total counter
tidegate_xdp_out_of_state_total{iface="test0"} 7
`, "tidegate_xdp_out_of_state_total")
	each, err := add("198.18.0.9", func(p *policyv1.Rule) {
		p.Action, p.RateBps, p.PerSource = policyv1.Action_ACTION_RATE_LIMIT, 8000, true
	})
	if err != nil || !each.GetRule().GetPerSource() {
		t.Fatalf("a rate of each source: %v (%v)", each, err)
	}
	if e, ok := r.gate.get(policy.NumericID(each.GetRule().GetId())); !ok || !e.PerSource || e.RateBPS != 8000 {
		t.Errorf("the gate has %+v", e)
	}
	if x, err := r.svc.ExplainRule(ctx, &enforcev1.ExplainRuleRequest{Id: each.GetRule().GetId()}); err != nil || !strings.Contains(x.GetExplanation(), "The limit is 8000 bits a second for each source.") {
		t.Errorf("%v (%v)", x, err)
	}
	together, err := add("198.18.0.9", func(p *policyv1.Rule) { p.Action, p.RateBps = policyv1.Action_ACTION_RATE_LIMIT, 8000 })
	if err != nil || together.GetRule().GetId() == each.GetRule().GetId() {
		t.Errorf("the same of all sources has the id of another rule: %v (%v)", together, err)
	}
	if _, err := r.svc.RevokeRule(ctx, &enforcev1.RevokeRuleRequest{Id: id}); err != nil {
		t.Fatal(err)
	}
	if _, ok := r.gate.get(policy.NumericID(id)); ok {
		t.Error("RevokeRule returned before the entry was gone")
	}
	if _, err := r.svc.RevokeRule(ctx, &enforcev1.RevokeRuleRequest{Id: id}); status.Code(err) != codes.NotFound {
		t.Errorf("revoked twice: %v", err)
	}
	if _, err := r.svc.ExplainRule(ctx, &enforcev1.ExplainRuleRequest{Id: "none"}); status.Code(err) != codes.NotFound {
		t.Errorf("explained nothing: %v", err)
	}
	nodes, err := r.bus.Nodes(ctx)
	if err != nil || len(nodes) != 1 || nodes[0].GetService() != "enforce" || nodes[0].GetInstance() != "node-1" {
		t.Errorf("heartbeats %v (%v)", nodes, err)
	}
}
