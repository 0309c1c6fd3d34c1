package detect

import (
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/packet"
)

func TestInvalidFlags(t *testing.T) {
	levels{
		"below":       {Sums{Packets: 49, Samples: Shares{All: 49, Invalid: 49}}, 0.98},
		"at":          {Sums{Packets: 50, Samples: Shares{All: 50, Invalid: 50}}, 1},
		"among many":  {Sums{Packets: 6400, Samples: Shares{All: 640, Invalid: 8}}, 1.6},
		"a stray one": {Sums{Packets: 64_000, Samples: Shares{All: 640, Invalid: 1}}, 0},
		"none":        {Sums{Packets: 50_000, Samples: Shares{All: 64}}, 0},
	}.check(t, &invalidFlags)
	const xmas = packet.FlagFIN | packet.FlagPSH | packet.FlagURG
	kinds(t, &invalidFlags,
		[][]byte{tcpFrame(stranger, 80, 0, ""), tcpFrame(stranger, 80, packet.FlagFIN, ""), tcpFrame(stranger, 80, xmas, ""),
			tcpFrame(stranger, 80, packet.FlagSYN|packet.FlagFIN, ""), tcpFrame(stranger, 80, packet.FlagSYN|packet.FlagRST, ""),
			tcpFrame(stranger, 80, packet.FlagFIN|packet.FlagRST|packet.FlagACK, "")},
		[][]byte{tcpFrame(stranger, 80, packet.FlagSYN, ""), tcpFrame(stranger, 80, packet.FlagSYN|packet.FlagECE|packet.FlagCWR, ""),
			tcpFrame(stranger, 80, packet.FlagACK, ""), tcpFrame(stranger, 80, packet.FlagRST, ""), tcpFrame(stranger, 80, packet.FlagFIN|packet.FlagACK, "")})
}
