package app

import "bytes"

// buildingProtocols run buildings, meters, vehicles and instruments.
var buildingProtocols = []protocol{
	{label: "bacnet", lead: "81", datagram: bacnetDatagram, rank: shaped},
	{label: "knxnet_ip", lead: "06", datagram: knxDatagram, stream: knxDatagram},
	{label: "iec62056", lead: "00 7e", stream: dlmsStream, datagram: dlmsStream, rank: shaped},
	{label: "ansi_c1222", lead: "60", datagram: c1222Message, stream: c1222Message, rank: shaped},
	{label: "trdp", stream: trdpMessage, datagram: trdpMessage, rank: shaped},
	{label: "someip", datagram: someIPMessage, stream: someIPMessage, rank: shaped},
	{label: "controller_area_network", lead: "49", datagram: starts("ISO11898"), stream: starts("ISO11898")}, // CAN over UDP of Ixxat and others: the standard's number
	{label: "hislip", stream: hislipStream, rank: shaped},
	{label: "atg", stream: atgStream},
	{label: "cnp_ip", datagram: cnpDatagram, rank: loose, byPort: true},
}

// bacnetDatagram recognises BACnet/IP (ASHRAE 135 annex J): type 0x81, a known function, the datagram's length;
// for functions that carry a network message, its version 1.
func bacnetDatagram(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 4 || b[0] != 0x81 || b[1] > 12 || be16(b[2:]) != len(b) {
		return no
	}
	head := 4
	switch b[1] {
	case 4:
		head = 10
	case 9, 10, 11:
	default:
		return final
	}
	if len(b) < head+2 || b[head] != 1 {
		return no
	}
	return final
}

// knxDatagram recognises KNXnet/IP (ISO 22510 7.2): a header of six bytes, version 1.0, the datagram's length.
func knxDatagram(f *Flow, in *input) outcome {
	b := in.data
	if len(b) < 6 {
		if f.proto == 6 && b[0] == 6 {
			return more
		}
		return no
	}
	size := be16(b[4:])
	if b[0] != 6 || b[1] != 0x10 && b[1] != 0x20 || size < 6 || size > len(b) || size < len(b) && b[size] != 6 {
		return no
	}
	if s := be16(b[2:]); s>>8 != 2 && s>>8 != 3 && s>>8 != 4 && s>>8 != 5 && s>>8 != 7 && s>>8 != 9 {
		return no
	}
	return final
}

// dlmsStream recognises DLMS/COSEM (IEC 62056): HDLC frames of type 3 between flags with their length (-46, 6.4),
// or the wrapper of version 1 with ports and length (-47, 7.3).
func dlmsStream(f *Flow, in *input) outcome {
	b := in.data
	switch b[0] {
	case 0x7E:
		if len(b) < 9 {
			if f.proto == 6 {
				return more
			}
			return no
		}
		size := int(b[1]&7)<<8 | int(b[2])
		if b[1]>>4 != 0xA || size < 7 || size+2 > len(b) || b[size+1] != 0x7E {
			return no
		}
		return final
	case 0:
		if len(b) < 9 {
			if f.proto == 6 && (len(b) < 2 || b[1] == 1) {
				return more
			}
			return no
		}
		if be16(b) != 1 || be16(b[6:])+8 != len(b) || be16(b[2:]) > 0xFF && be16(b[4:]) > 0xFF {
			return no
		}
		switch b[8] {
		case 0x60, 0x61, 0x62, 0x63, 0xC0, 0xC1, 0xC3, 0xC4, 0xC5, 0xC7, 0xC8, 0xCB, 0xCF, 0xD8, 0xDB, 0xDD:
			return final
		}
	}
	return no
}

// c1222Message recognises ANSI C12.22 (5.3): an ACSE unit in ASN.1 with titles that name C12.22's arc or the
// calling application, and user information at its end.
func c1222Message(f *Flow, in *input) outcome {
	b := in.data
	if b[0] != 0x60 {
		return no
	}
	if len(b) < 12 {
		if f.proto == 6 {
			return more
		}
		return no
	}
	size, n := berLength(b[1:])
	if n == 0 || size+1+n != len(b) && f.proto == 17 {
		return no
	}
	inner := b[1+n:]
	if inner[0] != 0xA2 && inner[0] != 0xA1 && inner[0] != 0xA6 {
		return no
	}
	if bytes.Contains(inner, []byte("\x28\x81")) || bytes.Contains(inner, []byte("\x81\x03\x80")) || f.hasPort(1153) {
		return final
	}
	return no
}

