package detect

import "github.com/tidegate-mesh/tidegate/services/classify/internal/header"

// fragmentFlood: fragments · share of strangers among the sampled ones ≥ Fragments, unless reflectors send a tenth of all
// (then they are the rest of large answers); or one pair of fragments of a datagram that overlap without being the same
// (teardrop: RFC 5722 forbids them, RFC 1858 3 describes the attack).
var fragmentFlood = Flood{
	Type: FragmentFlood,
	Measure: func(s *Sums, t *Thresholds) Measure {
		overlaps, stand := s.Samples.Overlaps, &s.Stand
		if s.Fragments == 0 {
			return Measure{}
		}
		n := float64(s.Fragments) * ratio(stand.Fragments, stand.Fragments+stand.FragmentsGood, 0)
		level := n / t.Fragments
		if 10*s.Reflected >= s.Packets {
			level = 0
		}
		bytes := uint64(0)
		if s.Packets > 0 {
			bytes = scaled(s.Bytes, n/float64(s.Packets))
		}
		return Measure{
			Level: max(level, overlaps), Packets: uint64(n), Bytes: bytes,
			Features: map[string]float64{"fragments": n, "overlaps": overlaps, "sources": s.Sources},
			Limits:   map[string]float64{"fragments": t.Fragments, "overlaps": 1},
		}
	},
	Kind: func(f *header.Facts) bool { return f.Fragment },
}

// Overlaps counts fragments among a window's samples that overlap another one of the same datagram from another place.
// Two of one place are a repetition, or belong to datagrams with the same id.
func Overlaps(facts []header.Facts, raw [][]byte) float64 {
	var pieces []header.Piece
	for i := range facts {
		if facts[i].Fragment {
			if p, ok := header.ReadPiece(raw[i], facts[i].Length); ok {
				pieces = append(pieces, p)
			}
		}
	}
	n := 0.0
	for i := range pieces {
		for j := range pieces[:i] {
			a, b := &pieces[i], &pieces[j]
			if a.ID == b.ID && a.Protocol == b.Protocol && a.Src == b.Src && a.Dst == b.Dst && a.Start != b.Start && a.Start < b.End && b.Start < a.End {
				n++
				break
			}
		}
	}
	return n
}
