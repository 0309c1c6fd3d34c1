package doctor

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/safchain/ethtool"
	"golang.org/x/sys/unix"
)

// fake is a driver with a good setting of everything; what is nil it does not tell.
type fake struct {
	ring     *ethtool.Ring
	channels *ethtool.Channels
	coalesce *ethtool.Coalesce
	features map[string]ethtool.FeatureState
	spread   *spread
	err      error // instead of EOPNOTSUPP
}

func told[T any](a *T, err error) (T, error) {
	if a != nil {
		return *a, nil
	}
	var none T
	if err == nil {
		err = unix.EOPNOTSUPP
	}
	return none, err
}

func (f *fake) GetRing(string) (ethtool.Ring, error)         { return told(f.ring, f.err) }
func (f *fake) GetChannels(string) (ethtool.Channels, error) { return told(f.channels, f.err) }
func (f *fake) GetCoalesce(string) (ethtool.Coalesce, error) { return told(f.coalesce, f.err) }
func (f *fake) Spread(string) (spread, error)                { return told(f.spread, f.err) }
func (f *fake) FeaturesWithState(string) (map[string]ethtool.FeatureState, error) {
	if f.features == nil {
		return told[map[string]ethtool.FeatureState](nil, f.err)
	}
	return f.features, nil
}

var changeable = ethtool.FeatureState{Available: true, Active: true}

// well is a card with 4 queues on the second of two NUMA nodes, of 4 CPUs each.
func well() (*fake, map[string]string) {
	key := bytes.Repeat([]byte{0x6d, 0x5a}, 20)
	return &fake{
			ring:     &ethtool.Ring{RxPending: 2048, RxMaxPending: 8192, TxPending: 2048, TxMaxPending: 8192},
			channels: &ethtool.Channels{CombinedCount: 4, MaxCombined: 64},
			coalesce: &ethtool.Coalesce{RxCoalesceUsecs: 8},
			features: map[string]ethtool.FeatureState{"rx-gro": changeable, "rx-lro": {Available: true}, "rx-gro-hw": {}, "rx-vlan-hw-parse": {Available: true}},
			spread:   &spread{table: []uint32{0, 1, 2, 3, 0, 1, 2, 3}, key: key, hash: hashToeplitz, tcp: hashSource | hashTarget | hashPorts, udp: hashSource | hashTarget},
		}, map[string]string{
			"class/net/nic0/napi_defer_hard_irqs": "2", "class/net/nic0/gro_flush_timeout": "200000", "class/net/nic0/threaded": "0",
			"class/net/nic0/device/numa_node": "1", "devices/system/node/node0/cpulist": "0-3", "devices/system/node/node1/cpulist": "4-5,6-7",
		}
}

func sysfsOf(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // as sysfs has it
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../../../../bus/pci/drivers/nice", filepath.Join(root, "class/net/nic0/device/driver")); err != nil {
		t.Fatal(err)
	}
	return root
}

