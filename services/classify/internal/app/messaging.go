package app

import "bytes"

// messagingProtocols are brokers, job queues and monitoring: machines that talk with machines.
var messagingProtocols = []protocol{
	{label: "amqp", stream: starts("AMQP\x00\x00\x09\x01", "AMQP\x00\x01\x00\x00", "AMQP\x03\x01\x00\x00", "AMQP\x02\x01\x00\x00", "AMQP\x01\x01\x00\x09", "AMQP\x01\x01\x00\x0a", "AMQP\x01\x01\x08\x00")}, // AMQP 0-9-1 4.2.2, 1.0 2.2
	{label: "mqtt", stream: mqttStream, rank: shaped},
	{label: "kafka", stream: kafkaStream, rank: shaped},
	{label: "stomp", stream: stompStream},
	{label: "nats", stream: natsStream},
	{label: "openwire", stream: openWireStream},
	{label: "xmpp", stream: xmppStream, also: []string{"truphone"}},
	{label: "irc", stream: ircStream},
	{label: "gearman", stream: starts("\x00REQ\x00\x00\x00", "\x00RES\x00\x00\x00")},  // Gearman PROTOCOL, Binary Packet
	{label: "zabbix", stream: starts("ZBXD\x01", "ZBXD\x03", "ZBXD\x05", "ZBXD\x07")}, // Zabbix manual, Header and data length
	{label: "munin", stream: starts("# munin node at ")},
	{label: "checkmk", stream: starts("<<<check_mk>>>", "<<<cmk_agent", "<<<check_mk")},
	{label: "ajp", stream: ajpStream},
	{label: "fastcgi", stream: fastcgiStream, rank: shaped},
	{label: "haproxy", stream: haproxyStream},
	{label: "json_rpc", stream: jsonRPCStream, also: []string{"mining"}},
	{label: "corba", stream: starts("GIOP\x01\x00\x00", "GIOP\x01\x00\x01", "GIOP\x01\x01\x00", "GIOP\x01\x01\x01", "GIOP\x01\x02\x00", "GIOP\x01\x02\x01", "GIOP\x01\x02\x02", "GIOP\x01\x02\x03")}, // CORBA 3.3 part 2, 9.4.1
	{label: "jrmi", stream: starts("JRMI\x00\x01", "JRMI\x00\x02")}, // Java RMI 10.2.1
	{label: "hl7", stream: hl7Stream},
	{label: "fix", stream: fixStream},
	{label: "smpp", stream: smppStream, rank: shaped},
	{label: "collectd", lead: "00 02", datagram: collectdDatagram, rank: shaped},
	{label: "protobuf", datagram: protobufMessage, stream: protobufMessage, rank: guess},
	{label: "syslog", lead: "3c", datagram: syslogMessage, stream: syslogMessage, rank: shaped},
}

// kafkaStream recognises a request (Kafka protocol guide, Headers): length, key, version, correlation, a client
// id that is text.
func kafkaStream(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 14 {
		if b[0] > 6 {
			return no
		}
		return more
	}
	size, key, version, name := be32(b), be16(b[4:]), be16(b[6:]), be16(b[12:])
	if size < 10 || size > 100<<20 || key > 80 || version > 20 || name == 0 || name > 200 || name+10 > size {
		return no
	}
	id := b[14:min(len(b), 14+name)]
	for _, c := range id {
		if !alphanumeric(c) && c != '.' && c != '-' && c != '_' {
			return no
		}
	}
	if len(id) < name {
		return more
	}
	return final
}

// stompStream recognises STOMP (1.2, Frames).
func stompStream(_ *Flow, in *input) outcome {
	best := no
	for _, s := range [...]string{"CONNECT\n", "STOMP\n", "CONNECTED\n", "CONNECT\r\n", "STOMP\r\n", "CONNECTED\r\n"} {
		switch begins(in.data, s) {
		case label:
			if anyOf(in.data, "accept-version:", "version:", "login:", "host:", "session:", "server:") {
				return final
			}
			best = more
		case more:
			best = more
		}
	}
	return best
}

