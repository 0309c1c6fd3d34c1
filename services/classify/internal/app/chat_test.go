package app

import "testing"

const zoomSession = "\x00\x01\x7d\x46\x4d\x35\xff\xfd\xa2\x34\x49\x5d\x0d\x6d\x3b\x51\xe8\x96"

// lineMessage is one of a call, with its number.
func lineMessage(n int) string { return u16(0xD000|124) + u16(n) + "\x06\x02\xaa\xbb" + x(120) }

// imoFrame puts a message behind its length.
func imoFrame(s string) string {
	return string([]byte{0x80 | byte(len(s)>>7), byte(len(s) & 0x7F)}) + s
}

var chatSamples = []sample{
	{label: "whatsapp", port: 443, says: []string{">WA\x06\x03"}},
	{label: "telegram", port: 443, says: []string{">\xee\xee\xee\xee" + x(40)}},
	{label: "telegram", port: 1400, udp: true, says: []string{">" + x(16) + "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"}},
	{label: "zoom", port: 8801, udp: true, says: []string{">\x01" + zoomSession + x(60), "<\x02" + zoomSession + x(10)}},
	{label: "discord", port: 50004, udp: true, says: []string{">" + u16(1) + u16(70) + u32(77) + z(66)}},
	{label: "linecall", port: 29070, udp: true, says: []string{">" + lineMessage(7), ">" + lineMessage(8)}},
	{label: "teamspeak", port: 9987, udp: true, says: []string{">TS3INIT1\x00\x65" + x(20)}},
	{label: "linecall", port: 29070, udp: true, says: []string{">" + lineMessage(7), "<" + lineMessage(900)}},
	{label: "imo", port: 36535, udp: true, says: []string{">" + imoFrame("\x0d"+x(320)), "<" + imoFrame("\x0d"+x(200)), "<" + imoFrame("\x1a"+x(150))}},
	{label: "imo", port: 57604, udp: true, says: []string{">\x09\x02abcd" + z(4), "<\x09\x03abcd" + z(4)}},
	{label: "teamspeak", port: 2010, udp: true, says: []string{">\x01\x80\x84\x01", "<\x01\x80\x84\x01abcd"}},
	{label: "mumble", port: 64738, udp: true, says: []string{">" + u32(0) + "abcdefgh", "<" + u32(0x10204) + "abcdefgh" + u32(1) + u32(2) + u32(3)}},
	{label: "sd_rtn", port: 8130, udp: true, says: []string{">\x00\x5a\x38\x4c\x00\x00\x21" + z(5) + "\x04SNI\x00" + l16(16) + "edge.example.org" + x(20)}},
	{label: "dingtalk", port: 443, says: []string{">\x10\x64\x87\x80\x01\x00" + x(8)}},
	{label: "oicq", port: 8000, udp: true, says: []string{">\x02\x37\x13\x00\x91" + x(20) + "\x03"}},
}

// TestSilenceIsNoRelay: G.711's silence has the relay's bytes.
func TestSilenceIsNoRelay(t *testing.T) {
	quiet := "\x80\x80" + u16(1) + u32(160) + u32(77) + "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"
	same(t, "silence", play(NewEngine(), key(17, 40000, 5000), part{0, 0, []byte(quiet)}), unknown)
}

func FuzzChat(f *testing.F) { fuzzSamples(f, chatSamples) }
