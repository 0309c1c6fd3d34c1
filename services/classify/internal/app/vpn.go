package app

import "bytes"

// vpnProtocols are tunnels and the relays that people use like them.
var vpnProtocols = []protocol{
	{label: "wireguard", lead: "01-04", datagram: wireguardDatagram},
	{label: "cloudflarewarp", lead: "c4", datagram: warpDatagram},
	{label: "openvpn", lead: "08 10 20-2f 38 40 50", datagram: openvpnDatagram, stream: openvpnStream, rank: loose},
	{label: "ipsec", datagram: ikeDatagram, rank: shaped},
	{label: "softether", lead: "49", datagram: softEtherDatagram, rank: loose},
	{label: "pptp", stream: pptpStream},
	{label: "tailscale", lead: "54", datagram: tailscaleDatagram},
	{label: "tinc", stream: tincStream},
	{label: "teredo", lead: "00 60-6f", datagram: teredoDatagram, rank: loose},
	{label: "dnscrypt", datagram: dnscryptDatagram, rank: shaped},
	{label: "socks", stream: socksStream, rank: loose},
}

// wireguardDatagram recognises WireGuard (protocol, 5.4): type, three zeros, and the size that goes with it.
func wireguardDatagram(f *Flow, in *input) outcome {
	b := in.data
	if len(b) < 32 || b[1]|b[2]|b[3] != 0 {
		return no
	}
	switch {
	case b[0] == 1 && len(b) == 148, b[0] == 2 && len(b) == 92:
		return final
	case b[0] == 4 && len(b)%16 == 0 && f.count(in) >= 2:
		// The counter goes up, the receiver stays.
		before := f.dirs[in.dir].previous.bytes()
		if len(before) >= 16 && at(before, 0, string(b[:8])) && le32(b[12:]) == 0 && le32(b[8:]) > le32(before[8:]) && le32(b[8:])-le32(before[8:]) < 64 && le32(b[4:]) != 0 {
			return final
		}
	}
	return no
}

// warpDatagram recognises Cloudflare's variant of WireGuard: its types with the two highest bits set, three bytes of
// the client's identity where WireGuard has zeros, then WireGuard's receiver and counter.
func warpDatagram(f *Flow, in *input) outcome {
	b, before, other := in.data, f.dirs[in.dir].previous.bytes(), f.other(in)
	if len(b) < 32 || b[0] != 0xC4 || len(before) < 16 || len(other) < 8 || le32(b[12:]) != 0 {
		return no
	}
	hello := other[0] == 0xC1 || other[0] == 0xC2
	first := le32(b[8:]) == 1 && (before[0] == 0xC1 || before[0] == 0xC2) // the first behind the handshake
	next := before[0] == 0xC4 && at(b, 0, string(before[:8])) && le32(b[8:])-le32(before[8:]) == 1
	if hello && (next || first && at(other, 1, string(b[1:8]))) {
		return final
	}
	return no
}

// openvpnDatagram recognises OpenVPN's control channel (doc/doxygen, network protocol): an opcode with key 0, a
// session, and an answer that names that session back.
func openvpnDatagram(f *Flow, in *input) outcome { return openvpnPacket(f, in, in.data) }

// openvpnStream expects each packet behind its length.
func openvpnStream(f *Flow, in *input) outcome {
	b := in.data
	if len(b) < 2+14 {
		if len(b) >= 3 && !openvpnReset(b[2]) {
			return no
		}
		return more
	}
	size := be16(b)
	if size < 14 || size > 2000 || len(b) < 2+size && size < 100 {
		return no
	}
	return openvpnPacket(f, in, b[2:min(len(b), 2+size)])
}

func openvpnReset(c byte) bool { return c == 7<<3 || c == 8<<3 || c == 10<<3 || c == 1<<3 || c == 2<<3 }

func openvpnPacket(f *Flow, in *input, b []byte) outcome {
	other := f.other(in)
	if f.proto == 6 && len(other) > 2 {
		other = other[2:]
	}
	if len(b) < 14 {
		return no
	}
	switch {
	case !openvpnReset(b[0]) && b[0]>>3 != 4 && b[0]>>3 != 5:
		return no
	case len(other) == 0:
		// The first of a client without tls-auth is exactly this long, with no acknowledgement and number 0.
		if f.proto == 17 && b[0] == 7<<3 && len(b) == 14 && zero(b[9:]) {
			return final
		}
		// So is the server's: one acknowledgement of number 0, the client's session, number 0.
		if f.proto == 17 && b[0] == 8<<3 && len(b) == 26 && b[9] == 1 && zero(b[10:14]) && zero(b[22:]) {
			return final
		}
		if openvpnReset(b[0]) {
			if f.count(in) >= 2 && len(b) == f.dirs[in.dir].previous.size() && at(f.dirs[in.dir].previous.bytes(), 0, string(b[:9])) && len(b) <= 90 && f.proto == 17 {
				return final // sent again because nobody answered
			}
			return more
		}
		return no
	case len(other) < 9 || other[0] != 7<<3 && other[0] != 8<<3 && other[0] != 10<<3:
		return no
	}
	// Encrypted control packets (tls-crypt) begin with a number and a time in clear; both sides' first have number 1 and
	// the same time but for the clocks.
	if len(b) >= 17 && len(other) >= 17 && openvpnReset(b[0]) && be32(b[9:]) == 1 && be32(other[9:]) == 1 && be32(b[13:])>>10 == be32(other[13:])>>10 {
		return final
	}
	// The other side's session comes back, somewhere behind our own and what authenticates the packet.
	if bytes.Contains(b[9:min(len(b), 120)], other[1:9]) {
		return final
	}
	return more
}

