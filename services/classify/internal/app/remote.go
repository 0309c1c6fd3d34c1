package app

import "bytes"

// remoteProtocols are shells and screens of other machines, and files.
var remoteProtocols = []protocol{
	{label: "rdp", stream: rdpStream, also: []string{"tls"}},
	{label: "vnc", stream: starts("RFB 003.", "RFB 004.", "RFB 005.")}, // RFC 6143 7.1.1
	{label: "teamviewer", lead: "00", stream: teamviewerStream, datagram: teamviewerDatagram, rank: shaped},
	{label: "telnet", stream: telnetStream, rank: shaped},
	{label: "rsh", stream: rshStream, rank: loose},
	{label: "nomachine", lead: "00-03", stream: starts("NXSH-", "NXD-"), datagram: nomachineDatagram, rank: shaped},
	{label: "xdmcp", lead: "00", datagram: xdmcpDatagram, rank: loose, byPort: true},
	{label: "radmin", stream: starts("\x01\x00\x00\x00\x01\x00\x00\x00\x08\x08"), rank: exact},
	{label: "citrix", stream: starts("\x7f\x7fICA\x00", "CGP/01")},
	{label: "rsync", stream: starts("@RSYNCD: ")}, // rsync, csprotocol.txt
	{label: "git", stream: gitStream},
	{label: "afp", stream: afpStream, rank: shaped},
	{label: "tftp", lead: "00", datagram: tftpDatagram, rank: shaped},
	{label: "uftp", lead: "40 50", datagram: uftpDatagram, rank: loose, byPort: true},
	{label: "nfs", stream: rpcStream, datagram: rpcDatagram},
	{label: "whois_das", stream: whoisStream, rank: loose},
	{label: "z3950", stream: z3950Stream, rank: loose},
	{label: "kismet", stream: starts("*KISMET: ", "*SERVERINFO: ", "*PROTOCOLS: ")},
	{label: "ookla", stream: ooklaStream},
	{label: "bjnp", lead: "42 4d", datagram: starts("BJNP\x01", "BJNP\x02", "BJNP\x81", "BJNP\x82", "BJNB\x01", "BJNB\x81", "MFNP\x01", "MFNP\x81")},
	{label: "rx", datagram: rxDatagram, rank: loose, byPort: true},
	{label: "tivoconnect", lead: "54 74", datagram: starts("TiVoConnect=", "tivoconnect=")},
}

// rdpStream recognises RDP (MS-RDPBCGR 2.2.1.1): a connection request or its confirm in TPKT (RFC 1006), with a
// cookie or a negotiation. If TLS was agreed, the hello follows on the same connection.
func rdpStream(f *Flow, in *input) outcome {
	b := in.data
	if f.at >= 0 {
		return f.rdpSecurity(in)
	}
	if o := begins(b, "\x03\x00"); o != label {
		return o
	}
	if len(b) < 11 {
		return more
	}
	size := be16(b[2:])
	if size < 11 || int(b[4])+5 != size || b[5] != 0xE0 && b[5] != 0xD0 || b[10] != 0 {
		return no
	}
	if len(b) < min(size, 64) {
		return more
	}
	rest := b[11:min(len(b), size)]
	switch {
	case len(rest) == 0:
		if len(f.other(in)) >= 11 && prefixed(f.other(in), "\x03\x00") {
			return label
		}
		return more
	case prefixed(rest, "Cookie: ") || bytes.Contains(rest, []byte("mstshash=")):
		return f.rdpSecurity(in)
	case len(rest) >= 8 && (rest[0] == 1 || rest[0] == 2 || rest[0] == 3) && le16(rest[2:]) == 8:
		return f.rdpSecurity(in)
	}
	return no
}

// rdpSecurity looks for the ClientHello behind the connection request (MS-RDPBCGR 5.4.5).
func (f *Flow) rdpSecurity(in *input) outcome {
	b := in.data
	if len(b) < 11 {
		return label
	}
	size := be16(b[2:])
	if in.dir != 0 || len(b) < size+6 {
		return label
	}
	rest := b[size:]
	if rest[0] != recordHandshake {
		return final
	}
	message, whole := tlsMessage(f.engine, rest)
	if len(message) > 4 && message[0] == clientHello {
		var h hello
		if h.parse(message); !h.bad {
			h.keep(f)
			if whole {
				h.prints(f, 't')
				return final
			}
		}
	}
	return label
}

