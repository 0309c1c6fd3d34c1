package app

import "bytes"

// storeProtocols are caches, search, clusters of storage, and calls between services.
var storeProtocols = []protocol{
	{label: "memcached", stream: memcachedStream, datagram: memcachedDatagram},
	{label: "resp", stream: respStream, rank: shaped},
	{label: "elasticsearch", stream: elasticStream},
	{label: "raft", stream: raftStream, rank: loose},
	{label: "ceph", stream: starts("ceph v0", "ceph v2\n")},
	{label: "lustre", stream: lustreStream},
	{label: "thrift", lead: "82", stream: thriftStream, rank: shaped, datagram: thriftDatagram},
}

var (
	memcachedCommands = []string{"get ", "gets ", "set ", "add ", "replace ", "append ", "prepend ", "cas ", "delete ",
		"incr ", "decr ", "stats\r\n", "stats ", "version\r\n", "verbosity ", "flush_all", "mg ", "ms "}
	memcachedAnswers = []string{"STAT ", "VALUE ", "STORED\r\n", "NOT_STORED\r\n", "DELETED\r\n", "VERSION ", "END\r\n"}
)

// memcachedStream recognises memcached's text (protocol.txt) and binary protocol.
func memcachedStream(_ *Flow, in *input) outcome { return memcached(in.data) }

func memcached(b []byte) outcome {
	if b[0] == 0x80 || b[0] == 0x81 { // binary: magic, opcode, key length, extras length, type 0
		if len(b) < 24 {
			return more
		}
		body := be32(b[8:])
		if b[1] > 0x23 || b[5] != 0 || body > 128<<20 || be16(b[2:])+int(b[4]) > body || be16(b[6:]) > 0x86 || 24+body < len(b) {
			return no
		}
		if b[0] == 0x80 && be16(b[2:]) == 0 && body != 0 {
			return no
		}
		return final
	}
	best := no
	for _, texts := range [2][]string{memcachedCommands, memcachedAnswers} {
		for _, s := range texts {
			switch begins(b, s) {
			case more:
				best = more
			case label:
				end := bytes.Index(b, []byte("\r\n"))
				if end < 0 {
					return more
				}
				if !printable(b[:end]) || end > 400 {
					return no
				}
				if s[len(s)-1] == ' ' && bytes.HasPrefix(b[len(s):], []byte("/")) { // "get /…" is HTTP 0.9's cousin
					return no
				}
				return final
			}
		}
	}
	return best
}

// memcachedDatagram expects the frame header of UDP before the text: request, sequence, count, reserved.
func memcachedDatagram(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 13 || be16(b[6:]) != 0 || be16(b[4:]) == 0 || be16(b[2:]) >= be16(b[4:]) {
		return no
	}
	if b[8] == 0x80 || b[8] == 0x81 {
		return no
	}
	if memcached(b[8:]) == final {
		return final
	}
	return no
}

// respStream recognises Redis (RESP2 and 3): an array of bulk strings from the client, or an inline command, which is a
// line of text that a typed value answers. What the server says is alike to others' text, so the client has to fit too.
func respStream(f *Flow, in *input) outcome {
	b, other := in.data, f.other(in)
	if b[0] != '*' {
		return respInline(b, other)
	}
	if len(other) > 0 && respCommand(other) == label {
		return final // an array as the answer; its elements may be of any type
	}
	n, rest, o := respNumber(b[1:])
	if o != label {
		return o
	}
	if n < 1 || n > 1<<20 {
		return no
	}
	if len(rest) == 0 {
		return more
	}
	if rest[0] == '*' || rest[0] == '$' {
		if _, _, o = respNumber(rest[1:]); o == label {
			return final
		}
		return o
	}
	return no
}

// respInline takes an inline command or its answer, and what the other side said; a type is no letter.
func respInline(b, other []byte) outcome {
	if letter := b[0] | 0x20; letter < 'a' || letter > 'z' {
		b, other = other, b
	}
	asked, answered := more, more
	if len(b) > 0 {
		asked = respCommand(b)
	}
	if len(other) > 0 {
		answered = respValue(other)
	}
	switch {
	case asked == no || answered == no:
		return no
	case asked == label && answered == label:
		return final
	}
	return more
}

// respCommand wants a word at the beginning of lines of text; a module's has a dot.
func respCommand(b []byte) outcome {
	n := 0
	for n < len(b) && (alphanumeric(b[n]) || b[n] == '.') {
		n++
	}
	switch {
	case n > 24, !printable(b):
		return no
	case n == len(b):
		return more
	case n < 3 || b[n] != ' ' && b[n] != '\r' && b[n] != '\n':
		return no
	}
	return label
}

// respValue reads the beginning of an answer: a type and a number behind it, or one of the fixed texts.
func respValue(b []byte) outcome {
	switch b[0] {
	case ':', '$', '*', '%', '~', '>', '|':
		_, _, o := respNumber(b[1:])
		return o
	case '+': // +OK is POP3's as well, which is asked first
		best := no
		for _, s := range [...]string{"+OK\r\n", "+PONG\r\n", "+QUEUED\r\n", "+RESET\r\n"} {
			best = max(best, begins(b, s))
		}
		return best
	case '-':
		best := no
		for _, s := range [...]string{"-NOAUTH ", "-WRONGTYPE ", "-WRONGPASS ", "-LOADING "} { // -ERR is POP3's as well
			best = max(best, begins(b, s))
		}
		return best
	}
	return no
}

