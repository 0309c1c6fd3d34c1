package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/api/client"
)

// TestCaptureIntoMesh reads the bundled capture into the all-in-one: its flows and its attack are in the database, at the
// capture's times, and the ledger balances. It needs no privilege.
func TestCaptureIntoMesh(t *testing.T) {
	data := t.TempDir()
	const nobody = 65534
	if err := errors.Join(os.Chmod(filepath.Dir(data), 0o755), os.Chown(data, nobody, nobody)); err != nil { //nolint:gosec // others must come through to data
		t.Fatal(err)
	}
	g := rig.NewGateway(t, data, filepath.Join(data, "certs", "ca.pem"))
	keys, err := filepath.Glob(filepath.Join(data, "*"))
	for _, k := range keys { // made by this process
		err = errors.Join(err, os.Chown(k, nobody, nobody))
	}
	if err != nil {
		t.Fatal(err)
	}
	attr := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	rig.StartAs(t, attr, rig.Binary(t, "tidegate"), nil, "run", "--mode", "pcap", "--pcap", "../deploy/samples/syn-flood.pcap.gz", "--pcap-pace", "full",
		"--data", data, "--listen", "", "--metrics-listen", rig.FreeAddr(t), "--local-credentials", "", "--gateway-listen", g.Addr, "--log-level", "warn")
	g.WaitReady(t, 4, 60*time.Second)
	reader := g.Client(t, "viewer")
	// What `tidegate replay` finds in the file.
	const packets, flows = 8086, 3049
	err = rig.Eventually(30*time.Second, func() error {
		sheet, err := reader.Ledger(t.Context())
		if err != nil {
			return err
		}
		for _, s := range sheet.Stages {
			if want := map[string]uint64{"capture": packets, "persist": flows}[s.Stage]; s.In != want && want != 0 {
				return fmt.Errorf("%s: %d, not %d", s.Stage, s.In, want)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	g.WaitBalanced(t, 15*time.Second)
	from := time.Now().AddDate(-10, 0, 0)
	seen, sum := 0, uint64(0)
	for f, err := range reader.Flows(t.Context(), client.Query{From: from}) {
		if err != nil {
			t.Fatal(err)
		}
		seen++
		sum += f.Packets
	}
	if seen != flows || sum != packets {
		t.Errorf("%d flows of %d packets in the database, not %d of %d", seen, sum, flows, packets)
	}
	var attacks []string
	for a, err := range reader.Attacks(t.Context(), client.Query{From: from}) {
		if err != nil {
			t.Fatal(err)
		}
		attacks = append(attacks, a.Type+" "+a.Target)
	}
	if len(attacks) != 1 || attacks[0] != "syn_flood 198.51.100.10" {
		t.Errorf("attacks %v", attacks)
	}
}
