package classify

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/loadgen"
	"github.com/tidegate-mesh/tidegate/libs/packet"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/detect"
)

// begun are the attacks that a window started, as type and target.
func begun(out *WindowResult) []string {
	var list []string
	for _, a := range out.Attacks {
		if a.GetState() == eventv1.AttackState_ATTACK_STATE_STARTED {
			list = append(list, a.GetType()+" "+a.GetTarget())
		}
	}
	return list
}

// spread makes frames of an attack over a prefix of the victim's.
func spread(t *testing.T, kind string, seed uint64, bits int) *loadgen.Frames {
	t.Helper()
	f, err := loadgen.NewFrames(loadgen.Attack{Kind: kind, Seed: seed, Target: victim, Carpet: bits, Avoid: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestCarpetBombing spreads floods over a prefix so thinly that no host is over its threshold: one attack, on the prefix,
// whose rules drop what follows at every host of it, and let the clients of one of them through.
func TestCarpetBombing(t *testing.T) {
	for _, tt := range []struct {
		name, kind string
		bits       int
		protected  []string
		perWindow  int
		want       string
	}{
		{"SYN over a /24", loadgen.SYNFlood, 24, nil, 400, "10.77.0.0/24"},
		{"ICMP over a /24", loadgen.ICMPFlood, 24, nil, 1000, "10.77.0.0/24"},
		{"DNS answers over a /24", loadgen.AmpDNS, 24, nil, 1000, "10.77.0.0/24"},
		{"SYN over a /16", loadgen.SYNFlood, 16, nil, 1500, "10.77.0.0/16"},
		{"SYN over a protected /26", loadgen.SYNFlood, 26, []string{"10.77.0.0/26"}, 100, "10.77.0.0/26"},
		{"SYN over a protected /20", loadgen.SYNFlood, 20, []string{"10.77.0.0/20"}, 1500, "10.77.0.0/20"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t, func(c *EngineConfig) { c.Protected = tt.protected })
			l.nets = true
			known := clients(100)
			for range 40 {
				l.benign(known, 10)
				if got := begun(l.close()); len(got) > 0 {
					t.Fatalf("benign traffic is %v", got)
				}
			}
			gen := spread(t, tt.kind, 5, tt.bits)
			var rules []policy.Rule
			var attacks []string
			for range 20 {
				l.benign(known, 10)
				l.attack(gen, tt.perWindow)
				out := l.close()
				attacks = append(attacks, begun(out)...)
				rules = append(rules, rulesOf(t, out)...)
				for _, v := range out.Verdicts {
					if v.GetType() != detect.CarpetBombing || !strings.Contains(v.GetExplanation(), tt.want) || v.GetEvidence().GetFeatures()["places"] < 8 {
						t.Errorf("verdict %v", v)
					}
				}
			}
			if len(attacks) != 1 || attacks[0] != detect.CarpetBombing+" "+tt.want {
				t.Fatalf("got %v, want one on %s", attacks, tt.want)
			}
			passed := 0
			for range 5000 {
				if f := facts(t, gen.Next(nil)); !dropped(&f, rules) {
					passed++
				}
			}
			if passed > 50 {
				t.Errorf("%d of 5000 attack packets pass", passed)
			}
			for i, c := range known {
				h := packet.Header{Src: c, Dst: victim, TTL: 64, DontFragment: true}
				syn := packet.TCP{SrcPort: uint16(40000 + i), DstPort: 443, Flags: policy.SYN, Window: 64240, Options: loadgen.LinuxSYNOptions(1)}
				if f := facts(t, h.AppendTCP(nil, &syn, nil)); dropped(&f, rules) {
					t.Fatalf("client %v is dropped by %v", c, rules)
				}
			}
		})
	}
}

// TestNoCarpet: what is not spread, or not over what is usual, is no attack on a network.
func TestNoCarpet(t *testing.T) {
	bombs := func(l *lab, each func(i int)) (got []string) {
		for i := range 30 {
			each(i)
			for _, b := range begun(l.close()) {
				if strings.HasPrefix(b, detect.CarpetBombing) {
					got = append(got, b)
				}
			}
		}
		return got
	}
	t.Run("one host", func(t *testing.T) {
		l := newLab(t)
		l.nets = true
		gen := spread(t, loadgen.SYNFlood, 1, 32)
		if got := bombs(l, func(int) { l.attack(gen, 2000) }); len(got) > 0 {
			t.Errorf("got %v", got)
		}
	})
	t.Run("four hosts", func(t *testing.T) {
		l := newLab(t)
		l.nets = true
		gen := spread(t, loadgen.SYNFlood, 1, 30)
		if got := bombs(l, func(int) { l.attack(gen, 2000) }); len(got) > 0 {
			t.Errorf("got %v", got)
		}
	})
	t.Run("a sweep", func(t *testing.T) {
		l := newLab(t)
		l.nets = true
		gen := spread(t, loadgen.HostSweep, 1, 0)
		if got := bombs(l, func(int) { l.attack(gen, 300) }); len(got) > 0 {
			t.Errorf("got %v", got)
		}
	})
	t.Run("scanners of the whole Internet", func(t *testing.T) {
		now := labStart
		l := newLab(t, func(c *EngineConfig) { c.Now = func() int64 { return now } })
		l.nets = true
		gen := spread(t, loadgen.SYNFlood, 1, 16)
		got := bombs(l, func(int) { now = l.now; l.attack(gen, 400) })
		l.now += 600 * labSlot
		got = append(got, bombs(l, func(int) { now = l.now; l.attack(gen, 400) })...)
		if len(got) > 0 {
			t.Errorf("got %v", got)
		}
		if got = bombs(l, func(int) { now = l.now; l.attack(gen, 4000) }); len(got) != 1 || got[0] != "carpet_bombing 10.77.0.0/16" {
			t.Errorf("ten times the usual: got %v", got)
		}
	})
	t.Run("not protected", func(t *testing.T) {
		l := newLab(t, func(c *EngineConfig) { c.Protected = []string{"10.78.0.0/16"} })
		l.nets = true
		gen := spread(t, loadgen.SYNFlood, 1, 24)
		if got := bombs(l, func(int) { l.attack(gen, 400) }); len(got) > 0 {
			t.Errorf("got %v", got)
		}
	})
}

// TestCarpetChanges: a second kind of flood over a bombed network belongs to the attack and gets rules of its own; a flood
// of one of its hosts by another kind is an attack of its own.
func TestCarpetChanges(t *testing.T) {
	l := newLab(t)
	l.nets = true
	syn, icmp := spread(t, loadgen.SYNFlood, 3, 24), spread(t, loadgen.ICMPFlood, 3, 24)
	host, err := loadgen.NewFrames(loadgen.Attack{Kind: loadgen.AmpDNS, Seed: 3, Target: victim})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	verdicts := 0
	for i := range 40 {
		l.attack(syn, 400)
		if i >= 10 {
			l.attack(icmp, 1000)
		}
		if i >= 25 {
			l.attack(host, 500)
		}
		out := l.close()
		got = append(got, begun(out)...)
		for _, v := range out.Verdicts {
			if v.GetType() == detect.CarpetBombing {
				verdicts++
			}
		}
	}
	if want := []string{"carpet_bombing 10.77.0.0/24", "amp_dns 10.77.0.2"}; len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got %v, want %v", got, want)
	}
	if verdicts < 2 {
		t.Errorf("%d verdicts on the network, want one a kind", verdicts)
	}
	for range 120 {
		l.close()
	}
	if n := l.e.Stats().Attacks; n != 0 || len(l.e.bombed) != 0 {
		t.Errorf("%d attacks on, %d networks bombed after it", n, len(l.e.bombed))
	}
}
