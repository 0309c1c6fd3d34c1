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
