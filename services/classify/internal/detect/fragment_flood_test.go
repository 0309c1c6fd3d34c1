package detect

import (
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/packet"
)

func TestFragmentFlood(t *testing.T) {
	levels{
		"below":                      {Sums{Packets: 1999, Fragments: 1999, Samples: Shares{Fragments: 64}}, 0.9995},
		"at":                         {Sums{Packets: 2000, Fragments: 2000, Samples: Shares{Fragments: 64}}, 1},
		"of peers":                   {Sums{Packets: 9000, Fragments: 9000, Samples: Shares{FragmentsGood: 64}}, 0},
		"the rest of large answers":  {Sums{Packets: 9000, Fragments: 8000, Reflected: 900, Samples: Shares{Fragments: 64}}, 0},
		"one pair that overlaps":     {Sums{Packets: 2, Fragments: 2, Samples: Shares{Fragments: 2, Overlaps: 1}}, 1},
		"overlaps among reflections": {Sums{Packets: 10, Fragments: 2, Reflected: 5, Samples: Shares{Overlaps: 1}}, 1},
	}.check(t, &fragmentFlood)
}

// TestOverlaps: fragments of one datagram that overlap are an attack, repeated ones and those of others are not.
func TestOverlaps(t *testing.T) {
	piece := func(id, offset uint16, size int, more bool) []byte {
		h := packet.Header{Src: stranger, Dst: host, ID: id, FragmentOffset: offset, MoreFragments: more}
		return append(h.AppendIP(nil, 17, size), make([]byte, size)...)
	}
	for name, tt := range map[string]struct {
		frames [][]byte
		want   float64
	}{
		"in order":               {[][]byte{piece(7, 0, 1480, true), piece(7, 185, 1480, true), piece(7, 370, 100, false)}, 0},
		"teardrop":               {[][]byte{piece(7, 0, 40, true), piece(7, 3, 8, false)}, 1},
		"teardrop, last first":   {[][]byte{piece(7, 3, 8, false), piece(7, 0, 40, true)}, 1},
		"repeated":               {[][]byte{piece(7, 0, 40, true), piece(7, 0, 40, true)}, 0},
		"another datagram":       {[][]byte{piece(7, 0, 40, true), piece(8, 3, 8, false)}, 0},
		"many overlaps of three": {[][]byte{piece(7, 0, 64, true), piece(7, 2, 64, true), piece(7, 4, 64, false)}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Overlaps(sampled(t, tt.frames...)); got != tt.want {
				t.Errorf("%v overlaps, want %v", got, tt.want)
			}
		})
	}
}
