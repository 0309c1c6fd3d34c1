package hook

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// results of messages.
const (
	delivered = "delivered"
	skipped   = "skipped"   // not of the types asked for
	refused   = "refused"   // the receiver never wants it
	duplicate = "duplicate" // EVE lines that were in the file already
	lost      = "lost"      // removed from the stream before
)

type metrics struct {
	results  *prometheus.CounterVec   // hook, result
	failures *prometheus.CounterVec   // hook, reason
	seconds  *prometheus.HistogramVec // hook
	lag      *prometheus.GaugeVec     // hook, stream
	age      *prometheus.GaugeVec     // hook, stream
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		results: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidegate_persist_hook_messages_total",
			Help: "Messages by what became of them: delivered, skipped (another type), refused by the receiver for good, lost (removed from the stream before); duplicate counts EVE lines.",
		}, []string{"hook", "result"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidegate_persist_hook_failures_total", Help: "Attempts that failed and are repeated.",
		}, []string{"hook", "reason"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "tidegate_persist_hook_seconds", Help: "Time of one attempt.", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16),
		}, []string{"hook"}),
		lag: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "tidegate_persist_hook_lag_messages", Help: "Messages of the stream that the hook has not dealt with yet.",
		}, []string{"hook", "stream"}),
		age: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "tidegate_persist_hook_lag_seconds", Help: "Age of the message that the hook is trying to deliver; 0: none.",
		}, []string{"hook", "stream"}),
	}
	for _, c := range []prometheus.Collector{m.results, m.failures, m.seconds, m.lag, m.age} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics of hooks: %w", err)
		}
	}
	return m, nil
}

// prepare makes the results visible as 0.
func (m *metrics) prepare(hook string) {
	for _, r := range []string{delivered, skipped, refused, duplicate, lost} {
		m.results.WithLabelValues(hook, r)
	}
}
