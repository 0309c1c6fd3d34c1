package app

import "encoding/binary"

// secureProtocols are those whose payload is encrypted behind a handshake in clear.
var secureProtocols = []protocol{
	{label: "tls", stream: tlsStream, also: []string{"imaps", "pop3s", "smtps", "ftps", "applepush", "gnutella"}},
	{label: "dtls", lead: "14-18", datagram: dtlsDatagram},
	{label: "ssh", stream: sshStream},
	{label: "quic", lead: "08-3f 80-ff", datagram: quicDatagram},
}

// TLS record content types (RFC 8446 B.1, RFC 6520).
const (
	recordChangeCipher = 20
	recordAlert        = 21
	recordHandshake    = 22
	recordData         = 23
	recordHeartbeat    = 24
)

// Handshake types (RFC 8446 B.3 and the registry's older ones).
const (
	helloRequest = 0
	clientHello  = 1
	serverHello  = 2
)

// tlsStream recognises TLS by its record layer and reads server name and ALPN from the ClientHello, which
// may span records and segments.
func tlsStream(f *Flow, in *input) outcome {
	b := in.data
	if b[0]&0x80 != 0 {
		return tlsOldHello(b)
	}
	if b[0] < recordChangeCipher || b[0] > recordHeartbeat {
		return no
	}
	if len(b) >= 2 && b[1] != 3 || len(b) >= 3 && b[2] > 4 {
		return no
	}
	if len(b) >= 5 {
		size := int(binary.BigEndian.Uint16(b[3:]))
		if size == 0 || size > 1<<14+2048 {
			return no
		}
		if b[0] == recordChangeCipher && size != 1 {
			return no
		}
	}
	if len(b) < 6 {
		return more
	}
	if b[0] != recordHandshake {
		return f.tlsKind(tlsRecords(b))
	}
	message, whole := tlsMessage(f.engine, b)
	if len(message) == 0 {
		return more
	}
	switch message[0] {
	case clientHello:
		if len(message) < 4 {
			return more
		}
		if message[1] != 0 {
			return no // 64 KiB of ClientHello
		}
		var h hello
		h.parse(message)
		if string(h.ciphers) == "\x00\x34" && len(h.host) == 0 {
			return f.is("gnutella", Payload, final) // LimeWire's TLS: nothing but anonymous keys with AES-128
		}
		if h.bad {
			// Nonsense inside; the record and the message still have to agree on their length.
			size := int(binary.BigEndian.Uint16(b[3:]))
			if inner := int(message[2])<<8 + int(message[3]); size != inner+4 {
				return no
			}
			f.risk(true, Malformed)
			return final
		}
		h.keep(f)
		if !whole && len(message) < MaxBytes {
			return f.tlsKind(label)
		}
		h.prints(f, 't')
		return f.tlsKind(f.helloDone(in.dir))
	case serverHello:
		if whole {
			f.serverHello(message)
			return f.tlsKind(f.helloDone(in.dir))
		}
		return f.tlsKind(label)
	case helloRequest, 4, 8, 11, 12, 13, 14, 15, 16, 20, 22:
		return f.tlsKind(label) // the server's side; the client's says the name
	}
	// Behind ChangeCipherSpec handshake messages are encrypted: any first byte will do once records follow.
	return f.tlsKind(tlsRecords(b))
}

// tlsRecords accepts a stream that begins inside a connection: every record in it must have a header that
// fits, and one must be complete or longer than what is kept of an unknown flow.
func tlsRecords(b []byte) outcome {
	whole, seen := 0, len(b)
	for len(b) >= 5 {
		size := int(binary.BigEndian.Uint16(b[3:]))
		if b[0] < recordChangeCipher || b[0] > recordHeartbeat || b[1] != 3 || b[2] > 4 || size == 0 || size > 1<<14+2048 {
			return no
		}
		if len(b) < 5+size {
			break
		}
		whole++
		b = b[5+size:]
	}
	if whole == 0 && seen < maxUndecided {
		return more // the first is not complete, and may be chance
	}
	return label
}

