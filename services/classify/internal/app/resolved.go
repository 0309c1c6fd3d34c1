package app

import "encoding/binary"

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

// answers remembers the addresses of a response (RFC 1035 4.1.3) for the flow's client. Aliases on the way do not
// matter: the user asked for the first name.
func (f *Flow) answers(in *input, q *question, b []byte) {
	client := f.key.Dst
	if in.dir == 1 {
		client = f.key.Src
	}
	count := min(int(binary.BigEndian.Uint16(b[6:])), maxAnswers)
	if binary.BigEndian.Uint16(b[4:]) != 1 {
		return
	}
	for at := q.end; count > 0; count-- {
		if at = skipName(b, at); at < 0 || at+10 > len(b) {
			return
		}
		kind, size := binary.BigEndian.Uint16(b[at:]), int(binary.BigEndian.Uint16(b[at+8:]))
		at += 10
		if at+size > len(b) {
			return
		}
		p := pair{client: client}
		switch {
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
