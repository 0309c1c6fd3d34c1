package app

import (
	"strings"
	"testing"
)

// tplinkText is {"system":{"get_sysinfo":{}}} as the devices send it.
func tplinkText() string {
	out, key := []byte(nil), byte(171)
	for _, c := range []byte(`{"system":{"get_sysinfo":{}}}`) {
		key ^= c
		out = append(out, key)
	}
	return string(out)
}

var homeSamples = []sample{
	{label: "dropbox", port: 17500, udp: true, says: []string{`>{"host_int": 1, "version": [2, 0], "displayname": ""}`}},
	{label: "spotify", port: 57621, udp: true, says: []string{">SpotUdp0" + x(20)}},
	{label: "spotify", port: 4070, says: []string{">\x00\x04" + u32(60) + "\x52" + x(53)}},
	{label: "avast", port: 80, says: []string{">NOSA" + x(12)}},
	{label: "hp_virtgrp", port: 5223, says: []string{">\x16" + u16(40) + x(37), "<\x17" + u16(30) + x(27)}, whole: true},
	{label: "eaq", port: 6000, udp: true, says: []string{
		">" + u32(1) + u16(0) + u16(100) + u32(9) + u16(0) + u16(0x9000), ">" + u32(2) + u16(0) + u16(102) + u32(8) + u16(0) + u16(0x9000)}},
	{label: "sonos", port: 7080, udp: true, says: []string{
		">" + u32(5000) + z(4) + "\xfc", ">" + u32(5001) + z(4) + x(1024), ">" + u32(5002) + z(2) + "\xff\xff" + x(1024)}},
	{label: "xiaomi", port: 54321, udp: true, says: []string{">\x21\x31\x00\x20" + strings.Repeat("\xff", 28)}},
	{label: "iqiyi", port: 16600, udp: true, says: []string{
		">\x1c\x40" + l16(40) + "abcidentityX" + x(24), "<\x9c\x60" + l16(44) + "xyzidentityX" + x(28)}},
	{label: "coap", port: 5683, udp: true, says: []string{">\x44\x01\x12\x34abcd\xb4test"}},
	{label: "tuyalp", port: 6667, udp: true, says: []string{">" + u32(0x55AA) + u32(0) + u32(19) + u32(16) + x(12) + u32(0xAA55)}},
	{label: "tplink_shp", port: 9999, udp: true, says: []string{">" + tplinkText()}},
	{label: "tplink_shp", port: 9999, says: []string{">" + in32(tplinkText())}},
}

// TestCoAPNeedsItsPort: its header is too small to be told by.
func TestCoAPNeedsItsPort(t *testing.T) {
	same(t, "other port", play(NewEngine(), key(17, 40000, 17500), part{0, 0, []byte("\x44\x01\x12\x34abcd\xb4test")}), unknown)
}

func FuzzHome(f *testing.F) { fuzzSamples(f, homeSamples) }
