package detect

import "github.com/tidegate-mesh/tidegate/services/classify/internal/header"

// httpFlood: requests = packets · share of HTTP/1 requests among the samples. One source's requests ≥ HTTPSource, or
// requests ≥ HTTP while four fifths of them ask for one resource.
var httpFlood = Flood{
	Type: HTTPFlood,
	Measure: func(s *Sums, t *Thresholds) Measure {
		c := &s.Samples
		n := float64(s.Packets) * ratio(c.HTTP, c.All, 0)
		one, same := n*ratio(c.HTTPSource, c.HTTP, 0), ratio(c.HTTPSame, c.HTTP, 0)
		level := one / t.HTTPSource
		if same >= 0.8 {
			level = max(level, n/t.HTTP)
		}
		return Measure{
			Level: level, Packets: uint64(n), Bytes: scaled(s.Bytes, ratio(c.HTTP, c.All, 0)),
			Features: map[string]float64{"http_requests": n, "requests_of_a_source": one, "same_resource": same, "sources": s.Sources},
			Limits:   map[string]float64{"http_requests": t.HTTP, "requests_of_a_source": t.HTTPSource, "same_resource": 0.8},
		}
	},
	Kind: func(f *header.Facts) bool { return f.Asks == header.HTTP },
}

// requests counts samples that ask for something.
func (c *Shares) requests(http, dns []*header.Facts) {
	c.HTTP, c.DNS = uint32(len(http)), uint32(len(dns)) //nolint:gosec // at most the samples of a window
	if len(http) > 0 {
		sources, names := make(map[[16]byte]uint32), make(map[uint32]uint32)
		for _, f := range http {
			sources[f.Src]++
			names[f.Name]++
		}
		c.HTTPSource, c.HTTPSame = most(sources), most(names)
	}
	if len(dns) > 0 {
		zones := make(map[uint32]map[uint32]bool)
		for _, f := range dns {
			if zones[f.Zone] == nil {
				zones[f.Zone] = make(map[uint32]bool)
			}
			zones[f.Zone][f.Name] = true
		}
		for _, names := range zones {
			c.DNSNew = max(c.DNSNew, uint32(len(names))) //nolint:gosec // at most the samples of a window
		}
	}
}

func most[K comparable](counts map[K]uint32) (n uint32) {
	for _, v := range counts {
		n = max(n, v)
	}
	return n
}
