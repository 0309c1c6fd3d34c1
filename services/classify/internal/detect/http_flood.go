package detect

import "github.com/tidegate-mesh/tidegate/services/classify/internal/header"

// httpFlood: HTTP/1 requests, by the share of them that each window's samples have (8 of windows sampled in part, or those do not
// count). Requests of one source for one resource (a path without its query) ≥ HTTPPair; or requests of one source ≥ HTTP; or
// requests of all for one resource ≥ HTTP while they are four fifths of all requests. A browser and a crawler ask for many
// resources.
//
// A reverse proxy, a NAT gateway and a monitoring system send what a flood sends. What separates them is their past: a
// settled peer, one that was answered a minute ago already, counts only by itself and from ten times HTTP on.
var httpFlood = Flood{
	Type: HTTPFlood,
	Measure: func(s *Sums, t *Thresholds) Measure {
		if s.Samples.HTTP+s.Samples.HTTPSettled == 0 {
			return Measure{}
		}
		pair := s.of(func(c *Shares) float64 { return c.HTTPPair })
		source := s.of(func(c *Shares) float64 { return c.HTTPSource })
		same := s.of(func(c *Shares) float64 { return c.HTTPSame })
		settled := s.of(func(c *Shares) float64 { return c.HTTPSettled })
		level := max(pair/t.HTTPPair, source/t.HTTP, settled/(known*t.HTTP))
		if s.Stand.HTTPSame*5 >= (s.Stand.HTTP-s.Stand.HTTPFirst)*4 {
			level = max(level, same/t.HTTP)
		}
		all := s.of(func(c *Shares) float64 { return c.HTTP + c.HTTPSettled })
		return Measure{
			Level: level, Packets: uint64(all), Bytes: scaled(s.Bytes, ratio(all, float64(s.Packets), 0)),
			Features: map[string]float64{"requests_of_a_source_for_a_resource": pair, "requests_of_a_source": source,
				"requests_for_a_resource": same, "requests_of_a_settled_peer": settled, "http_requests": all, "sources": s.Sources},
			Limits: map[string]float64{"requests_of_a_source_for_a_resource": t.HTTPPair, "requests_of_a_source": t.HTTP,
				"requests_for_a_resource": t.HTTP, "requests_of_a_settled_peer": known * t.HTTP},
		}
	},
	Kind: func(f *header.Facts) bool { return f.Asks == header.HTTP },
}

// requests counts samples that are HTTP requests.
func (c *Shares) requests(http []*header.Facts, of func(f *header.Facts) Standing) {
	if len(http) == 0 {
		return
	}
	type pair struct {
		src  [16]byte
		name uint32
	}
	pairs, sources := make(map[pair]float64), make(map[[16]byte]float64)
	settled, names := make(map[[16]byte]float64), make(map[uint32]float64)
	for _, f := range http {
		if of(f) == Settled {
			settled[f.Src]++
			continue
		}
		c.HTTP++
		pairs[pair{f.Src, f.Name}]++
		sources[f.Src]++
		names[f.Name]++
	}
	c.HTTPPair, c.HTTPSource, c.HTTPSame, c.HTTPSettled = most(pairs), most(sources), most(names), most(settled)
}

func most[K comparable](counts map[K]float64) (n float64) {
	for _, v := range counts {
		n = max(n, v)
	}
	return n
}
