package app

import "testing"

var buildingSamples = []sample{
	{label: "bacnet", port: 47808, udp: true, says: []string{">\x81\x0b" + u16(8) + "\x01\x00\x10\x08"}},
	{label: "knxnet_ip", port: 3671, udp: true, says: []string{">\x06\x10" + u16(0x201) + u16(14) + x(8)}},
	{label: "iec62056", port: 4059, says: []string{">" + u16(1) + u16(16) + u16(1) + in16("\x60\x1d"+x(29))}, whole: true},
	{label: "iec62056", port: 4059, says: []string{">\x7e\xa0\x07\x03\x21\x93\x0f\x01\x7e"}, whole: true},
	{label: "ansi_c1222", port: 1153, says: []string{">\x60\x12\xa2\x05\x80\x03abc\xbe\x09" + x(9)}},
	{label: "trdp", port: 17224, udp: true, says: []string{">" + u32(9) + "\x01\x00Pd" + u32(1000) + z(8) + u32(4) + z(12) + "crc.data"}},
	{label: "someip", port: 30490, udp: true, says: []string{">" + u16(0xffff) + u16(0x8100) + u32(16) + u32(1) + "\x01\x01\x02\x00" + x(8)}},
	{label: "controller_area_network", port: 10000, udp: true, says: []string{">ISO11898" + x(8)}},
	{label: "hislip", port: 4880, says: []string{">HS\x00\x00" + u32(0x01005858) + z(4) + u32(7) + "hislip0"}},
	{label: "atg", port: 10001, says: []string{">\x01I20100\n"}},
	{label: "cnp_ip", port: 1628, udp: true, says: []string{">" + in16("")[:0] + u16(24) + "\x01\x00\x01" + x(19)}},
}

func FuzzBuilding(f *testing.F) { fuzzSamples(f, buildingSamples) }
