package classify

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
	"github.com/tidegate-mesh/tidegate/libs/packet"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/detect"
)

// rulesOf converts the rules of a result's verdicts.
func rulesOf(t *testing.T, out *WindowResult) []policy.Rule {
	t.Helper()
	var rules []policy.Rule
	for _, v := range out.Verdicts {
		for _, p := range v.GetRules() {
			r, err := policy.FromProto(p)
			if err != nil {
				t.Fatal(err)
			}
			rules = append(rules, r)
		}
	}
	return rules
}

// TestFloodVerdicts runs generated attacks over benign connections: the first verdict must drop nearly all of
// what follows and nearly none of the benign connections, for many seeds.
func TestFloodVerdicts(t *testing.T) {
	tests := []struct {
		kind, typ  string
		perWindow  int
		newClients bool // clients never seen before get through too
		key        string
	}{
		{loadgen.SYNFlood, detect.SYNFlood, 2000, true, "signature"},
		{loadgen.SYNFloodLookalike, detect.SYNFlood, 2000, false, "signature"},
		{loadgen.UDPFlood, detect.UDPFlood, 20000, true, "sources"},
		{loadgen.ICMPFlood, detect.ICMPFlood, 500, true, "signature"},
		{loadgen.AmpDNS, detect.AmpDNS, 1000, true, "signature"},
		{loadgen.AmpNTP, detect.AmpNTP, 1000, true, "signature"},
	}
	for _, tt := range tests {
		t.Run(tt.kind, func(t *testing.T) {
			for seed := range uint64(12) {
				l := newLab(t)
				known := clients(300)
				for range 60 {
					l.benign(known, 20)
					if out := l.close(); len(out.Attacks) > 0 {
						t.Fatalf("seed %d: benign traffic is an attack: %v", seed, out.Attacks)
					}
				}
				gen, err := loadgen.NewFrames(loadgen.Attack{Kind: tt.kind, Seed: seed, Target: victim, Avoid: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
				if err != nil {
					t.Fatal(err)
				}
				l.benign(known, 20)
				l.attack(gen, tt.perWindow)
				begun := l.now
				out := l.close()
				if len(out.Attacks) != 1 || out.Attacks[0].GetType() != tt.typ || len(out.Verdicts) != 1 {
					t.Fatalf("seed %d: got %v, want one %s with a verdict", seed, out.Attacks, tt.typ)
				}
				a, v := out.Attacks[0], out.Verdicts[0]
				if v.GetKey() != tt.key || a.GetState() != eventv1.AttackState_ATTACK_STATE_STARTED || a.GetTarget() != victim.String() {
					t.Errorf("seed %d: key %s state %v target %s", seed, v.GetKey(), a.GetState(), a.GetTarget())
				}
				if a.GetFirstNs() < begun || a.GetFirstNs() >= begun+labSlot {
					t.Errorf("seed %d: first packet %d is outside the window of %d", seed, a.GetFirstNs(), begun)
				}
				if v.GetEvidence().GetAttackShare() < 0.99 || len(v.GetEvidence().GetSamples()) == 0 || v.GetExplanation() == "" {
					t.Errorf("seed %d: evidence %v", seed, v.GetEvidence())
				}
				rules := rulesOf(t, out)
				if n := len(rules); n > 66 {
					t.Errorf("seed %d: %d rules", seed, n)
				}
				passed := 0
				const sent = 20000
				for range sent {
					if f := facts(t, gen.Next(nil)); !dropped(&f, rules) {
						passed++
					}
				}
				if passed > sent/100 {
					t.Errorf("seed %d: %d of %d attack packets pass: %s", seed, passed, sent, v.GetExplanation())
				}
				check := known
				if tt.newClients {
					check = append(check, netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("198.51.100.9"))
				}
				lost := 0
				for i, c := range check {
					h := packet.Header{Src: c, Dst: victim, TTL: 64, DontFragment: true}
					syn := packet.TCP{SrcPort: uint16(40000 + i), DstPort: []uint16{443, 80}[i%2], Flags: policy.SYN, Window: 64240, Options: loadgen.LinuxSYNOptions(uint32(i))}
					if f := facts(t, h.AppendTCP(nil, &syn, nil)); dropped(&f, rules) {
						lost++
					}
				}
				if lost*50 > len(check) {
					t.Errorf("seed %d: %d of %d benign connections are dropped: %s", seed, lost, len(check), v.GetExplanation())
				}
			}
		})
	}
}

// TestAttackLifecycle: started once, updated every second, kept alive by drops, ended after quiet; a changed
// attack gets a further verdict.
func TestAttackLifecycle(t *testing.T) {
	l := newLab(t)
	gen := func(seed uint64) *loadgen.Frames {
		f, err := loadgen.NewFrames(loadgen.Attack{Kind: loadgen.SYNFlood, Seed: seed, Target: victim})
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	known := clients(20)
	for range 30 {
		l.benign(known, 10)
		l.close()
	}
	first := gen(1)
	l.attack(first, 1000)
	out := *l.close()
	if len(out.Attacks) != 1 || len(out.Verdicts) != 1 {
		t.Fatalf("got %d attacks and %d verdicts", len(out.Attacks), len(out.Verdicts))
	}
	id, rules := out.Attacks[0].GetId(), rulesOf(t, &out)
	// The rules drop everything now; only enforcement sees the attack.
	updates, ended := 0, int64(0)
	hits := uint64(0)
	for i := range 300 {
		if i < 150 && i%10 == 0 {
			hits += 10000
			l.e.Enforcement(&eventv1.Enforcement{RuleId: rules[0].ID, Node: "n", State: eventv1.EnforcementState_ENFORCEMENT_STATE_HITS,
				Packets: hits, Bytes: 40 * hits, TimeNs: l.now})
		}
		for _, a := range l.close().Attacks {
			switch a.GetState() {
			case eventv1.AttackState_ATTACK_STATE_UPDATED:
				updates++
				if i == 50 && a.GetPps() < 5000 {
					t.Errorf("rate while dropped is %v packets/s", a.GetPps())
				}
			case eventv1.AttackState_ATTACK_STATE_ENDED:
				ended = int64(i)
				if a.GetPackets() < 150000 || a.GetId() != id {
					t.Errorf("ended with %d packets, id %s", a.GetPackets(), a.GetId())
				}
			}
		}
	}
	if updates < 20 || ended < 240 || ended > 295 {
		t.Errorf("%d updates, ended after window %d", updates, ended)
	}
	if s := l.e.Stats(); s.Attacks != 0 || len(l.e.rules) != 0 || len(l.e.flooded) != 0 {
		t.Errorf("state left after the end: %+v", s)
	}
}

// TestMorph: when what comes through is not what the rules match, a further verdict follows, at most eight.
func TestMorph(t *testing.T) {
	l := newLab(t)
	for range 20 {
		l.close()
	}
	verdicts := 0
	for seed := range uint64(12) {
		f, err := loadgen.NewFrames(loadgen.Attack{Kind: loadgen.UDPFlood, Seed: seed, Target: victim, Sources: 4000})
		if err != nil {
			t.Fatal(err)
		}
		for range 12 {
			l.attack(f, 4000)
			verdicts += len(l.close().Verdicts)
		}
	}
	if verdicts < 4 || verdicts > maxVerdicts {
		t.Errorf("%d verdicts for an attack that changed 11 times", verdicts)
	}
}

// TestShadow: an attack that goes on although the rules match it gets no further verdict.
func TestShadow(t *testing.T) {
	l := newLab(t)
	f, err := loadgen.NewFrames(loadgen.Attack{Kind: loadgen.SYNFlood, Seed: 3, Target: victim})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for range 50 {
		l.attack(f, 500)
		n += len(l.close().Verdicts)
	}
	if n != 1 {
		t.Errorf("%d verdicts, want 1", n)
	}
}

// TestShadowedTypes: rules against the types that the configuration names only count, others act; both tell what they hit
// of good traffic.
func TestShadowedTypes(t *testing.T) {
	for list, want := range map[string]bool{"syn_flood": true, "all": true, "udp_flood": false} {
		l := newLab(t, func(c *EngineConfig) { c.Shadow = []string{list} })
		f, err := loadgen.NewFrames(loadgen.Attack{Kind: loadgen.SYNFlood, Seed: 3, Target: victim})
		if err != nil {
			t.Fatal(err)
		}
		known := clients(20)
		for range 30 {
			l.benign(known, 10)
			l.close()
		}
		l.attack(f, 1000)
		out := *l.close()
		if len(out.Verdicts) != 1 {
			t.Fatalf("%d verdicts", len(out.Verdicts))
		}
		blocking := 0
		for _, r := range rulesOf(t, &out) {
			if !r.Action.Blocks() {
				if r.Shadow {
					t.Errorf("%s: an exception is in shadow", list)
				}
				continue
			}
			blocking++
			if good := out.Verdicts[0].GetEvidence().GetGoodShare(); r.Shadow != want || r.GoodShare > good {
				t.Errorf("%s: shadow %v, hits %v of the good traffic, the verdict says %v", list, r.Shadow, r.GoodShare, good)
			}
		}
		if blocking == 0 {
			t.Errorf("%s: no rule blocks", list)
		}
	}
}

// TestLongerLease: an attack whose rule enforce keeps for longer is on for as long as that hides its return.
func TestLongerLease(t *testing.T) {
	l := newLab(t)
	f, err := loadgen.NewFrames(loadgen.Attack{Kind: loadgen.SYNFlood, Seed: 3, Target: victim})
	if err != nil {
		t.Fatal(err)
	}
	l.attack(f, 1000)
	out := *l.close()
	rules := rulesOf(t, &out)
	for _, state := range []eventv1.EnforcementState{eventv1.EnforcementState_ENFORCEMENT_STATE_RENEWED, eventv1.EnforcementState_ENFORCEMENT_STATE_FIRST_DROP} {
		longer := rules[0]
		longer.Lease = 40 * time.Second
		l.e.Enforcement(&eventv1.Enforcement{RuleId: longer.ID, Node: "n", State: state, Rule: policy.ToProto(&longer), Packets: 10, Bytes: 400, Dropped: 10, TimeNs: l.now})
	}
	ended := 0
	for i := range 600 { // of 100 ms
		for _, a := range l.close().Attacks {
			if a.GetState() == eventv1.AttackState_ATTACK_STATE_ENDED {
				ended = i
			}
		}
	}
	if ended < 390 || ended > 420 {
		t.Errorf("it ended after window %d", ended)
	}
}

// TestContinue: a classifier that starts anew takes over the attack that a rule names, with higher revisions.
func TestContinue(t *testing.T) {
	run := func(l *lab) *eventv1.Attack {
		f, err := loadgen.NewFrames(loadgen.Attack{Kind: loadgen.SYNFlood, Seed: 3, Target: victim})
		if err != nil {
			t.Fatal(err)
		}
		l.attack(f, 1000)
		out := l.close()
		if len(out.Attacks) != 1 {
			t.Fatalf("got %v", out.Attacks)
		}
		return out.Attacks[0]
	}
	one := newLab(t)
	a := run(one)
	rules := rulesOf(t, &one.out)
	two := newLab(t)
	two.e.Adopt(rules)
	two.now += 3 * 60 * 1e9
	b := run(two)
	if a.GetId() != b.GetId() || b.GetRevision() <= a.GetRevision() || b.GetFirstNs() != a.GetFirstNs() {
		t.Errorf("first %v, then %v", a, b)
	}
	three := newLab(t)
	three.now += 3 * 60 * 1e9
	if c := run(three); c.GetId() == a.GetId() {
		t.Error("without rules the attack has the same id three minutes later")
	}
}

// TestProtected: only protected destinations are targets, with the thresholds of their group.
func TestProtected(t *testing.T) {
	var g Group
	if err := g.UnmarshalText([]byte("games;10.77.0.2/32;syn=5000")); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		edit func(*EngineConfig)
		want int
	}{
		{"all", func(*EngineConfig) {}, 1},
		{"inside", func(c *EngineConfig) { c.Protected = []string{"10.77.0.0/24"} }, 1},
		{"outside", func(c *EngineConfig) { c.Protected = []string{"10.78.0.0/24"} }, 0},
		{"group", func(c *EngineConfig) { c.Protected, c.Groups = []string{"10.77.0.0/24"}, []Group{g} }, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t, tt.edit)
			f, err := loadgen.NewFrames(loadgen.Attack{Kind: loadgen.SYNFlood, Seed: 3, Target: victim})
			if err != nil {
				t.Fatal(err)
			}
			l.attack(f, 1000)
			if n := len(l.close().Attacks); n != tt.want {
				t.Errorf("%d attacks, want %d", n, tt.want)
			}
		})
	}
}

