package detect

import (
	"bytes"
	"fmt"
	"net/netip"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

const (
	stationsNs    = int64(300e9)
	maxStations   = 4_096
	stationsKnown = 4           // stations remembered of an address
	cacheNs       = int64(60e9) // a cache believes what it was told for about a minute, so who poisons it need not say it more often
)

// Stations remembers at which station (MAC address) ARP says an address is. Flip-flops of an address within five minutes ≥
// ARPFlips: changes from its newest station back to one that it was at before, what arpwatch(8) calls "flip flop". A moved
// address, a lease given anew and a failover change once, to a station that is new; who poisons a cache must say it again
// and again, against the owner's own messages. Changes between the virtual stations of one gateway do not count.
//
// What the sensors of different sites see are different networks, so each is judged by itself, and each VLAN. One goroutine
// owns it.
type Stations struct{ places map[place]*stations }

type place struct {
	sensor string
	vlan   uint32
	addr   [16]byte
}

type mac [6]byte

func (m mac) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// stations of one address. known is a ring; the newest station is in it.
type stations struct {
	newest   mac
	known    [stationsKnown]mac
	next     int
	flips    int
	sinceNs  int64 // of the five minutes
	firstNs  int64 // first flip-flop in them
	lastNs   int64
	messages uint64 // in them
}

func (s *stations) last() int64 { return s.lastNs }

// NewStations returns an empty memory.
func NewStations() *Stations { return &Stations{places: make(map[place]*stations)} }

// Add takes in a binding that a sensor saw. text says what was found, for people.
func (s *Stations) Add(sensor string, b *flowv1.ArpBinding, t *Thresholds) (scan Scan, text string, ok bool) {
	if len(b.GetAddr()) != 16 || len(b.GetMac()) != 6 {
		return Scan{}, "", false
	}
	k := place{sensor, b.GetVlan(), [16]byte(b.GetAddr())}
	m, now := mac(b.GetMac()), b.GetFirstNs()
	x := remember(s.places, k, maxStations, func() *stations { return &stations{sinceNs: now} })
	if d := now - x.sinceNs; d > stationsNs || d < -stationsNs {
		x.sinceNs, x.flips, x.messages = now, 0, 0
	}
	x.lastNs = now
	x.messages += b.GetMessages()
	was := x.newest
	if !x.move(m) {
		return Scan{}, "", false
	}
	if x.flips++; x.flips == 1 {
		x.firstNs = now
	}
	n := float64(x.flips)
	host := flow.Addr(k.addr)
	return Scan{
		Type: ARPSpoof, Target: netip.PrefixFrom(host, host.BitLen()), Host: host, Packets: x.messages, Sources: 1, FirstNs: x.firstNs, HoldNs: cacheNs, Alert: true,
		Measure: Measure{Level: n / t.ARPFlips, Packets: x.messages, Features: map[string]float64{"arp_flips": n, "arp_messages": float64(x.messages)},
			Limits: map[string]float64{"arp_flips": t.ARPFlips}},
	}, fmt.Sprintf("%s is by ARP now at the station %s and now at %s, %d times within five minutes", host, was, m, x.flips), n >= t.ARPFlips
}

// move notes the newest station and tells whether that is a flip-flop.
func (s *stations) move(m mac) bool {
	was := s.newest
	if was == m {
		return false
	}
	s.newest = m
	for _, k := range s.known {
		if k == m {
			return !virtual(was) || !virtual(m)
		}
	}
	s.known[s.next] = m
	s.next = (s.next + 1) % stationsKnown
	return false
}

// virtualRouters are the stations that redundant gateways make up: VRRP's (RFC 9568 7.3, which CARP uses too), HSRP's (RFC
// 2281 5.3 and version 2's) and GLBP's, which gives the clients of one gateway different ones.
var virtualRouters = [][]byte{
	{0x00, 0x00, 0x5E, 0x00, 0x01}, {0x00, 0x00, 0x5E, 0x00, 0x02}, {0x00, 0x00, 0x0C, 0x07, 0xAC}, {0x00, 0x00, 0x0C, 0x9F, 0xF0}, {0x00, 0x07, 0xB4},
}

func virtual(m mac) bool {
	for _, p := range virtualRouters {
		if bytes.HasPrefix(m[:], p) {
			return true
		}
	}
	return false
}
