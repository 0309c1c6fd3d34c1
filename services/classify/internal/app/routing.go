package app

// routingProtocols keep networks running: routes, redundancy, time, flow export, access points, mobile cores.
var routingProtocols = []protocol{
	{label: "bgp", stream: starts("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")}, // RFC 4271 4.1
	{label: "ldp", lead: "00", datagram: ldpMessage, stream: ldpMessage, rank: shaped},
	{label: "hsrp", lead: "00-04", datagram: hsrpDatagram, rank: shaped, byPort: true},
	{label: "bfd", lead: "20-3f", datagram: bfdDatagram, rank: loose, byPort: true},
	{label: "lisp", datagram: lispDatagram, rank: loose, byPort: true},
	{label: "capwap", lead: "00-01", datagram: capwapDatagram, rank: loose, byPort: true},
	{label: "gtp", lead: "00-5f", datagram: gtpDatagram, rank: loose, byPort: true},
	{label: "pfcp", lead: "20-27", datagram: pfcpDatagram, rank: loose, byPort: true},
	{label: "netflow", lead: "00", datagram: netflowDatagram, rank: shaped},
	{label: "sflow", lead: "00", datagram: sflowDatagram, rank: shaped},
	{label: "ptpv2", datagram: ptpDatagram, rank: shaped, byPort: true},
	{label: "dlep", lead: "44", datagram: starts("DLEP\x00"), stream: dlepStream},
	{label: "openflow", stream: openflowStream, rank: shaped},
	{label: "roughtime", lead: "52", datagram: starts("ROUGHTIM")},
	{label: "cpha", lead: "1a", datagram: cphaDatagram, rank: shaped},
	{label: "merakicloud", lead: "fe", datagram: starts("\xfe\xf7\x28\x91")},
	{label: "ubntac2", lead: "01-02", datagram: ubiquitiDatagram, rank: loose, byPort: true},
}

// ldpMessage recognises LDP (RFC 5036 3.1): version 1, a length that fits, a label space, a known message.
func ldpMessage(f *Flow, in *input) outcome {
	b := in.data
	if len(b) < 14 {
		if f.proto == 6 && b[0] == 0 {
			return more
		}
		return no
	}
	size := be16(b[2:])
	if be16(b) != 1 || size < 14 || size+4 > len(b) || be16(b[12:]) > size-8 {
		return no
	}
	switch be16(b[10:]) &^ 0x8000 {
	case 0x1, 0x100, 0x200, 0x201, 0x300, 0x301, 0x400, 0x401, 0x402, 0x403, 0x404:
		return final
	}
	return no
}

// hsrpDatagram recognises HSRP: version 1 (RFC 2281 5) by its sizes and states, version 2 by its elements.
func hsrpDatagram(f *Flow, in *input) outcome {
	b := in.data
	if f.hasPort(1985) && len(b) >= 16 && b[0] == 0 && b[1] <= 3 {
		return final
	}
	if (f.hasPort(2029) || f.hasPort(1985)) && len(b) >= 6 && b[0] >= 1 && b[0] <= 4 && int(b[1])+2 <= len(b) {
		return final
	}
	return no
}

// bfdDatagram recognises BFD (RFC 5880 4.1, RFC 5881 4) on its ports.
func bfdDatagram(f *Flow, in *input) outcome {
	b := in.data
	if len(b) >= 24 && b[0]>>5 == 1 && int(b[3]) == len(b) && b[2] > 0 && be32(b[4:]) != 0 && (f.hasPort(3784) || f.hasPort(4784)) {
		return final
	}
	return no
}

// lispDatagram recognises LISP (RFC 9300 5, RFC 9301 5) on its ports: control messages by type, data by a nonce.
func lispDatagram(f *Flow, in *input) outcome {
	b := in.data
	if len(b) < 8 {
		return no
	}
	if f.hasPort(4342) && (b[0]>>4 >= 1 && b[0]>>4 <= 8) && len(b) >= 12 || f.hasPort(4341) && len(b) >= 28 && (b[8]>>4 == 4 || b[8]>>4 == 6) {
		return final
	}
	return no
}

// capwapDatagram recognises CAPWAP (RFC 5415 4): a preamble for DTLS or a header with its length, then a control
// message.
func capwapDatagram(f *Flow, in *input) outcome {
	b := in.data
	if !f.hasPort(5246) && !f.hasPort(5247) || len(b) < 8 {
		return no
	}
	switch b[0] {
	case 1:
		if zero(b[1:4]) && len(b) > 17 && b[4] >= 20 && b[4] <= 24 && (b[5] == 0xFE || be16(b[5:]) == 0x0100) {
			return final
		}
	case 0:
		if n := int(b[1]>>3) * 4; n >= 8 && n < len(b) {
			return final
		}
	}
	return no
}

// gtpDatagram recognises GTP (TS 29.060 6, TS 29.274 5) on its ports: version, type, length.
func gtpDatagram(f *Flow, in *input) outcome {
	b := in.data
	if !f.hasPort(2152) && !f.hasPort(2123) && !f.hasPort(3386) || len(b) < 8 {
		return no
	}
	size := be16(b[2:])
	switch b[0] >> 5 {
	case 1, 0:
		if b[0]&0x10 != 0 && (size+8 == len(b) || size+20 == len(b)) && b[1] != 0 {
			return final
		}
		// The first fragment of a carried packet: both lengths still have to agree.
		if b[0] == 0x30 && b[1] == 0xFF && size+8 > len(b) && len(b) >= 28 && b[8] == 0x45 && be16(b[10:]) == size {
			return final
		}
	case 2:
		if size+4 <= len(b) && b[1] != 0 {
			return final
		}
	}
	return no
}

