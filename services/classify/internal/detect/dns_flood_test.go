package detect

import (
	"fmt"
	"strings"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/packet"
)

func TestDNSFlood(t *testing.T) {
	levels{
		"below":             {Sums{Packets: 4999, Samples: Shares{All: 64, DNS: 64, DNSNew: 2}}, 0.9998},
		"at":                {Sums{Packets: 5000, Samples: Shares{All: 64, DNS: 64, DNSNew: 2}}, 1},
		"random subdomains": {Sums{Packets: 200, Samples: Shares{All: 64, DNS: 64, DNSNew: 64}}, 1},
		"a resolver's day":  {Sums{Packets: 2000, Samples: Shares{All: 64, DNS: 64, DNSNew: 20}}, 0.4},
		"few among many":    {Sums{Packets: 64_000, Samples: Shares{All: 640, DNS: 7, DNSNew: 7}}, 0},
		"other UDP":         {Sums{Packets: 90_000, Samples: Shares{All: 64}}, 0},
	}.check(t, &dnsFlood)
}

// query is a DNS query for a name of a type.
func query(name string, typ uint16) []byte {
	b := []byte{0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	for _, label := range strings.Split(name, ".") {
		b = append(append(b, byte(len(label))), label...) //nolint:gosec // labels of tests are short
	}
	return append(b, 0, byte(typ>>8), byte(typ), 0, 1)
}

// TestDNSQueries: distinct names of one zone are new, repeated ones and those of many zones are not.
func TestDNSQueries(t *testing.T) {
	for name, tt := range map[string]struct {
		name string
		want float64
	}{
		"random subdomains": {"x%d.example.net", 10}, "one name": {"www.example.net%.0s", 1}, "many zones": {"www.example%d.net", 1},
	} {
		t.Run(name, func(t *testing.T) {
			var frames [][]byte
			for i := range 10 {
				h := packet.Header{Src: stranger, Dst: host}
				frames = append(frames, h.AppendUDP(nil, 4000, 53, query(fmt.Sprintf(tt.name, i), 1)))
			}
			facts, _ := sampled(t, frames...)
			if c := CountSamples(facts, standing(Stranger)); c.DNS != 10 || c.DNSNew != tt.want {
				t.Errorf("%v queries, %v new, want 10 and %v", c.DNS, c.DNSNew, tt.want)
			}
		})
	}
}
