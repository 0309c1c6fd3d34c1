package detect

import "github.com/tidegate-mesh/tidegate/services/classify/internal/header"

// ampDNS: DNS answers that the destination did not ask for ≥ DNSAnswers, from ≥ DNSSources sources or with
// ≥ DNSBits.
var ampDNS = Flood{
	Type: AmpDNS,
	Measure: func(s *Sums, t *Thresholds) Measure {
		if s.DNS == 0 {
			return Measure{}
		}
		n, bits := float64(s.DNS), 8*float64(s.DNSBytes)
		m := Measure{
			Level: n / t.DNSAnswers, Packets: s.DNS, Bytes: s.DNSBytes,
			Features: map[string]float64{"unsolicited_dns": n, "bits": bits, "sources": s.Sources},
			Limits:   map[string]float64{"unsolicited_dns": t.DNSAnswers, "sources": t.DNSSources, "bits": t.DNSBits},
		}
		if s.Sources < t.DNSSources && bits < t.DNSBits {
			m.Level = min(m.Level, 0.99) // enough to go on, not to start
		}
		return m
	},
	Kind: fromPort(53),
}

// ampNTP: monlist answers (NTP mode 7, CVE-2013-5211) that the destination did not ask for ≥
// NTPMonlist, or any unsolicited packets from port 123 ≥ NTPAnswers.
var ampNTP = Flood{
	Type: AmpNTP,
	Measure: func(s *Sums, t *Thresholds) Measure {
		if s.NTP == 0 {
			return Measure{}
		}
		return Measure{
			Level:   max(float64(s.NTPMonlist)/t.NTPMonlist, float64(s.NTP)/t.NTPAnswers),
			Packets: s.NTP, Bytes: s.NTPBytes,
			Features: map[string]float64{"unsolicited_ntp": float64(s.NTP), "monlist": float64(s.NTPMonlist), "sources": s.Sources},
			Limits:   map[string]float64{"unsolicited_ntp": t.NTPAnswers, "monlist": t.NTPMonlist},
		}
	},
	Kind: fromPort(123),
}

func fromPort(port uint16) func(f *header.Facts) bool {
	return func(f *header.Facts) bool { return f.Protocol == 17 && !f.Later && f.SrcPort == port }
}

// Volume is what came from one kind of reflector.
type Volume struct{ Packets, Bytes uint64 }

// services are the reflectors with a type of their own; the last one takes all other reflector ports. DNS and NTP have
// formulas that look at the content.
var services = [...]struct {
	typ   string
	ports []uint16
}{
	{AmpSNMP, []uint16{161}},
	{AmpISAKMP, []uint16{500, 4500}},
	{AmpBACnet, []uint16{47808}},
	{AmpDHDiscover, []uint16{37810}},
	{AmpSSDP, []uint16{1900}},
	{AmpCLDAP, []uint16{389}},
	{AmpMemcached, []uint16{11211}},
	{AmpOther, nil},
}

const numServices = len(services)

// serviceOf is the place of a reflector port in services, -1 for those of DNS and NTP.
func serviceOf(port uint16) int {
	if port == 53 || port == 123 {
		return -1
	}
	for i := range services {
		for _, p := range services[i].ports {
			if p == port {
				return i
			}
		}
	}
	return numServices - 1
}

// amplifications: packets from the service's port that the destination did not ask for ≥ AmpPackets, from ≥ AmpSources
// sources or with ≥ AmpBits.
func amplifications() []Flood {
	list := make([]Flood, 0, numServices)
	for i := range services {
		list = append(list, Flood{
			Type: services[i].typ,
			Measure: func(s *Sums, t *Thresholds) Measure {
				v := s.Services[i]
				if v.Packets == 0 {
					return Measure{}
				}
				n, bits := float64(v.Packets), 8*float64(v.Bytes)
				m := Measure{
					Level: n / t.AmpPackets, Packets: v.Packets, Bytes: v.Bytes,
					Features: map[string]float64{"unsolicited_udp": n, "reflected_bits": bits, "sources": s.Sources},
					Limits:   map[string]float64{"unsolicited_udp": t.AmpPackets, "reflectors": t.AmpSources, "reflected_bits": t.AmpBits},
				}
				if s.Sources < t.AmpSources && bits < t.AmpBits {
					m.Level = min(m.Level, 0.99) // enough to go on, not to start
				}
				return m
			},
			Kind: func(f *header.Facts) bool {
				return f.Protocol == 17 && !f.Later && header.Reflector(f.SrcPort) && serviceOf(f.SrcPort) == i
			},
		})
	}
	return list
}