// teamviewerStream recognises TeamViewer's commands: the magic 0x1724 or 0x1130, a command, and a length.
func teamviewerStream(f *Flow, in *input) outcome {
	b := in.data
	if b[0] != 0x17 && b[0] != 0x11 {
		return no
	}
	if len(b) < 5 {
		if len(b) >= 2 && b[1] != 0x24 && b[1] != 0x30 {
			return no
		}
		return more
	}
	switch {
	case b[0] == 0x17 && b[1] == 0x24 && b[2] >= 0x0A && b[2] <= 0x40:
		if le16(b[3:])+5 > len(b) && f.count(in) == 1 {
			return more
		}
		return final
	case b[0] == 0x11 && b[1] == 0x30 && b[2] >= 0x0A && b[2] <= 0x40:
		return final
	}
	return no
}

// teamviewerDatagram expects the magic behind a counter.
func teamviewerDatagram(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) > 13 && b[0] == 0 && b[11] == 0x17 && b[12] == 0x24 {
		return final
	}
	return no
}

// telnetStream recognises option negotiation (RFC 854, RFC 855): IAC with a command and a known option, and
// nothing else between.
func telnetStream(_ *Flow, in *input) outcome {
	b := in.data
	if b[0] != 0xFF {
		return no
	}
	seen := 0
	for len(b) > 0 && b[0] == 0xFF && seen < 4 {
		if len(b) < 3 {
			if seen > 0 {
				break
			}
			if len(b) == 2 && b[1] < 0xF0 {
				return no
			}
			return more
		}
		if b[1] < 0xFA || b[1] == 0xFF || b[2] > 49 && b[2] < 138 && b[2] != 69 && b[2] != 70 || b[2] > 140 && b[2] != 255 {
			return no
		}
		seen++
		if b[1] == 0xFA {
			break
		}
		b = b[3:]
	}
	return final
}

// rshStream recognises the remote shell of BSD: the client sends a port in digits and a zero, then two names and
// a command, each behind the other with a zero at its end; the server answers a zero.
func rshStream(f *Flow, in *input) outcome {
	b := in.data
	if in.dir == 1 {
		return no
	}
	end := bytes.IndexByte(b, 0)
	if end < 0 {
		for _, c := range b {
			if !digit(c) {
				return no
			}
		}
		if len(b) > 5 {
			return no
		}
		return more
	}
	if end > 5 {
		return no
	}
	for _, c := range b[:end] {
		if !digit(c) {
			return no
		}
	}
	rest := b[end+1:]
	if end == 0 && len(rest) == 0 || len(rest) == 0 {
		return more
	}
	strings := 0
	for len(rest) > 0 && strings < 3 {
		n := bytes.IndexByte(rest, 0)
		if n < 0 || n == 0 || n > 256 || !printable(rest[:n]) {
			if n < 0 && printable(rest) && len(rest) < 256 {
				return more
			}
			return no
		}
		rest = rest[n+1:]
		strings++
	}
	if strings == 3 && f.key.SrcPort < 1024 {
		return final
	}
	return no
}

// nomachineDatagram recognises NoMachine's connection over UDP: a question and an answer of ten bytes each, with
// version 1 and their own length.
func nomachineDatagram(f *Flow, in *input) outcome {
	b, other := in.data, f.other(in)
	if len(b) == 10 && len(other) == 10 && b[0]+other[0] == 3 && at(b, 1, "\x00\x01\x00\x0a\x00") && at(other, 1, "\x00\x01\x00\x0a\x00") {
		return final
	}
	return no
}

// xdmcpDatagram recognises XDMCP (X Display Manager Control Protocol 1.1, 4): version 1, an opcode, the length.
func xdmcpDatagram(f *Flow, in *input) outcome {
	b := in.data
	if len(b) < 6 || be16(b) != 1 || be16(b[2:]) < 1 || be16(b[2:]) > 14 || be16(b[4:])+6 != len(b) || !f.hasPort(177) {
		return no
	}
	return final
}

