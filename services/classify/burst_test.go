package classify

import (
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/loadgen"
)

// TestBurst: SYNs of many sources in one window alone, as clients send them that try again together and are answered late, are no flood below five
// times the threshold, however often they come again; twice the threshold over two windows is one, and so is a great burst.
func TestBurst(t *testing.T) {
	gen, err := loadgen.NewFrames(loadgen.Attack{Kind: loadgen.SYNFlood, Seed: 3, Target: victim})
	if err != nil {
		t.Fatal(err)
	}
	l := newLab(t)
	for second := range 5 {
		l.attack(gen, 300)
		for range 10 {
			if out := l.close(); len(out.Attacks) > 0 {
				t.Fatalf("second %d: %v", second, out.Attacks)
			}
		}
	}
	for i := range 2 {
		l.attack(gen, 150)
		if n := len(l.close().Attacks); n != i {
			t.Fatalf("%d attacks after window %d", n, i+1)
		}
	}

	l = newLab(t)
	l.attack(gen, 800)
	if n := len(l.close().Attacks); n != 1 {
		t.Errorf("%d attacks after a great burst", n)
	}
}
