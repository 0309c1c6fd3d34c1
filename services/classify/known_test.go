package classify

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
	"github.com/tidegate-mesh/tidegate/libs/sketch"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

// TestAnAttackMoves: a classifier that gets the networks of another goes on with its attack, told by its rules and events; the
// first lets go of it as soon as the second has seen the packets later, and one end is told.
func TestAnAttackMoves(t *testing.T) {
	flood := func(l *lab) *eventv1.Attack {
		f, err := loadgen.NewFrames(loadgen.Attack{Kind: loadgen.SYNFlood, Seed: 3, Target: victim})
		if err != nil {
			t.Fatal(err)
		}
		l.attack(f, 1000)
		out := l.close()
		if len(out.Attacks) != 1 {
			t.Fatalf("got %v", out.Attacks)
		}
		a := proto.Clone(out.Attacks[0]).(*eventv1.Attack) //nolint:errcheck // its own type
		return a
	}
	one, two := newLab(t), newLab(t)
	a := flood(one)
	a.Classifier = "one"
	rules := rulesOf(t, &one.out)
	if len(rules) == 0 {
		t.Fatal("no rule")
	}
	for i := range rules {
		two.e.Rule(bus.RuleUpdate{ID: rules[i].ID, Rule: &rules[i]})
	}
	if two.e.Elsewhere(a, "two") {
		t.Error("an attack that it does not have was taken from it")
	}
	two.now = one.now + 3e9
	b := flood(two)
	b.Classifier = "two"
	if a.GetId() != b.GetId() || b.GetRevision() <= a.GetRevision() || b.GetFirstNs() != a.GetFirstNs() || b.GetDetectedNs() != a.GetDetectedNs() || b.GetPackets() <= a.GetPackets() {
		t.Errorf("first %v, then %v", a, b)
	}
	if got := rulesOf(t, &two.out); len(got) == 0 || got[0].AttackID != a.GetId() {
		t.Errorf("rules %+v", got)
	}
	// What the first says now is older than what the second has seen.
	if two.e.Elsewhere(a, "two") || two.e.Stats().Attacks != 1 {
		t.Error("the second let go of what it sees")
	}
	if !one.e.Elsewhere(b, "one") || one.e.Stats().Attacks != 0 || len(one.e.rules) != 0 {
		t.Error("the first still has it")
	}
	// It goes back: the first knows it and goes on after the second's revision.
	one.now = two.now + 3e9
	c := flood(one)
	c.Classifier = "one"
	if c.GetId() != a.GetId() || c.GetRevision() <= b.GetRevision() {
		t.Errorf("back: %v", c)
	}
	if !two.e.Elsewhere(c, "two") || one.e.Elsewhere(b, "one") {
		t.Error("both or none have it")
	}
	// The end that the one tells is the end for the other too: what comes then is another attack.
	end := proto.Clone(c).(*eventv1.Attack) //nolint:errcheck // its own type
	end.State, end.Revision = eventv1.AttackState_ATTACK_STATE_ENDED, c.GetRevision()+1
	two.e.Elsewhere(end, "two")
	two.now = one.now + 1e9
	if d := flood(two); d.GetId() == a.GetId() {
		t.Error("an attack that is over goes on")
	}
}

// TestTwoThatSeeAnAttackGoOn: sensors that send one network to two classifiers do not make these take turns, and of two that
// see nothing of it any more one goes on.
func TestTwoThatSeeAnAttackGoOn(t *testing.T) {
	for _, c := range []struct {
		name          string
		seen, updated time.Duration // after what this one has seen
		from          string
		gone          bool
	}{
		{"both see it", 900 * time.Millisecond, time.Second, "z", false},
		{"the other saw it later", 1100 * time.Millisecond, 1200 * time.Millisecond, "a", true},
		{"the other saw it before", -5 * time.Second, 10 * time.Second, "z", false},
		{"neither sees it, the other is to go on", 100 * time.Millisecond, 10 * time.Second, "z", true},
		{"neither sees it, this one is to go on", 100 * time.Millisecond, 10 * time.Second, "a", false},
	} {
		l := newLab(t)
		f, err := loadgen.NewFrames(loadgen.Attack{Kind: loadgen.SYNFlood, Seed: 3, Target: victim})
		if err != nil {
			t.Fatal(err)
		}
		l.attack(f, 1000)
		x := proto.Clone(l.close().Attacks[0]).(*eventv1.Attack) //nolint:errcheck // its own type
		x.Classifier, x.Revision = c.from, 77
		last := x.GetSeenNs()
		x.SeenNs, x.UpdatedNs = last+int64(c.seen), last+int64(c.updated)
		x.State = eventv1.AttackState_ATTACK_STATE_UPDATED
		if gone := l.e.Elsewhere(x, "m"); gone != c.gone || (l.e.Stats().Attacks == 0) != c.gone {
			t.Errorf("%s: gone is %v", c.name, gone)
		}
	}
}

