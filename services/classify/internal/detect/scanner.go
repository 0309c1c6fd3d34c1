package detect

import (
	"net/netip"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/sketch"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/header"
)

// memoryNs is how long a source's attempts are remembered: slow scans take hours.
const memoryNs = int64(150 * 60 * 1e9)

// hostSlots is how many destinations of a source are watched for ports, each window's favourite.
const hostSlots = 4

// scannedHost is one destination of a source.
type scannedHost struct {
	addr            [16]byte
	attempts        uint64
	ports, failed   sketch.HLL
	sampled, probes uint32 // samples; of them, traceroute's
}

// traced: four fifths of what was sampled are traceroute's probes.
func (h *scannedHost) traced() bool { return h.probes > 0 && h.probes*5 >= h.sampled*4 }

// second counts what is distinct within the last half to one second: two halves, the older one whole.
type second struct {
	half     int64
	cur, old sketch.HLL
}

const halfNs = int64(500e6)

func (s *second) add(startNs int64, registers []byte) {
	switch h := startNs / halfNs; h {
	case s.half:
	case s.half + 1:
		s.old, s.cur, s.half = s.cur, sketch.HLL{}, h
	case s.half - 1: // of a sensor that tells a little later
		s.old.Merge(registers)
		return
	default:
		*s = second{half: h}
	}
	s.cur.Merge(registers)
}

func (s *second) distinct() float64 {
	h := s.old
	h.Merge(s.cur[:])
	return h.Estimate()
}

// Scanner is what a source did in the last hours. One goroutine owns it.
type Scanner struct {
	Addr            netip.Addr
	FirstNs, LastNs int64
	Attempts        uint64
	Failed          uint64
	Invalid         uint64 // attempts with impossible TCP flags
	ARP             uint64
	TopHost         [16]byte // the destination tried most in the newest window that had attempts

	attemptHosts, failedHosts sketch.HLL
	attemptPorts, failedPorts sketch.HLL
	hosts                     [hostSlots]scannedHost
	fastPorts, fastHosts      second
	fastTop                   [16]byte
	opens                     rates
	ports                     [8]flowPort
	portTotal                 uint64
	answers, sampled          uint32
	low, high                 [16]byte // lowest and highest sampled destination
	Samples                   []header.Facts
	Raw                       [][]byte
}

type flowPort struct {
	port uint16
	n    uint64
}

// NewScanner begins to remember a source.
func NewScanner(addr netip.Addr, firstNs int64) *Scanner {
	return &Scanner{Addr: addr, FirstNs: firstNs}
}

// maxScanSamples bounds the samples kept of a source.
const maxScanSamples = 16

// Add takes in what a window says about the source. After 2½ hours the memory starts anew.
func (s *Scanner) Add(w *flowv1.Source, startNs, endNs int64) {
	if d := startNs - s.FirstNs; d > memoryNs || d < -memoryNs {
		*s = Scanner{Addr: s.Addr, FirstNs: startNs}
	}
	if w.GetFirstNs() > 0 && w.GetFirstNs() < s.FirstNs {
		s.FirstNs = w.GetFirstNs()
	}
	s.LastNs = endNs
	s.Attempts += w.GetAttempts()
	s.Failed += w.GetFailed()
	s.Invalid += w.GetInvalidFlags()
	s.ARP += w.GetArpRequests()
	s.attemptHosts.Merge(w.GetAttemptHosts())
	s.failedHosts.Merge(w.GetFailedHosts())
	s.attemptPorts.Merge(w.GetAttemptPorts())
	s.failedPorts.Merge(w.GetFailedPorts())
	s.fastHosts.add(startNs, w.GetAttemptHosts())
	if len(w.GetTopHost()) == 16 {
		s.host(w, startNs)
	}
	for _, p := range w.GetDstPorts() {
		s.port(uint16(p.GetPort()), p.GetPackets()) //nolint:gosec // a port fits 16 bits
	}
	for _, h := range w.GetSamples() {
		s.sample(h)
	}
}

