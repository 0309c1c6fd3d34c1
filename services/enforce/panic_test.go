package enforce

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/tidegate-mesh/tidegate/libs/bus/bustest"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
	enforcev1 "github.com/tidegate-mesh/tidegate/proto/enforce/v1"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

func setPanic(t testing.TB, s *Service, on bool, by string) *enforcev1.PanicResponse {
	t.Helper()
	p, err := s.Panic(context.Background(), &enforcev1.PanicRequest{On: on, By: by, Reason: "tests"})
	if err != nil {
		t.Fatalf("panic %v: %v", on, err)
	}
	return p
}

// userDrop is a rule that a user made a minute ago.
func userDrop(id string) policy.Rule {
	return policy.Rule{
		ID: id, Action: policy.Drop, Match: policy.Match{Src: netip.MustParsePrefix("198.51.100.8/32")},
		Origin: policy.OriginUser, Created: time.Now().Add(-time.Minute).UTC(),
	}
}

func stateOf(t testing.TB, s *Service, id string) *enforcev1.RuleState {
	t.Helper()
	list, err := s.ListRules(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range list.GetRules() {
		if r.GetRule().GetId() == id {
			return r
		}
	}
	return &enforcev1.RuleState{}
}

func TestPanic(t *testing.T) {
	r := newRig(t, nil)
	r.startReady()
	ctx := context.Background()
	limit := userDrop("user-limit")
	limit.Action, limit.RatePPS = policy.RateLimit, 10
	allow := userDrop("user-allow")
	allow.Action = policy.Allow
	count := drop("count", time.Minute)
	count.Action = policy.Count
	for _, rule := range []policy.Rule{drop("auto", time.Minute), userDrop("user-drop"), limit, allow, count} {
		r.put(rule)
		r.event(rule.ID, evApplied)
	}
	r.gate.hit(policy.NumericID("auto"), 4)
	r.event("auto", evHits)
	before := time.Now()
	on := setPanic(t, r.svc, true, "ada")
	if n := r.gate.blocking(); n != 0 {
		t.Errorf("%d entries keep packets back after the answer", n)
	}
	if p := on.GetPanic(); !p.GetOn() || p.GetBy() != "ada" || p.GetReason() != "tests" || p.GetSinceNs() < before.UnixNano() || p.GetSinceNs() > time.Now().UnixNano() {
		t.Errorf("state %v", p)
	}
	if on.GetHeld() != 1 || len(on.GetRevoked()) != 2 || on.GetRevoked()[0].GetId() != "user-drop" || on.GetRevoked()[1].GetId() != "user-limit" {
		t.Errorf("on: %v", on)
	}
	if n := len(mustRules(t, r.gate)); n != 2 {
		t.Errorf("%d entries are left, want those of allow and count", n)
	}
	auto := stateOf(t, r.svc, "auto")
	if auto.GetState() != "held" || auto.GetReason() != string(Panic) || !strings.Contains(auto.GetDetail(), "by ada (tests)") || auto.GetPackets() != 4 {
		t.Errorf("held rule: %v", auto)
	}
	if x, err := r.svc.ExplainRule(ctx, &enforcev1.ExplainRuleRequest{Id: "auto"}); err != nil || !strings.Contains(x.GetExplanation(), "It is held: panic is on since") {
		t.Errorf("explanation %v (%v)", x, err)
	}
	for _, id := range []string{"user-drop", "user-limit"} {
		if e := r.event(id, evRevoked); !strings.Contains(e.GetDetail(), "panic") {
			t.Errorf("%s was revoked with %q", id, e.GetDetail())
		}
	}
	m, err := r.bus.Rules(ctx)
	if err != nil || len(m) != 3 {
		t.Errorf("the bucket has %v (%v), want auto, allow and count", m, err)
	}
	if e := r.event("auto", evRefused); e.GetReason() != string(Panic) {
		t.Errorf("told as %v", e)
	}
	r.metric(`
# HELP tidegate_enforce_rules Rules on this node.
# TYPE tidegate_enforce_rules gauge
tidegate_enforce_rules{action="allow",state="active"} 1
tidegate_enforce_rules{action="count",state="active"} 1
tidegate_enforce_rules{action="drop",state="held"} 1
`, "tidegate_enforce_rules")
	if n := testutil.ToFloat64(r.svc.m.refusals.WithLabelValues(string(Panic))); n != 3 {
		t.Errorf("%v rules counted as stopped by panic", n)
	}
	st, err := r.svc.Status(ctx, nil)
	if err != nil || !proto.Equal(st.GetPanic(), on.GetPanic()) || !st.GetStatus().GetReady() ||
		!strings.Contains(strings.Join(st.GetStatus().GetProblems(), " "), "tidegate panic off") {
		t.Errorf("status %v (%v)", st, err)
	}

	if again := setPanic(t, r.svc, true, "bob"); !proto.Equal(again, on) {
		t.Errorf("on again: %v, want %v", again, on)
	}
	r.put(drop("auto-2", time.Minute))
	if e := r.event("auto-2", evRefused); e.GetReason() != string(Panic) {
		t.Errorf("a detector's rule during panic: %v", e)
	}
	added, err := r.svc.AddRule(ctx, &enforcev1.AddRuleRequest{Rule: dropOf("198.51.100.9")})
	if err != nil {
		t.Fatalf("a user's rule during panic is deliberate: %v", err)
	}
	if _, ok := r.gate.get(policy.NumericID(added.GetRule().GetId())); !ok || r.gate.blocking() != 1 {
		t.Errorf("the user's rule is in force: %v, %d entries", ok, r.gate.blocking())
	}
	old := dropOf("198.51.100.10")
	old.CreatedNs = on.GetPanic().GetSinceNs() - 1
	if _, err := r.svc.AddRule(ctx, &enforcev1.AddRuleRequest{Rule: old}); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), string(Panic)) {
		t.Errorf("a user's rule from before panic: %v", err)
	}

	off := setPanic(t, r.svc, false, "ada")
	if off.GetPanic().GetOn() || off.GetPanic().GetSinceNs() <= on.GetPanic().GetSinceNs() || off.GetHeld() != 0 || len(off.GetRevoked()) != 0 {
		t.Errorf("off: %v", off)
	}
	for _, id := range []string{"auto", "auto-2"} {
		if _, ok := r.gate.get(policy.NumericID(id)); !ok {
			t.Errorf("%s does not act again", id)
		}
	}
	if n := r.gate.blocking(); n != 3 {
		t.Errorf("%d entries keep packets back after panic, want auto, auto-2 and the user's", n)
	}
	st, err = r.svc.Status(ctx, nil)
	if err != nil || st.GetPanic().GetOn() || len(st.GetStatus().GetProblems()) != 0 {
		t.Errorf("status after panic %v (%v)", st, err)
	}
	if s := stateOf(t, r.svc, "auto").GetState(); s != "active" {
		t.Errorf("state %s after panic", s)
	}
	if _, err := r.svc.Panic(ctx, &enforcev1.PanicRequest{On: true, By: strings.Repeat("x", panicText+1)}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a name too long: %v", err)
	}
}

