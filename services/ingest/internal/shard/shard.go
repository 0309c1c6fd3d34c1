// Package shard says which classifier a flow or a section of a window belongs to. The key is the /16 (IPv6 /48) of the
// protected side, so that all of what is joined by destination (flows, hosts, and the networks they are in) meets in
// one place. Keys share a fixed number of slots, and each slot has an owner by rendezvous hashing (Thaler and
// Ravishankar 1998): when a classifier comes or goes only its own slots move, and sensors with the same list agree
// without talking to each other.
package shard

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"

	"github.com/tidegate-mesh/tidegate/libs/sketch"
)

// Slots is how many parts the keys fall into.
const Slots = 1024

// MaxOwners bounds the owners of a Table.
const MaxOwners = 16

// Table names the owner of each slot.
type Table [Slots]uint8

// NewTable shares the slots out among those of the named owners, at most MaxOwners, that are live. When none is, all
// are taken for live: what waits then waits where it is at home.
func NewTable(names []string, live func(owner int) bool) *Table {
	seeds, takes := make([]uint64, len(names)), make([]int, 0, len(names))
	for i, name := range names {
		h := fnv.New64a()
		_, _ = h.Write([]byte(name)) // never fails
		seeds[i] = sketch.Mix(h.Sum64())
		if live(i) {
			takes = append(takes, i)
		}
	}
	if len(takes) == 0 {
		for i := range names {
			takes = append(takes, i)
		}
	}
	t := &Table{}
	for slot := range t {
		best, most := 0, uint64(0)
		for _, i := range takes {
			if w := sketch.Mix(seeds[i] ^ sketch.Mix(uint64(slot)+1)); w >= most { //nolint:gosec // below Slots
				best, most = i, w
			}
		}
		t[slot] = uint8(best) //nolint:gosec // below MaxOwners
	}
	return t
}

// Shares counts the slots of each of n owners.
func (t *Table) Shares(n int) []int {
	out := make([]int, n)
	for _, owner := range t {
		out[owner]++
	}
	return out
}

// Name is the owner of what has a name instead of an address.
func (t *Table) Name(name string) int {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name)) // never fails
	return int(t[sketch.Mix(h.Sum64())%Slots])
}

// Addr is the owner of an address and of the networks around it up to /16, IPv6 /48. Addresses are 16 bytes, IPv4 is mapped.
func (t *Table) Addr(a *[16]byte) int { return int(t[slot(a)]) }

// mapped is how an IPv4 address begins (RFC 4291 2.5.5.2).
const mapped = 0xFFFF << 32

func slot(a *[16]byte) uint64 {
	hi, lo := binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(a[8:])
	if hi == 0 && lo&^0xFFFFFFFF == mapped {
		return sketch.Mix(lo>>16) % Slots
	}
	return sketch.Mix(hi>>16|1<<63) % Slots
}

// Sides tells which side of a flow is protected. It is not changed after NewSides.
type Sides struct{ lengths []length }

// length holds the prefixes of one length.
type length struct {
	mask [16]byte
	nets map[[16]byte]struct{}
}

// NewSides takes prefixes as text. The error names the one that is none.
func NewSides(prefixes []string) (*Sides, error) {
	byBits := make(map[int]map[[16]byte]struct{})
	for _, text := range prefixes {
		p, err := netip.ParsePrefix(text)
		if addr, e := netip.ParseAddr(text); e == nil {
			p, err = netip.PrefixFrom(addr, addr.BitLen()), nil
		}
		if err != nil {
			return nil, fmt.Errorf("%q is no address or prefix: write it as 203.0.113.0/24 or 2001:db8::/48", text)
		}
		p = p.Masked()
		bits := p.Bits()
		if p.Addr().Is4() {
			bits += 96
		}
		if byBits[bits] == nil {
			byBits[bits] = make(map[[16]byte]struct{})
		}
		byBits[bits][p.Addr().As16()] = struct{}{}
	}
	s := &Sides{}
	for bits, nets := range byBits {
		l := length{nets: nets}
		for i := range bits {
			l.mask[i/8] |= 0x80 >> (i % 8)
		}
		s.lengths = append(s.lengths, l)
	}
	return s, nil
}

// Protected tells whether a prefix contains the address.
func (s *Sides) Protected(a *[16]byte) bool {
	return slices.ContainsFunc(s.lengths, func(l length) bool {
		m := *a
		for i := range m {
			m[i] &= l.mask[i]
		}
		_, ok := l.nets[m]
		return ok
	})
}

// Of is the side whose classifier gets a flow: the destination, unless only the source is protected.
func (s *Sides) Of(src, dst *[16]byte) *[16]byte {
	if !s.Protected(dst) && s.Protected(src) {
		return src
	}
	return dst
}
