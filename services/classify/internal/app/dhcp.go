package app

import "encoding/binary"

// dhcpDatagram recognises a BOOTP message with DHCP's magic cookie (RFC 2131 2, RFC 2132 2).
func dhcpDatagram(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 240 || b[0] != 1 && b[0] != 2 || b[2] > 16 {
		return no
	}
	if binary.BigEndian.Uint32(b[236:]) != 0x63825363 {
		return no
	}
	return final
}
