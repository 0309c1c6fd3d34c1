package detect

import "testing"

// TestNamed: every limit that evidence tells is a threshold of that name.
func TestNamed(t *testing.T) {
	th := DefaultThresholds()
	named := th.Named()
	for _, f := range Floods() {
		m := f.Measure(&Sums{}, &th)
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
