package detect

import (
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/packet"
)

func TestRSTFINFlood(t *testing.T) {
	levels{
		"below":        {Sums{OutOfState: 499, Samples: Shares{Stray: 64, RSTFIN: 64}}, 0.998},
		"at":           {Sums{OutOfState: 500, Samples: Shares{Stray: 64, RSTFIN: 64}}, 1},
		"half are ACK": {Sums{OutOfState: 500, Samples: Shares{Stray: 64, RSTFIN: 32, ACK: 32}}, 0.5},
		"in flows":     {Sums{Packets: 9000, TCP: 9000, Samples: Shares{Stray: 64, RSTFIN: 64}}, 0},
	}.check(t, &rstFINFlood)
	kinds(t, &rstFINFlood,
		[][]byte{tcpFrame(stranger, 80, packet.FlagRST, ""), tcpFrame(stranger, 80, packet.FlagRST|packet.FlagACK, ""),
			tcpFrame(stranger, 80, packet.FlagFIN|packet.FlagACK, "")},
		[][]byte{tcpFrame(stranger, 80, packet.FlagACK, ""), tcpFrame(stranger, 80, packet.FlagFIN, ""),
			tcpFrame(stranger, 80, packet.FlagSYN|packet.FlagRST, "")})
}
