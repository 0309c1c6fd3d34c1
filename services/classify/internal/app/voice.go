package app

import "bytes"

// voiceProtocols are calls: signalling, media, and finding a way through address translation.
var voiceProtocols = []protocol{
	{label: "stun", lead: "00-3f", datagram: stunDatagram, stream: stunStream, also: []string{"srtp", "dtls", "rtp", "zoom", "discord"}},
	{label: "sip", lead: "0a 0d 41-43 49 4d-50 52-53 55", datagram: sipMessage, stream: sipMessage},
	{label: "rtsp", lead: "41 44 47 4f-50 52-54", stream: rtspStream, datagram: rtspStream},
	{label: "mgcp", lead: "30-39 41-7a", datagram: mgcpDatagram},
	{label: "megaco", lead: "21 4d", datagram: megacoMessage, stream: megacoMessage},
	{label: "h323", stream: h323Stream, datagram: h323Datagram, rank: shaped},
	{label: "ciscoskinny", stream: skinnyStream, rank: shaped},
	{label: "iax", lead: "80-ff", datagram: iaxDatagram, rank: loose},
	{label: "bfcp", lead: "20-5f", datagram: bfcpMessage, stream: bfcpMessage, rank: loose},
	{label: "rtcp", lead: "80-bf", datagram: rtcpDatagram, rank: shaped},
	{label: "rtp", lead: "80-bf", datagram: rtpDatagram, rank: loose},
	{label: "rtmp", stream: rtmpStream, rank: loose},
	{label: "mpeg_ts", lead: "47", datagram: mpegDatagram},
	{label: "flute", lead: "10-1f", datagram: fluteDatagram, rank: loose},
}

// Notes of a STUN flow: what was seen beside it.
const (
	noteDTLS  = 2
	noteMedia = 4
)

// stunCookie is the fifth to the eighth byte since RFC 5389.
const stunCookie = "\x21\x12\xa4\x42"

// stunMessage checks a STUN message (RFC 8489 5): two zero bits, a length that fits and ends on a word, and the
// cookie; before the cookie there was one (RFC 3489) the attributes have to fit exactly.
func stunMessage(b []byte) bool {
	if len(b) < 20 || b[0]&0xC0 != 0 {
		return false
	}
	size := be16(b[2:])
	if size+20 > len(b) {
		return false
	}
	if be32(b[4:]) == 0x2112A442 { // MS-TURN 2.2 does not pad, and then the length has to be the datagram's
		return size%4 == 0 || size+20 == len(b)
	}
	if size%4 != 0 {
		return false
	}
	if kind := be16(b) &^ 0x110; kind != 1 && kind != 2 && kind != 3 || size+20 != len(b) {
		return false
	}
	if size == 0 {
		// Nothing but an identifier: not one of zeros or of a counter.
		return be16(b) == 1 && !zero(b[4:12]) && !zero(b[12:20])
	}
	for rest := b[20:]; len(rest) > 0; {
		if len(rest) < 4 {
			return false
		}
		kind, n := be16(rest), (be16(rest[2:])+3)&^3
		if kind == 0 || kind > 0x200 && kind < 0x8000 || kind > 0x8100 && kind < 0xC000 || n+4 > len(rest) {
			return false
		}
		rest = rest[n+4:]
	}
	return true
}

// stunDatagram recognises STUN and TURN, and watches what follows on the same ports (RFC 7983): DTLS, and media.
func stunDatagram(f *Flow, in *input) outcome {
	b := in.data
	if stunMessage(b) {
		return label
	}
	if f.at < 0 {
		return no
	}
	switch {
	case len(b) >= 13 && b[0] >= 20 && b[0] <= 63 && (b[1] == 0xFE || b[1] == 1 && b[2] == 0):
		f.notes |= noteDTLS
		if o := dtlsDatagram(f, in); o == label || o == final {
			return f.is("dtls", Negotiated, label)
		}
	case len(b) >= 8 && b[0]&0xC0 == 0x80:
		// Behind a DTLS handshake they are SRTP (RFC 5764). Behind ICE's checks a call of a dynamic type is taken for
		// it too (RFC 8827 6.5 forbids anything else); RTCP alone does not tell.
		media := rtpHeader(b) && b[1]&0x7F >= 96 && at(f.dirs[in.dir].first.bytes(), 4, stunCookie)
		if f.notes&noteDTLS != 0 && rtcpKind(b) || media && f.notes&noteMedia != 0 {
			return f.is("srtp", Negotiated, label)
		}
		if media {
			f.notes |= noteMedia
		}
	}
	return label
}

