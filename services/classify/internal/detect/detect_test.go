package detect

import (
	"math"
	"net/netip"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/packet"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/sketch"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/header"
)

// TestFloods checks each formula at its boundary.
func TestFloods(t *testing.T) {
	th := DefaultThresholds()
	tests := []struct {
		name  string
		flood Flood
		sums  Sums
		level float64
	}{
		{"syn below", synFlood, Sums{SYN: 149}, 149.0 / 150},
		{"syn at", synFlood, Sums{SYN: 150}, 1},
		{"handshakes pay twice", synFlood, Sums{SYN: 350, Handshakes: 100}, 1},
		{"busy server", synFlood, Sums{SYN: 5000, Handshakes: 4900}, 0},
		{"scanner's SYNs", synFlood, Sums{SYN: 1000, SYNScan: 1000}, 0},
		{"udp packets", udpFlood, Sums{Packets: 20000, Bytes: 20000 * 60, UDP: 20000}, 1},
		{"udp bits", udpFlood, Sums{Packets: 10000, Bytes: 62_500_000, UDP: 10000}, 1},
		{"udp from peers", udpFlood, Sums{Packets: 40000, UDP: 40000, Samples: Shares{UDP: 64, UDPGood: 64}}, 0},
		{"udp reflected", udpFlood, Sums{Packets: 40000, UDP: 40000, Reflected: 20000}, 0},
		{"icmp at", icmpFlood, Sums{ICMP: 500}, 1},
		{"icmp replies", icmpFlood, Sums{ICMP: 5000, Samples: Shares{ICMP: 64}}, 0},
		{"dns at", ampDNS, Sums{DNS: 300, Sources: 20}, 1},
		{"dns few small sources", ampDNS, Sums{DNS: 3000, DNSBytes: 1000, Sources: 19}, 0.99},
		{"dns few large sources", ampDNS, Sums{DNS: 300, DNSBytes: 1_250_000, Sources: 2}, 1},
		{"monlist", ampNTP, Sums{NTP: 1, NTPMonlist: 1}, 1},
		{"ntp below", ampNTP, Sums{NTP: 299}, 299.0 / 300},
		{"ntp at", ampNTP, Sums{NTP: 300}, 1},
		{"nothing", udpFlood, Sums{}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.sums.weigh()
			if got := tt.flood.Measure(&tt.sums, &th).Level; math.Abs(got-tt.level) > 1e-9 {
				t.Errorf("level %v, want %v", got, tt.level)
			}
		})
	}
}

func TestSeries(t *testing.T) {
	var s Series
	start := int64(1_700_000_000_000_000_000)
	for i := range int64(15) {
		s.Add(start+i*int64(Slot), &Sums{SYN: 1}, nil)
		s.Add(start+i*int64(Slot), &Sums{SYN: 2}, nil) // a second sensor
	}
	if got := s.Sum(Slots).SYN; got != 30 {
		t.Errorf("a second holds %d, want 30", got)
	}
	if got := s.Sum(1).SYN; got != 3 {
		t.Errorf("the newest slot holds %d, want 3", got)
	}
	s.Add(start+13*int64(Slot), &Sums{SYN: 100}, nil) // late
	if got, one := s.Sum(Slots).SYN, s.Sum(1).SYN; got != 130 || one != 3 {
		t.Errorf("with a late window %d and %d, want 130 and 3", got, one)
	}
	s.Add(start+18*int64(Slot), &Sums{SYN: 1}, nil) // a gap
	if got := s.Sum(Slots).SYN; got != 119 {
		t.Errorf("after a gap %d, want 119", got)
	}
	s.Add(start-int64(3600e9), &Sums{SYN: 7}, nil) // the clock was set back
	if got := s.Sum(Slots).SYN; got != 7 {
		t.Errorf("after the clock was set back %d, want 7", got)
	}
}

// probe is what a window says of a source.
type trial struct {
	src, dst    netip.Addr
	hosts       int // distinct destinations from dst on
	ports       int // distinct ports from 1 on
	port        uint16
	failed      bool
	invalid     uint64
	proto       uint8
	srcPort     uint16
	ttl         uint8
	answer, arp bool
}

