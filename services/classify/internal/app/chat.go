package app

import "bytes"

// chatProtocols are messengers, conferences and their relays, each with a transport of its own.
var chatProtocols = []protocol{
	{label: "whatsapp", stream: starts("ED\x00\x01", "WA\x01", "WA\x02", "WA\x03", "WA\x04", "WA\x05", "WA\x06")},
	{label: "telegram", stream: telegramStream, datagram: telegramDatagram, rank: loose},
	{label: "zoom", datagram: zoomDatagram, rank: shaped},
	{label: "discord", datagram: discordDatagram, rank: shaped},
	{label: "linecall", datagram: lineDatagram, rank: loose},
	{label: "teamspeak", datagram: starts("TS3INIT1")},
	{label: "mumble", datagram: mumbleDatagram, rank: loose},
	{label: "dropbox", datagram: dropboxDatagram},
	{label: "spotify", datagram: starts("SpotUdp0"), stream: spotifyStream},
	{label: "sd_rtn", datagram: sdrtnDatagram, rank: shaped},
	{label: "avast", stream: starts("NOSA")},
	{label: "dingtalk", stream: starts("\x10\x64\x87\x80\x01\x00")},
	{label: "hp_virtgrp", stream: pushStream, rank: loose},
	{label: "eaq", datagram: eaqDatagram, rank: loose},
	{label: "oicq", datagram: oicqDatagram, rank: loose},
	{label: "coap", datagram: coapDatagram, rank: loose},
	{label: "tuyalp", datagram: tuyaDatagram},
	{label: "tplink_shp", datagram: tplinkDatagram, stream: tplinkStream, rank: loose},
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
	if len(b) < 28 || !at(b, 16, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff") || b[0]&0xCF == 0x80 && rtpHeader(b) {
		return no // silence in a call of G.711 looks like it
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

// lineDatagram recognises LINE's calls: a length two bytes in that is the rest of the header's, and a counter.
func lineDatagram(f *Flow, in *input) outcome {
	b := in.data
	before := f.dirs[in.dir].previous.bytes()
	if len(b) < 110 || len(before) < 8 || b[4] != 6 || before[4] != 6 || b[5] != before[5] || b[2] != 0 && b[1] != 0 && b[1] != before[1] {
		return no
	}
	if step := uint16(be16(b[2:]) - be16(before[2:])); at(b, 0, string(before[:2])) && step >= 1 && step <= 2 && at(b, 4, string(before[4:8])) { //nolint:gosec // wraps
		return final
	}
	return no
}

// mumbleDatagram recognises Mumble's ping (protocol, 5.1): four zeros and an identifier, and the answer of 24 bytes
// that repeats it behind the version.
func mumbleDatagram(f *Flow, in *input) outcome {
	b, other := in.data, f.other(in)
	if len(b) == 24 && len(other) >= 12 && be32(other) == 0 && f.dirs[in.dir^1].first.size == 12 && at(b, 4, string(other[4:12])) {
		return final
	}
	return no
}

// dropboxDatagram recognises Dropbox's discovery in the local network: JSON with its fields.
func dropboxDatagram(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) > 10 && b[0] == '{' && anyOf(b[:min(len(b), 300)], `"host_int"`) {
		return final
	}
	return no
}

// spotifyStream recognises the access point's hello: 0, 4, a length that is the segment's, and the first field of
// the message that every client sends.
func spotifyStream(_ *Flow, in *input) outcome {
	b := in.data
	if o := begins(b, "\x00\x04\x00\x00"); o != label {
		return o
	}
	if len(b) < 8 {
		return more
	}
	if size := be32(b[2:]); size >= 16 && size < 4096 && b[6] == 0x52 {
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

// pushStream recognises the hello of a push service on phones: type 0x16 answered by 0x17, each with a length that is
// the segment's.
func pushStream(f *Flow, in *input) outcome {
	b := in.data
	if b[0] != 0x16 && b[0] != 0x17 {
		return no
	}
	if len(b) < 4 {
		return more
	}
	if be16(b[1:]) != len(b) {
		return no
	}
	other := f.other(in)
	if len(other) == 0 {
		return more
	}
	if len(other) >= 4 && b[0]^other[0] == 1 && other[0]>>1 == b[0]>>1 && be16(other[1:]) == f.dirs[in.dir^1].first.size {
		return final
	}
	return no
}

// eaqDatagram recognises the Brazilian regulator's quality measurement: datagrams of sixteen bytes with a counter that
// goes up by one, a time and a constant.
func eaqDatagram(f *Flow, in *input) outcome {
	b, before := in.data, f.dirs[in.dir].previous.bytes()
	if len(b) != 16 || len(before) != 16 || !zero(b[:2]) || !zero(b[4:6]) || !zero(b[12:14]) || be32(b)-be32(before) != 1 {
		return no
	}
	if at(before, 12, string(b[12:])) && le16(b[14:]) != 0 && be16(b[6:]) > be16(before[6:]) {
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

// coapDatagram recognises CoAP (RFC 7252 3): version 1, a token of at most eight bytes, a code in use, options
// that can be walked to the payload's marker.
func coapDatagram(f *Flow, in *input) outcome {
	b := in.data
	if len(b) < 4 || b[0]>>6 != 1 || b[0]&15 > 8 || len(b) < 4+int(b[0]&15) {
		return no
	}
	if !f.hasPort(5683) && !f.hasPort(5684) {
		return no // four bits and a code are too little without
	}
	class, detail := b[1]>>5, b[1]&31
	switch {
	case b[1] == 0:
		if len(b) != 4 {
			return no
		}
	case class == 0 && detail <= 7, class == 2 && detail <= 5, class == 2 && detail == 31,
		class == 4 && (detail <= 6 || detail == 8 || detail == 12 || detail == 13 || detail == 15), class == 5 && detail <= 5:
	default:
		return no
	}
	rest, number := b[4+int(b[0]&15):], 0
	for len(rest) > 0 && rest[0] != 0xFF {
		delta, size := int(rest[0]>>4), int(rest[0]&15)
		rest = rest[1:]
		for _, v := range [2]*int{&delta, &size} {
			switch *v {
			case 13:
				if len(rest) < 1 {
					return no
				}
				*v, rest = int(rest[0])+13, rest[1:]
			case 14:
				if len(rest) < 2 {
					return no
				}
				*v, rest = be16(rest)+269, rest[2:]
			case 15:
				return no
			}
		}
		number += delta
		if size > len(rest) || number > 2053 {
			return no
		}
		rest = rest[size:]
	}
	return final
}

// tuyaDatagram recognises Tuya's local protocol: a prefix, a length that fits, a suffix.
func tuyaDatagram(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) >= 24 && (be32(b) == 0x55AA && be32(b[len(b)-4:]) == 0xAA55 && be32(b[12:])+16 == len(b) || be32(b) == 0x6699 && be32(b[len(b)-4:]) == 0x9966) {
		return final
	}
	return no
}

// tplink tells whether b is TP-Link's smart home JSON, each byte of which is XORed with the one before, the first
// with 171.
func tplink(b []byte) bool {
	key := byte(171)
	var plain [16]byte
	for i, c := range b[:min(len(b), len(plain))] {
		plain[i] = c ^ key
		key = c
	}
	return len(b) >= 8 && plain[0] == '{' && (plain[1] == '"' || plain[1] == '}' || plain[1] == ' ' || plain[1] == '\n') && printable(plain[:min(len(b), len(plain))])
}

func tplinkDatagram(_ *Flow, in *input) outcome {
	if tplink(in.data) {
		return final
	}
	return no
}

// tplinkStream expects the length before the message.
func tplinkStream(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 12 {
		if b[0] != 0 {
			return no
		}
		return more
	}
	if be32(b) < 1<<16 && tplink(b[4:]) {
		return final
	}
	return no
}

// gameProtocols are games and their engines.
var gameProtocols = []protocol{
	{label: "raknet", datagram: raknetDatagram},
	{label: "steam", datagram: starts("\xff\xff\xff\xff\x21\x4c\x5f\xa0"), stream: steamStream}, // Steam's in-home discovery
	{label: "steamdatagramrelay", datagram: steamRelayDatagram},
	{label: "source_engine", datagram: sourceDatagram, rank: shaped, also: []string{"halflife2"}},
	{label: "worldofwarcraft", stream: wowStream},
	{label: "amongus", datagram: amongDatagram, rank: loose},
	{label: "cod_mobile", datagram: pingDatagram, rank: guess},
	{label: "tencentgames", stream: starts("\x33\x66\x00\x0b", "\x33\x66\x00\x0a", "\x33\x66\x00\x09")},
	{label: "riotgames", datagram: riotDatagram},
	{label: "yojimbo", datagram: starts("\x00NETCODE 1.")},
	{label: "kcp", datagram: kcpDatagram, rank: loose},
	{label: "tes_online", stream: tesStream, rank: loose},
	{label: "gaijinentertainment", datagram: gaijinDatagram},
}

// raknetMagic marks messages outside of a connection (RakNet, OFFLINE_MESSAGE_DATA_ID).
const raknetMagic = "\x00\xff\xff\x00\xfe\xfe\xfe\xfe\xfd\xfd\xfd\xfd\x12\x34\x56\x78"

// raknetDatagram recognises RakNet's messages outside of a connection: an identifier and the magic of sixteen
// bytes, at once or behind times and identities.
func raknetDatagram(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 17 {
		return no
	}
	if bytes.Index(b[:min(len(b), 64)], []byte(raknetMagic)) > 0 {
		return final
	}
	return no
}

func steamStream(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) >= 8 && at(b, 4, "VT01") && le32(b) < 1<<16 {
		return final
	}
	if len(b) < 8 {
		return more
	}
	return no
}

// steamRelayDatagram recognises the relay's pings, which say what they are.
func steamRelayDatagram(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) > 8 && (at(b, 2, "sdping") || at(b, 0, "sdping")) {
		return final
	}
	return no
}

// sourceDatagram recognises the Source engine's queries (Valve developer community, Server queries): four bytes of
// 0xFF and a known letter with its text or size.
func sourceDatagram(f *Flow, in *input) outcome {
	b := in.data
	if len(b) < 5 || be32(b) != 0xFFFFFFFF {
		return no
	}
	switch b[4] {
	case 'T':
		if at(b, 5, "Source Engine Query\x00") {
			return final
		}
	case 'U', 'V', 'W':
		if len(b) == 9 {
			return final
		}
	case 'A':
		if len(b) == 9 || len(b) > 9 && printable(b[5:7]) {
			return final
		}
	case 'I', 'm', 'D', 'E':
		if len(b) > 12 {
			return final
		}
	}
	return no
}

// riotDatagram recognises the measurement of the way to a game server, question and answer: 36 bytes, the last
// eight of them a mark.
func riotDatagram(_ *Flow, in *input) outcome {
	if len(in.data) == 36 && at(in.data, 28, "\xaa\xaa\xaa\xaa\xbb\xbb\xbb\xbb") {
		return final
	}
	return no
}

// wowStream recognises World of Warcraft's greeting in both directions.
func wowStream(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 25 {
		if len(b) >= 3 && b[2] != 'W' {
			return no
		}
		return more
	}
	if at(b, 2, "WORLD OF WARCRAFT CONNECTION") || at(b, 0, "WORLD OF WARCRAFT CONNECTION") {
		return final
	}
	return no
}

// amongDatagram recognises Hazel's hello (Hazel networking): type 8, a nonce, version 0 or 1, a game's version and
// a name with its length.
func amongDatagram(f *Flow, in *input) outcome {
	b := in.data
	if len(b) < 10 || b[0] != 8 || b[1] != 0 || b[3] > 1 {
		return no
	}
	if n := int(b[8]); n > 0 && n <= 12 && 9+n <= len(b) && printable(b[9:9+n]) && b[7] == 3 {
		return final
	}
	return no
}

func pingDatagram(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) == 12 && at(b, 7, "\x03ping") {
		return final
	}
	return no
}

// kcpDatagram recognises KCP (skywind3000/kcp, protocol): a conversation, a command of 81 to 84, and segments
// whose lengths fill the datagram.
func kcpDatagram(f *Flow, in *input) outcome {
	b := in.data
	if len(b) < 24 {
		return no
	}
	conversation, segments := le32(b), 0
	for rest := b; len(rest) > 0; segments++ {
		if len(rest) < 24 || le32(rest) != conversation || rest[4] < 81 || rest[4] > 84 {
			return no
		}
		size := le32(rest[20:])
		if size > len(rest)-24 || rest[4] != 81 && size != 0 {
			return no
		}
		rest = rest[24+size:]
	}
	return final
}

// tesStream recognises The Elder Scrolls Online: a length that is the segment's, and a second one inside.
func tesStream(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 20 {
		if b[0] != 0 {
			return no
		}
		return more
	}
	if be32(b)+4 == len(b) && be32(b[8:])+12 == len(b) && be16(b[4:]) == 1 {
		return final
	}
	return no
}

// gaijinDatagram recognises the statistics of Gaijin's updater: a name, then its environment and circuit.
func gaijinDatagram(_ *Flow, in *input) outcome {
	if b := in.data; len(b) > 40 && printable(b[:40]) && anyOf(b[:min(len(b), 80)], ",env=") && anyOf(b, "circuit=") {
		return final
	}
	return no
}