// host notes the window's favourite destination. The least tried of the watched ones makes room.
func (s *Scanner) host(w *flowv1.Source, startNs int64) {
	addr := [16]byte(w.GetTopHost())
	if w.GetTopHostAttempts() > 0 || s.TopHost == ([16]byte{}) {
		s.TopHost = addr
	}
	slot := &s.hosts[0]
	for i := range s.hosts {
		h := &s.hosts[i]
		if h.addr == addr {
			slot = h
			break
		}
		if h.attempts < slot.attempts {
			slot = h
		}
	}
	if slot.addr != addr {
		*slot = scannedHost{addr: addr}
	}
	slot.attempts += max(1, w.GetTopHostAttempts())
	s.opens.add(startNs, w.GetTopHostAttempts())
	slot.ports.Merge(w.GetTopHostPorts())
	slot.failed.Merge(w.GetTopHostFailedPorts())
	if s.fastTop != addr {
		s.fastTop, s.fastPorts = addr, second{}
	}
	s.fastPorts.add(startNs, w.GetTopHostPorts())
}

func (s *Scanner) port(port uint16, n uint64) {
	s.portTotal += n
	least := &s.ports[0]
	for i := range s.ports {
		p := &s.ports[i]
		if p.port == port && p.n > 0 {
			p.n += n
			return
		}
		if p.n < least.n {
			least = p
		}
	}
	if least.n < n || least.n == 0 {
		*least = flowPort{port, n}
	}
}

// topPort is the port tried most and its share of all attempts.
func (s *Scanner) topPort() (port uint16, share float64) {
	var top flowPort
	for _, p := range s.ports {
		if p.n > top.n {
			top = p
		}
	}
	if n := max(s.Attempts, s.portTotal); n > 0 {
		return top.port, float64(top.n) / float64(n)
	}
	return 0, 0
}

func (s *Scanner) sample(h *flowv1.HeaderSample) {
	s.sampled++
	if header.Answer(h.GetHeader()) {
		s.answers++
	}
	f, ok := header.Parse(h)
	if !ok {
		return
	}
	for i := range s.hosts {
		if h := &s.hosts[i]; h.addr == f.Dst {
			h.sampled++
			if probe(&f) {
				h.probes++
			}
		}
	}
	if s.low == ([16]byte{}) || less(f.Dst, s.low) {
		s.low = f.Dst
	}
	if less(s.high, f.Dst) {
		s.high = f.Dst
	}
	if len(s.Samples) < maxScanSamples {
		s.Samples = append(s.Samples, f)
		s.Raw = append(s.Raw, append([]byte(nil), h.GetHeader()...))
	}
}

func less(a, b [16]byte) bool {
	for i := range a {
		if a[i] != b[i] {
			return a[i] < b[i]
		}
	}
	return false
}

// Host is the destination tried most; ARP names none, then it is the source itself, a neighbour of those it
// asked for.
func (s *Scanner) Host() netip.Addr {
	if s.TopHost == ([16]byte{}) {
		return s.Addr
	}
	return flow.Addr(s.TopHost)
}

// Weight orders sources by how much would be forgotten with them.
func (s *Scanner) Weight() uint64 { return s.Attempts + 4*s.Failed + 8*s.Invalid + s.ARP }

// Scan is a finding about a source.
type Scan struct {
	Type             string
	Target           netip.Prefix // the scanned host, or the narrowest of /24, /16, /8 (v6 /64, /48, /32) or all
	Host             netip.Addr   // the destination tried most
	Measure          Measure
	Fast             bool // found by what was tried within a second
	Packets, Sources uint64
	FirstNs          int64  // 0: when the source was first seen
	HoldNs           int64  // how much longer than others the attack lasts when nothing more is found
	Alert            bool   // nothing is to be blocked
	What             string // how the attack was done, for people, with a verb for the source and one for the host; empty for scans
}

