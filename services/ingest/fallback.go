package ingest

import (
	"errors"
	"fmt"
	"net"
	"runtime"

	"github.com/tidegate-mesh/tidegate/libs/afpacket"
	"github.com/tidegate-mesh/tidegate/libs/afxdp"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
)

// Values of Config.Capture.
const (
	CaptureAuto     = "auto"
	CaptureAFXDP    = "af_xdp"
	CaptureAFPacket = "af_packet"
)

// captureRing is host mode's way.
const captureRing = "ring_buffer"

// captureKinds are the values of the metric's label.
var captureKinds = []string{CaptureAFXDP, CaptureAFPacket, captureRing, captureFile, "none"}

// maxPacketWorkers bounds the workers that AF_PACKET gets where their number is not given.
const maxPacketWorkers = 8

// errNoFallback is why AF_PACKET does not take over.
var errNoFallback = errors.New("AF_PACKET, the fallback of tap mode, cannot hold frames back or send them on")

// openPlane opens the interfaces by AF_XDP, or in tap mode by AF_PACKET where AF_XDP cannot be had.
func (s *Service) openPlane() (p *plane, err error) {
	if !s.opened {
		passed := s.passing()
		defer func() {
			if s.opened = err == nil; err != nil {
				s.pass(passed)
			}
		}()
	}
	if s.cfg.Mode != ModeHost {
		if err := refuseLoopback(s.cfg.Ifaces); err != nil {
			return nil, err
		}
	}
	if s.cfg.Capture == CaptureAFPacket {
		return s.openPackets(nil)
	}
	p, err = s.openXDP()
	switch {
	case err == nil:
		s.hadXDP = true
		return p, nil
	case s.cfg.Capture == CaptureAFXDP || s.hadXDP || !replaceable(s.cfg.Ifaces, err):
		return nil, err
	case s.cfg.Mode != ModeTap:
		return nil, fmt.Errorf("%w (%w)", err, errNoFallback)
	}
	s.tel.CountError("af_xdp")
	s.tel.Log.Warn("AF_XDP cannot be had; frames are read by AF_PACKET, which is several times slower", "error", err)
	p, second := s.openPackets(err)
	if second != nil {
		return nil, fmt.Errorf("%w; AF_PACKET: %w", err, second)
	}
	return p, nil
}

// passing lists the interfaces whose packets come to the machine's stack though there is a gate, or will be.
func (s *Service) passing() (names []string) {
	for _, name := range s.cfg.Ifaces {
		if _, err := net.InterfaceByName(name); err != nil {
			return nil
		}
	}
	for _, name := range s.cfg.Ifaces {
		g, err := xdp.Open(xdp.Options{Iface: name, BPFFS: s.cfg.BPFFS, Geometry: xdp.DefaultGeometry(), Log: s.tel.Log})
		if err != nil {
			continue // opening it again says what is wrong
		}
		if g.Mode() == xdp.ModeHost {
			names = append(names, name)
		}
		_ = g.Close()
	}
	return names
}

// pass gives interfaces back that a start has opened in vain: a bridge or a mirror port without a reader would keep their
// packets from the machine. What an earlier sensor kept from it stays so.
func (s *Service) pass(names []string) {
	for _, name := range names {
		g, err := xdp.Open(xdp.Options{Iface: name, BPFFS: s.cfg.BPFFS, Mode: xdp.ModeHost, Log: s.tel.Log})
		if err != nil {
			s.tel.Log.Error("packets may not come to this machine any more; tidegate detach takes the program off", "iface", name, "error", err)
			continue
		}
		_ = g.Close()
	}
}

// replaceable tells whether AF_PACKET could do what AF_XDP could not: not for an interface that is away or carries no
// Ethernet, and not beside another sensor, from which it would take the frames.
func replaceable(ifaces []string, err error) bool {
	for _, name := range ifaces {
		if _, e := net.InterfaceByName(name); e != nil {
			return false
		}
	}
	return !errors.Is(err, xdp.ErrNotEthernet) && !errors.Is(err, afxdp.ErrQueueBusy)
}

// openPackets gives every worker an AF_PACKET socket on every interface. The interfaces' gates are opened where they can
// be, to count what rules would have stopped, and pass everything: AF_PACKET gets what XDP lets through. why says what
// AF_XDP lacked; nil: it was not asked for.
func (s *Service) openPackets(why error) (_ *plane, err error) {
	if err := refuseSecond(s.cfg.Ifaces); err != nil {
		return nil, err
	}
	p := &plane{packets: true}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	workers := s.cfg.PacketWorkers
	switch {
	case workers > 0:
	case s.cfg.Tunnels == TunnelsInner:
		workers = 1 // frames are shared out by their outer headers, which may differ between a flow's directions
	default:
		workers = min(runtime.NumCPU(), maxPacketWorkers)
	}
	for i, name := range s.cfg.Ifaces {
		ifi, err := net.InterfaceByName(name)
		if err != nil {
			return nil, fmt.Errorf("interface %s: %w", name, afpacket.ErrNoInterface)
		}
		q := &port{name: name, index: uint8(i), ifindex: ifi.Index, counts: s.counts[i]} //nolint:gosec // 0 or 1
		p.ports = append(p.ports, q)
		q.gate, err = xdp.Open(xdp.Options{
			Iface: name, BPFFS: s.cfg.BPFFS, Mode: xdp.ModeTap, PassUnread: true, Geometry: xdp.DefaultGeometry(), Log: s.tel.Log,
		})
		switch {
		case err != nil:
			q.gate = nil
			if why == nil || err.Error() != why.Error() {
				s.tel.Log.Warn("the XDP program cannot be had; what rules would stop is not counted on the interface", "iface", name, "error", err)
			}
		default:
			if q.base, err = q.gate.Counters(); err != nil {
				return nil, err
			}
		}
		cfg := s.cfg.packets(name)
		cfg.Readers = workers
		if q.packets, err = afpacket.Open(cfg); err != nil {
			return nil, err
		}
		if on, err := afpacket.Joins(name); err == nil && on {
			s.tel.Log.Warn("the interface joins segments before they are read, so there are fewer packets than on the wire: ethtool -K "+
				name+" gro off lro off", "iface", name)
		}
		q.counts.capture.Store(describePackets(workers, cfg.Fanout, why))
		q.counts.kind.Store(CaptureAFPacket)
	}
	return p, nil
}

func describePackets(workers int, fanout string, why error) string {
	d := "af_packet"
	if workers > 1 {
		d += " by " + fanout
	}
	if why != nil {
		d += " (no AF_XDP: " + why.Error() + ")"
	}
	return d
}
