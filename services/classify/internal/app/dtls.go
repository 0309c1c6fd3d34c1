package app

import "encoding/binary"

// dtlsDatagram recognises DTLS (RFC 6347 4.1, RFC 9147 4) by its record header, and reads the ClientHello. The
// version 0x0100 is the one that OpenSSL spoke before the standard, and AnyConnect after it.
func dtlsDatagram(f *Flow, in *input) outcome {
	b := in.data
	if len(b) < 13 || b[0] < recordChangeCipher || b[0] > recordHeartbeat {
		return no
	}
	version := binary.BigEndian.Uint16(b[1:])
	if version != 0xFEFF && version != 0xFEFD && version != 0xFEFC && version != 0x0100 {
		return no
	}
	size := int(binary.BigEndian.Uint16(b[11:]))
	if size == 0 || size > 1<<14+2048 {
		return no
	}
	body := b[13:]
	if version == 0x0100 && size > len(body) {
		return no
	}
	if b[0] != recordHandshake || len(body) < 12 || binary.BigEndian.Uint16(b[3:]) != 0 {
		if size > len(body) && b[0] != recordHandshake && b[0] != recordData {
			return no
		}
		return label
	}
	body = body[:min(size, len(body))]
	length := int(body[1])<<16 | int(body[2])<<8 | int(body[3])
	from := int(body[6])<<16 | int(body[7])<<8 | int(body[8])
	if body[0] != clientHello {
		return label
	}
	if from != 0 || length > MaxBytes {
		return label
	}
	// A ClientHello in one fragment is the rule; of a longer one the beginning has the name.
	e := f.engine
	message := append(e.scratch[:0], body[:4]...)
	message = append(message, body[12:min(len(body), 12+length)]...)
	var h hello
	h.parse(message)
	if h.bad {
		return label
	}
	h.keep(f)
	if len(message) == 4+length {
		h.prints(f, 'd')
		return final
	}
	return label
}
