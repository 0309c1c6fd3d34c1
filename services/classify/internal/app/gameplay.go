package app

import "bytes"

// playProtocols are the sessions of games whose owners publish no description. What is checked is a constant beside
// fields that have to fit: a length, a counter that goes up, an identifier that the other side repeats.
var playProtocols = []protocol{
	{label: "crynetwork", lead: "87", datagram: cryDatagram},
	{label: "halflife2", lead: "ff", datagram: challengeDatagram},
	{label: "heroes_of_the_storm", datagram: stormDatagram, rank: loose},
	{label: "lolwildrift", lead: "01 10", datagram: riftDatagram, rank: shaped},
	{label: "genshinimpact", lead: "00", datagram: genshinDatagram},
	{label: "maplestory", stream: mapleStream, rank: loose},
	{label: "nintendo", lead: "32", datagram: nintendoDatagram},
	{label: "neteasegames", datagram: neteaseDatagram, rank: guess},
	{label: "riotgames", datagram: riotDatagram, rank: shaped},
	{label: "starcraft", stream: starcraftStream},
	{label: "tencentgames", stream: tencentStream},
}

// cryDatagram recognises the set-up of a connection in CryENGINE's network: a request (0x3C) with small numbers
// between zeros, and the key that answers it (0x87) behind 32 zeros.
func cryDatagram(f *Flow, in *input) outcome {
	b := in.data
	if b[0] != 0x87 || len(b) < 64 || !zero(b[1:32]) {
		return no
	}
	if q := f.other(in); len(q) == 24 && q[0] == 0x3C && zero(q[5:16]) && le32(q[16:]) == 1 && le32(q[20:]) < 256 {
		return final
	}
	return no
}

// challengeDatagram recognises the older Source engine's connection: both sides speak outside of a connection (four
// bytes of 0xFF) and send a challenge whose text ends in zeros.
func challengeDatagram(f *Flow, in *input) outcome {
	b, other := in.data, f.other(in)
	if len(b) < 12 || be32(b) != 0xFFFFFFFF || !bytes.HasSuffix(b, []byte("000\x00")) {
		return no
	}
	if len(other) >= 12 && be32(other) == 0xFFFFFFFF {
		return final
	}
	return no
}

// stormDatagram recognises the battle servers' transport: four bytes that stay, ten of a sum, 0x40 and a bit, two
// counters that only go up, then what is encrypted.
func stormDatagram(f *Flow, in *input) outcome {
	b, before := in.data, f.dirs[in.dir].previous.bytes()
	if len(b) < 20 || len(before) < 20 || b[14] != 0x40 || before[14] != 0x40 || b[15]&^0x10 != 0 || before[15]&^0x10 != 0 {
		return no
	}
	if !at(b, 0, string(before[:4])) || be16(b[16:]) == 0 || be16(b[18:]) == 0 {
		return no
	}
	sent := uint16(be16(b[16:]) - be16(before[16:])) //nolint:gosec // wraps as the counter does
	got := uint16(be16(b[18:]) - be16(before[18:]))  //nolint:gosec // wraps as the counter does
	if sent > 1<<10 || got > 1<<10 || sent == 0 && got == 0 && b[15] == before[15] {
		return no
	}
	return final
}

// riftDatagram recognises League of Legends: Wild Rift: the hello (type 4) and its answer (type 16), each of a fixed
// size, and a measurement with a text behind its length.
func riftDatagram(f *Flow, in *input) outcome {
	b, other := in.data, f.other(in)
	switch {
	case len(b) == 359 && le32(b) == 16 && len(other) == 24 && le32(other) == 4 && f.dirs[in.dir^1].first.size() == 69:
		return final
	case len(b) == 22 && at(b, 0, "\x01\x02\xc8\x41\x00\x00\x00\x01\x00\x01") && be16(b[14:]) == 4 && be16(b[16:]) == 4 && printable(b[18:]):
		return final
	}
	return no
}

// neteaseDatagram recognises three exchanges of NetEase's games: the session, whose two identifiers change places
// in the answer; the clock, of twelve bytes with its step in three places and a token that comes back; the probe,
// whose six bytes of head come back in an answer as long as the question.
func neteaseDatagram(f *Flow, in *input) outcome {
	b, other := in.data, f.other(in)
	size := f.dirs[in.dir^1].first.size()
	switch {
	case len(other) < 12:
	case len(b) >= 18 && at(b, 0, "\x07\x08\x08\x0c") && at(other, 0, "\x07\x08\x08\x0c") && len(other) >= 16 && at(b, 8, string(other[12:16])) && !zero(b[8:16]):
		return final
	case len(b) == 12 && size == 12 && b[0] == 1 && b[3] == 1 && b[11] == 1 && other[0] == 1 && other[3] == 1 && other[11] == 1 && at(b, 4, string(other[4:8])):
		return final
	case len(b) == 30 && size == 30 && be16(b[4:]) == 0xFF00 && at(b, 0, string(other[:6])) && !at(b, 6, string(other[6:12])) && printable(other[6:]):
		return final
	}
	return no
}