// TestPanicThatNobodyElseKnows: users' rules are only held until the mesh is told, and come back if it never is.
func TestPanicThatNobodyElseKnows(t *testing.T) {
	r := newRig(t, nil)
	r.startReady()
	r.put(userDrop("user-drop"))
	r.event("user-drop", evApplied)
	ctx := context.Background()
	since := time.Now().UnixNano()
	if err := r.svc.handPanic(ctx, panicChange{state: &eventv1.Panic{On: true, SinceNs: since}}); err != nil {
		t.Fatal(err)
	}
	bustest.Wait(t, "the rule to be held", func() bool { return stateOf(t, r.svc, "user-drop").GetState() == "held" })
	if n := r.gate.blocking(); n != 0 {
		t.Errorf("%d entries keep packets back", n)
	}
	setPanic(t, r.svc, false, "ada")
	if _, ok := r.gate.get(policy.NumericID("user-drop")); !ok {
		t.Error("the rule does not act again")
	}
	if m, err := r.bus.Rules(ctx); err != nil || len(m) != 1 {
		t.Errorf("the bucket has %v (%v)", m, err)
	}
}

// TestRestartUnderPanic starts a node that was down when panic began: what its kernel still drops goes, nothing new acts.
func TestRestartUnderPanic(t *testing.T) {
	r := newRig(t, nil)
	r.startReady()
	for _, rule := range []policy.Rule{drop("auto", time.Minute), userDrop("user-drop")} {
		r.put(rule)
		r.event(rule.ID, evApplied)
	}
	r.stop()
	r.gate.set(func(g *fakeGate) { g.rules[4711] = xdp.Rule{ID: 4711, Action: policy.Drop} })
	ctx := context.Background()
	if err := r.bus.PutPanic(ctx, &eventv1.Panic{On: true, SinceNs: time.Now().UnixNano(), By: "ada"}); err != nil {
		t.Fatal(err)
	}
	before := r.gate.written()
	r.startReady()
	bustest.Wait(t, "no drop", func() bool { return r.gate.blocking() == 0 })
	bustest.Wait(t, "the end of the user's rule", func() bool {
		m, err := r.bus.Rules(ctx)
		return err == nil && len(m) == 1
	})
	if n := r.gate.written() - before; n != 0 {
		t.Errorf("%d entries were written", n)
	}
	if s := stateOf(t, r.svc, "auto").GetState(); s != "held" {
		t.Errorf("state %q", s)
	}
	setPanic(t, r.svc, false, "ada")
	if _, ok := r.gate.get(policy.NumericID("auto")); !ok || r.gate.blocking() != 1 {
		t.Errorf("after panic the rule acts: %v, %d entries", ok, r.gate.blocking())
	}
}

