// Package loadgen makes traffic for the demo, for end-to-end tests and for benchmarks: benign connections
// that really complete, attacks that vary by seed, and even streams of packets at up to the machine's limit.
package loadgen

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sort"
	"strings"

	"github.com/tidegate-mesh/tidegate/libs/packet"
	"github.com/tidegate-mesh/tidegate/libs/policy"
)

// Kinds of attack.
const (
	SYNFlood          = "syn_flood"
	SYNFloodLookalike = "syn_flood_lookalike" // like benign SYNs in all but its sources
	UDPFlood          = "udp_flood"
	ICMPFlood         = "icmp_flood"
	AmpDNS            = "amp_dns"
	AmpNTP            = "amp_ntp"
	PortScan          = "port_scan"
	HostSweep         = "host_sweep"
)

// Attack describes one attack's packets.
type Attack struct {
	Kind   string
	Seed   uint64         // varies length, TTL, options, ports and addresses
	Target netip.Addr     // IPv4
	Avoid  []netip.Prefix // no source is taken from these
	// Sources is how many source addresses there are; 0 takes the kind's own number: random for every
	// packet in the SYN floods, thousands of reflectors in the amplifications, one in the scans.
	Sources int
	// Carpet is the length of the target's prefix whose addresses get the packets, in turn at random; 0: only the target does.
	// Scans choose their hosts themselves.
	Carpet         int
	SrcMAC, DstMAC [6]byte
}

// Frames makes an attack's frames one after the other.
type Frames struct {
	a       Attack
	rng     *rand.Rand
	next    func(f *Frames, b []byte) []byte
	header  packet.Header
	tcp     packet.TCP
	payload []byte
	sources []netip.Addr
	ttlMin  int
	ttlSpan int
	lenMin  int
	lenSpan int
	count   uint32
	perm    []uint16 // order of scanned ports
}

var kinds = map[string]struct {
	sources int
	next    func(f *Frames, b []byte) []byte
}{
	SYNFlood:          {0, (*Frames).syn},
	SYNFloodLookalike: {0, (*Frames).syn},
	UDPFlood:          {8, (*Frames).udp},
	ICMPFlood:         {0, (*Frames).icmp},
	AmpDNS:            {3000, (*Frames).dns},
	AmpNTP:            {1500, (*Frames).ntp},
	PortScan:          {1, (*Frames).scan},
	HostSweep:         {1, (*Frames).sweep},
}

// Kinds lists every kind of attack, sorted.
func Kinds() []string {
	var out []string
	for k := range kinds {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

// NewFrames prepares an attack. The same Attack gives the same frames.
func NewFrames(a Attack) (*Frames, error) {
	k, ok := kinds[a.Kind]
	if !ok {
		return nil, fmt.Errorf("unknown attack %q: use one of %s", a.Kind, strings.Join(Kinds(), ", "))
	}
	if !a.Target.Is4() {
		return nil, fmt.Errorf("attack %s: the target %v is not an IPv4 address", a.Kind, a.Target)
	}
	if a.Carpet < 0 || a.Carpet > 32 {
		return nil, fmt.Errorf("attack %s: a prefix of length %d is none of IPv4's", a.Kind, a.Carpet)
	}
	f := &Frames{a: a, next: k.next, rng: rand.New(rand.NewPCG(a.Seed, 0x7469646567617465))}
	n := a.Sources
	if n == 0 {
		n = k.sources
	}
	for range n {
		f.sources = append(f.sources, f.randomSource())
	}
	f.header = packet.Header{SrcMAC: a.SrcMAC, DstMAC: a.DstMAC, Dst: a.Target}
	f.vary()
	return f, nil
}

// Next appends one frame to b.
func (f *Frames) Next(b []byte) []byte {
	f.count++
	return f.next(f, b)
}

// Port is the destination port that all frames have, or 0.
func (f *Frames) Port() uint16 { return f.tcp.DstPort }

// vary fixes by the seed what the whole attack has in common.
func (f *Frames) vary() {
	f.ttlMin, f.ttlSpan = 32+f.rng.IntN(180), 1+f.rng.IntN(24)
	switch f.a.Kind {
	case SYNFlood, SYNFloodLookalike:
		f.tcp = packet.TCP{DstPort: []uint16{80, 443, 443, 25565}[f.rng.IntN(4)], Flags: policy.SYN, Window: uint16(512 << f.rng.IntN(7))}
		if f.a.Kind == SYNFloodLookalike {
			f.tcp.DstPort, f.tcp.Window, f.ttlMin, f.ttlSpan = 443, 64240, 64, 1
			f.header.DontFragment = true
			f.tcp.Options = LinuxSYNOptions(0)
			return
		}
		switch f.rng.IntN(4) {
		case 1:
			f.tcp.Options = packet.AppendMSS(nil, 1460)
		case 2:
			f.tcp.Options = packet.AppendSACKPermitted(packet.AppendMSS(nil, 1400))
		case 3:
			f.tcp.Options = packet.AppendWindowScale(packet.AppendMSS(nil, 1460), 8)
		}
	case UDPFlood:
		f.tcp.DstPort = uint16(1024 + f.rng.IntN(60000))
		f.lenMin, f.lenSpan = 64+f.rng.IntN(800), 1+f.rng.IntN(200)
	case ICMPFlood:
		f.lenMin, f.lenSpan = 56+f.rng.IntN(800), 1
	case AmpDNS:
		f.lenMin, f.lenSpan = 900+f.rng.IntN(300), 1+f.rng.IntN(200)
		f.payload = dnsAnswer(f.lenMin + f.lenSpan)
	case AmpNTP:
		f.payload = make([]byte, 440)
		f.payload[0], f.payload[2], f.payload[3] = 0xD7, 3, 42 // mode 7, response, more; implementation XNTPD; MON_GETLIST_1
		binary.BigEndian.PutUint16(f.payload[4:], 6)
		binary.BigEndian.PutUint16(f.payload[6:], 72)
	case PortScan:
		for _, p := range f.rng.Perm(10000) {
			f.perm = append(f.perm, uint16(p+1))
		}
	}
}

// LinuxSYNOptions are the options of a Linux client's SYN: MSS, SACK permitted, time stamps, window scale.
func LinuxSYNOptions(timestamp uint32) []byte {
	o := packet.AppendSACKPermitted(packet.AppendMSS(nil, 1460))
	o = append(o, 8, 10)
	o = binary.BigEndian.AppendUint32(o, timestamp)
	o = binary.BigEndian.AppendUint32(o, 0)
	return packet.AppendWindowScale(o, 10)
}

func (f *Frames) randomSource() netip.Addr {
	for {
		n := f.rng.Uint32()
		if first := n >> 24; first == 0 || first == 10 || first == 127 || first >= 224 {
			continue
		}
		a := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, n)))
		if a != f.a.Target && !f.avoided(a) {
			return a
		}
	}
}

