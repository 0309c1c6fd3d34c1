package detect

import (
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/packet"
)

func TestACKFlood(t *testing.T) {
	levels{
		"below":                 {Sums{OutOfState: 999, Samples: Shares{Stray: 64, ACK: 64}}, 0.999},
		"at":                    {Sums{OutOfState: 1000, Samples: Shares{Stray: 64, ACK: 64}}, 1},
		"half are RST":          {Sums{OutOfState: 2000, Samples: Shares{Stray: 64, ACK: 32, RSTFIN: 32}}, 1},
		"a download's own ACKs": {Sums{Packets: 90_000, TCP: 90_000, Samples: Shares{All: 64}}, 0},
		"a lone scanner":        {Sums{OutOfState: 5000, Samples: Shares{Stray: 64, ACK: 64, ACKScan: 64}}, 0},
	}.check(t, &ackFlood)
	kinds(t, &ackFlood,
		[][]byte{tcpFrame(stranger, 80, packet.FlagACK, ""), tcpFrame(stranger, 80, packet.FlagACK|packet.FlagPSH, "x")},
		[][]byte{tcpFrame(stranger, 80, packet.FlagSYN|packet.FlagACK, ""), tcpFrame(stranger, 80, packet.FlagRST|packet.FlagACK, "")})

	var walk [][]byte
	for port := range uint16(16) {
		walk = append(walk, tcpFrame(stranger, port+1, packet.FlagACK, ""))
	}
	facts, _ := sampled(t, walk...)
	if c := CountSamples(facts, standing(Stranger)); c.ACK != 16 || c.ACKScan != 16 || c.Stray != 16 {
		t.Errorf("a scanner's ACKs are counted as %+v", c)
	}
	if c := CountSamples(facts, standing(Peer)); c.Stray != 0 || c.ACK != 0 || c.ACKScan != 0 {
		t.Errorf("a peer's ACKs are counted as %+v", c)
	}
}
