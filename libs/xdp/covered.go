package xdp

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// coverage is the content of gate_covered, see COVERED_LINES in bpf/state.h.
type coverage [][8]uint64

func newCoverage() coverage { return make(coverage, coveredLines) }

// add marks where sources inside a prefix have their bits.
func (c coverage) add(k *prefixKey) {
	bits := int(k.Bits)
	if bits >= 96 && k.mapped() {
		first := binary.BigEndian.Uint32(k.Addr[12:]) >> 8
		c.fill(first, 1<<max(0, 120-bits))
		return
	}
	if bits < 12 { // counting them all up would take longer than sources gain
		c.fill(coveredV6, 1<<24)
		return
	}
	first := binary.BigEndian.Uint32(k.Addr[:])
	for i := range uint32(1) << max(0, 32-bits) {
		c.fill(coveredBit6(first|i), 1)
	}
}

// mapped reports an IPv4 address, as ::ffff:a.b.c.d.
func (k *prefixKey) mapped() bool {
	return k.Addr[10] == 0xff && k.Addr[11] == 0xff && [10]byte(k.Addr[:10]) == [10]byte{}
}

// coveredBit6 is the bit of an IPv6 source by its first 32 bits, as the program computes it on a little-endian CPU.
func coveredBit6(first uint32) uint32 {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], first)
	return coveredV6 + binary.LittleEndian.Uint32(b[:])*0x9e3779b1>>8
}

func (c coverage) fill(first, n uint32) {
	for n > 0 {
		at := first & 63
		run := min(n, 64-at)
		c[first>>9][first>>6&7] |= ^uint64(0) >> (64 - run) << at
		first, n = first+run, n-run
	}
}

// covered reads what the map holds, in steps.
func (g *Gate) covered(step func(func() error) error) (coverage, error) {
	c := newCoverage()
	keys, values, err := drainBy[uint32, [8]uint64](g.maps.GateCovered, step)
	if err != nil {
		return nil, fmt.Errorf("%s: read the lists' coverage: %w", g.iface, err)
	}
	for i, k := range keys {
		if int(k) < len(c) {
			c[k] = values[i]
		}
	}
	return c, nil
}

// cover makes the map hold what want has, in steps; also what it holds already if keep is set.
func (g *Gate) cover(want coverage, keep bool, step func(func() error) error) error {
	there, err := g.covered(step)
	if err != nil {
		return err
	}
	var keys []uint32
	var values [][8]uint64
	for i, line := range want {
		if keep {
			for j := range line {
				line[j] |= there[i][j]
			}
		}
		if line != there[i] {
			keys, values = append(keys, uint32(i)), append(values, line) //nolint:gosec // below coveredLines
		}
	}
	for n := 0; len(keys) > 0; keys, values = keys[n:], values[n:] {
		n = min(len(keys), listChunk)
		err := step(func() error { _, err := putBatch(g.maps.GateCovered, keys[:n], values[:n]); return err })
		if err != nil {
			return fmt.Errorf("%s: write the lists' coverage: %w", g.iface, err)
		}
	}
	return nil
}

// putBatch writes entries and says how many it has written; a full map is ErrListLimit.
func putBatch[K, V any](m *ebpf.Map, keys []K, values []V) (n int, err error) {
	if len(keys) == 0 {
		return 0, nil
	}
	n, err = m.BatchUpdate(keys, values, nil)
	if errors.Is(err, ebpf.ErrNotSupported) {
		err = nil
		for n = 0; n < len(keys) && err == nil; n++ {
			if err = m.Update(&keys[n], &values[n], ebpf.UpdateAny); err != nil {
				break
			}
		}
	}
	if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOSPC) {
		err = fmt.Errorf("%w (%w)", ErrListLimit, err)
	}
	return n, err
}
