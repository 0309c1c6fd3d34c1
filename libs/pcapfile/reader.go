// Package pcapfile reads capture files (pcap with microsecond or nanosecond stamps in both byte orders, pcapng
// with several sections and interfaces, either of them gzipped) and writes pcap. Formats:
// draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng.
package pcapfile

import (
	"bufio"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
)

// MaxRecord bounds the captured bytes of one record. Longer ones are ErrFormat: real captures stop at 256 KiB.
const MaxRecord = 4 << 20

// ErrFormat is in the chain of every error that says the file breaks its format. A file that just ends early
// has io.ErrUnexpectedEOF there instead.
var ErrFormat = errors.New("not a sound capture file")

// Record is one captured frame.
type Record struct {
	TimeNs   int64 // Unix ns; a pcapng simple packet, which has no stamp, repeats the one before it
	LinkType int   // tcpdump.org/linktypes.html
	Data     []byte
	WireLen  int // bytes the frame had on the wire, at least len(Data) in sound files
}

// Reader reads records in file order. One goroutine at a time may use it.
type Reader struct {
	name    string
	in      *bufio.Reader
	file    *os.File
	own     []byte
	head    [32]byte
	count   uint64
	big     bool // byte order
	fail    error
	ng      bool
	nano    bool
	extra   int // bytes between record header and data (Kuznetzov's modified pcap)
	link    int
	lastNs  int64
	ifaces  []iface
	scratch []byte
}

// Open opens a capture file. Close ends it.
func Open(path string) (*Reader, error) {
	f, err := os.Open(path) //nolint:gosec // the caller names the file to read
	if err != nil {
		return nil, fmt.Errorf("open capture: %w", err)
	}
	r, err := newReader(f, path)
	if err != nil {
		_ = f.Close() // the format error matters more
		return nil, err
	}
	r.file = f
	return r, nil
}

// NewReader reads a capture from in, which it buffers.
func NewReader(in io.Reader) (*Reader, error) { return newReader(in, "capture") }

func newReader(in io.Reader, name string) (*Reader, error) {
	r := &Reader{name: name, in: bufio.NewReaderSize(in, 128<<10)}
	magic, err := r.in.Peek(4)
	if len(magic) >= 2 && magic[0] == 0x1F && magic[1] == 0x8B {
		z, err := gzip.NewReader(r.in)
		if err != nil {
			return nil, fmt.Errorf("%s: gzip header: %w", name, err)
		}
		r.in = bufio.NewReaderSize(z, 128<<10)
		magic, err = r.in.Peek(4)
		if err != nil {
			return nil, fmt.Errorf("%s: shorter than a capture's magic number: %w", name, early(err))
		}
	} else if err != nil {
		return nil, fmt.Errorf("%s: shorter than a capture's magic number: %w", name, early(err))
	}
	if err := r.begin(binary.LittleEndian.Uint32(magic)); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return r, nil
}

// begin reads the file header that magic, in little-endian order, announces.
func (r *Reader) begin(magic uint32) error {
	switch magic {
	case 0x0A0D0D0A:
		r.ng = true // each section header says its byte order
		return nil
	case 0xA1B2C3D4:
	case 0xA1B23C4D:
		r.nano = true
	case 0xA1B2CD34:
		r.extra = 8
	case 0xD4C3B2A1:
		r.big = true
	case 0x4D3CB2A1:
		r.big, r.nano = true, true
	case 0x34CDB2A1:
		r.big, r.extra = true, 8
	default:
		return fmt.Errorf("magic number %#08x is neither pcap nor pcapng: %w", magic, ErrFormat)
	}
	if _, err := io.ReadFull(r.in, r.head[:24]); err != nil {
		return fmt.Errorf("file header: %w", early(err))
	}
	// The high bits of the field carry the length of a frame check sequence.
	r.link = int(r.u32(r.head[20:]) & 0xFFFF)
	return nil
}

// Next returns the next record. Its Data is in buf when buf's capacity suffices; with a nil buf it is in the
// reader's own memory and valid until the next call. At the end the error is io.EOF; a file that ends inside
// a record gives all whole records first, then an error with io.ErrUnexpectedEOF. Errors repeat.
func (r *Reader) Next(buf []byte) (Record, error) {
	if r.fail != nil {
		return Record{}, r.fail
	}
	var rec Record
	var err error
	if r.ng {
		rec, err = r.nextNG(buf)
	} else {
		rec, err = r.nextPcap(buf)
	}
	if err != nil {
		if err != io.EOF { //nolint:errorlint // both set the bare value
			err = fmt.Errorf("%s: after %d records: %w", r.name, r.count, err)
		}
		r.fail = err
		return Record{}, err
	}
	r.count++
	return rec, nil
}

// Close closes a file that Open opened.
func (r *Reader) Close() error {
	if r.fail == nil {
		r.fail = fmt.Errorf("%s: %w", r.name, os.ErrClosed)
	}
	if r.file == nil {
		return nil
	}
	f := r.file
	r.file = nil
	if err := f.Close(); err != nil {
		return fmt.Errorf("close capture: %w", err)
	}
	return nil
}

func (r *Reader) nextPcap(buf []byte) (Record, error) {
	head, err := r.in.Peek(16 + r.extra)
	if err != nil {
		if errors.Is(err, io.EOF) && len(head) == 0 {
			return Record{}, io.EOF
		}
		return Record{}, fmt.Errorf("record header: %w", early(err))
	}
	rec := Record{LinkType: r.link, WireLen: wire(r.u32(head[12:]))}
	rec.TimeNs = int64(r.u32(head)) * 1e9
	fraction := int64(r.u32(head[4:]))
	if r.nano {
		rec.TimeNs += fraction
	} else {
		rec.TimeNs += fraction * 1000
	}
	size := r.u32(head[8:])
	_, _ = r.in.Discard(len(head)) // they were there to peek at
	// What the buffer holds is not copied. It stays as it is until the next record is read.
	if buf == nil && int64(size) <= int64(r.in.Size()) {
		if rec.Data, err = r.in.Peek(int(size)); err != nil {
			return Record{}, fmt.Errorf("record data: %w", early(err))
		}
		_, _ = r.in.Discard(len(rec.Data))
		return rec, nil
	}
	rec.Data, err = r.data(buf, size)
	return rec, err
}

// data reads size bytes of a record.
func (r *Reader) data(buf []byte, size uint32) ([]byte, error) {
	if size > MaxRecord {
		return nil, fmt.Errorf("record of %d bytes, at most %d are accepted: %w", size, MaxRecord, ErrFormat)
	}
	n := int(size)
	own := buf == nil
	if own {
		buf = r.own
	}
	buf = buf[:0]
	for len(buf) < n {
		if cap(buf) < n {
			// Grown as the bytes arrive: a length that lies costs no more memory than the file has bytes.
			grown := make([]byte, len(buf), min(n, max(2*cap(buf), 64<<10)))
			copy(grown, buf)
			buf = grown
		}
		from := len(buf)
		buf = buf[:min(n, cap(buf))]
		if _, err := io.ReadFull(r.in, buf[from:]); err != nil {
			return nil, fmt.Errorf("record data: %w", early(err))
		}
	}
	if own {
		r.own = buf
	}
	return buf, nil
}

// wire bounds the wire length that a file claims to what fits an int everywhere.
func wire(n uint32) int { return int(min(n, math.MaxInt32)) }

// early turns an io.EOF inside a structure into io.ErrUnexpectedEOF.
func early(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
