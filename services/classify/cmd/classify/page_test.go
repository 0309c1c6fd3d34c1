package main

import (
	"strings"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/config"
	"github.com/tidegate-mesh/tidegate/libs/config/configtest"
)

func TestConfigurationTable(t *testing.T) {
	configtest.Page(t, "../../README.md", &cli{}, "tidegate-classify")
}

// TestMistakesBeforeTheStart: the parser, and with it --check-config, finds what the tags cannot express.
func TestMistakesBeforeTheStart(t *testing.T) {
	for flag, says := range map[string]string{"--shadow=syn-flood": "syn_flood", "--lease=0s": "lease", "--max-in-flight=0": "max-in-flight", "--protected=x": "protected"} {
		_, err := config.Parse(&cli{}, "tidegate-classify", "", []string{flag})
		if config.ExitCode(err) != config.ExitUsage || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", flag, err)
		}
	}
	if _, err := config.Parse(&cli{}, "tidegate-classify", "", []string{"--shadow=all"}); err != nil {
		t.Error(err)
	}
}
