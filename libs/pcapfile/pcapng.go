package pcapfile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
)

// pcapng block types and options (draft-ietf-opsawg-pcapng 4).
const (
	blockInterface = 1
	blockPacket    = 2 // obsolete, still seen
	blockSimple    = 3
	blockEnhanced  = 6
	blockSection   = 0x0A0D0D0A

	optionEnd      = 0
	optionTsResol  = 9
	optionTsOffset = 14

	// maxInterfaces bounds what a hostile file can make the reader keep.
	maxInterfaces = 1 << 16
	// maxBlock bounds the blocks that are kept in memory; others are skipped whatever their size.
	maxBlock = 1 << 20
)

// iface is an interface description of the current section.
type iface struct {
	link    int
	snap    uint32
	perSec  uint64 // clock ticks a second
	offsetS int64  // seconds to add to stamps
}

// nextNG reads blocks until one holds a packet.
func (r *Reader) nextNG(buf []byte) (Record, error) {
	for {
		head := r.head[:8]
		if _, err := io.ReadFull(r.in, head); err != nil {
			if errors.Is(err, io.EOF) {
				return Record{}, io.EOF
			}
			return Record{}, fmt.Errorf("block header: %w", err)
		}
		kind := r.u32(head)
		if kind == blockSection { // the same in both byte orders
			if err := r.section(head); err != nil {
				return Record{}, err
			}
			continue
		}
		size := r.u32(head[4:])
		if size < 12 || size%4 != 0 {
			return Record{}, fmt.Errorf("block of type %d has length %d: %w", kind, size, ErrFormat)
		}
		size -= 12
		var rec Record
		var err error
		packet := true
		switch kind {
		case blockEnhanced, blockPacket:
			rec, err = r.stamped(buf, kind, size)
		case blockSimple:
			rec, err = r.simple(buf, size)
		case blockInterface:
			packet = false
			err = r.describe(size)
		default:
			packet = false
			err = r.skip(int64(size))
		}
		if err != nil {
			return Record{}, err
		}
		trailer := r.head[:4]
		if _, err := io.ReadFull(r.in, trailer); err != nil {
			return Record{}, fmt.Errorf("block end: %w", early(err))
		}
		if end := r.u32(trailer); end != size+12 {
			return Record{}, fmt.Errorf("block of type %d begins with length %d and ends with %d: %w", kind, size+12, end, ErrFormat)
		}
		if packet {
			return rec, nil
		}
	}
}

// section reads a section header block, which sets the byte order and forgets the interfaces.
func (r *Reader) section(head []byte) error {
	var length [4]byte
	copy(length[:], head[4:8])
	body := r.head[:4]
	if _, err := io.ReadFull(r.in, body); err != nil {
		return fmt.Errorf("section header: %w", early(err))
	}
	switch binary.LittleEndian.Uint32(body) {
	case 0x1A2B3C4D:
		r.big = false
	case 0x4D3C2B1A:
		r.big = true
	default:
		return fmt.Errorf("section header has no byte-order magic: %w", ErrFormat)
	}
	size := r.u32(length[:])
	if size < 28 || size%4 != 0 {
		return fmt.Errorf("section header has length %d: %w", size, ErrFormat)
	}
	r.ifaces = r.ifaces[:0]
	return r.skip(int64(size) - 12)
}

// describe reads the body of an interface description block.
func (r *Reader) describe(size uint32) error {
	if size < 8 || size > maxBlock {
		return fmt.Errorf("interface description of %d bytes: %w", size, ErrFormat)
	}
	if len(r.ifaces) == maxInterfaces {
		return fmt.Errorf("more than %d interfaces: %w", maxInterfaces, ErrFormat)
	}
	if cap(r.scratch) < int(size) {
		r.scratch = make([]byte, size)
	}
	body := r.scratch[:size]
	if _, err := io.ReadFull(r.in, body); err != nil {
		return fmt.Errorf("interface description: %w", early(err))
	}
	i := iface{link: int(r.u16(body)), snap: r.u32(body[4:]), perSec: 1e6}
	for opts := body[8:]; len(opts) >= 4; {
		code, n := r.u16(opts), int(r.u16(opts[2:]))
		opts = opts[4:]
		if code == optionEnd {
			break
		}
		if n > len(opts) {
			return fmt.Errorf("interface option %d has length %d, %d bytes are left: %w", code, n, len(opts), ErrFormat)
		}
		switch {
		case code == optionTsResol && n >= 1:
			perSec, err := resolution(opts[0])
			if err != nil {
				return err
			}
			i.perSec = perSec
		case code == optionTsOffset && n >= 8:
			i.offsetS = int64(r.u64(opts)) //nolint:gosec // a signed 64-bit field
		}
		opts = opts[min((n+3)/4*4, len(opts)):]
	}
	r.ifaces = append(r.ifaces, i)
	return nil
}

