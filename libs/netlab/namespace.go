package netlab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// NS is a named network namespace. It stays usable until its Lab is closed. Its methods may be called from several
// goroutines.
type NS struct {
	name   string
	handle netns.NsHandle
}

// Name is the full name, as `ip netns` lists it.
func (ns *NS) Name() string { return ns.name }

// Path is the file that other programs open to enter the namespace.
func (ns *NS) Path() string { return namespacePath(ns.name) }

// Do runs f inside the namespace, on an OS thread that no other goroutine uses meanwhile, and returns f's error.
//
// Sockets that f opens stay in the namespace after Do has returned. Goroutines that f starts do not: they run on
// other threads, outside. If the thread cannot go back to where it came from it is discarded, never reused.
// f may panic or end its goroutine (testing's Fatal does): the thread is switched back all the same.
func (ns *NS) Do(f func() error) error {
	return inside(ns.handle, f)
}

// Neigh adds a permanent neighbour entry, so that no ARP or neighbour discovery is needed towards ip.
func (ns *NS) Neigh(iface string, ip netip.Addr, mac net.HardwareAddr) error {
	h, err := netlink.NewHandleAt(ns.handle, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("add neighbour %s in %s: open netlink: %w", ip, ns.name, err)
	}
	defer h.Close()
	link, err := h.LinkByName(iface)
	if err != nil {
		return fmt.Errorf("add neighbour %s in %s: interface %s: %w", ip, ns.name, iface, err)
	}
	ip = ip.Unmap()
	family := netlink.FAMILY_V4
	if ip.Is6() {
		family = netlink.FAMILY_V6
	}
	err = h.NeighSet(&netlink.Neigh{
		LinkIndex:    link.Attrs().Index,
		Family:       family,
		State:        netlink.NUD_PERMANENT,
		IP:           ip.AsSlice(),
		HardwareAddr: mac,
	})
	if err != nil {
		return fmt.Errorf("add neighbour %s on %s in %s: %w", ip, iface, ns.name, err)
	}
	return nil
}

// remove deletes the name and closes the handle; the kernel frees the namespace once no process or socket uses it.
func (ns *NS) remove() error {
	if err := ns.handle.Close(); err != nil {
		return fmt.Errorf("close namespace %s: %w", ns.name, err)
	}
	return removeNamespace(ns.name)
}

// removeNamespace unmounts and deletes a name under /run/netns. EINVAL means the file is not a mount point, which a
// process killed between creating the file and mounting leaves.
func removeNamespace(name string) error {
	path := namespacePath(name)
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount namespace %s: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove namespace %s: %w", name, err)
	}
	return nil
}

// shareNamespaces makes /run/netns a shared mount, as ip-netns(8) does before its first namespace. Were it none, an `ip netns
// add` beside would mount it over itself, and what was there could not be removed any more.
func shareNamespaces() error {
	if err := os.MkdirAll(namespaceDir, 0o755); err != nil { //nolint:gosec // as ip netns makes it
		return fmt.Errorf("make the folder of namespaces: %w", err)
	}
	dir, err := os.Open(namespaceDir)
	if err != nil {
		return fmt.Errorf("open the folder of namespaces: %w", err)
	}
	defer func() { _ = dir.Close() }()                              // ends the lock
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil { //nolint:gosec // descriptors are small
		return fmt.Errorf("lock %s: %w", namespaceDir, err)
	}
	share := func() error { return unix.Mount("", namespaceDir, "none", unix.MS_SHARED|unix.MS_REC, "") }
	err = share()
	if errors.Is(err, unix.EINVAL) { // no mount yet
		if err = unix.Mount(namespaceDir, namespaceDir, "none", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = share()
		}
	}
	if err != nil {
		return fmt.Errorf("make %s a shared mount: %w", namespaceDir, err)
	}
	return nil
}

// createNamespace makes a named namespace with loopback up and leaves the calling goroutine where it was.
func createNamespace(name string) (*NS, error) {
	here, err := current()
	if err != nil {
		return nil, err
	}
	defer release(here)
	if err := shareNamespaces(); err != nil {
		return nil, err
	}

	ns := &NS{name: name, handle: netns.None()}
	// The creation moves the thread into the new namespace; inside takes it back.
	err = inside(here, func() error {
		handle, err := netns.NewNamed(name)
		if err != nil {
			if errors.Is(err, os.ErrExist) {
				return fmt.Errorf("create namespace %s: it exists already", name)
			}
			_ = removeNamespace(name)
			return fmt.Errorf("create namespace %s: %w", name, err)
		}
		ns.handle = handle
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			return fmt.Errorf("bring up loopback in %s: %w", name, err)
		}
		// A machine that forwards, with a Docker engine for instance, makes every new namespace do so; it would then answer
		// packets to strangers with ICMP errors.
		err = os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0o600)
		if err != nil && !errors.Is(err, unix.EROFS) { // in a container
			return fmt.Errorf("switch forwarding off in %s: %w", name, err)
		}
		return nil
	})
	if err != nil {
		if ns.handle.IsOpen() {
			_ = ns.remove()
		}
		return nil, err
	}
	return ns, nil
}

// current opens the namespace of the calling thread. The caller closes the handle.
func current() (netns.NsHandle, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	h, err := netns.Get()
	if err != nil {
		return netns.None(), fmt.Errorf("open the current network namespace: %w", err)
	}
	return h, nil
}

// release closes a handle that was only read from: a failing close loses nothing.
func release(h netns.NsHandle) { _ = h.Close() }

// inside runs f on a locked thread within space. When the way back fails the thread stays locked, so that the Go
// runtime ends it together with its goroutine instead of running others in the wrong namespace.
func inside(space netns.NsHandle, f func() error) (err error) {
	runtime.LockOSThread()
	back, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open the current network namespace: %w", err)
	}
	defer func() {
		defer release(back)
		if failed := netns.Set(back); failed != nil {
			err = errors.Join(err, fmt.Errorf("return to the former network namespace: %w", failed))
			return
		}
		runtime.UnlockOSThread()
	}()
	if err := netns.Set(space); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	return f()
}
