// Package verdict chooses what to block: the sources when they are few, else the header signature that
// separates the attack from the destination's good traffic, with exceptions for known good peers.
package verdict

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"

	"github.com/tidegate-mesh/tidegate/libs/flow"
)

// Bounds of the memory of good peers.
const (
	MaxPeers        = 1_024 // of one destination
	MaxDestinations = 4_096
)

// Peer is an address with which a destination exchanged payload both ways.
type Peer struct {
	FirstNs, LastNs int64     // Unix ns of the first and last such flow
	TCP, UDP, Other bool      // protocols of flows that the peer opened
	AskedTCP        bool      // the destination opened a TCP flow to it
	Asked           [4]uint16 // the newest; a ring
	asked           uint8     // how many were asked, less a round of the ring where that tells the same
}

// AskedPort reports whether the destination asked this peer's UDP port.
func (p *Peer) AskedPort(port uint16) bool {
	for i := range min(int(p.asked), len(p.Asked)) {
		if p.Asked[i] == port {
			return true
		}
	}
	return false
}

// Peers remembers the good peers of destinations, bounded: the one not heard of longest among a few makes
// room. One goroutine owns it.
type Peers struct {
	sets    map[[16]byte]*peerSet
	Evicted uint64 // destinations and peers that made room
}

type peerSet struct {
	peers           map[[16]byte]*Peer
	firstNs, lastNs int64
}

// NewPeers returns an empty memory.
func NewPeers() *Peers { return &Peers{sets: make(map[[16]byte]*peerSet)} }

// Observe notes a flow whose payload went both ways, for both of its ends. k is in the direction of the
// first packet.
func (p *Peers) Observe(k flow.Key, nowNs int64) {
	in := p.peer(k.Dst, k.Src, nowNs)
	switch k.Protocol {
	case 6:
		in.TCP = true
	case 17:
		in.UDP = true
	default:
		in.Other = true
	}
	out := p.peer(k.Src, k.Dst, nowNs)
	switch k.Protocol {
	case 6:
		out.AskedTCP = true
	case 17:
		if !out.AskedPort(k.DstPort) {
			out.Asked[int(out.asked)%len(out.Asked)] = k.DstPort
			if out.asked++; int(out.asked) == 2*len(out.Asked) {
				out.asked = uint8(len(out.Asked))
			}
		}
	default:
		out.Other = true
	}
}

func (p *Peers) peer(dst, addr [16]byte, nowNs int64) *Peer {
	s := p.sets[dst]
	if s == nil {
		if len(p.sets) >= MaxDestinations {
			p.evictSet()
		}
		s = &peerSet{peers: make(map[[16]byte]*Peer), firstNs: nowNs}
		p.sets[dst] = s
	}
	s.lastNs = max(s.lastNs, nowNs)
	e := s.peers[addr]
	if e == nil {
		if len(s.peers) >= MaxPeers {
			p.evictPeer(s)
		}
		e = &Peer{FirstNs: nowNs}
		s.peers[addr] = e
	}
	e.LastNs = max(e.LastNs, nowNs)
	return e
}

// tries is how many entries an eviction looks at; a map's order is random enough for it.
const tries = 8

func (p *Peers) evictSet() {
	var oldest [16]byte
	var found *peerSet
	n := 0
	for k, s := range p.sets {
		if found == nil || s.lastNs < found.lastNs {
			oldest, found = k, s
		}
		if n++; n == tries {
			break
		}
	}
	delete(p.sets, oldest)
	p.Evicted++
}

func (p *Peers) evictPeer(s *peerSet) {
	var oldest [16]byte
	var found *Peer
	n := 0
	for k, e := range s.peers {
		if found == nil || e.LastNs < found.LastNs {
			oldest, found = k, e
		}
		if n++; n == tries {
			break
		}
	}
	delete(s.peers, oldest)
	p.Evicted++
}

// Known returns what is known of addr as a peer of dst, or nil.
func (p *Peers) Known(dst, addr [16]byte) *Peer {
	if s := p.sets[dst]; s != nil {
		return s.peers[addr]
	}
	return nil
}

// Since is when the first peer of dst was noted, 0 when there is none.
func (p *Peers) Since(dst [16]byte) int64 {
	if s := p.sets[dst]; s != nil {
		return s.firstNs
	}
	return 0
}

// settleNs is how long before an attack a peer must have been known, where its payload does not prove its
// address: an UDP or ICMP flood that the destination answers looks like peers.
const settleNs = int64(2e9)

// Trusted reports whether traffic of protocol and source port from addr to dst counts as a good peer's in an
// attack that began at firstNs. sport 0 stands for any.
func (p *Peers) Trusted(dst, addr [16]byte, protocol uint8, sport uint16, firstNs int64) bool {
	e := p.Known(dst, addr)
	return e != nil && e.trusted(protocol, sport, firstNs)
}

func (e *Peer) trusted(protocol uint8, sport uint16, firstNs int64) bool {
	settled := e.FirstNs <= firstNs-settleNs
	switch protocol {
	case 6:
		return e.TCP || e.AskedTCP
	case 17:
		if e.AskedPort(sport) {
			return true
		}
		// A connection proves its address at once, as a speed test's does that controls one by UDP.
		return sport == 0 && e.asked > 0 || e.UDP && (settled || e.TCP)
	default:
		return e.Other && settled
	}
}

// maxHosts bounds the hosts of a network whose peers are looked at, those heard of last first.
const maxHosts = 256

// within lists the destinations in dst that peers are known of.
func (p *Peers) within(dst netip.Prefix) []*peerSet {
	if dst.IsSingleIP() {
		if s := p.sets[dst.Addr().As16()]; s != nil {
			return []*peerSet{s}
		}
		return nil
	}
	var hosts [][16]byte
	for a := range p.sets {
		if dst.Contains(flow.Addr(a)) {
			hosts = append(hosts, a)
		}
	}
	slices.SortFunc(hosts, func(a, b [16]byte) int {
		return cmp.Or(cmp.Compare(p.sets[b].lastNs, p.sets[a].lastNs), bytes.Compare(a[:], b[:]))
	})
	list := make([]*peerSet, 0, min(len(hosts), maxHosts))
	for _, a := range hosts[:min(len(hosts), maxHosts)] {
		list = append(list, p.sets[a])
	}
	return list
}

// KnownIn reports whether addr is a peer of dst, or of a host in it.
func (p *Peers) KnownIn(dst netip.Prefix, addr [16]byte) bool {
	for _, s := range p.within(dst) {
		if s.peers[addr] != nil {
			return true
		}
	}
	return false
}

// Each calls f for the peers of dst, or of the hosts in it, that Trusted accepts, in no order; once for each host that a
// peer is known to.
func (p *Peers) Each(dst netip.Prefix, protocol uint8, sport uint16, firstNs int64, f func(addr netip.Addr)) {
	for _, s := range p.within(dst) {
		for a, e := range s.peers {
			if e.trusted(protocol, sport, firstNs) {
				f(flow.Addr(a))
			}
		}
	}
}
