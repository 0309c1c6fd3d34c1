package app

import "encoding/binary"

// QUIC versions (RFC 9000 15, RFC 9369 3, and the registry's provisional entries).
const (
	quicV1      = 0x00000001
	quicV2      = 0x6B3343CF
	quicDraft   = 0xFF000000 // the low byte is the draft's number
	quicMvfst   = 0xFACEB000 // Facebook's; the low byte chooses the draft's cryptography
	quicQ050    = 0x51303530 // Google's last with its own handshake
	quicT050    = 0x54303530 // Google's first with TLS
	quicT051    = 0x54303531
	quicMaxConn = 20 // connection id (RFC 9000 17.2)
)

// Long packet types in the order of version 1.
const (
	quicInitial = iota
	quicZeroRTT
	quicHandshake
	quicRetry
)

// quicState is what a flow keeps while its ClientHello is incomplete.
type quicState struct {
	keys   quicKeys
	have   bool // keys are set, and have opened a packet
	client uint8
	pieces pieces
	crypto [MaxBytes]byte
	spent  int // decryption attempts
}

// maxAttempts bounds the key derivations of a flow: each costs a few microseconds.
const maxAttempts = 12

func (q *quicState) drop(e *Engine) {
	q.keys = quicKeys{}
	q.have, q.spent, q.pieces.n = false, 0, 0
	e.quic = append(e.quic, q)
}

// quicSize is what a quicState takes, about.
const quicSize = MaxBytes + 512

// quicState is the flow's; nil when flows have too much memory already.
func (f *Flow) quicState() *quicState {
	if f.quic == nil {
		if n := len(f.engine.quic); n > 0 {
			f.quic = f.engine.quic[n-1]
			f.engine.quic = f.engine.quic[:n-1]
		} else if f.engine.room(quicSize) {
			f.quic = &quicState{}
		}
	}
	return f.quic
}

// longHeader is a QUIC long header (RFC 8999 5.1).
type longHeader struct {
	version    uint32
	dcid, scid []byte
	rest       []byte // behind the connection ids
}

// parse reads the fields that all versions share.
func (h *longHeader) parse(b []byte) bool {
	if len(b) < 7 || b[0]&0x80 == 0 {
		return false
	}
	h.version = binary.BigEndian.Uint32(b[1:])
	b = b[5:]
	for _, id := range []*[]byte{&h.dcid, &h.scid} {
		if len(b) < 1 || int(b[0]) > quicMaxConn || len(b) < 1+int(b[0]) {
			return false
		}
		*id = b[1 : 1+b[0]]
		b = b[1+b[0]:]
	}
	h.rest = b
	return true
}

// quicKnown tells whether a version is one that is or was spoken, or one reserved to exercise negotiation.
func quicKnown(v uint32) bool {
	switch {
	case v == quicV1, v == quicV2, v == 0x709A50C4: // the last is version 2 as its drafts had it
		return true
	case v&0xFFFFFF00 == quicDraft:
		return v&0xFF >= 1 && v&0xFF <= 34
	case v&0xFFFFFFF0 == quicMvfst:
		return true
	case v&0x0F0F0F0F == 0x0A0A0A0A:
		return true
	}
	return googleVersion(v)
}

// googleVersion tells whether a version is one of Google QUIC: Q or T and three digits that begin with 0.
func googleVersion(v uint32) bool {
	letter := byte(v >> 24)
	return (letter == 'Q' || letter == 'T') && byte(v>>16) == '0' && digit(byte(v>>8)) && digit(byte(v))
}

// quicDatagram recognises QUIC by its long header, and reads server name and ALPN from the ClientHello in
// the client's Initial packets, which anyone can decrypt (RFC 9001 5.2).
func quicDatagram(f *Flow, in *input) outcome {
	b := in.data
	if b[0]&0x80 == 0 {
		if f.at >= 0 {
			return label // short headers follow
		}
		return googleQUIC(f, b)
	}
	if len(b) >= 5 && b[0]&0x40 != 0 {
		// Q046 to Q049 have a long header of their own, and like the versions before a hello in clear.
		if v := binary.BigEndian.Uint32(b[1:]); googleVersion(v) && byte(v>>24) == 'Q' && v != quicQ050 {
			googleHello(f, b)
			return final
		}
	}
	var h longHeader
	if !h.parse(b) {
		return no
	}
	if h.version == 0 {
		return versionNegotiation(&h)
	}
	if !quicKnown(h.version) || b[0]&0x40 == 0 {
		return no
	}
	found := false
	for count := 0; len(b) > 0 && count < 4; count++ {
		n, done := f.quicPacket(in.dir, b, &h)
		if n == 0 {
			break
		}
		found = true
		if done {
			return final
		}
		b = b[n:]
		if len(b) == 0 || b[0]&0x80 == 0 || !h.parse(b) {
			break
		}
	}
	if !found {
		return no
	}
	return label
}