// TestBatch: records, labels, enough and good peers.
func TestBatch(t *testing.T) {
	l := newLab(t)
	l.batch.Sensor, l.batch.Epoch = "s", 7
	k := flow.Key{Src: clients(1)[0].As16(), Dst: victim.As16(), SrcPort: 40000, DstPort: 80, Protocol: 6}
	flow.AppendOpen(&l.batch, &flow.Open{ID: 5, Key: k, FirstNs: labStart})
	flow.AppendSegment(&l.batch, 5, 0, 0, labStart, []byte("GET /a HTTP/1.1\r\nHost: Shop.Example.net\r\n\r\n"))
	var out BatchResult
	if err := l.e.Batch(&l.batch, &out); err != nil {
		t.Fatal(err)
	}
	if len(out.Enough) != 0 {
		t.Errorf("enough before the answer: %v", out.Enough)
	}
	flow.Reset(&l.batch)
	flow.AppendSegment(&l.batch, 5, 1, 0, labStart+1e6, []byte("HTTP/1.1 200 OK\r\nServer: x\r\n\r\n"))
	flow.AppendEnd(&l.batch, &flow.End{ID: 5, Key: k, FirstNs: labStart, LastNs: labStart + 1e6, Totals: flow.Totals{PacketsFwd: 4, PacketsRev: 3}, Part: 1})
	icmp := flow.Key{Src: k.Src, Dst: k.Dst, Protocol: 1}
	flow.AppendEnd(&l.batch, &flow.End{ID: 6, Key: icmp})
	udp := flow.Key{Src: k.Src, Dst: k.Dst, SrcPort: 1, DstPort: 2, Protocol: 17}
	flow.AppendEnd(&l.batch, &flow.End{ID: 7, Key: udp})
	if err := l.e.Batch(&l.batch, &out); err != nil {
		t.Fatal(err)
	}
	if len(out.Enough) != 1 || out.Enough[0] != 5 {
		t.Errorf("enough: %v", out.Enough)
	}
	got := ""
	for _, r := range out.Records {
		got += fmt.Sprintf("%s %s %s;", r.GetId(), r.GetApp(), r.GetHost())
	}
	if want := "s/7/5/1 http shop.example.net;s/7/6/0 icmp ;s/7/7/0 unknown ;"; got != want {
		t.Errorf("records %q, want %q", got, want)
	}
	if l.e.peers.Known(k.Dst, k.Src) == nil {
		t.Error("payload both ways, but no good peer")
	}
	l.batch.Ends.Part = l.batch.Ends.Part[:1]
	if err := l.e.Batch(&l.batch, &out); err == nil {
		t.Error("a malformed batch is taken")
	}
}

