package classify

import (
	"fmt"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/detect"
)

// noRules is the action of a verdict that blocks nothing.
const noRules = "none"

// maxApps bounds the label app; further applications count as other.
const maxApps = 32

type metrics struct {
	flows    *prometheus.CounterVec // app
	verdicts *prometheus.CounterVec // type, action
	latency  prometheus.Histogram
	rules    prometheus.Histogram

	hostFlows      *prometheus.CounterVec // action
	hostSuppressed *prometheus.CounterVec // reason
	hostEntries    prometheus.Gauge

	mu   sync.Mutex
	apps map[string]prometheus.Counter
}

func newMetrics(r prometheus.Registerer, e *Engine) (*metrics, error) {
	m := &metrics{
		flows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidegate_classify_flows_total", Help: "Flows that ended, by application; rare ones count as other.",
		}, []string{"app"}),
		verdicts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidegate_classify_verdicts_total", Help: "Verdicts, by attack type and the action of their first rule.",
		}, []string{"type", "action"}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "tidegate_classify_latency_seconds", Help: "Time from a batch or window received to its acknowledgement.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 16),
		}),
		rules: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "tidegate_classify_decide_seconds", Help: "Time from a window received to the verdict's rules stored.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 16),
		}),
		hostFlows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidegate_classify_host_flows_total", Help: "Flows that named a host of a list or of a user's rule, by its action.",
		}, []string{"action"}),
		hostSuppressed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidegate_classify_host_suppressed_total", Help: "Of them, those that no rule was made for, by reason.",
		}, []string{"reason"}),
		hostEntries: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "tidegate_classify_host_entries", Help: "Domains of lists and of users' rules that flows are compared with.",
		}),
		apps: make(map[string]prometheus.Counter),
	}
	// Prometheus takes a series that begins at 1 for no increase: the first verdict of its kind would be missed.
	for _, typ := range append(detect.Types(), typeDomainList, typeHostRule) {
		for _, action := range []string{policy.Drop.String(), policy.RateLimit.String(), policy.Count.String(), noRules} {
			m.verdicts.WithLabelValues(typ, action)
		}
	}
	for _, reason := range []string{suppressedRate, suppressedLimit, suppressedQueue} {
		m.hostSuppressed.WithLabelValues(reason)
	}
	collectors := []prometheus.Collector{m.flows, m.verdicts, m.latency, m.rules, m.hostFlows, m.hostSuppressed, m.hostEntries}
	for _, g := range []struct {
		name, help string
		get        func(s EngineStats) uint64
	}{
		{"tidegate_classify_flows_active", "Flows remembered.", func(s EngineStats) uint64 { return s.Flows }},
		{"tidegate_classify_attacks_active", "Attacks that are on.", func(s EngineStats) uint64 { return s.Attacks }},
		{"tidegate_classify_sources", "Sources remembered for scans.", func(s EngineStats) uint64 { return s.Sources }},
		{"tidegate_classify_usual_hosts", "Hosts about which it is learned what is usual.", func(s EngineStats) uint64 { return s.UsualHosts }},
		{"tidegate_classify_usual_raised_hosts", "Of these, hosts with a threshold above the configured one.", func(s EngineStats) uint64 { return s.UsualRaised }},
	} {
		collectors = append(collectors, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: g.name, Help: g.help},
			func() float64 { return float64(g.get(e.Stats())) }))
	}
	collectors = append(collectors, prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "tidegate_classify_flows_evicted_total", Help: "Flows forgotten before their end because there were too many.",
	}, func() float64 { return float64(e.Stats().FlowsEvicted) }))
	collectors = append(collectors, prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "tidegate_classify_usual_refused_total", Help: "Minutes of busy hosts that were not learned from because there were too many hosts.",
	}, func() float64 { return float64(e.Stats().UsualRefused) }))
	for _, c := range collectors {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics of classify: %w", err)
		}
	}
	return m, nil
}

// app is the counter of an application.
func (m *metrics) app(name string) prometheus.Counter {
	m.mu.Lock()
	defer m.mu.Unlock()
	c, ok := m.apps[name]
	if !ok {
		if len(m.apps) >= maxApps {
			name = "other"
		}
		c = m.flows.WithLabelValues(name)
		if len(m.apps) < maxApps {
			m.apps[name] = c
		}
	}
	return c
}