// gitStream recognises git's daemon (pack-protocol): a packet line with its length in hex and a service.
func gitStream(f *Flow, in *input) outcome {
	b := in.data
	for _, c := range b[:min(len(b), 4)] {
		if !digit(c) && (c < 'a' || c > 'f') {
			return no
		}
	}
	if len(b) < 8 {
		return more
	}
	if at(b, 4, "git-upload-pack ") || at(b, 4, "git-receive-pack ") || at(b, 4, "git-upload-archive ") {
		line := b[4:]
		if i := bytes.Index(line, []byte("\x00host=")); i > 0 {
			name := line[i+6:]
			if end := bytes.IndexByte(name, 0); end > 0 {
				if colon := bytes.IndexByte(name[:end], ':'); colon > 0 {
					end = colon
				}
				f.setHost(name[:end])
			}
		}
		return final
	}
	if len(b) < 23 && at([]byte("git-upload-pack git-receive-pack git-upload-archive "), 0, string(b[4:8])) {
		return more
	}
	return no
}

// afpStream recognises the Data Stream Interface of the Apple Filing Protocol: a flag, a command, a length.
func afpStream(f *Flow, in *input) outcome {
	b := in.data
	if b[0] > 1 {
		return no
	}
	if len(b) < 16 {
		return more
	}
	size := be32(b[8:])
	if b[1] < 1 || b[1] > 8 || b[1] == 7 || !zero(b[12:16]) || size > 1<<20 || be16(b[2:]) == 0 && b[1] == 2 && size == 0 {
		return no
	}
	if size+16 != len(b) && (len(b) < MaxBytes || size < 1024) {
		if len(b) < 16+size && size < 2000 {
			return more
		}
		return no
	}
	switch b[1] {
	case 4, 3: // OpenSession with its options, GetStatus
		return final
	case 2: // a command, of which the answer has the same number
		other := f.other(in)
		if len(other) >= 4 && other[1] == b[1] && other[0] != b[0] && other[0] <= 1 && at(other, 2, string(b[2:4])) {
			return final
		}
		return more
	}
	return more
}

// tftpDatagram recognises a request (RFC 1350 5): a file's name and a mode, and options in pairs (RFC 2347). What
// follows comes from another port of the server, which is announced by the client's.
func tftpDatagram(f *Flow, in *input) outcome {
	b := in.data
	if len(b) < 9 || b[0] != 0 {
		return f.tftpData(in)
	}
	if b[1] == 1 || b[1] == 2 {
		end := bytes.IndexByte(b[2:], 0)
		if end < 1 || !printable(b[2:2+end]) {
			return no
		}
		mode := b[3+end:]
		if n := bytes.IndexByte(mode, 0); n > 0 && (equalFold(mode[:n], "octet") || equalFold(mode[:n], "netascii") || equalFold(mode[:n], "mail")) {
			client, port := f.key.Src, f.key.SrcPort
			if in.dir == 1 {
				client, port = f.key.Dst, f.key.DstPort
			}
			f.announce("tftp", 17, client, port)
			return final
		}
		return no
	}
	return f.tftpData(in)
}

// tftpData recognises a transfer whose request was not seen: a block of 512 bytes and its acknowledgement, or two
// blocks in a row.
func (f *Flow) tftpData(in *input) outcome {
	b := in.data
	other := f.other(in)
	switch {
	case len(b) < 4 || b[0] != 0:
		return no
	case b[1] == 4 && len(b) == 4 && len(other) >= 4 && be16(other) == 3 && f.dirs[in.dir^1].first.size() == 516:
		return final
	case b[1] == 3 && len(b) <= 516 && len(other) == 4 && be16(other) == 4 && be16(b[2:])-be16(other[2:]) <= 1 && be16(b[2:]) >= be16(other[2:]):
		return final
	case b[1] == 3 && len(b) == 516 && f.dirs[in.dir].previous.size() == 516:
		if before := f.dirs[in.dir].previous.bytes(); be16(before) == 3 && be16(b[2:])-be16(before[2:]) == 1 {
			return final
		}
	}
	return no
}

// uftpDatagram recognises UFTP (version 4 and 5): a version, a function, and a group that is repeated.
func uftpDatagram(f *Flow, in *input) outcome {
	b := in.data
	if len(b) < 16 || b[0] != 0x40 && b[0] != 0x50 || b[1] < 1 || b[1] > 19 || !f.hasPort(1044) {
		return no
	}
	return final
}

