package detect

import (
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/packet"
)

func TestSYNACKReflection(t *testing.T) {
	levels{
		"below":            {Sums{OutOfState: 299, Samples: Shares{Stray: 64, SYNACK: 64}}, 299.0 / 300},
		"at":               {Sums{OutOfState: 300, Samples: Shares{Stray: 64, SYNACK: 64}}, 1},
		"answers we asked": {Sums{Packets: 9000, TCP: 9000}, 0},
	}.check(t, &synACKReflection)
	kinds(t, &synACKReflection, [][]byte{tcpFrame(stranger, 80, packet.FlagSYN|packet.FlagACK, "")},
		[][]byte{tcpFrame(stranger, 80, packet.FlagSYN, ""), tcpFrame(stranger, 80, packet.FlagACK, "")})
}

// TestRepeats: one reflector that repeats its SYN-ACK beyond what a connection does is found; backscatter, which repeats
// each a few times toward many addresses, is not, and neither is what ten minutes lie between.
func TestRepeats(t *testing.T) {
	th := DefaultThresholds()
	facts, _ := sampled(t, tcpFrame(stranger, 80, packet.FlagSYN|packet.FlagACK, ""))
	run := func(n int, every int64, ports int) (at int) {
		var r Repeats
		for i := range n {
			f := facts[0]
			f.TimeNs = 1e18 + int64(i)*every
			f.DstPort = uint16(i % ports) //nolint:gosec // few
			if s, ok := r.Add(&f, &th); ok {
				if s.Type != SYNACKReflection || s.Host != host || s.Target.Addr() != host {
					t.Fatalf("found %+v", s)
				}
				return i + 1
			}
		}
		return 0
	}
	if at := run(100, 1e9, 1); at != usualRepeats+int(th.SYNACKAgain) {
		t.Errorf("found after %d repetitions, want %d", at, usualRepeats+int(th.SYNACKAgain))
	}
	if at := run(6*300, 1e8, 300); at != 0 {
		t.Errorf("backscatter is found after %d packets", at)
	}
	if at := run(100, 40e9, 1); at != 0 {
		t.Errorf("one in 40 s is found after %d", at)
	}
}
