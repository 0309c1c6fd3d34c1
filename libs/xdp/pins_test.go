package xdp

import (
	"bufio"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tidegate-mesh/tidegate/libs/netlab"
	"github.com/tidegate-mesh/tidegate/libs/policy"
)

// TestTwoStarters opens an interface from several threads at once, as services that start together do:
// one attaches, the others open its pins, and all end up with one set of maps.
func TestTwoStarters(t *testing.T) {
	r := newRig(t, 1)
	gates := make([]*Gate, 6)
	errs := make([]error, len(gates))
	var wg sync.WaitGroup
	for i := range gates {
		wg.Add(1)
		go func() {
			defer wg.Done()
			gates[i], errs[i] = r.try(Options{Mode: []Mode{ModeKeep, ModeInline}[i%2]})
		}()
	}
	wg.Wait()
	for i, g := range gates {
		must(t, errs[i])
		if g.Reattached() != "" {
			t.Errorf("starter %d replaced pins: %s", i, g.Reattached())
		}
		if same, err := sameMap(g.maps.GateRules, gates[0].maps.GateRules); err != nil || !same {
			t.Errorf("starter %d has maps of its own (%v)", i, err)
		}
		if g.Mode() != ModeInline {
			t.Errorf("starter %d sees mode %s", i, g.Mode())
		}
	}
	// What one writes the others read, whoever wrote last.
	for i, g := range gates {
		must(t, g.PutRules([]Rule{{ID: uint64(i + 1), Action: policy.Drop, Priority: int32(i), Match: policy.Match{Src: pfx("10.0.0.0/8")}}}))
	}
	for i, g := range gates {
		rules, err := g.Rules()
		must(t, err)
		if len(rules) != len(gates) {
			t.Errorf("starter %d reads %d rules, want %d", i, len(rules), len(gates))
		}
		must(t, g.Alive())
		must(t, g.Close())
		must(t, g.Close())
		if err := g.PutRules(nil); !errors.Is(err, ErrClosed) {
			t.Errorf("put on a closed gate: %v", err)
		}
	}
	// All gone, and it still drops.
	g := r.open(t, Options{})
	if got := send(t, program(t, g), udp("10.1.1.1", "192.0.2.1").frame(t)); got != drop {
		t.Errorf("after all processes left: action %d, want drop", got)
	}
}

func (r *rig) addVeth(t *testing.T, ns *netlab.NS, name string, index int) {
	t.Helper()
	must(t, ns.Do(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, Index: index}, PeerName: name + "y"})
	}))
}

func (r *rig) deleteLink(t *testing.T, ns *netlab.NS, name string) {
	t.Helper()
	must(t, ns.Do(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	}))
}

// TestInterfaceMadeAgain: a dead link is never used again, whether the new interface has the old number or
// another one.
func TestInterfaceMadeAgain(t *testing.T) {
	r := newRig(t, 1)
	r.addVeth(t, r.gate, "port", 4000)
	for _, index := range []int{4000, 4001} {
		old := r.open(t, Options{Iface: "port", Mode: ModeHost})
		must(t, old.PutRules([]Rule{{ID: 1, Action: policy.Drop}}))
		r.deleteLink(t, r.gate, "port")
		if err := old.Alive(); !errors.Is(err, ErrDetached) {
			t.Errorf("interface deleted: %v, want ErrDetached", err)
		}
		r.addVeth(t, r.gate, "port", index)
		g := r.open(t, Options{Iface: "port", Mode: ModeHost})
		if g.Reattached() == "" {
			t.Errorf("index %d: no word about the re-attachment", index)
		}
		must(t, g.Alive())
		if !attached(t, r.gate, "port") {
			t.Errorf("index %d: no program on the interface", index)
		}
		if rules, err := g.Rules(); err != nil || len(rules) != 0 {
			t.Errorf("index %d: %d rules of the dead interface (%v)", index, len(rules), err)
		}
		if err := old.Alive(); !errors.Is(err, ErrDetached) {
			t.Errorf("pins replaced: %v, want ErrDetached", err)
		}
		if dirs, err := pinFolders(r.bpffs); err != nil || len(dirs) != 1 {
			t.Errorf("index %d: pins %v (%v), want one directory", index, dirs, err)
		}
	}
}

