package xdp

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Open attaches the program to an interface of the caller's network namespace, or opens what is attached
// and pinned. Pins that do not fit (interface made again, other layout, other sizes, parts missing) are
// replaced; Reattached says so. New maps begin empty, but if only the sizes changed, mode, rules,
// never-block entries and address lists are carried over; sockets, allowed flows and counters are not, and
// other processes find their gates dead (Alive). A program of another build with fitting maps is
// exchanged under traffic, maps kept. Errors: ErrNoInterface, ErrNotEthernet, ErrNotMounted, ErrPins, ErrBusy,
// ErrForeign, ErrNoXDP, *FeatureError, *capability.DeniedError.
func Open(o Options) (*Gate, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.BPFFS == "" {
		o.BPFFS = defaultBPFFS
	}
	g, err := open(o)
	if err != nil {
		return nil, fmt.Errorf("xdp: %s: %w", o.Iface, err)
	}
	return g, nil
}

func open(o Options) (*Gate, error) {
	if o.Mode > ModeTap {
		return nil, fmt.Errorf("unknown mode %s", o.Mode)
	}
	dev, err := net.InterfaceByName(o.Iface)
	if err != nil {
		return nil, fmt.Errorf("%w (%w)", ErrNoInterface, err)
	}
	if len(dev.HardwareAddr) == 0 && dev.Flags&net.FlagLoopback == 0 { // a tunnel, for instance
		return nil, ErrNotEthernet
	}
	if err := mountBPFFS(o.BPFFS); err != nil {
		return nil, err
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		o.Log.Debug("the locked-memory limit stays as it is; kernels before 5.11 may refuse large maps", "error", err)
	}
	dir := pinDir(o.BPFFS, dev.Index, o.Iface)
	lock, err := lockDir(dir)
	if err != nil {
		return nil, explainPins(o.BPFFS, err)
	}
	g := &Gate{dir: dir, iface: o.Iface, ifindex: dev.Index, log: o.Log, lockFile: lock}
	if err = g.attach(o); err == nil {
		if err = g.setMode(o); err != nil {
			_ = g.link.Close()
			_ = g.maps.Close()
		}
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	if err := flock(lock, unix.LOCK_UN); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	g.sweepOlder(o.BPFFS)
	return g, nil
}

// attach fills maps and link from the pins or anew.
func (g *Gate) attach(o Options) error {
	here, err := identity(g.ifindex)
	if err != nil {
		return err
	}
	here.Build = build()
	p := openPins(g.dir)
	why, err := p.mismatch(&here, o)
	if err != nil {
		p.close()
		return err
	}
	if why == "" {
		g.maps, g.link = p.maps, p.link
		if p.meta.Build != here.Build {
			if err := g.upgrade(&here); err != nil {
				p.close()
				return err
			}
			g.log.Info("exchanged the XDP program for this build's, maps kept", "iface", g.iface)
		}
		g.generic = attachedGeneric(g.ifindex)
		return nil
	}
	defer p.closeMaps()
	if why != absent {
		g.reattached = why
		g.log.Warn("attaching anew, counters begin at zero", "iface", g.iface, "reason", why, "rules_kept", p.carries(&here))
	}
	return g.attachNew(o, &here, p)
}

// sized returns the program's description with the geometry's map sizes.
func sized(geo Geometry) (*ebpf.CollectionSpec, error) {
	if geo.Rules > 1<<20 || geo.Hosts > 1<<26 || geo.Prefixes > 1<<26 || geo.Flows > 1<<26 || geo.Never > 1<<20 || geo.Sources > 1<<28 {
		return nil, fmt.Errorf("geometry %+v: too large", geo)
	}
	spec, err := loadGate()
	if err != nil {
		return nil, fmt.Errorf("read the embedded XDP object: %w", err)
	}
	for name, n := range map[string]int{
		"gate_rules": geo.ruleBuckets(), "gate_hits": geo.Rules, "gate_state": geo.Rules, "gate_hosts": geo.Hosts,
		"gate_prefixes": geo.Prefixes, "gate_flows": geo.Flows, "gate_never": geo.Never,
		"gate_sources": geo.sourceLines(),
	} {
		spec.Maps[name].MaxEntries = uint32(n) //nolint:gosec // bounded above
	}
	return spec, nil
}

// attachNew loads program and maps, puts the program onto the interface and pins all. The meta map is
// pinned last: pins without it are of an Open that died.
func (g *Gate) attachNew(o Options, here *meta, old *pins) (err error) {
	carry := old.carries(here)
	geo := o.Geometry
	if carry {
		geo = geo.or(old.meta.geometry())
	}
	geo = geo.or(DefaultGeometry())
	spec, err := sized(geo)
	if err != nil {
		return err
	}
	here.Rules, here.RuleBuckets = uint32(geo.Rules), uint32(geo.ruleBuckets()) //nolint:gosec // bounded by sized
	here.Hosts, here.Prefixes = uint32(geo.Hosts), uint32(geo.Prefixes)         //nolint:gosec // as above
	here.Flows, here.Never = uint32(geo.Flows), uint32(geo.Never)               //nolint:gosec // as above
	here.Sources, here.Seed = uint32(geo.Sources), rand.Uint64()                //nolint:gosec // as above
	var objs gateObjects
	if err := spec.LoadAndAssign(&objs, nil); err != nil {
		return loadError(err)
	}
	defer func() {
		_ = objs.gatePrograms.Close()
		if err != nil {
			_ = objs.gateMaps.Close()
		}
	}()
	g.maps = objs.gateMaps
	if err := g.maps.GateMeta.Update(uint32(0), here, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("write the meta map: %w", err)
	}
	if carry {
		if err := g.carryOver(&old.maps); err != nil {
			return fmt.Errorf("carry the settings and rules over: %w", err)
		}
	}
	if err := g.setMode(o); err != nil { // before the first packet
		return err
	}
	if old.link != nil && old.ifindex == g.ifindex {
		if err := old.link.Update(objs.Tidegate); err != nil {
			_ = old.link.Close()
			return fmt.Errorf("exchange the XDP program: %w", err)
		}
		g.link, g.generic = old.link, attachedGeneric(g.ifindex)
	} else {
		if old.link != nil {
			_ = old.link.Close()
		}
		if err := os.Remove(pinPath(g.dir, linkPin)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("unpin the dead link: %w", err)
		}
		if g.link, g.generic, err = attachXDP(objs.Tidegate, g.ifindex, g.log.With("iface", g.iface)); err != nil {
			return err
		}
		if err := g.link.Pin(pinPath(g.dir, linkPin)); err != nil {
			return errors.Join(fmt.Errorf("pin the link: %w", err), g.link.Close())
		}
	}
	if err := pinAll(g.dir, &objs); err != nil {
		return errors.Join(err, g.link.Close())
	}
	return nil
}

// Probe loads the program with small maps and attaches nothing. It fails as Open does where the process lacks a right or
// the kernel a feature.
func Probe() error {
	spec, err := sized(Geometry{Rules: 1, Hosts: 1, Prefixes: 1, Flows: 1, Never: 1, Sources: 1})
	if err != nil {
		return err
	}
	var objs gateObjects
	if err := spec.LoadAndAssign(&objs, nil); err != nil {
		return loadError(err)
	}
	return objs.Close()
}

func attachXDP(p *ebpf.Program, ifindex int, log *slog.Logger) (l link.Link, generic bool, err error) {
	attach := func(f link.XDPAttachFlags) (link.Link, error) {
		return link.AttachXDP(link.XDPOptions{Program: p, Interface: ifindex, Flags: f})
	}
	l, err = attach(link.XDPDriverMode)
	if err == nil {
		return l, false, nil
	}
	switch {
	case errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST):
		return nil, false, fmt.Errorf("%w (%w)", ErrBusy, err)
	case denied(err) != nil:
		return nil, false, fmt.Errorf("attach the XDP program: %w", denied(err))
	}
	native := err
	if l, err = attach(link.XDPGenericMode); err != nil {
		switch {
		case errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST):
			return nil, false, fmt.Errorf("%w (%w)", ErrBusy, err)
		case errors.Is(err, ebpf.ErrNotSupported):
			return nil, false, &FeatureError{Feature: "XDP attached by a BPF link", Kernel: "5.9", Err: err}
		}
		return nil, false, fmt.Errorf("%w (native: %w, generic: %w)", ErrNoXDP, native, err)
	}
	log.Warn("the driver has no native XDP, using generic XDP, which is several times slower", "error", native)
	return l, true, nil
}

