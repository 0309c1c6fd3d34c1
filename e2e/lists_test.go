package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/api/client"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
)

// TestFullLists: a list of a million hosts by the command line, over separate processes, NATS with mutual TLS and the
// real driver; enforce is killed and comes back with it; then panic, and the list goes.
func TestFullLists(t *testing.T) {
	m := newMesh(t)
	stop := background(m.link.Client(60, 3))
	defer stop()
	c := m.gateway.Client(t, "operator")
	gate, err := xdp.Open(xdp.Options{Iface: m.link.PortA, BPFFS: m.link.BPFFS, Mode: xdp.ModeKeep})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = gate.Close() }()
	drops := func(d time.Duration) uint64 {
		t.Helper()
		before, err := gate.Counters()
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(d)
		after, err := gate.Counters()
		if err != nil {
			t.Fatal(err)
		}
		return after.Drop - before.Drop
	}
	var b strings.Builder
	for i := range uint32(999_990) {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], 0x14000000+i*7)
		b.WriteString(netip.AddrFrom4(a).String() + "\n")
	}
	b.WriteString("10.20.0.0/28\nnot an address\n") // clients of the link
	file := filepath.Join(t.TempDir(), "bad.txt")
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	out, err := rig.Output(t.Context(), rig.Binary(t, "tidegate"), append([]string{"lists", "put", "bad", "--action", "drop", "--file", file, "--comment", "e2e"}, m.gateway.Flags(t, "operator")...)...)
	took := time.Since(began)
	if err != nil || !strings.Contains(string(out), "line 999992: not: neither") {
		t.Fatalf("%v: %s", err, out)
	}
	t.Logf("a million hosts, command line → in the map, in %s (bar 5 s)", took.Round(10*time.Millisecond))
	l := inForce(t, c, "bad", 999_991)
	if l.Hosts != 999_990 || l.Prefixes != 1 || l.Rejected != 1 {
		t.Errorf("%+v", l)
	}
	if n := drops(time.Second); n == 0 {
		t.Error("nothing of listed clients is dropped")
	}

	m.enforce.Kill()
	if n := drops(time.Second); n == 0 {
		t.Error("nothing is dropped while enforce is away")
	}
	began = time.Now()
	m.enforce.Restart()
	inForce(t, c, "bad", 999_991)
	t.Logf("restart with it in %s (bar 8 s)", time.Since(began).Round(10*time.Millisecond))
	if n := drops(time.Second); n == 0 {
		t.Error("nothing is dropped after a restart")
	}

	if _, err := c.PutList(t.Context(), "good", api.ListInput{Action: "allow"}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.PutListEntries(t.Context(), "good", []byte("10.20.0.0/24\n")); err != nil {
		t.Fatal(err)
	}
	if l := inForce(t, c, "bad", 999_990); l.Nodes[0].Refused["allow_list"] != 1 {
		t.Errorf("an allow list: %+v", l.Nodes)
	}
	if n := drops(time.Second); n != 0 {
		t.Errorf("%d packets of allowed clients are dropped", n)
	}
	if err := c.DeleteList(t.Context(), "good"); err != nil {
		t.Fatal(err)
	}
	inForce(t, c, "bad", 999_991)
	if _, err := c.Panic(t.Context(), "e2e"); err != nil {
		t.Fatal(err)
	}
	if n := drops(time.Second); n != 0 {
		t.Errorf("%d packets are dropped in panic", n)
	}
	if _, err := c.EndPanic(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := drops(time.Second); n == 0 {
		t.Error("nothing is dropped after panic")
	}
	if err := c.DeleteList(t.Context(), "bad"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.List(t.Context(), "bad"); problemOf(t, err).Status != http.StatusNotFound {
		t.Errorf("a list that was deleted: %v", err)
	}
	if err := rig.Eventually(20*time.Second, func() error {
		if n := drops(500 * time.Millisecond); n != 0 {
			return fmt.Errorf("%d packets are dropped without a list", n)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// inForce waits until the only node has so many entries of a list in force.
func inForce(t *testing.T, c *client.Client, name string, entries uint64) (l api.List) {
	t.Helper()
	if err := rig.Eventually(30*time.Second, func() (err error) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if l, err = c.List(ctx, name); err != nil {
			return err
		}
		if len(l.Nodes) != 1 || l.Nodes[0].State != "active" || l.Nodes[0].Entries != entries {
			return fmt.Errorf("%+v", l.Nodes)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return l
}
