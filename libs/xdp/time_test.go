package xdp

import (
	"errors"
	"math"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/tidegate-mesh/tidegate/libs/policy"
)

// TestFirstDrop: set once, exact, kept when the rule is renewed, changed or its match moves; gone with it.
func TestFirstDrop(t *testing.T) {
	r := newRig(t, 1)
	g := r.open(t, Options{Mode: ModeHost})
	p := program(t, g)
	frame := udp("192.0.2.1", "198.51.100.7").frame(t)
	stat := func(g *Gate) RuleStat {
		t.Helper()
		s, err := g.RuleStats([]uint64{1, 99})
		must(t, err)
		if len(s) > 1 {
			t.Errorf("stats of an unknown rule: %v", s)
		}
		return s[1]
	}
	rule := Rule{ID: 1, Action: policy.Drop, Match: policy.Match{Dst: pfx("198.51.100.0/24")}}
	must(t, g.PutRules([]Rule{rule}))
	if s := stat(g); s.FirstDropNs != 0 || !s.FirstDrop.IsZero() || s.Packets != 0 {
		t.Errorf("before the first packet: %+v", s)
	}
	from := MonotonicNow()
	send(t, p, frame)
	first := stat(g)
	if first.FirstDropNs < from || first.FirstDropNs > MonotonicNow() || time.Since(first.FirstDrop).Abs() > time.Second {
		t.Errorf("first drop %d is not after %d", first.FirstDropNs, from)
	}
	send(t, p, frame)
	rule.Expires = time.Now().Add(time.Minute)
	must(t, g.PutRules([]Rule{rule}))
	send(t, p, frame)
	rule.Match = policy.Match{Dst: pfx("198.51.100.7/32"), HasProtocol: true, Protocol: 17}
	must(t, g.PutRules([]Rule{rule}))
	send(t, p, frame)
	if s := stat(g); s.FirstDropNs != first.FirstDropNs || s.Packets != 4 || s.Dropped != 4 {
		t.Errorf("after renewals: %+v, first %d", s, first.FirstDropNs)
	}
	if got := send(t, p, udp("192.0.2.1", "198.51.100.8").frame(t)); got != pass {
		t.Errorf("the old match still works: action %d", got)
	}
	again := r.open(t, Options{})
	if s := stat(again); s.FirstDropNs != first.FirstDropNs || s.Packets != 4 {
		t.Errorf("another process reads %+v", s)
	}
	must(t, again.DeleteRules([]uint64{1}))
	must(t, again.PutRules([]Rule{rule}))
	if s := stat(again); s.FirstDropNs != 0 || s.Packets != 0 {
		t.Errorf("a new rule inherits %+v", s)
	}
	if s := stat(g); s.Packets != 0 {
		t.Errorf("the first process reads %+v", s)
	}
}

// TestExpiry: a drop decays in the program, with no process doing anything.
func TestExpiry(t *testing.T) {
	r := newRig(t, 1)
	g := r.open(t, Options{Mode: ModeHost})
	p := program(t, g)
	expires := time.Now().Add(300 * time.Millisecond)
	must(t, g.PutRules([]Rule{{ID: 1, Action: policy.Drop, Expires: expires}}))
	rules, err := g.Rules()
	must(t, err)
	if d := rules[0].Expires.Sub(expires).Abs(); d > 5*time.Millisecond {
		t.Errorf("the expiry read back is off by %s", d)
	}
	must(t, g.Close())
	frame := udp("192.0.2.1", "198.51.100.7").frame(t)
	for send(t, p, frame) == drop {
		if time.Since(expires) > time.Second {
			t.Fatal("still dropped 1 s after the expiry")
		}
		time.Sleep(time.Millisecond)
	}
	if d := time.Since(expires); d < -time.Millisecond || d > 60*time.Millisecond {
		t.Errorf("expired %s after its time", d)
	}
}

