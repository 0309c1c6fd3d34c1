package app

// chatProtocols are messengers, conferences and their relays, each with a transport of its own.
var chatProtocols = []protocol{
	{label: "whatsapp", stream: starts("ED\x00\x01", "WA\x01", "WA\x02", "WA\x03", "WA\x04", "WA\x05", "WA\x06")},
	{label: "telegram", stream: telegramStream, datagram: telegramDatagram, rank: loose},
	{label: "zoom", lead: "01-02 05", datagram: zoomDatagram, rank: shaped},
	{label: "discord", lead: "00 13", datagram: discordDatagram, rank: shaped},
	{label: "linecall", lead: "d0-df", datagram: lineDatagram, rank: loose},
	{label: "imo", lead: "00 09 80-ff", datagram: imoDatagram, rank: loose},
	{label: "teamspeak", lead: "01 54", datagram: teamspeakDatagram},
	{label: "mumble", datagram: mumbleDatagram, rank: loose},
	{label: "sd_rtn", datagram: sdrtnDatagram, rank: shaped},
	{label: "dingtalk", stream: starts("\x10\x64\x87\x80\x01\x00")},
	{label: "oicq", lead: "02", datagram: oicqDatagram, rank: loose, byPort: true},
}

// telegramStream recognises MTProto's transports (core.telegram.org, MTProto transports): the abbreviated and the
// intermediate one. The obfuscated one is noise.
func telegramStream(_ *Flow, in *input) outcome {
	b := in.data
	if b[0] == 0xEF {
		if len(b) < 2 {
			return more
		}
		if b[1] < 0x7F && len(b) == 2+4*int(b[1]) && b[1] > 4 {
			return final
		}
		return no
	}
	return starts("\xee\xee\xee\xee", "\xdd\xdd\xdd\xdd")(nil, in)
}

// telegramDatagram recognises calls through Telegram's relays: sixteen bytes of tag, then twelve of 0xFF.
func telegramDatagram(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 28 || !at(b, 16, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff") || at(b, 4, "\xff\xff\xff\xff") || b[0]&0xCF == 0x80 && rtpHeader(b) {
		return no // silence in a call of G.711 looks like it, and other fill
	}
	return final
}

// zoomDatagram recognises Zoom's own transport (Michel et al., Enabling Passive Measurement of Zoom, 2022): the
// exchange that opens it, and the server's and the peers' media.
func zoomDatagram(f *Flow, in *input) outcome {
	b := in.data
	if len(b) < 12 {
		return no
	}
	other := f.other(in)
	switch {
	case (b[0] == 1 || b[0] == 2) && b[1] == 0 && len(other) >= 19 && len(b) >= 19 && other[0] == 3-b[0] && at(other, 3, string(b[3:19])):
		return final
	case b[0] == 5 && len(b) > 40 && (b[8] == 0x0F || b[8] == 0x10 || b[8] == 0x0D || b[8] == 0x15 || b[8] == 0x1E) && f.hasPort(8801):
		return final
	}
	return no
}

// discordDatagram recognises the voice server's address discovery (Discord developer documentation, Voice, IP
// Discovery), and its keep-alives, which carry a fixed number and a counter.
func discordDatagram(f *Flow, in *input) outcome {
	b := in.data
	if len(b) == 74 && be16(b[2:]) == 70 && (be16(b) == 1 && zero(b[8:72]) || be16(b) == 2 && digit(b[8])) {
		return final
	}
	if len(b) == 8 && be32(b) == 0x1337CAFE {
		return final
	}
	return no
}

// lineHeader checks the header of LINE's calls: five bits 11010 or 11011, eleven of a length that is the datagram's
// without the four bytes before it, a counter.
func lineHeader(b []byte, size int) bool {
	return len(b) >= 8 && (b[0]>>3 == 0x1A || b[0]>>3 == 0x1B) && be16(b)&0x7FF == size-4
}

