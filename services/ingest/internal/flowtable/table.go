package flowtable

import (
	"encoding/binary"
	"math/bits"
	"runtime"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/packet"
	"github.com/tidegate-mesh/tidegate/libs/sketch"
)

// Bits of entry.state.
const (
	used      = 1 << iota
	opened    // its open record was sent
	attempt   // see Observation.Attempt
	syn       // begun by a plain SYN
	handshake // completed
	failed    // reported, or not to be reported any more
	answered  // a packet came from the other side
	data      // payload was seen, other than in a SYN
	closing   // RST or both FIN seen
	invalid   // see Observation.Invalid
	doneFwd   // no more segments wanted
	doneRev
	baseFwd // the stream's sequence numbers are known
	baseRev
	tracked     // the connection is in use
	synAnswered // see connection.server
)

// entry is one flow in two cache lines: what every packet reads, then what it counts.
type entry struct {
	key   flow.Key
	tag   uint32 // low half of the hash, the index's home position
	last  int64
	state uint16
	flags [2]uint8
	next  uint32 // wheel list or free list, entry number + 1, 0 = none

	packets     [2]uint64
	bytes       [2]uint64
	first       int64  // of this part
	prev        uint32 // as next
	update      uint32 // ticks from first to when the next update is due
	gen         uint32
	part        uint16
	slot        uint16 // wheel slot
	sentPackets [2]uint8
	sentBytes   [2]uint16
	ttl, port   uint8 // of the first packet
}

// Table holds the flows of one queue.
type Table struct {
	cfg   Config
	queue uint64
	k     [4]uint64

	// At most half of index is in use. When it has to grow, what the smaller one holds moves over a little with each new
	// flow: all at once it would take milliseconds, in which the receive ring overflows.
	index index
	old   index
	moved uint32 // slots of old that are empty

	memory  *memory
	entries []entry // MaxFlows of them
	// As many; pages of flows that are not TCP are never touched.
	connections []connection
	gaps        []gap
	high        uint32 // entries ever used
	free        uint32 // list of entries given back
	hand        uint32 // where the search for an eviction goes on

	flushed uint32 // where Flush goes on
	warmed  uint64 // keeps the compiler from dropping Warm's loads

	now       int64
	calmUntil int64 // no timer is due before
	wheel     wheel
	sums      summaries

	interval int64 // number of the current 100 ms
	exported int   // one-packet flows exported one by one in it
	sent     int   // payload bytes sent in it

	failure Failure
	stats   Stats
}

// New returns an empty table. queue is in the top byte of every flow id, so that tables with different numbers
// never give the same id.
func New(cfg Config, queue uint8) *Table {
	cfg.normalise()
	t := &Table{cfg: cfg, queue: uint64(queue) << 56, memory: &memory{}}
	runtime.AddCleanup(t, (*memory).release, t.memory)
	t.entries, t.connections = reserve[entry](t.memory, cfg.MaxFlows), reserve[connection](t.memory, cfg.MaxFlows)
	t.gaps = reserve[gap](t.memory, gapSlots(cfg.MaxFlows))
	for i := range t.k {
		t.k[i] = sketch.Mix(cfg.Seed+uint64(i+1)*0x9e3779b97f4a7c15) | 1 //nolint:gosec // i is small
	}
	size := 1 << bits.Len(uint(2*cfg.InitialFlows-1)) //nolint:gosec // positive after normalise
	t.index = newIndex(t.memory, size)
	t.sums.init(t.k[0])
	return t
}

// Stats returns the counts.
func (t *Table) Stats() Stats { return t.stats }

// id numbers a flow: queue, generation of the entry, entry.
func (t *Table) id(i uint32, e *entry) uint64 { return t.queue | uint64(e.gen)<<24 | uint64(i) }