// pfcpDatagram recognises PFCP (TS 29.244 7.2) on its port.
func pfcpDatagram(f *Flow, in *input) outcome {
	b := in.data
	if f.hasPort(8805) && len(b) >= 8 && b[0]>>5 == 1 && b[0]&0x18 == 0 && be16(b[2:])+4 == len(b) && (b[1] <= 17 || b[1] >= 50 && b[1] <= 57) {
		return final
	}
	return no
}

// netflowDatagram recognises NetFlow 1, 5, 7, 9 (RFC 3954 5.1) and IPFIX (RFC 7011 3.1): counts that fit, times
// of this century.
func netflowDatagram(_ *Flow, in *input) outcome {
	const year2000 = 946684800
	b := in.data
	if len(b) < 20 {
		return no
	}
	version, count := be16(b), be16(b[2:])
	if version == 10 {
		if count == len(b) && be32(b[4:]) > year2000 && (be16(b[16:]) == 2 || be16(b[16:]) == 3 || be16(b[16:]) >= 256) {
			return final
		}
		return no
	}
	if be32(b[8:]) < year2000 || count == 0 {
		return no
	}
	switch version {
	case 5, 7:
		size := 48
		if version == 7 {
			size = 52
		}
		if count <= 30 && len(b) == 24+count*size {
			return final
		}
	case 1:
		if count <= 24 && len(b) == 16+count*52 {
			return final
		}
	case 9:
		if len(b) >= 24 && count < 256 && (be16(b[20:]) <= 1 || be16(b[20:]) >= 256) && be16(b[22:]) >= 4 && be16(b[22:])+20 <= len(b) {
			return final
		}
	}
	return no
}

// sflowDatagram recognises sFlow (version 5, 5.1): the version, an address type, a sub-agent, few samples.
func sflowDatagram(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 28 || be32(b) != 5 || be32(b[4:]) != 1 && be32(b[4:]) != 2 {
		return no
	}
	at := 12
	if be32(b[4:]) == 2 {
		at = 24
	}
	if len(b) >= at+16 && be32(b[at+12:]) > 0 && be32(b[at+12:]) < 256 {
		return final
	}
	return no
}

// ptpDatagram recognises the Precision Time Protocol (IEEE 1588-2019 13.3): version 2, a type, the length.
func ptpDatagram(f *Flow, in *input) outcome {
	b := in.data
	if (f.hasPort(319) || f.hasPort(320)) && len(b) >= 34 && b[1]&15 == 2 && be16(b[2:]) <= len(b) && be16(b[2:]) >= 34 {
		return final
	}
	return no
}

// openflowStream recognises OpenFlow (1.5, 7.1): a version, a hello as the first message, its length.
func openflowStream(f *Flow, in *input) outcome {
	b := in.data
	if len(b) < 8 {
		if b[0] < 1 || b[0] > 6 || len(b) > 1 && b[1] != 0 {
			return no
		}
		return more
	}
	if b[0] < 1 || b[0] > 6 || b[1] != 0 || be16(b[2:]) < 8 || be16(b[2:]) > 64 || be16(b[2:]) > len(b) {
		return no
	}
	size := be16(b[2:])
	if b[0] < 4 && size != 8 || size > 8 && (len(b) < 12 || be16(b[8:]) != 1) { // elements came with 1.3.1, and one only
		return no
	}
	other := f.other(in)
	if len(other) == 0 {
		return more
	}
	if other[0] <= 6 && other[0] >= 1 && len(other) >= 4 && other[1] == 0 {
		return final
	}
	return no
}

// cphaDatagram recognises Check Point's cluster control: its magic, and a version below it.
func cphaDatagram(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) >= 20 && b[0] == 0x1A && b[1] == 0x90 && b[2] <= 0x20 {
		return final
	}
	return no
}

// ubiquitiDatagram recognises Ubiquiti's discovery: version 1 or 2, a command, the length of elements that fill it.
func ubiquitiDatagram(f *Flow, in *input) outcome {
	b := in.data
	if !f.hasPort(10001) || len(b) < 4 || b[0] != 1 && b[0] != 2 {
		return no
	}
	if be16(b[2:])+4 != len(b) {
		return no
	}
	for rest := b[4:]; len(rest) > 0; {
		if len(rest) < 3 || be16(rest[1:])+3 > len(rest) {
			return no
		}
		rest = rest[3+be16(rest[1:]):]
	}
	return final
}

// dlepStream recognises a DLEP session (RFC 8175 11.3): it opens with an initialization whose data items fill it.
func dlepStream(f *Flow, in *input) outcome {
	b := in.data
	if len(b) < 8 {
		if b[0] != 0 {
			return no
		}
		return more
	}
	kind, size := be16(b), be16(b[2:])
	if kind != 1 && kind != 2 || size < 8 || size+4 != len(b) {
		return no
	}
	for rest := b[4:]; len(rest) > 0; {
		if len(rest) < 4 || be16(rest) == 0 || be16(rest) > 25 || be16(rest[2:])+4 > len(rest) {
			return no
		}
		rest = rest[be16(rest[2:])+4:]
	}
	return final
}
