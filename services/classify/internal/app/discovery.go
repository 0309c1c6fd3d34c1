package app

import "bytes"

// llmnrDatagram recognises LLMNR (RFC 4795 2.1): DNS's shape on port 5355 of either side.
// Flags that the RFC forbids do not hide a message that is nothing but one question.
func llmnrDatagram(f *Flow, in *input) outcome {
	b := in.data
	if !f.hasPort(portLLMNR) || len(b) < 12 {
		return no
	}
	var q question
	if !q.skip(b) {
		return no
	}
	if !dnsHeader(b, true) {
		if be16(b[4:]) != 1 || !zero(b[6:12]) || q.end != len(b) || !q.plausible(b) {
			return no
		}
		f.risk(true, Malformed)
	}
	f.setQuestion(q.name(f.engine, b))
	return final
}

// netbiosDatagram recognises NetBIOS over UDP: the name service, whose names are 32 letters A to P behind their
// length (RFC 1002 4.2.1), and the datagram service (RFC 1002 4.4).
func netbiosDatagram(f *Flow, in *input) outcome {
	b := in.data
	if len(b) < 12+34 || f.hasPort(portDNS) { // such a name may be asked of a resolver
		return no
	}
	if dnsHeader(b, false) && netbiosName(b[12:]) || f.hasPort(portNetBIOS) && netbiosName(b[12:]) {
		return final
	}
	// On its own port the name may be damaged when header and length are those of a question for one.
	if f.hasPort(portNetBIOS) && len(b) == 50 && dnsHeader(b, true) && be16(b[4:]) == 1 && zero(b[6:12]) && (b[12] == 32 || be16(b[48:]) == 1) {
		f.risk(true, Malformed)
		return f.is("netbios", Port, final)
	}
	// A datagram repeats its sender's address and port.
	if b[0] >= 0x10 && b[0] <= 0x16 && b[1] < 0x20 && (netbiosName(b[14:]) || be16(b[8:]) == 138 && be16(b[10:])+14 == len(b)) {
		return final
	}
	return no
}

func netbiosName(b []byte) bool {
	if len(b) < 33 || b[0] != 32 {
		return false
	}
	for _, c := range b[1:33] {
		if c < 'A' || c > 'P' {
			return false
		}
	}
	return true
}

// netbiosStream recognises the session service: a session request with two names (RFC 1002 4.3.2), or a session
// message with SMB in it (MS-SMB 2.1, MS-SMB2 2.1), which comes without a request where port 445 is used.
func netbiosStream(f *Flow, in *input) outcome {
	b := in.data
	if b[0] == 0x81 {
		if len(b) < 4+33 {
			if len(b) >= 5 && b[4] != 32 {
				return no
			}
			return more
		}
		if b[1] <= 1 && netbiosName(b[4:]) {
			return final
		}
		return no
	}
	return no
}

// dhcpv6Datagram recognises DHCPv6 (RFC 8415 8 and 9) by its type and a list of options that fits exactly.
func dhcpv6Datagram(f *Flow, in *input) outcome {
	b := in.data
	if !f.hasPort(546) && !f.hasPort(547) || len(b) < 8 {
		return no
	}
	head := 4
	switch {
	case b[0] == 12 || b[0] == 13: // relay messages have a hop count and two addresses
		head = 34
	case b[0] < 1 || b[0] > 36:
		return no
	}
	if len(b) < head+4 {
		return no
	}
	for b = b[head:]; len(b) >= 4; {
		n := 4 + be16(b[2:])
		if be16(b) == 0 || n > len(b) {
			return no
		}
		b = b[n:]
	}
	if len(b) != 0 {
		return no
	}
	return final
}

// slpDatagram recognises the Service Location Protocol, version 1 (RFC 2165 4.1) and 2 (RFC 2608 8), by the
// length in its header.
func slpDatagram(f *Flow, in *input) outcome {
	b := in.data
	switch {
	case len(b) < 12:
		if f.proto == 6 && len(b) == 1 && (b[0] == 1 || b[0] == 2) && f.hasPort(427) {
			return more
		}
		return no
	case !f.hasPort(427):
		return no
	case b[0] == 2 && b[1] >= 1 && b[1] <= 11:
		if size := int(b[2])<<16 | be16(b[3:]); size < 14 || size > len(b) || b[5]&0x1F != 0 {
			return no
		}
		return final
	case b[0] == 1 && b[1] >= 1 && b[1] <= 11:
		if size := be16(b[2:]); size < 12 || size > len(b) || b[4]&7 != 0 {
			return no
		}
		return final
	}
	return no
}

// wsdDatagram recognises WS-Discovery (OASIS, 1.1, 5): SOAP over UDP that names its namespace.
func wsdDatagram(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 40 || b[0] != '<' {
		return no
	}
	b = b[:min(len(b), 1200)]
	if anyOf(b, "/ws/2005/04/discovery", "ws-dd/ns/discovery") ||
		bytes.Contains(b, []byte("Envelope")) && anyOf(b, "/soap-envelope") && anyOf(b, "/discovery") {
		return final
	}
	return no
}

// natPMPDatagram recognises NAT-PMP (RFC 6886 3) and PCP (RFC 6887 7), whose fields are few: its port has to be
// there too.
func natPMPDatagram(f *Flow, in *input) outcome {
	b := in.data
	if !f.hasPort(5351) || len(b) < 2 || b[0] > 2 {
		return no
	}
	if b[0] == 2 {
		if len(b) >= 24 && len(b)%4 == 0 && b[1]&0x7F <= 3 {
			return final
		}
		return no
	}
	switch {
	case b[0] != 0:
	case b[1] == 0 && len(b) == 2, b[1] == 1 && len(b) == 12, b[1] == 2 && len(b) == 12,
		b[1] == 128 && len(b) >= 8 && len(b) <= 12, (b[1] == 129 || b[1] == 130) && len(b) == 16:
		return final
	}
	return no
}
