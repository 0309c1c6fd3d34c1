package app

import (
	"bytes"
	"encoding/binary"
)

// googleQUIC recognises Google QUIC before Q046, whose public header (QUIC wire specification, 2016) has a
// flags byte, a connection id of 8 bytes and, from a client that begins, the version.
func googleQUIC(f *Flow, b []byte) outcome {
	if len(b) < 14 || b[0]&0x09 != 0x09 || b[0]&0xC0 != 0 {
		if len(b) >= 64 && b[0]&0xC0 == 0 && b[0]&0x08 != 0 && googleAnswer(b) {
			return final
		}
		return no
	}
	if v := binary.BigEndian.Uint32(b[9:]); !googleVersion(v) || byte(v>>24) != 'Q' {
		return no
	}
	googleHello(f, b)
	return final
}

// googleHello reads the server name of a client hello in clear: a message that begins with CHLO, the number
// of its tags, and per tag its name and the end of its value.
func googleHello(f *Flow, b []byte) {
	const header = 64 // public header, message hash and stream frame are shorter
	at := bytes.Index(b[:min(len(b), header)], []byte("CHLO"))
	if at < 0 || len(b) < at+8 {
		return
	}
	b = b[at+4:]
	tags := int(binary.LittleEndian.Uint16(b))
	b = b[4:]
	if tags > 64 || len(b) < tags*8 {
		return
	}
	values := b[tags*8:]
	from := 0
	for i := range tags {
		tag := b[i*8:]
		end := int(binary.LittleEndian.Uint32(tag[4:]))
		if end < from || end > len(values) {
			return
		}
		if string(tag[:4]) == "SNI\x00" {
			f.setHost(values[from:end])
			return
		}
		from = end
	}
}

// googleAnswer recognises a server's first packet, which has no version: its rejection in clear, of which the tags
// are as many as it says and the ends of their values go up.
func googleAnswer(b []byte) bool {
	const header = 96 // public header with a nonce, hash, and the frames before the message
	at := bytes.Index(b[:min(len(b), header)], []byte("REJ\x00"))
	if at < 0 || len(b) < at+16 {
		return false
	}
	b = b[at+4:]
	tags := int(binary.LittleEndian.Uint32(b))
	if tags < 1 || tags > 64 || len(b) < 4+tags*8 {
		return false
	}
	last := uint32(0)
	for i := range tags {
		end := binary.LittleEndian.Uint32(b[4+i*8+4:])
		if end < last {
			return false
		}
		last = end
	}
	return last < 1<<16
}