// riotDatagram recognises Riot's measurement of the way to a game server, question and answer of 36 bytes of which the
// last eight are a mark; and the hello of its games, whose answer begins with the identifier that the client chose.
func riotDatagram(f *Flow, in *input) outcome {
	b, other := in.data, f.other(in)
	if len(b) == 36 && at(b, 28, "\xaa\xaa\xaa\xaa\xbb\xbb\xbb\xbb") {
		return final
	}
	if len(b) == 33 && f.dirs[in.dir^1].first.size() == 53 && le32(b[4:]) == 1 && le32(other[8:]) == 1 && at(b, 0, string(other[4:8])) && zero(other[12:24]) {
		return final
	}
	return no
}

// starcraftStream recognises the log-in of StarCraft II: a message of ten bytes that says its length.
func starcraftStream(_ *Flow, in *input) outcome {
	return starts("\x4a\x00\x00\x0a\x66\x02\x0a")(nil, in)
}

// tencentStream recognises Tencent's gateways for games by three of their formats: a magic with a version; a magic, a
// command and the length of the rest; and a message of two numbered parts whose lengths add up to its own.
func tencentStream(_ *Flow, in *input) outcome {
	b := in.data
	switch b[0] {
	case 0x33:
		return starts("\x33\x66\x00\x0b", "\x33\x66\x00\x0a", "\x33\x66\x00\x09")(nil, in)
	case 0x42:
		if o := begins(b, "\x42\x15\xf7\x87"); o != label {
			return o
		}
		if len(b) < 10 {
			return more
		}
		if size := be32(b[6:]); size < 1<<20 {
			return final
		}
		return no
	case 'C':
		if o := begins(b, "Cf\xaa"); o != label {
			return o
		}
		b = b[2:]
	case 0xAA:
	default:
		return no
	}
	if len(b) < 10 {
		if len(b) >= 6 && b[5] != 0x15 {
			return no
		}
		return more
	}
	size, head := be32(b[1:]), be32(b[6:])
	if b[5] != 0x15 || size > 1<<16 || head > 128 || size < 15+head {
		return no
	}
	if len(b) < 15+head {
		return more
	}
	if b[10+head] == 0x25 && be32(b[11+head:])+15+head == size {
		return final
	}
	return no
}

// nintendoDatagram recognises Pia, which consoles play over (NintendoClients wiki, Pia Protocol, Packet Format): a magic
// number and a version.
func nintendoDatagram(_ *Flow, in *input) outcome {
	if b := in.data; len(b) >= 12 && at(b, 0, "\x32\xab\x98\x64") && b[4]&0x7F > 0 && b[4]&0x7F < 64 {
		return final
	}
	return no
}

// genshinDatagram recognises how miHoYo's games open and close a session: twenty bytes whose first and last number go
// together.
func genshinDatagram(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) != 20 {
		return no
	}
	switch first, last := be32(b), be32(b[16:]); {
	case first == 0xFF && last == 0xFFFFFFFF && be32(b[12:]) == 1234567890,
		first == 0x145 && last == 0x14514545, first == 0x194 && last == 0x19419494:
		return final
	}
	return no
}

// mapleStream recognises MapleStory's greeting: the length of the rest, a version, a text of one or two digits behind
// its length, two vectors of four bytes, a region.
func mapleStream(f *Flow, in *input) outcome {
	b := in.data
	if b[0] < 13 || b[0] > 16 {
		return no
	}
	if len(b) < 15 {
		if len(b) >= 2 && b[1] != 0 || len(b) >= 6 && (b[4] < 1 || b[4] > 3 || b[5] != 0) {
			return no
		}
		return more
	}
	n := int(b[4])
	if len(b) < le16(b)+2 && le16(b) <= 16 {
		return more
	}
	if le16(b)+2 != len(b) || le16(b[2:]) == 0 || le16(b[2:]) > 400 || n < 1 || n > 3 || b[5] != 0 || 6+n+8+1 > len(b) {
		return no
	}
	for _, c := range b[6 : 6+n] {
		if !digit(c) {
			return no
		}
	}
	if region := b[6+n+8]; region >= 1 && region <= 9 && in.dir == 1 && len(f.other(in)) == 0 {
		return final
	}
	return no
}
