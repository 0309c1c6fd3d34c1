package app

import (
	"encoding/binary"
	"strconv"
)

// Ports that tell apart protocols whose messages have DNS's shape.
const (
	portDNS     = 53
	portNetBIOS = 137
	portMDNS    = 5353
	portLLMNR   = 5355
)

// nameProtocols find names, addresses, services and the time.
var nameProtocols = []protocol{
	{label: "dhcp", lead: "01-02", datagram: dhcpDatagram},
	{label: "ssdp", lead: "48 4d-4e", datagram: ssdpDatagram},
	{label: "wsd", lead: "3c", datagram: wsdDatagram},
	{label: "netbios", datagram: netbiosDatagram, stream: netbiosStream},
	{label: "mdns", datagram: mdnsDatagram, rank: shaped, byPort: true},
	{label: "llmnr", datagram: llmnrDatagram, rank: shaped, byPort: true},
	{label: "dhcpv6", lead: "01-24", datagram: dhcpv6Datagram, rank: shaped, byPort: true},
	{label: "slp", lead: "01-02", datagram: slpDatagram, stream: slpDatagram, rank: shaped, byPort: true},
	{label: "nat_pmp", lead: "00-02", datagram: natPMPDatagram, rank: loose, byPort: true},
	{label: "ntp", lead: "08-27 48-67 88-a7 c8-e7", datagram: ntpDatagram, rank: shaped},
	{label: "dns", stream: dnsStream, datagram: dnsDatagram, rank: shaped, also: []string{"llmnr"}},
}

// dnsDatagram recognises DNS over UDP (RFC 1035 4).
func dnsDatagram(f *Flow, in *input) outcome {
	if !f.hasPort(portDNS) {
		if f.hasPort(portMDNS) || f.hasPort(portLLMNR) || f.hasPort(portNetBIOS) {
			return no
		}
		return dnsMessage(f, in, in.data)
	}
	// On its own port either the counts or the question may be damaged, not both.
	b := in.data
	if len(b) < 12 || !dnsHeader(b, false) {
		return no
	}
	var q question
	asked := q.skip(b)
	if !asked && !dnsHeader(b, true) {
		// One question in an ordinary query or answer is what a damaged message may have left.
		if b[2]&0x78 == 0 && b[3]&0x0F <= 5 && binary.BigEndian.Uint16(b[4:]) == 1 && len(b) >= 17 {
			f.risk(true, Malformed)
			return f.is("dns", Port, final)
		}
		return no
	}
	f.risk(!asked && !q.short || !dnsHeader(b, true), Malformed)
	if asked {
		return f.asked(in, &q, b)
	}
	if b[2]&0x80 == 0 {
		return label // the answer may repeat the question in better shape
	}
	return final
}

// dnsTypes are the types of questions that users meet (RFC 1035 3.2.2, IANA's registry); others have a number.
var dnsTypes = map[uint16]string{1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 10: "NULL", 12: "PTR", 15: "MX", 16: "TXT", 28: "AAAA",
	33: "SRV", 35: "NAPTR", 43: "DS", 48: "DNSKEY", 64: "SVCB", 65: "HTTPS", 252: "AXFR", 255: "ANY"}

// asked keeps what a question says, and the answers to it, which end the reading.
func (f *Flow) asked(in *input, q *question, b []byte) outcome {
	var name []byte
	update := b[2]&0x78 == opUpdate
	if update && be16(b[6:])+be16(b[8:]) > 0 {
		// The question is the zone; what is changed in it stands in the first record, a prerequisite or the update.
		name = nameAt(f.engine, b, q.end)
	}
	if len(name) == 0 {
		name = q.name(f.engine, b)
	}
	f.setQuestion(name)
	f.facts.DNSType = dnsTypes[q.typ]
	if f.facts.DNSType == "" {
		f.facts.DNSType = f.engine.names.get(strconv.AppendUint(append(f.engine.text[:0], "TYPE"...), uint64(q.typ), 10)) // RFC 3597 5
	}
	f.risk(q.tunnel(b), DNSTunnel)
	if b[2]&0x80 == 0 {
		return label
	}
	f.facts.DNSRcode = rcode(b[3] & 0x0F)
	if !update { // its sections are others
		f.answers(in, q, b, len(name) > 0)
	}
	return final
}

// opUpdate is the opcode of an update, in its place of the first byte of flags (RFC 2136 2.2).
const opUpdate = 5 << 3

// nameAt reads a name that may end with pointers (RFC 1035 4.1.4), in the engine's scratch memory; nil for none that can
// be shown.
func nameAt(e *Engine, b []byte, at int) []byte {
	out := e.scratch[:0]
	for at < len(b) && b[at] != 0 {
		n := int(b[at])
		switch {
		case n >= 0xC0:
			if at+1 >= len(b) {
				return nil
			}
			to := be16(b[at:]) & 0x3FFF
			if to >= at { // backwards only, so that it ends
				return nil
			}
			at = to
			continue
		case n > 63 || at+1+n > len(b) || len(out)+n > 254:
			return nil
		}
		if len(out) > 0 {
			out = append(out, '.')
		}
		for _, c := range b[at+1 : at+1+n] {
			if c <= ' ' || c >= 0x7F {
				return nil
			}
			out = append(out, c)
		}
		at += 1 + n
	}
	if at >= len(b) {
		return nil
	}
	return out
}

