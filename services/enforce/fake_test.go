package enforce

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
)

// fakeGate is the kernel's side of one interface in memory; it outlives services as pins do.
type fakeGate struct {
	mu      sync.Mutex
	rules   map[uint64]xdp.Rule
	stats   map[uint64]xdp.RuleStat
	never   map[netip.Prefix]xdp.Never
	puts    int // entries written
	putErr  func(r *xdp.Rule) error
	delErr  error
	mode    xdp.Mode
	counter xdp.Counters
	dead    error
	lists   []xdp.Listed
	paused  bool
}

func (g *fakeGate) SyncLists(_ context.Context, want *xdp.Listing, counting bool, _ map[xdp.ListID]bool) (xdp.ListChange, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lists = slices.Clone(want.Want)
	for i := range g.lists {
		if counting && g.lists[i].Action == policy.Drop {
			g.lists[i].Action = policy.Count
		}
	}
	return xdp.ListChange{Put: want.Len()}, nil
}

func (g *fakeGate) PauseLists(on bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.paused = on
	return nil
}

func (g *fakeGate) ListStats(xdp.ListID) (xdp.RuleStat, error) { return xdp.RuleStat{}, nil }

func (g *fakeGate) ResetList(xdp.ListID) error { return nil }

func newFakeGate() *fakeGate {
	return &fakeGate{rules: map[uint64]xdp.Rule{}, stats: map[uint64]xdp.RuleStat{}, never: map[netip.Prefix]xdp.Never{}, mode: xdp.ModeInline}
}

func (g *fakeGate) PutRules(rules []xdp.Rule) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var errs []error
	for i := range rules {
		r := &rules[i]
		if g.putErr != nil {
			if err := g.putErr(r); err != nil {
				errs = append(errs, &xdp.RuleError{ID: r.ID, Err: err})
				continue
			}
		}
		g.puts++
		g.rules[r.ID] = *r
		if _, ok := g.stats[r.ID]; !ok {
			g.stats[r.ID] = xdp.RuleStat{}
		}
	}
	return errors.Join(errs...)
}

func (g *fakeGate) DeleteRules(ids []uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.delErr != nil {
		return g.delErr
	}
	for _, id := range ids {
		delete(g.rules, id)
		delete(g.stats, id)
	}
	return nil
}

func (g *fakeGate) Rules() ([]xdp.Rule, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []xdp.Rule
	for _, r := range g.rules {
		r.Expires = r.Expires.Add(time.Millisecond * 3) // the kernel's clock is coarse
		if g.rules[r.ID].Expires.IsZero() {
			r.Expires = time.Time{}
		}
		out = append(out, r)
	}
	return out, nil
}

func (g *fakeGate) RuleStats(ids []uint64) (map[uint64]xdp.RuleStat, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := map[uint64]xdp.RuleStat{}
	for _, id := range ids {
		if s, ok := g.stats[id]; ok {
			out[id] = s
		}
	}
	return out, nil
}

func (g *fakeGate) PutNever(list []xdp.Never) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, n := range list {
		g.never[n.Prefix] = n
	}
	return nil
}

func (g *fakeGate) DeleteNever(list []netip.Prefix) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range list {
		delete(g.never, p)
	}
	return nil
}

func (g *fakeGate) NeverList() ([]xdp.Never, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []xdp.Never
	for _, n := range g.never {
		out = append(out, n)
	}
	return out, nil
}

func (g *fakeGate) Counters() (xdp.Counters, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.counter, nil
}
func (g *fakeGate) Mode() xdp.Mode { g.mu.Lock(); defer g.mu.Unlock(); return g.mode }
func (g *fakeGate) Alive() error   { g.mu.Lock(); defer g.mu.Unlock(); return g.dead }
func (g *fakeGate) Close() error   { return nil }

// hit counts packets of a rule that is in the map and not past its deadline, as the program does.
func (g *fakeGate) hit(number uint64, packets uint64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	r, ok := g.rules[number]
	if !ok || !r.Expires.IsZero() && r.Expires.Before(time.Now()) {
		return false
	}
	s := g.stats[number]
	s.Packets += packets
	s.Bytes += 60 * packets
	s.LastHit = time.Now()
	if !r.WouldDrop && r.Action.Blocks() {
		s.Dropped += packets
		if s.FirstDrop.IsZero() {
			s.FirstDrop, s.FirstDropNs = time.Now(), xdp.MonotonicNow()
		}
	}
	g.stats[number] = s
	return true
}

func (g *fakeGate) get(number uint64) (xdp.Rule, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	r, ok := g.rules[number]
	return r, ok
}

// blocking counts the entries that keep packets back.
func (g *fakeGate) blocking() (n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range g.rules {
		if r.Action.Blocks() {
			n++
		}
	}
	return n
}

func (g *fakeGate) written() int { g.mu.Lock(); defer g.mu.Unlock(); return g.puts }

func (g *fakeGate) set(f func(g *fakeGate)) { g.mu.Lock(); defer g.mu.Unlock(); f(g) }
