package netlab

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// deadPid gives a pid that no process has and, being the highest, none will soon.
func deadPid(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		t.Fatal(err)
	}
	limit, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	for pid := limit - 1; pid > 0; pid-- {
		if !alive(pid) {
			return pid
		}
	}
	t.Fatal("no free pid")
	return 0
}

func TestSweep(t *testing.T) {
	needRoot(t)
	prefix := "tgsw" // of this test alone: Sweep acts on the whole machine
	pid := strconv.Itoa(deadPid(t))
	space := prefix + "-" + pid + "-left"
	ns, err := createNamespace(space)
	if err != nil {
		t.Fatal(err)
	}
	ns.handle.Close()
	link := prefix + pid + "a"
	attrs := netlink.NewLinkAttrs()
	attrs.Name = link
	veth := netlink.NewVeth(attrs)
	veth.PeerName = prefix + pid + "b"
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), prefix+"-"+pid+"-bpf")
	if _, err := BPFFS(dir); err != nil {
		t.Fatal(err)
	}
	lab, err := New(prefix)
	if err != nil {
		t.Fatal(err)
	}
	defer lab.Close()
	living := namespace(t, lab, "living")

	removed, err := Sweep(prefix)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"netns " + space, "link " + link, "bpffs " + dir} {
		if !slices.Contains(removed, want) {
			t.Errorf("%q is not among the removed: %q", want, removed)
		}
	}
	if _, err := netlink.LinkByName(link); err == nil {
		t.Error("the interface is left")
	}
	for _, path := range []string{namespacePath(space), dir} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	if _, err := os.Stat(living.Path()); err != nil {
		t.Errorf("Sweep removed what a living process uses: %v", err)
	}
	if removed, err := Sweep(prefix); err != nil || len(removed) != 0 {
		t.Errorf("second Sweep: %q, %v", removed, err)
	}
}

// TestSweepNamespaces: interfaces stay, and a process that nobody waited for counts as dead.
func TestSweepNamespaces(t *testing.T) {
	needRoot(t)
	const prefix = "tgsn"
	zombie := exec.Command("sleep", "60")
	if err := zombie.Start(); err != nil {
		t.Fatal(err)
	}
	pid := zombie.Process.Pid
	space := prefix + "-" + strconv.Itoa(pid) + "-left"
	ns, err := createNamespace(space)
	if err != nil {
		t.Fatal(err)
	}
	ns.handle.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = prefix + strconv.Itoa(pid) + "a"
	veth := netlink.NewVeth(attrs)
	veth.PeerName = prefix + strconv.Itoa(pid) + "b"
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := netlink.LinkDel(veth); err != nil {
			t.Errorf("the interface went with the namespaces: %v", err)
		}
	}()

	if removed, err := SweepNamespaces(prefix); err != nil || len(removed) != 0 {
		t.Errorf("of a living process: %q, %v", removed, err)
	}
	if err := zombie.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = zombie.Wait() }()
	deadline := time.Now().Add(5 * time.Second)
	for alive(pid) && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	if removed, err := SweepNamespaces(prefix); err != nil || !slices.Equal(removed, []string{"netns " + space}) {
		t.Errorf("of a killed process: %q, %v", removed, err)
	}
}