// natsStream recognises NATS (client protocol): the server's INFO, or a client's CONNECT.
func natsStream(_ *Flow, in *input) outcome {
	best := no
	for _, s := range [...]string{"INFO {", "CONNECT {"} {
		switch begins(in.data, s) {
		case label:
			if anyOf(in.data, `"server_id"`, `"verbose"`, `"pedantic"`, `"lang"`) {
				return final
			}
			best = more
		case more:
			best = more
		}
	}
	return best
}

// openWireStream recognises ActiveMQ's WIREFORMAT_INFO (OpenWire version 2): length, type 1, the magic.
func openWireStream(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 13 {
		if len(b) >= 5 && b[4] != 1 {
			return no
		}
		return more
	}
	if b[4] == 1 && at(b, 5, "ActiveMQ") {
		return final
	}
	return no
}

// xmppStream recognises the opening of an XML stream (RFC 6120 4.2). Truphone's application speaks it with a
// name of its own.
func xmppStream(f *Flow, in *input) outcome {
	b := in.data
	if b[0] != '<' {
		return no
	}
	best := more
	if len(b) >= 16 && !prefixed(b, "<?xml") && !prefixed(b, "<stream:stream") {
		best = no
	}
	head := b[:min(len(b), 512)]
	if at := bytes.Index(head, []byte("<stream:stream")); at >= 0 {
		if !anyOf(head, "jabber:client", "jabber:server", "jabber:component", "etherx.jabber.org/streams") {
			if len(b) >= 512 {
				return no
			}
			return more
		}
		if to := bytes.Index(head, []byte(" to=")); to >= 0 && to+6 < len(head) {
			name := head[to+5:]
			if end := bytes.IndexByte(name, head[to+4]); end > 0 {
				f.setHost(name[:end])
			}
		}
		if bytes.Contains(head, []byte("xmlns:truphone")) || bytes.Contains(head, []byte("truphone")) {
			return f.is("truphone", Payload, final)
		}
		return final
	}
	return best
}

// ircStream recognises IRC (RFC 2812 3.1): NICK and USER of a client that registers, its capabilities (IRCv3, CAP), a
// server's first notice, or its answer to STARTTLS (IRCv3, tls).
func ircStream(f *Flow, in *input) outcome {
	b := in.data
	whole, text := wholeLine(b)
	if !text {
		return no
	}
	if b[0] == ':' {
		if !whole {
			return more
		}
		if anyOf(b[:min(len(b), 200)], " NOTICE ", " 001 ", " PRIVMSG ", " 020 ", " 670 ", " CAP * ") {
			return final
		}
		return no
	}
	if o := begins(b, "NOTICE AUTH"); o == label {
		return final
	}
	if !whole {
		return more
	}
	switch {
	case prefixed(b, "NICK ") && anyOf(b, "\nUSER "), prefixed(b, "USER ") && anyOf(b, "\nNICK "),
		prefixed(b, "CAP LS"), prefixed(b, "CAP REQ :"), prefixed(b, "PASS ") && anyOf(b, "\nNICK "):
		return final
	case prefixed(b, "USER ") && bytes.Count(b[:bytes.IndexByte(b, '\n')], []byte(" ")) >= 4:
		return final
	case prefixed(b, "NICK "), prefixed(b, "USER "), prefixed(b, "PASS "), prefixed(b, "NOTICE"), prefixed(b, "STARTTLS\r\n"):
		return more
	}
	return no
}

