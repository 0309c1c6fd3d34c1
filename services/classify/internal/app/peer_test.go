package app

import "testing"

var peerSamples = []sample{
	{label: "bittorrent", port: 6881, says: []string{">\x13BitTorrent protocol" + z(8) + x(40)}},
	{label: "bittorrent", port: 6881, udp: true, says: []string{">d1:ad2:id20:" + x(20) + "e1:q4:ping1:t2:aa1:y1:qe"}},
	{label: "bittorrent", port: 6881, udp: true, says: []string{">d1:q9:find_node1:rd2:id20:" + x(20) + "e1:t2:aa1:y1:re"}},
	{label: "bittorrent", port: 6969, udp: true, says: []string{">" + u32(0x417) + u32(0x27101980) + u32(0) + u32(77)}},
	{label: "bittorrent", port: 6881, udp: true, says: []string{ // uTP: SYN and its answer
		">\x41\x00\x12\x34" + u32(99) + u32(0) + u32(1<<20) + u16(1) + u16(0),
		"<\x21\x00\x12\x34" + u32(120) + u32(21) + u32(1<<20) + u16(500) + u16(1)}},
	{label: "bitcoin", port: 8333, says: []string{">\xf9\xbe\xb4\xd9version" + z(5)}},
	{label: "ethereum", port: 30303, udp: true, says: []string{">" + x(32) + x(64) + "\x01\x01\xc8" + x(8)}},
	{label: "ethereum", port: 30303, says: []string{">" + in16("\x04"+x(399))}, whole: true},
	{label: "monero", port: 18080, says: []string{">\x01\x21\x01\x01\x01\x01\x01\x01" + z(8)}},
	{label: "gnutella", port: 6346, says: []string{">GNUTELLA CONNECT/0.6\r\n"}},
	{label: "gnutella", port: 6346, says: []string{">\x16\x03\x01" + in16("\x01\x00"+in16("\x03\x01"+x(32)+"\x00"+in16("\x00\x34")+"\x01\x00"))}},
	{label: "edonkey", port: 4662, says: []string{">\xe3" + l32(30) + "\x01" + x(29)}, whole: true},
	{label: "syncthing", port: 21027, udp: true, says: []string{">\x2e\xa7\xd9\x0b\x0a\x20" + x(32)}},
	{label: "nano", port: 7075, says: []string{">RC\x13\x12\x12\x02"}},
	{label: "zug", port: 2000, udp: true, says: []string{">\x00zUG\x10" + x(20)}},
}

func FuzzPeer(f *testing.F) { fuzzSamples(f, peerSamples) }
