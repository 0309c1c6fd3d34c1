package classify

import (
	"errors"
	"math"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/tidegate-mesh/tidegate/libs/loadgen"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/detect"
)

const labDay = int64(86400e9)

// learningLab has a live engine, whose clock is the windows'.
func learningLab(t testing.TB) *lab {
	var l *lab
	l = newLab(t, func(c *EngineConfig) { c.Now = func() int64 { return l.now + labSlot } })
	return l
}

// udp is a second of UDP packets of strangers to the victim; windows say how often it led to an attack.
func (l *lab) udp(perSecond int) (attacks int) {
	for range detect.Slots {
		c := l.of(netip.PrefixFrom(victim, 32)).GetCounters()
		n := uint64(perSecond / detect.Slots)
		c.Packets, c.Udp, c.Bytes = n, n, 100*n
		attacks += len(l.close().Attacks)
	}
	return attacks
}

// TestBusyHostIsLearned: a host whose usual traffic grows by a fifth a day, up to nearly three times the threshold, is never
// reported; a flood of five times as much is, at once, and so is one of another kind at the threshold that was always there.
// An engine that has learned nothing reports the traffic of the last day.
func TestBusyHostIsLearned(t *testing.T) {
	const days, minutes = 7, 370
	l := learningLab(t)
	begin := labStart / labDay * labDay
	peak := func(day int) float64 { return 0.8 * 20_000 * math.Pow(1.2, float64(day)) }
	for day := range days + 1 {
		for i := range minutes {
			l.now = begin + int64(day)*labDay + int64(i)*60e9
			if n := l.udp(int(peak(day) * (0.7 + 0.3*l.rng.Float64()))); n > 0 {
				t.Fatalf("day %d, minute %d: usual traffic of %.0f packets/s is reported", day, i, peak(day))
			}
		}
	}
	learned := l.e.learned()[l.e.groups.all]
	if len(learned) != 1 || learned[0].GetHost() != victim.String() || len(learned[0].GetThresholds()) != 1 {
		t.Fatalf("learned %v", learned)
	}
	limit := learned[0].GetThresholds()["udp_packets"]
	if limit <= peak(days) || limit > 20_000*math.Pow(1.25, days)+1 {
		t.Fatalf("the threshold is %.0f, usual are up to %.0f", limit, peak(days))
	}
	if st := l.e.Stats(); st.UsualHosts != 1 || st.UsualRaised != 1 {
		t.Errorf("stats %+v", st)
	}

	fresh := learningLab(t)
	fresh.now = l.now
	if fresh.udp(int(peak(days))) == 0 {
		t.Error("an engine that learned nothing takes the traffic for usual: this test shows nothing")
	}

	gen, err := loadgen.NewFrames(loadgen.Attack{Kind: loadgen.UDPFlood, Seed: 1, Target: victim})
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for window := 1; window <= 3 && seen == 0; window++ {
		l.attack(gen, 200)
		c := l.of(netip.PrefixFrom(victim, 32)).GetCounters()
		n := uint64(5 * peak(days) / detect.Slots)
		c.Packets, c.Udp, c.Bytes = n, n, 100*n
		out := l.close()
		seen = len(out.Attacks)
		if seen == 0 {
			continue
		}
		if out.Attacks[0].GetType() != detect.UDPFlood || len(out.Verdicts) != 1 {
			t.Fatalf("attacks %v, %d verdicts", out.Attacks, len(out.Verdicts))
		}
		v := out.Verdicts[0]
		th := v.GetEvidence().GetThresholds()
		if th["udp_packets"] != limit || th["configured_udp_packets"] != 20_000 || th["udp_bits"] != 500e6 || !strings.Contains(v.GetExplanation(), "instead of 20000") {
			t.Errorf("thresholds %v, %q", th, v.GetExplanation())
		}
	}
	if seen == 0 {
		t.Fatal("a flood of five times the usual is not reported")
	}
	syn, err := loadgen.NewFrames(loadgen.Attack{Kind: loadgen.SYNFlood, Seed: 1, Target: victim})
	if err != nil {
		t.Fatal(err)
	}
	l.attack(syn, 100)
	l.close()
	l.attack(syn, 100)
	if out := l.close(); len(out.Attacks) == 0 || out.Attacks[0].GetType() != detect.SYNFlood {
		t.Errorf("200 SYNs within two windows: %v", out.Attacks)
	}
}

