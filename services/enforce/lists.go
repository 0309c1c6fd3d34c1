package enforce

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/lifecycle"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
	enforcev1 "github.com/tidegate-mesh/tidegate/proto/enforce/v1"
	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
)

const (
	listRetryMin = time.Second
	listRetryMax = 30 * time.Second
)

// addressLists are the mesh's lists as this node has them. A goroutine of their own loads them and writes them into the
// maps: a million entries take seconds, which rules do not wait for.
type addressLists struct {
	wake chan struct{} // something has changed: look at everything again

	mu      sync.Mutex
	known   map[string]*addressList
	synced  bool            // the watch has told of all lists
	told    bool            // it has told of at least one list or deletion
	syncing bool            // a repetition is going on
	seen    map[string]bool // names of the repetition
}

// addressList is one list. Its entries are replaced, never changed.
type addressList struct {
	list     *policyv1.AddressList
	revision uint64
	number   xdp.ListID
	loaded   string         // object that entries are from
	entries  []netip.Prefix // nil: none was loaded yet
	err      error          // why the list is not in force as it is wanted

	applied string // object that the maps have
	at      time.Time
	taken   int
	refused map[Reason]int
	told    []string // examples of refused entries
}

func newAddressLists() addressLists {
	return addressLists{wake: make(chan struct{}, 1), known: make(map[string]*addressList)}
}

// poke makes the goroutine look at everything again.
func (l *addressLists) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// take notes a change of the desired state.
func (l *addressLists) take(u bus.ListUpdate) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case u.Restarted:
		l.syncing, l.seen = true, make(map[string]bool)
		return
	case u.Synced:
		// A bucket that is empty without a trace of deletions was lost: what is in force stays.
		if l.syncing && l.told && len(l.seen) > 0 {
			for name := range l.known {
				if !l.seen[name] {
					delete(l.known, name)
				}
			}
		}
		l.syncing, l.synced = false, true
	case u.Err != nil:
		l.told = true
		if k := l.known[u.Name]; k != nil {
			k.err = u.Err
		}
		if l.syncing {
			l.seen[u.Name] = true
		}
	case u.List == nil:
		l.told = true
		delete(l.known, u.Name)
	default:
		l.told = true
		if l.syncing {
			l.seen[u.Name] = true
		}
		if u.List.GetKind() == policy.KindDomain { // classify's
			delete(l.known, u.Name)
			break
		}
		k := l.known[u.Name]
		if k == nil {
			k = &addressList{}
			l.known[u.Name] = k
		}
		k.list, k.revision, k.err = u.List, u.Revision, nil // what is still wrong is found again
	}
	l.poke()
}

// watchLists follows the desired state until ctx ends.
func (s *Service) watchLists(ctx context.Context) {
	// The error is that of the context.
	_ = s.bus.WatchLists(ctx, s.lists.take)
}

// keepLists makes the maps have what the lists say, whenever either changes.
func (s *Service) keepLists(ctx context.Context) {
	lifecycle.Keep(ctx, s.lists.wake, listRetryMin, listRetryMax, s.updateLists, func(err error, wait time.Duration) {
		s.t.CountError("address_lists")
		s.t.Log.Error("address lists are not as they are wanted, trying again", "error", err, "in", wait)
	})
}

// updateLists loads what is new and brings all gates up to date.
func (s *Service) updateLists(ctx context.Context) error {
	err := s.loadLists(ctx)
	plan := s.planLists()
	type target struct {
		name   string
		gate   Gate
		shadow bool
	}
	var targets []target
	s.mu.Lock()
	for _, p := range s.gates() {
		err = errors.Join(err, s.pauseLists(p))
		targets = append(targets, target{p.name, p.gate, p.shadow})
	}
	s.mu.Unlock()
	if plan == nil {
		return err
	}
	for _, n := range plan.gone {
		for _, t := range targets {
			err = errors.Join(err, t.gate.ResetList(n))
		}
	}
	listing, e := xdp.NewListing(plan.entries)
	if e != nil {
		return errors.Join(err, e)
	}
	changes, errs := make([]xdp.ListChange, len(targets)), make([]error, len(targets))
	var wait sync.WaitGroup
	for i, t := range targets {
		wait.Add(1)
		go func() {
			defer wait.Done()
			begin := time.Now()
			changes[i], errs[i] = t.gate.SyncLists(ctx, listing, t.shadow, plan.keep)
			if c := &changes[i]; errs[i] == nil && c.Put+c.Deleted+len(c.LeftOut) > 0 {
				s.t.Log.Info("address lists are in the maps", "iface", t.name, "entries", listing.Len()-len(c.LeftOut), "put", c.Put,
					"deleted", c.Deleted, "left_out", len(c.LeftOut), "took", time.Since(begin).Round(time.Millisecond))
			}
		}()
	}
	wait.Wait()
	for i := range targets {
		plan.leftOut(changes[i].LeftOut)
	}
	if e := errors.Join(errs...); e != nil || len(targets) == 0 {
		return errors.Join(err, e)
	}
	s.listsApplied(plan)
	return err
}