// lineDatagram wants such messages from both sides with the same two bytes behind the counter, or two of one side in
// order.
func lineDatagram(f *Flow, in *input) outcome {
	b := in.data
	if !lineHeader(b, len(b)) {
		return no
	}
	if other := &f.dirs[in.dir^1].first; lineHeader(other.bytes(), other.size()) && at(b, 4, string(other.data[4:6])) {
		return final
	}
	before := &f.dirs[in.dir].previous
	if lineHeader(before.bytes(), before.size()) && uint16(be16(b[2:])-be16(before.data[2:])) == 1 { //nolint:gosec // wraps as the counter does
		return final
	}
	return no
}

// imoMessage checks the framing of imo's calls: the length of the rest, seven bits a byte with the highest first, in
// two bytes, then a type.
func imoMessage(b []byte, size int) bool {
	return len(b) >= 3 && b[1]&0x80 == 0 && int(b[0]&0x7F)<<7|int(b[1]) == size-2 && (b[0]&0x80 != 0 || b[0] == 0) && b[2] < 0x20
}

// imoDatagram wants three messages of that framing in a row, or a ping (length 9, type 2, a time) whose answer (type 3)
// repeats the time.
func imoDatagram(f *Flow, in *input) outcome {
	b, before, other := in.data, &f.dirs[in.dir].previous, &f.dirs[in.dir^1].previous
	if imoMessage(b, len(b)) && imoMessage(before.bytes(), before.size()) && imoMessage(other.bytes(), other.size()) {
		return final
	}
	if len(b) == 10 && other.size() == 10 && at(b, 0, "\x09\x03") && at(other.data[:], 0, "\x09\x02") && at(b, 2, string(other.data[2:10])) && zero(b[7:]) {
		return final
	}
	return no
}

// teamspeakDatagram recognises TeamSpeak 3's handshake by its name, and a server that lists itself: version 1, a
// number, a request of four bytes, and an answer that adds a challenge of four.
func teamspeakDatagram(f *Flow, in *input) outcome {
	b := in.data
	if prefixed(b, "TS3INIT1") {
		return final
	}
	if len(b) == 8 && b[0] == 1 && b[3] == 1 && f.dirs[in.dir^1].first.size() == 4 && at(b, 0, string(f.dirs[in.dir^1].first.data[:4])) && f.hasPort(2010) {
		return final
	}
	return no
}

// mumbleDatagram recognises Mumble's ping (protocol, 5.1): four zeros and an identifier, and the answer of 24 bytes
// that repeats it behind the version.
func mumbleDatagram(f *Flow, in *input) outcome {
	b, other := in.data, f.other(in)
	if len(b) == 24 && len(other) >= 12 && be32(other) == 0 && f.dirs[in.dir^1].first.size() == 12 && at(b, 4, string(other[4:12])) {
		return final
	}
	return no
}

// sdrtnDatagram recognises Agora's network: an identifier, a type, and a list of fields with names of four letters
// and lengths, the client's first a server's name.
func sdrtnDatagram(f *Flow, in *input) outcome {
	b := in.data
	if len(b) < 40 || b[4] != 0 || b[5] != 0 || !zero(b[7:12]) && b[12] == 0 {
		return no
	}
	switch {
	case at(b, 13, "SNI\x00"):
		if n := le16(b[17:]); n > 3 && 19+n <= len(b) {
			f.setHost(b[19 : 19+n])
			return final
		}
	case at(b, 13, "PEID") && at(b, 21, "\x00PROF"):
		return final
	}
	return no
}

// oicqDatagram recognises QQ: a start byte, a version, a command, and the byte that ends it.
func oicqDatagram(f *Flow, in *input) outcome {
	b := in.data
	if len(b) > 11 && b[0] == 2 && b[len(b)-1] == 3 && f.hasPort(8000) && b[1]&0xC0 == 0 {
		return final
	}
	return no
}
