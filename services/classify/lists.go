package classify

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/lifecycle"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/hostlist"
)

const (
	listRetryMin = time.Second
	listRetryMax = 30 * time.Second
)

// hostState is what this classifier knows of lists of domains and of allowed addresses, of users' rules by host, and of the rules that classifiers
// have made for single flows because of either.
type hostState struct {
	wake chan struct{} // lists or users' rules have changed

	mu       sync.Mutex
	lists    map[string]*watchedList
	listSync repetition
	users    map[string]policy.Rule // users' rules by host, by id
	made     map[string]madeRule    // rules for single flows that are in force anywhere, by id
	ruleSync repetition
}

// repetition tells what a full repetition of a bucket leaves out.
type repetition struct {
	on   bool
	seen map[string]bool
}

// begin starts a repetition.
func (r *repetition) begin() { r.on, r.seen = true, make(map[string]bool) }

// see notes a key.
func (r *repetition) see(key string) {
	if r.on {
		r.seen[key] = true
	}
}

// end reports whether keys that were not seen are gone. A bucket without any key was lost: what is in force stays.
func (r *repetition) end() (seen map[string]bool, complete bool) {
	seen, complete = r.seen, r.on && len(r.seen) > 0
	r.on, r.seen = false, nil
	return seen, complete
}

// watchedList is a list of domains, or one of addresses that allows. Its text is replaced, never changed.
type watchedList struct {
	list    *policyv1.AddressList
	text    []byte
	loaded  string // object that text is from
	ready   bool   // text was loaded
	applied string // object that flows are compared with
	at      time.Time
	outcome hostlist.Outcome
	err     error // why the list is not in force as it is wanted
	counts  *hostCounts
}

// hostCounts of a list since this classifier started.
type hostCounts struct{ flows, ruled atomic.Uint64 }

// madeRule is a rule for one flow.
type madeRule struct {
	rule     policy.Rule
	revision uint64 // 0: asked for, and not seen in the bucket yet
}

func newHostState() *hostState {
	return &hostState{
		wake: make(chan struct{}, 1), lists: make(map[string]*watchedList), users: make(map[string]policy.Rule), made: make(map[string]madeRule),
	}
}

func (h *hostState) poke() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// takeList notes a change of the lists.
func (h *hostState) takeList(u bus.ListUpdate) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case u.Restarted:
		h.listSync.begin()
		return
	case u.Synced:
		if seen, complete := h.listSync.end(); complete {
			maps.DeleteFunc(h.lists, func(name string, _ *watchedList) bool { return !seen[name] })
		}
	case u.Err != nil:
		h.listSync.see(u.Name)
		if l := h.lists[u.Name]; l != nil {
			l.err = u.Err
		}
	case u.List == nil || !concerns(u.List):
		if u.List != nil {
			h.listSync.see(u.Name)
		}
		delete(h.lists, u.Name)
	default:
		h.listSync.see(u.Name)
		l := h.lists[u.Name]
		if l == nil {
			l = &watchedList{counts: &hostCounts{}}
			h.lists[u.Name] = l
		}
		l.list = u.List
	}
	h.poke()
}

// concerns: classifiers compare names with lists of domains, and find nothing of sources that a list allows.
func concerns(l *policyv1.AddressList) bool {
	return l.GetKind() == policy.KindDomain || l.GetAction() == policyv1.Action_ACTION_ALLOW
}

// takeRule notes a change of the rules.
func (h *hostState) takeRule(u bus.RuleUpdate) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case u.Restarted:
		h.ruleSync.begin()
	case u.Synced:
		if seen, complete := h.ruleSync.end(); complete {
			gone := len(h.users)
			maps.DeleteFunc(h.users, func(id string, _ policy.Rule) bool { return !seen[id] })
			maps.DeleteFunc(h.made, func(id string, m madeRule) bool { return !seen[id] && m.revision > 0 })
			if len(h.users) != gone {
				h.poke()
			}
		}
	case u.Err != nil:
		h.ruleSync.see(u.ID)
	case u.Rule == nil:
		delete(h.made, u.ID)
		if _, ok := h.users[u.ID]; ok {
			delete(h.users, u.ID)
			h.poke()
		}
	default:
		h.ruleSync.see(u.ID)
		switch old, known := h.users[u.ID]; {
		case u.Rule.Host != "":
			h.made[u.ID] = madeRule{*u.Rule, u.Revision}
		case u.Rule.Match.Host != "" && (!known || old != *u.Rule):
			h.users[u.ID] = *u.Rule
			h.poke()
		}
	}
}

// keepLists makes the engine's table what lists and users' rules say, whenever either changes, until ctx ends.
func (s *Service) keepLists(ctx context.Context) {
	lifecycle.Keep(ctx, s.hosts.wake, listRetryMin, listRetryMax, s.updateTable, func(err error, wait time.Duration) {
		s.t.CountError("domain_lists")
		s.t.Log.Error("lists of domains are not as they are wanted, trying again", "error", err, "in", wait)
	})
}