// upgrade puts this build's program in place of the attached one, on the same maps.
func (g *Gate) upgrade(here *meta) error {
	var old meta
	if err := g.maps.GateMeta.Lookup(uint32(0), &old); err != nil {
		return fmt.Errorf("read the meta map: %w", err)
	}
	spec, err := sized(old.geometry())
	if err != nil {
		return err
	}
	var progs gatePrograms
	if err := spec.LoadAndAssign(&progs, &ebpf.CollectionOptions{MapReplacements: g.maps.byName()}); err != nil {
		return loadError(err)
	}
	defer func() { _ = progs.Close() }()
	if err := g.link.Update(progs.Tidegate); err != nil {
		return fmt.Errorf("exchange the XDP program: %w", err)
	}
	if err := pinInstead(progs.Tidegate, g.dir, programPin); err != nil {
		return err
	}
	old.Build = here.Build
	if err := g.maps.GateMeta.Update(uint32(0), &old, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("write the meta map: %w", err)
	}
	return nil
}

// setMode writes mode, fail-closed and peer; with ModeKeep it changes nothing.
func (g *Gate) setMode(o Options) error {
	if o.Mode == ModeKeep {
		return nil
	}
	if o.Mode == ModeInline {
		if o.Peer == "" {
			return errors.New("inline mode needs the other port: name it as Peer")
		}
		peer, err := net.InterfaceByName(o.Peer)
		if err != nil {
			return fmt.Errorf("peer %s: %w (%w)", o.Peer, ErrNoInterface, err)
		}
		if err := g.maps.GatePeer.Update(uint32(0), uint32(peer.Index), ebpf.UpdateAny); err != nil { //nolint:gosec // positive
			return fmt.Errorf("peer %s: make it the target of forwarding: %w", o.Peer, err)
		}
	}
	return g.setConfig(func(c *config) {
		c.Mode = kernelModes[o.Mode]
		c.FailClosed = 0
		if o.FailClosed {
			c.FailClosed = 1
		}
	})
}

