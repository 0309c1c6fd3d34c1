package detect

import "github.com/tidegate-mesh/tidegate/services/classify/internal/header"

// dnsFlood: queries, by the share of them that each window's samples have (8 of windows sampled in part, or those do not
// count), ≥ DNSQueries; or those for ever new names of one zone (random subdomains) ≥ DNSNames while they are four fifths of all.
var dnsFlood = Flood{
	Type: DNSFlood,
	Measure: func(s *Sums, t *Thresholds) Measure {
		if s.Samples.DNS == 0 {
			return Measure{}
		}
		n := s.of(func(c *Shares) float64 { return c.DNS })
		names := s.of(func(c *Shares) float64 { return c.DNSNew })
		level := n / t.DNSQueries
		if s.Stand.DNSNew*5 >= (s.Stand.DNS-s.Stand.DNSFirst)*4 {
			level = max(level, names/t.DNSNames)
		}
		return Measure{
			Level: level, Packets: uint64(n), Bytes: scaled(s.Bytes, ratio(n, float64(s.Packets), 0)),
			Features: map[string]float64{"dns_queries": n, "new_names": names, "sources": s.Sources},
			Limits:   map[string]float64{"dns_queries": t.DNSQueries, "new_names": t.DNSNames},
		}
	},
	Kind: func(f *header.Facts) bool { return f.Asks == header.DNS },
}

// queries counts samples that are DNS queries.
func (c *Shares) queries(dns []*header.Facts) {
	c.DNS = float64(len(dns))
	zones := make(map[uint32]map[uint32]bool)
	for _, f := range dns {
		if zones[f.Zone] == nil {
			zones[f.Zone] = make(map[uint32]bool)
		}
		zones[f.Zone][f.Name] = true
	}
	for _, names := range zones {
		c.DNSNew = max(c.DNSNew, float64(len(names)))
	}
}
