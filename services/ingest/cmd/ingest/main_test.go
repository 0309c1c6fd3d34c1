package main

import (
	"strings"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/config"
)

// TestMistakesAtParsing: --check-config sees what the parser sees, which is all that can be known without touching an interface.
func TestMistakesAtParsing(t *testing.T) {
	for want, args := range map[string][]string{
		"no interface":    {"--mode", "tap"},
		"both interfaces": {"--iface", "a", "--iface", "a"},
		"--protected":     {"--iface", "a", "--iface", "b", "--protected", "10.0.0.0/"},
		"power":           {"--iface", "a", "--iface", "b", "--frames", "1000"},
		"--classify":      {"--iface", "a", "--iface", "b", "--classify", ""},
	} {
		var c cli
		if _, err := config.Parse(&c, "tidegate-ingest", "", args); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", args, err)
		}
	}
}