func attached(t *testing.T, ns *netlab.NS, iface string) (yes bool) {
	t.Helper()
	must(t, ns.Do(func() error {
		l, err := netlink.LinkByName(iface)
		if err == nil {
			yes = l.Attrs().Xdp != nil && l.Attrs().Xdp.Attached
		}
		return err
	}))
	return yes
}

// TestMismatch: pins that do not fit are replaced with a reason, and packets go on being handled.
func TestMismatch(t *testing.T) {
	r := newRig(t, 1)
	changeMeta := func(f func(m *meta)) func(t *testing.T, g *Gate) {
		return func(t *testing.T, g *Gate) {
			var m meta
			must(t, g.maps.GateMeta.Lookup(uint32(0), &m))
			f(&m)
			must(t, g.maps.GateMeta.Update(uint32(0), &m, ebpf.UpdateAny))
		}
	}
	for _, tt := range []struct {
		name   string
		harm   func(t *testing.T, g *Gate)
		o      Options
		reason string // part of it; "" = pins are used
	}{
		{"same", func(*testing.T, *Gate) {}, Options{}, ""},
		{"same sizes named", func(*testing.T, *Gate) {}, Options{Geometry: DefaultGeometry()}, ""},
		{"layout", changeMeta(func(m *meta) { m.ABI++ }), Options{}, "layout"},
		{"index", changeMeta(func(m *meta) { m.Ifindex++ }), Options{}, "interface"},
		{"namespace", changeMeta(func(m *meta) { m.NetnsCookie++ }), Options{}, "namespace"},
		{"sizes", func(*testing.T, *Gate) {}, Options{Geometry: Geometry{Rules: 64}}, "sizes"},
		{"map unpinned", func(t *testing.T, g *Gate) { must(t, os.Remove(pinPath(g.dir, "gate_rules"))) }, Options{}, "gate_rules"},
		{"died before the end", func(t *testing.T, g *Gate) { must(t, os.Remove(pinPath(g.dir, "gate_meta"))) }, Options{}, "gate_meta"},
		{"detached", func(t *testing.T, g *Gate) { must(t, g.link.(interface{ Detach() error }).Detach()) }, Options{}, "dead"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			must(t, Remove(r.bpffs, "left"))
			old := r.open(t, Options{Mode: ModeHost})
			tt.harm(t, old)
			g := r.open(t, tt.o)
			if (g.Reattached() == "") != (tt.reason == "") || !strings.Contains(g.Reattached(), tt.reason) {
				t.Errorf("reason %q, want %q in it", g.Reattached(), tt.reason)
			}
			must(t, g.Alive())
			if (old.Alive() == nil) != (tt.reason == "") {
				t.Errorf("the older gate: %v", old.Alive())
			}
			must(t, g.PutRules([]Rule{{ID: 1, Action: policy.Drop}}))
			if got := send(t, program(t, g), udp("10.1.1.1", "192.0.2.1").frame(t)); got != drop {
				t.Errorf("action %d, want drop", got)
			}
			if !attached(t, r.gate, "left") {
				t.Error("no program on the interface")
			}
		})
	}
}

