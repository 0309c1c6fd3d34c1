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
}

// mysqlStream recognises the server's greeting (MySQL internals, Protocol::HandshakeV10): length, sequence 0,
// version 10, a version text.
func mysqlStream(_ *Flow, in *input) outcome {
	b := in.data
	if len(b) < 6 {
		if len(b) >= 5 && b[4] != 10 && b[4] != 0xFF || len(b) >= 4 && b[3] != 0 {
			return no
		}
		return more
	}
	size := int(b[0]) | int(b[1])<<8 | int(b[2])<<16
	if b[3] != 0 || size < 30 || size > 512 {
		return no
	}
	if b[4] == 0xFF { // an error, as to a host that is not allowed
		if len(b) < 9 {
			return more
		}
		if le16(b[5:]) >= 1000 && le16(b[5:]) < 4000 && (b[7] == '#' || printable(b[7:min(len(b), 4+size)])) {
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
		if size <= 8 || size >= 4096 {
			return no
		}
		if anyOf(b[8:min(len(b), 512)], "user\x00", "database\x00") {
			return final
		}
		if len(b) < min(size, 512) {
			return more
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
	if len(b) == 8 {
		return more
	}
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
		if size < 58 {
			return no
		}
		if len(b) < 34 {
			return more
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
		if len(b) < 21 {
			return more
		}
		if le32(b[16:])&^0x10003 != 0 || b[20] > 1 {
			return no
		}
	default:
		return no
	}
	if le32(b[12:]) == 1 { // an answer names its question
		if le32(b[8:]) == 0 || size < 36 {
			return no
		}
		if len(b) < 36 {
			return more
		}
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
	op, size := b[head-5], be32(b[head-4:])
	if b[1]&^0x1F != 0 || op > 0x10 || size > 1<<20 {
		return no
	}
	if len(b) < head+size && len(b) < 256 && op <= 0x10 && op != 5 {
		return more
	}
	switch op {
	case 5: // OPTIONS is empty
		if size != 0 || b[0]&0x80 != 0 || len(b) != head {
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
