package xdp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

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

// SyncLists makes want the content of all address lists. What is there already and the same is not touched, and what is
// in both is never missing in between, so that a restart leaves no gap. Of entries with the same prefix the first
// counts; entries have no deadline. Entries of the lists in keep stay if want does not name them. It takes seconds for millions of entries and may run beside every other method but
// those that put and delete listed entries. When ctx ends, a part is done: call it again.
func (g *Gate) SyncLists(ctx context.Context, want []Listed, keep map[ListID]bool) (ListChange, error) {
	var c ListChange
	single := 0
	for i := range want {
		if p := want[i].Prefix; p.IsValid() && p.IsSingleIP() {
			single++
		}
	}
	hosts := listMap[hostKey]{g: g, m: g.maps.GateHosts, keep: keep, left: &c.LeftOut, want: make(map[hostKey]listed, single)}
	prefixes := listMap[prefixKey]{g: g, m: g.maps.GatePrefixes, keep: keep, left: &c.LeftOut, want: make(map[prefixKey]listed, len(want)-single)}
	bits := newCoverage()
	prefixes.kept = bits.add
	for i := range want {
		e := &want[i]
		k, err := keyOf(e.Prefix)
		if err != nil {
			return c, fmt.Errorf("%s: list %d: %w", g.iface, e.List, err)
		}
		if err := validListed(e.List, e.Action); err != nil {
			return c, fmt.Errorf("%s: %w", g.iface, err)
		}
		v := listed{List: uint32(e.List), Action: uint8(e.Action)}
		if k.Bits == 128 {
			hosts.add(hostKey{Addr: k.Addr}, v, e)
		} else if prefixes.add(k, v, e) {
			bits.add(&k)
		}
	}
	anyHosts, anyPrefixes := len(hosts.want) > 0, len(prefixes.want) > 0
	used := func(to uint32, which ...bool) error {
		return g.locked(func() error {
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
	if !g.listsPaused.Load() {
		if err := used(1, anyHosts, anyPrefixes); err != nil {
			return c, err
		}
	}
	for _, sync := range []func(context.Context) (put, deleted int, err error){hosts.sync, prefixes.sync} {
		put, deleted, err := sync(ctx)
		c.Put, c.Deleted = c.Put+put, c.Deleted+deleted
		if err != nil {
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
	g    *Gate
	m    *ebpf.Map
	want map[K]listed
	keep map[ListID]bool
	left *[]Listed

	kept  func(*K) // told of each entry that stays for keep; nil: nobody
	stays int      // their number
}

// add takes an entry; false when there is no room for it or the key is taken.
func (l *listMap[K]) add(k K, v listed, e *Listed) bool {
	if _, taken := l.want[k]; taken {
		return false
	}
	if len(l.want) >= int(l.m.MaxEntries()) {
		*l.left = append(*l.left, *e)
		return false
	}
	l.want[k] = v
	return true
}

// sync deletes first, so that a change of a nearly full map has room.
func (l *listMap[K]) sync(ctx context.Context) (put, deleted int, err error) {
	keys, values, err := drainBy[K, listed](l.m, func(step func() error) error { return l.chunk(ctx, step) })
	if err != nil {
		return 0, 0, err
	}
	var over []K
	for i, k := range keys {
		v, wanted := l.want[k]
		switch {
		case !wanted && l.keep[ListID(values[i].List)]: //nolint:gosec // below maxLists
			if l.stays++; l.kept != nil {
				l.kept(&keys[i])
			}
		case !wanted:
			over = append(over, k)
		case v == values[i]:
			delete(l.want, k)
		}
	}
	for len(over) > 0 && err == nil {
		n := min(listChunk, len(over))
		err = l.chunk(ctx, func() error { return deleteBatch(l.m, over[:n]) })
		over, deleted = over[n:], deleted+n
	}
	keys, values = keys[:0], values[:0]
	flush := func() {
		err = l.chunk(ctx, func() error { n, err := putBatch(l.m, keys, values); put += n; return err })
		keys, values = keys[:0], values[:0]
	}
	for k, v := range l.want {
		if err != nil {
			return put, deleted, err
		}
		keys, values = append(keys, k), append(values, v)
		if len(keys) == listChunk {
			flush()
		}
	}
	if err == nil && len(keys) > 0 {
		flush()
	}
	return put, deleted, err
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
