package detect

import "github.com/tidegate-mesh/tidegate/services/classify/internal/header"

// ampDNS: DNS answers that the destination did not ask for ≥ DNSAnswers, from ≥ DNSSources sources or with
// ≥ DNSBits.
var ampDNS = Flood{
	Type: AmpDNS,
	Measure: func(s *Sums, t *Thresholds) Measure {
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
