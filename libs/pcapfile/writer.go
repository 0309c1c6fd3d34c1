package pcapfile

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
)

// Writer writes a pcap file with nanosecond stamps, little-endian. It buffers: Flush before closing what it
// writes to. One goroutine at a time may use it.
type Writer struct {
	out  *bufio.Writer
	snap int
	head [16]byte
}

// NewWriter writes the file header. Records keep their first snap bytes; 0 means 262,144, the most that
// common readers accept.
func NewWriter(out io.Writer, linkType, snap int) (*Writer, error) {
	if linkType < 0 || linkType > 0xFFFF {
		return nil, fmt.Errorf("write capture: link type %d does not fit its field", linkType)
	}
	if snap <= 0 || snap > 1<<18 {
		snap = 1 << 18
	}
	w := &Writer{out: bufio.NewWriterSize(out, 64<<10), snap: snap}
	var h [24]byte
	le := binary.LittleEndian
	le.PutUint32(h[0:], 0xA1B23C4D)
	le.PutUint16(h[4:], 2)
	le.PutUint16(h[6:], 4)
	le.PutUint32(h[16:], uint32(snap))
	le.PutUint32(h[20:], uint32(linkType))
	if _, err := w.out.Write(h[:]); err != nil {
		return nil, fmt.Errorf("write capture: file header: %w", err)
	}
	return w, nil
}

// Write appends a record. timeNs is Unix ns and fits the format's 32-bit seconds until 2106; wireLen is the
// frame's length on the wire, 0 = len(data). data is not kept.
func (w *Writer) Write(timeNs int64, data []byte, wireLen int) error {
	if timeNs < 0 || timeNs/1e9 > 0xFFFFFFFF {
		return fmt.Errorf("write capture: time %d ns does not fit a pcap record", timeNs)
	}
	if wireLen < len(data) {
		wireLen = len(data)
	}
	data = data[:min(len(data), w.snap)]
	le := binary.LittleEndian
	le.PutUint32(w.head[0:], uint32(timeNs/1e9)) //nolint:gosec // checked above
	le.PutUint32(w.head[4:], uint32(timeNs%1e9))
	le.PutUint32(w.head[8:], uint32(len(data)))
	le.PutUint32(w.head[12:], uint32(min(wireLen, 1<<31-1))) //nolint:gosec // bounded on the left
	if _, err := w.out.Write(w.head[:]); err != nil {
		return fmt.Errorf("write capture: record header: %w", err)
	}
	if _, err := w.out.Write(data); err != nil {
		return fmt.Errorf("write capture: record data: %w", err)
	}
	return nil
}

// Flush writes what is buffered.
func (w *Writer) Flush() error {
	if err := w.out.Flush(); err != nil {
		return fmt.Errorf("write capture: %w", err)
	}
	return nil
}
