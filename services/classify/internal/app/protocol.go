package app

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/packet"
)

// outcome is a protocol's answer to the bytes so far.
type outcome uint8

const (
	no      outcome = iota // these bytes are another protocol's
	more                   // a prefix of this protocol's, too short to tell
	label                  // this protocol; more bytes may bring a host name
	final                  // this protocol, and nothing is left to learn
	foreign                // a protocol that is known and has no label here: stop looking
)

// input is what a protocol looks at: the contiguous beginning of a direction's stream, or one datagram.
type input struct {
	data []byte // not empty, not kept
	dir  uint8  // 0 from the flow's source
}

// forget lets go of the borrowed bytes.
func (in *input) forget() { in.data = nil }

// rank says how much of a message a protocol checks. The exact ones are asked first.
type rank uint8

const (
	exact  rank = iota // a magic number, or a structure that chance does not give
	shaped             // a header whose lengths and codes fit
	loose              // little to hold on to
	guess              // a shape that many messages have by chance: asked last
)

// protocol is an entry of a family's table.
type protocol struct {
	label    string
	stream   func(f *Flow, in *input) outcome // TCP; nil = never on TCP
	datagram func(f *Flow, in *input) outcome // UDP; nil = never on UDP
	// lead are the values that a datagram's first byte can have, in hexadecimal: "04 63-66"; "" = any. Streams need none:
	// what they cannot begin with is asked when the table is made.
	lead   string
	rank   rank
	byPort bool     // the bytes have the shape of several, and the functions ask for the port too
	also   []string // labels that the functions may give instead
}

// protocols is the table of all families, in the order in which protocols are asked.
var protocols []protocol

// protocolSet has a bit for each index into protocols.
type protocolSet [4]uint64

func (s *protocolSet) add(i int)  { s[i>>6] |= 1 << (i & 63) }
func (s *protocolSet) none() bool { return s[0]|s[1]|s[2]|s[3] == 0 }

func (s *protocolSet) and(t *protocolSet) {
	for i := range s {
		s[i] &= t[i]
	}
}

var streamProtocols, exactStreams protocolSet

// streamMatch and datagramMatch are the functions of protocols by index, close together.
var streamMatch, datagramMatch [256]func(f *Flow, in *input) outcome

// streamsBy and datagramsBy have the protocols that are possible by the first byte, so that bytes of no protocol are put
// to a few instead of all.
var streamsBy, datagramsBy [256]protocolSet

func init() { //nolint:gochecknoinits // the entries refer back to the table
	for _, family := range [][]protocol{
		webProtocols, secureProtocols, nameProtocols, mailProtocols, databaseProtocols, messagingProtocols, voiceProtocols,
		vpnProtocols, industrialProtocols, remoteProtocols, directoryProtocols, routingProtocols, peerProtocols,
		chatProtocols, gameProtocols, playProtocols, homeProtocols, buildingProtocols, storeProtocols,
	} {
		protocols = append(protocols, family...)
	}
	slices.SortStableFunc(protocols, func(a, b protocol) int { return cmp.Compare(a.rank, b.rank) })
	e := NewEngine()
	for i, p := range protocols {
		streamMatch[i], datagramMatch[i] = p.stream, p.datagram
		if p.stream != nil {
			streamProtocols.add(i)
			if p.rank == exact {
				exactStreams.add(i)
			}
			for c, possible := range p.streamLead(e) {
				if possible {
					streamsBy[c].add(i)
				}
			}
		}
		if p.datagram != nil {
			for c, possible := range p.datagramLead() {
				if possible {
					datagramsBy[c].add(i)
				}
			}
		}
	}
}

// streamLead asks about every single byte: no to the beginning of a stream is no whatever follows. A protocol that says
// no to all of them wants a message in one piece and may begin with any.
func (p *protocol) streamLead(e *Engine) (lead [256]bool) {
	none := true
	in, first := &e.in, e.joined[:1]
	for c := range lead {
		f := e.Open(flow.Key{Protocol: packet.ProtoTCP})
		f.dirs[0].packets = 1
		first[0] = byte(c) //nolint:gosec // below 256
		*in = input{data: first}
		if p.stream(f, in) != no {
			lead[c], none = true, false
		}
		f.Release()
	}
	in.forget()
	for c := range lead {
		lead[c] = lead[c] || none
	}
	return lead
}

// datagramLead reads the lead of the table.
func (p *protocol) datagramLead() (lead [256]bool) {
	for _, span := range strings.Fields(p.lead) {
		from, to, ranged := strings.Cut(span, "-")
		if !ranged {
			to = from
		}
		first, err := strconv.ParseUint(from, 16, 8)
		last, err2 := strconv.ParseUint(to, 16, 8)
		if err != nil || err2 != nil {
			panic("app: the lead of " + p.label + " is no list of bytes in hexadecimal")
		}
		for c := first; c <= last; c++ {
			lead[c] = true
		}
	}
	if p.lead == "" {
		for c := range lead {
			lead[c] = true
		}
	}
	return lead
}

// LabelOf is the label that an IP protocol number is enough for, "" = none.
func LabelOf(proto uint8) string {
	switch proto {
	case packet.ProtoICMP:
		return "icmp"
	case packet.ProtoICMPv6:
		return "icmpv6"
	case 2:
		return "igmp"
	case 50, 51: // ESP, AH
		return "ipsec"
	case 89:
		return "ospf"
	case 103:
		return "ip_pim"
	case 112:
		return "vrrp"
	case 113:
		return "pgm"
	case packet.ProtoSCTP:
		return "sctp"
	}
	return ""
}

// Labels returns every label that a flow may get, Unknown not among them.
func Labels() []string {
	seen := map[string]bool{}
	for _, p := range protocols {
		seen[p.label] = true
		for _, l := range p.also {
			seen[l] = true
		}
	}
	for proto := range 256 {
		if l := LabelOf(uint8(proto)); l != "" { //nolint:gosec // below 256
			seen[l] = true
		}
	}
	out := make([]string, 0, len(seen))
	for l := range seen {
		out = append(out, l)
	}
	slices.Sort(out)
	return out
}
