package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
)

// dropWatch reads the drop counter every 100 ms and notes the gaps: intervals in which the attack was sent
// and nothing was dropped. An interval in which the machine ran neither sender nor test says nothing.
type dropWatch struct {
	sent    *atomic.Uint64 // attack frames so far
	mu      sync.Mutex
	samples int
	gaps    []string
	lowest  uint64
	idle    int           // samples in which the attack was hardly sent
	slow    time.Duration // the longest reading of the counters took
}

func (w *dropWatch) run(ctx context.Context, gate *xdp.Gate) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var before, sentBefore uint64
	start, last := time.Now(), time.Time{}
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			sent := w.sent.Load()
			c, err := gate.Counters()
			if err != nil {
				w.note(fmt.Sprintf("at %v: %v", time.Since(start), err), 0)
				continue
			}
			w.slow = max(w.slow, time.Since(now))
			if !last.IsZero() {
				if sent-sentBefore <= 1000 {
					w.idle++
				}
				if c.Drop <= before && sent-sentBefore > 1000 {
					w.note(fmt.Sprintf("no drop between %v and %v", last.Sub(start), now.Sub(start)), 0)
				} else {
					w.note("", c.Drop-before)
				}
			}
			before, sentBefore, last = c.Drop, sent, now
		}
	}
}

func (w *dropWatch) note(gap string, n uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.samples++
	if gap != "" {
		w.gaps = append(w.gaps, gap)
	} else if n > 0 && (w.lowest == 0 || n < w.lowest) {
		w.lowest = n
	}
}

// TestFullRestartsUnderLoad kills each service at random times under an attack of 200,000 packets a second and
// starts it again: the drops go on, no rule is lost, no event is lost or doubled. TIDEGATE_SOAK sets how
// long; without it each service is killed twice.
func TestFullRestartsUnderLoad(t *testing.T) {
	m := newMesh(t)
	db := m.open(t)
	events := m.recordEvents(t)
	stop := background(m.link.Client(30, 3))
	defer stop()
	time.Sleep(2 * time.Second)
	sender, err := m.link.Sender()
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	frames, err := m.link.Attack(loadgen.SYNFlood, 5)
	if err != nil {
		t.Fatal(err)
	}
	attackCtx, endAttack := context.WithCancel(t.Context())
	defer endAttack()
	var sent loadgen.Sent
	var frameCount atomic.Uint64
	next := func(b []byte) []byte {
		frameCount.Add(1)
		return frames.Next(b)
	}
	attackDone := make(chan error, 1)
	go func() {
		var err error
		sent, err = sender.Send(attackCtx, next, 220_000, 0)
		attackDone <- err
	}()
	gate, err := xdp.Open(xdp.Options{Iface: m.link.PortA, BPFFS: m.link.BPFFS, Mode: xdp.ModeKeep})
	if err != nil {
		t.Fatal(err)
	}
	defer gate.Close()
	err = rig.Eventually(5*time.Second, func() error {
		if c, err := gate.Counters(); err != nil || c.Drop == 0 {
			return fmt.Errorf("nothing dropped: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second) // the verdict's rules are complete
	rules, err := gate.Rules()
	if err != nil {
		t.Fatal(err)
	}

	watchCtx, endWatch := context.WithCancel(t.Context())
	watch := &dropWatch{sent: &frameCount}
	watchDone := make(chan struct{})
	began := time.Now()
	go func() { defer close(watchDone); watch.run(watchCtx, gate) }()

	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	pause := func(low, high time.Duration) {
		time.Sleep(low + time.Duration(rng.Int64N(int64(high-low))))
	}
	until := time.Time{}
	if s := os.Getenv("TIDEGATE_SOAK"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatalf("TIDEGATE_SOAK: %v", err)
		}
		until = time.Now().Add(d)
	}
	kills := 0
	for round := 0; round < 2 || time.Now().Before(until); round++ {
		names := []string{"ingest", "classify", "enforce", "persist"}
		rng.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		for _, name := range names {
			pause(200*time.Millisecond, 1200*time.Millisecond)
			p := m.processes()[name]
			t.Logf("%v: kill %s", time.Since(began).Round(time.Millisecond), name)
			p.Kill()
			pause(300*time.Millisecond, 2*time.Second)
			p.Restart()
			kills++
		}
		m.gateway.WaitReady(t, 4, 30*time.Second)
	}
	took := time.Since(began)
	endWatch()
	<-watchDone
	after, err := gate.Rules()
	if err != nil {
		t.Fatal(err)
	}
	endAttack()
	if err := <-attackDone; err != nil {
		t.Fatal(err)
	}
	rate := float64(sent.Frames) / (float64(sent.LastNs-sent.FirstNs) / 1e9)
	t.Logf("%d kills in %v under %.0f packets/s: %d samples, fewest drops in 100 ms %d, slowest reading %v", kills, took.Round(time.Millisecond), rate, watch.samples, watch.lowest, watch.slow)
	if rate < 200_000 {
		t.Errorf("the attack ran at %.0f packets/s only", rate)
	}
	if len(watch.gaps) > 0 {
		t.Errorf("%d of %d samples without a drop: %v", len(watch.gaps), watch.samples, watch.gaps)
	}
	if watch.idle > watch.samples/50 {
		t.Errorf("the attack paused in %d of %d samples", watch.idle, watch.samples)
	}
	left := map[uint64]bool{}
	for _, r := range after {
		left[r.ID] = true
	}
	for _, r := range rules {
		// A rule that nothing hits may run out; those that drop must all be there.
		stats, err := gate.RuleStats([]uint64{r.ID})
		if err == nil && stats[r.ID].Dropped > 0 && !left[r.ID] {
			t.Errorf("rule %#x was lost", r.ID)
		}
	}
	if len(rules) == 0 || len(after) == 0 {
		t.Errorf("%d rules before, %d after", len(rules), len(after))
	}
	stop()
	events.check(t, db)
}
