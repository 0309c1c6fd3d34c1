package app

import "testing"

// checked adds IEEE's check sum of C37.118 and S-Bus.
func checked(s string, crc uint16) string {
	for _, c := range []byte(s) {
		crc ^= uint16(c) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return s + u16(int(crc))
}

func dnp3Frame() string {
	head := "\x05\x64\x05\xc9\x01\x00\x02\x00"
	return head + l16(int(dnp3Sum([]byte(head))))
}

const isoConnect = "\x03\x00\x00\x16\x11\xe0\x00\x00\x00\x01\x00\xc0\x01\x0a\xc1\x02\x01\x00\xc2\x02\x01\x02"

var industrialSamples = []sample{
	{label: "modbus", port: 502, says: []string{">" + u16(1) + u16(0) + in16("\x01\x03\x00\x00\x00\x0a")}},
	{label: "dnp3", port: 20000, says: []string{">" + dnp3Frame()}},
	{label: "opc_ua", port: 4840, says: []string{">HELF" + l32(56) + x(48)}},
	{label: "s7comm", port: 102, says: []string{">" + isoConnect, "<\x03\x00\x00\x16\x11\xd0\x00\x01\x00\x02\x00\xc0\x01\x0a\xc1\x02\x01\x00\xc2\x02\x01\x02",
		">\x03\x00\x00\x19\x02\xf0\x80\x32\x01" + x(16)}},
	{label: "s7commplus", port: 102, says: []string{">\x03\x00\x00\x19\x02\xf0\x80\x72\x01" + x(16)}},
	{label: "iso9506_1_mms", port: 102, says: []string{">\x03\x00\x00\x20\x02\xf0\x80\x0d\x16" + x(23)}},
	{label: "iec60870", port: 2500, says: []string{">\x68\x04\x07\x00\x00\x00", "<\x68\x04\x0b\x00\x00\x00"}},
	{label: "iec60870", port: 2404, says: []string{">\x68\x04\x01\x00\x02\x00"}},
	{label: "ethernetip", port: 44818, says: []string{">" + l16(0x65) + l16(4) + z(20) + l16(1) + l16(0)}},
	{label: "cip", port: 2222, udp: true, says: []string{">" + l16(2) + l16(0x8002) + l16(8) + x(8) + l16(0xB1) + l16(4) + x(4)}},
	{label: "fins", port: 9600, udp: true, says: []string{">\x80\x00\x02\x00\x01\x00\x00\x02\x00\x01\x01\x01\x82"}},
	{label: "hart_ip", port: 5094, udp: true, says: []string{">\x01\x00\x00\x00\x00\x01" + u16(13) + "\x01" + u32(60000)}},
	{label: "ethernetglobaldata", port: 18246, udp: true, says: []string{">\x0d\x01\x01\x00\x0a\x00\x00\x01" + z(24) + x(20)}},
	{label: "ieee_c37118", port: 4712, says: []string{">" + checked("\xaa\x41"+u16(18)+u16(1)+u32(1700000000)+z(4)+u16(2), 0xFFFF)}},
	{label: "beckhoffads", port: 48898, says: []string{">" + z(2) + l32(32) + x(16) + l16(4) + l16(4) + l32(0) + z(8)}, whole: true},
	{label: "ether_s_bus", port: 5050, udp: true, says: []string{">" + checked(u32(13)+"\x00\x00\x00\x01\x00\x0a\x20", 0)}},
	{label: "rtps", port: 7400, udp: true, says: []string{">RTPS\x02\x03\x01\x0f" + x(12)}},
}

// TestCheckSums: one bit makes it another protocol's.
func TestCheckSums(t *testing.T) {
	broken := []byte(dnp3Frame())
	broken[4] ^= 1
	same(t, "dnp3", play(NewEngine(), key(6, 40000, 20000), part{0, 0, broken}), unknown)
}

func FuzzIndustrial(f *testing.F) { fuzzSamples(f, industrialSamples) }