// stunStream recognises STUN over TCP, alone or in frames (RFC 4571).
func stunStream(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 22 {
		if b[0] > 0x3F {
			return no
		}
		return more
	}
	if be32(b[4:]) == 0x2112A442 && b[0]&0xC0 == 0 && be16(b[2:])%4 == 0 {
		return final
	}
	if len(b) >= 28 && be32(b[6:]) == 0x2112A442 && b[2]&0xC0 == 0 && be16(b) == be16(b[4:])+20 {
		return final
	}
	return no
}

var sipMethods = [...]string{"INVITE ", "REGISTER ", "OPTIONS ", "SUBSCRIBE ", "NOTIFY ", "ACK ", "BYE ", "CANCEL ", "MESSAGE ", "PUBLISH ", "REFER ", "INFO ", "UPDATE ", "PRACK ", "SERVICE "}

// sipMessage recognises SIP by its first line, and reads where media will be.
func sipMessage(f *Flow, in *input) outcome {
	o := sipLine(in.data)
	if o == label || f.at >= 0 {
		f.describe(in.data)
		return label // answers have descriptions too
	}
	return o
}

// sipLine looks at a request or status line (RFC 3261 7.1 and 7.2).
func sipLine(b []byte) outcome {
	for len(b) > 1 && (b[0] == '\r' || b[0] == '\n') { // keep-alives (RFC 5626 3.5.1)
		b = b[1:]
	}
	if o := begins(b, "SIP/2.0 "); o != no {
		return o
	}
	best := no
	for _, m := range sipMethods {
		switch begins(b, m) {
		case more:
			best = more
		case label:
			rest := b[len(m):]
			if at(rest, 0, "sip:") || at(rest, 0, "sips:") || at(rest, 0, "tel:") || at(rest, 0, "SIP:") {
				return label
			}
			if line := bytes.IndexByte(rest, '\n'); line > 0 && bytes.Contains(rest[:line], []byte(" SIP/2.0")) {
				return label
			}
			if len(rest) < 5 {
				best = more
			}
		}
	}
	return best
}

// rtspStream recognises RTSP by its first line (RFC 7826 7.1 and 8.1).
func rtspStream(f *Flow, in *input) outcome {
	b := in.data
	if f.at >= 0 {
		f.transports(in)
		return label
	}
	if o := begins(b, "RTSP/1.0 "); o != no {
		if o == label {
			f.transports(in)
		}
		return o
	}
	best := no
	for _, m := range [...]string{"OPTIONS ", "DESCRIBE ", "SETUP ", "PLAY ", "PAUSE ", "TEARDOWN ", "ANNOUNCE ", "RECORD ", "GET_PARAMETER ", "SET_PARAMETER "} {
		switch begins(b, m) {
		case more:
			best = more
		case label:
			if at(b, len(m), "rtsp://") || at(b, len(m), "rtspu://") || at(b, len(m), "* RTSP/1.0") {
				return label
			}
			if line := bytes.IndexByte(b, '\n'); line > 0 {
				if bytes.Contains(b[:line], []byte(" RTSP/1.0")) {
					return label
				}
			} else {
				best = more
			}
		}
	}
	return best
}

// mgcpDatagram recognises MGCP (RFC 3435 3.2 and 3.3): a verb, a number, an endpoint and the version; or an
// answer of a code, a number and text.
func mgcpDatagram(f *Flow, in *input) outcome {
	b := in.data
	if len(b) < 8 {
		return no
	}
	line := b
	if end := bytes.IndexByte(b, '\n'); end > 0 {
		line = b[:end]
	}
	if !printable(line) {
		return no
	}
	if b[4] == ' ' && digit(b[5]) {
		switch string(b[:4]) {
		case "AUEP", "AUCX", "CRCX", "DLCX", "EPCF", "MDCX", "NTFY", "RQNT", "RSIP", "MESG":
			if bytes.Contains(line, []byte(" MGCP ")) {
				return final
			}
		}
	}
	if code(b) >= 100 && code(b) < 1000 && digit(b[4]) && len(f.other(in)) >= 8 && f.other(in)[4] == ' ' && digit(f.other(in)[5]) {
		return final
	}
	return no
}

// megacoMessage recognises the text form of H.248 (RFC 3525 annex B): the short or the long version token.
func megacoMessage(f *Flow, in *input) outcome {
	b := in.data
	if f.proto == 6 && len(b) > 4 && b[0] == 3 { // TPKT
		b = b[4:]
	}
	best := no
	for _, s := range [...]string{"!/1 ", "!/2 ", "!/3 ", "MEGACO/1 ", "MEGACO/2 ", "MEGACO/3 "} {
		switch begins(b, s) {
		case label:
			if len(b) > len(s) && (b[len(s)] == '[' || b[len(s)] == '<' || alphanumeric(b[len(s)])) {
				return final
			}
		case more:
			best = more
		}
	}
	return best
}