// One thing at a time is not well: there is one warning, with one command, and all else stays well.
func TestTuning(t *testing.T) {
	const dir = "class/net/nic0/"
	for name, c := range map[string]struct {
		change func(f *fake, sys map[string]string, h *host)
		what   string // the warning's name after the interface's, "" if there is none
		found  string
		advice string
	}{
		"all well": {what: ""},
		"more queues than CPUs": {func(_ *fake, sys map[string]string, h *host) {
			h.workers, h.cpus = nil, 2
			delete(sys, "devices/system/node/node0/cpulist")
		}, "queues", "4 rx of 64 possible, driver nice, 2 CPUs", "ethtool -L nic0 combined 2"},
		"more queues than --cpus": {func(_ *fake, _ map[string]string, h *host) { h.workers = cpus{4, 5} }, "queues", "4 rx", "--cpus names 2: ethtool -L nic0 combined 2"},
		"one queue":               {func(f *fake, _ map[string]string, _ *host) { f.channels.CombinedCount = 1 }, "queues", "1 rx of 64", "one CPU receives everything: ethtool -L nic0 combined 2"},
		"one queue of its own kind": {func(f *fake, _ map[string]string, _ *host) {
			f.channels = &ethtool.Channels{RxCount: 1, MaxRx: 16, TxCount: 4, MaxTx: 16}
		}, "queues", "1 rx of 16", "ethtool -L nic0 rx 2"},
		"one queue is all": {func(f *fake, _ map[string]string, _ *host) {
			f.channels = &ethtool.Channels{CombinedCount: 1, MaxCombined: 1}
		}, "", "", ""},
		"short receive ring": {func(f *fake, _ map[string]string, _ *host) { f.ring.RxPending = 512 }, "rings", "rx 512 of 8192 possible, tx 2048 of 8192", "ethtool -G nic0 rx 4096"},
		"both rings short": {func(f *fake, _ map[string]string, _ *host) {
			f.ring = &ethtool.Ring{RxPending: 512, RxMaxPending: 1024, TxPending: 256, TxMaxPending: 512}
		}, "rings", "rx 512 of 1024", "ethtool -G nic0 rx 1024 tx 512"},
		"short rings are all": {func(f *fake, _ map[string]string, _ *host) {
			f.ring = &ethtool.Ring{RxPending: 256, RxMaxPending: 256, TxPending: 256, TxMaxPending: 256}
		}, "", "", ""},
		"late interrupts": {func(f *fake, _ map[string]string, _ *host) { f.coalesce.RxCoalesceUsecs = 500 }, "interrupts", "rx-usecs 500", "ethtool -C nic0 rx-usecs 20"},
		"adaptive interrupts": {func(f *fake, _ map[string]string, _ *host) {
			f.coalesce.RxCoalesceUsecs, f.coalesce.UseAdaptiveRxCoalesce = 500, 1
		}, "", "", ""},
		"deferred for ever": {func(_ *fake, sys map[string]string, _ *host) { sys[dir+"gro_flush_timeout"] = "0" }, "napi", "napi_defer_hard_irqs 2, gro_flush_timeout 0 ns", "echo 200000 > /sys/class/net/nic0/gro_flush_timeout"},
		"deferred for long": {func(_ *fake, sys map[string]string, _ *host) { sys[dir+"gro_flush_timeout"] = "5000000" }, "napi", "", "up to 5000 µs for the timer: echo 200000 >"},
		"interrupts at once": {func(_ *fake, sys map[string]string, _ *host) {
			sys[dir+"gro_flush_timeout"], sys[dir+"napi_defer_hard_irqs"] = "0", "0"
		}, "", "", ""},
		"threaded NAPI":           {func(_ *fake, sys map[string]string, _ *host) { sys[dir+"threaded"] = "1" }, "napi threads", "", "echo 0 > /sys/class/net/nic0/threaded"},
		"queue without packets":   {func(f *fake, _ map[string]string, _ *host) { f.spread.table = []uint32{0, 1, 0, 1} }, "rss", "no packets go to queue 2,3", "ethtool -X nic0 equal 4"},
		"random key":              {func(f *fake, _ map[string]string, _ *host) { f.spread.key = []byte{1, 2, 3, 4} }, "rss", "different flow tables", "ethtool -X nic0 hkey 6d:5a:6d:5a"},
		"random key, ordered":     {func(f *fake, _ map[string]string, _ *host) { f.spread.key, f.spread.alike = []byte{1, 2, 3, 4}, true }, "", "", ""},
		"another hash":            {func(f *fake, _ map[string]string, _ *host) { f.spread.hash = 1 << 2 }, "rss", "", "ethtool -X nic0 xfrm symmetric-xor"},
		"TCP by source":           {func(f *fake, _ map[string]string, _ *host) { f.spread.tcp = hashSource }, "rss", "tcp4 by source:", "ethtool -N nic0 rx-flow-hash tcp4 sdfn"},
		"UDP by ports":            {func(f *fake, _ map[string]string, _ *host) { f.spread.udp = hashPorts }, "rss", "udp4 by ports:", "ethtool -N nic0 rx-flow-hash udp4 sd"},
		"workers on another node": {func(_ *fake, _ map[string]string, h *host) { h.workers = cpus{2, 3, 4, 5} }, "numa", "node 1; of --cpus 2,3 are on others", "ingest --cpus 4,5,6,7"},
		"workers anywhere":        {func(_ *fake, _ map[string]string, h *host) { h.workers = nil }, "numa", "node 1", "ingest --cpus 4,5,6,7"},
		"one node": {func(_ *fake, sys map[string]string, h *host) {
			h.workers = nil
			delete(sys, "devices/system/node/node0/cpulist")
		}, "", "", ""},
		"LRO": {func(f *fake, _ map[string]string, _ *host) { f.features["rx-lro"] = changeable }, "offload", "LRO", "ethtool -K nic0 lro off"},
		"LRO and hardware GRO": {func(f *fake, _ map[string]string, _ *host) {
			f.features["rx-lro"], f.features["rx-gro-hw"] = changeable, changeable
		}, "offload", "hardware GRO", "ethtool -K nic0 lro off rx-gro-hw off"},
		"hardware GRO, fixed": {func(f *fake, _ map[string]string, _ *host) {
			f.features["rx-gro-hw"] = ethtool.FeatureState{Active: true}
		}, "offload", "fixed (rx-gro-hw)", "hypervisor"},
		"GRO under AF_PACKET":  {func(_ *fake, _ map[string]string, h *host) { h.useXDP = false }, "offload", "AF_PACKET sees segments joined", "ethtool -K nic0 gro off lro off"},
		"tags taken out":       {func(f *fake, _ map[string]string, _ *host) { f.features["rx-vlan-hw-parse"] = changeable }, "vlan", "XDP does not see them", "ethtool -K nic0 rxvlan off"},
		"outer tags taken out": {func(f *fake, _ map[string]string, _ *host) { f.features["rx-vlan-stag-hw-parse"] = changeable }, "vlan", "", "ethtool -K nic0 rx-vlan-stag-hw-parse off"},
		"tags taken out, fixed": {func(f *fake, _ map[string]string, _ *host) {
			f.features["rx-vlan-hw-parse"] = ethtool.FeatureState{Available: true, Active: true, NeverChanged: true}
		}, "vlan", "fixed (rx-vlan-hw-parse)", "another driver"},
	} {
		t.Run(name, func(t *testing.T) {
			f, sys := well()
			h := host{cpus: 8, workers: cpus{4, 5, 6, 7}, useXDP: true}
			if c.change != nil {
				c.change(f, sys, &h)
			}
			n := lookAt(sysfsOf(t, sys), f, "nic0")
			var warned []Finding
			for _, f := range n.tuning(h) {
				if f.Level != OK {
					warned = append(warned, f)
				} else if f.Advice != "" {
					t.Errorf("all is well and advised is %+v", f)
				}
			}
			if c.what == "" {
				if len(warned) != 0 {
					t.Errorf("warned of %+v", warned)
				}
				return
			}
			got := find(t, warned, "interface nic0 "+c.what)
			if got.Level != Warn || !strings.Contains(got.Found, c.found) || !strings.Contains(got.Advice, c.advice) {
				t.Errorf("%+v, want found %q and advised %q", got, c.found, c.advice)
			}
			if len(warned) != 1 {
				t.Errorf("warned of %+v, want of %s alone", warned, c.what)
			}
		})
	}
}