// updateTable loads what is new and puts a new table in the place of the engine's.
func (s *Service) updateTable(ctx context.Context) error {
	err := s.loadLists(ctx)
	h := s.hosts
	h.mu.Lock()
	var lists []hostlist.List
	var allowed [][]netip.Prefix
	objects := make(map[string]string)
	for name, l := range h.lists {
		if !l.ready {
			continue
		}
		if l.list.GetKind() != policy.KindDomain {
			if read, e := policy.ParseList(l.text, len(l.text)); e != nil { // no text has more entries than bytes
				err = errors.Join(err, fmt.Errorf("list %s: %w", name, e))
			} else {
				allowed = append(allowed, read.Entries)
			}
			continue
		}
		action := policy.Action(l.list.GetAction()) //nolint:gosec // an enumeration of five
		if action < policy.Allow || action > policy.Count {
			l.err = fmt.Errorf("unknown action %d", action)
			continue
		}
		objects[name] = l.loaded
		lists = append(lists, hostlist.List{Name: name, Action: action, RatePPS: l.list.GetRatePps(), RateBPS: l.list.GetRateBps(), Text: l.text})
	}
	users := slices.Collect(maps.Values(h.users))
	h.mu.Unlock()

	begin := time.Now()
	table, outcomes := hostlist.New(lists, users)
	if len(lists)+len(users) == 0 {
		table = nil
	}
	s.engine.hosts.Store(table)
	s.engine.Allow(policy.NewCover(allowed...))
	entries := table.Entries()
	s.metrics.hostEntries.Set(float64(entries))
	h.mu.Lock()
	for name, o := range outcomes {
		l := h.lists[name]
		if l == nil {
			continue
		}
		if l.applied != objects[name] || l.at.IsZero() {
			l.at = time.Now()
			if o.Invalid+o.Full > 0 {
				s.t.Log.Warn("entries of a list of domains are left out", "list", name, "taken", o.Taken, "invalid", o.Invalid, "beyond_the_limit", o.Full)
			}
		}
		l.applied, l.outcome = objects[name], o
	}
	h.mu.Unlock()
	s.t.Log.Info("flows are compared with lists of domains and rules by host", "lists", len(lists), "rules", len(users), "entries", entries,
		"took", time.Since(begin).Round(time.Millisecond))
	return errors.Join(err, s.withdraw(ctx, table))
}

// loadLists fetches the entries of lists whose object has changed. A list that cannot be loaded stays as it is.
func (s *Service) loadLists(ctx context.Context) error {
	type todo struct{ name, object string }
	var work []todo
	h := s.hosts
	h.mu.Lock()
	for name, l := range h.lists {
		if o := l.list.GetObject(); l.loaded != o || !l.ready {
			work = append(work, todo{name, o})
		}
	}
	h.mu.Unlock()
	var errs error
	for _, w := range work {
		var text []byte
		var err error
		if w.object != "" {
			text, err = s.bus.ListEntries(ctx, w.object)
		}
		h.mu.Lock()
		if l := h.lists[w.name]; l != nil && l.list.GetObject() == w.object {
			if l.err = err; err == nil {
				l.text, l.loaded, l.ready = text, w.object, true
			}
		} else {
			err = nil // it has changed meanwhile, and that has woken us again
		}
		h.mu.Unlock()
		if err != nil {
			errs = errors.Join(errs, fmt.Errorf("list %s: %w", w.name, err))
		}
	}
	return errs
}

// countsOf are a list's, nil when there is none of the name.
func (h *hostState) countsOf(list string) *hostCounts {
	h.mu.Lock()
	defer h.mu.Unlock()
	if l := h.lists[list]; l != nil {
		return l.counts
	}
	return nil
}

// DomainLists implements ClassifyService.
func (s *Service) DomainLists(context.Context, *classifyv1.DomainListsRequest) (*classifyv1.DomainListsResponse, error) {
	h := s.hosts
	h.mu.Lock()
	defer h.mu.Unlock()
	out := &classifyv1.DomainListsResponse{}
	for _, name := range slices.Sorted(maps.Keys(h.lists)) {
		l := h.lists[name]
		if l.list.GetKind() != policy.KindDomain {
			continue // enforce nodes tell of it
		}
		x := &classifyv1.DomainListState{
			Name: name, State: "active", Object: l.applied, Entries: uint64(l.outcome.Taken), Refused: make(map[string]uint64), //nolint:gosec // positive
			Flows: l.counts.flows.Load(), Stopped: l.counts.ruled.Load(),
		}
		if l.outcome.Full > 0 {
			x.Refused["list_limit"] = uint64(l.outcome.Full) //nolint:gosec // positive
		}
		if l.outcome.Invalid > 0 {
			x.Refused["invalid"] = uint64(l.outcome.Invalid) //nolint:gosec // positive
		}
		if !l.at.IsZero() {
			x.AppliedNs = l.at.UnixNano()
		}
		switch {
		case l.err != nil:
			x.State, x.Problem = "failed", l.err.Error()
		case l.at.IsZero() || l.applied != l.list.GetObject():
			x.State = "loading"
		}
		out.Lists = append(out.Lists, x)
	}
	return out, nil
}
