package app

import "testing"

var routingSamples = []sample{
	{label: "bgp", port: 179, says: []string{">\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff" + u16(29) + "\x01\x04"}},
	{label: "ldp", port: 646, udp: true, says: []string{">" + u16(1) + u16(30) + u32(0x0a000001) + u16(0) + u16(0x100) + u16(20) + u32(1) + x(16)}},
	{label: "hsrp", port: 1985, udp: true, says: []string{">\x00\x00\x10\x03\x0a\x64\x01\x00cisco\x00\x00\x00" + u32(0x0a000001)}},
	{label: "bfd", port: 3784, udp: true, says: []string{">\x20\xc8\x03\x18" + u32(1) + u32(0) + z(12)}},
	{label: "lisp", port: 4342, udp: true, says: []string{">\x10\x00\x00\x01" + x(20)}},
	{label: "capwap", port: 5246, udp: true, says: []string{">\x00\x10\x02\x00" + z(4) + x(20)}},
	{label: "gtp", port: 2152, udp: true, says: []string{">\x30\xff" + u16(1400) + u32(7) + "\x45\x00" + u16(1400) + x(40)}}, // a fragment
	{label: "gtp", port: 2152, udp: true, says: []string{">\x30\xff" + u16(20) + u32(7) + x(20)}},
	{label: "pfcp", port: 8805, udp: true, says: []string{">\x20\x05" + u16(12) + x(12)}},
	{label: "netflow", port: 2055, udp: true, says: []string{">" + u16(5) + u16(1) + u32(1000) + u32(1700000000) + z(12) + x(48)}},
	{label: "netflow", port: 4739, udp: true, says: []string{">" + u16(10) + u16(24) + u32(1700000000) + z(8) + u16(2) + u16(8) + z(4)}},
	{label: "sflow", port: 6343, udp: true, says: []string{">" + u32(5) + u32(1) + u32(0x0a000001) + u32(0) + u32(1) + u32(9) + u32(1) + x(20)}},
	{label: "ptpv2", port: 319, udp: true, says: []string{">\x00\x02" + u16(44) + z(40)}},
	{label: "dlep", port: 854, udp: true, says: []string{">DLEP\x00\x01\x00\x00"}},
	{label: "dlep", port: 854, says: []string{">" + u16(1) + in16(u16(5)+in16(u32(60000))+u16(6)+in16(""))}, whole: true},
	{label: "openflow", port: 6653, says: []string{">\x04\x00" + u16(8) + u32(1), "<\x04\x00" + u16(8) + u32(2)}},
	{label: "roughtime", port: 2002, udp: true, says: []string{">ROUGHTIM" + x(20)}},
	{label: "cpha", port: 8116, udp: true, says: []string{">\x1a\x90\x01\x00" + x(20)}},
	{label: "merakicloud", port: 7351, udp: true, says: []string{">\xfe\xf7\x28\x91" + x(20)}},
	{label: "ubntac2", port: 10001, udp: true, says: []string{">\x01\x00" + in16("\x01"+in16("abcdef"))}},
}

func FuzzRouting(f *testing.F) { fuzzSamples(f, routingSamples) }
