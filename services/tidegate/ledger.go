package main

import (
	"fmt"
	"strings"

	statusv1 "github.com/tidegate-mesh/tidegate/proto/status/v1"
)

// ledgerStage is one equation of the ledger: what went in, what it became, and what is still on its way.
type ledgerStage struct {
	Stage      string            `json:"stage"`
	In         uint64            `json:"in"`
	Out        map[string]uint64 `json:"out"`
	Difference int64             `json:"difference"`
}

// ledgerObject holds every equation whose terms are known. Difference is the sum of the absolute
// differences: what is in flight while traffic runs, 0 soon after it stops.
type ledgerObject struct {
	Stages     []ledgerStage `json:"stages"`
	Difference int64         `json:"difference"`
}

// equations name their terms service.term; see DESIGN 6 for what each stands for.
var equations = []struct {
	stage, in string
	out       []string
}{
	{"xdp", "ingest.xdp_seen", []string{"ingest.xdp_dropped", "ingest.xdp_rate_limited", "ingest.xdp_passed", "ingest.xdp_forwarded", "ingest.xdp_no_reader", "ingest.redirected"}},
	{"capture", "ingest.redirected", []string{"ingest.received", "ingest.ring_drops", "ingest.lost_at_restart"}},
	{"decode", "ingest.received", []string{"ingest.accounted", "ingest.undecodable"}},
	{"flows", "ingest.flows_created", []string{"ingest.flows_ended", "ingest.flows_active", "ingest.flows_summarised", "ingest.flows_evicted"}},
	{"batches", "ingest.batches_made", []string{"ingest.batches_acked", "ingest.batches_dropped", "ingest.batches_pending"}},
	{"publish", "classify.records_received", []string{"classify.published", "classify.unpublished"}},
	{"persist", "classify.published", []string{"persist.records_committed", "persist.records_duplicate", "persist.records_rejected"}},
}

// newLedger puts the services' terms into the equations; an equation is left out while a term is unknown.
func newLedger(services []*statusv1.ServiceStatus) ledgerObject {
	terms := map[string]uint64{}
	for _, s := range services {
		for k, v := range s.GetLedger().GetTerms() {
			terms[s.Service+"."+k] = v
		}
	}
	var o ledgerObject
	for _, e := range equations {
		in, ok := terms[e.in]
		if !ok {
			continue
		}
		st := ledgerStage{Stage: e.stage, In: in, Out: map[string]uint64{}}
		sum := uint64(0)
		for _, name := range e.out {
			v, known := terms[name]
			ok = ok && known
			st.Out[short(name)] = v
			sum += v
		}
		if !ok {
			continue
		}
		st.Difference = int64(in - sum) //nolint:gosec // a wrapped difference is the negative one
		o.Stages = append(o.Stages, st)
		o.Difference += max(st.Difference, -st.Difference)
	}
	return o
}

func (l ledgerObject) text() string {
	var b strings.Builder
	for _, s := range l.Stages {
		var parts []string
		for _, e := range equations {
			if e.stage != s.Stage {
				continue
			}
			for _, name := range e.out {
				parts = append(parts, fmt.Sprintf("%s %d", strings.ReplaceAll(short(name), "_", " "), s.Out[short(name)]))
			}
		}
		fmt.Fprintf(&b, "ledger %-8s %d = %s (difference %d)\n", s.Stage, s.In, strings.Join(parts, " + "), s.Difference)
	}
	return b.String()
}

// short is a term without its service.
func short(name string) string {
	_, term, _ := strings.Cut(name, ".")
	return strings.TrimPrefix(term, "xdp_")
}
