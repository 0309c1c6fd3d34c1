package netlab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("TIDEGATE_CI") == "1" {
		t.Fatal("this test needs root")
	}
	t.Skip("this test needs root")
}

func newLab(t *testing.T) *Lab {
	t.Helper()
	needRoot(t)
	lab, err := New("tgl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	return lab
}

func namespace(t *testing.T, lab *Lab, name string) *NS {
	t.Helper()
	ns, err := lab.Namespace(name)
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

func mac(last byte) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, last} }

// pair links two new namespaces with IPv4 and IPv6.
func pair(t *testing.T, queues int) (a, b *NS) {
	t.Helper()
	lab := newLab(t)
	a, b = namespace(t, lab, "a"), namespace(t, lab, "b")
	err := lab.Veth(
		End{NS: a, Name: "left", MAC: mac(1), Addrs: []netip.Prefix{netip.MustParsePrefix("10.9.0.1/24"), netip.MustParsePrefix("fd00:9::1/64")}},
		End{NS: b, Name: "right", MAC: mac(2), Addrs: []netip.Prefix{netip.MustParsePrefix("10.9.0.2/24"), netip.MustParsePrefix("fd00:9::2/64")}},
		queues)
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

func TestNeigh(t *testing.T) {
	a, _ := pair(t, 1)
	want := mac(77)
	for _, ip := range []string{"10.9.0.77", "fd00:9::77"} {
		if err := a.Neigh("left", netip.MustParseAddr(ip), want); err != nil {
			t.Fatal(err)
		}
		found := false
		err := a.Do(func() error {
			list, err := netlink.NeighList(0, 0)
			for _, n := range list {
				if n.IP.String() == ip && n.HardwareAddr.String() == want.String() && n.State == netlink.NUD_PERMANENT {
					found = true
				}
			}
			return err
		})
		if err != nil || !found {
			t.Errorf("no permanent neighbour %s: %v", ip, err)
		}
	}
	if err := a.Neigh("absent", netip.MustParseAddr("10.9.0.7"), want); err == nil {
		t.Error("a neighbour on an absent interface was accepted")
	}
}

func TestDoReturnsToTheNamespace(t *testing.T) {
	lab := newLab(t)
	ns := namespace(t, lab, "a")
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	check := func(when string) {
		t.Helper()
		now, err := netns.Get()
		if err != nil {
			t.Fatal(err)
		}
		defer now.Close()
		if !now.Equal(before) {
			t.Fatalf("%s: the thread stayed in the namespace", when)
		}
	}
	boom := errors.New("boom")
	if err := ns.Do(func() error { return boom }); !errors.Is(err, boom) {
		t.Fatalf("Do returned %v", err)
	}
	check("after an error")
	func() {
		defer func() { _ = recover() }()
		_ = ns.Do(func() error { panic("boom") })
	}()
	check("after a panic")
	err = ns.Do(func() error {
		links, err := netlink.LinkList()
		if err == nil && (len(links) != 1 || links[0].Attrs().Flags&net.FlagUp == 0) {
			err = fmt.Errorf("want only a loopback that is up, got %v", links)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	lab := newLab(t)
	ns := namespace(t, lab, "close")
	name := Ifname("tgl", "c")
	if err := lab.Veth(End{Name: name}, End{NS: ns, Name: "inner"}, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := netlink.LinkByName(name); err != nil {
		t.Fatalf("the end in the current namespace is missing: %v", err)
	}
	if _, err := lab.Namespace("close"); err == nil {
		t.Error("a second namespace of the same name was made")
	}
	if _, err := os.Stat(ns.Path()); err != nil {
		t.Errorf("the failed second creation removed the first: %v", err)
	}
	if err := lab.Veth(End{NS: ns, Name: "inner"}, End{NS: ns, Name: "other"}, 1); err == nil {
		t.Error("a second interface of the same name was made")
	}
	if err := lab.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := netlink.LinkByName(name); err == nil {
		t.Error("the interface is left")
	}
	if _, err := os.Stat(ns.Path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the namespace is left: %v", err)
	}
	if err := lab.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, err := lab.Namespace("late"); err == nil {
		t.Error("a closed lab made a namespace")
	}
}

func TestBPFFS(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), fmt.Sprintf("tgl-%d-bpf", os.Getpid()))
	unmount, err := BPFFS(dir)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Type != unix.BPF_FS_MAGIC {
		t.Errorf("%s is no bpffs: type %#x, %v", dir, st.Type, err)
	}
	for range 2 {
		if err := unmount(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
}

func TestNames(t *testing.T) {
	own := strconv.Itoa(os.Getpid())
	for _, c := range []struct{ prefix, suffix, want string }{
		{"tgd", "a", "tgd" + own + "a"},
		{"tgd", "0", "tgd" + own + "_0"},
		{"tg1d", "a", "tgd" + own + "a"},
		{"tgd", "", "tgd" + own},
	} {
		if got := Ifname(c.prefix, c.suffix); got != c.want {
			t.Errorf("Ifname(%q, %q) = %q, want %q", c.prefix, c.suffix, got, c.want)
		}
	}
	if got := Ifname("verylongprefix", "verylongsuffix"); len(got) > maxIfname || !strings.Contains(got, own) {
		t.Errorf("Ifname of long parts = %q", got)
	}
	for _, c := range []struct {
		name string
		pid  int
		ok   bool
	}{
		{"tgd12345a", 12345, true}, {"tgd-77-x", 77, true}, {"tgd12_0", 12, true},
		{"tgd", 0, false}, {"tgdx12", 0, false}, {"other12", 0, false}, {"tgd0a", 0, false},
	} {
		if pid, ok := pidOf("tgd", c.name); pid != c.pid || ok != c.ok {
			t.Errorf("pidOf(%q) = %d, %v", c.name, pid, ok)
		}
	}
	for _, prefix := range []string{"", "with-dash", "d1", "toolongname"} {
		if _, err := New(prefix); err == nil {
			t.Errorf("New(%q) was accepted", prefix)
		}
		if _, err := Sweep(prefix); err == nil {
			t.Errorf("Sweep(%q) was accepted", prefix)
		}
	}
}