func (f *Frames) avoided(a netip.Addr) bool {
	for _, p := range f.a.Avoid {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// start sets source address, TTL and IP id of the next frame.
func (f *Frames) start() {
	if len(f.sources) > 0 {
		f.header.Src = f.sources[f.rng.IntN(len(f.sources))]
	} else {
		f.header.Src = f.randomSource()
	}
	if n := f.a.Carpet; n > 0 {
		to := f.a.Target.As4()
		mask := uint32(1)<<(32-n) - 1
		binary.BigEndian.PutUint32(to[:], binary.BigEndian.Uint32(to[:])&^mask|f.rng.Uint32()&mask)
		f.header.Dst = netip.AddrFrom4(to)
	}
	f.header.TTL = uint8(min(255, f.ttlMin+f.rng.IntN(f.ttlSpan)))
	f.header.ID = uint16(f.rng.Uint32())
}

func (f *Frames) size() int { return f.lenMin + f.rng.IntN(f.lenSpan) }

func (f *Frames) port() uint16 { return uint16(1024 + f.rng.IntN(64000)) }

func (f *Frames) syn(b []byte) []byte {
	f.start()
	f.tcp.SrcPort, f.tcp.Seq = f.port(), f.rng.Uint32()
	if f.a.Kind == SYNFloodLookalike {
		binary.BigEndian.PutUint32(f.tcp.Options[8:], f.rng.Uint32())
	}
	return f.header.AppendTCP(b, &f.tcp, nil)
}

var filler [2048]byte

func (f *Frames) udp(b []byte) []byte {
	f.start()
	return f.header.AppendUDP(b, f.port(), f.tcp.DstPort, filler[:f.size()])
}

func (f *Frames) icmp(b []byte) []byte {
	f.start()
	return f.header.AppendICMP(b, 8, 0, f.rng.Uint32(), filler[:f.size()])
}

func (f *Frames) dns(b []byte) []byte {
	f.start()
	p := f.payload[:f.size()]
	binary.BigEndian.PutUint16(p, uint16(f.rng.Uint32()))
	return f.header.AppendUDP(b, 53, f.port(), p)
}

func (f *Frames) ntp(b []byte) []byte {
	f.start()
	return f.header.AppendUDP(b, 123, f.port(), f.payload)
}

func (f *Frames) scan(b []byte) []byte {
	f.start()
	t := packet.TCP{
		SrcPort: f.port(), DstPort: f.perm[int(f.count)%len(f.perm)], Seq: f.rng.Uint32(), Flags: policy.SYN,
		Window: 1024, Options: packet.AppendMSS(nil, 1460),
	}
	return f.header.AppendTCP(b, &t, nil)
}

// sweep tries port 22 on the hosts of the target's /24, one after the other.
func (f *Frames) sweep(b []byte) []byte {
	f.start()
	dst := f.a.Target.As4()
	dst[3] = byte(f.count)
	f.header.Dst = netip.AddrFrom4(dst)
	t := packet.TCP{SrcPort: f.port(), DstPort: 22, Seq: f.rng.Uint32(), Flags: policy.SYN, Window: 1024, Options: packet.AppendMSS(nil, 1460)}
	return f.header.AppendTCP(b, &t, nil)
}

// dnsAnswer is a response with as many TXT records as fit into size bytes (RFC 1035 4.1).
func dnsAnswer(size int) []byte {
	p := []byte{0, 0, 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}
	p = append(p, 7, 'e', 'x', 'a', 'm', 'p', 'l', 'e', 3, 'o', 'r', 'g', 0, 0, 255, 0, 1)
	n := uint16(0)
	for len(p) < size {
		text := min(200, max(1, size-len(p)-13))
		p = append(p, 0xC0, 12, 0, 16, 0, 1, 0, 0, 14, 16)
		p = binary.BigEndian.AppendUint16(p, uint16(text+1))
		p = append(p, byte(text))
		p = append(p, filler[:text]...)
		n++
	}
	binary.BigEndian.PutUint16(p[6:], n)
	return p
}