// ajpStream recognises the Apache JServ Protocol (AJPv13, Packet Structure): a magic a direction, a length, a
// known prefix code.
func ajpStream(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 5 {
		if b[0] != 0x12 && b[0] != 'A' || len(b) >= 2 && b[1] != 0x34 && b[1] != 'B' {
			return no
		}
		return more
	}
	size := be16(b[2:])
	switch {
	case size == 0 || size > 8192:
	case b[0] == 0x12 && b[1] == 0x34 && (b[4] == 2 || b[4] == 7 || b[4] == 8 || b[4] == 10):
		return final
	case b[0] == 'A' && b[1] == 'B' && b[4] >= 3 && b[4] <= 9:
		return final
	}
	return no
}

// fastcgiStream recognises FastCGI (1.0, 3.3 and 8): a BEGIN_REQUEST of eight bytes with a known role.
func fastcgiStream(_ *Flow, in *input) outcome {
	b := in.data
	if o := begins(b, "\x01\x01"); o != label {
		return o
	}
	if len(b) < 16 {
		return more
	}
	if be16(b[4:]) != 8 || b[8] != 0 || b[9] < 1 || b[9] > 3 || b[10]&^1 != 0 || !zero(b[11:16]) {
		return no
	}
	return final
}

// haproxyStream recognises the PROXY protocol (HAProxy, versions 1 and 2).
func haproxyStream(_ *Flow, in *input) outcome {
	best := no
	for _, s := range [...]string{"PROXY TCP4 ", "PROXY TCP6 ", "PROXY UNKNOWN", "\r\n\r\n\x00\r\nQUIT\n"} {
		if o := begins(in.data, s); o == label {
			return final
		} else if o == more {
			best = more
		}
	}
	return best
}

// jsonRPCStream recognises JSON-RPC 2.0 (4 and 5) in a stream without HTTP, and the mining protocols made of it:
// Stratum and getwork by their methods.
func jsonRPCStream(f *Flow, in *input) outcome {
	b := in.data
	if b[0] != '{' {
		return no
	}
	head := b[:min(len(b), 1024)]
	switch {
	case anyOf(head, `"mining.`, `"eth_submit`, `"eth_getWork`, `"eth_login`, `"eth1.0"`) ||
		anyOf(head, `"method":"login"`, `"method": "login"`) && anyOf(head, `"agent"`, `"pass"`):
		return f.is("mining", Payload, final)
	case anyOf(head, `"jsonrpc":"2.0"`, `"jsonrpc": "2.0"`, `"jsonrpc" : "2.0"`):
		if anyOf(head, `"method"`) || len(f.other(in)) > 0 && f.other(in)[0] == '{' {
			return final
		}
		return more
	case !printable(head) || len(b) > 1024:
		return no
	}
	return more
}

// hl7Stream recognises HL7 version 2 in its minimal lower layer: a vertical tab, then the message header.
func hl7Stream(_ *Flow, in *input) outcome {
	best := no
	for _, s := range [...]string{"\x0bMSH|", "\x0bFHS|", "\x0bBHS|"} {
		if o := begins(in.data, s); o == label {
			return final
		} else if o == more {
			best = more
		}
	}
	return best
}

// fixStream recognises the Financial Information eXchange: BeginString, then BodyLength (FIX session layer 4.2).
func fixStream(_ *Flow, in *input) outcome {
	b := in.data
	if o := begins(b, "8=FIX"); o != label {
		return o
	}
	if len(b) < 14 {
		return more
	}
	if at := bytes.Index(b[:min(len(b), 20)], []byte("\x019=")); at > 0 {
		return final
	}
	return no
}

// smppStream recognises SMPP (3.4, 3.2): four numbers, of which a command is in use and a status is 0 in requests.
func smppStream(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 16 {
		if b[0] != 0 {
			return no
		}
		return more
	}
	size, command, status := be32(b), be32(b[4:]), be32(b[8:])
	if size < 16 || size > 64<<10 {
		return no
	}
	switch command &^ 0x80000000 {
	case 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0xB, 0x15, 0x21, 0x102, 0x103:
	default:
		return no
	}
	if command&0x80000000 == 0 && status != 0 || status > 0x4FF || be32(b[12:]) == 0 || be32(b[12:]) > 0x7FFFFFFF {
		return no
	}
	if command&0x7FFFFFFF == 0 && command != 0x80000000 {
		return no
	}
	if size > len(b) && len(b) < MaxBytes {
		return more
	}
	return final
}