// rpcCall checks a call or a reply of ONC RPC (RFC 5531 9) to the port mapper, NFS, mount and their companions.
func rpcCall(b []byte) bool {
	if len(b) < 24 {
		return false
	}
	switch be32(b[4:]) {
	case 0:
		if len(b) < 40 || be32(b[8:]) != 2 {
			return false
		}
		program := be32(b[12:])
		return (program == 100003 || program == 100005 || program == 100000 || program == 100021 || program == 100024 || program == 100227) && be32(b[16:]) <= 5
	}
	return false
}

func rpcDatagram(_ *Flow, in *input) outcome {
	if rpcCall(in.data) {
		return final
	}
	return no
}

// rpcStream expects the record mark before the message (RFC 5531 11).
func rpcStream(_ *Flow, in *input) outcome {
	b := in.data
	if b[0]&0x80 == 0 {
		return no
	}
	if len(b) < 44 {
		if len(b) >= 12 && (be32(b[8:]) != 0) {
			return no
		}
		return more
	}
	if be32(b)&0x7FFFFFFF >= 40 && rpcCall(b[4:]) {
		return final
	}
	return no
}

// whoisStream recognises WHOIS (RFC 3912): one line, and a text as answer, on its port or with the words that
// registries use.
func whoisStream(f *Flow, in *input) outcome {
	b := in.data
	if in.dir == 1 {
		if len(b) > 40 && anyOf(b[:min(len(b), 600)], "whois", "WHOIS", "Domain Name:", "domain:", "No match for", "% IANA") {
			return final
		}
		if !printable(b[:min(len(b), 40)]) {
			return no
		}
		return more
	}
	if !f.hasPort(43) && !f.hasPort(4343) {
		return more
	}
	if len(b) > 256 || !printable(b) {
		return no
	}
	if len(b) > 3 && b[len(b)-1] == '\n' && bytes.Count(b, []byte("\n")) == 1 && bytes.IndexByte(b, '.') > 0 {
		f.confidence = Port
		return final
	}
	return more
}

// z3950Stream recognises Z39.50 (ISO 23950 3.2.1): an Initialize request with reference, version bits and options.
func z3950Stream(f *Flow, in *input) outcome {
	b := in.data
	if b[0] != 0xB4 && b[0] != 0xB5 {
		return no
	}
	if len(b) < 12 {
		return more
	}
	size, n := berLength(b[1:])
	if n == 0 || size+1+n != len(b) {
		return no
	}
	inner := b[1+n:]
	if inner[0] == 0x82 && len(inner) > 2+int(inner[1]) {
		inner = inner[2+int(inner[1]):]
	}
	if len(inner) > 4 && inner[0] == 0x83 && inner[1] <= 2 {
		return final
	}
	return no
}

// ooklaStream recognises the speed test's text: a greeting with an identifier, or what the server says of itself.
func ooklaStream(_ *Flow, in *input) outcome {
	b := in.data
	best := no
	for _, s := range [...]string{"HI ", "HELLO "} {
		switch begins(b, s) {
		case more:
			best = more
		case label:
			rest := b[len(s):]
			if len(rest) < 5 {
				return more
			}
			if s == "HELLO " {
				if digit(rest[0]) && rest[1] == '.' && bytes.IndexByte(rest, '(') > 0 {
					return final
				}
				return no
			}
			end := bytes.IndexByte(rest, '\n')
			if end < 0 {
				return more
			}
			if end == 36 && rest[8] == '-' && rest[13] == '-' || end == 0 {
				return final
			}
			return no
		}
	}
	if best == no && (prefixed(b, "HI\n") || prefixed(b, "HI\r\n")) {
		return final
	}
	return best
}

// rxDatagram recognises AFS's Rx (RX protocol specification): an epoch, a connection, a call, small counters, a
// packet type, and a service on the port of a file server.
func rxDatagram(f *Flow, in *input) outcome {
	b := in.data
	if len(b) < 28 || b[20] < 1 || b[20] > 13 || b[21]&0xC0 != 0 && b[21]&0x80 != 0 || be32(b) == 0 {
		return no
	}
	if be32(b[8:]) > 1<<20 || be32(b[12:]) > 1<<20 || be32(b[16:]) > 1<<20 || b[23] > 3 {
		return no
	}
	for port := uint16(7000); port <= 7009; port++ {
		if f.hasPort(port) {
			return final
		}
	}
	return no
}
