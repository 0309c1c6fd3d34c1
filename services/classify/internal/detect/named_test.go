package detect

import "testing"

// TestNamed: every limit that evidence tells is a threshold of that name.
func TestNamed(t *testing.T) {
	th := DefaultThresholds()
	named := th.Named()
	all := Sums{SYN: 1, UDP: 1, ICMP: 1, DNS: 1, NTP: 1, Fragments: 1, OutOfState: 1, Packets: 1,
		Samples: Shares{All: 1, Stray: 1, ACK: 1, RSTFIN: 1, SYNACK: 1, Invalid: 1, HTTP: 1, DNS: 1}}
	all.weigh()
	for i := range all.Services {
		all.Services[i] = Volume{1, 1}
	}
	for _, f := range Floods() {
		m := f.Measure(&all, &th)
		if len(m.Limits) == 0 {
			t.Errorf("%s tells no limit", f.Type)
		}
		for name, limit := range m.Limits {
			if name == "reflector_share" { // fixed
				continue
			}
			if v, ok := named[name]; !ok || v != limit {
				t.Errorf("%s: limit %s is %v, the threshold %v", f.Type, name, limit, v)
			}
		}
	}
}
