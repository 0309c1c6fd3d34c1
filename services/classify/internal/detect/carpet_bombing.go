package detect

import (
	"maps"

	"github.com/tidegate-mesh/tidegate/services/classify/internal/header"
)

// Places of a network are what a carpet is spread over: the hosts of a /24 (v6 /64), the /24 (/64) of a /16 (/48).
const (
	carpetSamples = 16   // of the flood's kind, at least
	carpetPlaces  = 8    // at least
	carpetShare   = 0.25 // of the samples that one place may have
	carpetUsual   = 4    // times what is usual for the network
)

// Spread is how a flood's samples are spread over the places of a network.
type Spread struct{ Samples, Places, Top int }

// SpreadOf counts facts by place; host tells whether the places are hosts, else they are networks.
func SpreadOf(facts []header.Facts, host bool) Spread {
	places := make(map[[16]byte]int, len(facts))
	s := Spread{Samples: len(facts)}
	for i := range facts {
		p := facts[i].Dst
		switch {
		case host:
		case facts[i].V6:
			clear(p[8:])
		default:
			clear(p[15:])
		}
		places[p]++
		s.Top = max(s.Top, places[p])
	}
	s.Places = len(places)
	return s
}

func (s *Spread) wide() bool {
	return s.Samples >= carpetSamples && s.Places >= carpetPlaces && float64(s.Top) <= carpetShare*float64(s.Samples)
}

// CarpetTimes is how many times the threshold of a host a network may get: Carpet for a /24 (v6 /64), its square for a /16
// (/48). It is not 256 times, because a flood below every host's threshold is what is looked for, nor once, because
// scanners of the whole Internet visit every host all the time.
func CarpetTimes(region bool, t *Thresholds) float64 {
	if region {
		return t.Carpet * t.Carpet
	}
	return t.Carpet
}

// CarpetLimit is the level of a flood from which on it is an attack on a network: times the threshold of a host, and four
// times what is usual for the network.
func CarpetLimit(times, usual float64) float64 { return max(times, carpetUsual*usual) }

// Carpet: a flood's level, by its own formula from the sums of the network, over CarpetLimit ≥ 1, while its samples are spread: at least 16 of them, over at least 8 places, of which none has more than a
// quarter. Samples of hosts and sources under attack already are not among them, and share is what they leave of the
// flood. on: the attack has begun, then it need not be spread to go on, because rules thin it out.
func Carpet(m Measure, s *Spread, share, times, usual float64, on bool) Measure {
	own := m.Level * share
	if m.Features == nil || own <= 0 {
		return Measure{}
	}
	m.Features, m.Limits = maps.Clone(m.Features), maps.Clone(m.Limits)
	m.Features["times_the_threshold_of_a_host"], m.Limits["times_the_threshold_of_a_host"] = own, times
	m.Features["usual_times"] = usual
	m.Features["places"], m.Limits["places"] = float64(s.Places), carpetPlaces
	m.Packets, m.Bytes = scaled(m.Packets, share), scaled(m.Bytes, share)
	m.Level = own / CarpetLimit(times, usual)
	if !on && !s.wide() {
		m.Level = min(m.Level, 0.99)
	}
	return m
}

// Carpets are the floods that need no answer from the host, so that they can be spread over a network. Requests ask for
// one; impossible flags are a scan's.
func Carpets() []Flood {
	var list []Flood
	for _, f := range Floods() {
		switch f.Type {
		case HTTPFlood, DNSFlood, InvalidFlags:
		default:
			list = append(list, f)
		}
	}
	return list
}

// ForNetworks are the thresholds with which floods measure a network: one monlist answer tells of a host's attack, but not
// of one against a network.
func (t *Thresholds) ForNetworks() Thresholds {
	n := *t
	n.NTPMonlist = t.NTPAnswers
	return n
}
