package app

import "bytes"

// directoryProtocols are directories, logins and management.
var directoryProtocols = []protocol{
	{label: "ldap", lead: "30", stream: ldapMessage, datagram: ldapMessage, rank: shaped},
	{label: "kerberos", lead: "6a-7e", stream: kerberosStream, datagram: kerberosDatagram, rank: shaped},
	{label: "snmp", lead: "30", datagram: snmpDatagram, rank: shaped},
	{label: "radius", lead: "01-05 0b-0d 28-2d", datagram: radiusDatagram, rank: shaped},
	{label: "diameter", stream: diameterStream, rank: shaped},
	{label: "dcerpc", lead: "04", stream: dcerpcStream, datagram: dcerpcDatagram, rank: shaped},
	{label: "rmcp", lead: "06", datagram: rmcpDatagram},
}

// startTLS is the name of the request that turns a connection to TLS (RFC 4511 4.14.1).
const startTLS = "1.3.6.1.4.1.1466.20037"

// ldapMessage recognises LDAP (RFC 4511 4.1.1): a sequence of a message id and an operation.
func ldapMessage(f *Flow, in *input) outcome {
	b := in.data
	if f.at >= 0 { // StartTLS was asked for: the client's handshake follows the request
		_, _, rest, whole := element(b)
		if whole && len(rest) > 5 && rest[0] == recordHandshake && f.insideTLS(rest) {
			return f.is("ldap", Negotiated, final)
		}
		return label
	}
	if b[0] != 0x30 {
		return no
	}
	if len(b) < 7 {
		if f.proto == 6 {
			return more
		}
		return no
	}
	_, value, _, whole := element(b)
	if !whole && f.proto == 6 && len(b) < 24 {
		return more
	}
	tag, id, rest, whole := element(value)
	if tag != 2 || !whole || len(id) < 1 || len(id) > 4 || len(rest) < 2 {
		return no
	}
	op := rest[0]
	_, body, _, _ := element(rest)
	switch op {
	case 0x60: // bind: version 2 or 3, a name
		if len(body) < 5 || body[0] != 2 || body[1] != 1 || body[2] < 2 || body[2] > 3 || body[3] != 4 {
			return no
		}
	case 0x61, 0x65, 0x67, 0x69, 0x6B, 0x6D, 0x6F: // results: an enumerated code
		if len(body) < 3 || body[0] != 10 || body[1] != 1 || body[2] > 0x60 {
			return no
		}
	case 0x63: // search: base, scope
		if len(body) < 2 || body[0] != 4 {
			return no
		}
	case 0x64:
		if len(body) < 2 || body[0] != 4 {
			return no
		}
	case 0x42: // unbind
		if rest[1] != 0 {
			return no
		}
	case 0x50: // abandon: the other message's id, and that is all
		if len(body) < 1 || len(body) > 4 || 2+len(body) != len(rest) {
			return no
		}
	case 0x77, 0x78: // extended
		if len(body) < 3 || body[0] != 0x80 && body[0] != 10 {
			return no
		}
		if f.proto == 6 && op == 0x77 && bytes.Contains(body, []byte(startTLS)) {
			return label
		}
	default:
		return no
	}
	return final
}

// kerberosMessage recognises Kerberos (RFC 4120 5): an application tag, a sequence, version 5, the same type again.
func kerberosMessage(b []byte) bool {
	if len(b) < 10 {
		return false
	}
	kind := int(b[0] & 0x1F)
	if b[0]&0xE0 != 0x60 || kind < 10 || kind > 30 {
		return false
	}
	_, value, _, _ := element(b)
	tag, inner, _, _ := element(value)
	if tag != 0x30 || len(inner) < 5 || inner[0] != 0xA0 && inner[0] != 0xA1 || inner[1] != 3 || inner[2] != 2 || inner[3] != 1 || inner[4] != 5 {
		return false
	}
	return true
}

func kerberosDatagram(_ *Flow, in *input) outcome {
	if kerberosMessage(in.data) {
		return final
	}
	return no
}