// TestFlowLimit: the flow map is bounded and evictions are counted.
func TestFlowLimit(t *testing.T) {
	l := newLab(t, func(c *EngineConfig) { c.MaxFlows = 10 })
	for i := range uint64(50) {
		flow.AppendOpen(&l.batch, &flow.Open{ID: i, Key: flow.Key{Protocol: 17}, FirstNs: int64(i)})
	}
	var out BatchResult
	if err := l.e.Batch(&l.batch, &out); err != nil {
		t.Fatal(err)
	}
	if s := l.e.Stats(); s.Flows != 10 || s.FlowsEvicted != 40 {
		t.Errorf("stats %+v", s)
	}
}

// TestAgain: a second attack on the same target within the minute is another attack, with ids of its own.
func TestAgain(t *testing.T) {
	l := newLab(t)
	l.now = labStart / int64(bucket) * int64(bucket)
	f, err := loadgen.NewFrames(loadgen.Attack{Kind: loadgen.SYNFlood, Seed: 3, Target: victim})
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	for range 3 {
		l.attack(f, 1000)
		out := l.close()
		if len(out.Attacks) != 1 || out.Attacks[0].GetState() != eventv1.AttackState_ATTACK_STATE_STARTED || out.Attacks[0].GetRevision() != 1 {
			t.Fatalf("got %v", out.Attacks)
		}
		ids[out.Attacks[0].GetId()] = true
		for range 180 {
			l.close()
		}
	}
	if len(ids) != 3 {
		t.Errorf("%d ids for three attacks", len(ids))
	}
}

