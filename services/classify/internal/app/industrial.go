package app

// industrialProtocols run plants, buildings, vehicles and power networks.
var industrialProtocols = []protocol{
	{label: "modbus", stream: modbusStream, rank: shaped},
	{label: "dnp3", lead: "05", stream: dnp3Message, datagram: dnp3Message},
	{label: "opc_ua", stream: opcStream},
	{label: "iso9506_1_mms", stream: isoStream, also: []string{"s7comm", "s7commplus"}, rank: shaped},
	{label: "iec60870", stream: iec104Stream, rank: shaped},
	{label: "ethernetip", lead: "04 63-66 6f-70 72-73", stream: ethernetIPMessage, datagram: ethernetIPMessage, rank: shaped},
	{label: "cip", lead: "02", datagram: cipDatagram, rank: shaped},
	{label: "fins", lead: "80-81 c0-c1", datagram: finsDatagram, stream: starts("FINS\x00\x00\x00"), rank: shaped},
	{label: "hart_ip", lead: "01-02", datagram: hartMessage, stream: hartMessage, rank: shaped},
	{label: "ethernetglobaldata", lead: "0d", datagram: egdDatagram, rank: shaped},
	{label: "ieee_c37118", lead: "aa", stream: synchrophasor, datagram: synchrophasor, rank: shaped},
	{label: "beckhoffads", stream: adsStream, rank: shaped},
	{label: "ether_s_bus", lead: "00", datagram: etherSBusDatagram, rank: loose},
	{label: "rtps", lead: "52", datagram: starts("RTPS\x01", "RTPS\x02"), stream: starts("RTPS\x01", "RTPS\x02")}, // OMG DDSI-RTPS 2.5, 9.4.4
}

// modbusStream recognises Modbus/TCP (Messaging on TCP/IP Implementation Guide, 3.1.3): protocol 0, a length
// that is the segment's, a function in use.
func modbusStream(f *Flow, in *input) outcome {
	b := in.data
	if len(b) < 8 {
		if len(b) >= 4 && be16(b[2:]) != 0 {
			return no
		}
		return more
	}
	size := be16(b[4:])
	if be16(b[2:]) != 0 || size < 2 || size > 256 {
		return no
	}
	switch function := b[7] & 0x7F; {
	case function >= 1 && function <= 24, function == 43, function == 90: // 90 is Schneider's UMAS
	default:
		return no
	}
	if len(b) < 6+size {
		return more
	}
	if len(b) == 6+size {
		if be16(b) == 0 && size > 200 && !f.hasPort(502) {
			return no
		}
		return final
	}
	// Several messages: the next has the shape too.
	if len(b) >= 6+size+6 && be16(b[6+size+2:]) == 0 && be16(b[6+size+4:]) <= 256 && be16(b[6+size+4:]) >= 2 {
		return final
	}
	return no
}

// dnp3Message recognises DNP3's link frame (IEEE 1815-2012 9.2.4) by its start, length and checksum.
func dnp3Message(_ *Flow, in *input) outcome {
	b := in.data
	if o := begins(b, "\x05\x64"); o != label {
		return o
	}
	if len(b) < 10 {
		return more
	}
	if b[2] < 5 || dnp3Sum(b[:8]) != uint16(le16(b[8:])) { //nolint:gosec // 16 bits
		return no
	}
	return final
}

func dnp3Sum(b []byte) uint16 {
	crc := uint16(0)
	for _, c := range b {
		crc ^= uint16(c)
		for range 8 {
			if crc&1 != 0 {
				crc = crc>>1 ^ 0xA6BC
			} else {
				crc >>= 1
			}
		}
	}
	return ^crc
}

// opcStream recognises OPC UA's connection protocol (part 6, 7.1.2): type, chunk, length.
func opcStream(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 8 {
		if b[0] != 'H' && b[0] != 'A' && b[0] != 'O' && b[0] != 'M' && b[0] != 'R' {
			return no
		}
		return more
	}
	switch string(b[:3]) {
	case "HEL", "ACK", "OPN", "MSG", "CLO", "RHE", "ERR":
	default:
		return no
	}
	if b[3] != 'F' && b[3] != 'C' && b[3] != 'A' || le32(b[4:]) < 12 || le32(b[4:]) > 1<<24 {
		return no
	}
	return final
}