// tlsOldHello recognises a ClientHello in the record form of SSL 2.0 that offers SSL 3.0 or TLS
// (RFC 5246 E.2).
func tlsOldHello(b []byte) outcome {
	if len(b) < 11 {
		if len(b) > 2 && b[2] != clientHello || len(b) > 3 && b[3] != 3 {
			return no
		}
		return more
	}
	size := int(binary.BigEndian.Uint16(b) & 0x7FFF)
	ciphers := int(binary.BigEndian.Uint16(b[5:]))
	session := int(binary.BigEndian.Uint16(b[7:]))
	challenge := int(binary.BigEndian.Uint16(b[9:]))
	if b[2] != clientHello || b[3] != 3 || b[4] > 4 || ciphers == 0 || ciphers%3 != 0 || challenge < 16 || challenge > 32 ||
		size != 9+ciphers+session+challenge {
		return no
	}
	return final
}

// tlsMessage joins the first handshake message of a stream of records in the engine's scratch memory, as far
// as the stream goes. whole tells whether it is complete.
func tlsMessage(e *Engine, b []byte) (message []byte, whole bool) {
	message = e.scratch[:0]
	need := 4
	for len(b) >= 5 && len(message) < need {
		if b[0] != recordHandshake || b[1] != 3 {
			break
		}
		size := int(binary.BigEndian.Uint16(b[3:]))
		b = b[5:]
		n := min(size, len(b), cap(message)-len(message))
		message = append(message, b[:n]...)
		if len(message) >= 4 {
			need = 4 + int(message[1])<<16 + int(message[2])<<8 + int(message[3])
		}
		if n < size {
			break
		}
		b = b[n:]
	}
	if len(message) >= 4 && len(message) >= need {
		return message[:need], true
	}
	return message, false
}

// portsOverTLS are the protocols whose registered port means TLS from the first byte (RFC 8314 3.2, RFC 4217).
// What they carry cannot be seen, so the port decides, between nothing but protocols over TLS.
var portsOverTLS = map[uint16]string{993: "imaps", 995: "pop3s", 465: "smtps", 990: "ftps"}

// tlsKind turns tls into the label of what runs over it, where ALPN or the port tell.
func (f *Flow) tlsKind(o outcome) outcome {
	if o != label && o != final || f.app != "" && f.app != "tls" {
		return o
	}
	switch f.alpn {
	case "imap":
		return f.is("imaps", Negotiated, o)
	case "pop3":
		return f.is("pop3s", Negotiated, o)
	case "apns-security-v2", "apns-security-v3", "apns-pack-v1":
		return f.is("applepush", Negotiated, o)
	}
	for _, port := range [2]uint16{f.key.DstPort, f.key.SrcPort} {
		if name := portsOverTLS[port]; name != "" {
			return f.is(name, Port, o)
		}
	}
	return o
}

// noteHello is set when one direction's hello is complete.
const noteHello = 1

// helloDone ends the reading of one direction; the flow's when the other is done too.
func (f *Flow) helloDone(dir uint8) outcome {
	f.dirs[dir].done = true
	if f.notes&noteHello != 0 && f.dirs[dir^1].done {
		return final
	}
	f.notes |= noteHello
	return label
}

// hello is what a ClientHello says in clear.
type hello struct {
	host, alpn []byte
	version    int    // of the message
	ciphers    []byte // 2 bytes each
	extensions []byte // the list with its values
	versions   []byte // supported_versions, 2 bytes each
	signatures []byte // signature_algorithms, 2 bytes each
	groups     []byte // supported_groups, 2 bytes each
	formats    []byte // ec_point_formats
	bad        bool   // a length that cannot be
	short      bool   // the bytes end before the message does
}

