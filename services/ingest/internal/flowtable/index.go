package flowtable

// index is an open-addressing hash table with linear probing: tag in the high half of a slot, entry number + 1 in the low
// half, 0 = empty.
type index struct {
	slots []uint64
	mask  uint32
}

// newIndex has size slots, a power of two of at most 2^26.
func newIndex(m *memory, size int) index {
	return index{reserve[uint64](m, size), uint32(size - 1)} //nolint:gosec // see above
}

func (x *index) insert(tag, i uint32) {
	pos := tag & x.mask
	for x.slots[pos] != 0 {
		pos = (pos + 1) & x.mask
	}
	x.slots[pos] = uint64(tag)<<32 | uint64(i+1)
}

// remove takes an entry out; false when it is not here.
func (x *index) remove(tag, i uint32) bool {
	for pos := tag & x.mask; x.slots[pos] != 0; pos = (pos + 1) & x.mask {
		if uint32(x.slots[pos]) == i+1 { //nolint:gosec // the low half is wanted
			x.close(pos)
			return true
		}
	}
	return false
}

// close empties the slot at pos and closes the gap, so that no tombstones build up.
func (x *index) close(pos uint32) {
	for gap := pos; ; {
		pos = (pos + 1) & x.mask
		s := x.slots[pos]
		if s == 0 {
			x.slots[gap] = 0
			return
		}
		home := uint32(s>>32) & x.mask
		if (pos-home)&x.mask >= (pos-gap)&x.mask {
			x.slots[gap] = s
			gap = pos
		}
	}
}