// PortScan judges ports of one host:
// failed distinct ports + InvalidCost · invalid attempts ≥ ScanPorts over hours, or distinct ports ≥ FastPorts
// within a second. Answers of servers and traceroute's probes are no scan, whatever else the source does.
func (s *Scanner) PortScan(t *Thresholds) (Scan, bool) {
	if s.benign() {
		return Scan{}, false
	}
	failed, addr, traced := 0.0, [16]byte{}, false
	fast := s.fastPorts.distinct()
	for i := range s.hosts {
		h := &s.hosts[i]
		if h.traced() {
			if traced = true; h.addr == s.fastTop {
				fast = 0
			}
			continue
		}
		if n := h.failed.Estimate(); n > failed {
			failed, addr = n, h.addr
		}
	}
	// Failures may be told in a window whose favourite is another host.
	if hosts := s.failedHosts.Estimate(); hosts > 0.5 && !traced {
		if n := s.failedPorts.Estimate() / hosts; n > failed {
			failed, addr = n, s.TopHost
		}
	}
	slow := failed
	if s.attemptHosts.Estimate() < 4 || s.Invalid >= 3 {
		slow += t.InvalidCost * float64(s.Invalid)
	}
	level := max(slow/t.ScanPorts, fast/t.FastPorts)
	if fast/t.FastPorts > slow/t.ScanPorts {
		addr = s.fastTop
	}
	if addr == ([16]byte{}) {
		addr = s.TopHost
	}
	host := flow.Addr(addr)
	return Scan{
		Type: PortScan, Target: netip.PrefixFrom(host, host.BitLen()), Host: host, Fast: fast >= t.FastPorts, Packets: s.Attempts, Sources: 1,
		Measure: Measure{
			Level: level, Packets: s.Attempts,
			Features: map[string]float64{"failed_ports": failed, "ports_in_a_second": fast, "invalid_flags": float64(s.Invalid),
				"attempts": float64(s.Attempts), "failed": float64(s.Failed)},
			Limits: map[string]float64{"failed_ports": t.ScanPorts, "ports_in_a_second": t.FastPorts},
		},
	}, level >= 1
}

// outage is how many times more hosts may leave a resolver's, an NTP client's or a browser's UDP unanswered: all they ask
// does while their uplink is down, or its answers take another way.
const outage = 4

// HostSweep judges hosts: failed distinct hosts ≥ ScanHosts over hours while two thirds of the attempts fail and most go to
// one port (at UDP 53, 123 and 443: ≥ 4 · ScanHosts), or distinct hosts ≥ FastHosts within a second at one port (not those
// three), or ≥ ARPHosts addresses asked for by ARP within a second (over hours a router asks for all of them).
func (s *Scanner) HostSweep(t *Thresholds) (Scan, bool) {
	if s.benign() {
		return Scan{}, false
	}
	port, share := s.topPort()
	failed, fast := s.failedHosts.Estimate(), s.fastHosts.distinct()
	one := share >= 0.5 || s.portTotal == 0
	usual := s.udp() && (port == 53 || port == 123 || port == 443)
	level := 0.0
	// Ports per failed host: a port scan of a few hosts is no sweep.
	if one && 3*s.Failed >= 2*s.Attempts {
		level = failed / t.ScanHosts
		if usual {
			level /= outage
		}
	}
	if (share >= 0.8 || s.portTotal == 0) && !usual {
		level = max(level, fast/t.FastHosts)
	}
	asked := 0.0
	if s.ARP > 0 && 2*s.ARP >= s.Attempts {
		asked = min(float64(s.ARP), fast)
		level = asked / t.ARPHosts
	}
	m := Measure{
		Level: level, Packets: s.Attempts,
		Features: map[string]float64{"failed_hosts": failed, "hosts_in_a_second": fast, "arp_hosts": asked,
			"attempts": float64(s.Attempts), "failed": float64(s.Failed), "top_port": float64(port), "top_port_share": share},
		Limits: map[string]float64{"failed_hosts": t.ScanHosts, "hosts_in_a_second": t.FastHosts, "arp_hosts": t.ARPHosts},
	}
	target, host := s.Swept(), s.Host()
	if asked > 0 { // neighbours of the source, whatever else it tried
		host = s.Addr
		target = containing(host, host)
	}
	return Scan{Type: HostSweep, Target: target, Host: host, Measure: m, Fast: fast >= t.FastHosts, Packets: s.Attempts, Sources: 1}, level >= 1
}