// take cuts n bytes off *b.
func (h *hello) take(b *[]byte, n int) []byte {
	if n > len(*b) {
		h.short = true
		n = len(*b)
	}
	out := (*b)[:n]
	*b = (*b)[n:]
	return out
}

// number takes a big-endian number of n bytes.
func (h *hello) number(b *[]byte, n int) int {
	v := 0
	for _, c := range h.take(b, n) {
		v = v<<8 | int(c)
	}
	return v
}

// parse reads a ClientHello (RFC 8446 4.1.2) with its handshake header, of which the end may be missing.
func (h *hello) parse(m []byte) {
	b := m
	if h.number(&b, 1) != clientHello {
		h.bad = true
		return
	}
	size := h.number(&b, 3)
	if !h.short && size < 38 {
		h.bad = true
		return
	}
	h.version = h.number(&b, 2)
	if !h.short && h.version>>8 != 3 && h.version>>8 != 0xFE && h.version != 0x0100 {
		h.bad = true
		return
	}
	datagrams := h.version>>8 == 0xFE || h.version == 0x0100 // DTLS, and OpenSSL's before there was a standard
	h.take(&b, 32)
	session := h.number(&b, 1)
	if session > 32 {
		h.bad = true
		return
	}
	h.take(&b, session)
	cookie := 0
	if datagrams {
		cookie = 1 + h.number(&b, 1) // RFC 6347 4.2.1
		h.take(&b, cookie-1)
	}
	ciphers := h.number(&b, 2)
	if !h.short && (ciphers == 0 || ciphers%2 != 0 || 38+session+cookie+ciphers > size) {
		h.bad = true
		return
	}
	h.ciphers = h.take(&b, ciphers)
	h.take(&b, h.number(&b, 1))
	if h.short || len(b) == 0 {
		return
	}
	rest := h.number(&b, 2)
	b = b[:min(rest, len(b))]
	h.extensions = b
	for len(b) >= 4 {
		kind := h.number(&b, 2)
		value := h.take(&b, h.number(&b, 2))
		switch kind {
		case 0: // server_name (RFC 6066 3)
			h.serverName(value)
		case 16: // application_layer_protocol_negotiation (RFC 7301 3.1)
			h.protocol(value)
		case 10: // supported_groups (RFC 8422 5.1.1)
			h.groups = list(value, 2)
		case 11: // ec_point_formats (RFC 8422 5.1.2)
			h.formats = list(value, 1)
		case 13: // signature_algorithms (RFC 8446 4.2.3)
			h.signatures = list(value, 2)
		case 43: // supported_versions (RFC 8446 4.2.1)
			h.versions = list(value, 1)
		}
	}
}

// list cuts off the length of n bytes that a vector begins with; nil when it lies.
func list(b []byte, n int) []byte {
	size := 0
	if len(b) < n {
		return nil
	}
	for _, c := range b[:n] {
		size = size<<8 | int(c)
	}
	if size > len(b)-n {
		return nil
	}
	return b[n : n+size]
}

// serverName reads the first name of type host_name.
func (h *hello) serverName(b []byte) {
	if len(b) < 5 || b[2] != 0 {
		return
	}
	n := int(binary.BigEndian.Uint16(b[3:]))
	if n <= len(b)-5 {
		h.host = b[5 : 5+n]
	}
}

// protocol reads the client's first protocol name.
func (h *hello) protocol(b []byte) {
	if len(b) < 3 {
		return
	}
	n := int(b[2])
	if n <= len(b)-3 {
		h.alpn = b[3 : 3+n]
	}
}

// keep copies what was found into the flow.
func (h *hello) keep(f *Flow) {
	if len(h.host) > 0 {
		f.setHost(h.host)
	}
	for _, c := range h.alpn {
		if c <= ' ' || c >= 0x7F {
			return // GREASE (RFC 8701) and other binary
		}
	}
	if len(h.alpn) > 0 {
		f.alpn = f.engine.names.get(h.alpn)
	}
}