// ikeDatagram recognises IKE (RFC 2408 3.1, RFC 7296 3.1) by its header and a length that is the datagram's, and
// ESP in UDP (RFC 3948) behind it on the same ports.
func ikeDatagram(f *Flow, in *input) outcome {
	b := in.data
	if f.hasPort(4500) {
		if len(b) == 1 && b[0] == 0xFF && f.count(in) > 1 { // keep-alive
			return more
		}
		if len(b) > 4 && be32(b) == 0 {
			b = b[4:]
		} else if len(b) >= 20 && be32(b) > 255 && be32(b[4:]) > 0 && be32(b[4:]) < 1<<16 {
			before := f.dirs[in.dir].previous.bytes()
			if len(before) >= 8 && be32(before) == be32(b) && be32(b[4:])-be32(before[4:]) == 1 {
				return final
			}
		}
	}
	if len(b) < 28 || zero(b[:8]) {
		return no
	}
	kind, size := b[18], be32(b[24:])
	if size != len(b) && (size < len(b) || !f.hasPort(500) && !f.hasPort(4500)) || size < 28 {
		return no
	}
	switch {
	case b[17] == 0x10 && (kind >= 1 && kind <= 6 || kind == 32 || kind == 33) && b[19]&^7 == 0:
	case b[17] == 0x20 && kind >= 34 && kind <= 43 && b[19]&^0x38 == 0:
	default:
		return no
	}
	return final
}

// softEtherDatagram recognises SoftEther's address keeper: a question of one letter, an answer in text.
func softEtherDatagram(f *Flow, in *input) outcome {
	b := in.data
	if len(b) > 12 && prefixed(b, "IP=") && bytes.Contains(b, []byte(",PORT=")) {
		return final
	}
	return no
}

// pptpStream recognises PPTP's control connection (RFC 2637 2): a length, type 1, the magic cookie.
func pptpStream(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 10 {
		if len(b) >= 4 && be16(b[2:]) != 1 {
			return no
		}
		return more
	}
	if be16(b[2:]) == 1 && be32(b[4:]) == 0x1A2B3C4D && be16(b[8:]) >= 1 && be16(b[8:]) <= 15 {
		return final
	}
	return no
}

// tailscaleDatagram recognises Tailscale's path discovery: TS and a speech balloon in UTF-8, then a key.
func tailscaleDatagram(_ *Flow, in *input) outcome {
	if len(in.data) >= 62 && prefixed(in.data, "TS\xf0\x9f\x92\xac") {
		return final
	}
	return no
}

// tincStream recognises tinc's greeting (protocol, 1.0 and 1.1): request 0, a name, version 17.
func tincStream(_ *Flow, in *input) outcome {
	b := in.data
	if o := begins(b, "0 "); o != label {
		return o
	}
	end := bytes.IndexByte(b, '\n')
	if end < 0 {
		if len(b) < 64 && printable(b) {
			return more
		}
		return no
	}
	if at := bytes.LastIndexByte(b[:end], ' '); at > 2 && prefixed(b[at:], " 17") && printable(b[:end]) {
		return final
	}
	return no
}

// teredoDatagram recognises Teredo (RFC 4380 5.1.1): IPv6 whose length fits, with an address of its prefix.
func teredoDatagram(f *Flow, in *input) outcome {
	b := in.data
	if len(b) > 13 && b[0] == 0 && b[1] == 1 { // authentication
		if n := 13 + int(b[2]) + int(b[3]); n < len(b) {
			b = b[n:]
		}
	}
	if len(b) > 8 && b[0] == 0 && b[1] == 0 { // origin
		b = b[8:]
	}
	if len(b) < 40 || b[0]>>4 != 6 {
		return no
	}
	if size := be16(b[4:]) + 40; size != len(b) && (size != 40 || b[6] != 59) {
		return no // behind a bubble, which carries nothing (RFC 4380 2.8), there may be trailers (RFC 6081 4)
	}
	if be32(b[8:]) == 0x20010000 || be32(b[24:]) == 0x20010000 || f.hasPort(3544) && be16(b[8:]) == 0xFE80 {
		return final
	}
	return no
}

