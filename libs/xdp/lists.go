package xdp

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"

	"github.com/tidegate-mesh/tidegate/libs/policy"
)

// ListID numbers an address list, 0 to 1023. Lists match a packet's source address, after the rules; what
// they match is counted per list.
type ListID uint16

// PutHosts puts single addresses onto a list; an address is on one list at a time, the last one it was put
// on. Actions: Allow, Drop, Count. expires zero = never. What fits is put even if the map then is full.
func (g *Gate) PutHosts(list ListID, action policy.Action, expires time.Time, addrs []netip.Addr) error {
	keys := make([]hostKey, len(addrs))
	for i, a := range addrs {
		if !a.IsValid() {
			return fmt.Errorf("%s: list %d: address %d is not valid", g.iface, list, i)
		}
		keys[i].Addr = a.As16()
	}
	return putListed(g, g.maps.GateHosts, list, action, expires, keys, func(c *config) { c.HostsUsed = 1 })
}

// DeleteHosts takes addresses off their lists; unknown ones are ignored.
func (g *Gate) DeleteHosts(addrs []netip.Addr) error {
	keys := make([]hostKey, 0, len(addrs))
	for _, a := range addrs {
		keys = append(keys, hostKey{Addr: a.As16()})
	}
	return deleteListed(g, g.maps.GateHosts, keys, func(c *config) { c.HostsUsed = 0 })
}

// PutPrefixes is PutHosts for prefixes. Only the longest prefix around an address counts, also when it has
// expired: delete what has expired.
func (g *Gate) PutPrefixes(list ListID, action policy.Action, expires time.Time, prefixes []netip.Prefix) error {
	keys := make([]prefixKey, len(prefixes))
	for i, p := range prefixes {
		var err error
		if keys[i], err = keyOf(p); err != nil {
			return fmt.Errorf("%s: list %d: %w", g.iface, list, err)
		}
	}
	bits := newCoverage()
	for i := range keys {
		bits.add(&keys[i])
	}
	if err := g.cover(bits, true, g.locked); err != nil {
		return err
	}
	return putListed(g, g.maps.GatePrefixes, list, action, expires, keys, func(c *config) { c.PrefixesUsed = 1 })
}

// DeletePrefixes takes prefixes off their lists; unknown ones are ignored.
func (g *Gate) DeletePrefixes(prefixes []netip.Prefix) error {
	keys := make([]prefixKey, len(prefixes))
	for i, p := range prefixes {
		var err error
		if keys[i], err = keyOf(p); err != nil {
			return fmt.Errorf("%s: %w", g.iface, err)
		}
	}
	return deleteListed(g, g.maps.GatePrefixes, keys, func(c *config) { c.PrefixesUsed = 0 })
}

// ListStats reads what a list has matched since the maps were made, or since ResetList. FirstDrop is not
// kept for lists.
func (g *Gate) ListStats(list ListID) (RuleStat, error) {
	perCPU := make([]hits, ebpf.MustPossibleCPU())
	if err := g.maps.GateLists.Lookup(uint32(list), &perCPU); err != nil {
		return RuleStat{}, fmt.Errorf("%s: list %d: read its counters: %w", g.iface, list, err)
	}
	var sum hits
	for i := range perCPU {
		sum.add(&perCPU[i])
	}
	return RuleStat{Packets: sum.Packets, Bytes: sum.Bytes, Dropped: sum.Dropped, LastHit: MonotonicToUnix(sum.LastNs)}, nil
}

// ResetList sets a list's counters to zero, for a number that is given to another list.
func (g *Gate) ResetList(list ListID) error {
	if err := g.maps.GateLists.Update(uint32(list), make([]hits, ebpf.MustPossibleCPU()), ebpf.UpdateAny); err != nil {
		return fmt.Errorf("%s: list %d: clear its counters: %w", g.iface, list, err)
	}
	return nil
}

func putListed[K any](g *Gate, m *ebpf.Map, list ListID, action policy.Action, expires time.Time, keys []K, used func(*config)) error {
	if err := validListed(list, action); err != nil {
		return fmt.Errorf("%s: %w", g.iface, err)
	}
	if len(keys) == 0 {
		return nil
	}
	values := make([]listed, len(keys))
	for i := range values {
		values[i] = listed{ExpiresNs: expiry(expires), List: uint32(list), Action: uint8(action)}
	}
	return g.locked(func() error {
		if !g.listsPaused.Load() {
			if err := g.setConfig(used); err != nil {
				return err
			}
		}
		if _, err := putBatch(m, keys, values); err != nil {
			return fmt.Errorf("%s: list %d: put %d entries: %w", g.iface, list, len(keys), err)
		}
		return nil
	})
}

func deleteListed[K any](g *Gate, m *ebpf.Map, keys []K, unused func(*config)) error {
	return g.locked(func() error {
		for i := range keys {
			if err := m.Delete(&keys[i]); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return fmt.Errorf("%s: delete list entries: %w", g.iface, err)
			}
		}
		return ifEmpty[K](g, m, unused)
	})
}

// ifEmpty marks a map unused when its last entry is gone, so that the program skips it.
func ifEmpty[K any](g *Gate, m *ebpf.Map, unused func(*config)) error {
	var k K
	if err := m.NextKey(nil, &k); !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return g.setConfig(unused)
}
