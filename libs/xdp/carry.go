package xdp

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// carries reports whether maps that are replaced belong to this very attachment and can be read.
func (p *pins) carries(here *meta) bool {
	return p.any && p.missing == "" && p.meta.ABI == here.ABI && p.ifindex == int(here.Ifindex) && p.meta.Ifindex == here.Ifindex
}

// carryOver fills the new maps from the old ones before the new program sees a packet. The caller holds
// the lock.
func (g *Gate) carryOver(old *gateMaps) error {
	before := &Gate{iface: g.iface, maps: *old, log: g.log}
	c, err := before.config()
	if err != nil {
		return err
	}
	err = g.setConfig(func(n *config) {
		n.Mode, n.Unread = c.Mode, c.Unread
		n.NeverUsed, n.HostsUsed, n.PrefixesUsed = c.NeverUsed, c.HostsUsed, c.PrefixesUsed
	})
	if err != nil {
		return err
	}
	var peer uint32
	switch err := old.GatePeer.Lookup(uint32(0), &peer); {
	case err == nil && peer != 0:
		if err := g.maps.GatePeer.Update(uint32(0), peer, ebpf.UpdateAny); err != nil {
			return fmt.Errorf("peer %d: %w", peer, err)
		}
	case err != nil && !errors.Is(err, ebpf.ErrKeyNotExist):
		return fmt.Errorf("read the peer: %w", err)
	}
	if err := copyMap[prefixKey, neverValue](g.maps.GateNever, old.GateNever); err != nil {
		return fmt.Errorf("never-block entries: %w", err)
	}
	if err := copyMap[hostKey, listed](g.maps.GateHosts, old.GateHosts); err != nil {
		return fmt.Errorf("hosts: %w", err)
	}
	if err := copyMap[prefixKey, listed](g.maps.GatePrefixes, old.GatePrefixes); err != nil {
		return fmt.Errorf("prefixes: %w", err)
	}
	bits, err := before.covered(atOnce)
	if err != nil {
		return err
	}
	if err := g.cover(bits, false, atOnce); err != nil {
		return err
	}
	from, err := before.rules()
	if err != nil {
		return err
	}
	to, err := g.rules()
	if err != nil {
		return err
	}
	rules := from.list()
	var errs []error
	for i := range rules {
		if err := to.put(&rules[i]); err != nil {
			errs = append(errs, &RuleError{ID: rules[i].ID, Err: err})
		}
	}
	return to.commit(errs)
}

func copyMap[K, V any](to, from *ebpf.Map) error {
	keys, values, err := drain[K, V](from)
	if err != nil {
		return err
	}
	_, err = putBatch(to, keys, values)
	return err
}