// respNumber reads a number and its line's end.
func respNumber(b []byte) (n int, rest []byte, o outcome) {
	for i, c := range b {
		switch {
		case digit(c) && i < 8:
			n = n*10 + int(c-'0')
		case c == '\r' && i > 0:
			if i+1 >= len(b) {
				return 0, nil, more
			}
			if b[i+1] != '\n' {
				return 0, nil, no
			}
			return n, b[i+2:], label
		default:
			return 0, nil, no
		}
	}
	return 0, nil, more
}

// elasticStream recognises Elasticsearch's transport: ES, the length, a request, a status.
func elasticStream(_ *Flow, in *input) outcome {
	b := in.data
	if o := begins(b, "ES"); o != label {
		return o
	}
	if len(b) < 19 {
		return more
	}
	if size := be32(b[2:]); size > 1<<28 || b[14] > 0x0F {
		return no
	}
	return final
}

// raftStream recognises the C implementation of Raft that dqlite uses (raft, uv_encoding.c): eight bytes of type
// and eight of length, both little endian, and a first message with its own sizes.
func raftStream(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 16 {
		if len(b) > 1 && !zero(b[1:min(len(b), 8)]) {
			return no
		}
		return more
	}
	if b[0] == 0 || b[0] > 6 || !zero(b[1:8]) || !zero(b[12:16]) {
		return no
	}
	if b[0] == 1 && len(b) > 24 { // the handshake: protocol 1, the sender's id, its address
		size := le32(b[16:])
		if zero(b[20:24]) && size >= 8 && size <= 256 && size%8 == 0 && len(b) >= 24+size &&
			printable(bytes.TrimRight(b[24:24+size], "\x00")) && bytes.IndexByte(b[24:24+size], ':') > 0 {
			return final
		}
	}
	if size := le32(b[8:]); size < 8 || size > 1<<20 || size%8 != 0 || len(b) != 16+size {
		return no
	}
	return final
}

// lustreStream recognises Lustre's network driver for sockets (lnet/socklnd): its acceptor's magic and its
// connection's (LNET_PROTO_ACCEPTOR_MAGIC, LNET_PROTO_TCP_MAGIC in lnet/include/uapi).
func lustreStream(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 16 {
		if len(b) < 4 {
			return more
		}
		if be32(b) != 0xacce7100 && le32(b) != 0xacce7100 && le32(b) != 0xC1 {
			return no
		}
		return more
	}
	// A message of the socket driver: type, no checksum and no cookies, then the network of both ends.
	if le32(b) == 0xC1 && len(b) >= 40 && zero(b[4:24]) && le16(b[30:]) == 2 && le16(b[38:]) == 2 {
		return final
	}
	if be32(b) == 0xacce7100 {
		return final
	}
	switch magic := uint32(le32(b)); magic { //nolint:gosec // four bytes
	case 0xacce7100, 0x45726963, 0xeebc0ded:
		return final
	}
	return no
}

// thriftStream recognises Apache Thrift's strict binary protocol, alone or in frames, and the compact one
// (thrift-binary-protocol.md, thrift-compact-protocol.md).
func thriftStream(_ *Flow, in *input) outcome {
	b := in.data
	if b[0] == 0 { // a frame's length
		if len(b) < 8 {
			return more
		}
		if size := be32(b); size < 12 || size > 1<<24 {
			return no
		}
		b = b[4:]
	}
	return thriftMessage(b)
}

func thriftMessage(b []byte) outcome {
	if len(b) == 0 || b[0] != 0x80 {
		return no
	}
	if o := begins(b, "\x80\x01\x00"); o != label {
		return o
	}
	if len(b) < 9 {
		return more
	}
	size := be32(b[4:])
	if b[3] < 1 || b[3] > 4 || size < 1 || size > 255 {
		return no
	}
	name := b[8:min(len(b), 8+size)]
	for _, c := range name {
		if !alphanumeric(c) && c != '_' && c != ':' && c != '.' {
			return no
		}
	}
	if len(name) < size {
		return more
	}
	return final
}

// thriftDatagram recognises the compact protocol of agents that report over UDP.
func thriftDatagram(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) > 8 && b[0] == 0x82 && b[1]&0x1F == 1 && b[1]>>5 >= 1 && b[1]>>5 <= 4 {
		at := 2
		for at < len(b) && at < 7 && b[at]&0x80 != 0 {
			at++
		}
		at++
		if at >= len(b) {
			return no
		}
		n := int(b[at])
		if n < 3 || n > 64 || at+1+n > len(b) {
			return no
		}
		for _, c := range b[at+1 : at+1+n] {
			if !alphanumeric(c) && c != '_' {
				return no
			}
		}
		return final
	}
	return no
}
