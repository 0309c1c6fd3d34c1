package classify

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
	"github.com/tidegate-mesh/tidegate/libs/packet"
	"github.com/tidegate-mesh/tidegate/libs/policy"
)

// mixed plays good traffic to the victim of which much begins and ends at moments that the seed chooses.
type mixed struct {
	*lab
	late  int // handshakes that the next window completes
	flows uint64
}

func (m *mixed) tcp(src netip.Addr, sport, dport uint16, flags uint8, payload int) {
	h := packet.Header{Src: src, Dst: victim, TTL: 64}
	s := packet.TCP{SrcPort: sport, DstPort: dport, Seq: m.rng.Uint32(), Flags: flags, Window: 64240}
	if flags == packet.FlagSYN {
		s.Options = loadgen.LinuxSYNOptions(m.rng.Uint32())
	}
	m.frame(h.AppendTCP(nil, &s, make([]byte, payload)), 0, false)
}

func (m *mixed) udp(src netip.Addr, sport, dport uint16, payload int) {
	h := packet.Header{Src: src, Dst: victim, TTL: 64}
	m.frame(h.AppendUDP(nil, sport, dport, make([]byte, payload)), 0, false)
}

// talk makes src a peer of the victim: payload goes both ways.
func (m *mixed) talk(src netip.Addr, protocol uint8, sport, dport uint16) {
	m.flows++
	flow.Reset(&m.batch)
	m.batch.Sensor, m.batch.Epoch = "lab", 1
	flow.AppendOpen(&m.batch, &flow.Open{ID: m.flows, FirstNs: m.now, Key: flow.Key{Src: src.As16(), Dst: victim.As16(), SrcPort: sport, DstPort: dport, Protocol: protocol}})
	flow.AppendSegment(&m.batch, m.flows, 0, 0, m.now, []byte("begin"))
	flow.AppendSegment(&m.batch, m.flows, 1, 0, m.now, []byte("begin"))
	var res BatchResult
	if err := m.e.Batch(&m.batch, &res); err != nil {
		m.t.Fatal(err)
	}
}

func (m *mixed) handshake(n int) {
	m.of(netip.PrefixFrom(victim, 32)).GetCounters().Handshakes += uint64(n)
}

// connection is a short one. Of one in lag the handshake is completed in the next window.
func (m *mixed) connection(src netip.Addr, port uint16, lag int) {
	sport := uint16(32768 + m.rng.IntN(28000))
	m.tcp(src, sport, port, packet.FlagSYN, 0)
	if m.rng.IntN(lag) == 0 {
		m.late++
		return
	}
	m.handshake(1)
	m.tcp(src, sport, port, packet.FlagACK, 0)
	m.tcp(src, sport, port, packet.FlagACK|packet.FlagPSH, 300)
	m.tcp(src, sport, port, packet.FlagACK|packet.FlagFIN, 0)
}

// phase is much traffic for some windows; play makes a part of a window of it.
type phase struct {
	name     string
	from, to float64
	play     func(share float64)
}

// TestMixed: nothing of that is an attack, however it falls together: a crowd, an own scanner, speed tests, clients that try
// again at one moment, beside games and a web server's visitors.
func TestMixed(t *testing.T) {
	scanner, tester := netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("203.0.113.9")
	crowd := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, 18, byte(i % 400 >> 8), byte(i % 400)}) }
	for seed := range uint64(40) {
		m := &mixed{lab: newLab(t)}
		m.rng = rand.New(rand.NewPCG(seed, 3)) //nolint:gosec // reproducible
		m.e.Allow(policy.NewCover([]netip.Prefix{netip.PrefixFrom(scanner, 32)}))
		port, connections, tried := uint16(0), 0, uint64(0)
		random := func(n float64) int { // with that mean
			k := int(n)
			if m.rng.Float64() < n-float64(k) {
				k++
			}
			return k
		}
		for i := range 8 {
			m.talk(netip.AddrFrom4([4]byte{203, 0, 113, byte(30 + i)}), 17, 30000, 27015)
		}
		m.talk(tester, 6, 40000, 5201)
		m.talk(tester, 17, 40001, 5202)
		m.talk(tester, 17, 443, 50000)
		scanRate, data, crowdRate := 50+m.rng.Float64()*500, 1000+m.rng.Float64()*9000, 100+m.rng.Float64()*300
		names := []string{"scan", "up", "down", "udp", "quic", "crowd"}
		kinds := []func(share float64){
			func(share float64) {
				for range random(scanRate * share) {
					port++
					tried++
					m.tcp(scanner, 40000, port, packet.FlagSYN, 0)
				}
			},
			func(share float64) {
				for range random(data * share) {
					m.tcp(tester, 40000, 5201, packet.FlagACK, 1400)
				}
			},
			func(share float64) {
				for range random(data / 2 * share) {
					m.tcp(tester, 40000, 5201, packet.FlagACK, 0)
				}
			},
			func(share float64) {
				for range random(5000 * share) {
					m.udp(tester, 40001, 5202, 100)
				}
			},
			func(share float64) {
				for range random(1500 * share) {
					m.udp(tester, 443, 50000, 1200)
				}
			},
			func(share float64) {
				for range random(crowdRate * share) {
					connections++
					m.connection(crowd(connections), 8443, 20)
				}
			},
		}
		var phases []phase
		order := m.rng.Perm(len(kinds))
		for len(order) > 0 {
			at := 5 + m.rng.Float64()*30
			for { // some follow each other at once
				k := order[0]
				order = order[1:]
				to := at + 0.5 + m.rng.Float64()*12
				phases = append(phases, phase{names[k], at, to, kinds[k]})
				if at = to; len(order) == 0 || m.rng.IntN(2) == 0 {
					break
				}
			}
		}
		together := 5 + m.rng.IntN(30)
		for n := range 55 {
			tried = 0
			m.handshake(m.late)
			m.late = 0
			at := float64(n)
			for _, p := range phases {
				if share := min(p.to, at+1) - max(p.from, at); share > 0 {
					p.play(share)
				}
			}
			for range random(1.3) {
				connections++
				m.connection(netip.AddrFrom4([4]byte{203, 0, 113, byte(60 + m.rng.IntN(16))}), 443, 20)
			}
			for i := range 8 {
				for range random(5.7) {
					m.udp(netip.AddrFrom4([4]byte{203, 0, 113, byte(30 + i)}), 30000, 27015, 60)
				}
			}
			if n == together || n == together+10 {
				for i := range 200 {
					m.tcp(crowd(i), 33000, 8443, packet.FlagSYN, 0)
				}
				if n == together+10 {
					m.late += 200
				}
			}
			for _, a := range m.close(allowedTries(scanner, tried)).Attacks {
				t.Errorf("seed %d, window %d: %s of %.0f packets/s; %+v", seed, n, a.GetType(), a.GetPps(), phases)
			}
			if t.Failed() {
				return
			}
		}
	}
}