// TestAHostFromAnotherClassifier: who talks to a host that this engine has just got is no newcomer for that.
func TestAHostFromAnotherClassifier(t *testing.T) {
	for _, parts := range []bool{false, true} {
		l := newLab(t, func(c *EngineConfig) { c.Now = func() int64 { return labStart } })
		host, src := victim.As16(), [16]byte{10: 0xff, 11: 0xff, 12: 192, 14: 2, 15: 1}
		var out WindowResult
		if err := l.e.Window(&flowv1.Window{StartNs: labStart, EndNs: labStart + labSlot, Part: parts}, &out); err != nil {
			t.Fatal(err)
		}
		late := labStart + int64(10*time.Minute)
		l.e.peers.Observe(flow.Key{Src: src, Dst: host, Protocol: 6}, late)
		if got := l.e.settled(host, src, late+1e9); got != parts {
			t.Errorf("parts %v: settled after a second is %v", parts, got)
		}
		l.e.peers.Observe(flow.Key{Src: [16]byte{15: 1}, Dst: host, Protocol: 6}, late+2*settledNs)
		if l.e.settled(host, [16]byte{15: 1}, late+2*settledNs+1e9) {
			t.Errorf("parts %v: a newcomer to a host that is known for long is settled", parts)
		}
	}
}

// TestRulesThatEnded: an attack whose rules are over is not gone on with.
func TestRulesThatEnded(t *testing.T) {
	one, two := newLab(t), newLab(t)
	f, err := loadgen.NewFrames(loadgen.Attack{Kind: loadgen.SYNFlood, Seed: 3, Target: victim})
	if err != nil {
		t.Fatal(err)
	}
	one.attack(f, 1000)
	id := one.close().Attacks[0].GetId()
	for _, r := range rulesOf(t, &one.out) {
		two.e.Rule(bus.RuleUpdate{ID: r.ID, Rule: &r})
	}
	two.now += int64(2*time.Minute) + int64(two.e.cfg.Lease)
	two.attack(f, 1000)
	if a := two.close().Attacks[0]; a.GetId() == id {
		t.Error("it has the old id")
	}
}

// TestHitsAreCountedOnce: enforce tells what a rule has dropped since it was made, and the classifier that had the attack before
// has counted that.
func TestHitsAreCountedOnce(t *testing.T) {
	one, two := newLab(t), newLab(t)
	f, err := loadgen.NewFrames(loadgen.Attack{Kind: loadgen.SYNFlood, Seed: 3, Target: victim})
	if err != nil {
		t.Fatal(err)
	}
	one.attack(f, 1000)
	x := proto.Clone(one.close().Attacks[0]).(*eventv1.Attack) //nolint:errcheck // its own type
	x.Classifier, x.Packets = "one", 5_000_000
	two.e.Elsewhere(x, "two")
	two.now = one.now + 3e9
	two.attack(f, 1000)
	if a := two.close().Attacks[0]; a.GetId() != x.GetId() {
		t.Fatalf("another attack: %v", a)
	}
	for _, n := range []uint64{4_999_000, 4_999_500, 5_000_000} {
		for _, r := range rulesOf(t, &two.out) {
			two.e.Enforcement(&eventv1.Enforcement{RuleId: r.ID, Node: "n", State: eventv1.EnforcementState_ENFORCEMENT_STATE_HITS, Packets: n, Bytes: 60 * n,
				Dropped: n, TimeNs: two.now + int64(n)}) //nolint:gosec // few
		}
	}
	if got := two.e.byID(x.GetId()).packets; got < 5_001_000 || got > 5_003_000 {
		t.Errorf("%d packets, want 5,000,000, the window's 1,000 and 1,000 dropped", got)
	}
}

// sweeping is the failing source with a network that it sweeps.
func sweeping(now int64) *flowv1.Source {
	s := failing(nth(1), now)
	var hosts sketch.HLL
	for i := range uint64(30) {
		hosts.Add(sketch.Mix(i))
	}
	s.AttemptHosts, s.FailedHosts = hosts[:], hosts[:]
	s.DstPorts = []*flowv1.PortCount{{Port: 99, Packets: 1000}}
	return s
}

// TestRuleOfTwoAttacks: a rule that a second attack of its source has too tells of the first, so that this one goes on after a
// restart.
func TestRuleOfTwoAttacks(t *testing.T) {
	l := newLab(t)
	rules := rulesOf(t, l.close(failing(nth(1), l.now)))
	l.now += 5e9
	again := rulesOf(t, l.close(sweeping(l.now)))
	if len(rules) != 1 || len(again) != 1 || again[0].AttackID != rules[0].AttackID || again[0].AttackFirstNs != rules[0].AttackFirstNs {
		t.Errorf("%+v, then %+v", rules, again)
	}
}

// TestChangedRuleStays: a rule that enforce has changed stays so, until its end, when another verdict has it too.
func TestChangedRuleStays(t *testing.T) {
	for _, over := range []bool{false, true} {
		l := newLab(t, func(c *EngineConfig) { c.Shadow = []string{"all"} })
		rules := rulesOf(t, l.close(failing(nth(1), l.now)))
		if len(rules) != 1 || !rules[0].Shadow {
			t.Fatalf("rules %+v", rules)
		}
		r := rules[0]
		r.Shadow, r.Changed = false, "node: it acts now"
		r.Lease, r.Repeat = time.Hour, 3
		r.Expires = time.Unix(0, l.now).Add(time.Hour)
		if over {
			r.Expires = time.Unix(0, l.now)
		}
		l.e.Rule(bus.RuleUpdate{ID: r.ID, Rule: &r, Revision: 2})
		// The same source sweeps a network.
		again := rulesOf(t, l.close(sweeping(l.now)))
		if len(again) != 1 || again[0].ID != r.ID {
			t.Fatalf("rules %+v", again)
		}
		if x := again[0]; x.Shadow != over || (x.Lease == time.Hour) == over || (x.Repeat == 3) == over || x.Expires.Before(r.Expires) {
			t.Errorf("over %v: it is put back as %+v", over, x)
		}
	}
}
