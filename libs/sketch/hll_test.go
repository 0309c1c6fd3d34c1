package sketch

import (
	"math"
	"testing"
)

func filled(from, to uint64) *HLL {
	h := &HLL{}
	for i := from; i < to; i++ {
		h.Add(Mix(i))
	}
	return h
}

func TestEstimate(t *testing.T) {
	for _, c := range []struct {
		n         uint64
		tolerance float64
	}{{0, 0}, {1, 0.02}, {9, 0.08}, {60, 0.12}, {256, 0.2}, {1000, 0.2}, {100_000, 0.2}, {5_000_000, 0.2}} {
		got := filled(1, c.n+1).Estimate()
		if math.Abs(got-float64(c.n)) > c.tolerance*float64(c.n) {
			t.Errorf("%d values are estimated as %.1f, off by more than %.0f%%", c.n, got, 100*c.tolerance)
		}
	}
}

func TestMergeIsUnion(t *testing.T) {
	a, b, both := filled(0, 600), filled(400, 1000), filled(0, 1000)
	a.Merge(b[:])
	if *a != *both {
		t.Error("the merged registers are not those of all values")
	}
	a.Merge([]byte{255})
	if *a != *both {
		t.Error("registers of another length changed the sketch")
	}
	a.Reset()
	if a.Estimate() != 0 {
		t.Error("a reset sketch is not empty")
	}
}

func TestAddDoesNotAllocate(t *testing.T) {
	h := &HLL{}
	if n := testing.AllocsPerRun(100, func() { h.Add(Mix(7)); _ = h.Estimate() }); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}