// TestSteep: a flood of more than twice the UDP threshold is found after two windows.
func TestSteep(t *testing.T) {
	l := newLab(t)
	f, err := loadgen.NewFrames(loadgen.Attack{Kind: loadgen.UDPFlood, Seed: 3, Target: victim})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		l.attack(f, 4500)
		if n := len(l.close().Attacks); n != i {
			t.Fatalf("%d attacks after window %d", n, i+1)
		}
	}
}

// TestRetryRule: a look-alike flood's rule waits for retries; good clients, whose SYNs come again, do not keep the attack
// alive, SYNs that nobody sends again do.
func TestRetryRule(t *testing.T) {
	gen, err := loadgen.NewFrames(loadgen.Attack{Kind: loadgen.SYNFloodLookalike, Seed: 1, Target: victim, Avoid: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name           string
		dropped, again uint64 // a second
		lasts          bool
	}{
		{"a flood", 1000, 5, true},
		{"a flood beside many good clients", 2000, 1000, true},
		{"good clients", 1000, 1000, false},
		{"good clients and a few scanners", 1050, 1000, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t)
			known := clients(50)
			for range 40 {
				l.benign(known, 10)
				l.close()
			}
			l.attack(gen, 2000)
			rules := rulesOf(t, l.close())
			if len(rules) == 0 || !rules[0].SYNRetry || rules[0].Action != policy.RateLimit || rules[0].RatePPS == 0 || rules[0].Validate() != nil {
				t.Fatalf("rules %+v", rules)
			}
			x := &eventv1.Enforcement{RuleId: rules[0].ID, Node: "n", State: eventv1.EnforcementState_ENFORCEMENT_STATE_HITS}
			for i := range 300 {
				if i%10 == 0 {
					x.Dropped += tt.dropped
					x.Packets += tt.dropped + tt.again
					x.Bytes += 60 * (tt.dropped + tt.again)
					x.TimeNs = l.now
					l.e.Enforcement(x)
				}
				l.close()
			}
			if on := l.e.Stats().Attacks > 0; on != tt.lasts {
				t.Errorf("the attack is on after 30 s: %v, want %v", on, tt.lasts)
			}
		})
	}
}
