package enforce

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the service's own; rules and packets are read when asked for.
type metrics struct {
	apply     prometheus.Histogram
	firstDrop prometheus.Histogram
	refusals  *prometheus.CounterVec
}

func newMetrics(s *Service) (*metrics, error) {
	m := &metrics{
		apply: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "tidegate_enforce_apply_seconds", Help: "From the watch's delivery of a rule to its entry in the maps.",
			Buckets: prometheus.ExponentialBuckets(25e-6, 2, 18),
		}),
		firstDrop: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "tidegate_time_to_first_drop_seconds", Help: "From the attack's first frame to the first frame dropped by a rule against it, kernel times.",
			Buckets: []float64{.01, .025, .05, .075, .1, .125, .15, .175, .2, .25, .3, .4, .5, .75, 1, 1.5, 2, 3, 5, 10, 30, 60},
		}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidegate_enforce_refusals_total", Help: "Rules that a guardrail or the kernel refused.",
		}, []string{"reason"}),
	}
	for _, reason := range []Reason{NeverBlock, Management, Infrastructure, BlastRadius, RuleLimit, MaskLimit, RateOfRules, Invalid, Expired, ApplyFailed, Panic} {
		m.refusals.WithLabelValues(string(reason))
	}
	for _, c := range []prometheus.Collector{m.apply, m.firstDrop, m.refusals, &collector{s}} {
		if err := s.t.Registry.Register(c); err != nil {
			return nil, fmt.Errorf("enforce: register metrics: %w", err)
		}
	}
	return m, nil
}

var (
	rulesDesc   = prometheus.NewDesc("tidegate_enforce_rules", "Rules on this node.", []string{"action", "state"}, nil)
	packetsDesc = prometheus.NewDesc("tidegate_xdp_packets_total", "Packets of the XDP program by what happened to them; count overlaps the others.", []string{"iface", "action"}, nil)
)

// collector reads the table and the gates' counters at each scrape.
type collector struct{ s *Service }

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- rulesDesc
	ch <- packetsDesc
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	type key struct{ action, state string }
	rules := make(map[key]int)
	for _, r := range c.s.rules {
		rules[key{r.rule.Action.String(), r.stateName()}]++
	}
	for k, n := range rules {
		ch <- prometheus.MustNewConstMetric(rulesDesc, prometheus.GaugeValue, float64(n), k.action, k.state)
	}
	for _, p := range c.s.gates() {
		n, err := p.gate.Counters()
		if err != nil {
			c.s.t.CountError("xdp_counters")
			continue
		}
		for _, v := range []struct {
			action string
			n      uint64
		}{
			{"drop", n.Drop}, {"rate_limited", n.RateLimited}, {"count", n.Count}, {"pass", n.Pass},
			{"forward", n.Forward}, {"redirect", n.Redirect}, {"no_reader", n.NoReader},
		} {
			ch <- prometheus.MustNewConstMetric(packetsDesc, prometheus.CounterValue, float64(v.n), p.name, v.action)
		}
	}
}
