package detect

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/packet"
)

func TestHTTPFlood(t *testing.T) {
	levels{
		"one source, one resource, below": {Sums{Packets: 149, Samples: Shares{All: 64, HTTP: 64, HTTPPair: 64, HTTPSource: 64, HTTPSame: 64}}, 149.0 / 150},
		"one source, one resource, at":    {Sums{Packets: 150, Samples: Shares{All: 64, HTTP: 64, HTTPPair: 64, HTTPSource: 64, HTTPSame: 64}}, 1},
		"one source, many resources":      {Sums{Packets: 1000, Samples: Shares{All: 64, HTTP: 64, HTTPPair: 1, HTTPSource: 64, HTTPSame: 1}}, 1},
		"many sources, one resource":      {Sums{Packets: 1000, Samples: Shares{All: 64, HTTP: 64, HTTPPair: 1, HTTPSource: 1, HTTPSame: 64}}, 1},
		"busy site":                       {Sums{Packets: 5120, Samples: Shares{All: 64, HTTP: 64, HTTPPair: 1, HTTPSource: 1, HTTPSame: 40}}, 0},
		"few among many":                  {Sums{Packets: 64_000, Samples: Shares{All: 640, HTTP: 7, HTTPPair: 7, HTTPSource: 7, HTTPSame: 7}}, 0},
		"reverse proxy":                   {Sums{Packets: 5000, Samples: Shares{All: 64, HTTPSettled: 64}}, 0.5},
		"proxy gone wild":                 {Sums{Packets: 10_000, Samples: Shares{All: 64, HTTPSettled: 64}}, 1},
		"no requests":                     {Sums{Packets: 90_000, Samples: Shares{All: 64}}, 0},
	}.check(t, &httpFlood)
}

// TestHTTPRequests: strangers' requests count by source and resource, a settled peer's on its own.
func TestHTTPRequests(t *testing.T) {
	get := func(last byte, path string) []byte {
		return tcpFrame(netip.AddrFrom4([4]byte{192, 0, 2, last}), 80, packet.FlagACK|packet.FlagPSH, "GET "+path+" HTTP/1.1\r\nHost: a\r\n\r\n")
	}
	frames := [][]byte{get(1, "/"), get(1, "/?x=1"), get(1, "/?x=2"), get(1, "/a"), get(2, "/"), get(3, "/b"),
		tcpFrame(stranger, 80, packet.FlagACK, "HTTP/1.1 200 OK\r\n"), tcpFrame(stranger, 80, packet.FlagSYN, "")}
	facts, _ := sampled(t, frames...)
	type counts struct{ all, pair, source, same, settled float64 }
	for s, want := range map[Standing]counts{Stranger: {6, 3, 4, 4, 0}, Peer: {6, 3, 4, 4, 0}, Settled: {0, 0, 0, 0, 4}} {
		t.Run(fmt.Sprint(s), func(t *testing.T) {
			c := CountSamples(facts, standing(s))
			if got := (counts{c.HTTP, c.HTTPPair, c.HTTPSource, c.HTTPSame, c.HTTPSettled}); got != want {
				t.Errorf("counted %+v, want %+v", got, want)
			}
		})
	}
}
