package flowtable

import (
	"math/rand/v2"
	"testing"
	"time"

	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

func TestTimeouts(t *testing.T) {
	tests := []struct {
		name string
		play func(r *rig)
		d    time.Duration
		why  flowv1.EndReason
	}{
		{"tcp", func(r *rig) {
			r.tcp("192.0.2.1", 1, "198.51.100.1", 80, flagACK, 1, "x")
			r.tcp("198.51.100.1", 80, "192.0.2.1", 1, flagACK, 1, "x")
		}, 120 * time.Second, flowv1.EndReason_END_REASON_IDLE},
		{"udp", func(r *rig) { r.udp("192.0.2.1", 1, "198.51.100.1", 80, "x") }, 60 * time.Second, flowv1.EndReason_END_REASON_IDLE},
		{"single", func(r *rig) { r.udp("192.0.2.1", 1, "198.51.100.1", 80, "") }, 5 * time.Second, flowv1.EndReason_END_REASON_IDLE},
		{"icmp", func(r *rig) {
			h := header("192.0.2.1", "198.51.100.1")
			r.frame(h.AppendICMP(nil, 8, 0, 1, []byte("x")))
		}, 30 * time.Second, flowv1.EndReason_END_REASON_IDLE},
		{"rst", func(r *rig) {
			r.tcp("192.0.2.1", 1, "198.51.100.1", 80, flagSYN, 1, "")
			r.tcp("198.51.100.1", 80, "192.0.2.1", 1, flagRST|flagACK, 1, "")
		}, 2 * time.Second, flowv1.EndReason_END_REASON_RST},
		{"fin of the only side seen", func(r *rig) {
			r.tcp("192.0.2.1", 1, "198.51.100.1", 80, flagACK, 1, "x")
			r.tcp("192.0.2.1", 1, "198.51.100.1", 80, flagACK|flagFIN, 1, "")
		}, 2 * time.Second, flowv1.EndReason_END_REASON_FIN},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, func(c *Config) { c.Active = 0 })
			tt.play(r)
			r.wait(tt.d - 100*time.Millisecond)
			if n := len(r.ends()); n != 0 {
				t.Fatal("ended early")
			}
			r.wait(250 * time.Millisecond)
			if e := r.ends(); len(e) != 1 || e[0].Reason != tt.why {
				t.Fatalf("ends: %+v", e)
			}
			r.ledger()
		})
	}
}

// TestSilentIsToldOnce: a flow that was silent for long when a part of it would be told of is told of when it ends, and one
// that speaks again by then has its part.
func TestSilentIsToldOnce(t *testing.T) {
	r := newRig(t, nil)
	speak := func(port uint16, seconds int) {
		for range seconds {
			r.udp("192.0.2.1", port, "198.51.100.1", 80, "x")
			r.wait(time.Second)
		}
	}
	speak(1, 5)
	r.wait(59 * time.Second) // 59 s of 60 s silent, 64 s old
	if e := r.ends(); len(e) != 0 {
		t.Fatalf("told of early: %+v", e)
	}
	r.wait(2 * time.Second)
	if e := r.ends(); len(e) != 1 || e[0].Reason != flowv1.EndReason_END_REASON_IDLE || e[0].Part != 0 || e[0].Totals.PacketsFwd != 5 {
		t.Fatalf("ends: %+v", e)
	}
	speak(2, 5)
	r.wait(57 * time.Second) // 62 s old
	speak(2, 30)
	r.flush()
	e := r.ends()[1:]
	if len(e) != 2 || e[0].Reason != flowv1.EndReason_END_REASON_ACTIVE || e[0].Totals.PacketsFwd+e[1].Totals.PacketsFwd != 35 || e[1].Totals.PacketsFwd == 0 {
		t.Fatalf("ends: %+v", e)
	}
	r.ledger()
}