// versionNegotiation checks a packet of version 0: a list of versions, one of which is known.
func versionNegotiation(h *longHeader) outcome {
	if len(h.rest) < 4 || len(h.rest)%4 != 0 || len(h.rest) > 4*64 || len(h.dcid)+len(h.scid) == 0 {
		return no
	}
	for b := h.rest; len(b) > 0; b = b[4:] {
		if v := binary.BigEndian.Uint32(b); v == quicV1 || v == quicV2 || googleVersion(v) || v&0xFFFFFF00 == quicDraft {
			return label
		}
	}
	return no
}

// quicPacket looks at one packet of a datagram and returns its length, 0 when it cannot be one. done says
// that the ClientHello is complete.
func (f *Flow) quicPacket(dir uint8, b []byte, h *longHeader) (n int, done bool) {
	kind := int(b[0] >> 4 & 3)
	if h.version == quicV2 {
		kind = (kind + 3) & 3 // RFC 9369 3.2 moves every type by one
	}
	rest := h.rest
	if kind == quicRetry {
		if len(rest) < 16 {
			return 0, false
		}
		return len(b), false
	}
	if kind == quicInitial {
		token, size := varint(rest)
		if size == 0 || token > uint64(len(rest)-size) {
			return 0, false
		}
		rest = rest[size+int(token):] //nolint:gosec // at most len(rest)
	}
	length, size := varint(rest)
	if size == 0 || length < 20 && kind == quicInitial || length > 65535 {
		return 0, false
	}
	at := len(b) - len(rest) + size // the packet number
	end := at + int(length)         //nolint:gosec // at most 65,535
	if end > len(b) {
		return len(b), false // cut by the capture or by the limit of bytes
	}
	if kind == quicInitial {
		done = f.quicHello(dir, b[:end], at, h)
	}
	return end, done
}

// quicHello decrypts an Initial packet and collects the ClientHello; true when it is complete.
func (f *Flow) quicHello(dir uint8, packet []byte, at int, h *longHeader) bool {
	q := f.quicState()
	if q == nil || q.have && dir != q.client || len(packet) > len(f.engine.scratch) {
		return false
	}
	var frames []byte
	if q.have {
		frames = q.keys.open(&f.engine.ghash, f.engine.scratch[:0], packet, at)
	}
	if frames == nil {
		if q.spent == maxAttempts || len(h.dcid) == 0 {
			return false
		}
		q.spent++
		var keys quicKeys
		if !keys.derive(h.version, h.dcid) {
			return false
		}
		if frames = keys.open(&f.engine.ghash, f.engine.scratch[:0], packet, at); frames == nil {
			return false
		}
		if !q.have || q.pieces.n == 0 {
			q.keys = keys
			q.have, q.client = true, dir
		}
	}
	q.frames(frames)
	n := q.pieces.prefix()
	if n < 4 {
		return false
	}
	message := q.crypto[:n]
	if string(message[:4]) == "CHLO" {
		googleHello(f, message)
		return f.host != "" || n == MaxBytes
	}
	if message[0] != clientHello {
		return false
	}
	need := 4 + int(message[1])<<16 + int(message[2])<<8 + int(message[3])
	whole := n >= need
	if whole {
		message = message[:need]
	}
	var c hello
	c.parse(message)
	if !c.bad {
		c.keep(f)
		if whole {
			c.prints(f, 'q')
		}
	}
	return whole || n == MaxBytes
}

// frames collects CRYPTO frames (RFC 9000 19.6); other frames that Initial packets may carry are skipped.
func (q *quicState) frames(b []byte) {
	number := func() uint64 {
		v, n := varint(b)
		if n == 0 {
			b = nil
			return 0
		}
		b = b[n:]
		return v
	}
	for len(b) > 0 {
		kind := b[0]
		b = b[1:]
		switch kind {
		case 0, 1: // PADDING, PING
			n := 0
			for n < len(b) && b[n] == 0 {
				n++
			}
			b = b[n:]
		case 2, 3: // ACK
			number()
			number()
			ranges := number()
			number()
			for ; ranges > 0 && len(b) > 0; ranges-- {
				number()
				number()
			}
			if kind == 3 {
				number()
				number()
				number()
			}
		case 6, 8: // CRYPTO, and its number in Google's versions; the other use of 8 is no Initial packet's
			offset := number()
			size := number()
			if size > uint64(len(b)) {
				return
			}
			if offset < MaxBytes {
				q.pieces.insert(q.crypto[:], uint32(offset), b[:size]) //nolint:gosec // below MaxBytes
			}
			b = b[size:]
		default: // CONNECTION_CLOSE and what does not belong here
			return
		}
	}
}

// varint reads a variable-length integer (RFC 9000 16); size 0 when b ends inside it.
func varint(b []byte) (v uint64, size int) {
	if len(b) == 0 {
		return 0, 0
	}
	size = 1 << (b[0] >> 6)
	if len(b) < size {
		return 0, 0
	}
	v = uint64(b[0] & 0x3F)
	for _, c := range b[1:size] {
		v = v<<8 | uint64(c)
	}
	return v, size
}
