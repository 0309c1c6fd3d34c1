package doctor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/safchain/ethtool"
	"golang.org/x/sys/unix"

	"github.com/tidegate-mesh/tidegate/libs/netlab"
)

// TestVeth asks a real driver, changes what is advised, and asks again.
func TestVeth(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("TIDEGATE_CI") != "" {
			t.Fatal("root is missing, and in CI nothing may be skipped")
		}
		t.Skip("needs root, to make interfaces")
	}
	lab, err := netlab.New("tgdoc")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	}()
	ns, err := lab.Namespace("a")
	if err != nil {
		t.Fatal(err)
	}
	if err := lab.Veth(netlab.End{NS: ns, Name: "nic0"}, netlab.End{NS: ns, Name: "nic1"}, 2); err != nil {
		t.Fatal(err)
	}
	sys := t.TempDir()
	err = ns.Do(func() error {
		// A sysfs shows the namespace in which it was mounted.
		if err := unix.Mount("sysfs", sys, "sysfs", 0, ""); err != nil {
			return err
		}
		defer func() { _ = unix.Unmount(sys, unix.MNT_DETACH) }()
		drivers, err := openDriver()
		if err != nil {
			return err
		}
		defer drivers.close()
		h := host{cpus: 4, workers: cpus{0}, useXDP: true}
		expect := func(what string, level Level, part string) {
			t.Helper()
			f := find(t, iface(sys, drivers, "nic0", h), "interface nic0 "+what)
			if f.Level != level || !strings.Contains(f.Found+"; "+f.Advice, part) {
				t.Errorf("%+v, want %s with %q", f, level, part)
			}
		}
		write := func(file, value string) {
			t.Helper()
			if err := os.WriteFile(filepath.Join(sys, "class/net/nic0", file), []byte(value), 0o600); err != nil {
				t.Fatal(err)
			}
		}

		expect("driver", OK, "rings")
		expect("queues", Warn, "ethtool -L nic0 rx 1")
		if _, err := drivers.SetChannels("nic0", ethtool.Channels{RxCount: 1, TxCount: 1}); err != nil {
			return err
		}
		expect("queues", OK, "1 rx of 2 possible, driver virtual")

		expect("vlan", Warn, "ethtool -K nic0 rxvlan off rx-vlan-stag-hw-parse off")
		if err := drivers.Change("nic0", map[string]bool{"rx-vlan-hw-parse": false, "rx-vlan-stag-hw-parse": false}); err != nil {
			return err
		}
		expect("vlan", OK, "tags stay")

		expect("napi", OK, "napi_defer_hard_irqs 0, gro_flush_timeout 0")
		write("napi_defer_hard_irqs", "2")
		expect("napi", Warn, "echo 200000 > /sys/class/net/nic0/gro_flush_timeout")
		write("gro_flush_timeout", "200000")
		expect("napi", OK, "napi_defer_hard_irqs 2, gro_flush_timeout 200000 ns")
		write("threaded", "1")
		expect("napi threads", Warn, "echo 0 > /sys/class/net/nic0/threaded")
		write("threaded", "0")

		h.useXDP = false
		expect("offload", Warn, "ethtool -K nic0 gro off lro off")
		if err := drivers.Change("nic0", map[string]bool{"rx-gro": false}); err != nil {
			return err
		}
		for _, f := range iface(sys, drivers, "nic0", h) {
			if strings.HasSuffix(f.Name, " offload") {
				t.Errorf("GRO is off, and there is %+v", f)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
