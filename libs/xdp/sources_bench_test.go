package xdp

import (
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/policy"
)

// BenchmarkSources is the rate on one CPU, sender included, of a rule with a rate of each source, beside a drop of the same
// packets and a rate of the whole rule; the bars are 13 million packets a second with 1,000 sources and 3 million with
// a million. A rate is one packet a second: of a thousand sources nearly all packets exceed it, of a million about half on a machine that sends two million.
func BenchmarkSources(b *testing.B) {
	r := newRig(b, 1)
	g := r.open(b, Options{Mode: ModeInline, FailClosed: true})
	frame := udp("192.0.2.1", "198.51.100.7").frame(b)
	for _, sources := range []struct {
		name string
		mask uint32
	}{{"1Ki", 1<<10 - 1}, {"1Mi", 1<<20 - 1}} {
		var dropped float64
		for _, bb := range []struct {
			name string
			rule Rule
		}{
			{"drop", Rule{Action: policy.Drop}},
			{"rate of the rule", Rule{Action: policy.RateLimit, RatePPS: 1}},
			{"rate of each source", Rule{Action: policy.RateLimit, RatePPS: 1, PerSource: true}},
		} {
			b.Run(sources.name+" sources, "+bb.name, func(b *testing.B) {
				bb.rule.ID = 1
				must(b, g.PutRules([]Rule{bb.rule}))
				r.flood(b, "left", 20<<24, sources.mask, frame, 4<<20) // pages, caches, and what each source has to begin with
				before := counters(b, g)
				begin := time.Now()
				for range max(1, b.N/5_000_000) {
					r.flood(b, "left", 20<<24, sources.mask, frame, 5_000_000)
				}
				took := time.Since(begin)
				after := counters(b, g)
				seen := float64(after.Seen - before.Seen)
				mpps := seen / took.Seconds() / 1e6
				if bb.rule.Action == policy.Drop {
					dropped = mpps
				}
				b.ReportMetric(mpps, "Mpps")
				b.ReportMetric(mpps/dropped, "of_drop")
				b.ReportMetric(100*float64(after.Drop+after.RateLimited-before.Drop-before.RateLimited)/seen, "%dropped")
				b.ReportMetric(float64(after.Forgotten-before.Forgotten), "forgotten")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}
