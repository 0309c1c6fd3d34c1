package app

import (
	"bytes"
	"encoding/binary"
)

func be16(b []byte) int { return int(binary.BigEndian.Uint16(b)) }
func be32(b []byte) int { return int(binary.BigEndian.Uint32(b)) }
func le16(b []byte) int { return int(binary.LittleEndian.Uint16(b)) }
func le32(b []byte) int { return int(binary.LittleEndian.Uint32(b)) }

// begins compares with a fixed beginning: more when b ends inside it.
func begins(b []byte, s string) outcome {
	n := min(len(b), len(s))
	switch {
	case n > 0 && b[0] != s[0], string(b[:n]) != s[:n]: // the first alone decides nearly always
		return no
	case n < len(s):
		return more
	}
	return label
}

// starts returns a protocol that one of several beginnings is enough for.
func starts(beginnings ...string) func(*Flow, *input) outcome {
	return func(_ *Flow, in *input) outcome {
		best := no
		for _, s := range beginnings {
			switch begins(in.data, s) {
			case label:
				return final
			case more:
				best = more
			}
		}
		return best
	}
}

// prefixed tells whether b begins with s.
func prefixed(b []byte, s string) bool { return len(b) >= len(s) && string(b[:len(s)]) == s }

// at tells whether s stands at an offset of b.
func at(b []byte, offset int, s string) bool {
	return len(b) >= offset+len(s) && string(b[offset:offset+len(s)]) == s
}

// printable tells whether b is ASCII text of one or more lines.
func printable(b []byte) bool {
	for _, c := range b {
		if (c < ' ' || c >= 0x7F) && c != '\r' && c != '\n' && c != '\t' {
			return false
		}
	}
	return true
}

// zero tells whether b is nothing but zeros.
func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// anyOf tells whether b contains one of the texts.
func anyOf(b []byte, texts ...string) bool {
	for _, s := range texts {
		if bytes.Contains(b, []byte(s)) {
			return true
		}
	}
	return false
}

// code reads the three digits and the separator that replies of mail and file transfer begin with (RFC 5321
// 4.2, RFC 959 4.2); 0 when b does not begin so.
func code(b []byte) int {
	if len(b) < 4 || !digit(b[0]) || !digit(b[1]) || !digit(b[2]) || b[3] != ' ' && b[3] != '-' {
		return 0
	}
	return int(b[0]-'0')*100 + int(b[1]-'0')*10 + int(b[2]-'0')
}

// other is the beginning of what the other direction said: of its stream as far as it is kept, or of its first
// datagram.
func (f *Flow) other(in *input) []byte {
	d := &f.dirs[in.dir^1]
	if d.buf != nil {
		if b := d.prefix(); len(b) > d.first.size() {
			return b[:min(len(b), len(d.first.data))]
		}
	}
	return d.first.bytes()
}

// count is how many segments or datagrams a direction had, the one at hand among them.
func (f *Flow) count(in *input) int { return int(f.dirs[in.dir].packets) }
