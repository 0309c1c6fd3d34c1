package xdp

import (
	"errors"
	"fmt"
	"os"
	"reflect"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// absent is the mismatch of a directory that has no pins yet.
const absent = "nothing is pinned"

// each calls f for every map with its name, which is also its pin's.
func (m *gateMaps) each(f func(name string, at **ebpf.Map) error) error {
	v := reflect.ValueOf(m).Elem()
	for i := range v.NumField() {
		at, ok := v.Field(i).Addr().Interface().(**ebpf.Map)
		if !ok {
			continue
		}
		if err := f(v.Type().Field(i).Tag.Get("ebpf"), at); err != nil {
			return err
		}
	}
	return nil
}

func (m *gateMaps) byName() map[string]*ebpf.Map {
	out := map[string]*ebpf.Map{}
	_ = m.each(func(name string, at **ebpf.Map) error { out[name] = *at; return nil })
	return out
}

// pins is what a pin directory holds; absent parts are nil.
type pins struct {
	maps    gateMaps
	link    link.Link
	ifindex int // the link's, 0 = its interface is gone
	program ebpf.ProgramID
	meta    meta
	missing string // the first part that could not be opened
	any     bool
	err     error
}

func openPins(dir string) *pins {
	p := &pins{}
	_ = p.maps.each(func(name string, at **ebpf.Map) error {
		m, err := ebpf.LoadPinnedMap(pinPath(dir, name), nil)
		if err != nil {
			p.miss(name, err)
			return nil
		}
		*at, p.any = m, true
		return nil
	})
	l, err := link.LoadPinnedLink(pinPath(dir, linkPin), nil)
	if err == nil {
		p.any = true
		if p.ifindex, p.program, err = linkTarget(l); err == nil {
			p.link = l
		} else {
			_ = l.Close()
		}
	}
	if err != nil {
		p.miss(linkPin, err)
	}
	if p.maps.GateMeta != nil {
		if err := p.maps.GateMeta.Lookup(uint32(0), &p.meta); err != nil {
			p.miss("gate_meta", err)
		}
	}
	return p
}

func (p *pins) miss(name string, err error) {
	if p.missing == "" {
		p.missing, p.err = name, err
	}
}

// mismatch says why the pins cannot be used, "" if they can.
func (p *pins) mismatch(here *meta, o Options) (string, error) {
	want := o.Geometry.or(p.meta.geometry())
	foreign := p.meta.NetnsInode != here.NetnsInode || p.meta.NetnsCookie != here.NetnsCookie
	switch {
	case errors.Is(p.err, os.ErrPermission):
		return "", explainPins(o.BPFFS, p.err)
	case !p.any:
		return absent, nil
	case p.maps.GateMeta != nil && p.link != nil && foreign && p.ifindex != 0 && !attachedHere(int(here.Ifindex), p.program):
		return "", ErrForeign
	case p.link != nil && p.ifindex == 0:
		return "the interface was deleted and made again: the pinned link is dead", nil
	case p.missing != "":
		return fmt.Sprintf("the pin %s cannot be used: %v", p.missing, p.err), nil
	case p.meta.ABI != here.ABI:
		return fmt.Sprintf("the pinned maps have layout %d, this build has %d", p.meta.ABI, here.ABI), nil
	case p.ifindex != int(here.Ifindex) || p.meta.Ifindex != here.Ifindex:
		return fmt.Sprintf("the pins belong to interface %d, this is %d", p.ifindex, here.Ifindex), nil
	case foreign:
		return "the pins were made in another network namespace", nil
	case want != p.meta.geometry():
		return fmt.Sprintf("the pinned maps have the sizes %+v, asked for are %+v", p.meta.geometry(), want), nil
	}
	return "", p.compatible(want)
}

// compatible guards against maps that someone else pinned under our names.
func (p *pins) compatible(geo Geometry) error {
	spec, err := sized(geo)
	if err != nil {
		return err
	}
	return p.maps.each(func(name string, at **ebpf.Map) error {
		if err := spec.Maps[name].Compatible(*at); err != nil {
			return fmt.Errorf("pinned map %s: %w", name, err)
		}
		return nil
	})
}

func (p *pins) closeMaps() { _ = p.maps.Close() }

func (p *pins) close() {
	p.closeMaps()
	if p.link != nil {
		_ = p.link.Close()
	}
}

// attachedHere reports whether the interface of this namespace runs the program: it may have been moved
// here with its program on it.
func attachedHere(ifindex int, program ebpf.ProgramID) bool {
	l, err := netlink.LinkByIndex(ifindex)
	return err == nil && l.Attrs().Xdp != nil && l.Attrs().Xdp.Attached && l.Attrs().Xdp.ProgId == uint32(program)
}

// identity is who would pin now: the interface and the network namespace. Inodes of namespaces are used
// again, cookies (Linux 5.14) are not.
func identity(ifindex int) (meta, error) {
	m := meta{ABI: gateABI, Ifindex: uint32(ifindex)} //nolint:gosec // positive
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return m, fmt.Errorf("look at the network namespace: %w", err)
	}
	m.NetnsInode = st.Ino
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return m, fmt.Errorf("look at the network namespace: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if c, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); err == nil {
		m.NetnsCookie = c
	}
	return m, nil
}

// pinner is a map or a program.
type pinner interface {
	Pin(path string) error
	Unpin() error
}

// pinInstead pins x where something else may be pinned, without a time in which nothing is.
func pinInstead(x pinner, dir, name string) error {
	fresh := pinPath(dir, "new_"+name)
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unpin %s: %w", fresh, err)
	}
	if err := x.Pin(fresh); err != nil {
		return fmt.Errorf("pin %s: %w", name, err)
	}
	if err := os.Rename(fresh, pinPath(dir, name)); err != nil {
		return fmt.Errorf("pin %s: %w", name, err)
	}
	return nil
}

// pinAll pins program and maps, the meta map last.
func pinAll(dir string, o *gateObjects) error {
	if err := os.Remove(pinPath(dir, "gate_meta")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unpin gate_meta: %w", err)
	}
	err := o.each(func(name string, at **ebpf.Map) error {
		if name == "gate_meta" {
			return nil
		}
		return pinInstead(*at, dir, name)
	})
	if err == nil {
		err = pinInstead(o.Tidegate, dir, programPin)
	}
	if err == nil {
		err = pinInstead(o.GateMeta, dir, "gate_meta")
	}
	return err
}

// Queues returns the interface's number of rx queues in the caller's network namespace, at least 1.
func (g *Gate) Queues() int {
	if e, err := ethtool.NewEthtool(); err == nil {
		defer e.Close()
		if c, err := e.GetChannels(g.iface); err == nil && c.RxCount+c.CombinedCount > 0 {
			return int(c.RxCount + c.CombinedCount)
		}
	}
	if l, err := netlink.LinkByIndex(g.ifindex); err == nil && l.Attrs().NumRxQueues > 0 {
		return l.Attrs().NumRxQueues
	}
	return 1
}
