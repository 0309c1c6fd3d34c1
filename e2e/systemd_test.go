package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
)

// TestSystemdUnits: systemd reads the units without a complaint, and finds them well confined.
func TestSystemdUnits(t *testing.T) {
	_, err := exec.LookPath("systemd-analyze")
	rig.Need(t, err == nil, "systemd-analyze (Debian's package systemd)")
	units, err := filepath.Glob(filepath.Join("..", "deploy", "systemd", "*.service"))
	if err != nil || len(units) != 6 {
		t.Fatalf("%d units, want one a service and the all-in-one: %v", len(units), err)
	}
	exposure := regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`)
	for _, unit := range units {
		name := filepath.Base(unit)
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(unit)
			if err != nil {
				t.Fatal(err)
			}
			binary := strings.TrimSuffix(name, ".service")
			// Verify wants the binaries to be there.
			here := strings.ReplaceAll(string(text), "/usr/local/bin/"+binary, rig.Binary(t, binary))
			if strings.Contains(here, "/usr/local/bin") {
				t.Errorf("%s starts something else than %s", name, binary)
			}
			file := filepath.Join(t.TempDir(), name)
			if err := os.WriteFile(file, []byte(here), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command("systemd-analyze", "verify", file).CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("verify: %v: %s", err, out)
			}
			out, err := exec.Command("systemd-analyze", "security", "--offline=true", file).CombinedOutput()
			found := exposure.FindSubmatch(out)
			if err != nil || found == nil {
				t.Fatalf("security: %v: %s", err, out)
			}
			// 0 is a unit that may do nothing, 10 one that may do everything; above 5 systemd calls it medium.
			level, err := strconv.ParseFloat(string(found[1]), 64)
			if err != nil || level > 3.5 {
				t.Errorf("exposure %s, want at most 3.5", found[1])
			}
		})
	}
}
