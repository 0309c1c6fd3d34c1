package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

type nearestCLI struct {
	Iface      string `name:"iface"`
	MaxFlows   int    `name:"max-flows" default:"1"`
	IdleTCP    string `name:"idle-tcp"`
	BufferSize int    `name:"buffer-size" default:"1"`
}

func TestNearest(t *testing.T) {
	known := []string{"iface", "max-flows", "idle-tcp", "idle-udp", "log-level"}
	for word, want := range map[string]string{
		"ifcae": "iface", "ifac": "iface", "max-flow": "max-flows", "maxflows": "max-flows", "idle-tpc": "idle-tcp", "loglevel": "log-level",
		"port": "", "addr": "", "service-host": "", "x": "",
	} {
		if got := Nearest(word, known); got != want {
			t.Errorf("nearest to %q: %q, want %q", word, got, want)
		}
	}
}

func TestUnknownKeyNamesTheNearest(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.yaml")
	for content, want := range map[string]string{
		"max_flow: 3\n":       `did you mean "max-flows"?`,
		"idle: {tpc: 1s}\n":   `did you mean "idle-tcp"?`,
		"something-else: 1\n": "--help lists",
	} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Parse(&nearestCLI{}, "tidegate-near", "", []string{"--config", file})
		if err == nil || !strings.Contains(err.Error(), want) || ExitCode(err) != ExitUsage {
			t.Errorf("%q: %v, want %s", content, err, want)
		}
	}
}

func TestUnknownVariableNamesTheNearest(t *testing.T) {
	t.Setenv("TIDEGATE_NEAR_PORT", "tcp://10.0.0.1:50051") // an orchestrator's
	t.Setenv("TIDEGATE_OTHER_IFACES", "x")                 // another service's
	if _, err := Parse(&nearestCLI{}, "tidegate-near", "", nil); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TIDEGATE_NEAR_IFACES", "eth1")
	_, err := Parse(&nearestCLI{}, "tidegate-near", "", nil)
	if err == nil || !strings.Contains(err.Error(), "TIDEGATE_NEAR_IFACES is unknown: did you mean TIDEGATE_NEAR_IFACE?") || ExitCode(err) != ExitUsage {
		t.Errorf("a misspelt variable: %v", err)
	}
}
