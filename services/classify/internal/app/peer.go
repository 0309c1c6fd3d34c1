package app

import "bytes"

// peerProtocols are file sharing, ledgers and synchronisation between peers.
var peerProtocols = []protocol{
	{label: "bittorrent", lead: "00-01 11 21 31 41-42 64", stream: bittorrentStream, datagram: bittorrentDatagram, rank: shaped},
	{label: "bitcoin", stream: starts("\xf9\xbe\xb4\xd9", "\x0b\x11\x09\x07", "\xfa\xbf\xb5\xda")}, // Bitcoin developer reference, network magics
	{label: "ethereum", datagram: ethereumDatagram, stream: rlpxStream, rank: loose},
	{label: "monero", stream: starts("\x01\x21\x01\x01\x01\x01\x01\x01")}, // Levin protocol, bucket head signature
	{label: "gnutella", stream: starts("GNUTELLA CONNECT/", "GNUTELLA/0.", "GET /uri-res/")},
	{label: "edonkey", lead: "e3-e4", stream: edonkeyStream, datagram: edonkeyDatagram, rank: shaped},
	{label: "syncthing", lead: "2e", datagram: starts("\x2e\xa7\xd9\x0b"), stream: starts("\x2e\xa7\xd9\x0b")}, // Local Discovery Protocol v4
	{label: "nano", lead: "52", stream: starts("RA\x13\x12", "RC\x13\x12", "RA\x12\x12"), datagram: starts("RA\x13\x12", "RC\x13\x12")},
	{label: "zug", datagram: zugDatagram, rank: shaped},
}

// bittorrentStream recognises the handshake (BEP 3), and peers' messages that carry extensions (BEP 10).
func bittorrentStream(_ *Flow, in *input) outcome {
	b := in.data
	if o := begins(b, "\x13BitTorrent protocol"); o != no {
		if o == label {
			return final
		}
		return o
	}
	return no
}

// bittorrentDatagram recognises the distributed table (BEP 5) by its dictionary, trackers (BEP 15) by their magic,
// and uTP (BEP 29) by a header that fits and, as it is small, by the other side's answer.
func bittorrentDatagram(f *Flow, in *input) outcome {
	b := in.data
	if len(b) < 16 {
		return no
	}
	if b[0] == 'd' && (at(b, 0, "d1:ad2:id20:") || at(b, 0, "d1:rd2:id20:") || at(b, 0, "d1:eli") || at(b, 0, "d1:q") && anyOf(b[:min(len(b), 40)], "1:rd2:id20:", "1:ad2:id20:") || at(b, 0, "d2:ip") && anyOf(b, "1:rd2:id20:") || anyOf(b[:min(len(b), 16)], "d1:ad", "d1:rd")) {
		return final
	}
	if len(b) == 16 && be32(b) == 0x417 && be32(b[4:]) == 0x27101980 {
		return final
	}
	if len(b) > 30 && prefixed(b, "BT-SEARCH * HTTP/1.1") {
		return final
	}
	if len(b) >= 20 && b[0]&15 == 1 && b[0]>>4 <= 4 && b[1] <= 4 {
		other := f.other(in)
		if b[0]>>4 == 4 && len(b) == 20 && zero(b[8:12]) && be16(b[16:]) == 1 && f.count(in) == 1 {
			return more
		}
		if len(other) >= 20 && other[0]&15 == 1 && other[0]>>4 <= 4 && other[1] <= 4 {
			d := be16(other[2:]) - be16(b[2:])
			if d >= -1 && d <= 1 {
				return final
			}
		}
		if other := f.dirs[in.dir].first.bytes(); len(other) >= 20 && b[0]>>4 != 4 && other[0]>>4 == 4 && be16(b[2:])-be16(other[2:]) == 1 {
			return final
		}
		if before := f.dirs[in.dir].previous.bytes(); b[0]>>4 == 4 && len(before) >= 20 && at(before, 0, string(b[:4])) && zero(b[8:12]) && at(before, 16, string(b[16:20])) {
			return final
		}
	}
	return no
}

// ethereumDatagram recognises node discovery (devp2p discv4, Wire Protocol): a hash, a signature whose recovery
// id is 0 or 1, a packet type of 1 to 6 and a list.
func ethereumDatagram(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 32+65+1+2 || len(b) > 1280 || b[96] > 1 || b[97] < 1 || b[97] > 6 || b[98] < 0xC0 {
		return no
	}
	size, head := int(b[98])-0xC0, 1
	if b[98] > 0xF7 {
		head += int(b[98]) - 0xF7
		if head > 3 || len(b) < 98+head {
			return no
		}
		size = 0
		for _, c := range b[99 : 98+head] {
			size = size<<8 | int(c)
		}
	}
	if 98+head+size > len(b) || size < 4 {
		return no
	}
	return final
}

// rlpxStream recognises the handshake of nodes (devp2p RLPx, Initial Handshake): a message encrypted to a key on a
// curve, whose first byte says that the point is uncompressed; behind its length since EIP-8, of a fixed length
// before. Both sides send one, and either its length or the other side's has to fit exactly.
func rlpxStream(f *Flow, in *input) outcome {
	b := in.data
	if len(b) < 3 {
		if b[0] > 4 {
			return no
		}
		return more
	}
	if !rlpxHandshake(b, len(b)) {
		return no
	}
	if be16(b)+2 == len(b) || rlpxHandshake(f.other(in), f.dirs[in.dir^1].first.size()) {
		return final
	}
	return more
}

// rlpxHandshake looks at the beginning b of a first segment of size bytes.
func rlpxHandshake(b []byte, size int) bool {
	const overhead = 65 + 16 + 32 // point, initialisation vector, authentication code
	if len(b) < 3 {
		return false
	}
	if b[0] == 4 && (size == 307 || size == 210) { // auth and ack before EIP-8
		return true
	}
	n := be16(b)
	return b[2] == 4 && n >= overhead+97 && n < 1024 && n+2 <= size && size <= n+2+33
}

// edonkeyStream recognises eDonkey: the protocol's byte, a length, a hello.
func edonkeyStream(_ *Flow, in *input) outcome {
	b := in.data
	if b[0] != 0xE3 && b[0] != 0xC5 && b[0] != 0xD4 {
		return no
	}
	if len(b) < 6 {
		return more
	}
	size := le32(b[1:])
	if size < 2 || size > 1<<16 || b[5] != 0x01 && b[5] != 0x4C && b[5] != 0x10 && b[5] != 0x16 && b[5] != 0x14 {
		return no
	}
	if size+5 > len(b) && len(b) < 100 {
		return more
	}
	if size+5 == len(b) || size+5 < len(b) && (b[size+5] == 0xE3 || b[size+5] == 0xC5 || b[size+5] == 0xD4) {
		return final
	}
	return no
}

// edonkeyDatagram recognises the servers' questions and Kademlia's first messages by their sizes.
func edonkeyDatagram(_ *Flow, in *input) outcome {
	b := in.data
	switch {
	case len(b) == 6 && b[0] == 0xE3 && b[1] == 0x96, len(b) == 35 && b[0] == 0xE4 && b[1] == 0x20,
		len(b) == 35 && b[0] == 0xE4 && b[1] == 0x21, len(b) == 27 && b[0] == 0xE4 && (b[1] == 0x00 || b[1] == 0x10):
		return final
	}
	return no
}

// zugDatagram recognises Zug's consensus: a zero, the name in capitals and a first octet.
func zugDatagram(_ *Flow, in *input) outcome {
	if len(in.data) > 20 && bytes.Equal(in.data[1:5], []byte("zUG\x10")) {
		return final
	}
	return no
}