// tunnel tells whether a name has the shape of data: a type that carries nothing else (NULL), or more than 100 bytes of
// which a label of at least 40 has hardly a vowel, as encodings with 32 or 64 letters give it. Services that put sums into
// names look like it too; that is why it is a risk and no label.
func (q *question) tunnel(b []byte) bool {
	if q.typ == 10 {
		return true
	}
	if q.end-12-4 <= 100 {
		return false
	}
	for at := 12; b[at] != 0; at += int(b[at]) + 1 {
		name := b[at+1 : at+1+int(b[at])]
		if len(name) < 40 {
			continue
		}
		vowels := 0
		for _, c := range name {
			switch c | 0x20 {
			case 'a', 'e', 'i', 'o', 'u':
				vowels++
			}
		}
		if vowels*4 < len(name) {
			return true
		}
	}
	return false
}

// dnsStream recognises DNS and LLMNR over TCP: messages behind a 2-byte length (RFC 1035 4.2.2).
func dnsStream(f *Flow, in *input) outcome {
	b := in.data
	if len(b) < 2 {
		return more
	}
	size := int(binary.BigEndian.Uint16(b))
	if size < 17 {
		return no
	}
	b = b[2:]
	if len(b) < 12 {
		if len(b) >= 4 && !dnsHeader(b, false) {
			return no
		}
		return more
	}
	if len(b) < size && len(b) < 300 {
		var q question
		if !dnsHeader(b, true) || !q.skip(b) && !q.short {
			return no
		}
		if q.short {
			return more
		}
	}
	o := dnsMessage(f, in, b[:min(size, len(b))])
	if (o == label || o == final) && f.hasPort(portLLMNR) { // RFC 4795 2.4
		return f.is("llmnr", Port, o)
	}
	return o
}

// mdnsDatagram recognises multicast DNS (RFC 6762 18): DNS's shape on port 5353 of either side.
func mdnsDatagram(f *Flow, in *input) outcome {
	if !f.hasPort(portMDNS) || f.hasPort(portDNS) {
		return no // a resolver's client may happen to use port 5353
	}
	b := in.data
	if !dnsHeader(b, false) {
		return no
	}
	if len(b) < 12 {
		return no
	}
	var q question
	if binary.BigEndian.Uint16(b[4:]) > 0 {
		if !q.skip(b) && !q.short {
			return no
		}
	} else if !dnsHeader(b, true) || b[2]&0x80 == 0 {
		return no // without a question it can only be an answer or a goodbye
	}
	if q.ok {
		f.setQuestion(q.name(f.engine, b))
	}
	return final
}

// dnsHeader checks what a header can say (RFC 1035 4.1.1). b has at least 4 bytes; with fewer than 12, or
// without counts, only the flags are looked at.
func dnsHeader(b []byte, counts bool) bool {
	if len(b) < 4 {
		return false
	}
	flags := binary.BigEndian.Uint16(b[2:])
	opcode := flags >> 11 & 0xF
	if opcode == 3 || opcode > 6 || flags&0x0040 != 0 || flags&0xF > 10 {
		return false // unassigned opcode, the bit that must be zero, unassigned code
	}
	response := flags&0x8000 != 0
	if !response && flags&0xF != 0 {
		return false
	}
	if len(b) < 12 {
		return !counts
	}
	if !counts {
		return true
	}
	qd, an := binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:])
	ns, ar := binary.BigEndian.Uint16(b[8:]), binary.BigEndian.Uint16(b[10:])
	if response {
		return qd <= 4 && an <= 512 && ns <= 128 && ar <= 128 && (qd > 0 || an > 0 || flags&0xF != 0)
	}
	return qd >= 1 && qd <= 8 && an <= 16 && ns <= 32 && ar <= 8
}

// dnsMessage checks header and first question, strictly enough to do without a port.
func dnsMessage(f *Flow, in *input, b []byte) outcome {
	var q question
	if len(b) < 12 || !dnsHeader(b, true) || binary.BigEndian.Uint16(b[4:]) == 0 || !q.skip(b) || !q.plausible(b) {
		return no
	}
	return f.asked(in, &q, b)
}

// question is the first question of a message.
type question struct {
	end       int // behind type and class
	typ       uint16
	class     uint16
	ok, short bool
}

// skip walks over the first question; false with short set when the bytes end inside it.
func (q *question) skip(b []byte) bool {
	at, total := 12, 0
	for {
		if at >= len(b) {
			q.short = true
			return false
		}
		n := int(b[at])
		if n > 63 {
			return false // pointers have nothing to point at yet
		}
		total += n + 1
		if total > 255 {
			return false
		}
		at += n + 1
		if n == 0 {
			break
		}
	}
	if at+4 > len(b) {
		q.short = true
		return false
	}
	q.typ = binary.BigEndian.Uint16(b[at:])
	q.class = binary.BigEndian.Uint16(b[at+2:])
	q.end = at + 4
	q.ok = q.typ != 0
	return q.ok
}

// plausible wants a class and type in use, and in a query of one question nothing behind it.
func (q *question) plausible(b []byte) bool {
	switch q.class {
	case 1, 3, 4, 254, 255:
	default:
		return false
	}
	if q.typ > 260 && q.typ < 32768 || q.typ > 32770 && q.typ < 65280 {
		return false
	}
	if binary.BigEndian.Uint16(b[2:])&0xF800 == 0 && binary.BigEndian.Uint16(b[4:]) == 1 &&
		binary.BigEndian.Uint16(b[6:]) == 0 && binary.BigEndian.Uint16(b[8:]) == 0 &&
		binary.BigEndian.Uint16(b[10:]) == 0 && q.end != len(b) {
		return false
	}
	return true
}

// name writes the question's name with dots; nil when it has bytes that are not printable.
func (q *question) name(e *Engine, b []byte) []byte {
	out := e.scratch[:0]
	for at := 12; b[at] != 0; at += int(b[at]) + 1 {
		if len(out) > 0 {
			out = append(out, '.')
		}
		out = append(out, b[at+1:at+1+int(b[at])]...)
	}
	for _, c := range out {
		if c <= ' ' || c >= 0x7F {
			return nil
		}
	}
	return out
}
