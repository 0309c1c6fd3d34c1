package app

import "encoding/binary"

const portNTP = 123

// ntpDatagram recognises NTP: modes 1 to 5 by the fixed header (RFC 5905 7.3), control messages (RFC 9327 2)
// and mode 7 (ntpd's private mode, the one that amplifies). The last two are little more than a few bits, so
// they need the port beside the shape; so do versions 1 and 2.
func ntpDatagram(f *Flow, in *input) outcome {
	b := in.data
	if len(b) < 8 {
		return no
	}
	version, mode := b[0]>>3&7, b[0]&7
	if version < 1 || version > 4 {
		return no
	}
	onPort := f.hasPort(portNTP)
	switch {
	case mode >= 1 && mode <= 5:
		if len(b) < 48 {
			return no
		}
		if b[1] > 16 || !ntpExtensions(b[48:]) {
			return no
		}
		if onPort || version >= 3 && ntpTimes(b) {
			return final
		}
	case mode == 6:
		// Opcode in 5 bits, then sequence, status, association, offset and the length of the data.
		if onPort && len(b) >= 12 && b[1]&0x1F <= 12 && int(binary.BigEndian.Uint16(b[10:])) <= len(b)-12 {
			return final
		}
	case mode == 7:
		// Response and more bits with the version, sequence, implementation (0, 2, 3), request code,
		// then error and item count, item size.
		if onPort && b[2] <= 3 && b[3] <= 45 {
			return final
		}
	}
	return no
}

// ntpExtensions accepts nothing, a key identifier with a digest, or extension fields (RFC 7822 3).
func ntpExtensions(b []byte) bool {
	switch len(b) {
	case 0, 4, 12, 20, 24, 36: // crypto-NAK, Kiss codes of old clients, MD5, SHA-1, SHA-256
		return true
	}
	return len(b) >= 16 && int(binary.BigEndian.Uint16(b[2:])) <= len(b)
}

// ntpTimes checks that the transmit stamp lies in 2000..2036 and that the other stamps are absent or of the
// same years, which chance does not give.
func ntpTimes(b []byte) bool {
	const year2000 = 3155673600
	if binary.BigEndian.Uint32(b[40:]) < year2000 || b[0]&7 != 3 && b[0]&7 != 4 {
		return false
	}
	for at := 16; at < 40; at += 8 {
		if s := binary.BigEndian.Uint32(b[at:]); s != 0 && s < year2000 {
			return false
		}
	}
	return true
}