// dnscryptDatagram recognises DNSCrypt (version 2, 2.2): the resolver's magic in an answer, whose nonce begins
// with the client's.
func dnscryptDatagram(f *Flow, in *input) outcome {
	b := in.data
	if len(b) >= 48 && prefixed(b, "r6fnvWj8") {
		return final
	}
	// A query for a certificate: TXT of 2.dnscrypt-cert.…
	if len(b) > 30 && bytes.Contains(b[12:30], []byte("dnscrypt-cert")) && at(b, 12, "\x012\x0ddnscrypt-cert") {
		return final
	}
	return no
}

// socksStream recognises SOCKS 5 (RFC 1928 3) by greeting and choice, and SOCKS 4 by its request. What runs
// inside is read for the host's name only, where the request has an address.
func socksStream(f *Flow, in *input) outcome {
	b := in.data
	if f.at >= 0 {
		if b[0] == 4 {
			return f.inside(in, b[min(len(b), 9+max(0, bytes.IndexByte(b[min(len(b), 8):], 0))):])
		}
		return f.socksRequest(in)
	}
	switch b[0] {
	case 5:
		if len(b) < 2 {
			return more
		}
		other := f.other(in)
		switch {
		case len(b) == 2 && in.dir == 1 && (b[1] <= 2 || b[1] == 0xFF): // the choice
			if len(other) >= 3 && other[0] == 5 && int(other[1]) >= 1 && 2+int(other[1]) <= f.dirs[0].first.size() {
				return label
			}
			return more
		case b[1] >= 1 && b[1] <= 16 && len(b) >= 2+int(b[1]):
			for _, m := range b[2 : 2+int(b[1])] {
				if m > 9 && m < 0x80 {
					return no
				}
			}
			if len(other) >= 2 && other[0] == 5 && (other[1] <= 9 || other[1] == 0xFF) {
				return f.socksRequest(in)
			}
			return more
		case len(b) < 20:
			return more
		}
	case 4:
		if len(b) < 9 {
			if len(b) >= 2 && b[1] != 1 && b[1] != 2 {
				return no
			}
			return more
		}
		end := bytes.IndexByte(b[8:], 0)
		if b[1] != 1 && b[1] != 2 || be16(b[2:]) == 0 || end > 64 || !printable(b[8:8+max(end, 0)]) {
			return no
		}
		if end < 0 {
			if len(b) < 72 {
				return more
			}
			return no
		}
		if be32(b[4:])>>8 == 0 && be32(b[4:]) != 0 { // 4a: a name follows
			name := b[9+end:]
			if n := bytes.IndexByte(name, 0); n > 0 {
				f.setHost(name[:n])
				return final
			}
			if len(name) < 256 {
				return more
			}
			return no
		}
		if len(b) == 9+end {
			return label
		}
	}
	return no
}

// inside reads the host's name from what a client sends to an address through a proxy: TLS or HTTP.
func (f *Flow) inside(in *input, b []byte) outcome {
	if in.dir != 0 || len(b) == 0 {
		return label
	}
	if b[0] == recordHandshake {
		if message, whole := tlsMessage(f.engine, b); len(message) < 4 || message[0] == clientHello && message[1] == 0 && !whole && len(message) < MaxBytes {
			return label
		} else if message[0] == clientHello {
			var h hello
			if h.parse(message); !h.bad {
				f.setHost(h.host)
			}
		}
		return final
	}
	if n, short := httpMethod(b); short || n > 0 && !bytes.Contains(b, []byte("\n\r\n")) && len(in.data) < MaxBytes {
		return label
	} else if n > 0 {
		f.httpHost(field(b, "Host"))
	}
	return final
}

// socksRequest reads the name that a client asks for (RFC 1928 4).
func (f *Flow) socksRequest(in *input) outcome {
	b := in.data
	if in.dir != 0 || len(b) < 3 {
		return label
	}
	b = b[min(len(b), 2+int(b[1])):]
	if len(b) > 0 && b[0] == 1 && len(b) > 2 { // user name and password (RFC 1929)
		f.risk(true, ClearCredentials)
		user := int(b[1])
		if len(b) < 3+user {
			return label
		}
		b = b[min(len(b), 3+user+int(b[2+user])):]
	}
	if len(b) < 7 || b[0] != 5 {
		return label
	}
	switch size := int(b[4]); b[3] {
	case 3:
		if len(b) >= 5+size {
			f.setHost(b[5 : 5+size])
		}
	case 1:
		return f.inside(in, b[min(len(b), 10):])
	case 4:
		return f.inside(in, b[min(len(b), 22):])
	}
	return final
}