// What a driver does not tell is one line, and no fault.
func TestSilentDriver(t *testing.T) {
	sys := map[string]string{"class/net/nic0/queues/rx-0/rps_cpus": "0", "class/net/nic0/queues/rx-1/rps_cpus": "0", "class/net/nic0/device/numa_node": "-1"}
	n := lookAt(sysfsOf(t, sys), &fake{}, "nic0")
	got := n.tuning(host{cpus: 8, useXDP: true})
	if len(got) != 2 || got[0].Found != "2 rx, driver nice" || got[1].Found != "does not tell: channels, rings, coalescing, offloads, RSS" {
		t.Errorf("%+v", got)
	}
	for _, f := range got {
		if f.Level != OK || f.Advice != "" {
			t.Errorf("%+v, want no fault", f)
		}
	}
	n = lookAt(sysfsOf(t, sys), &fake{err: errors.New("no such luck")}, "nic0")
	if f := find(t, n.tuning(host{cpus: 8}), "interface nic0 driver"); !strings.Contains(f.Found, "rings (no such luck)") {
		t.Errorf("%+v, want the reason", f)
	}
}

func TestMTU(t *testing.T) {
	for _, c := range []struct {
		driver string
		mtu    int
		want   string // part of the advice, "" without a finding
	}{
		{"nice", 1500, ""},
		{"nice", 3498, ""},
		{"nice", 3499, "ip link set nic0 mtu 3498, or less"},
		{virtual, 3499, ""},
		{virtual, 3818, ""},
		{virtual, 3819, "ip link set nic0 mtu 3818, or less"},
		{"nice", 9000, "ip link set nic0 mtu 3818, or less"},
	} {
		f := (&nic{name: "nic0", driver: c.driver}).mtu("mtu", c.mtu)
		if (f == nil) != (c.want == "") || f != nil && (f.Level != Warn || f.Advice != c.want) {
			t.Errorf("%s, MTU %d: %+v, want %q", c.driver, c.mtu, f, c.want)
		}
	}
}

func TestCPUList(t *testing.T) {
	for in, want := range map[string]string{"0-2,8": "0,1,2,8", "5": "5", "": "", "1-x,3": "3"} {
		if got := cpuList(in).String(); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

// The kernel's answer, as linux/ethtool.h has it: cmd, context, sizes, function, transformation, reserved; table; key.
func TestParseSpread(t *testing.T) {
	var b []byte
	for _, v := range []uint32{unix.ETHTOOL_GRSSH, 0, 3, 4} {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	b = append(b, hashToeplitz, 1, 0, 0, 0, 0, 0, 0)
	for _, q := range []uint32{0, 1, 7} {
		b = binary.NativeEndian.AppendUint32(b, q)
	}
	b = append(b, 1, 2, 3, 4)
	s := parseSpread(b)
	if len(s.table) != 3 || s.table[2] != 7 || !bytes.Equal(s.key, []byte{1, 2, 3, 4}) || s.hash != hashToeplitz || !s.symmetric() {
		t.Errorf("%+v", s)
	}
	b[17] = 0
	if s = parseSpread(b); s.symmetric() {
		t.Errorf("%+v hashes both directions alike", s)
	}
}
