package pcapfile

import (
	"encoding/binary"
	"math/bits"
)

// The file's integers. A binary.ByteOrder would be a call through an interface for each, which costs as much as all else
// of a record's header.

func (r *Reader) u16(b []byte) uint16 {
	v := binary.LittleEndian.Uint16(b)
	if r.big {
		return bits.ReverseBytes16(v)
	}
	return v
}

func (r *Reader) u32(b []byte) uint32 {
	v := binary.LittleEndian.Uint32(b)
	if r.big {
		return bits.ReverseBytes32(v)
	}
	return v
}

func (r *Reader) u64(b []byte) uint64 {
	v := binary.LittleEndian.Uint64(b)
	if r.big {
		return bits.ReverseBytes64(v)
	}
	return v
}
