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

var equations = []struct {
	stage, in string
	out       []string
}{
	{"xdp", "xdp_seen", []string{"dropped", "passed", "forwarded", "no_reader", "redirected"}},
	{"capture", "redirected", []string{"received", "ring_drops", "lost_at_restart"}},
	{"decode", "received", []string{"accounted", "undecodable"}},
	{"flows", "flows_created", []string{"ended_exported", "active", "summarised", "evicted"}},
	{"batches", "batches_made", []string{"acked", "batches_dropped", "batches_pending"}},
	{"publish", "records_acked", []string{"published", "unpublished"}},
	{"persist", "published_messages", []string{"committed", "duplicate", "rejected", "discarded", "pending"}},
}

// newLedger puts the services' terms into the equations; an equation is left out while a term is unknown.
func newLedger(services []*statusv1.ServiceStatus) ledgerObject {
	terms := map[string]uint64{}
	for _, s := range services {
		for k, v := range s.GetLedger().GetTerms() {
			terms[k] = v
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
			st.Out[name] = v
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
				parts = append(parts, fmt.Sprintf("%s %d", strings.ReplaceAll(name, "_", " "), s.Out[name]))
			}
		}
		fmt.Fprintf(&b, "ledger %-8s %d = %s (difference %d)\n", s.Stage, s.In, strings.Join(parts, " + "), s.Difference)
	}
	return b.String()
}