// isoStream recognises what runs over ISO transport in TPKT (RFC 1006 6, X.224 13): a connection that names
// transport selectors, then Siemens S7 by its identifiers 0x32 and 0x72, or MMS in the session layer above.
func isoStream(f *Flow, in *input) outcome {
	b := in.data
	if o := begins(b, "\x03\x00"); o != label {
		return o
	}
	for {
		if len(b) < 8 {
			return more
		}
		size := be16(b[2:])
		if !at(b, 0, "\x03\x00") || size < 7 {
			return no
		}
		if b[5] == 0xF0 { // data
			break
		}
		if b[5] != 0xE0 && b[5] != 0xD0 || len(b) >= 11 && b[5] == 0xE0 && b[6]|b[7] != 0 {
			return no
		}
		if len(b) < min(size, 64) {
			return more
		}
		if rest := b[7:min(len(b), size)]; !anyOf(rest, "\xC1\x02", "\xC2\x02", "\xC0\x01") || anyOf(rest, "Cookie: ") {
			return no // RDP's has none of them
		}
		if len(b) <= size {
			return more
		}
		b = b[size:]
	}
	if b[4] != 2 {
		return no
	}
	if len(b) < 9 {
		return more
	}
	switch b[7] {
	case 0x32:
		return f.is("s7comm", Payload, final)
	case 0x72:
		return f.is("s7commplus", Payload, final)
	case 0x0D, 0x0E, 0x01: // session CONNECT, ACCEPT, data
		if b[7] != 1 || be16(b[7:]) == 0x0100 {
			return final
		}
	}
	return no
}

// iec104Stream recognises IEC 60870-5-104 (5.1): a start byte, a length, control octets whose bits fit, and a
// chain of such frames that fills the segment.
func iec104Stream(f *Flow, in *input) outcome {
	b := in.data
	if b[0] != 0x68 {
		return no
	}
	if len(b) < 6 {
		return more
	}
	frames, data := 0, false
	for len(b) > 0 {
		if b[0] != 0x68 {
			return no
		}
		if len(b) < 6 {
			break
		}
		size := int(b[1])
		if size < 4 || size > 253 {
			return no
		}
		switch {
		case b[2]&1 == 0: // information: numbers, then a type in use
			if b[4]&1 != 0 || size < 10 || len(b) >= 7 && (b[6] == 0 || b[6] > 127) {
				return no
			}
			data = data || len(b) >= 2+size
		case b[2]&3 == 1: // supervisory
			if size != 4 || b[2] != 1 || b[3] != 0 || b[4]&1 != 0 {
				return no
			}
		default: // unnumbered: exactly one function
			if size != 4 || b[3]|b[4]|b[5] != 0 {
				return no
			}
		}
		if len(b) < 2+size {
			if frames == 0 {
				return more
			}
			break
		}
		frames++
		b = b[2+size:]
	}
	if data || frames >= 2 || prefixed(f.other(in), "h") {
		return final
	}
	if f.hasPort(2404) {
		return f.is("iec60870", Port, final)
	}
	return more
}

// ethernetIPMessage recognises EtherNet/IP's encapsulation (CIP volume 2, 2-3): a command in use, its length, a
// status, options of zero.
func ethernetIPMessage(f *Flow, in *input) outcome {
	b := in.data
	if len(b) < 24 {
		if f.proto == 6 && (len(b) < 2 || le16(b) <= 0x75) {
			return more
		}
		return no
	}
	command, size := le16(b), le16(b[2:])
	switch command {
	case 4, 0x63, 0x64, 0x65, 0x66, 0x6F, 0x70, 0x72, 0x73:
	default:
		return no
	}
	if le32(b[8:]) > 0x69 || le32(b[20:]) != 0 || size+24 != len(b) && (f.proto != 6 || size > 4096) {
		return no
	}
	if f.proto == 6 && len(b) < min(24+size, 32) {
		return more
	}
	switch command {
	case 0x6F, 0x70: // a list of items behind handle and timeout
		if size < 8 || len(b) < 32 || le32(b[24:]) != 0 || le16(b[30:]) > 4 {
			return no
		}
		if size+24 < len(b) && (len(b) < 24+size+2 || le16(b[24+size:]) > 0x75) {
			return no
		}
	case 0x65:
		if size != 4 || len(b) < 26 || le16(b[24:]) != 1 {
			return no
		}
	case 0x63, 4, 0x64: // a question, or a count of items
		if size > 0 && (size < 2 || len(b) < 26 || le16(b[24:]) == 0 || le16(b[24:]) > 16) || size == 0 && !f.hasPort(44818) && !f.hasPort(2222) && zero(b[12:20]) {
			return no
		}
	}
	return final
}

// cipDatagram recognises CIP's implicit messages (CIP volume 2, 2-6): two items, a sequenced address of eight bytes
// and connected data whose length ends the datagram.
func cipDatagram(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 20 || le16(b) != 2 || le16(b[2:]) != 0x8002 || le16(b[4:]) != 8 {
		return no
	}
	if le16(b[14:]) != 0xB1 || le16(b[16:])+18 != len(b) {
		return no
	}
	return final
}

