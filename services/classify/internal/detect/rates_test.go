package detect

import (
	"math"
	"testing"
)

// TestRates: names and thresholds belong together, and what a flood tells of its rates over their thresholds is its level.
func TestRates(t *testing.T) {
	th := DefaultThresholds()
	named := th.Named()
	for rate, name := range RateNames {
		if v, ok := named[name]; !ok || v != *th.Rate(rate) {
			t.Errorf("rate %s: threshold %v, named %v", name, *th.Rate(rate), v)
		}
		*th.Rate(rate) *= 2
		if got := th.Named()[name]; got != 2*named[name] {
			t.Errorf("rate %s is not the threshold of that name", name)
		}
	}
	th = DefaultThresholds()
	base := Sums{Packets: 1000, Bytes: 100_000, Sources: 30}
	with := func(edit func(s *Sums)) Sums { s := base; edit(&s); return s }
	stray := func(edit func(c *Shares)) Sums {
		return with(func(s *Sums) { s.OutOfState, s.Samples.Stray, s.Samples.All = 200, 40, 64; edit(&s.Samples) })
	}
	for _, c := range []struct {
		typ  string
		sums Sums
		rate int // the one that makes the level; -1: none is told
	}{
		{SYNFlood, with(func(s *Sums) { s.SYN, s.Handshakes = 120, 10 }), RateSYN},
		{UDPFlood, with(func(s *Sums) { s.UDP = 900 }), RateUDPPackets},
		{UDPFlood, with(func(s *Sums) { s.UDP, s.Packets, s.Bytes = 900, 900, 40_000_000 }), RateUDPBits},
		{UDPFlood, with(func(s *Sums) { s.UDP, s.Reflected = 900, 800 }), -1},
		{ICMPFlood, with(func(s *Sums) { s.ICMP, s.Samples.ICMP, s.Samples.ICMPFlood = 400, 40, 20 }), RateICMP},
		{AmpDNS, with(func(s *Sums) { s.DNS, s.DNSBytes = 200, 20_000 }), RateDNSAnswers},
		{AmpNTP, with(func(s *Sums) { s.NTP, s.NTPBytes = 200, 20_000 }), RateNTPAnswers},
		{ACKFlood, stray(func(c *Shares) { c.ACK = 40 }), RateACK},
		{RSTFINFlood, stray(func(c *Shares) { c.RSTFIN = 40 }), RateRSTFIN},
		{SYNACKReflection, stray(func(c *Shares) { c.SYNACK = 40 }), RateSYNACK},
		{InvalidFlags, stray(func(c *Shares) { c.Invalid = 1 }), -1},
		{FragmentFlood, with(func(s *Sums) { s.Fragments, s.Samples.Fragments = 500, 10 }), RateFragments},
		{HTTPFlood, with(func(s *Sums) { s.Samples = Shares{All: 100, HTTP: 20, HTTPPair: 10, HTTPSource: 12, HTTPSame: 12} }), RateHTTPPair},
		{HTTPFlood, with(func(s *Sums) { s.Samples = Shares{All: 100, HTTP: 40, HTTPPair: 1, HTTPSource: 20, HTTPSame: 20} }), RateHTTP},
		{HTTPFlood, with(func(s *Sums) { s.Samples = Shares{All: 100, HTTP: 40, HTTPPair: 1, HTTPSource: 2, HTTPSame: 39} }), RateHTTP},
		{HTTPFlood, with(func(s *Sums) { s.Samples = Shares{All: 100, HTTPSettled: 40} }), RateHTTP},
		{DNSFlood, with(func(s *Sums) { s.Samples = Shares{All: 100, DNS: 90, DNSNew: 3} }), RateDNSQueries},
		{DNSFlood, with(func(s *Sums) { s.Samples = Shares{All: 100, DNS: 10, DNSNew: 9} }), RateDNSNames},
		{AmpSSDP, with(func(s *Sums) {
			for i := range services {
				if services[i].typ == AmpSSDP {
					s.Services[i] = Volume{Packets: 200, Bytes: 20_000}
				}
			}
		}), RateAmpPackets},
	} {
		for _, d := range Floods() {
			if d.Type != c.typ {
				continue
			}
			c.sums.weigh()
			m := d.Measure(&c.sums, &th)
			if c.rate >= 0 && (m.Level <= 0 || m.Level >= 1) {
				t.Fatalf("%s: a level of %v tests nothing", c.typ, m.Level)
			}
			most, top := 0.0, -1
			d.Rates(&m, func(rate int, v float64) {
				if l := v / *th.Rate(rate); l > most {
					most, top = l, rate
				}
			})
			if top != c.rate {
				t.Errorf("%s: rate %d is the highest, want %d", c.typ, top, c.rate)
			} else if top >= 0 && math.Abs(most-m.Level) > 0.02*m.Level {
				t.Errorf("%s: rate over threshold is %v, the level %v", c.typ, most, m.Level)
			}
		}
	}
}
