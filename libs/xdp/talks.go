package xdp

import (
	"fmt"
	"net"

	"github.com/cilium/ebpf"
)

// join makes this gate and its inline partner's share what they remember of talks, so that each sees what passes the
// other. Whichever opens second takes the first one's maps; without a partner of this layout it does nothing, and rules for
// packets out of state match nothing. The caller holds the lock, and one process opens both gates, one after the other.
func (g *Gate) join(o Options) error {
	if o.Mode != ModeInline {
		return nil
	}
	peer, err := net.InterfaceByName(o.Peer)
	if err != nil {
		return fmt.Errorf("peer %s: %w (%w)", o.Peer, ErrNoInterface, err)
	}
	p := openPins(pinDir(o.BPFFS, peer.Index, o.Peer))
	defer p.close()
	var mine meta
	if err := g.maps.GateMeta.Lookup(uint32(0), &mine); err != nil {
		return fmt.Errorf("read the meta map: %w", err)
	}
	if p.missing != "" || p.meta.ABI != gateABI || p.ifindex != peer.Index || p.meta.NetnsInode != mine.NetnsInode {
		return nil
	}
	same, err := sameMap(p.maps.GateTalks, g.maps.GateTalks)
	if err != nil || same {
		return err
	}
	spec, err := sized(mine.geometry())
	if err != nil {
		return err
	}
	for name, m := range map[string]*ebpf.Map{"gate_talks": p.maps.GateTalks, "gate_pair": p.maps.GatePair} {
		if err := spec.Maps[name].Compatible(m); err != nil {
			return fmt.Errorf("map %s of %s: %w", name, o.Peer, err)
		}
	}
	talks, err := p.maps.GateTalks.Clone()
	if err != nil {
		return fmt.Errorf("talks of %s: %w", o.Peer, err)
	}
	pair, err := p.maps.GatePair.Clone()
	if err != nil {
		_ = talks.Close()
		return fmt.Errorf("talks of %s: %w", o.Peer, err)
	}
	_, _ = g.maps.GateTalks.Close(), g.maps.GatePair.Close()
	g.maps.GateTalks, g.maps.GatePair = talks, pair
	var progs gatePrograms
	if err := spec.LoadAndAssign(&progs, &ebpf.CollectionOptions{MapReplacements: g.maps.byName()}); err != nil {
		return loadError(err)
	}
	defer func() { _ = progs.Close() }()
	if err := g.link.Update(progs.Tidegate); err != nil {
		return fmt.Errorf("exchange the XDP program: %w", err)
	}
	for name, x := range map[string]pinner{"gate_talks": talks, "gate_pair": pair, programPin: progs.Tidegate} {
		if err := pinInstead(x, g.dir, name); err != nil {
			return err
		}
	}
	// What the partner has looked for until now it did not find: both begin to learn.
	if err := pair.Update(uint32(pairSince), MonotonicNow(), ebpf.UpdateAny); err != nil {
		return fmt.Errorf("join %s: %w", o.Peer, err)
	}
	return nil
}

// track makes gate_tracked the destinations of the rules for packets out of state.
func (t *ruleTable) track() error {
	want := map[prefixKey]bool{}
	for _, v := range t.byID {
		if v.Flags&ruleOutOfState != 0 {
			m := &t.masks[t.find(v.Key.Mask)]
			want[prefixKey{Bits: uint32(m.DstBits), Addr: v.Key.Dst}] = true
		}
	}
	c, err := t.g.config()
	if err != nil || len(want) == 0 && c.TrackedUsed == 0 {
		return err
	}
	there, _, err := drain[prefixKey, uint32](t.g.maps.GateTracked)
	if err != nil {
		return fmt.Errorf("read the prefixes whose talks are remembered: %w", err)
	}
	for _, k := range there {
		if want[k] {
			delete(want, k)
		} else if err := t.g.maps.GateTracked.Delete(&k); err != nil {
			return fmt.Errorf("forget a prefix's talks: %w", err)
		}
	}
	fresh := len(want)
	for k := range want {
		if err := t.g.maps.GateTracked.Update(&k, uint32(1), ebpf.UpdateAny); err != nil {
			return fmt.Errorf("remember a prefix's talks: %w", err)
		}
	}
	return t.g.setConfig(func(c *config) {
		c.TrackedUsed = 0
		for _, v := range t.byID {
			if v.Flags&ruleOutOfState != 0 {
				c.TrackedUsed = 1
			}
		}
		if fresh > 0 {
			c.TrackedSince = MonotonicNow()
		}
	})
}