// TestSizesChange: other sizes keep mode, peer and all that is written by hand.
func TestSizesChange(t *testing.T) {
	r := newRig(t, 1)
	old := r.open(t, Options{Mode: ModeInline, FailClosed: true, Geometry: Geometry{Flows: 128}})
	must(t, old.PutRules([]Rule{
		{ID: 1, Action: policy.Drop, Match: policy.Match{Src: pfx("192.0.2.0/24")}},
		{ID: 2, Action: policy.Drop, Match: policy.Match{Dst: pfx("2001:db8::/32"), HasProtocol: true, Protocol: 17}},
	}))
	must(t, old.PutNever([]Never{{Prefix: pfx("192.0.2.9/32"), Source: true}}))
	must(t, old.PutHosts(1, policy.Drop, time.Time{}, []netip.Addr{netip.MustParseAddr("203.0.113.1")}))
	must(t, old.PutPrefixes(1, policy.Drop, time.Time{}, []netip.Prefix{pfx("203.0.114.0/24")}))
	g := r.open(t, Options{Geometry: Geometry{Rules: 100}})
	if !strings.Contains(g.Reattached(), "sizes") || g.Mode() != ModeInline || g.maps.GateFlows.MaxEntries() != 128 {
		t.Errorf("reason %q, mode %s, %d flows", g.Reattached(), g.Mode(), g.maps.GateFlows.MaxEntries())
	}
	p := program(t, g)
	for src, want := range map[string]Counters{
		"192.0.2.1": {Drop: 1}, "192.0.2.9": {NoReader: 1, Never: 1}, "203.0.113.1": {Drop: 1}, "203.0.114.1": {Drop: 1}, "203.0.115.1": {NoReader: 1},
	} {
		before := counters(t, g)
		send(t, p, udp(src, "198.51.100.1").frame(t))
		after := counters(t, g)
		if after.Drop-before.Drop != want.Drop || after.NoReader-before.NoReader != want.NoReader || after.Never-before.Never != want.Never {
			t.Errorf("from %s: %+v, then %+v", src, before, after)
		}
	}
	if got := send(t, p, udp("2001:db8::1", "2001:db8::2").frame(t)); got != drop {
		t.Errorf("second rule: action %d", got)
	}
	keep := r.open(t, Options{Mode: ModeInline})
	if got := send(t, p, udp("203.0.115.1", "198.51.100.1").frame(t)); got != redirect || keep.Reattached() != "" {
		t.Errorf("fail-open again: action %d, %q", got, keep.Reattached())
	}
	// Fewer slots than rules: the old attachment stays.
	must(t, keep.PutRules([]Rule{{ID: 3, Action: policy.Count}}))
	if _, err := r.try(Options{Geometry: Geometry{Rules: 2}}); !errors.Is(err, ErrRuleLimit) {
		t.Errorf("too small for the rules in force: %v", err)
	}
	must(t, keep.Alive())
}

// TestOpenErrors: what cannot be opened says why.
func TestOpenErrors(t *testing.T) {
	r := newRig(t, 1)
	if _, err := r.try(Options{Iface: "none"}); !errors.Is(err, ErrNoInterface) {
		t.Errorf("no interface: %v", err)
	}
	if _, err := r.try(Options{Mode: 9}); err == nil {
		t.Error("unknown mode is taken")
	}
	if _, err := r.try(Options{Geometry: Geometry{Rules: 1 << 30}}); err == nil {
		t.Error("a geometry beyond bounds is taken")
	}
	if _, err := r.try(Options{Mode: ModeInline, Peer: "none"}); !errors.Is(err, ErrNoInterface) {
		t.Errorf("no peer: %v", err)
	}
	// Pins lost, program still there: somebody's program, not to be thrown off.
	g := r.open(t, Options{Mode: ModeHost})
	must(t, os.Rename(g.dir, g.dir+"-moved"))
	if _, err := r.try(Options{}); !errors.Is(err, ErrBusy) {
		t.Errorf("another program: %v", err)
	}
	must(t, os.RemoveAll(filepath.Dir(g.dir)))
	// An interface of another namespace with the same name and number must not throw ours off.
	r.addVeth(t, r.gate, "twin", 5000)
	r.addVeth(t, r.outer, "twin", 5000)
	ours := r.open(t, Options{Iface: "twin", Mode: ModeHost})
	theirs := func() (g *Gate, err error) {
		e := r.outer.Do(func() error { g, err = Open(Options{Iface: "twin", BPFFS: r.bpffs}); return nil })
		return g, errors.Join(e, err)
	}
	if _, err := theirs(); !errors.Is(err, ErrForeign) {
		t.Errorf("other namespace: %v", err)
	}
	must(t, ours.Alive())
	r.deleteLink(t, r.gate, "twin")
	other, err := theirs()
	must(t, err)
	must(t, other.Remove())
}

