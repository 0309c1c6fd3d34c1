package enforce

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
)

const (
	listNumbers  = 1024 // of the XDP program's counters
	listExamples = 20   // refused entries that are named
)

// listPlan is what is to be in the maps.
type listPlan struct {
	entries []xdp.Listed
	keep    map[xdp.ListID]bool // lists that stay as they are: their entries are not known, or whom they must spare is not
	gone    []xdp.ListID        // numbers whose list is another one now
	lists   []*plannedList
	numbers map[xdp.ListID]*plannedList
}

// plannedList is the outcome for one list.
type plannedList struct {
	name, object string
	taken        int
	refused      map[Reason]int
	examples     []string
}

func (p *plannedList) refuse(reason Reason, e netip.Prefix, detail string) {
	p.refused[reason]++
	if len(p.examples) < listExamples {
		p.examples = append(p.examples, fmt.Sprintf("%s: %s: %s", e, reason, detail))
	}
}

// leftOut takes entries off the outcome for which a map had no room.
func (p *listPlan) leftOut(entries []xdp.Listed) {
	full := make(map[xdp.ListID]bool)
	for i := range entries {
		l := p.numbers[entries[i].List]
		if l == nil || l.refused[ListLimit] > 0 && !full[entries[i].List] {
			continue // counted on another interface
		}
		full[entries[i].List] = true
		l.taken--
		l.refuse(ListLimit, entries[i].Prefix, "the node's map is full")
	}
}

// order is what wins where lists differ about an address: allow, then drop, then count.
var order = map[policyv1.Action]int{policyv1.Action_ACTION_ALLOW: 0, policyv1.Action_ACTION_DROP: 1, policyv1.Action_ACTION_COUNT: 2}

// planLists puts the lists together, guarded entry by entry. It is nil while the desired state is not known.
func (s *Service) planLists() *listPlan {
	s.mu.Lock()
	g := newListGuard(&s.guard)
	s.mu.Unlock()
	s.lists.mu.Lock()
	defer s.lists.mu.Unlock()
	if !s.lists.synced || !s.lists.told {
		return nil
	}
	names := slices.Sorted(maps.Keys(s.lists.known))
	s.numberLists(names)
	slices.SortStableFunc(names, func(a, b string) int {
		return order[s.lists.known[a].list.GetAction()] - order[s.lists.known[b].list.GetAction()]
	})
	plan := &listPlan{keep: make(map[xdp.ListID]bool), numbers: make(map[xdp.ListID]*plannedList), gone: s.goneLists()}
	var allowed [][]netip.Prefix
	total, allKnown := 0, true
	for _, name := range names {
		k := s.lists.known[name]
		total += len(k.entries)
		if k.list.GetAction() == policyv1.Action_ACTION_ALLOW {
			allowed, allKnown = append(allowed, k.entries), allKnown && k.entries != nil
		}
	}
	allow, drop, drops := policy.NewCover(allowed...), policy.Cover{}, false
	plan.entries = make([]xdp.Listed, 0, total)
	for _, name := range names {
		k := s.lists.known[name]
		if k.entries == nil || !allKnown && k.list.GetAction() == policyv1.Action_ACTION_DROP { // it may not drop whom an allow list exempts
			plan.keep[k.number] = true
			continue
		}
		action := policy.Action(k.list.GetAction()) //nolint:gosec // an enumeration of five
		p := &plannedList{name: name, object: k.loaded, refused: make(map[Reason]int)}
		plan.lists = append(plan.lists, p)
		plan.numbers[k.number] = p
		if action != policy.Allow && action != policy.Drop && action != policy.Count {
			k.err = fmt.Errorf("a list can allow, drop or count, not %s", action)
			continue
		}
		if action == policy.Count && !drops {
			drop, drops = policy.NewCover(dropping(plan.entries)), true
		}
		for _, e := range k.entries {
			if no := g.check(action, e); no != nil {
				p.refuse(no.reason, e, no.detail)
				continue
			}
			if w, ok := allow.Find(e); ok && action != policy.Allow {
				p.refuse(AllowList, e, fmt.Sprintf("an allow list has %s", w))
				continue
			}
			if w, ok := drop.Find(e); ok && action == policy.Count {
				p.refuse(DropList, e, fmt.Sprintf("a list that drops has %s", w))
				continue
			}
			p.taken++
			plan.entries = append(plan.entries, xdp.Listed{Prefix: e, List: k.number, Action: action})
		}
	}
	return plan
}

// dropping are the prefixes of entries that drop.
func dropping(entries []xdp.Listed) []netip.Prefix {
	var out []netip.Prefix
	for i := range entries {
		if entries[i].Action == policy.Drop {
			out = append(out, entries[i].Prefix)
		}
	}
	return out
}

// numberLists gives each list the number of its key, or a free one where two have the same.
func (s *Service) numberLists(names []string) {
	taken := make(map[xdp.ListID]bool, len(names))
	byAge := slices.Clone(names)
	slices.SortStableFunc(byAge, func(a, b string) int {
		return int(min(max(s.lists.known[a].list.GetCreatedNs()-s.lists.known[b].list.GetCreatedNs(), -1), 1))
	})
	for _, name := range byAge {
		k := s.lists.known[name]
		n := xdp.ListID(k.list.GetNumber() % listNumbers) //nolint:gosec // bounded
		for range listNumbers {
			if !taken[n] {
				break
			}
			n = (n + 1) % listNumbers
		}
		taken[n] = true
		k.number = n
	}
}

// goneLists are numbers whose counters are those of another list.
func (s *Service) goneLists() (out []xdp.ListID) {
	now := make(map[xdp.ListID]string, len(s.lists.known))
	for name, k := range s.lists.known {
		now[k.number] = name
	}
	for n, name := range s.listNames {
		if now[n] != name {
			out = append(out, n)
		}
	}
	s.listNames = now
	return out
}

// listGuard is what the guardrails say about entries of lists.
type listGuard struct {
	covers     []listCover
	min4, min6 int
	broad      bool
}

type listCover struct {
	reason Reason
	what   string
	cover  policy.Cover
}

func newListGuard(g *guard) *listGuard {
	l := &listGuard{min4: g.min4, min6: g.min6, broad: g.allowBroadUser}
	for _, p := range g.protected() {
		l.covers = append(l.covers, listCover{p.reason, p.what, policy.NewCover(p.prefixes)})
	}
	return l
}

// check refuses entries that drop what must not be, as guard.check does rules.
func (l *listGuard) check(action policy.Action, e netip.Prefix) *refusal {
	if action != policy.Drop {
		return nil
	}
	for i := range l.covers {
		if p, ok := l.covers[i].cover.Find(e); ok {
			return &refusal{l.covers[i].reason, fmt.Sprintf("it is inside %s %s", l.covers[i].what, p)}
		}
	}
	least := l.min6
	if e.Addr().Is4() {
		least = l.min4
	}
	if e.Bits() < least && !l.broad {
		return &refusal{BlastRadius, fmt.Sprintf("it is broader than /%d, the limit of an entry that drops", least)}
	}
	return nil
}
