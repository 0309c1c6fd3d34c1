package classify

import (
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/loadgen"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

// TestClocksThatDiffer: a flood that two sensors see is one attack, whatever their clocks say, and it goes on while a third
// sees nothing of it.
func TestClocksThatDiffer(t *testing.T) {
	for _, off := range []time.Duration{0, 900 * time.Millisecond, 1100 * time.Millisecond, 2 * time.Second, -2 * time.Second, 20 * time.Second, -20 * time.Second} {
		now := labStart
		l := newLab(t, func(c *EngineConfig) { c.Now = func() int64 { return now } })
		f, err := loadgen.NewFrames(loadgen.Attack{Kind: loadgen.SYNFlood, Seed: 3, Target: victim})
		if err != nil {
			t.Fatal(err)
		}
		states := make(map[eventv1.AttackState]int)
		for i := range 300 {
			now += labSlot
			for sensor, n := range map[string]int{"one": 20, "two": 20, "idle": 0} {
				if i < 100 {
					n = 0
				}
				l.now = now - labSlot - 5e6
				if sensor != "one" {
					l.now += int64(off)
				}
				l.attack(f, n)
				w := &flowv1.Window{Sensor: sensor, StartNs: l.now, EndNs: l.now + labSlot, Sequence: uint64(i)} //nolint:gosec // few
				for a, x := range l.target {
					x.SourceRegisters = l.hll[a][:]
					w.Targets = append(w.Targets, x)
				}
				l.clear()
				if err := l.e.Window(w, &l.out); err != nil {
					t.Fatal(err)
				}
				if w.GetStartNs() != l.now || w.GetEndNs() != l.now+labSlot {
					t.Fatalf("off by %s: the window has other times afterwards", off)
				}
				for _, a := range l.out.Attacks {
					states[a.GetState()]++
				}
			}
		}
		if states[eventv1.AttackState_ATTACK_STATE_STARTED] != 1 || states[eventv1.AttackState_ATTACK_STATE_ENDED] != 0 {
			t.Errorf("off by %s: %v, want one attack", off, states)
		}
	}
}

// TestWindowsAgain: a window that a sensor sends once more, as after a stream that broke, does not count twice.
func TestWindowsAgain(t *testing.T) {
	l := newLab(t)
	for i := range uint64(30) {
		c := &flowv1.Counters{Packets: 60, Bytes: 60 * 100, Udp: 60}
		a := victim.As16()
		w := &flowv1.Window{Sensor: "s", Epoch: 7, Sequence: 1 + i, StartNs: l.now, EndNs: l.now + labSlot,
			Targets: []*flowv1.Target{{Addr: a[:], PrefixLen: 128, Counters: c}}}
		for range 3 {
			if err := l.e.Window(w, &l.out); err != nil {
				t.Fatal(err)
			}
			for _, a := range l.out.Attacks {
				t.Errorf("window %d: %s of %.0f packets/s; 600 were there", i, a.GetType(), a.GetPps())
			}
		}
		l.now += labSlot
	}
	l.e.mu.Lock()
	second := l.e.targets[victim].series.Sum(10)
	l.e.mu.Unlock()
	if second.Packets != 600 {
		t.Errorf("%d packets in a second, want 600", second.Packets)
	}
}
