package xdp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/tidegate-mesh/tidegate/libs/policy"
)

// Listed is an entry of an address list: a prefix, or a single address as a prefix of full length.
type Listed struct {
	Prefix netip.Prefix
	List   ListID
	Action policy.Action // Allow, Drop or Count
}

// ListChange is what SyncLists did.
type ListChange struct {
	Put, Deleted int
	LeftOut      []Listed // for want of room in a map: the last ones
}

// listChunk entries are written under one hold of the lock, a few milliseconds, so that rules need not wait for a list.
const listChunk = 1024

// Listing is the content of all address lists as the maps have it: made once, for the gates of all interfaces, which may
// read it at the same time.
type Listing struct {
	Want []Listed // what it was made of

	hosts    listEntries[hostKey]
	prefixes listEntries[prefixKey]
	bits     coverage
}

// listEntries are what is wanted in one map, in order, each key once.
type listEntries[K comparable] struct {
	keys   []K
	values []listed
	at     map[K]uint32 // where a key is
}

func newListEntries[K comparable](n int) listEntries[K] {
	return listEntries[K]{keys: make([]K, 0, n), values: make([]listed, 0, n), at: make(map[K]uint32, n)}
}

// add takes an entry unless its key is there already.
func (l *listEntries[K]) add(k K, v listed) bool {
	if _, taken := l.at[k]; taken {
		return false
	}
	l.at[k] = uint32(len(l.keys)) //nolint:gosec // 4 billion do not fit the memory
	l.keys, l.values = append(l.keys, k), append(l.values, v)
	return true
}

// NewListing prepares entries. Of entries with the same prefix the first counts.
func NewListing(want []Listed) (*Listing, error) {
	single := 0
	for i := range want {
		if p := want[i].Prefix; p.IsValid() && p.IsSingleIP() {
			single++
		}
	}
	l := &Listing{Want: want, hosts: newListEntries[hostKey](single), prefixes: newListEntries[prefixKey](len(want) - single), bits: newCoverage()}
	for i := range want {
		e := &want[i]
		k, err := keyOf(e.Prefix)
		if err != nil {
			return nil, fmt.Errorf("list %d: %w", e.List, err)
		}
		if err := validListed(e.List, e.Action); err != nil {
			return nil, err
		}
		v := listed{List: uint32(e.List), Action: uint8(e.Action)}
		if k.Bits == 128 {
			l.hosts.add(hostKey{Addr: k.Addr}, v)
		} else if l.prefixes.add(k, v) {
			l.bits.add(&k)
		}
	}
	return l, nil
}

// Len is the number of entries.
func (l *Listing) Len() int { return len(l.hosts.keys) + len(l.prefixes.keys) }

// SyncLists makes want the content of all address lists. What is there already and the same is not touched, and what is
// in both is never missing in between, so that a restart leaves no gap. Entries have no deadline; with counting set, those
// that would drop count instead. Entries of the lists in keep stay if want does not name them. It takes seconds for
// millions of entries and may run beside every other method but those that put and delete listed entries. When ctx ends, a
// part is done: call it again.
func (g *Gate) SyncLists(ctx context.Context, want *Listing, counting bool, keep map[ListID]bool) (ListChange, error) {
	var c ListChange
	bits := slices.Clone(want.bits)
	hosts := listMap[hostKey]{g: g, m: g.maps.GateHosts, want: &want.hosts, counting: counting, keep: keep, prefix: (*hostKey).prefix, change: &c}
	prefixes := listMap[prefixKey]{
		g: g, m: g.maps.GatePrefixes, want: &want.prefixes, counting: counting, keep: keep, prefix: (*prefixKey).prefix, change: &c, kept: bits.add,
	}
	anyHosts, anyPrefixes := len(want.hosts.keys) > 0, len(want.prefixes.keys) > 0
	used := func(to uint32, which ...bool) error {
		return g.locked(func() error {
			if to == 1 && g.listsPaused.Load() { // within the lock: PauseLists says so before it takes it
				return nil
			}
			return g.setConfig(func(n *config) {
				if which[0] {
					n.HostsUsed = to
				}
				if which[1] {
					n.PrefixesUsed = to
				}
			})
		})
	}
	if err := g.cover(bits, true, g.locked); err != nil {
		return c, err
	}
	if err := used(1, anyHosts, anyPrefixes); err != nil {
		return c, err
	}
	for _, sync := range []func(context.Context) error{hosts.sync, prefixes.sync} {
		if err := sync(ctx); err != nil {
			return c, fmt.Errorf("%s: write the address lists: %w", g.iface, err)
		}
	}
	if err := g.cover(bits, false, g.locked); err != nil {
		return c, err
	}
	return c, used(0, !anyHosts && hosts.stays == 0, !anyPrefixes && prefixes.stays == 0)
}