// TestRemove: nothing is left of it, also with another gate still open; Sweep takes only what is dead.
func TestRemove(t *testing.T) {
	r := newRig(t, 3)
	r.addVeth(t, r.gate, "port.7", 0)
	keep := r.open(t, Options{Mode: ModeHost})
	if n := keep.queuesIn(t, r); n != 3 {
		t.Errorf("%d queues, want 3", n)
	}
	g := r.open(t, Options{Iface: "port.7", Mode: ModeHost})
	must(t, Sweep(r.bpffs))
	must(t, g.Alive())
	r.deleteLink(t, r.gate, "port.7")
	must(t, Sweep(r.bpffs))
	must(t, keep.Alive())
	if dirs, err := pinFolders(r.bpffs); err != nil || len(dirs) != 1 || dirs[0] != keep.dir {
		t.Errorf("after Sweep: %v (%v)", dirs, err)
	}
	second := r.open(t, Options{})
	must(t, second.Remove())
	if attached(t, r.gate, "left") {
		t.Error("the program is still on the interface")
	}
	if err := keep.Alive(); !errors.Is(err, ErrDetached) {
		t.Errorf("the other gate: %v", err)
	}
	must(t, Remove(r.bpffs, "left"))
	must(t, Remove(filepath.Join(r.bpffs, "none"), "left"))
}

func TestPinned(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"7-eth1", "9-eth2_100", "lists"} {
		must(t, os.MkdirAll(filepath.Join(root, pinFolder, dir), 0o700))
	}
	for iface, want := range map[string]bool{"eth1": true, "eth2.100": true, "eth2": false, "1": false, "lists": false} {
		if there, err := Pinned(root, iface); there != want || err != nil {
			t.Errorf("%s: %t, %v", iface, there, err)
		}
	}
	if there, err := Pinned(filepath.Join(root, "none"), "eth1"); there || err != nil {
		t.Errorf("without pins: %t, %v", there, err)
	}
}

func (g *Gate) queuesIn(t *testing.T, r *rig) (n int) {
	t.Helper()
	must(t, r.gate.Do(func() error { n = g.Queues(); return nil }))
	return n
}

// TestMount: Open mounts a BPF file system where there is none.
func TestMount(t *testing.T) {
	r := newRig(t, 1)
	dir := filepath.Join(t.TempDir(), "fresh")
	var g *Gate
	must(t, r.gate.Do(func() (err error) {
		g, err = Open(Options{Iface: "left", BPFFS: dir, Mode: ModeHost})
		return err
	}))
	must(t, g.Remove())
	must(t, unix.Unmount(dir, 0))
}

const readerEnv = "TIDEGATE_XDP_TEST_SOCKETS"

// TestMain is also the process that TestReaderKilled kills.
func TestMain(m *testing.M) {
	if path := os.Getenv(readerEnv); path != "" {
		sockets, err := ebpf.LoadPinnedMap(path, nil)
		if err == nil {
			var fd int
			if fd, err = unix.Socket(unix.AF_XDP, unix.SOCK_RAW, 0); err == nil {
				err = sockets.Update(uint32(0), uint32(fd), ebpf.UpdateAny) //nolint:gosec // a small number
			}
		}
		if err != nil {
			_, _ = os.Stdout.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		_, _ = os.Stdout.WriteString("ready\n")
		time.Sleep(time.Minute)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestReaderKilled: SIGKILL of the process that reads, and the kernel forwards.
func TestReaderKilled(t *testing.T) {
	r := newRig(t, 1)
	g := r.open(t, Options{Mode: ModeInline})
	p := program(t, g)
	reader := exec.Command(os.Args[0]) //nolint:gosec // this test binary
	reader.Env = append(os.Environ(), readerEnv+"="+pinPath(g.dir, "gate_sockets"))
	out, err := reader.StdoutPipe()
	must(t, err)
	must(t, reader.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "ready\n" {
		t.Fatalf("reader: %q, %v", line, err)
	}
	frame := udp("192.0.2.1", "192.0.2.2").frame(t)
	r.sendQueue(t, g, p, 0, frame)
	if c := counters(t, g); c.Redirect != 1 || c.Forward != 0 {
		t.Errorf("with a reader: %+v", c)
	}
	must(t, reader.Process.Kill())
	_ = reader.Wait()
	r.sendQueue(t, g, p, 0, frame)
	if c := counters(t, g); c.Redirect != 1 || c.Forward != 1 || c.Unread != 1 {
		t.Errorf("after SIGKILL: %+v", c)
	}
}
