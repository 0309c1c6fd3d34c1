package persist

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	rows      *prometheus.CounterVec // table
	records   *prometheus.CounterVec // stream, result
	discarded *prometheus.CounterVec // stream
	pruned    *prometheus.CounterVec // table, reason
	insert    prometheus.Histogram
	backlog   prometheus.Gauge
	size      prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		rows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidegate_persist_rows_total", Help: "Rows committed.",
		}, []string{"table"}),
		records: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidegate_persist_records_total",
			Help: "Records taken from the bus by what became of them: committed, duplicate, rejected, or redelivered after an earlier commit.",
		}, []string{"stream", "result"}),
		discarded: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidegate_persist_discarded_messages_total",
			Help: "Messages that the full stream discarded before they were read.",
		}, []string{"stream"}),
		pruned: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidegate_persist_pruned_rows_total", Help: "Rows removed, by age or by the size cap.",
		}, []string{"table", "reason"}),
		insert: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "tidegate_persist_insert_seconds", Help: "Time of one batch, from begin to commit.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}),
		backlog: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "tidegate_persist_backlog_messages", Help: "Messages in the streams that are not committed yet.",
		}),
		size: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "tidegate_persist_database_bytes", Help: "Size of tables and indexes.",
		}),
	}
	for _, c := range []prometheus.Collector{m.rows, m.records, m.discarded, m.pruned, m.insert, m.backlog, m.size} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics of persist: %w", err)
		}
	}
	return m, nil
}