// h323Stream recognises H.225 call signalling and H.245: a TPKT (RFC 1006 6) with a Q.931 message of protocol
// discriminator 8, or with a set of capabilities.
func h323Stream(_ *Flow, in *input) outcome {
	b := in.data
	if o := begins(b, "\x03\x00"); o != label {
		return o
	}
	if len(b) < 9 {
		return more
	}
	if size := be16(b[2:]); size >= 20 && b[4] == 0x02 && b[5]&0x0F == 0 {
		// Media control (H.245): a request to set the terminal's capabilities, which names the recommendation,
		// itu-t(0) recommendation(0) h(8) 245.
		if len(b) < 20 {
			return more
		}
		if bytes.Contains(b[6:16], []byte("\x06\x00\x08\x81\x75\x00")) {
			return final
		}
		return no
	} else if size < 9 || b[4] != 8 || b[5] == 0 || b[5] > 3 {
		return no
	}
	at := 6 + int(b[5])
	if len(b) <= at {
		return more
	}
	switch b[at] {
	case 0x01, 0x02, 0x03, 0x05, 0x07, 0x0D, 0x0F, 0x5A, 0x62, 0x6E, 0x7B, 0x7D:
		return final
	}
	return no
}

// h323Datagram recognises RAS (H.225.0 annex H) by the identifier of the protocol behind its first fields, or by
// the messages of discovery, whose encoding is fixed.
func h323Datagram(f *Flow, in *input) outcome {
	b := in.data
	if len(b) >= 20 && len(b) < 2000 && bytes.Contains(b[:16], []byte("\x00\x08\x91\x4a\x00")) {
		return final
	}
	if (f.hasPort(1719) || f.hasPort(1718)) && len(b) >= 3 {
		switch b[0] {
		case 0x00, 0x01, 0x04, 0x08, 0x0E, 0x12, 0x16, 0x1A, 0x1E, 0x22, 0x26, 0x2E, 0x32, 0x44, 0x4A, 0x4E, 0x52, 0x56:
			if len(b) < 400 && len(b) > 4 {
				return final
			}
		}
	}
	return no
}

// skinnyStream recognises Cisco's Skinny: length, a reserved number that is 0 or a version, a known message.
func skinnyStream(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 12 {
		if len(b) >= 4 && (b[2] != 0 || b[3] != 0) {
			return no
		}
		return more
	}
	size, version, message := le32(b), le32(b[4:]), le32(b[8:])
	if size < 4 || size > 4000 || version != 0 && (version < 0x0A || version > 0x17) {
		return no
	}
	if message > 0x160 || message > 0x5A && message < 0x81 || size+8 > len(b) && len(b) < MaxBytes && len(b) < 64 {
		return no
	}
	if size+8 != len(b) { // several messages: the next has to have the shape too
		if size+8 > len(b) || len(b) < size+8+12 || le32(b[size+8:]) > 4000 || le32(b[size+12:]) != version {
			return no
		}
	}
	return final
}

// iaxDatagram recognises IAX2 (RFC 5456 8.1.1): a full frame of control type whose information elements fill it.
func iaxDatagram(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 12 || b[0]&0x80 == 0 || b[10] != 6 || b[11] == 0 || b[11] > 40 || be16(b[2:])&0x7FFF != 0 && b[8] == 0 && b[9] == 0 && be16(b[2:])&0x8000 != 0 {
		return no
	}
	for b = b[12:]; len(b) > 0; {
		if len(b) < 2 || b[0] == 0 || b[0] > 60 || int(b[1])+2 > len(b) {
			return no
		}
		b = b[int(b[1])+2:]
	}
	return final
}

// bfcpMessage recognises the Binary Floor Control Protocol (RFC 8855 5.1).
func bfcpMessage(f *Flow, in *input) outcome {
	b := in.data
	if b[0]>>5 != 1 && b[0]>>5 != 2 || b[0]&7 != 0 {
		return no
	}
	if len(b) < 12 {
		if f.proto == 6 {
			return more
		}
		return no
	}
	size := be16(b[2:]) * 4
	if b[1] < 1 || b[1] > 18 || size+12 != len(b) || be32(b[4:]) == 0 {
		return no
	}
	for rest := b[12:]; len(rest) >= 2; {
		n := (int(rest[1]) + 3) &^ 3
		if rest[0]>>1 < 1 || rest[0]>>1 > 18 || n < 2 || n > len(rest) {
			return no
		}
		rest = rest[n:]
	}
	if b[1] == 1 && size == 0 || b[1] == 11 && size == 0 {
		return final
	}
	if size == 0 {
		return no
	}
	return final
}

