package app

import (
	"cmp"
	"maps"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/pcapfile/corpustest"
)

// BenchmarkLabels is ns and allocations a flow for each label, those with the most flows first: the flows of nDPI's
// captures, from the first payload to the label and back to the pool. What a flow costs the flow table is not in it.
// cpu-ns/flow is of the process's CPU time, which other work on the machine weighs on less than on ns/op.
func BenchmarkLabels(b *testing.B) {
	e := NewEngine()
	flows := map[string][]*tracked{}
	for _, path := range corpustest.Captures(b, filepath.Join(corpustest.Dir(b), "ndpi", "pcap")) {
		if err := replay(path, e, true, func(t *tracked, r Result) {
			if len(t.parts) > 0 {
				flows[r.App] = append(flows[r.App], t)
			}
		}); err != nil {
			b.Error(err)
		}
	}
	labels := slices.SortedFunc(maps.Keys(flows), func(x, y string) int {
		return cmp.Or(cmp.Compare(len(flows[y]), len(flows[x])), cmp.Compare(x, y))
	})
	for _, label := range labels {
		b.Run(label, func(b *testing.B) {
			b.ReportAllocs()
			some := flows[label]
			for _, t := range some { // its names are known then
				play(e, t.key, t.parts...)
			}
			i, before := 0, cpuTime(b)
			for b.Loop() {
				t := some[i]
				play(e, t.key, t.parts...)
				if i++; i == len(some) {
					i = 0
				}
			}
			b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/flow")
			b.ReportMetric(float64(len(some)), "flows")
		})
	}
}

// cpuTime is what the process used so far, in ns.
func cpuTime(b *testing.B) int64 {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
