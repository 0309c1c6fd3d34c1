package enforce

import (
	"errors"
	"maps"
	"slices"

	"github.com/tidegate-mesh/tidegate/libs/xdp"
)

// Action is a target that rules act at: the XDP program of an interface, or routers upstream. It holds what it was
// given until that is deleted, and takes the same twice without harm. One goroutine calls it, and holds the service's
// lock: no call may wait for a network or another process.
type Action interface {
	// PutRules takes rules or replaces those of the same ID. One that it cannot take is left out; the error joins an
	// xdp.RuleError for each.
	PutRules(rules []xdp.Rule) error
	// DeleteRules takes rules out; unknown IDs are ignored.
	DeleteRules(ids []uint64) error
	// Rules are those it holds, in no order.
	Rules() ([]xdp.Rule, error)
	// RuleStats reads what rules did there; nil: all it holds. ErrNoCounters: nobody can tell, so rules are neither
	// renewed nor released by what they match there.
	RuleStats(ids []uint64) (map[uint64]xdp.RuleStat, error)
	// Close ends this process's use of the target.
	Close() error
}

// ErrNoCounters is the answer of a target that does not count.
var ErrNoCounters = errors.New("the target does not count")

// actions lists the targets: the gates that are open, and the routers upstream if there are any.
func (s *Service) actions() []Action {
	var out []Action
	for _, p := range s.gates() {
		out = append(out, p.gate)
	}
	if s.upstream != nil {
		out = append(out, s.upstream)
	}
	return out
}

// align brings a target in line with what is wanted there: it puts what is missing or different, then deletes what is
// not wanted. What it did not take is returned by ID.
func align(a Action, want map[uint64]xdp.Rule) (failed map[uint64]error, err error) {
	there, err := a.Rules()
	if err != nil {
		return nil, err
	}
	missing := maps.Clone(want)
	var over []uint64
	for i := range there {
		w, ok := want[there[i].ID]
		switch {
		case !ok:
			over = append(over, there[i].ID)
		case sameEntry(w, there[i]):
			delete(missing, w.ID)
		}
	}
	failed = make(map[uint64]error)
	if len(missing) > 0 {
		if puts := a.PutRules(slices.Collect(maps.Values(missing))); puts != nil {
			err = ruleErrors(puts, failed)
		}
	}
	if len(over) > 0 {
		err = errors.Join(err, a.DeleteRules(over))
	}
	return failed, err
}

// stats sums what the rules did at all targets that count; the first drop is the earliest.
func (s *Service) stats(ids []uint64) map[uint64]xdp.RuleStat {
	var sum map[uint64]xdp.RuleStat
	for _, t := range s.actions() {
		m, err := t.RuleStats(ids)
		if errors.Is(err, ErrNoCounters) {
			continue
		}
		if err != nil {
			s.t.CountError("rule_stats")
			continue
		}
		if sum == nil {
			sum = m
			continue
		}
		for id, b := range m {
			a := sum[id]
			a.Packets, a.Bytes, a.Dropped = a.Packets+b.Packets, a.Bytes+b.Bytes, a.Dropped+b.Dropped
			if a.FirstDrop.IsZero() || !b.FirstDrop.IsZero() && b.FirstDrop.Before(a.FirstDrop) {
				a.FirstDrop = b.FirstDrop
			}
			if b.LastHit.After(a.LastHit) {
				a.LastHit = b.LastHit
			}
			sum[id] = a
		}
	}
	return sum
}