func fold(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// end mixes one end of a flow.
func (t *Table) end(addr *[16]byte, port uint16) uint64 {
	return fold(binary.LittleEndian.Uint64(addr[:8])^t.k[0]^uint64(port)<<17, binary.LittleEndian.Uint64(addr[8:])^t.k[1])
}

// join makes the same hash of both directions: the two ends are added.
func (t *Table) join(ends uint64, protocol uint8, vlan uint16, tunnel uint32) uint32 {
	return uint32(fold(ends^t.k[2], uint64(protocol)|uint64(vlan)<<8|uint64(tunnel)<<24^t.k[3])) //nolint:gosec // the low half is wanted
}

func (t *Table) hash(k *flow.Key) uint32 {
	return t.join(t.end(&k.Src, k.SrcPort)+t.end(&k.Dst, k.DstPort), k.Protocol, k.VLAN, k.Tunnel)
}

// Hash is the hash of p's flow in this table, the same in both directions.
func (t *Table) Hash(p *packet.Packet) uint32 {
	return t.join(t.end(&p.Src, p.SrcPort)+t.end(&p.Dst, p.DstPort), p.Proto, p.VLAN, p.Tunnel)
}

// WarmMax is the most hashes that one Warm takes.
const WarmMax = 32

// Warm loads the entries that hashes lead to into the CPU's caches. The loads do not depend on each other, so
// their delays overlap; looking the flows up one by one would wait for each.
func (t *Table) Warm(hashes []uint32) {
	var slots [WarmMax]uint64
	n := min(len(hashes), WarmMax)
	for i, h := range hashes[:n] {
		slots[i] = t.index.slots[h&t.index.mask]
	}
	x := uint64(0)
	for _, s := range slots[:n] {
		if s != 0 {
			e := &t.entries[uint32(s)-1] //nolint:gosec // the low half is wanted
			x += uint64(e.state) + e.packets[0]
		}
	}
	if t.free == 0 && int(t.high) == t.cfg.MaxFlows {
		// Each new flow evicts one: where those that may be are in the index.
		for i := range n {
			if at := int(t.hand) + i; at < len(t.entries) {
				x += t.index.slots[t.entries[at].tag&t.index.mask]
			}
		}
	}
	t.warmed = x
}

// find returns the entry number of k's flow and whether k is its reverse.
func (t *Table) find(tag uint32, k *flow.Key) (i uint32, e *entry, reverse, ok bool) {
	i, e, reverse, ok = t.findIn(&t.index, tag, k)
	if !ok && t.old.slots != nil {
		i, e, reverse, ok = t.findIn(&t.old, tag, k)
	}
	return i, e, reverse, ok
}

func (t *Table) findIn(x *index, tag uint32, k *flow.Key) (i uint32, e *entry, reverse, ok bool) {
	for pos := tag & x.mask; ; pos = (pos + 1) & x.mask {
		s := x.slots[pos]
		if s == 0 {
			return 0, nil, false, false
		}
		if uint32(s>>32) != tag { //nolint:gosec // the high half is wanted
			continue
		}
		i = uint32(s) - 1 //nolint:gosec // the low half is wanted
		e = &t.entries[i]
		if e.key.Protocol != k.Protocol || e.key.VLAN != k.VLAN || e.key.Tunnel != k.Tunnel {
			continue
		}
		if e.key.SrcPort == k.SrcPort && e.key.DstPort == k.DstPort && e.key.Src == k.Src && e.key.Dst == k.Dst {
			return i, e, false, true
		}
		if e.key.SrcPort == k.DstPort && e.key.DstPort == k.SrcPort && e.key.Src == k.Dst && e.key.Dst == k.Src {
			return i, e, true, true
		}
	}
}

// insert puts an entry into the index.
func (t *Table) insert(tag, i uint32) {
	if 2*t.stats.Active >= uint64(len(t.index.slots)) && t.old.slots == nil {
		t.old, t.moved = t.index, 0
		t.index = newIndex(t.memory, 2*len(t.old.slots))
	}
	if t.old.slots != nil {
		t.move()
	}
	t.index.insert(tag, i)
}

// movedSlots of the old index are emptied for each new flow: 2 would do to be through before the new one is half full.
const movedSlots = 8

func (t *Table) move() {
	for range movedSlots {
		// Closing the gap may put another entry here.
		for s := t.old.slots[t.moved]; s != 0; s = t.old.slots[t.moved] {
			tag, i := uint32(s>>32), uint32(s)-1 //nolint:gosec // the halves are wanted
			t.old.close(t.moved)
			t.index.insert(tag, i)
		}
		if t.moved++; int(t.moved) == len(t.old.slots) {
			free(t.memory, t.old.slots)
			t.old = index{}
			return
		}
	}
}

// remove takes an entry out of the index.
func (t *Table) remove(tag, i uint32) {
	if !t.index.remove(tag, i) {
		t.old.remove(tag, i)
	}
}

// take returns a free entry, evicting one if need be; ok is false when none of those at hand may be evicted.
func (t *Table) take(evicted func(i uint32, e *entry)) (i uint32, e *entry, ok bool) {
	if t.free == 0 && int(t.high) < t.cfg.MaxFlows {
		i = t.high
		t.high++
		return i, &t.entries[i], true
	}
	if t.free == 0 {
		i, ok = t.leastValuable()
		if !ok {
			return 0, nil, false
		}
		evicted(i, &t.entries[i])
	}
	i = t.free - 1
	e = &t.entries[i]
	t.free = e.next
	e.next = 0
	return i, e, true
}

// leastValuable looks at a few flows: one that never went past its first packet is worth the least. Then comes the one that
// has been silent the longest, when that is as long as one packet is kept; but connections stay.
func (t *Table) leastValuable() (i uint32, ok bool) {
	var silent uint32
	oldest := t.now - int64(t.cfg.IdleSingle)
	for range 16 {
		i = t.hand
		if t.hand++; t.hand == t.high {
			t.hand = 0
		}
		switch e := &t.entries[i]; {
		case e.state&used == 0:
		case e.part == 0 && e.packets[0]+e.packets[1] == 1:
			return i, true
		case e.state&handshake == 0 && e.last <= oldest:
			silent, oldest, ok = i, e.last, true
		}
	}
	return silent, ok
}

// Enough says that a flow's label is final: no more payload is sent. It returns the flow's key in the direction
// of its first packet; ok is false when the flow is no longer there.
func (t *Table) Enough(id uint64) (k flow.Key, ok bool) {
	i := uint32(id & 0xFFFFFF) //nolint:gosec // masked
	if id>>56<<56 != t.queue || i >= t.high {
		return flow.Key{}, false
	}
	e := &t.entries[i]
	if e.state&used == 0 || t.id(i, e) != id {
		return flow.Key{}, false
	}
	e.state |= doneFwd | doneRev
	return e.key, true
}
