package app

import "bytes"

// gameProtocols are games and their engines.
var gameProtocols = []protocol{
	{label: "raknet", datagram: raknetDatagram},
	{label: "steam", lead: "ff", datagram: starts("\xff\xff\xff\xff\x21\x4c\x5f\xa0"), stream: steamStream}, // Steam's in-home discovery
	{label: "steamdatagramrelay", datagram: steamRelayDatagram},
	{label: "source_engine", lead: "ff", datagram: sourceDatagram, rank: shaped},
	{label: "worldofwarcraft", stream: wowStream},
	{label: "amongus", lead: "08", datagram: amongDatagram, rank: loose},
	{label: "cod_mobile", datagram: pingDatagram, rank: guess},
	{label: "yojimbo", lead: "00", datagram: starts("\x00NETCODE 1.")},
	{label: "kcp", datagram: kcpDatagram, rank: loose},
	{label: "tes_online", stream: tesStream, rank: loose},
	{label: "gaijinentertainment", lead: "09-0d 20-7e", datagram: gaijinDatagram},
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

// wowStream recognises World of Warcraft's greeting in both directions.
func wowStream(_ *Flow, in *input) outcome {
	b := in.data
	const greeting = "WORLD OF WARCRAFT CONNECTION"
	if b[0] == 'W' {
		return starts(greeting)(nil, in)
	}
	if len(b) < 3 {
		return more
	}
	if o := begins(b[2:], greeting); o != label {
		return o
	}
	return final
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
