package classify

import "github.com/tidegate-mesh/tidegate/libs/sketch"

const (
	flowChunk   = 1 << 12 // flows whose memory is had at once
	minSlots    = 1 << 10
	warmMax     = 32 // flows that one call of warm takes
	slotsOfFlow = 2  // slots for each flow, at least
)

// flowMap holds the flows that have not ended. Flows lie in chunks that do not move, found by slots with open addressing: a
// map of pointers costs a flow twice the memory, and the garbage collector a visit to each. What a peak of flows took stays
// for the next.
type flowMap struct {
	slots  []uint64 // half of the id's hash, below it the flow's number + 1; 0 = empty
	chunks [][]flowState
	free   []uint32 // numbers given back
	used   uint32   // numbers ever given
	hand   uint32   // where the next eviction looks
	warmed uint64   // keeps the compiler from dropping warm's loads
}

func newFlowMap() *flowMap { return &flowMap{slots: make([]uint64, minSlots)} }

func (id flowID) hash() uint32 {
	return uint32(sketch.Mix(id.id ^ uint64(id.stream)<<40)) //nolint:gosec // the low half is wanted
}

func (m *flowMap) len() int { return int(m.used) - len(m.free) }

func (m *flowMap) at(n uint32) *flowState { return &m.chunks[n/flowChunk][n%flowChunk] }

// slot is where a flow's number is, or the empty slot where it would be.
func (m *flowMap) slot(id flowID, hash uint32) (pos uint32, f *flowState) {
	mask := uint32(len(m.slots) - 1) //nolint:gosec // a power of two
	for pos = hash & mask; m.slots[pos] != 0; pos = (pos + 1) & mask {
		if s := m.slots[pos]; uint32(s>>32) == hash { //nolint:gosec // the high half is wanted
			if f = m.at(uint32(s) - 1); f.id == id { //nolint:gosec // the low half is wanted
				return pos, f
			}
		}
	}
	return pos, nil
}

// find returns a flow, nil when it is not there. It is valid until it is removed.
func (m *flowMap) find(id flowID) *flowState {
	_, f := m.slot(id, id.hash())
	return f
}

// add makes a flow that is not there.
func (m *flowMap) add(id flowID) *flowState {
	if slotsOfFlow*(m.len()+1) > len(m.slots) {
		m.grow()
	}
	var n uint32
	if last := len(m.free) - 1; last >= 0 {
		n, m.free = m.free[last], m.free[:last]
	} else {
		n = m.used
		m.used++
		if int(n/flowChunk) == len(m.chunks) {
			m.chunks = append(m.chunks, make([]flowState, flowChunk))
		}
	}
	hash := id.hash()
	pos, _ := m.slot(id, hash)
	m.slots[pos] = uint64(hash)<<32 | uint64(n+1)
	f := m.at(n)
	f.id = id
	return f
}

func (m *flowMap) grow() {
	old := m.slots
	m.slots = make([]uint64, 2*len(old))
	mask := uint32(len(m.slots) - 1) //nolint:gosec // a power of two
	for _, s := range old {
		if s == 0 {
			continue
		}
		pos := uint32(s>>32) & mask
		for m.slots[pos] != 0 {
			pos = (pos + 1) & mask
		}
		m.slots[pos] = s
	}
}

// remove forgets a flow that is there; its memory is for another one afterwards.
func (m *flowMap) remove(id flowID) {
	pos, f := m.slot(id, id.hash())
	if f == nil {
		return
	}
	m.free = append(m.free, uint32(m.slots[pos])-1) //nolint:gosec // the low half is wanted
	*f = flowState{}
	// What follows moves up, unless it would get before its home.
	mask := uint32(len(m.slots) - 1) //nolint:gosec // a power of two
	for next := (pos + 1) & mask; m.slots[next] != 0; next = (next + 1) & mask {
		if home := uint32(m.slots[next]>>32) & mask; (next-home)&mask >= (next-pos)&mask {
			m.slots[pos] = m.slots[next]
			pos = next
		}
	}
	m.slots[pos] = 0
}

// idlest is the flow idle longest among a few, others each time; nil when there is none.
func (m *flowMap) idlest() (oldest *flowState) {
	for looked := uint32(0); looked < m.used && looked < evictTries; looked++ {
		if m.hand++; m.hand >= m.used {
			m.hand = 0
		}
		if f := m.at(m.hand); f.id.stream != 0 && (oldest == nil || f.lastNs < oldest.lastNs) {
			oldest = f
		}
	}
	return oldest
}

// each calls f for every flow.
func (m *flowMap) each(f func(*flowState)) {
	for n := range m.used {
		if s := m.at(n); s.id.stream != 0 {
			f(s)
		}
	}
}

// warm loads what the next flows of a batch need into the CPU's caches. The loads do not depend on each other, so their
// delays overlap; looking the flows up one by one would wait for each.
func (m *flowMap) warm(stream uint32, ids []uint64) {
	var found [warmMax]uint64
	mask := uint32(len(m.slots) - 1) //nolint:gosec // a power of two
	for i, id := range ids {
		found[i] = m.slots[flowID{stream, id}.hash()&mask]
	}
	x := uint64(0)
	var flows [warmMax]*flowState
	for i, s := range found[:len(ids)] {
		if s != 0 {
			f := m.at(uint32(s) - 1) //nolint:gosec // the low half is wanted
			flows[i] = f
			x += f.id.id + uint64(f.lastNs) //nolint:gosec // any sum will do
		}
	}
	for _, f := range flows[:len(ids)] {
		if f != nil && f.label != nil {
			x += f.label.Warm()
		}
	}
	m.warmed = x
}
