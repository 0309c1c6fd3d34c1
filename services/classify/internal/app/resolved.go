package app

import (
	"encoding/binary"
	"net/netip"
)

// maxResolved is how many answers one generation holds; maxAnswers bounds those read of one message.
const (
	maxResolved = 16384
	maxAnswers  = 32
)

// pair is a client and an address that it was told.
type pair struct{ client, addr [16]byte }

// resolved remembers which name a client asked for before it was told an address. Like names it keeps two
// generations, so memory is bounded and an answer lasts for at least maxResolved others.
type resolved struct {
	young, old map[pair]string
}

func (r *resolved) add(p pair, name string) {
	if len(r.young) >= maxResolved {
		r.young, r.old = r.old, r.young
		clear(r.young)
	}
	if r.young == nil {
		r.young = make(map[pair]string, 64)
	}
	r.young[p] = name
}

func (r *resolved) get(p pair) string {
	if name, ok := r.young[p]; ok {
		return name
	}
	return r.old[p]
}

// rcodes are the names of response codes (RFC 1035 4.1.1, RFC 2136 2.2); the ones after them come with EDNS only,
// which is not read.
var rcodes = [...]string{"NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "YXDOMAIN", "YXRRSET", "NXRRSET",
	"NOTAUTH", "NOTZONE", "RCODE11", "RCODE12", "RCODE13", "RCODE14", "RCODE15"}

func rcode(code byte) string { return rcodes[code&0x0F] }

// Bounds of the answers that are kept as text.
const (
	maxAnswersKept = 8
	maxAnswerText  = 256
)

// answers reads the answers of a response (RFC 1035 4.1.3): it keeps addresses and names as text and, when the question
// was named, remembers the addresses for the flow's client. Aliases on the way do not matter for that: the user asked for
// the first name.
func (f *Flow) answers(in *input, q *question, b []byte, named bool) {
	client := f.key.Dst
	if in.dir == 1 {
		client = f.key.Src
	}
	count := min(int(binary.BigEndian.Uint16(b[6:])), maxAnswers)
	if binary.BigEndian.Uint16(b[4:]) != 1 {
		return
	}
	text, kept := f.engine.text[:0], 0
	for at := q.end; count > 0; count-- {
		if at = skipName(b, at); at < 0 || at+10 > len(b) {
			break
		}
		kind, size := binary.BigEndian.Uint16(b[at:]), int(binary.BigEndian.Uint16(b[at+8:]))
		at += 10
		if at+size > len(b) {
			break
		}
		if kept < maxAnswersKept {
			if longer := appendAnswer(text, kind, b, at, size); len(longer) > len(text) && len(longer) <= maxAnswerText {
				text = longer
				kept++
			}
		}
		p := pair{client: client}
		switch {
		case !named:
		case kind == 1 && size == 4: // A
			p.addr[10], p.addr[11] = 0xFF, 0xFF
			copy(p.addr[12:], b[at:])
			f.engine.resolved.add(p, f.host)
		case kind == 28 && size == 16: // AAAA (RFC 3596 2.2)
			copy(p.addr[:], b[at:])
			f.engine.resolved.add(p, f.host)
		}
		at += size
	}
	if len(text) > 0 {
		f.facts.DNSAnswers = f.engine.names.get(text)
	}
}

// appendAnswer appends what a record of size bytes at offset at says, behind a space if it is not the first: an address, or
// the name that NS, CNAME, PTR, MX, SRV, SVCB and HTTPS records lead to. What it cannot read adds nothing.
func appendAnswer(text []byte, kind uint16, b []byte, at, size int) []byte {
	out := text
	if len(out) > 0 {
		out = append(out, ' ')
	}
	begin := len(out)
	data := b[at : at+size]
	switch kind {
	case 1: // A
		if size == 4 {
			out = netip.AddrFrom4([4]byte(data)).AppendTo(out)
		}
	case 28: // AAAA
		if size == 16 {
			out = netip.AddrFrom16([16]byte(data)).AppendTo(out)
		}
	case 2, 5, 12, 39: // NS, CNAME, PTR, DNAME
		out = appendName(out, b[:at+size], at)
	case 15, 64, 65: // MX, SVCB, HTTPS: behind a preference or priority
		out = appendName(out, b[:at+size], at+2)
	case 33: // SRV: behind priority, weight and port
		out = appendName(out, b[:at+size], at+6)
	}
	if len(out) == begin {
		return text
	}
	return out
}

// maxPointers bounds how often a name may go on elsewhere; each must lead back (RFC 1035 4.1.4), so none can turn in a
// circle.
const maxPointers = 16

// appendName appends the name at an offset, with dots; nothing when it is damaged, empty or has bytes that are not printable.
func appendName(out, b []byte, at int) []byte {
	begin := len(out)
	for pointers := 0; at < len(b); {
		n := int(b[at])
		switch {
		case n == 0:
			return out
		case n >= 0xC0:
			if at+1 >= len(b) {
				return out[:begin]
			}
			to := (n&0x3F)<<8 | int(b[at+1])
			if pointers++; to >= at || pointers > maxPointers {
				return out[:begin]
			}
			at = to
		case n > 63 || at+1+n > len(b) || len(out)-begin+n > 254:
			return out[:begin]
		default:
			if len(out) > begin {
				out = append(out, '.')
			}
			for _, c := range b[at+1 : at+1+n] {
				if c <= ' ' || c >= 0x7F {
					return out[:begin]
				}
				if 'A' <= c && c <= 'Z' {
					c += 'a' - 'A'
				}
				out = append(out, c)
			}
			at += n + 1
		}
	}
	return out[:begin]
}

// skipName returns the offset behind a name, -1 when b ends inside it. A pointer ends a name and is not followed.
func skipName(b []byte, at int) int {
	for at < len(b) {
		n := int(b[at])
		switch {
		case n == 0:
			return at + 1
		case n >= 0xC0:
			return at + 2
		case n > 63:
			return -1
		}
		at += n + 1
	}
	return -1
}