// rtpHeader checks an RTP header (RFC 3550 5.1): version 2 and a payload type that is assigned or dynamic
// (RFC 3551 6), none of those that would collide with RTCP.
func rtpHeader(b []byte) bool {
	if len(b) < 12 || b[0]>>6 != 2 {
		return false
	}
	kind := b[1] & 0x7F
	if kind >= 72 && kind <= 76 || kind > 34 && kind < 71 && kind != 63 {
		return false
	}
	size := 12 + 4*int(b[0]&15)
	if b[0]&0x10 != 0 && len(b) >= size+4 {
		size += 4 + 4*be16(b[size+2:])
	}
	if size > len(b) {
		return false
	}
	return be32(b[8:]) != 0
}

// rtcpKind tells whether the second byte is one of RTCP's packet types (RFC 3550 12.1, RFC 4585, RFC 3611).
func rtcpKind(b []byte) bool { return len(b) >= 8 && b[0]>>6 == 2 && b[1] >= 200 && b[1] <= 207 }

// rtpDatagram recognises RTP by two packets of one direction: the same source and type, and a number that goes up
// by one or a few.
func rtpDatagram(f *Flow, in *input) outcome {
	b := in.data
	before := f.dirs[in.dir].previous.bytes()
	if !rtpHeader(b) || len(before) < 12 || !rtpHeader(before[:12]) && before[0]&0x1F == 0 || before[0]>>6 != 2 {
		return no
	}
	step := uint16(be16(b[2:]) - be16(before[2:])) //nolint:gosec // wraps as the counter does
	if be32(b[8:]) != be32(before[8:]) || step == 0 || step > 8 || f.facts.Method != "" {
		return no
	}
	return final
}

// rtcpDatagram recognises RTCP (RFC 3550 6.1): a compound of packets that begins with a report and whose lengths
// fill the datagram.
func rtcpDatagram(f *Flow, in *input) outcome {
	b := in.data
	if !rtcpKind(b) || b[1] > 201 && b[1] != 204 && b[1] != 205 && b[1] != 206 {
		return no
	}
	packets := 0
	for len(b) > 0 {
		if !rtcpKind(b) && len(b) >= 4 && packets > 0 {
			return no
		}
		if len(b) < 4 {
			return no
		}
		size := 4 + 4*be16(b[2:])
		if size > len(b) {
			return no
		}
		b = b[size:]
		packets++
	}
	if packets < 2 && f.count(in) < 2 && !rtcpKind(f.other(in)) {
		return no
	}
	return final
}

// rtmpStream recognises RTMP's handshake (Adobe's RTMP 1.0, 5.2): version 3, a time, and a zero or a version in
// the next four bytes. Both sides have to look like it.
func rtmpStream(f *Flow, in *input) outcome {
	b := in.data
	if b[0] != 3 && b[0] != 6 {
		return no
	}
	if len(b) < 9 {
		return more
	}
	if be32(b[1:]) > 1<<30 {
		return no
	}
	other := f.other(in)
	if len(other) == 0 {
		return more
	}
	// Of the two hellos at least one is long (1,537 bytes) and both have the version's byte.
	if other[0] != b[0] || len(b) < 64 && f.dirs[in.dir^1].first.size() < 64 {
		return no
	}
	if zero(b[5:9]) || len(other) >= 9 && zero(other[5:9]) || b[5] == 9 || len(other) > 5 && other[5] == 9 || len(other) > 5 && other[5] <= 10 {
		return final
	}
	return no
}

// mpegDatagram recognises an MPEG transport stream (ISO 13818-1 2.4.3.2): packets of 188 bytes, each with the
// sync byte.
func mpegDatagram(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 188 || len(b)%188 != 0 {
		return no
	}
	for ; len(b) > 0; b = b[188:] {
		if b[0] != 0x47 || b[3]&0x30 == 0 {
			return no
		}
	}
	return final
}

// fluteDatagram recognises FLUTE (RFC 6726 3.4): a Layered Coding Transport header of version 1 (RFC 5651 5.1)
// with a file delivery instance in XML, or one of a session whose object number follows.
func fluteDatagram(f *Flow, in *input) outcome {
	b := in.data
	if len(b) < 16 || b[0]>>4 != 1 || b[0]&3 != 0 || b[2] < 3 || b[2] > 32 {
		return no
	}
	size := int(b[2]) * 4
	if size > len(b) || be32(b[4:]) != 0 {
		return no
	}
	if bytes.Contains(b[size:min(len(b), size+64)], []byte("<?xml")) && anyOf(b[size:], "FDT-Instance") {
		return final
	}
	before := f.dirs[in.dir].previous.bytes()
	if len(before) >= 16 && before[0] == b[0] && at(before, 4, string(b[4:8])) && bytes.Contains(b[:min(len(b), 64)], []byte("\xc0\x00")) {
		return final
	}
	return no
}
