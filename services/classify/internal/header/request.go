package header

import (
	"bytes"
	"encoding/binary"

	"github.com/tidegate-mesh/tidegate/libs/packet"
)

// Request tells what a packet's payload asks for.
type Request uint8

// Kinds of requests that a sample of 128 bytes shows.
const (
	NoRequest Request = iota
	HTTP              // the first line of an HTTP/1 request
	DNS               // a query to port 53 over UDP
)

// payload is what follows the transport header in a sample, nil when nothing does.
func payload(p *packet.Packet, sample []byte) []byte {
	if p.L4 == 0 || p.LaterFragment {
		return nil
	}
	at := 0
	switch p.Proto {
	case packet.ProtoTCP:
		if len(sample) < p.L4+20 {
			return nil
		}
		at = p.L4 + int(sample[p.L4+12]>>4)*4
	case packet.ProtoUDP, packet.ProtoICMP, packet.ProtoICMPv6:
		at = p.L4 + 8
	}
	if at == 0 || at >= len(sample) {
		return nil
	}
	return sample[at:]
}

// request fills in what the payload asks for.
func (f *Facts) request(p *packet.Packet, sample []byte) {
	b := payload(p, sample)
	switch {
	case len(b) == 0:
	case f.Protocol == packet.ProtoTCP:
		if resource := HTTPResource(b); resource != nil {
			f.Asks, f.Name = HTTP, hash(resource)
		}
	case f.Protocol == packet.ProtoUDP && f.DstPort == 53:
		if q, ok := Query(b); ok {
			f.Asks, f.Name, f.Zone = DNS, hash(q.Name), hash(q.Zone())
		}
	}
}

var methods = [][]byte{[]byte("GET "), []byte("POST "), []byte("HEAD "), []byte("PUT "), []byte("OPTIONS "), []byte("DELETE "), []byte("PATCH ")}

// HTTPResource is the path, without its query, that an HTTP/1 request asks for (RFC 9112 3), cut where b ends; nil when b
// does not begin with a request.
func HTTPResource(b []byte) []byte {
	for _, m := range methods {
		if bytes.HasPrefix(b, m) {
			path := b[len(m):]
			if end := bytes.IndexAny(path, " ?\r\n"); end >= 0 {
				path = path[:end]
			}
			return path
		}
	}
	return nil
}

// Question is the first question of a DNS query. Name has dots between its labels and shares no memory with the message.
type Question struct {
	Name []byte
	Type uint16 // 0 when the sample ends before it
}

// Query reads a DNS query (RFC 1035 4.1). The message may be cut inside the name. ok is false for answers and for what is
// no query.
func Query(b []byte) (q Question, ok bool) {
	if len(b) < 13 || b[2]&0xF8 != 0 || binary.BigEndian.Uint16(b[4:]) != 1 || binary.BigEndian.Uint16(b[6:]) != 0 {
		return q, false
	}
	at := 12
	for at < len(b) && b[at] != 0 {
		n := int(b[at])
		if n > 63 || len(q.Name)+n > 255 {
			return q, false
		}
		if len(q.Name) > 0 {
			q.Name = append(q.Name, '.')
		}
		q.Name = append(q.Name, b[at+1:min(at+1+n, len(b))]...)
		at += n + 1
	}
	if at+3 <= len(b) {
		q.Type = binary.BigEndian.Uint16(b[at+1:])
	}
	return q, len(q.Name) > 0
}

// maxTopLabel is longer than any top-level domain in use; a longer last label is data, or the name is cut.
const maxTopLabel = 18

// Zone is the last two labels of the name; the first label when the last one cannot be a top-level domain.
func (q *Question) Zone() []byte {
	last := bytes.LastIndexByte(q.Name, '.')
	if len(q.Name)-last-1 > maxTopLabel || q.Type == 0 {
		if first := bytes.IndexByte(q.Name, '.'); first > 0 {
			return q.Name[:first]
		}
		return nil
	}
	if last <= 0 {
		return q.Name
	}
	return q.Name[bytes.LastIndexByte(q.Name[:last], '.')+1:]
}

// hash is FNV-1a.
func hash(b []byte) uint32 {
	h := uint32(2166136261)
	for _, c := range b {
		h = (h ^ uint32(c)) * 16777619
	}
	return h
}

// Echo is an ICMP or ICMPv6 echo message (RFC 792, RFC 4443 4).
type Echo struct {
	Reply   bool
	ID, Seq uint16
	Data    uint32 // hash of the sampled data and of the whole length
	Size    int    // bytes of data on the wire, as far as known
}

// ReadEcho reads an echo message from a sample whose packet has length bytes on the wire.
func ReadEcho(sample []byte, length uint16) (e Echo, ok bool) {
	var p packet.Packet
	p.DecodeLink(linkRaw, sample)
	if p.L4 == 0 || p.LaterFragment || len(sample) < p.L4+8 {
		return e, false
	}
	switch t := sample[p.L4]; {
	case p.Proto == packet.ProtoICMP && (t == 8 || t == 0):
		e.Reply = t == 0
	case p.Proto == packet.ProtoICMPv6 && (t == 128 || t == 129):
		e.Reply = t == 129
	default:
		return e, false
	}
	e.ID, e.Seq = binary.BigEndian.Uint16(sample[p.L4+4:]), binary.BigEndian.Uint16(sample[p.L4+6:])
	e.Size = int(length) - p.L4 - 8
	e.Data = hash(sample[p.L4+8:]) ^ uint32(length)*2654435761
	return e, true
}

// Piece is the place of a fragment in its datagram (RFC 791, RFC 8200 4.5).
type Piece struct {
	Src, Dst   [16]byte
	ID         uint32
	Protocol   uint8
	Start, End int // bytes, End is behind the last
}

// ReadPiece reads a fragment's place from a sample whose packet has length bytes on the wire. Of IPv6 it finds a fragment
// header that follows at once.
func ReadPiece(sample []byte, length uint16) (f Piece, ok bool) {
	switch {
	case len(sample) >= 20 && sample[0]>>4 == 4:
		place := binary.BigEndian.Uint16(sample[6:])
		if place&0x3FFF == 0 {
			return f, false
		}
		f.Src[10], f.Src[11], f.Dst[10], f.Dst[11] = 0xFF, 0xFF, 0xFF, 0xFF
		copy(f.Src[12:], sample[12:16])
		copy(f.Dst[12:], sample[16:20])
		f.ID, f.Protocol = uint32(binary.BigEndian.Uint16(sample[4:])), sample[9]
		f.Start = int(place&0x1FFF) * 8
		f.End = f.Start + int(length) - int(sample[0]&0xF)*4
	case len(sample) >= 48 && sample[0]>>4 == 6 && sample[6] == 44:
		copy(f.Src[:], sample[8:24])
		copy(f.Dst[:], sample[24:40])
		f.ID, f.Protocol = binary.BigEndian.Uint32(sample[44:]), sample[40]
		f.Start = int(binary.BigEndian.Uint16(sample[42:]) &^ 7)
		f.End = f.Start + int(length) - 48
	default:
		return f, false
	}
	return f, f.End > f.Start
}

// SampledQuery reads the DNS query of a sample, which may be cut.
func SampledQuery(sample []byte) (Question, bool) {
	var p packet.Packet
	p.DecodeLink(linkRaw, sample)
	return Query(payload(&p, sample))
}