// PauseLists makes the program look past all lists, and back at them, within microseconds; their entries stay. Another
// process that opens the gate finds them as they are.
func (g *Gate) PauseLists(on bool) error {
	g.listsPaused.Store(on)
	return g.locked(func() error {
		hosts, prefixes := uint32(0), uint32(0)
		if !on {
			var h hostKey
			var p prefixKey
			for m, k := range map[*ebpf.Map]struct {
				key  any
				used *uint32
			}{g.maps.GateHosts: {&h, &hosts}, g.maps.GatePrefixes: {&p, &prefixes}} {
				switch err := m.NextKey(nil, k.key); {
				case err == nil:
					*k.used = 1
				case !errors.Is(err, ebpf.ErrKeyNotExist):
					return fmt.Errorf("%s: look whether lists are empty: %w", g.iface, err)
				}
			}
		}
		return g.setConfig(func(n *config) { n.HostsUsed, n.PrefixesUsed = hosts, prefixes })
	})
}

// listMap is one of the two maps and what is to be in it.
type listMap[K comparable] struct {
	g        *Gate
	m        *ebpf.Map
	want     *listEntries[K]
	counting bool
	keep     map[ListID]bool
	prefix   func(*K) netip.Prefix
	change   *ListChange

	kept  func(*K) // told of each entry that stays for keep; nil: nobody
	stays int      // their number
}

// value is what an entry has in this map.
func (l *listMap[K]) value(i uint32) listed {
	v := l.want.values[i]
	if l.counting && v.Action == uint8(policy.Drop) {
		v.Action = uint8(policy.Count)
	}
	return v
}

// sync deletes first, so that a change of a nearly full map has room.
func (l *listMap[K]) sync(ctx context.Context) error {
	keys, values, err := drainBy[K, listed](l.m, func(step func() error) error { return l.chunk(ctx, step) })
	if err != nil {
		return err
	}
	room := min(len(l.want.keys), int(l.m.MaxEntries()))
	for i := room; i < len(l.want.keys); i++ {
		v := l.value(uint32(i))                                                                                                                       //nolint:gosec // an index of want
		l.change.LeftOut = append(l.change.LeftOut, Listed{Prefix: l.prefix(&l.want.keys[i]), List: ListID(v.List), Action: policy.Action(v.Action)}) //nolint:gosec // below maxLists
	}
	same := make([]bool, room)
	var over []K
	for i, k := range keys {
		at, wanted := l.want.at[k]
		switch {
		case wanted && int(at) < room:
			same[at] = l.value(at) == values[i]
		case l.keep[ListID(values[i].List)]: //nolint:gosec // below maxLists
			if l.stays++; l.kept != nil {
				l.kept(&keys[i])
			}
		default:
			over = append(over, k)
		}
	}
	for n := 0; len(over) > 0; over, l.change.Deleted = over[n:], l.change.Deleted+n {
		n = min(listChunk, len(over))
		if err := l.chunk(ctx, func() error { return deleteBatch(l.m, over[:n]) }); err != nil {
			return err
		}
	}
	keys, values = keys[:0], values[:0]
	for i := range room {
		if !same[i] {
			keys, values = append(keys, l.want.keys[i]), append(values, l.value(uint32(i))) //nolint:gosec // an index of want
		}
		if len(keys) == 0 || len(keys) < listChunk && i < room-1 {
			continue
		}
		err := l.chunk(ctx, func() error { n, err := putBatch(l.m, keys, values); l.change.Put += n; return err })
		if err != nil {
			return err
		}
		keys, values = keys[:0], values[:0]
	}
	return nil
}

func (l *listMap[K]) chunk(ctx context.Context, do func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return l.g.locked(do)
}

func deleteBatch[K any](m *ebpf.Map, keys []K) error {
	if _, err := m.BatchDelete(keys, nil); err == nil {
		return nil
	}
	for i := range keys { // not supported, or one of them was deleted by somebody else
		if err := m.Delete(&keys[i]); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
	}
	return nil
}

func validListed(list ListID, action policy.Action) error {
	if list >= maxLists {
		return fmt.Errorf("list %d: lists have numbers up to %d", list, maxLists-1)
	}
	if action != policy.Allow && action != policy.Drop && action != policy.Count {
		return fmt.Errorf("list %d: a list can allow, drop or count, not %s", list, action)
	}
	return nil
}