// resolution is how many ticks a second if_tsresol means: a negative power of 2 with the top bit, else of 10.
func resolution(v byte) (uint64, error) {
	power := v & 0x7F
	if v&0x80 != 0 {
		if power > 63 {
			return 0, fmt.Errorf("time stamps of 2^-%d s: %w", power, ErrFormat)
		}
		return 1 << power, nil
	}
	if power > 19 {
		return 0, fmt.Errorf("time stamps of 10^-%d s: %w", power, ErrFormat)
	}
	n := uint64(1)
	for range power {
		n *= 10
	}
	return n, nil
}

// stamped reads the body of an enhanced packet block or of its obsolete forerunner.
func (r *Reader) stamped(buf []byte, kind, size uint32) (Record, error) {
	if size < 20 {
		return Record{}, fmt.Errorf("packet block of %d bytes: %w", size+12, ErrFormat)
	}
	head := r.head[:20]
	if _, err := io.ReadFull(r.in, head); err != nil {
		return Record{}, fmt.Errorf("packet block: %w", early(err))
	}
	id := r.u32(head)
	if kind == blockPacket {
		id = uint32(r.u16(head))
	}
	if int64(id) >= int64(len(r.ifaces)) {
		return Record{}, fmt.Errorf("packet of interface %d, the section has %d: %w", id, len(r.ifaces), ErrFormat)
	}
	i := &r.ifaces[id]
	ticks := uint64(r.u32(head[4:]))<<32 | uint64(r.u32(head[8:]))
	captured := r.u32(head[12:])
	if captured > size-20 {
		return Record{}, fmt.Errorf("packet of %d bytes in a block with room for %d: %w", captured, size-20, ErrFormat)
	}
	rec := Record{LinkType: i.link, WireLen: wire(r.u32(head[16:])), TimeNs: i.unix(ticks)}
	r.lastNs = rec.TimeNs
	var err error
	if rec.Data, err = r.data(buf, captured); err != nil {
		return Record{}, err
	}
	return rec, r.skip(int64(size - 20 - captured))
}

// simple reads the body of a simple packet block: interface 0, no stamp.
func (r *Reader) simple(buf []byte, size uint32) (Record, error) {
	if size < 4 {
		return Record{}, fmt.Errorf("simple packet block of %d bytes: %w", size+12, ErrFormat)
	}
	if len(r.ifaces) == 0 {
		return Record{}, fmt.Errorf("simple packet in a section without interfaces: %w", ErrFormat)
	}
	head := r.head[:4]
	if _, err := io.ReadFull(r.in, head); err != nil {
		return Record{}, fmt.Errorf("simple packet block: %w", early(err))
	}
	original := r.u32(head)
	captured := min(original, size-4)
	if snap := r.ifaces[0].snap; snap != 0 {
		captured = min(captured, snap)
	}
	rec := Record{LinkType: r.ifaces[0].link, WireLen: wire(original), TimeNs: r.lastNs}
	var err error
	if rec.Data, err = r.data(buf, captured); err != nil {
		return Record{}, err
	}
	return rec, r.skip(int64(size - 4 - captured))
}

// unix turns ticks of the interface's clock into Unix ns, at most what an int64 holds.
func (i *iface) unix(ticks uint64) int64 {
	seconds, rest := ticks/i.perSec, ticks%i.perSec
	hi, lo := bits.Mul64(rest, 1e9)
	fraction, _ := bits.Div64(hi, lo, i.perSec) // rest < perSec keeps the quotient below 1e9
	const limit = math.MaxInt64/1_000_000_000 - 1
	if seconds > limit {
		return math.MaxInt64
	}
	s := int64(seconds) //nolint:gosec // at most limit
	if i.offsetS > limit-s {
		return math.MaxInt64
	}
	if i.offsetS < -limit {
		return math.MinInt64
	}
	return (s+i.offsetS)*1e9 + int64(fraction) //nolint:gosec // below 1e9
}

// skip reads past n bytes.
func (r *Reader) skip(n int64) error {
	for n > 0 {
		step, err := r.in.Discard(int(min(n, 1<<20)))
		n -= int64(step)
		if err != nil {
			return fmt.Errorf("block body: %w", early(err))
		}
	}
	return nil
}
