package e2e

import (
	"testing"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
)

// TestSample replays the bundled capture, as make run does without root: one attack, and the benign
// applications beside it.
func TestSample(t *testing.T) {
	apps, attacks := map[string]int{}, map[string]int{}
	for _, l := range replay(t, "--detect", "--protected", "198.51.100.10", rig.Sample(t, "syn-flood.pcap.gz")) {
		switch l.Kind {
		case "flow":
			apps[l.App]++
		case "attack":
			attacks[l.Type]++
		case "ledger":
			if l.Difference != 0 {
				t.Errorf("ledger %+v", l)
			}
		}
	}
	if attacks["syn_flood"] != 1 || len(attacks) != 1 {
		t.Errorf("attacks %v, want one syn_flood", attacks)
	}
	for _, app := range []string{"tls", "http", "dns"} {
		if apps[app] == 0 {
			t.Errorf("no %s among %v", app, apps)
		}
	}
}