func (p trial) source() *flowv1.Source {
	a, top := p.src.As16(), p.dst.As16()
	var hosts, ports, topPorts, empty sketch.HLL
	w := &flowv1.Source{Addr: a[:], TopHost: top[:], InvalidFlags: p.invalid}
	h := p.dst
	counts := map[uint16]uint64{}
	for i := range max(p.hosts, 1) {
		hosts.Add(sketch.Mix(uint64(i) + 1))
		for j := range max(p.ports, 1) {
			port := p.port
			if p.ports > 0 {
				port = uint16(j + 1) //nolint:gosec // few
				if p.port != 0 {
					port += p.port
				}
			}
			w.Attempts++
			counts[port]++
			ports.Add(sketch.Mix(uint64(i)<<32 | uint64(port) + 1))
			if i == 0 {
				topPorts.Add(sketch.Mix(uint64(port) + 77))
			}
			if len(w.Samples) < 8 {
				w.Samples = append(w.Samples, p.sample(h, port))
			}
		}
		h = h.Next()
	}
	for port, n := range counts {
		if len(w.DstPorts) < 8 {
			w.DstPorts = append(w.DstPorts, &flowv1.PortCount{Port: uint32(port), Packets: n})
		}
	}
	w.TopHostAttempts = uint64(max(p.ports, 1)) //nolint:gosec // few
	w.AttemptHosts, w.AttemptPorts, w.TopHostPorts = hosts[:], ports[:], topPorts[:]
	w.FailedHosts, w.FailedPorts, w.TopHostFailedPorts = empty[:], empty[:], empty[:]
	if p.failed {
		w.Failed = w.Attempts
		w.FailedHosts, w.FailedPorts, w.TopHostFailedPorts = hosts[:], ports[:], topPorts[:]
	}
	if p.arp {
		w.ArpRequests, w.Attempts, w.DstPorts, w.Samples, w.TopHost = uint64(p.hosts), 0, nil, nil, nil //nolint:gosec // few
	}
	return w
}

func (p trial) sample(dst netip.Addr, port uint16) *flowv1.HeaderSample {
	h := packet.Header{Src: p.src, Dst: dst, TTL: p.ttl}
	var f []byte
	switch {
	case p.proto == 17 && p.answer:
		body := make([]byte, 64)
		body[2] = 0x80
		f = h.AppendUDP(nil, p.srcPort, port, body)
	case p.proto == 17:
		f = h.AppendUDP(nil, 40000, port, nil)
	case p.proto == 50:
		f = append(h.AppendIP(nil, 50, 64), make([]byte, 64)...)
	default:
		f = h.AppendTCP(nil, &packet.TCP{SrcPort: 40000, DstPort: port, Flags: packet.FlagSYN}, nil)
	}
	return &flowv1.HeaderSample{Header: f[14:], Length: uint32(len(f) - 14)} //nolint:gosec // few bytes
}

func TestScans(t *testing.T) {
	src, dst := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.1")
	tests := []struct {
		name        string
		p           trial
		port, sweep bool
	}{
		{"7 failed ports", trial{ports: 7, failed: true}, false, false},
		{"8 failed ports", trial{ports: 8, failed: true}, true, false},
		{"8 ports that answer", trial{ports: 8}, false, false},
		{"90 ports at once", trial{ports: 90}, true, false},
		{"2 ports and 3 impossible flags", trial{ports: 2, failed: true, invalid: 3}, true, false},
		{"6 failed hosts", trial{hosts: 6, port: 445, failed: true}, false, false},
		{"9 failed hosts", trial{hosts: 9, port: 445, failed: true}, false, true},
		{"40 hosts that answer", trial{hosts: 40, port: 443}, false, false},
		{"90 hosts at once", trial{hosts: 90, port: 80}, false, true},
		{"resolver asks 90 servers", trial{hosts: 90, port: 53, proto: 17}, false, false},
		{"server's answers to many ports", trial{ports: 90, port: 40000, proto: 17, srcPort: 53, answer: true, failed: true}, false, false},
		{"traceroute", trial{ports: 30, port: 33434, proto: 17, ttl: 9, failed: true}, false, false},
		{"tunnels to 9 hosts", trial{hosts: 9, proto: 50, failed: true}, false, false},
		{"30 addresses by ARP", trial{hosts: 30, arp: true}, false, false},
		{"60 addresses by ARP", trial{hosts: 60, arp: true}, false, true},
	}
	th := DefaultThresholds()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.p.src, tt.p.dst = src, dst
			if tt.p.ttl == 0 {
				tt.p.ttl = 64
			}
			s := NewScanner(src, 1e18)
			s.Add(tt.p.source(), 1e18, 1e18+int64(Slot))
			ps, gotPort := s.PortScan(&th)
			hs, gotSweep := s.HostSweep(&th)
			if gotPort != tt.port || gotSweep != tt.sweep {
				t.Errorf("port scan %v (%v), sweep %v (%v)", gotPort, ps.Measure, gotSweep, hs.Measure)
			}
		})
	}
}

// TestSlowSweep: hosts tried over hours add up; those of longer ago are forgotten.
func TestSlowSweep(t *testing.T) {
	src := netip.MustParseAddr("192.0.2.1")
	sweep := func(every int64) bool {
		s := NewScanner(src, 1e18)
		th := DefaultThresholds()
		found := false
		for i := range int64(10) {
			p := trial{src: src, dst: netip.AddrFrom4([4]byte{198, 51, 100, byte(10 * i)}), port: 22, failed: true, ttl: 64} //nolint:gosec // ten hosts
			w := p.source()
			var h sketch.HLL
			h.Add(sketch.Mix(uint64(i + 100))) //nolint:gosec // ten hosts
			w.FailedHosts, w.AttemptHosts = h[:], h[:]
			s.Add(w, 1e18+i*every, 1e18+i*every+int64(Slot))
			_, ok := s.HostSweep(&th)
			found = found || ok
		}
		return found
	}
	if !sweep(600e9) {
		t.Error("one host in ten minutes is not found")
	}
	if sweep(3600e9) {
		t.Error("one host an hour is found, beyond the memory")
	}
}