// kerberosStream expects the length before the message (RFC 4120 7.2.2).
func kerberosStream(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 16 {
		if b[0] != 0 || len(b) > 4 && b[4]&0xE0 != 0x60 {
			return no
		}
		return more
	}
	if size := be32(b); size > 10 && size < 1<<17 && kerberosMessage(b[4:]) {
		return final
	}
	return no
}

// snmpDatagram recognises SNMP (RFC 1157 4, RFC 3416 3, RFC 3412 6): a sequence of a version and, up to 2c, a
// community and a request.
func snmpDatagram(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 16 || b[0] != 0x30 {
		return no
	}
	_, value, _, _ := element(b)
	tag, version, rest, whole := element(value)
	if tag != 2 || !whole || len(version) != 1 {
		return no
	}
	switch version[0] {
	case 0, 1:
		tag, _, rest, whole = element(rest)
		if tag != 4 || !whole || len(rest) < 2 || rest[0] < 0xA0 || rest[0] > 0xA8 {
			return no
		}
		return final
	case 3:
		if len(rest) > 4 && rest[0] == 0x30 {
			return final
		}
	}
	return no
}

// radiusDatagram recognises RADIUS (RFC 2865 3 and 5): a code, the datagram's length, and attributes that fill it.
func radiusDatagram(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 20 || be16(b[2:]) != len(b) {
		return no
	}
	switch b[0] {
	case 1, 2, 3, 4, 5, 11, 12, 13, 40, 41, 42, 43, 44, 45:
	default:
		return no
	}
	attributes := 0
	for rest := b[20:]; len(rest) > 0; attributes++ {
		if len(rest) < 2 || rest[0] == 0 || rest[1] < 2 || int(rest[1]) > len(rest) {
			return no
		}
		rest = rest[rest[1]:]
	}
	if attributes == 0 && (b[0] == 1 || b[0] == 4) {
		return no
	}
	return final
}

// diameterStream recognises Diameter (RFC 6733 3): version 1, a length of whole words, flags, a command.
func diameterStream(_ *Flow, in *input) outcome {
	b := in.data
	if b[0] != 1 {
		return no
	}
	if len(b) < 20 {
		return more
	}
	size := int(b[1])<<16 | be16(b[2:])
	if size < 20 || size%4 != 0 || size > 64<<10 || b[4]&0x0F != 0 {
		return no
	}
	command := int(b[5])<<16 | be16(b[6:])
	if command != 257 && command != 280 && command != 282 && (command < 258 || command > 338) && (command < 8388600 || command > 8388800) {
		return no
	}
	return final
}

// dcerpcStream recognises DCE/RPC over TCP (C706 12.6): version 5.0, a type, flags, a data representation and a
// fragment length that fits.
func dcerpcStream(_ *Flow, in *input) outcome {
	b := in.data
	if o := begins(b, "\x05\x00"); o != label {
		return o
	}
	if len(b) < 16 {
		return more
	}
	size := le16(b[8:])
	if b[4] == 0 {
		size = be16(b[8:])
	}
	if b[2] > 19 || b[4]&^0x10 != 0 || b[5]|b[6]|b[7] != 0 || size < 16 || b[3]&0xFC&^0x83 == 0xFC {
		return no
	}
	return final
}

// dcerpcDatagram recognises it over UDP, as PROFINET has it (C706 12.5): version 4, a type, representation, a body
// whose length fits.
func dcerpcDatagram(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 80 || b[0] != 4 || b[1] > 10 || b[4]&^0x10 != 0 || b[5] > 3 || b[3]&^0x07 != 0 {
		return no
	}
	size := le16(b[74:])
	if b[4]&0x10 == 0 {
		size = be16(b[74:])
	}
	if size+80 != len(b) {
		return no
	}
	return final
}

// rmcpDatagram recognises RMCP (ASF 2.0, 3.2.2): version 6, reserved 0, class IPMI or ASF.
func rmcpDatagram(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 8 || b[0] != 6 || b[1] != 0 {
		return no
	}
	switch b[3] {
	case 6: // ASF: enterprise 4542
		if be32(b[4:]) == 4542 {
			return final
		}
	case 7: // IPMI: an authentication type
		if len(b) >= 14 && (b[4] == 6 || b[4] <= 5 && b[4] != 3) {
			return final
		}
	case 8, 0x86, 0x87:
		return final
	}
	return no
}