// TestNothingIsLearned from attacks, from captures, and when it is switched off.
func TestNothingIsLearned(t *testing.T) {
	live := func(c *EngineConfig) { c.Now = func() int64 { return 0 } }
	for name, c := range map[string]struct {
		edit      func(*EngineConfig)
		perSecond int
		hosts     uint64
	}{
		"live":            {live, 18_000, 1},
		"an attack":       {live, 30_000, 0},
		"a capture":       {func(*EngineConfig) {}, 18_000, 0},
		"switched off":    {func(c *EngineConfig) { live(c); c.UsualDays = 0 }, 18_000, 0},
		"little for sure": {live, 6_000, 0},
	} {
		l := newLab(t, c.edit)
		if l.e.cfg.Now != nil {
			l.e.cfg.Now = func() int64 { return l.now + labSlot }
		}
		for i := range 400 {
			l.now = labStart/labDay*labDay + int64(i)*60e9
			l.udp(c.perSecond)
		}
		if st := l.e.Stats(); st.UsualHosts != c.hosts || st.UsualRaised != 0 {
			t.Errorf("%s: %+v", name, st)
		}
	}
	for _, edit := range []func(*EngineConfig){
		func(c *EngineConfig) { c.UsualDays = -1 }, func(c *EngineConfig) { c.UsualDays = 29 },
		func(c *EngineConfig) { c.UsualFactor = 1 }, func(c *EngineConfig) { c.UsualFactor = math.NaN() },
	} {
		c := DefaultEngineConfig()
		edit(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "usual-") {
			t.Errorf("%d days, factor %v: %v", c.UsualDays, c.UsualFactor, err)
		}
	}
}

// TestUsualIsKept: stored while the service runs and when it stops, restored by the next, also when the store answers late; and
// nothing is stored before it was restored.
func TestUsualIsKept(t *testing.T) {
	b := &fakeBus{rules: make(map[string]policy.Rule)}
	var clock atomic.Int64
	begin := labStart / labDay * labDay
	clock.Store(begin)
	run := func(every time.Duration) *rig {
		return newRig(t, b, func(c *Config) { c.Engine.Now, c.usualEvery = clock.Load, every })
	}
	wait := func(what string, f func() bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !f(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("waited for %s", what)
			}
		}
	}
	var mu sync.Mutex
	learn := func(r *rig, day int64, minutes int) {
		mu.Lock()
		defer mu.Unlock()
		l := &lab{t: t, e: r.svc.engine, seq: uint64(day) * 1000} //nolint:gosec // few
		for i := range minutes {
			l.now = begin + day*labDay + int64(i)*60e9
			clock.Store(l.now + labSlot)
			l.clear()
			c := l.of(netip.PrefixFrom(victim, 32)).GetCounters()
			c.Packets, c.Icmp, c.Bytes = 300, 300, 30_000
			l.close()
		}
	}
	stored := func() int { b.mu.Lock(); defer b.mu.Unlock(); return len(b.usual) }
	raised := func(r *rig) float64 {
		g, err := r.svc.ListGroups(t.Context(), &classifyv1.ListGroupsRequest{})
		if err != nil || len(g.GetGroups()) != 1 {
			t.Fatal(g, err)
		}
		if g.GetGroups()[0].GetThresholds()["icmp"] != 500 {
			t.Errorf("the configured threshold is shown as %v", g.GetGroups()[0].GetThresholds()["icmp"])
		}
		if h := g.GetGroups()[0].GetLearned(); len(h) == 1 && h[0].GetHost() == victim.String() {
			return h[0].GetThresholds()["icmp"]
		}
		return 0
	}

	first := run(20 * time.Millisecond)
	learn(first, 0, 400)
	wait("the first day", func() bool { return stored() == 1 })
	learn(first, 1, 2)
	wait("the second day", func() bool { return stored() == 2 })
	if got := raised(first); got != 625 {
		t.Fatalf("on the second day the threshold is %v, want 625", got)
	}
	first.stop()

	second := run(time.Hour)
	wait("the thresholds", func() bool { return raised(second) == 625 })
	learn(second, 1, 100)
	second.stop() // the last minutes are stored now
	b.mu.Lock()
	for _, d := range b.usual {
		if d.GetNode() == "" || d.GetUpdatedNs() == 0 {
			t.Errorf("stored without node or time: %v", d)
		}
		if d.GetDay() == uint32(begin/labDay+1) && d.GetHosts()[0].GetMinutes() < 99 {
			t.Errorf("%d minutes of the second day, want 99 or more", d.GetHosts()[0].GetMinutes())
		}
	}
	before := len(b.usual)
	b.usualErr = errors.New("no persist answers")
	b.mu.Unlock()

	third := run(10 * time.Millisecond)
	wait("an attempt", func() bool { return testutil.ToFloat64(third.tel.ErrorCounter("restore_usual")) > 0 })
	learn(third, 2, 3)
	if got := raised(third); got != 0 {
		t.Errorf("threshold %v without an answer", got)
	}
	time.Sleep(50 * time.Millisecond)
	if n := stored(); n != before {
		t.Errorf("%d days are stored before they were restored, %d before", n, before)
	}
	b.mu.Lock()
	b.usualErr = nil
	b.mu.Unlock()
	wait("the late answer", func() bool { return raised(third) > 0 })
	if got := raised(third); got != 781.25 { // a day later: a quarter more
		t.Errorf("after the late answer %v, want 781.25", got)
	}
	third.stop()
}