// TestTracerouteOfAClient: traceroute is no scan although its user asked the resolver and logged in before.
func TestTracerouteOfAClient(t *testing.T) {
	s, th, at := NewScanner(stranger, 1e18), DefaultThresholds(), int64(1e18)
	add := func(p trial) {
		p.src = stranger
		s.Add(p.source(), at, at+int64(Slot))
		at += int64(Slot)
	}
	for range maxScanSamples {
		add(trial{dst: host.Next(), port: 53, proto: 17, ttl: 64})
	}
	add(trial{dst: host, port: 22, ttl: 64})
	for i := range uint16(12) {
		add(trial{dst: host, port: 33434 + i, proto: 17, ttl: uint8(i/3 + 1), failed: true}) //nolint:gosec // few
	}
	if scan, ok := s.PortScan(&th); ok {
		t.Errorf("found %+v", scan)
	}
	for i := range uint16(12) {
		add(trial{dst: host.Next(), port: 1000 + i, ttl: 64, failed: true})
	}
	if scan, ok := s.PortScan(&th); !ok || scan.Host != host.Next() {
		t.Errorf("a scan of another host is not found: %+v", scan)
	}
}

func TestLoneScanner(t *testing.T) {
	mk := func(sources, ports int) []header.Facts {
		var out []header.Facts
		for i := range 64 {
			f := header.Facts{Protocol: 6, Flags: 2, DstPort: uint16(i % ports)} //nolint:gosec // few
			f.Src[15] = byte(i % sources)
			out = append(out, f)
		}
		return out
	}
	for _, tt := range []struct {
		sources, ports int
		want           float64
	}{{1, 64, 64}, {1, 1, 0}, {64, 64, 0}, {2, 64, 0}} {
		if got := CountSamples(mk(tt.sources, tt.ports), standing(Stranger)).SYNScan; got != tt.want {
			t.Errorf("%d sources, %d ports: %v, want %v", tt.sources, tt.ports, got, tt.want)
		}
	}
}

// TestScanAmongClients: a busy host's second holds as many samples of clients as of a scan that has just begun, though the
// scan's SYNs are ten times as many.
func TestScanAmongClients(t *testing.T) {
	th := DefaultThresholds()
	var s Series
	for slot := range int64(Slots) {
		var facts []header.Facts
		for i := range 6 {
			f := header.Facts{Protocol: 6, Flags: 2, DstPort: 443}
			f.Src[14], f.Src[15] = byte(slot), byte(i)
			facts = append(facts, f)
		}
		sums := Sums{SYN: 6, Handshakes: 5}
		if slot == Slots-1 {
			sums.SYN += 500
			for i := range uint16(58) {
				facts = append(facts, header.Facts{Protocol: 6, Flags: 2, DstPort: i})
			}
		}
		sums.TakeSamples(facts, standing(Stranger), 0)
		s.Add(1_700_000_000_000_000_000+slot*int64(Slot), &sums, nil)
	}
	second := s.Sum(Slots)
	if m := synFlood.Measure(&second, &th); m.Level > 0.1 {
		t.Errorf("the scan counts as SYN flood: %+v", m)
	}
	// Beside a download none of the scan's SYNs is sampled any more, soon for a whole second.
	for slot := int64(Slots); slot < 2*Slots+2; slot++ {
		facts := make([]header.Facts, 64)
		for i := range facts {
			facts[i] = header.Facts{Protocol: 6, Flags: policy.ACK, DstPort: 443}
		}
		sums := Sums{SYN: 50, Packets: 15_000}
		sums.TakeSamples(facts, standing(Peer), 0)
		s.Add(1_700_000_000_000_000_000+slot*int64(Slot), &sums, nil)
		second := s.Sum(Slots)
		if m := synFlood.Measure(&second, &th); m.Level >= 1 {
			t.Errorf("slot %d: the scan counts as SYN flood: %+v", slot, m)
		}
	}
}

func TestProtocolProbe(t *testing.T) {
	var p ProtocolProbe
	for i := range 20 {
		if n := p.Add(uint8(i%8), header.Facts{}, nil); n != min(i+1, 8) { //nolint:gosec // few
			t.Errorf("after %d: %d distinct", i+1, n)
		}
	}
}

// TestSecondOfTwoSensors: a window that another sensor sends a little later belongs to the half before.
func TestSecondOfTwoSensors(t *testing.T) {
	var s second
	add := func(at int64, from, n uint64) {
		var h sketch.HLL
		for i := range n {
			h.Add(sketch.Mix(from + i))
		}
		s.add(at, h[:])
	}
	at := 10 * halfNs
	add(at-2e8, 0, 20)
	add(at, 100, 20)
	add(at-1e8, 200, 20)
	add(at+1e8, 300, 20)
	if n := s.distinct(); n < 70 || n > 90 {
		t.Errorf("%.0f distinct, want 80", n)
	}
}
