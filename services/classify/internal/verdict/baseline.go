package verdict

import (
	"github.com/tidegate-mesh/tidegate/services/classify/internal/detect"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/header"
)

// Classes of samples that a baseline keeps apart, so that rare kinds are not crowded out.
const (
	classSYN = iota
	classTCP
	classUDP
	classOther
	classes
)

// perClass is how many samples a baseline keeps of a class: 256 in all.
const perClass = 64

// Baseline holds samples of a destination from windows without attack, and usual rates. Samples wait a
// second before they count, because an attack's first packets come below every threshold. One goroutine
// owns it; the zero value is empty.
type Baseline struct {
	rings  [classes]ring
	rates  [classes]float64 // packets/s, smoothed
	staged []staged
	turn   int
}

type ring struct {
	facts []header.Facts
	next  int
}

type staged struct {
	slot  int64
	sums  detect.Sums
	facts []header.Facts
}

func classOf(f *header.Facts) int {
	switch f.Protocol {
	case 6:
		if f.Flags&0x12 == 0x02 && !f.Later {
			return classSYN
		}
		return classTCP
	case 17:
		return classUDP
	}
	return classOther
}

// stagedPerClass bounds what one window adds of a class.
const stagedPerClass = 8

// Stage takes samples of a quiet window in; slot is the window's start over detect.Slot. What was staged a
// second or more ago becomes part of the baseline.
func (b *Baseline) Stage(slot int64, sums *detect.Sums, facts []header.Facts) {
	kept := b.staged[:0]
	for i := range b.staged {
		if d := slot - b.staged[i].slot; d >= detect.Slots || d < 0 {
			b.commit(&b.staged[i])
		} else {
			kept = append(kept, b.staged[i])
		}
	}
	b.staged = kept
	var n [classes]int
	pick := make([]header.Facts, 0, min(len(facts), classes*stagedPerClass))
	for i := range facts {
		f := &facts[(i+b.turn)%len(facts)]
		if c := classOf(f); n[c] < stagedPerClass {
			n[c]++
			pick = append(pick, *f)
		}
	}
	b.turn++
	b.staged = append(b.staged, staged{slot: slot, sums: *sums, facts: pick})
}

// Drop forgets what is staged: it may be an attack's beginning.
func (b *Baseline) Drop() { b.staged = b.staged[:0] }

func (b *Baseline) commit(s *staged) {
	for i := range s.facts {
		b.rings[classOf(&s.facts[i])].add(s.facts[i])
	}
	now := [classes]float64{classSYN: float64(s.sums.SYN), classTCP: float64(s.sums.TCP - min(s.sums.TCP, s.sums.SYN)),
		classUDP: float64(s.sums.UDP), classOther: float64(s.sums.ICMP)}
	for i := range b.rates {
		b.rates[i] = 0.9*b.rates[i] + 0.1*detect.Slots*now[i]
	}
}

func (r *ring) add(f header.Facts) {
	if len(r.facts) < perClass {
		r.facts = append(r.facts, f)
		return
	}
	r.facts[r.next] = f
	r.next = (r.next + 1) % perClass
}

// Good returns the samples of the kind, and how many packets a second of the sample's class are usual.
func (b *Baseline) Good(kind func(f *header.Facts) bool) (samples []header.Facts, rate float64) {
	for c := range b.rings {
		n := 0
		for i := range b.rings[c].facts {
			if f := &b.rings[c].facts[i]; kind(f) {
				samples = append(samples, *f)
				n++
			}
		}
		if n > 0 {
			rate += b.rates[c] * float64(n) / float64(len(b.rings[c].facts))
		}
	}
	return samples, rate
}

// Fragments reports whether fragments belong to the destination's usual traffic.
func (b *Baseline) Fragments() bool {
	for c := range b.rings {
		for i := range b.rings[c].facts {
			if b.rings[c].facts[i].Fragment {
				return true
			}
		}
	}
	return false
}
