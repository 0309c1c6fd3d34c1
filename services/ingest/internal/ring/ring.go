// Package ring carries copies of frames from the goroutine that receives them to one that writes them down. Neither
// waits for the other: what does not fit is counted and left out.
package ring

import (
	"encoding/binary"
	"math/bits"
	"sync/atomic"
)

// header of a record: time stamp, length on the wire, length kept.
const header = 8 + 4 + 4

// Ring has one writer (Put) and one reader (Next, Take), which may run at once. Other goroutines may ask for Missed.
type Ring struct {
	buf []byte // a power of two, so that positions only ever grow

	head atomic.Uint64 // where the reader is
	_    [56]byte      // the two ends are written by different CPUs
	tail atomic.Uint64 // where the writer is

	missed atomic.Uint64
}

// New returns a ring of at least size bytes.
func New(size int) *Ring {
	return &Ring{buf: make([]byte, 1<<bits.Len(uint(max(size, 1)-1)))} //nolint:gosec // not negative
}

// Put copies a frame of wire bytes, of which data was kept. It neither waits nor allocates.
func (r *Ring) Put(timeNs int64, data []byte, wire int) {
	at := r.tail.Load()
	need := uint64(header + len(data)) //nolint:gosec // a length
	if uint64(len(r.buf))-(at-r.head.Load()) < need {
		r.missed.Add(1)
		return
	}
	var h [header]byte
	binary.LittleEndian.PutUint64(h[0:], uint64(timeNs)) //nolint:gosec // read back as it was
	binary.LittleEndian.PutUint32(h[8:], uint32(wire))   //nolint:gosec // a frame's length
	binary.LittleEndian.PutUint32(h[12:], uint32(len(data)))
	r.write(at, h[:])
	r.write(at+header, data)
	r.tail.Store(at + need)
}

// Next is the time stamp of the oldest frame; false when the ring is empty.
func (r *Ring) Next() (timeNs int64, ok bool) {
	at := r.head.Load()
	if at == r.tail.Load() {
		return 0, false
	}
	var h [8]byte
	r.read(at, h[:])
	return int64(binary.LittleEndian.Uint64(h[:])), true //nolint:gosec // as it was written
}

// Take removes the oldest frame, which Next has found, and appends its bytes to to.
func (r *Ring) Take(to []byte) (data []byte, timeNs int64, wire int) {
	at := r.head.Load()
	var h [header]byte
	r.read(at, h[:])
	n := int(binary.LittleEndian.Uint32(h[12:]))
	from := len(to)
	for cap(to) < from+n {
		to = append(to[:cap(to)], 0)
	}
	to = to[:from+n]
	r.read(at+header, to[from:])
	r.head.Store(at + header + uint64(n))                                                      //nolint:gosec // a length
	return to, int64(binary.LittleEndian.Uint64(h[:])), int(binary.LittleEndian.Uint32(h[8:])) //nolint:gosec // as written
}

// Missed is how many frames found no room.
func (r *Ring) Missed() uint64 { return r.missed.Load() }

func (r *Ring) write(at uint64, b []byte) {
	n := copy(r.buf[at&uint64(len(r.buf)-1):], b)
	copy(r.buf, b[n:])
}

func (r *Ring) read(at uint64, b []byte) {
	n := copy(b, r.buf[at&uint64(len(r.buf)-1):])
	copy(b[n:], r.buf)
}
