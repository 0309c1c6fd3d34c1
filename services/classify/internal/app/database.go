package app

import "bytes"

// databaseProtocols are databases and caches.
var databaseProtocols = []protocol{
	{label: "mysql", stream: mysqlStream},
	{label: "postgresql", stream: postgresStream, rank: shaped},
	{label: "mssql", stream: tdsStream, rank: shaped},
	{label: "oracle", stream: oracleStream, rank: shaped},
	{label: "drda", stream: drdaStream},
	{label: "mongodb", stream: mongoStream},
	{label: "cassandra", stream: cassandraStream, rank: shaped},
	{label: "cassandra", stream: starts("\xca\x55\x2d\xfa")}, // between nodes: CASSANDRA-13630, protocol magic
	{label: "memcached", stream: memcachedStream, datagram: memcachedDatagram},
	{label: "resp", stream: respStream, rank: shaped},
	{label: "elasticsearch", stream: elasticStream},
	{label: "raft", stream: raftStream, rank: loose},
	{label: "ceph", stream: starts("ceph v0", "ceph v2\n")},
	{label: "lustre", stream: lustreStream},
	{label: "thrift", stream: thriftStream, rank: shaped, datagram: thriftDatagram},
}

// mysqlStream recognises the server's greeting (MySQL internals, Protocol::HandshakeV10): length, sequence 0,
// version 10, a version text.
func mysqlStream(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 6 {
		if len(b) >= 5 && b[4] != 10 || len(b) >= 4 && b[3] != 0 {
			return no
		}
		return more
	}
	size := int(b[0]) | int(b[1])<<8 | int(b[2])<<16
	if b[3] != 0 || size < 30 || size > 512 {
		return no
	}
	if b[4] == 0xFF { // an error, as to a host that is not allowed
		if len(b) > 8 && le16(b[5:]) >= 1000 && le16(b[5:]) < 4000 && (b[7] == '#' || printable(b[7:min(len(b), 4+size)])) {
			return final
		}
		return no
	}
	if b[4] != 10 || !digit(b[5]) {
		return no
	}
	end := bytes.IndexByte(b[5:], 0)
	switch {
	case end < 0 && len(b) < 80:
		return more
	case end < 3 || end > 64 || !printable(b[5:5+end]) || !bytes.Contains(b[5:5+end], []byte(".")):
		return no
	case len(b) > 5+end+13 && b[5+end+13] != 0: // the filler behind the first part of the challenge
		return no
	}
	return final
}

// postgresStream recognises the start of a connection (PostgreSQL documentation, Message Formats): a start-up
// message with parameters, or a request for encryption or cancelling, each with its number.
func postgresStream(f *Flow, in *input) outcome {
	b := in.data
	if len(b) == 1 && (b[0] == 'N' || b[0] == 'S') && len(f.other(in)) == 8 {
		return more
	}
	if len(b) < 8 {
		if len(b) >= 1 && b[0] != 0 {
			return postgresAnswer(f, in)
		}
		return more
	}
	size := be32(b)
	switch be32(b[4:]) {
	case 80877103, 80877104: // SSLRequest, GSSENCRequest
		if size == 8 {
			return final
		}
	case 80877102: // CancelRequest
		if size == 16 {
			return final
		}
	case 196608, 196610: // 3.0, 3.2
		if size > 8 && size < 4096 && anyOf(b[8:min(len(b), 512)], "user\x00", "database\x00") {
			return final
		}
	}
	if b[0] != 0 {
		return postgresAnswer(f, in)
	}
	return no
}

// postgresAnswer recognises the authentication request that follows a start-up message.
func postgresAnswer(_ *Flow, in *input) outcome {
	b := in.data
	if b[0] != 'R' {
		return no
	}
	if len(b) < 9 {
		return more
	}
	if size := be32(b[1:]); size < 8 || size > 64 || be32(b[5:]) > 12 {
		return no
	}
	return final
}

