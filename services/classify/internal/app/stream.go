package app

// maxPieces bounds the pieces of a stream that wait for what is missing before them.
const maxPieces = 6

// piece is a half-open range of bytes that arrived.
type piece struct{ from, to uint16 }

// pieces is what has arrived of a byte stream of at most MaxBytes: sorted, disjoint, never adjacent.
type pieces struct {
	n    uint8
	list [maxPieces]piece
}

// prefix is how many bytes there are from the stream's beginning without a gap.
func (p *pieces) prefix() int {
	if p.n == 0 || p.list[0].from != 0 {
		return 0
	}
	return int(p.list[0].to)
}

// continues tells whether a segment at offset follows what has arrived, and nothing behind it did.
func (p *pieces) continues(offset uint32) bool {
	return p.n == 1 && p.list[0].from == 0 && uint32(p.list[0].to) == offset
}

// insert copies the bytes of data that are new at offset into buf, of at most MaxBytes; a byte that arrived before
// stays. Bytes beyond buf, and pieces beyond maxPieces, are ignored.
func (p *pieces) insert(buf []byte, offset uint32, data []byte) {
	if uint64(offset) >= uint64(len(buf)) {
		return
	}
	from := int(offset)
	data = data[:min(len(data), len(buf)-from)]
	to := from + len(data)
	if from == to {
		return
	}
	// first is the first piece that touches the new range, last the one behind the last that does.
	first := 0
	for first < int(p.n) && int(p.list[first].to) < from {
		first++
	}
	last := first
	for last < int(p.n) && int(p.list[last].from) <= to {
		last++
	}
	if first == last && int(p.n) == maxPieces {
		return
	}
	at := from
	for _, have := range p.list[first:last] {
		if int(have.from) > at {
			copy(buf[at:have.from], data[at-from:])
		}
		at = max(at, int(have.to))
	}
	if at < to {
		copy(buf[at:to], data[at-from:])
	}
	joined := piece{uint16(from), uint16(to)} //nolint:gosec // at most MaxBytes
	if first < last {
		joined.from = min(joined.from, p.list[first].from)
		joined.to = max(joined.to, p.list[last-1].to)
		copy(p.list[first+1:], p.list[last:p.n])
		p.n -= uint8(last - first - 1) //nolint:gosec // at most maxPieces
	} else {
		copy(p.list[first+1:], p.list[first:p.n])
		p.n++
	}
	p.list[first] = joined
}

// direction is one side's payload. Fields go from large to small, so that a flow without a label keeps to its 2 KiB.
type direction struct {
	buf      []byte      // nil until a segment has to wait
	alive    protocolSet // still possible for this stream's beginning
	base     uint32      // offset of the stream's first byte
	bytes    uint16      // at most MaxBytes are counted
	packets  uint8
	done     bool // nothing more is to be learnt from this direction
	pieces   pieces
	first    head // of the first segment or datagram
	previous head // of the datagram before the one at hand
}

// agrees tells whether two versions of a stream's beginning say the same as far as both go.
func agrees(a, b []byte) bool {
	n := min(len(a), len(b))
	return string(a[:n]) == string(b[:n])
}

// head is the beginning of a message, kept because its sense depends on what follows.
type head struct {
	whole uint16
	data  [24]byte
}

func (h *head) keep(b []byte) {
	h.whole = uint16(min(len(b), 0xFFFF)) //nolint:gosec // bounded on the left
	copy(h.data[:], b)
}

// size is the whole message's.
func (h *head) size() int { return int(h.whole) }

// bytes is what was kept; nothing of it is to be changed.
func (h *head) bytes() []byte { return h.data[:min(h.size(), len(h.data))] }

func (d *direction) exhausted() bool { return d.packets >= MaxPackets || d.bytes >= MaxBytes }

// bufferSizes are the sizes of buffers, each twice the one before. A flow without a label has one of the first.
var bufferSizes = [...]int{maxUndecided, 2 * maxUndecided, 4 * maxUndecided, MaxBytes}

// maxUndecided is what is kept of each direction of a flow that has no label yet, in bytes. Of a segment at hand a
// protocol sees all.
const maxUndecided = 512

// insert keeps a segment for later, as far as the flow may.
func (d *direction) insert(f *Flow, offset uint32, data []byte) {
	need := uint64(offset) + uint64(len(data))
	class := 0
	for f.at >= 0 && class < len(bufferSizes)-1 && need > uint64(bufferSizes[class]) { //nolint:gosec // sizes are positive
		class++
	}
	if have := len(d.buf); have < bufferSizes[class] {
		if buf := f.engine.buffer(class); buf != nil {
			copy(buf, d.buf)
			if d.buf != nil {
				f.engine.giveBack(d.buf)
			}
			d.buf = buf
		}
	}
	d.pieces.insert(d.buf, offset, data)
}

// prefix is the stream from its beginning to the first gap.
func (d *direction) prefix() []byte { return d.buf[:d.pieces.prefix()] }

func (d *direction) drop(e *Engine) {
	if d.buf != nil {
		e.giveBack(d.buf)
		d.buf = nil
		d.pieces.n = 0
	}
}

// maxHeld bounds what all flows together keep of their payload, in bytes: a flood of beginnings that never go on would fill the
// memory. A flow for which there is none is looked at segment by segment.
const maxHeld = 512 << 20

// room tells whether size bytes more may be had. What is free of other sizes makes room.
func (e *Engine) room(size int) bool {
	for class := range e.buffers {
		pool := &e.buffers[class]
		for n := len(*pool); n > 0 && e.held+size > e.most; n-- {
			(*pool)[n-1] = nil
			*pool = (*pool)[:n-1]
			e.held -= bufferSizes[class]
		}
	}
	for n := len(e.quic); n > 0 && e.held+size > e.most; n-- {
		e.quic[n-1] = nil
		e.quic = e.quic[:n-1]
		e.held -= quicSize
	}
	if e.held+size > e.most {
		return false
	}
	e.held += size
	return true
}

// buffer takes a buffer from the pool of its size; nil when flows have too much already.
func (e *Engine) buffer(class int) []byte {
	pool := &e.buffers[class]
	if n := len(*pool); n > 0 {
		b := (*pool)[n-1]
		*pool = (*pool)[:n-1]
		return b
	}
	if !e.room(bufferSizes[class]) {
		return nil
	}
	return make([]byte, bufferSizes[class])
}

func (e *Engine) giveBack(b []byte) {
	for class, size := range bufferSizes {
		if len(b) == size {
			e.buffers[class] = append(e.buffers[class], b)
		}
	}
}