// benign: four fifths of the samples are servers' answers, or belong to a tunnel or to traceroute, which walks its port
// range.
func (s *Scanner) benign() bool {
	if s.sampled > 0 && s.answers*5 >= s.sampled*4 {
		return true
	}
	if s.ARP > 0 {
		return false
	}
	usual := 0
	for i := range s.Samples {
		if f := &s.Samples[i]; tunnelled(f.Protocol) || probe(f) {
			usual++
		}
	}
	return usual > 0 && usual*5 >= len(s.Samples)*4
}

// probe: a packet of traceroute's.
func probe(f *header.Facts) bool {
	return f.Protocol == 17 && f.DstPort >= 33434 && f.DstPort <= 33634 && f.TTL <= 40
}

// tunnelled: IP in IP, IPv6 in IP, GRE, ESP and AH, whose ends often are seen from one side only.
func tunnelled(protocol uint8) bool {
	switch protocol {
	case 4, 41, 47, 50, 51:
		return true
	}
	return false
}

// udp: all samples are UDP.
func (s *Scanner) udp() bool {
	for i := range s.Samples {
		if s.Samples[i].Protocol != 17 {
			return false
		}
	}
	return len(s.Samples) > 0
}

// Swept is the narrowest usual prefix that holds the sampled destinations.
func (s *Scanner) Swept() netip.Prefix {
	low, high := flow.Addr(s.low), flow.Addr(s.high)
	if s.low == ([16]byte{}) {
		low = s.Host()
		high = low
	}
	return containing(low, high)
}

// containing is the narrowest usual prefix that holds both addresses.
func containing(low, high netip.Addr) netip.Prefix {
	lengths := []int{24, 16, 8, 0}
	if !low.Is4() {
		lengths = []int{64, 48, 32, 0}
	}
	for _, n := range lengths {
		if p, err := low.Prefix(n); err == nil && p.Contains(high) {
			return p
		}
	}
	return netip.PrefixFrom(low, 0).Masked()
}

// ProtocolProbe collects the IP protocols that one host reports as unreachable to another (RFC 792 type 3
// code 2; RFC 4443 type 4 code 1): what a protocol scan leaves when only its answers are seen.
type ProtocolProbe struct {
	seen    [4]uint64
	count   int
	FirstNs int64
	Samples []header.Facts
	Raw     [][]byte
}

// Add notes a protocol and says how many distinct ones there are.
func (p *ProtocolProbe) Add(protocol uint8, f header.Facts, raw []byte) int {
	if p.FirstNs == 0 {
		p.FirstNs = f.TimeNs
	}
	if w, bit := protocol>>6, uint64(1)<<(protocol&63); p.seen[w]&bit == 0 {
		p.seen[w] |= bit
		p.count++
		if len(p.Samples) < maxScanSamples {
			p.Samples = append(p.Samples, f)
			p.Raw = append(p.Raw, append([]byte(nil), raw...))
		}
	}
	return p.count
}

// ProtocolUnreachable tells the answers that ProtocolProbe collects.
func ProtocolUnreachable(f *header.Facts) bool {
	return f.Protocol == 1 && f.ICMPType == 3 && f.ICMPCode == 2 || f.Protocol == 58 && f.ICMPType == 4 && f.ICMPCode == 1
}
