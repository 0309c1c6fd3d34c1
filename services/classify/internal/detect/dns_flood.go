package detect

import "github.com/tidegate-mesh/tidegate/services/classify/internal/header"

// dnsFlood: queries = packets · share of DNS queries among the samples, of which there must be 8, ≥ DNSQueries, or those for ever new names of one
// zone (random subdomains) ≥ DNSNames while they are four fifths of all.
var dnsFlood = Flood{
	Type: DNSFlood,
	Measure: func(s *Sums, t *Thresholds) Measure {
		c := &s.Samples
		if c.DNS == 0 {
			return Measure{}
		}
		n, fresh := s.of(c.DNS), ratio(c.DNSNew, c.DNS-c.DNSFirst, 0)
		level := n / t.DNSQueries
		if fresh >= 0.8 {
			level = max(level, s.of(c.DNSNew)/t.DNSNames)
		}
		return Measure{
			Level: level, Packets: uint64(n), Bytes: scaled(s.Bytes, ratio(c.DNS, c.All, 0)),
			Features: map[string]float64{"dns_queries": n, "new_names": s.of(c.DNSNew), "sources": s.Sources},
			Limits:   map[string]float64{"dns_queries": t.DNSQueries, "new_names": t.DNSNames},
		}
	},
	Kind: func(f *header.Facts) bool { return f.Asks == header.DNS },
}

// queries counts samples that are DNS queries.
func (c *Shares) queries(dns []*header.Facts) {
	c.DNS = uint32(len(dns)) //nolint:gosec // at most the samples of a window
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