func TestActiveAndUpdate(t *testing.T) {
	r := newRig(t, nil)
	for range 130 {
		r.udp("192.0.2.1", 1, "198.51.100.1", 80, "x")
		r.udp("198.51.100.1", 80, "192.0.2.1", 1, "x")
		r.wait(time.Second)
	}
	r.flush()
	ends := r.ends()
	var sum uint64
	for i, e := range ends {
		if int(e.Part) != i {
			t.Errorf("part %d is numbered %d", i, e.Part)
		}
		sum += e.Totals.PacketsFwd
	}
	if len(ends) != 3 || sum != 130 || ends[0].Reason != flowv1.EndReason_END_REASON_ACTIVE || ends[2].Reason != flowv1.EndReason_END_REASON_SHUTDOWN {
		t.Errorf("ends: %+v", ends)
	}
	if n := r.out.Updates.Count; n < 9 || n > 12 {
		t.Errorf("%d updates in 130 s", n)
	}
	if r.out.Opens.Count != 1 {
		t.Errorf("%d opens", r.out.Opens.Count)
	}
	if s := r.table.Stats(); s.Created != 1 || s.Ended != 1 {
		t.Errorf("%+v", s)
	}
}

func TestClockJumps(t *testing.T) {
	r := newRig(t, nil)
	r.udp("192.0.2.1", 1, "198.51.100.1", 80, "x")
	r.now += int64(1000 * time.Hour)
	for r.table.Advance(r.now, r.to, nil) {
		continue
	}
	if n := len(r.ends()); n != 1 {
		t.Fatalf("%d ends after a jump of the clock", n)
	}
	r.now -= int64(2000 * time.Hour)
	r.udp("192.0.2.1", 1, "198.51.100.1", 80, "x")
	r.wait(time.Second)
	r.flush()
	r.ledger()
	if n := len(r.ends()); n != 2 {
		t.Errorf("%d ends", n)
	}
}

// TestLeaps: whatever way the clock takes, a flow ends once its timeout is up, at most a tick and a half later.
func TestLeaps(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Active, c.Update = 0, 0 })
	rng := rand.New(rand.NewPCG(1, 2))
	var last []int64
	for round := range 400 {
		for range rng.IntN(3) {
			r.udp("192.0.2.1", uint16(len(last)), "192.0.2.2", 4000, "x") //nolint:gosec // a few hundred
			last = append(last, r.now)
		}
		r.now += rng.Int64N(int64([]time.Duration{time.Millisecond, time.Second, 20 * time.Second, 5 * time.Minute}[rng.IntN(4)]))
		for r.table.Advance(r.now, r.to, nil) {
			continue
		}
		least, most := uint64(0), uint64(0)
		for _, at := range last {
			if at+int64(r.table.cfg.IdleUDP) > r.now {
				least++
			}
			if at+int64(r.table.cfg.IdleUDP)+3*tickNs/2 > r.now {
				most++
			}
		}
		if n := r.table.Stats().Active; n < least || n > most {
			t.Fatalf("round %d: %d flows are active, want %d to %d", round, n, least, most)
		}
	}
	r.ledger()
}

// TestBack: flows keep what is left of their timeouts when the clock is set back, whatever they wait for, and nothing is lost.
func TestBack(t *testing.T) {
	r := newRig(t, nil)
	for i := range 200 {
		r.udp("192.0.2.1", uint16(i), "198.51.100.1", 80, "x") //nolint:gosec // small
		r.tcp("192.0.2.1", uint16(i), "198.51.100.1", 80, flagSYN, 1, "")
	}
	r.wait(2 * time.Second)
	r.now -= int64(3 * time.Hour)
	r.table.Back(r.now)
	r.wait(900 * time.Millisecond)
	if len(r.failures) != 0 {
		t.Fatalf("%d attempts failed early", len(r.failures))
	}
	r.wait(250 * time.Millisecond)
	if len(r.failures) != 400 { // of both protocols
		t.Errorf("%d attempts failed", len(r.failures))
	}
	r.wait(2 * time.Second)
	if s := r.table.Stats(); s.Active != 200 || s.Ended != 200 {
		t.Errorf("after the single packets' timeout: %+v", s)
	}
	r.wait(55 * time.Second)
	if s := r.table.Stats(); s.Active != 0 {
		t.Errorf("after all timeouts: %+v", s)
	}
	for _, e := range r.ends() {
		if e.LastNs < e.FirstNs || e.LastNs > r.now {
			t.Fatalf("%+v at %d", e, r.now)
		}
	}
	r.ledger()
}