// TestRateLimit offers four times the rate for a second.
func TestRateLimit(t *testing.T) {
	r := newRig(t, 1)
	g := r.open(t, Options{Mode: ModeHost})
	p := program(t, g)
	frame := udp("192.0.2.1", "198.51.100.7").with(func(p *pkt) { p.payload = 1000 }).frame(t)
	for _, tt := range []struct {
		name string
		rule Rule
		rate float64 // packets per second
	}{
		{"packets", Rule{RatePPS: 20000}, 20000},
		{"many packets", Rule{RatePPS: 150000}, 150000},
		{"few packets", Rule{RatePPS: 100}, 100},
		{"bits", Rule{RateBPS: 100e6}, 100e6 / 8 / float64(len(frame))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.rule.ID, tt.rule.Action = 1, policy.RateLimit
			must(t, g.DeleteRules([]uint64{1}))
			must(t, g.PutRules([]Rule{tt.rule}))
			before := counters(t, g)
			start := time.Now()
			chunk := uint32(math.Ceil(tt.rate / 250))
			for i := 0; ; i++ {
				due := time.Duration(i) * time.Millisecond
				if due >= 1500*time.Millisecond {
					break
				}
				time.Sleep(due - time.Since(start))
				_, err := p.Run(&ebpf.RunOptions{Data: frame, Repeat: chunk})
				must(t, err)
			}
			took := time.Since(start).Seconds()
			after := counters(t, g)
			passed := float64(after.Pass - before.Pass)
			over := after.RateLimited - before.RateLimited
			if dev := passed/took/tt.rate - 1; math.Abs(dev) > 0.1 {
				t.Errorf("%.0f/s passed, rate %.0f/s: off by %.1f%%", passed/took, tt.rate, 100*dev)
			}
			s, err := g.RuleStats([]uint64{1})
			must(t, err)
			if s[1].Dropped != over || s[1].Packets != after.Seen-before.Seen || s[1].FirstDropNs == 0 {
				t.Errorf("%+v, limited %d", s[1], over)
			}
		})
	}
}

// TestLimits: what does not fit is refused by name, and the rest of the batch is taken.
func TestLimits(t *testing.T) {
	r := newRig(t, 1)
	g := r.open(t, Options{Mode: ModeHost, Geometry: Geometry{Rules: 64, Never: 2, Flows: 4}})
	var rules []Rule
	for i := range maxMasks + 1 {
		rules = append(rules, Rule{ID: uint64(i + 1), Action: policy.Drop, Match: policy.Match{LengthMin: uint16(i + 1)}})
	}
	err := g.PutRules(rules)
	var re *RuleError
	if !errors.Is(err, ErrMaskLimit) || !errors.As(err, &re) || re.ID != maxMasks+1 {
		t.Errorf("33 shapes: %v", err)
	}
	if back, err := g.Rules(); err != nil || len(back) != maxMasks {
		t.Errorf("%d rules (%v), want %d", len(back), err, maxMasks)
	}
	must(t, g.DeleteRules([]uint64{5}))
	must(t, g.PutRules(rules[maxMasks:]))
	rules = nil
	for i := range 65 {
		rules = append(rules, Rule{ID: uint64(1000 + i), Action: policy.Drop, Match: policy.Match{LengthMin: 1, TTLMin: 0, Src: pfx("10.0.0.0/8")}})
		rules[i].Match = policy.Match{LengthMin: 1}
	}
	must(t, g.DeleteRules(func() (ids []uint64) {
		for i := range maxMasks + 1 {
			ids = append(ids, uint64(i+1))
		}
		return ids
	}()))
	for i := range rules {
		rules[i].Match = policy.Match{HasProtocol: true, Protocol: uint8(i)}
	}
	if err := g.PutRules(rules); !errors.Is(err, ErrRuleLimit) {
		t.Errorf("65 rules in 64 slots: %v", err)
	}
	for _, bad := range []Rule{
		{Action: policy.Drop}, {ID: 1}, {ID: 1, Action: policy.RateLimit}, {ID: 1, Action: policy.RateLimit, RatePPS: 1, RateBPS: 1},
		{ID: 1, Action: policy.Drop, Match: policy.Match{Fragment: 9}},
		{ID: 1, Action: policy.Drop, Match: policy.Match{HasDstPort: true}},
		{ID: 1, Action: policy.Drop, Match: policy.Match{Src: pfx("10.0.0.0/8"), Dst: pfx("::/0")}},
	} {
		if g.PutRules([]Rule{bad}) == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
	if err := g.PutNever([]Never{{Prefix: pfx("10.0.0.0/8"), Source: true}, {Prefix: pfx("11.0.0.0/8"), Source: true}, {Prefix: pfx("12.0.0.0/8"), Source: true}}); !errors.Is(err, ErrNeverLimit) {
		t.Errorf("3 never-block entries in 2: %v", err)
	}
	var flows []FlowKey
	for i := range 1000 {
		flows = append(flows, FlowKey{SrcPort: uint16(i)})
	}
	if err := g.AllowFlow(flows); !errors.Is(err, ErrFlowLimit) {
		t.Errorf("1000 flows in 4: %v", err)
	}
}
