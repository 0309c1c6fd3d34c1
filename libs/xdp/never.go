package xdp

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Never is a prefix whose packets no rule and no list may stop, as source, as destination or both. It does
// not expire.
type Never struct {
	Prefix              netip.Prefix
	Source, Destination bool
}

func keyOf(p netip.Prefix) (prefixKey, error) {
	if !p.IsValid() {
		return prefixKey{}, fmt.Errorf("prefix %s is not valid", p)
	}
	p = plain(p)
	return prefixKey{Bits: uint32(bits128(p)), Addr: p.Addr().As16()}, nil
}

func (k *prefixKey) prefix() netip.Prefix {
	a := netip.AddrFrom16(k.Addr)
	if a.Is4In6() && k.Bits >= 96 {
		return netip.PrefixFrom(a.Unmap(), int(k.Bits)-96)
	}
	return netip.PrefixFrom(a, int(k.Bits))
}

func (k *hostKey) prefix() netip.Prefix {
	a := netip.AddrFrom16(k.Addr).Unmap()
	return netip.PrefixFrom(a, a.BitLen())
}

// PutNever inserts entries or replaces those of the same prefix. An entry inside a wider one has the wider
// one's effect too.
func (g *Gate) PutNever(entries []Never) error {
	return g.changeNever(func(own map[prefixKey]uint32) error {
		for _, n := range entries {
			k, err := keyOf(n.Prefix)
			if err != nil {
				return err
			}
			var flags uint32
			if n.Source {
				flags |= neverSource
			}
			if n.Destination {
				flags |= neverDestination
			}
			if flags == 0 {
				return fmt.Errorf("never-block %s: say source, destination or both", n.Prefix)
			}
			own[k] = flags
		}
		return nil
	})
}

// DeleteNever takes entries out; unknown prefixes are ignored.
func (g *Gate) DeleteNever(prefixes []netip.Prefix) error {
	return g.changeNever(func(own map[prefixKey]uint32) error {
		for _, p := range prefixes {
			k, err := keyOf(p)
			if err != nil {
				return err
			}
			delete(own, k)
		}
		return nil
	})
}

// NeverList reads the entries back, in no order.
func (g *Gate) NeverList() ([]Never, error) {
	keys, values, err := drain[prefixKey, neverValue](g.maps.GateNever)
	if err != nil {
		return nil, fmt.Errorf("%s: read the never-block entries: %w", g.iface, err)
	}
	out := make([]Never, 0, len(keys))
	for i := range keys {
		if values[i].Own == 0 {
			continue // allIPv4
		}
		out = append(out, Never{
			Prefix: keys[i].prefix(),
			Source: values[i].Own&neverSource != 0, Destination: values[i].Own&neverDestination != 0,
		})
	}
	return out, nil
}

// changeNever applies a change of what is asked for and brings the map there. The map answers with the
// longest prefix only, so each entry also carries the flags of the prefixes around it.
func (g *Gate) changeNever(change func(own map[prefixKey]uint32) error) error {
	return g.locked(func() error {
		keys, values, err := drain[prefixKey, neverValue](g.maps.GateNever)
		if err != nil {
			return fmt.Errorf("%s: read the never-block entries: %w", g.iface, err)
		}
		have := map[prefixKey]neverValue{}
		own := map[prefixKey]uint32{}
		for i, k := range keys {
			if have[k] = values[i]; values[i].Own != 0 {
				own[k] = values[i].Own
			}
		}
		if err := change(own); err != nil {
			return fmt.Errorf("%s: %w", g.iface, err)
		}
		want := widen(own)
		if len(want) > 0 {
			if err := g.setConfig(func(c *config) { c.NeverUsed = 1 }); err != nil {
				return err
			}
		}
		for k, v := range want {
			if was, there := have[k]; there && was == v {
				continue
			}
			if err := g.maps.GateNever.Update(&k, &v, ebpf.UpdateAny); err != nil {
				if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.E2BIG) {
					err = ErrNeverLimit
				}
				return fmt.Errorf("%s: never-block %s: %w", g.iface, k.prefix(), err)
			}
		}
		for k := range have {
			if _, stays := want[k]; stays {
				continue
			}
			if err := g.maps.GateNever.Delete(&k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return fmt.Errorf("%s: never-block %s: delete: %w", g.iface, k.prefix(), err)
			}
		}
		if len(want) == 0 {
			return g.setConfig(func(c *config) { c.NeverUsed = 0 })
		}
		return nil
	})
}

// allIPv4 is where the map has IPv4. A prefix of IPv6 around it says nothing about it: then it has an entry of its own that
// nobody asked for.
var allIPv4 = prefixKey{Bits: 96, Addr: [16]byte{10: 0xff, 11: 0xff}}

// widen gives every prefix the flags of those around it, of its own family. Prefixes sorted by address, shorter first, have
// those around them on a stack.
func widen(own map[prefixKey]uint32) map[prefixKey]neverValue {
	keys := make([]prefixKey, 0, len(own)+1)
	shield := false
	for k := range own {
		keys = append(keys, k)
		shield = shield || k.Bits < allIPv4.Bits && contains(&k, &allIPv4)
	}
	if _, asked := own[allIPv4]; shield && !asked {
		keys = append(keys, allIPv4)
	}
	slices.SortFunc(keys, func(a, b prefixKey) int {
		if c := slices.Compare(a.Addr[:], b.Addr[:]); c != 0 {
			return c
		}
		return int(a.Bits) - int(b.Bits)
	})
	out := make(map[prefixKey]neverValue, len(own))
	var around []prefixKey
	for _, k := range keys {
		for len(around) > 0 && !contains(&around[len(around)-1], &k) {
			around = around[:len(around)-1]
		}
		v := neverValue{Own: own[k], Flags: own[k]}
		if len(around) > 0 && k != allIPv4 {
			v.Flags |= out[around[len(around)-1]].Flags
		}
		out[k] = v
		around = append(around, k)
	}
	return out
}

func contains(wide, k *prefixKey) bool {
	m := prefixMask(uint8(wide.Bits)) //nolint:gosec // at most 128
	for i := range m {
		if k.Addr[i]&m[i] != wide.Addr[i] {
			return false
		}
	}
	return wide.Bits <= k.Bits
}