// collectdDatagram recognises collectd's binary protocol: parts with a type and a length that fill the datagram,
// the first of them the host's name, or a signature.
func collectdDatagram(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 12 {
		return no
	}
	if first := be16(b); first != 0 && first != 0x200 && first != 0x210 {
		return no
	}
	parts := 0
	for len(b) >= 4 {
		kind, size := be16(b), be16(b[2:])
		if kind > 9 && kind != 0x100 && kind != 0x101 && kind != 0x200 && kind != 0x210 || size < 5 || size > len(b) {
			return no
		}
		if kind <= 5 && kind != 1 && b[size-1] != 0 {
			return no
		}
		b = b[size:]
		parts++
	}
	if len(b) != 0 || parts < 2 {
		return no
	}
	return final
}

// protobufMessage recognises a bare Protocol Buffers message (Encoding): fields with small ascending numbers
// that fill the payload exactly, several of them, one at least a text. It is the last to be asked.
func protobufMessage(f *Flow, in *input) outcome {
	b := in.data
	if f.proto == 6 && f.count(in) > 1 || len(b) < 12 {
		return no
	}
	fields, texts, last := 0, 0, uint64(0)
	for len(b) > 0 {
		tag, n := protoVarint(b)
		if n == 0 || tag>>3 == 0 || tag>>3 > 64 || tag>>3 < last {
			return no
		}
		last = tag >> 3
		b = b[n:]
		switch tag & 7 {
		case 0:
			if _, n = protoVarint(b); n == 0 {
				return no
			}
			b = b[n:]
		case 1:
			if len(b) < 8 {
				return no
			}
			b = b[8:]
		case 5:
			if len(b) < 4 {
				return no
			}
			b = b[4:]
		case 2:
			size, n := protoVarint(b)
			if n == 0 || size > uint64(len(b)-n) {
				return no
			}
			value := b[n : n+int(size)] //nolint:gosec // at most len(b)
			if len(value) >= 4 && printable(value) {
				texts++
			}
			b = b[n+int(size):] //nolint:gosec // at most len(b)
		default:
			return no
		}
		fields++
	}
	if fields < 4 || texts < 1 {
		return no
	}
	return final
}

// protoVarint reads a base-128 number; size 0 when there is none.
func protoVarint(b []byte) (v uint64, size int) {
	for i, c := range b[:min(len(b), 10)] {
		v |= uint64(c&0x7F) << (7 * i)
		if c&0x80 == 0 {
			return v, i + 1
		}
	}
	return 0, 0
}

// syslogMessage recognises syslog: a priority of at most 191 in angle brackets (RFC 5424 6.2.1, RFC 3164 4.1.1),
// over TCP perhaps behind a count (RFC 6587 3.4.1).
func syslogMessage(f *Flow, in *input) outcome {
	b := in.data
	if f.proto == 6 {
		n := 0
		for n < len(b) && n < 5 && digit(b[n]) {
			n++
		}
		if n > 0 && n < len(b) && b[n] == ' ' {
			b, n = b[n+1:], 0
		}
		if n == len(b) {
			return more
		}
	}
	if len(b) == 0 || b[0] != '<' {
		return no
	}
	v, i := 0, 1
	for ; i < len(b) && digit(b[i]); i++ {
		if v = v*10 + int(b[i]-'0'); v > 191 {
			return no
		}
	}
	if i == 1 && len(b) > 1 {
		return no
	}
	if i+8 >= len(b) {
		return more
	}
	if b[i] != '>' || !printable(b[i+1:i+8]) {
		return no
	}
	return final
}