// TestPanicClearsOrphans: an empty bucket removes nothing, panic does.
func TestPanicClearsOrphans(t *testing.T) {
	r := newRig(t, nil)
	r.gate.rules[99] = xdp.Rule{ID: 99, Action: policy.Drop}
	r.gate.rules[98] = xdp.Rule{ID: 98, Action: policy.Allow}
	r.startReady()
	if n := len(mustRules(t, r.gate)); n != 2 {
		t.Fatalf("%d entries before panic", n)
	}
	setPanic(t, r.svc, true, "ada")
	if _, ok := r.gate.get(98); !ok || r.gate.blocking() != 0 {
		t.Errorf("allow is there: %v, %d entries keep packets back", ok, r.gate.blocking())
	}
	st, err := r.svc.Status(context.Background(), nil)
	if err != nil || !strings.Contains(strings.Join(st.GetStatus().GetProblems(), " "), "1 entries of an earlier run") {
		t.Errorf("status %v (%v)", st, err)
	}
}

func TestPanicKernelTrouble(t *testing.T) {
	r := newRig(t, nil)
	r.startReady()
	r.put(drop("auto", time.Minute))
	r.event("auto", evApplied)
	r.gate.set(func(g *fakeGate) { g.delErr = errors.New("no memory") })
	begin := time.Now()
	_, err := r.svc.Panic(context.Background(), &enforcev1.PanicRequest{On: true, By: "ada"})
	if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), "this node has not done so") {
		t.Errorf("with an entry that stays: %v", err)
	}
	if d := time.Since(begin); d < panicWait/2 || d > 4*panicWait {
		t.Errorf("answered after %s", d)
	}
	r.gate.set(func(g *fakeGate) { g.delErr = nil })
	bustest.Wait(t, "another try", func() bool { return r.gate.blocking() == 0 })
	if p := setPanic(t, r.svc, true, "ada"); p.GetHeld() != 1 {
		t.Errorf("%v", p)
	}
}

// TestPanicOfAFastClock: a state from a clock ahead of this node's can be ended.
func TestPanicOfAFastClock(t *testing.T) {
	r := newRig(t, nil)
	r.startReady()
	ahead := time.Now().Add(5 * time.Minute).UnixNano()
	if err := r.bus.PutPanic(context.Background(), &eventv1.Panic{On: true, SinceNs: ahead}); err != nil {
		t.Fatal(err)
	}
	on := func() bool {
		st, err := r.svc.Status(context.Background(), nil)
		return err == nil && st.GetPanic().GetOn()
	}
	bustest.Wait(t, "panic", on)
	if p := setPanic(t, r.svc, false, "ada").GetPanic(); p.GetOn() || p.GetSinceNs() <= ahead || on() {
		t.Errorf("off: %v", p)
	}
}

// TestPanicWithoutNATS: drops go on the node that is asked, the answer says that others do not know.
func TestPanicWithoutNATS(t *testing.T) {
	r := newOutage(t)
	svc, b, gate, ctx := r.svc, r.bus, r.gate, context.Background()
	for _, rule := range []policy.Rule{drop("auto", time.Minute), userDrop("user-drop")} {
		if err := b.PutRule(ctx, rule); err != nil {
			t.Fatal(err)
		}
	}
	bustest.Wait(t, "the entries", func() bool { return gate.blocking() == 2 })

	r.stop()
	_, err := svc.Panic(ctx, &enforcev1.PanicRequest{On: true, By: "ada"})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "removed on this node; other nodes were not told") {
		t.Errorf("on without NATS: %v", err)
	}
	if n := gate.blocking(); n != 0 {
		t.Errorf("%d entries keep packets back", n)
	}
	if _, err := svc.Panic(ctx, &enforcev1.PanicRequest{By: "ada"}); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "panic is as it was") {
		t.Errorf("off without NATS: %v", err)
	}

	r.start()
	bustest.Wait(t, "readiness after the return of NATS", func() bool { return svc.ready() == nil })
	bustest.Wait(t, "the watch's repetition", func() bool { return stateOf(t, svc, "auto").GetState() == "held" })
	time.Sleep(1200 * time.Millisecond) // a retry
	if m, err := b.Rules(ctx); err != nil || len(m) != 2 {
		t.Errorf("the bucket has %v (%v): a panic that the mesh does not know revoked a rule", m, err)
	}
	if p, err := b.Panic(ctx); p != nil || err != nil {
		t.Errorf("the node told the mesh by itself: %v (%v)", p, err)
	}
	if n := gate.blocking(); n != 0 {
		t.Errorf("the return of NATS ended panic: %d entries keep packets back", n)
	}
	on := setPanic(t, svc, true, "bob")
	if p, err := b.Panic(ctx); err != nil || !proto.Equal(p, on.GetPanic()) || p.GetBy() != "ada" || len(on.GetRevoked()) != 1 {
		t.Errorf("asked again: %v in the bucket (%v), %v answered", p, err, on)
	}
	bustest.Wait(t, "the revocation that waited", func() bool {
		m, err := b.Rules(ctx)
		return err == nil && len(m) == 1
	})
	setPanic(t, svc, false, "ada")
	if n := gate.blocking(); n != 1 {
		t.Errorf("%d entries after panic, want the detector's", n)
	}
}

