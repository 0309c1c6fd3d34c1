// Package ledger holds the equations of DESIGN 6: what went into a stage must equal what it became. It is
// computed where the terms meet: by the command line from every service's status, and by each process for its
// own metrics.
package ledger

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	statusv1 "github.com/tidegate-mesh/tidegate/proto/status/v1"
)

// Equation says that the term In is the sum of the terms Out. Terms are named service.term.
type Equation struct {
	Stage string
	In    string
	Out   []string
}

// Equations are all stages, in the order of the data path. The last two join counters of two processes: they
// balance over a run in which neither restarted.
var Equations = []Equation{
	{"xdp", "ingest.xdp_seen", []string{"ingest.xdp_dropped", "ingest.xdp_rate_limited", "ingest.xdp_passed", "ingest.xdp_forwarded", "ingest.xdp_no_reader", "ingest.redirected"}},
	{"capture", "ingest.raised", []string{"ingest.received", "ingest.ring_drops", "ingest.lost_at_restart"}},
	{"decode", "ingest.received", []string{"ingest.accounted", "ingest.undecodable"}},
	{"flows", "ingest.flows_created", []string{"ingest.flows_ended", "ingest.flows_active", "ingest.flows_summarised", "ingest.flows_evicted"}},
	{"batches", "ingest.batches_made", []string{"ingest.batches_acked", "ingest.batches_dropped", "ingest.batches_pending"}},
	{"publish", "classify.records_received", []string{"classify.published", "classify.already_published", "classify.unpublished"}},
	{"persist", "classify.published", []string{"persist.records_committed", "persist.records_duplicate", "persist.records_rejected"}},
}

// Short is a term without its service: ingest.xdp_dropped is dropped.
func Short(term string) string {
	_, name, _ := strings.Cut(term, ".")
	return strings.TrimPrefix(name, "xdp_")
}

// Stage is one balanced or unbalanced equation.
type Stage struct {
	Stage      string            `json:"stage"`
	In         uint64            `json:"in"`
	Out        map[string]uint64 `json:"out"` // by short name
	Difference int64             `json:"difference"`
}

// Sheet holds every equation whose terms are all known. Difference is the sum of the absolute differences:
// what is in flight while traffic runs, 0 soon after it stops.
type Sheet struct {
	Stages     []Stage `json:"stages"`
	Difference int64   `json:"difference"`
}

// Balance puts the services' terms into the equations.
func Balance(services []*statusv1.ServiceStatus) Sheet {
	terms := map[string]uint64{}
	for _, s := range services {
		for k, v := range s.GetLedger().GetTerms() {
			terms[s.GetService()+"."+k] += v // of all instances
		}
	}
	var o Sheet
	for _, e := range Equations {
		if st, ok := e.stage(terms); ok {
			o.Stages = append(o.Stages, st)
			o.Difference += max(st.Difference, -st.Difference)
		}
	}
	return o
}

func (e *Equation) stage(terms map[string]uint64) (Stage, bool) {
	in, ok := terms[e.In]
	st := Stage{Stage: e.Stage, In: in, Out: map[string]uint64{}}
	sum := uint64(0)
	for _, name := range e.Out {
		v, known := terms[name]
		ok = ok && known
		st.Out[Short(name)] = v
		sum += v
	}
	st.Difference = int64(in - sum) // a wrapped difference is the negative one
	return st, ok
}

// Collector gives the metrics tidegate_ledger{stage}, what went into each stage, and tidegate_ledger_difference.
type Collector struct {
	services   func() []*statusv1.ServiceStatus
	in, differ *prometheus.Desc
}

// NewCollector makes a collector of the services of one process; services is called at each scrape, also
// concurrently.
func NewCollector(services func() []*statusv1.ServiceStatus) *Collector {
	return &Collector{
		services: services,
		in:       prometheus.NewDesc("tidegate_ledger", "What went into a stage of the ledger, packets, flows, batches or records.", []string{"stage"}, nil),
		differ:   prometheus.NewDesc("tidegate_ledger_difference", "What is unaccounted for in all stages: in flight, or lost.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.in
	ch <- c.differ
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	sheet := Balance(c.services())
	for _, s := range sheet.Stages {
		ch <- prometheus.MustNewConstMetric(c.in, prometheus.GaugeValue, float64(s.In), s.Stage)
	}
	ch <- prometheus.MustNewConstMetric(c.differ, prometheus.GaugeValue, float64(sheet.Difference))
}
