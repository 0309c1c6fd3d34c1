package netlab

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// offloads are switched off where the driver knows them. A veth hands packets over with checksums not yet computed
// and segments not yet cut; AF_XDP and XDP would see frames that never look like that on a wire.
var offloads = []string{
	"tx-checksum-ipv4",
	"tx-checksum-ipv6",
	"tx-checksum-ip-generic",
	"tx-checksum-sctp",
	"tx-checksum-fcoe-crc",
	"tx-tcp-segmentation",
	"tx-tcp-ecn-segmentation",
	"tx-tcp-mangleid-segmentation",
	"tx-tcp6-segmentation",
	"tx-udp-segmentation",
	"tx-sctp-segmentation",
	"tx-generic-segmentation",
	"tx-gso-list",
}

// receiveOffload is switched on: only with it does a veth poll its ring by NAPI, without which it refuses redirected
// frames while it has no XDP program of its own.
const receiveOffload = "rx-gro"

// Veth creates a pair between a and b with the given number of rx and tx queues (at least 1) on both ends and brings
// both up with their addresses. TX checksumming, TSO and GSO are off and GRO is on at both ends. Duplicate address
// detection is off, so that IPv6 addresses work at once. On an error nothing is left.
func (l *Lab) Veth(a, b End, queues int) error {
	if queues < 1 || queues > 4096 {
		return fmt.Errorf("create veth %s: %d queues: use 1 to 4096", a.Name, queues)
	}
	for _, end := range []End{a, b} {
		if end.Name == "" || len(end.Name) > maxIfname {
			return fmt.Errorf("create veth: interface name %q: use 1 to %d characters", end.Name, maxIfname)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errors.New("create veth: the lab is closed")
	}
	spaceA, err := a.open()
	if err != nil {
		return err
	}
	spaceB, err := b.open()
	if err != nil {
		release(spaceA)
		return err
	}
	defer release(spaceB)

	attrs := netlink.NewLinkAttrs()
	attrs.Name = a.Name
	attrs.HardwareAddr = a.MAC
	attrs.NumRxQueues, attrs.NumTxQueues = queues, queues
	pair := netlink.NewVeth(attrs)
	pair.PeerName = b.Name
	pair.PeerHardwareAddr = b.MAC
	pair.PeerNumRxQueues, pair.PeerNumTxQueues = uint32(queues), uint32(queues) //nolint:gosec // 1 to 4096, checked above
	pair.PeerNamespace = netlink.NsFd(int(spaceB))
	if err := inside(spaceA, func() error { return netlink.LinkAdd(pair) }); err != nil {
		release(spaceA)
		return fmt.Errorf("create veth %s - %s: %w", a.Name, b.Name, err)
	}
	err = errors.Join(a.configure(spaceA), b.configure(spaceB))
	// A veth decides while it comes up whether its peer takes redirected frames: both are configured before.
	if err == nil {
		err = errors.Join(a.up(spaceA), b.up(spaceB))
	}
	if err == nil {
		err = errors.Join(a.settle(spaceA), b.settle(spaceB))
	}
	if err != nil {
		err = errors.Join(err, deleteLink(spaceA, a.Name))
		release(spaceA)
		return err
	}
	l.links = append(l.links, madeLink{space: spaceA, name: a.Name})
	return nil
}

// open gives an own handle of the end's namespace, to be closed by the caller.
func (e *End) open() (netns.NsHandle, error) {
	if e.NS == nil {
		return current()
	}
	var h netns.NsHandle
	err := e.NS.Do(func() (err error) {
		h, err = netns.Get()
		return err
	})
	if err != nil {
		return netns.None(), fmt.Errorf("open namespace %s: %w", e.NS.name, err)
	}
	return h, nil
}

// configure runs every step inside the namespace that owns the interface: sysctl files, the ethtool socket and
// netlink all mean the namespace of the thread that opens them.
func (e *End) configure(space netns.NsHandle) error {
	err := inside(space, func() error {
		if err := setFeatures(e.Name); err != nil {
			return err
		}
		if err := quietIPv6(e); err != nil {
			return err
		}
		link, err := netlink.LinkByName(e.Name)
		if err != nil {
			return err
		}
		for _, prefix := range e.Addrs {
			addr := prefix.Addr().Unmap()
			ipNet := &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(prefix.Bits(), addr.BitLen())}
			if ipNet.Mask == nil {
				return fmt.Errorf("address %s: the prefix length does not fit the address family", prefix)
			}
			address := &netlink.Addr{IPNet: ipNet}
			if addr.Is6() {
				address.Flags = unix.IFA_F_NODAD
			}
			if err := netlink.AddrAdd(link, address); err != nil {
				return fmt.Errorf("add address %s: %w", prefix, err)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("configure interface %s: %w", e.Name, err)
	}
	return nil
}

func (e *End) up(space netns.NsHandle) error {
	err := inside(space, func() error {
		link, err := netlink.LinkByName(e.Name)
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	})
	if err != nil {
		return fmt.Errorf("bring up interface %s: %w", e.Name, err)
	}
	return nil
}

// settle waits until no IPv6 address is tentative. The kernel marks its own link-local address so for a moment, even
// without duplicate address detection, and it cannot be used as a source meanwhile.
func (e *End) settle(space netns.NsHandle) error {
	h, err := netlink.NewHandleAt(space, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("interface %s: open netlink: %w", e.Name, err)
	}
	defer h.Close()
	link, err := h.LinkByName(e.Name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", e.Name, err)
	}
	for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(time.Millisecond) {
		addrs, err := h.AddrList(link, netlink.FAMILY_V6)
		if err != nil {
			return fmt.Errorf("interface %s: list addresses: %w", e.Name, err)
		}
		tentative := slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.Flags&unix.IFA_F_TENTATIVE != 0 })
		if !tentative {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("interface %s: an IPv6 address stays tentative", e.Name)
		}
	}
}

// setFeatures asks only for features that the driver lists: unknown names are an error to the kernel interface.
func setFeatures(iface string) error {
	tool, err := ethtool.NewEthtool()
	if err != nil {
		return fmt.Errorf("open ethtool: %w", err)
	}
	defer tool.Close()
	known, err := tool.FeaturesWithState(iface)
	if err != nil {
		return fmt.Errorf("read offload features: %w", err)
	}
	want := map[string]bool{}
	for _, name := range offloads {
		if state, ok := known[name]; ok && state.Active && !state.NeverChanged {
			want[name] = false
		}
	}
	if state, ok := known[receiveOffload]; ok && !state.Active {
		want[receiveOffload] = true
	}
	if len(want) == 0 {
		return nil
	}
	if err := tool.Change(iface, want); err != nil {
		return fmt.Errorf("set offload features: %w", err)
	}
	return nil
}

// quietIPv6 turns off what IPv6 sends or waits for by itself. A host without IPv6 has no such files: that is fine.
func quietIPv6(e *End) error {
	settings := map[string]string{
		"accept_dad":           "0",
		"dad_transmits":        "0",
		"accept_ra":            "0",
		"autoconf":             "0",
		"router_solicitations": "0",
	}
	v6 := false
	for _, prefix := range e.Addrs {
		v6 = v6 || prefix.Addr().Unmap().Is6()
	}
	if !v6 {
		settings["addr_gen_mode"] = "1" // none: no link-local address, hence no multicast listener reports
	}
	dir := filepath.Join("/proc/sys/net/ipv6/conf", e.Name)
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for key, value := range settings {
		path := filepath.Join(dir, key)
		err := os.WriteFile(path, []byte(value), 0o600)
		if errors.Is(err, unix.EROFS) { // in a container; the link is only less quiet
			return nil
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("set %s: %w", path, err)
		}
	}
	return nil
}