// sweepOlder removes pins of earlier interfaces of this name, which a new interface with another number
// leaves behind.
func (g *Gate) sweepOlder(root string) {
	dirs, err := pinFolders(root)
	if err != nil {
		g.log.Warn("cannot look for older pins", "error", err)
		return
	}
	suffix := g.dir[strings.LastIndexByte(g.dir, '/')+1:]
	_, suffix, _ = strings.Cut(suffix, "-")
	for _, dir := range dirs {
		_, name, _ := strings.Cut(dir[strings.LastIndexByte(dir, '/')+1:], "-")
		if dir == g.dir || name != suffix || !pinned(dir) {
			continue
		}
		f, err := lockDir(dir)
		if err != nil {
			continue
		}
		if dead(dir) && removePins(dir) == nil {
			why := "the interface was deleted and made again; its old pins are removed"
			if g.reattached == "" {
				g.reattached = why
			}
			g.log.Warn(why, "iface", g.iface, "pins", dir)
		}
		_ = f.Close()
	}
}

func pinned(dir string) bool {
	_, err := os.Stat(pinPath(dir, linkPin))
	return err == nil
}

// attachedGeneric asks the interface which of its XDP slots is taken.
func attachedGeneric(ifindex int) bool {
	l, err := netlink.LinkByIndex(ifindex)
	return err == nil && l.Attrs().Xdp != nil && l.Attrs().Xdp.AttachMode == nl.XDP_ATTACHED_SKB
}
