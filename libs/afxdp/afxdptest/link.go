// Package afxdptest is the conformance suite that every backend of afxdp passes, on a veth whose near end
// has a small redirecting XDP program and whose far end sits in a namespace of its own.
package afxdptest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tidegate-mesh/tidegate/libs/afxdp"
	"github.com/tidegate-mesh/tidegate/libs/netlab"
)

// EtherType marks the suite's frames (IEEE 802 local experimental 1), so that what the kernel sends by
// itself on a link is told apart.
const EtherType = 0x88B5

// Link is a veth with a redirecting program on Near, unless it is plain, and a packet socket on the far end.
type Link struct {
	Near string
	peer int // AF_PACKET socket in the far namespace
	far  int // ifindex of the far end
	ns   *netlab.NS
	xsks *ebpf.Map
	pair *Link // Open opens a pair with it; nil: one socket
}

// NewLink makes the link with the given number of queues; the test's end removes it. Without root the test
// is skipped, or fails when TIDEGATE_CI is 1.
func NewLink(t testing.TB, queues int) *Link {
	t.Helper()
	l := NewPlainLink(t, queues)
	l.attach(t)
	return l
}

// NewLinks makes two links of one queue, whose near ends a pair of sockets may bridge.
func NewLinks(t testing.TB) (a, b *Link) {
	t.Helper()
	return NewLinksNamed(t, "tgx")
}

// NewLinksNamed is NewLinks beside others of the test; the prefix has at most five letters.
func NewLinksNamed(t testing.TB, prefix string) (a, b *Link) {
	t.Helper()
	a, b = newPlainLink(t, prefix, 1), newPlainLink(t, prefix+"b", 1)
	a.attach(t)
	b.attach(t)
	return a, b
}

// NewPlainLink makes a link without an XDP program.
func NewPlainLink(t testing.TB, queues int) *Link {
	t.Helper()
	return newPlainLink(t, "tgx", queues)
}

func newPlainLink(t testing.TB, prefix string, queues int) *Link {
	t.Helper()
	RequireRoot(t)
	lab, err := netlab.New(prefix)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	ns, err := lab.Namespace("peer")
	if err != nil {
		t.Fatal(err)
	}
	l := &Link{Near: netlab.Ifname(prefix, "n"), peer: -1, ns: ns}
	if err := lab.Veth(netlab.End{Name: l.Near}, netlab.End{NS: ns, Name: "far"}, queues); err != nil {
		t.Fatal(err)
	}
	err = ns.Do(func() error {
		ifi, err := net.InterfaceByName("far")
		if err != nil {
			return err
		}
		l.far = ifi.Index
		l.peer, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		const receiveBuffer = 16 << 20
		_ = unix.SetsockoptInt(l.peer, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer)
		// Past the queueing discipline a frame takes the queue of the sending CPU.
		if err := unix.SetsockoptInt(l.peer, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
			return err
		}
		return unix.Bind(l.peer, &unix.SockaddrLinklayer{Protocol: htons(EtherType), Ifindex: l.far})
	})
	if l.peer >= 0 {
		t.Cleanup(func() { _ = unix.Close(l.peer) })
	}
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// RequireRoot skips the test for other users, or fails it in CI.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("TIDEGATE_CI") == "1" {
		t.Fatal("AF_XDP tests need root")
	}
	t.Skip("AF_XDP tests need root")
}

// attach puts a program on Near that sends every frame to the socket of its queue, and drops it when there
// is none.
func (l *Link) attach(t testing.TB) {
	t.Helper()
	var err error
	l.xsks, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.XSKMap, KeySize: 4, ValueSize: 4, MaxEntries: 64})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.xsks.Close() })
	const (
		queueField = 16 // offsetof(struct xdp_md, rx_queue_index)
		drop       = 1  // XDP_DROP
	)
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, queueField, asm.Word),
		asm.LoadMapPtr(asm.R1, l.xsks.FD()),
		asm.Mov.Imm(asm.R3, drop),
		asm.FnRedirectMap.Call(),
		asm.Return(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = prog.Close() })
	ifi, err := net.InterfaceByName(l.Near)
	if err != nil {
		t.Fatal(err)
	}
	attached, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: ifi.Index, Flags: link.XDPDriverMode})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = attached.Close() })
}

// Open opens a socket on the link and puts it into the program's map; the test's end closes it.
func (l *Link) Open(t testing.TB, cfg afxdp.Config) afxdp.Socket {
	t.Helper()
	if l.pair != nil {
		return l.OpenPair(t, l.pair, cfg).A
	}
	s, err := afxdp.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l.adopt(t, cfg.Queue, s)
	return s
}

// OpenPair opens a pair, with the other link's socket as B, as Open does with one.
func (l *Link) OpenPair(t testing.TB, other *Link, cfg afxdp.Config) afxdp.Pair {
	t.Helper()
	b := cfg
	b.Iface = other.Near
	p, err := afxdp.OpenPair(cfg, b)
	if err != nil {
		t.Fatal(err)
	}
	l.adopt(t, cfg.Queue, p.A)
	other.adopt(t, cfg.Queue, p.B)
	return p
}

func (l *Link) adopt(t testing.TB, queue int, s afxdp.Socket) {
	t.Helper()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	l.Register(t, queue, s)
}

// Register puts a socket into the program's map.
func (l *Link) Register(t testing.TB, queue int, s afxdp.Socket) {
	t.Helper()
	if err := l.xsks.Put(uint32(queue), uint32(s.FD())); err != nil { //nolint:gosec // small numbers
		t.Fatal(err)
	}
}

// Set brings Near up or down.
func (l *Link) Set(t testing.TB, up bool) {
	t.Helper()
	near, err := netlink.LinkByName(l.Near)
	if err == nil && up {
		err = netlink.LinkSetUp(near)
	} else if err == nil {
		err = netlink.LinkSetDown(near)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Inject sends a frame from the far end.
func (l *Link) Inject(frame []byte) error {
	for {
		err := unix.Sendto(l.peer, frame, 0, &unix.SockaddrLinklayer{Ifindex: l.far, Halen: 6})
		if !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
			return err
		}
		runtime.Gosched()
	}
}

// Arrived reads one frame of the suite at the far end, or says that none came within the timeout.
func (l *Link) Arrived(buf []byte, timeout time.Duration) (int, error) {
	p := []unix.PollFd{{Fd: int32(l.peer), Events: unix.POLLIN}} //nolint:gosec // small number
	for {
		n, err := unix.Poll(p, int(timeout.Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, err
		}
		if n == 0 {
			return 0, fmt.Errorf("nothing arrived within %v", timeout)
		}
		n, from, err := unix.Recvfrom(l.peer, buf, 0)
		if err != nil {
			return 0, err
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		return n, nil
	}
}

// Frame writes test frame i of the given length (at least 20) into buf: addresses, EtherType, the number,
// and bytes that depend on it.
func Frame(buf []byte, i, length int) []byte {
	f := buf[:length]
	copy(f, []byte{0x02, 0, 0, 0, 0, 2, 0x02, 0, 0, 0, 0, 1})
	binary.BigEndian.PutUint16(f[12:], EtherType)
	binary.BigEndian.PutUint32(f[14:], uint32(i)) //nolint:gosec // a count
	for j := 18; j < length; j++ {
		f[j] = byte(i + j)
	}
	return f
}

// Number is the inverse of Frame; ok is false for frames that the suite did not make.
func Number(f []byte) (i int, ok bool) {
	if len(f) < 18 || binary.BigEndian.Uint16(f[12:]) != EtherType {
		return 0, false
	}
	return int(binary.BigEndian.Uint32(f[14:])), true
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }
