package loadgen

import (
	"testing"

	"github.com/vishvananda/netlink"
)

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
