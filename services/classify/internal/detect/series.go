package detect

import (
	"time"

	"github.com/tidegate-mesh/tidegate/libs/sketch"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/header"

	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

// Slot is the length of a window; Slots of them are the second that detectors judge.
const (
	Slot  = 100 * time.Millisecond
	Slots = 10
)

// Sums are a destination's counters over some slots, all sensors together.
type Sums struct {
	Packets, Bytes            uint64
	TCP, UDP, ICMP            uint64
	SYN, Handshakes           uint64
	SYNScan                   uint64 // of SYN, what a lone source sends that walks over ports, or an allowed one, as each window's samples tell
	SYNBeside                 uint64 // of SYN, what the few samples beside such a source's stand for
	SYNUnseen                 uint64 // of SYN, the others of windows whose samples have none: beside much other traffic
	Fragments                 uint64
	OutOfState                uint64 // TCP packets that begin a flow and are no SYN
	DNS, DNSBytes             uint64 // unsolicited answers from port 53
	NTP, NTPBytes, NTPMonlist uint64 // unsolicited packets from port 123
	Reflected                 uint64 // unsolicited packets from any reflector port
	Sources                   float64
	Services                  [numServices]Volume // unsolicited, by kind of reflector
	// Of the header samples taken in these slots:
	Samples Shares
	Whole   Shares // of them, those of windows of which every packet was sampled
	Stand   Shares // how many packets Samples stand for
}

// Shares say what samples are, because counters do not tell it.
type Shares struct {
	All              float64
	Stray            float64 // TCP without SYN, and SYN-ACK, of strangers; of them:
	ACK, RSTFIN      float64
	SYNACK, Invalid  float64
	Fragments        float64 // of strangers
	FragmentsGood    float64 // of peers that the destination talks with
	Overlaps         float64 // pairs of fragments of one datagram that overlap
	HTTP             float64 // HTTP requests of sources that are no settled peers; of them:
	HTTPSame         float64 // those for the resource asked for most
	HTTPSource       float64 // those of the source with the most
	HTTPPair         float64 // those of one source for one resource
	HTTPSettled      float64 // HTTP requests of the settled peer with the most
	HTTPFirst        float64 // of HTTP, those that the counts after it are without; see alone
	DNS, DNSNew      float64 // DNS queries; of them, those for different names of one zone
	DNSFirst         float64 // of DNS, those that DNSNew is without; see alone
	SYN, SYNScan     float64 // SYN; of them, those of a lone source that walks over ports, and of allowed ones
	SYNBeside        float64 // of SYN, the others of windows that have SYNScan and were not sampled whole
	ACKScan          float64 // of ACK, the same as SYNScan
	UDP, UDPGood     float64 // UDP; of them, those of peers that the destination talks with
	ICMP, ICMPFlood  float64 // ICMP; of them, echo requests and unreachables, but not of allowed sources
	Length, UDPBytes float64 // IP bytes of all samples, and of the UDP ones
}

// add adds each count of b, times weight.
func (a *Shares) add(b *Shares, weight float64) {
	a.All += b.All * weight
	a.Stray += b.Stray * weight
	a.ACK += b.ACK * weight
	a.RSTFIN += b.RSTFIN * weight
	a.SYNACK += b.SYNACK * weight
	a.Invalid += b.Invalid * weight
	a.Fragments += b.Fragments * weight
	a.FragmentsGood += b.FragmentsGood * weight
	a.Overlaps += b.Overlaps * weight
	a.HTTP += b.HTTP * weight
	a.HTTPSource += b.HTTPSource * weight
	a.HTTPPair += b.HTTPPair * weight
	a.HTTPSettled += b.HTTPSettled * weight
	a.HTTPSame += b.HTTPSame * weight
	a.HTTPFirst += b.HTTPFirst * weight
	a.DNS += b.DNS * weight
	a.DNSNew += b.DNSNew * weight
	a.DNSFirst += b.DNSFirst * weight
	a.SYN += b.SYN * weight
	a.SYNScan += b.SYNScan * weight
	a.SYNBeside += b.SYNBeside * weight
	a.ACKScan += b.ACKScan * weight
	a.UDP += b.UDP * weight
	a.UDPGood += b.UDPGood * weight
	a.ICMP += b.ICMP * weight
	a.ICMPFlood += b.ICMPFlood * weight
	a.Length += b.Length * weight
	a.UDPBytes += b.UDPBytes * weight
}

// ratio is part of whole, or def when nothing was sampled.
func ratio(part, whole, def float64) float64 {
	if whole == 0 {
		return def
	}
	return part / whole
}

// add adds o's counters; Sources is not a counter.
func (s *Sums) add(o *Sums) {
	s.Packets += o.Packets
	s.Bytes += o.Bytes
	s.TCP += o.TCP
	s.UDP += o.UDP
	s.ICMP += o.ICMP
	s.SYN += o.SYN
	s.SYNScan += o.SYNScan
	s.SYNBeside += o.SYNBeside
	s.SYNUnseen += o.SYNUnseen
	s.Handshakes += o.Handshakes
	s.Fragments += o.Fragments
	s.DNS += o.DNS
	s.DNSBytes += o.DNSBytes
	s.NTP += o.NTP
	s.NTPBytes += o.NTPBytes
	s.NTPMonlist += o.NTPMonlist
	s.Reflected += o.Reflected
	s.OutOfState += o.OutOfState
	for i := range s.Services {
		s.Services[i].Packets += o.Services[i].Packets
		s.Services[i].Bytes += o.Services[i].Bytes
	}
	s.Samples.add(&o.Samples, 1)
	s.Whole.add(&o.Whole, 1)
	s.Stand.add(&o.Stand, 1)
}

// FromTarget reads the counters of a window's target.
func FromTarget(t *flowv1.Target) Sums {
	c := t.GetCounters()
	s := Sums{
		Packets: c.GetPackets(), Bytes: c.GetBytes(), TCP: c.GetTcp(), UDP: c.GetUdp(), ICMP: c.GetIcmp(),
		SYN: c.GetSyn(), Handshakes: c.GetHandshakes(), Fragments: c.GetFragments(),
		OutOfState: c.GetOutOfState(),
	}
	for _, r := range t.GetReflectors() {
		s.Reflected += r.GetPackets()
		if i := serviceOf(uint16(r.GetPort())); i >= 0 { //nolint:gosec // a port fits 16 bits
			s.Services[i].Packets += r.GetPackets()
			s.Services[i].Bytes += r.GetBytes()
		}
		switch r.GetPort() {
		case 53:
			s.DNS += r.GetMarked()
			if r.GetPackets() > 0 {
				s.DNSBytes += scaled(r.GetBytes(), float64(r.GetMarked())/float64(r.GetPackets()))
			}
		case 123:
			s.NTP += r.GetPackets()
			s.NTPBytes += r.GetBytes()
			s.NTPMonlist += r.GetMarked()
		}
	}
	return s
}

// TakeSamples counts a window's samples, which are of the packets that s counts. A window has as many samples of a second's
// few quiet packets as of a burst, so what a share says of packets is worked out here, before windows are added up. allowed is
// how many SYNs of allowed sources there are at least: beside much other traffic few SYNs are sampled, and not in proportion.
func (s *Sums) TakeSamples(samples []header.Facts, of func(f *header.Facts) Standing, allowed uint64) {
	s.Samples = CountSamples(samples, of)
	c := &s.Samples
	if float64(s.Packets) > c.All {
		c.alone()
		if c.SYNScan > 0 {
			c.SYNBeside = c.SYN - c.SYNScan
		}
	}
	s.SYNScan = max(scaled(s.SYN, ratio(c.SYNScan, c.SYN, 0)), min(allowed, s.SYN))
	if c.SYN == 0 {
		s.SYNUnseen = s.SYN - s.SYNScan
	}
	s.SYNBeside = min(scaled(s.SYN, ratio(c.SYNBeside, c.SYN, 0)), s.SYN-s.SYNScan)
	s.weigh()
}

// weigh works out what the samples of one window stand for.
func (s *Sums) weigh() {
	weight := 1.0
	if float64(s.Packets) <= s.Samples.All {
		s.Whole = s.Samples
	} else if s.Samples.All > 0 {
		weight = float64(s.Packets) / s.Samples.All
	}
	s.Stand.add(&s.Samples, weight)
}

// alone takes one sample out of each count of samples that have something in common, a source or a zone: a sample has that with
// itself, and in a window in which it is the only one of its kind, it says nothing of the packets that were not sampled.
func (c *Shares) alone() {
	less := func(n *float64) float64 {
		first := min(*n, 1)
		*n -= first
		return first
	}
	c.HTTPFirst, c.DNSFirst = less(&c.HTTPSame), less(&c.DNSNew)
	less(&c.HTTPSource)
	less(&c.HTTPPair)
	less(&c.HTTPSettled)
}

// evidence is how many samples of a kind it takes to say how many packets there are of it in windows of which not every packet
// was sampled: with so many the standard error is a third. One sample of a busy host's stands for more than a threshold.
const evidence = 8

// of is how many packets there are of the kind that count counts; those of windows sampled in part, when there is evidence.
func (s *Sums) of(count func(c *Shares) float64) float64 {
	if whole := count(&s.Whole); count(&s.Samples)-whole < evidence {
		return whole
	}
	return float64(s.Packets) * ratio(count(&s.Stand), s.Stand.All, 0) // not all windows have samples
}

// Standing is what a destination has to do with a source.
type Standing uint8

// A peer exchanged payload with the destination; a settled one did so a minute ago already; an allowed one is on an allow list,
// so that nothing it sends counts.
const (
	Stranger Standing = iota
	Peer
	Settled
	Allowed
)

// CountSamples says what kinds the samples are of; of tells where their sources stand.
func CountSamples(samples []header.Facts, of func(f *header.Facts) Standing) Shares {
	c := Shares{All: float64(len(samples))}
	good := func(f *header.Facts) bool { return of(f) != Stranger }
	var syn, ack, http, dns []*header.Facts
	allowedSYN := 0.0
	for i := range samples {
		f := &samples[i]
		c.Length += float64(f.Length)
		if f.Fragment {
			if good(f) {
				c.FragmentsGood++
			} else {
				c.Fragments++
			}
		}
		switch {
		case isSYN(f):
			if c.SYN++; of(f) == Allowed {
				allowedSYN++
			} else {
				syn = append(syn, f)
			}
		case f.Protocol == 6 && !f.Later:
			if f.Asks == header.HTTP && of(f) != Allowed {
				http = append(http, f)
			}
			if isACK(f) && !good(f) {
				ack = append(ack, f)
			}
			c.stray(f, good)
		case f.Protocol == 17:
			c.UDP++
			c.UDPBytes += float64(f.Length)
			if good(f) {
				c.UDPGood++
			}
			if f.Asks == header.DNS && of(f) != Allowed {
				dns = append(dns, f)
			}
		case f.Protocol == 1 || f.Protocol == 58:
			c.ICMP++
			if isICMPFlood(f) && of(f) != Allowed {
				c.ICMPFlood++
			}
		}
	}
	c.SYNScan, c.ACKScan = loneScanner(syn)+allowedSYN, loneScanner(ack)
	c.requests(http, of)
	c.queries(dns)
	return c
}

// stray counts what kind a TCP sample is that a stranger sent.
func (c *Shares) stray(f *header.Facts, good func(f *header.Facts) bool) {
	if good(f) {
		return
	}
	c.Stray++
	switch {
	case isInvalid(f):
		c.Invalid++
	case isSYNACK(f):
		c.SYNACK++
	case isRSTFIN(f):
		c.RSTFIN++
	case isACK(f):
		c.ACK++
	}
}

// LoneScan: SYNs are nearly all of one source that walks over ports or hosts.
func LoneScan(syn []header.Facts) bool {
	list := make([]*header.Facts, len(syn))
	for i := range syn {
		list[i] = &syn[i]
	}
	return loneScanner(list) > 0
}

// loneScanner returns how many of the samples, all SYN or all ACK, come from one source that makes nearly all of them and
// walks over ports or hosts: that is a scan, however fast.
func loneScanner(syn []*header.Facts) float64 {
	if len(syn) < 4 {
		return 0
	}
	counts := make(map[[16]byte]int, len(syn))
	var top [16]byte
	for _, f := range syn {
		counts[f.Src]++
		if counts[f.Src] > counts[top] {
			top = f.Src
		}
	}
	type place struct {
		host [16]byte
		port uint16
	}
	places := make(map[place]struct{}, len(syn))
	for _, f := range syn {
		if f.Src == top {
			places[place{f.Dst, f.DstPort}] = struct{}{}
		}
	}
	if n := counts[top]; n*10 >= len(syn)*9 && len(places)*2 >= n {
		return float64(n)
	}
	return 0
}

// Series is a destination's last second, in slots. The zero value is empty; one goroutine owns it.
type Series struct {
	slots   [Slots]Sums
	sources [Slots]sketch.HLL
	newest  int64 // slot number: Unix time over Slot
}

// Add puts a window's sums and source registers into the slot of its start. Windows of several sensors fall
// into one slot. A window older than the second, as after a clock that was set back, starts the series anew.
func (s *Series) Add(startNs int64, sums *Sums, registers []byte) {
	n := startNs / int64(Slot)
	switch {
	case n > s.newest+Slots || n <= s.newest-Slots:
		s.slots, s.sources, s.newest = [Slots]Sums{}, [Slots]sketch.HLL{}, n
	case n > s.newest:
		s.clear(n)
	}
	i := index(n)
	s.slots[i].add(sums)
	s.sources[i].Merge(registers)
}

// Advance moves the series to now, so that slots without traffic count as empty.
func (s *Series) Advance(startNs int64) {
	n := startNs / int64(Slot)
	if n > s.newest+Slots {
		s.slots, s.sources, s.newest = [Slots]Sums{}, [Slots]sketch.HLL{}, n
	} else if n > s.newest {
		s.clear(n)
	}
}

func (s *Series) clear(n int64) {
	for k := s.newest + 1; k <= n; k++ {
		s.slots[index(k)] = Sums{}
		s.sources[index(k)].Reset()
	}
	s.newest = n
}

func index(n int64) int { return int(((n % Slots) + Slots) % Slots) }

// Sum adds up the newest k slots, 1 … Slots.
func (s *Series) Sum(k int) Sums {
	var out Sums
	var h sketch.HLL
	for d := range int64(min(k, Slots)) {
		i := index(s.newest - d)
		out.add(&s.slots[i])
		h.Merge(s.sources[i][:])
	}
	out.Sources = h.Estimate()
	return out
}

// Most is the highest level that one of the slots has alone. The sums that level is given tell no sources.
func (s *Series) Most(level func(*Sums) float64) (most float64) {
	for i := range s.slots {
		most = max(most, level(&s.slots[i]))
	}
	return most
}

// Registers merges the sources of the newest k slots into h.
func (s *Series) Registers(k int, h *sketch.HLL) {
	for d := range int64(min(k, Slots)) {
		h.Merge(s.sources[index(s.newest-d)][:])
	}
}
