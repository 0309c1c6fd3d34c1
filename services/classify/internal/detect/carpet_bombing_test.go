package detect

import (
	"math"
	"testing"

	"github.com/tidegate-mesh/tidegate/services/classify/internal/header"
)

// TestCarpet: a /24 over four times a host's threshold, a /16 over sixteen times, spread, and over what is usual.
func TestCarpet(t *testing.T) {
	th := DefaultThresholds()
	th = th.ForNetworks()
	wide := Spread{Samples: 64, Places: 60, Top: 3}
	for name, tt := range map[string]struct {
		syn          uint64
		spread       Spread
		share, usual float64
		region, on   bool
		want         float64
	}{
		"below":                      {syn: 599, spread: wide, share: 1, want: 599.0 / 600},
		"at four times":              {syn: 600, spread: wide, share: 1, want: 1},
		"a /16 at four times":        {syn: 600, spread: wide, share: 1, region: true, want: 0.25},
		"a /16 at sixteen times":     {syn: 2400, spread: wide, share: 1, region: true, want: 1},
		"few samples":                {syn: 6000, spread: Spread{Samples: 15, Places: 15, Top: 1}, share: 1, want: 0.99},
		"few hosts":                  {syn: 6000, spread: Spread{Samples: 64, Places: 7, Top: 10}, share: 1, want: 0.99},
		"one host has most":          {syn: 6000, spread: Spread{Samples: 64, Places: 30, Top: 17}, share: 1, want: 0.99},
		"thinned out by rules":       {syn: 600, spread: Spread{Samples: 2, Places: 2, Top: 1}, share: 1, on: true, want: 1},
		"half is a flood of its own": {syn: 1200, spread: wide, share: 0.5, want: 1},
		"usual":                      {syn: 1200, spread: wide, share: 1, usual: 4, want: 0.5},
		"nothing":                    {spread: wide, share: 1, want: 0},
	} {
		t.Run(name, func(t *testing.T) {
			m := Carpet(synFlood.Measure(&Sums{SYN: tt.syn, Packets: tt.syn, Bytes: 60 * tt.syn}, &th), &tt.spread, tt.share, CarpetTimes(tt.region, &th), tt.usual, tt.on)
			if math.Abs(m.Level-tt.want) > 1e-9 {
				t.Errorf("level %v, want %v: %v", m.Level, tt.want, m.Features)
			}
		})
	}
	monlist := ampNTP.Measure(&Sums{NTP: 8, NTPMonlist: 8}, &th)
	if m := Carpet(monlist, &wide, 1, 4, 0, false); m.Level > 0.1 {
		t.Errorf("eight monlist answers to a network have level %v", m.Level)
	}
}

// TestSpread: hosts of a /24 and a /64, networks of a /16 and a /48.
func TestSpread(t *testing.T) {
	v4 := func(c, d byte) header.Facts {
		return header.Facts{Dst: [16]byte{10: 0xFF, 11: 0xFF, 12: 198, 13: 51, 14: c, 15: d}}
	}
	v6 := func(c, d byte) header.Facts { return header.Facts{V6: true, Dst: [16]byte{0: 0x20, 1: 1, 7: c, 15: d}} }
	for name, tt := range map[string]struct {
		facts []header.Facts
		host  bool
		want  Spread
	}{
		"hosts":          {[]header.Facts{v4(1, 1), v4(1, 2), v4(1, 2)}, true, Spread{3, 2, 2}},
		"networks":       {[]header.Facts{v4(1, 1), v4(1, 2), v4(2, 2)}, false, Spread{3, 2, 2}},
		"IPv6 hosts":     {[]header.Facts{v6(1, 1), v6(1, 2), v6(1, 3)}, true, Spread{3, 3, 1}},
		"IPv6 networks":  {[]header.Facts{v6(1, 1), v6(1, 2), v6(2, 3)}, false, Spread{3, 2, 2}},
		"nothing at all": {nil, true, Spread{}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := SpreadOf(tt.facts, tt.host); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

// TestCarpets: what a network is judged by is part of what hosts are.
func TestCarpets(t *testing.T) {
	if n, all := len(Carpets()), len(Floods()); n != all-3 {
		t.Errorf("%d of %d floods", n, all)
	}
}
