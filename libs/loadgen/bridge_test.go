package loadgen

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
)

// apart is set for the test binary that runs in a network namespace of its own.
const apart = "TIDEGATE_TEST_APART"

// TestMain gives the tests a network namespace: a Docker engine on the machine has the kernel's bridges filtered.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 || os.Getenv(apart) != "" {
		os.Exit(m.Run())
	}
	again := exec.Command("/proc/self/exe", os.Args[1:]...)
	again.Env = append(os.Environ(), apart+"=1")
	again.Stdout, again.Stderr = os.Stdout, os.Stderr
	again.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := again.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// bridge joins two ports by the kernel's bridge until the test ends.
func bridge(t *testing.T, a, b, name string) {
	t.Helper()
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
	if err := netlink.LinkAdd(br); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(br) })
	for _, p := range []string{a, b} {
		l, err := netlink.LinkByName(p)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetMaster(l, br); err != nil {
			t.Fatal(err)
		}
	}
	if err := netlink.LinkSetUp(br); err != nil {
		t.Fatal(err)
	}
}