// TestPanicOnTwoLinks has 1,000 rules on two nodes with an XDP program each.
func TestPanicOnTwoLinks(t *testing.T) {
	const rules, bar = 1000, 5 * time.Second // the goal is 1 s; this machine may be busy
	links := []*link{newLink(t, 0), newLink(t, 1)}
	conf := func(l *link) func(c *Config) {
		return func(c *Config) { c.Ifaces, c.BPFFS, c.RuleBurst = []string{l.iface}, l.bpffs, 2*rules }
	}
	r := newRig(t, conf(links[0]))
	r.start(openXDP(links[0].bpffs, telemetry.Discard("enforce")))
	waitReady(t, r.svc)
	nodes := []*Service{r.svc, r.second(conf(links[1]), openXDP(links[1].bpffs, telemetry.Discard("enforce")))}

	for i := range rules {
		rule := drop(fmt.Sprint("auto-", i), time.Minute)
		if i%2 == 1 {
			rule = userDrop(fmt.Sprint("user-", i))
		}
		rule.Match = policy.Match{Src: netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}), 32)}
		if i < len(links) { // the links' own traffic
			rule.Match = policy.Match{Src: netip.PrefixFrom(links[i].from, 32)}
		}
		r.put(rule)
	}
	entries := func(s *Service) (blocking int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		list, err := s.ports[0].gate.Rules()
		if err != nil {
			t.Fatal(err)
		}
		for i := range list {
			if list[i].Action.Blocks() {
				blocking++
			}
		}
		return blocking
	}
	for i, s := range nodes {
		bustest.Wait(t, "the entries", func() bool { return entries(s) == rules })
		bustest.Wait(t, "silence", func() bool { return links[i].during(20*time.Millisecond) == 0 })
	}

	begin := time.Now()
	on := setPanic(t, nodes[0], true, "ada")
	answered := time.Since(begin)
	if n := entries(nodes[0]); n != 0 {
		t.Errorf("%d entries keep packets back on the node that answered", n)
	}
	bustest.Wait(t, "no drop on the other node", func() bool { return entries(nodes[1]) == 0 })
	everywhere := time.Since(begin)
	t.Logf("panic with %d rules: answer after %s, no drop on any node after %s", rules, answered, everywhere)
	if everywhere > bar {
		t.Errorf("took %s", everywhere)
	}
	for _, l := range links {
		bustest.Wait(t, "packets", func() bool { return l.during(5*time.Millisecond) > 0 })
	}
	if on.GetHeld() != rules/2 || len(on.GetRevoked()) != rules/2 {
		t.Errorf("held %d, revoked %d", on.GetHeld(), len(on.GetRevoked()))
	}
	bustest.Wait(t, "the revocations", func() bool {
		m, err := r.bus.Rules(context.Background())
		return err == nil && len(m) == rules/2
	})
	if second := setPanic(t, nodes[1], true, "bob"); !proto.Equal(second.GetPanic(), on.GetPanic()) || second.GetHeld() != rules/2 {
		t.Errorf("the other node answers held %d, %v", second.GetHeld(), second.GetPanic())
	}

	r.stop()
	r.start(openXDP(links[0].bpffs, telemetry.Discard("enforce")))
	nodes[0] = r.svc
	bustest.Wait(t, "readiness after a restart", func() bool { return r.svc.ready() == nil })
	if n := entries(nodes[0]); n != 0 {
		t.Errorf("%d entries keep packets back after a restart", n)
	}
	begin = time.Now()
	setPanic(t, nodes[1], false, "ada")
	for _, s := range nodes {
		bustest.Wait(t, "the held rules to act again", func() bool { return entries(s) == rules/2 })
	}
	t.Logf("off: %d rules act again on both nodes after %s", rules/2, time.Since(begin))
	bustest.Wait(t, "silence", func() bool { return links[0].during(20*time.Millisecond) == 0 })
	if links[1].during(50*time.Millisecond) == 0 {
		t.Error("a user's rule that panic revoked acts again")
	}
}