// loadLists fetches the entries of lists whose object has changed. A list that cannot be loaded stays as it is.
func (s *Service) loadLists(ctx context.Context) error {
	type todo struct{ name, object string }
	var work []todo
	s.lists.mu.Lock()
	for name, k := range s.lists.known {
		if o := k.list.GetObject(); k.loaded != o || k.entries == nil && o == "" {
			work = append(work, todo{name, o})
		}
	}
	s.lists.mu.Unlock()
	var errs error
	for _, w := range work {
		entries := []netip.Prefix{}
		var err error
		if w.object != "" {
			var text []byte
			if text, err = s.bus.ListEntries(ctx, w.object); err == nil {
				var l policy.ListText
				l, err = policy.ParseList(text, len(text))
				entries = append(entries, l.Entries...)
			}
		}
		s.lists.mu.Lock()
		if k := s.lists.known[w.name]; k != nil && k.list.GetObject() == w.object {
			if k.err = err; err == nil {
				k.loaded, k.entries = w.object, entries
			}
		} else {
			err = nil // it has changed meanwhile, and that has woken us again
		}
		s.lists.mu.Unlock()
		if err != nil {
			errs = errors.Join(errs, fmt.Errorf("list %s: %w", w.name, err))
		}
	}
	return errs
}

// listsApplied notes what is in the maps now.
func (s *Service) listsApplied(plan *listPlan) {
	s.lists.mu.Lock()
	defer s.lists.mu.Unlock()
	for _, p := range plan.lists {
		k := s.lists.known[p.name]
		if k == nil {
			continue
		}
		if k.applied != p.object || k.at.IsZero() {
			k.at = time.Now()
			for reason, n := range p.refused {
				s.m.refusals.WithLabelValues(string(reason)).Add(float64(n))
			}
			if len(p.refused) > 0 {
				s.t.Log.Warn("entries of an address list are refused", "list", p.name, "taken", p.taken, "refused", p.refused, "first", strings.Join(p.examples, "; "))
			}
		}
		k.applied, k.taken, k.refused, k.told = p.object, p.taken, p.refused, p.examples
	}
}

// pauseLists makes a gate follow panic: it looks past the lists while panic is on. The caller holds s.mu.
func (s *Service) pauseLists(p *port) error {
	if !s.panicRead && !s.guard.panic.on {
		return nil // not known yet: it stays as an earlier run left it
	}
	return p.gate.PauseLists(s.guard.panic.on)
}

// followPanic is pauseLists whose failure is tried again.
func (s *Service) followPanic(p *port) {
	if err := s.pauseLists(p); err != nil {
		s.lists.poke()
		s.t.CountError("pause_lists")
		s.t.Log.Error("the address lists do not follow panic", "iface", p.name, "error", err)
	}
}

// AddressLists implements the gRPC method.
func (s *Service) AddressLists(context.Context, *enforcev1.AddressListsRequest) (*enforcev1.AddressListsResponse, error) {
	s.mu.Lock()
	gates, paused, counts := make([]Gate, 0, len(s.ports)), s.guard.panic.on, true
	for _, p := range s.gates() {
		gates, counts = append(gates, p.gate), counts && p.shadow
	}
	s.mu.Unlock()
	s.lists.mu.Lock()
	defer s.lists.mu.Unlock()
	out := &enforcev1.AddressListsResponse{}
	for _, name := range slices.Sorted(maps.Keys(s.lists.known)) {
		k := s.lists.known[name]
		l := &enforcev1.AddressListState{
			Name: name, Object: k.applied, Entries: uint64(max(0, k.taken)), Refused: make(map[string]uint64), Examples: k.told, //nolint:gosec // positive
		}
		for reason, n := range k.refused {
			l.Refused[string(reason)] = uint64(n) //nolint:gosec // positive
		}
		if !k.at.IsZero() {
			l.AppliedNs = k.at.UnixNano()
		}
		switch {
		case k.err != nil:
			l.State, l.Problem = "failed", k.err.Error()
		case k.at.IsZero() || k.applied != k.list.GetObject():
			l.State = "loading"
		case paused:
			l.State = "paused"
		case counts:
			l.State = "shadow"
		default:
			l.State = "active"
		}
		for _, g := range gates {
			st, err := g.ListStats(k.number)
			if err != nil {
				s.t.CountError("list_stats")
				continue
			}
			l.Packets, l.Bytes, l.Dropped = l.Packets+st.Packets, l.Bytes+st.Bytes, l.Dropped+st.Dropped
		}
		out.Lists = append(out.Lists, l)
	}
	return out, nil
}
