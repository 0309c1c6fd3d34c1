package flowtable

import "math/bits"

// The timing wheel: lists of entries by the 100 ms in which they must be looked at. An entry stays where it is
// while packets arrive; when its slot comes up its true deadlines are worked out and it moves on.
const (
	tickNs     = int64(100_000_000)
	wheelSlots = 2048 // 204.8 s; later deadlines wait in the last slot and move on
	// perAdvance bounds the entries looked at in one call of Advance or Flush, and so the records it makes.
	perAdvance = 2048
)

type wheel struct {
	heads  [wheelSlots]uint32
	filled [wheelSlots / 64]uint64 // slots that may have entries: captures have long stretches without any
	cursor int64                   // the next tick to process
	begun  bool
}

// skip moves the cursor, whose slot is empty, on to the next slot that may have entries, at most behind tick.
func (w *wheel) skip(tick int64) {
	slot := w.cursor % wheelSlots
	w.filled[slot/64] &^= 1 << (slot % 64)
	if rest := w.filled[slot/64] >> (slot % 64); rest != 0 {
		w.cursor += int64(bits.TrailingZeros64(rest))
	} else {
		w.cursor += 64 - slot%64
	}
	w.cursor = min(w.cursor, tick+1)
}

// link puts an entry where it is looked at once deadline has passed.
func (t *Table) link(i uint32, e *entry, deadline int64) {
	tick := max(deadline/tickNs+1, t.wheel.cursor)
	tick = min(tick, t.wheel.cursor+wheelSlots-1)
	e.slot = uint16(tick % wheelSlots) //nolint:gosec // below 2,048
	t.wheel.filled[e.slot/64] |= 1 << (e.slot % 64)
	head := &t.wheel.heads[e.slot]
	e.prev, e.next = 0, *head
	if *head != 0 {
		t.entries[*head-1].prev = i + 1
	}
	*head = i + 1
}

// unlink takes an entry out of its list.
func (t *Table) unlink(e *entry) {
	if e.prev != 0 {
		t.entries[e.prev-1].next = e.next
	} else {
		t.wheel.heads[e.slot] = e.next
	}
	if e.next != 0 {
		t.entries[e.next-1].prev = e.prev
	}
	e.next, e.prev = 0, 0
}

// clock moves the table's time forward; packets that are older than others before them do not move it back.
func (t *Table) clock(nowNs int64) {
	if !t.wheel.begun {
		t.wheel.begun = true
		t.wheel.cursor = max(nowNs, 0) / tickNs
		t.now = nowNs
	}
	if nowNs > t.now {
		t.now = nowNs
	}
}

// Back sets the time back to nowNs. Flows' times go along, so that they keep what is left of their timeouts; every flow is
// looked at. Round trips and retransmits of which one packet came before and one after are not right.
func (t *Table) Back(nowNs int64) {
	by := nowNs - t.now
	t.now, t.calmUntil = nowNs, 0
	t.wheel = wheel{begun: true, cursor: max(nowNs, 0) / tickNs}
	for i := range t.high {
		e := &t.entries[i]
		if e.state&used == 0 {
			continue
		}
		e.first += by
		e.last += by
		t.link(i, e, t.deadline(e))
	}
}
