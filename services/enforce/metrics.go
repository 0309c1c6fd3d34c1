package enforce

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidegate-mesh/tidegate/libs/policy"
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
			Name: "tidegate_enforce_refusals_total", Help: "Rules, and entries of address lists, that a guardrail or the kernel refused.",
		}, []string{"reason"}),
	}
	for _, reason := range []Reason{NeverBlock, Management, Infrastructure, BlastRadius, GoodTraffic, RuleLimit, MaskLimit, RateOfRules, Invalid, Expired, ApplyFailed, Panic, Upstream, AllowList, DropList, ListLimit} {
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
	rulesDesc     = prometheus.NewDesc("tidegate_enforce_rules", "Rules on this node.", []string{"action", "state"}, nil)
	bytesDesc     = prometheus.NewDesc("tidegate_xdp_bytes_total", "Bytes of the frames behind tidegate_xdp_packets_total, Ethernet header included.", []string{"iface", "action"}, nil)
	entriesDesc   = prometheus.NewDesc("tidegate_enforce_list_entries", "Entries of address lists on this node: taken into the maps or refused.", []string{"action", "state"}, nil)
	panicDesc     = prometheus.NewDesc("tidegate_enforce_panic", "1 while panic is on at this node, else 0.", nil, nil)
	forgottenDesc = prometheus.NewDesc("tidegate_xdp_sources_forgotten_total", "Sources that another one pushed out of the full table of rules with a rate of each source, and that begin anew.", []string{"iface"}, nil)
	unaskedDesc   = prometheus.NewDesc("tidegate_xdp_out_of_state_total", "Packets dropped as out of state; they are also in tidegate_xdp_packets_total as drop.", []string{"iface"}, nil)
	routesDesc    = prometheus.NewDesc("tidegate_enforce_upstream_routes", "FlowSpec routes upstream: wanted, and told to the program that passes them on.", []string{"state"}, nil)
	upDesc        = prometheus.NewDesc("tidegate_enforce_upstream_up", "1 while a program takes routes upstream, else 0.", nil, nil)
	packetsDesc   = prometheus.NewDesc("tidegate_xdp_packets_total", "Packets of the XDP program by what happened to them; count overlaps the others.", []string{"iface", "action"}, nil)
)

// collector reads the table and the gates' counters at each scrape.
type collector struct{ s *Service }

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- rulesDesc
	ch <- packetsDesc
	ch <- bytesDesc
	ch <- forgottenDesc
	ch <- unaskedDesc
	ch <- panicDesc
	ch <- entriesDesc
	ch <- routesDesc
	ch <- upDesc
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	type key struct{ action, state string }
	entries := make(map[key]int)
	c.s.lists.mu.Lock()
	for _, l := range c.s.lists.known {
		action := policy.Action(l.list.GetAction()).String() //nolint:gosec // an enumeration of five
		entries[key{action, "taken"}] += l.taken
		for _, n := range l.refused {
			entries[key{action, "refused"}] += n
		}
	}
	c.s.lists.mu.Unlock()
	for k, n := range entries {
		ch <- prometheus.MustNewConstMetric(entriesDesc, prometheus.GaugeValue, float64(n), k.action, k.state)
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	rules := make(map[key]int)
	for _, r := range c.s.rules {
		rules[key{r.rule.Action.String(), r.stateName()}]++
	}
	for k, n := range rules {
		ch <- prometheus.MustNewConstMetric(rulesDesc, prometheus.GaugeValue, float64(n), k.action, k.state)
	}
	panicking := 0.0
	if c.s.guard.panic.on {
		panicking = 1
	}
	ch <- prometheus.MustNewConstMetric(panicDesc, prometheus.GaugeValue, panicking)
	if c.s.upstream != nil {
		told, wanted, problem := c.s.upstream.state()
		up := 1.0
		if problem != nil {
			up = 0
		}
		ch <- prometheus.MustNewConstMetric(upDesc, prometheus.GaugeValue, up)
		ch <- prometheus.MustNewConstMetric(routesDesc, prometheus.GaugeValue, float64(told), "told")
		ch <- prometheus.MustNewConstMetric(routesDesc, prometheus.GaugeValue, float64(wanted), "wanted")
	}
	for _, p := range c.s.gates() {
		n, err := p.gate.Counters()
		if err != nil {
			c.s.t.CountError("xdp_counters")
			continue
		}
		for _, v := range []struct {
			action         string
			packets, bytes uint64
		}{
			{"drop", n.Drop, n.Bytes.Drop}, {"rate_limited", n.RateLimited, n.Bytes.RateLimited},
			{"count", n.Count, n.Bytes.Count}, {"pass", n.Pass, n.Bytes.Pass}, {"forward", n.Forward, n.Bytes.Forward},
			{"redirect", n.Redirect, n.Bytes.Redirect}, {"no_reader", n.NoReader, n.Bytes.NoReader},
		} {
			ch <- prometheus.MustNewConstMetric(packetsDesc, prometheus.CounterValue, float64(v.packets), p.name, v.action)
			ch <- prometheus.MustNewConstMetric(bytesDesc, prometheus.CounterValue, float64(v.bytes), p.name, v.action)
		}
		ch <- prometheus.MustNewConstMetric(unaskedDesc, prometheus.CounterValue, float64(n.OutOfState), p.name)
		ch <- prometheus.MustNewConstMetric(forgottenDesc, prometheus.CounterValue, float64(n.Forgotten), p.name)
	}
}
