package classify

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// TestVerdictSeries: every kind of verdict has a series before the first one comes, for Prometheus sees no increase in a
// series that begins at 1.
func TestVerdictSeries(t *testing.T) {
	e, err := NewEngine(DefaultEngineConfig())
	if err != nil {
		t.Fatal(err)
	}
	r := prometheus.NewRegistry()
	if _, err := newMetrics(r, e); err != nil {
		t.Fatal(err)
	}
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	series := map[string]float64{}
	for _, f := range families {
		if f.GetName() != "tidegate_classify_verdicts_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			kind := ""
			for _, l := range m.GetLabel() { // by name: action, type
				kind += l.GetValue() + " "
			}
			series[kind] = m.GetCounter().GetValue()
		}
	}
	for _, kind := range []string{"drop syn_flood ", "rate-limit syn_flood ", "count port_scan ", "none http_flood ", "drop domain_list ", "rate-limit host_rule "} {
		if n, ok := series[kind]; !ok || n != 0 {
			t.Errorf("%q: there %v, value %v; want 0 before any verdict", kind, ok, n)
		}
	}
	if len(series) > 200 {
		t.Errorf("%d series", len(series))
	}
}
