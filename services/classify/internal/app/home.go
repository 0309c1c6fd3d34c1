package app

// homeProtocols are devices of a home, players and the services of a phone.
var homeProtocols = []protocol{
	{label: "dropbox", lead: "7b", datagram: dropboxDatagram},
	{label: "spotify", lead: "53", datagram: starts("SpotUdp0"), stream: spotifyStream},
	{label: "avast", stream: starts("NOSA")},
	{label: "hp_virtgrp", stream: pushStream, rank: loose},
	{label: "eaq", lead: "00", datagram: eaqDatagram, rank: loose},
	{label: "xiaomi", lead: "21", datagram: xiaomiDatagram},
	{label: "sonos", datagram: sonosDatagram, rank: loose},
	{label: "iqiyi", datagram: iqiyiDatagram, rank: shaped},
	{label: "coap", lead: "40-48 50-58 60-68 70-78", datagram: coapDatagram, rank: loose, byPort: true},
	{label: "tuyalp", lead: "00", datagram: tuyaDatagram},
	{label: "tplink_shp", lead: "d0", datagram: tplinkDatagram, stream: tplinkStream, rank: loose},
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
	if len(other) >= 4 && b[0]^other[0] == 1 && other[0]>>1 == b[0]>>1 && be16(other[1:]) == f.dirs[in.dir^1].first.size() {
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

// xiaomiDatagram recognises the Mi Home protocol (OpenMiHome, mihome-binary-protocol): a magic number, the datagram's
// length, and four bytes of zeros, in a greeting of 0xFF.
func xiaomiDatagram(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) >= 32 && be16(b) == 0x2131 && be16(b[2:]) == len(b) && (be32(b[4:]) == 0 || be32(b[4:]) == 0xFFFFFFFF && len(b) == 32) {
		return final
	}
	return no
}

// sonosDatagram recognises the sound that a player passes on to the others of its group: a counter, two zeros, a
// number of 16 bits, and 1,024 bytes a datagram, behind one or two short messages of the same count.
func sonosDatagram(f *Flow, in *input) outcome {
	b, before, first := in.data, &f.dirs[in.dir].previous, &f.dirs[in.dir].first
	if len(b) != 8+1024 || before.size() != len(b) || first.size() != 9 && first.size() != 12 && first.size() != len(b) {
		return no
	}
	count := be32(b)
	if be16(b[4:]) != 0 || be16(before.data[4:]) != 0 || count-be32(before.data[:]) != 1 || count-be32(first.data[:]) > 64 || count < 64 {
		return no
	}
	return final
}

// iqiyiDatagram recognises iQIYI's peers: a type whose highest bit marks the answer, a length in the other byte order,
// and eight bytes of identity that come back.
func iqiyiDatagram(f *Flow, in *input) outcome {
	b, other := in.data, &f.dirs[in.dir^1].first
	if len(b) < 24 || other.size() < 24 || le16(b[2:]) != len(b) || le16(other.data[2:]) != other.size() {
		return no
	}
	if b[0]^other.data[0] == 0x80 && at(b, 7, string(other.data[7:15])) && !zero(b[7:15]) {
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