// trdpMessage recognises the Train Real-time Data Protocol (IEC 61375-2-3 annex A): a version 1.x behind the
// sequence, a message of two letters, a data length that fits.
func trdpMessage(f *Flow, in *input) outcome {
	b := in.data
	if len(b) < 40 {
		if f.proto == 6 && (len(b) < 5 || b[4] == 1) {
			return more
		}
		return no
	}
	if b[4] != 1 || b[6] != 'P' && b[6] != 'M' || b[5] > 9 {
		return no
	}
	switch b[7] {
	case 'd', 'p', 'r', 'e', 'n', 'q', 'c':
	default:
		return no
	}
	if size := be32(b[20:]); size > 64<<10 || f.proto == 17 && size+40 > len(b)+4 {
		return no
	}
	return final
}

// someIPMessage recognises SOME/IP (AUTOSAR PRS_SOMEIP 4.1.2): the length from its ninth byte on, protocol version
// 1, a message type and a return code in use.
func someIPMessage(f *Flow, in *input) outcome {
	b := in.data
	if len(b) >= 16 && at(b, 0, "\xDE\xAD\xBE\xEF\x00\x00\x00\x08") || at(b, 0, "\xFF\xFF\x00\x00\x00\x00\x00\x08\xDE\xAD\xBE\xEF") {
		return final // magic cookies
	}
	if len(b) < 16 {
		if f.proto == 6 {
			return more
		}
		return no
	}
	size := be32(b[4:])
	if size < 8 || size > 64<<10 || b[12] != 1 || b[15] > 0x5E || size+8 > len(b) && f.proto == 17 {
		return no
	}
	switch b[14] {
	case 0, 1, 2, 0x40, 0x41, 0x42, 0x80, 0x81, 0xC0, 0xC1, 0x20, 0x21, 0x22, 0xA0, 0xA1:
	default:
		return no
	}
	if size+8 < len(b) && f.proto == 17 { // another message follows
		if rest := b[size+8:]; len(rest) < 16 || rest[12] != 1 {
			return no
		}
	}
	if b[15] != 0 && b[14]&0x80 == 0 || be16(b) == 0 && be16(b[2:]) == 0 {
		return no
	}
	if size+8 > len(b) && f.proto == 6 {
		return no
	}
	return final
}

// hislipStream recognises HiSLIP (IVI-6.1, 2.5): HS, a message type, and for the first an Initialize.
func hislipStream(_ *Flow, in *input) outcome {
	b := in.data
	if o := begins(b, "HS"); o != label {
		return o
	}
	if len(b) < 16 {
		return more
	}
	if b[2] > 25 && b[2] < 128 || !zero(b[8:12]) {
		return no
	}
	return final
}

// atgStream recognises Veeder-Root's tank gauges (576013-635): a start byte, I or S and six digits.
func atgStream(_ *Flow, in *input) outcome {
	b := in.data
	if b[0] != 1 {
		return no
	}
	if len(b) < 7 {
		if len(b) >= 2 && b[1] != 'I' && b[1] != 'S' {
			return no
		}
		return more
	}
	if b[1] != 'I' && b[1] != 'S' && b[1] != 'i' && b[1] != 's' {
		return no
	}
	for _, c := range b[2:7] {
		if !alphanumeric(c) {
			return no
		}
	}
	if !digit(b[2]) || !digit(b[3]) {
		return no
	}
	return final
}

// cnpDatagram recognises EIA-852 (8): the datagram's length, version 1, a packet type in use.
func cnpDatagram(f *Flow, in *input) outcome {
	b := in.data
	if len(b) < 20 || be16(b) != len(b) || b[2] != 1 || b[4]&0x1F > 0x01 && b[4] != 0x20 || !f.hasPort(1628) && !f.hasPort(1629) {
		return no
	}
	return final
}