// tdsStream recognises TDS (MS-TDS 2.2.3): a packet header whose length fits, of a client that logs in or asks.
func tdsStream(_ *Flow, in *input) outcome {
	b := in.data
	switch b[0] {
	case 1, 3, 4, 7, 14, 16, 17, 18:
	default:
		return no
	}
	if len(b) < 8 {
		if len(b) >= 2 && b[1]&^0x1F != 0 {
			return no
		}
		return more
	}
	size := be16(b[2:])
	if b[1]&^0x1F != 0 || size < 9 || b[7] != 0 || size > 32767 || be16(b[4:]) > 0x7FF || b[6] == 0 && b[0] != 18 && b[0] != 4 {
		return no
	}
	if b[1]&1 != 0 && len(b) != size && len(b) < MaxBytes {
		if len(b) > size {
			return no
		}
		return more
	}
	switch b[0] {
	case 18: // PRELOGIN: options, each a type, an offset and a length
		if len(b) < 13 || b[8] > 8 || be16(b[9:]) >= size {
			return no
		}
	case 1, 3, 14: // all headers or the older versions' plain text
		if len(b) < 14 {
			return no
		}
		if total := le32(b[8:]); (total < 18 || total > size) && b[9] != 0 {
			return no
		}
	case 4: // a token
		if b[8] < 0x79 && b[8] != 0 {
			return no
		}
	case 16:
		if len(b) < 16 || le32(b[8:]) > size {
			return no
		}
	}
	return final
}

// oracleStream recognises TNS (Oracle Net Services): a packet header with its length and type, and in a connect
// packet a description, in the others' the redirect or the versions.
func oracleStream(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 8 {
		if len(b) >= 5 && (b[4] == 0 || b[4] > 14) {
			return no
		}
		return more
	}
	if be16(b[2:]) != 0 || b[5] > 1 && b[5]&^0x38 != 0 || b[6] != 0 || b[7] != 0 {
		return no
	}
	size := be16(b)
	switch b[4] {
	case 1: // connect: its version is 300 and more
		if size < 58 || len(b) < 34 {
			return no
		}
		if v := be16(b[8:]); v < 300 || v > 330 {
			return no
		}
		if at := be16(b[26:]); at > size {
			return no
		}
		return final
	}
	return no
}

// drdaStream recognises DRDA (The Open Group C912): a data stream structure with its magic 0xD0 and a command
// whose length fits inside.
func drdaStream(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 10 {
		if len(b) >= 3 && b[2] != 0xD0 {
			return no
		}
		return more
	}
	size := be16(b)
	if b[2] != 0xD0 || size < 10 || be16(b[6:])+6 != size || b[3]&0x0F > 5 || b[3]&0x0F == 0 {
		return no
	}
	return final
}

// mongoStream recognises MongoDB's wire protocol: a header of four numbers, the last of them a known operation.
func mongoStream(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 16 {
		return more
	}
	size := le32(b)
	if size < 16 || size > 48_000_000 {
		return no
	}
	switch le32(b[12:]) {
	case 1, 2001, 2002, 2004, 2005, 2006, 2007, 2010, 2011, 2012:
	case 2013: // OP_MSG: flags, then a section
		if len(b) < 21 || le32(b[16:])&^0x10003 != 0 || b[20] > 1 {
			return no
		}
	default:
		return no
	}
	if le32(b[12:]) == 1 && (len(b) < 36 || le32(b[8:]) == 0) {
		return no
	}
	return final
}

// cassandraStream recognises CQL's native protocol (v5 specification, 2): version with the direction's bit,
// flags, stream, opcode, length.
func cassandraStream(_ *Flow, in *input) outcome {
	b := in.data
	version := b[0] & 0x7F
	if version < 1 || version > 5 {
		return no
	}
	head := 9
	if version < 3 {
		head = 8
	}
	if len(b) < head {
		return more
	}
	op, size := b[4], be32(b[5:])
	if head == 8 {
		op, size = b[3], be32(b[4:])
	}
	if b[1]&^0x1F != 0 || op > 0x10 || size > 1<<20 {
		return no
	}
	switch op {
	case 5: // OPTIONS is empty
		if size != 0 || b[0]&0x80 != 0 {
			return no
		}
	case 1: // STARTUP names the version of the language
		if !bytes.Contains(b, []byte("CQL_VERSION")) {
			return no
		}
	case 6: // SUPPORTED does too
		if !bytes.Contains(b, []byte("COMPRESSION")) && !bytes.Contains(b, []byte("CQL_VERSION")) {
			return no
		}
	case 7, 11: // QUERY and REGISTER begin with a text
		if len(b) < head+8 || size < 4 || len(b)-head != size || !printable(b[head+4:min(head+16, len(b))]) {
			return no
		}
	default:
		return no
	}
	return final
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

// respStream recognises Redis (RESP2 and 3): an array of bulk strings from the client. What the server says is
// alike to others' text, so it is the client that tells.
func respStream(_ *Flow, in *input) outcome {
	b := in.data
	if b[0] != '*' {
		return no
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
	if len(b) >= 4 && b[0] == 0 { // a frame's length
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