// finsDatagram recognises Omron's FINS (W342 3-2): an information field, reserved 0, a gateway count of at most 7,
// node addresses, and a command in use.
func finsDatagram(f *Flow, in *input) outcome {
	b := in.data
	if len(b) < 12 || b[0]&0x3E != 0 || b[0]&0x80 == 0 || b[1] != 0 || b[2] > 7 || b[3] > 0x7F || b[6] > 0x7F {
		return no
	}
	switch be16(b[10:]) {
	case 0x0101, 0x0102, 0x0103, 0x0104, 0x0105, 0x0201, 0x0202, 0x0203, 0x0220, 0x0306, 0x0307, 0x0401, 0x0402,
		0x0501, 0x0502, 0x0601, 0x0620, 0x0701, 0x0702, 0x0801, 0x0802, 0x0920, 0x0C01, 0x0C02, 0x0C03, 0x2101, 0x2102, 0x2140, 0x2301, 0x2302:
	default:
		return no
	}
	if b[0]&0x40 == 0 && len(b) > 600 || !f.hasPort(9600) && b[2] != 2 {
		return no
	}
	return final
}

// hartMessage recognises HART-IP (TS 20085): version 1, a type, an id, a status, and the message's length.
func hartMessage(f *Flow, in *input) outcome {
	b := in.data
	if len(b) < 8 {
		if f.proto == 6 && (b[0] == 1 || b[0] == 2) {
			return more
		}
		return no
	}
	if b[0] != 1 && b[0] != 2 || b[1] > 3 && b[1] != 15 || b[2] > 5 || be16(b[6:]) != len(b) {
		return no
	}
	if b[2] == 0 && len(b) != 13 || b[2] == 1 && len(b) != 8 || b[2] == 2 && len(b) != 8 {
		return no
	}
	return final
}

// egdDatagram recognises GE's Ethernet Global Data (GFK-2224): type 13 version 1, a request, and the producer's
// address, which is that of the sender's own network.
func egdDatagram(f *Flow, in *input) outcome {
	b := in.data
	if len(b) < 33 || len(b) > 1432 || b[0] != 13 || b[1] != 1 {
		return no
	}
	if zero(b[4:8]) || !zero(b[28:32]) && le32(b[28:]) > 1<<16 {
		return no
	}
	before := f.dirs[in.dir].previous.bytes()
	if f.hasPort(18246) || len(before) >= 12 && at(before, 0, "\x0d\x01") && at(before, 4, string(b[4:12])) {
		return final
	}
	return no
}

// synchrophasor recognises IEEE C37.118 (2011, 6.2): sync byte, type and version, frame size, and the checksum
// that ends the frame.
func synchrophasor(f *Flow, in *input) outcome {
	b := in.data
	if b[0] != 0xAA {
		return no
	}
	if len(b) < 16 {
		if f.proto == 6 {
			return more
		}
		return no
	}
	size := be16(b[2:])
	if b[1]&0x80 != 0 || b[1]>>4&7 > 5 || b[1]&15 < 1 || b[1]&15 > 3 || size < 16 {
		return no
	}
	if len(b) < size {
		if f.proto == 6 && len(b) < MaxBytes {
			return more
		}
		return no
	}
	crc := uint16(0xFFFF)
	for _, c := range b[:size-2] {
		crc ^= uint16(c) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	if int(crc) != be16(b[size-2:]) {
		return no
	}
	return final
}

// adsStream recognises Beckhoff's ADS over TCP (AMS/TCP header): a zero word, a length, then in the AMS header a
// command up to 9 and flags.
func adsStream(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 38 {
		if len(b) >= 2 && be16(b) != 0 {
			return no
		}
		return more
	}
	size := le32(b[2:])
	if be16(b) != 0 || size < 32 || size+6 != len(b) || le16(b[22:]) > 9 || le16(b[24:])&^0x45 != 0 || le32(b[26:])+32 != size {
		return no
	}
	return final
}

// etherSBusDatagram recognises SAIA's S-Bus in UDP: length, version 1, type 0, and the CRC that ends it.
func etherSBusDatagram(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 13 || be32(b) != len(b) || b[4] > 1 || b[5] != 0 || b[8] > 2 {
		return no
	}
	crc := uint16(0)
	for _, c := range b[:len(b)-2] {
		crc ^= uint16(c) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	if int(crc) != be16(b[len(b)-2:]) {
		return no
	}
	return final
}
