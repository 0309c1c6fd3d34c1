package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/safchain/ethtool"
	"golang.org/x/sys/unix"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/netlab"
)

// Delays of the line, one way, between the mirror port and either end.
const (
	toClient = 5 * time.Millisecond
	toServer = 10 * time.Millisecond
)

// Of the server's large frames from lossyPort each of lossEvery is lost behind the mirror port. As much goes through
// soundPort, and little through the ports behind it.
const (
	lossEvery            = 50
	lossyPort, soundPort = 8001, 8002
	connections          = 15
)

// line is a long one between a client and a server, with a mirror port on it: it copies frames between the interfaces of one
// namespace, each end's after its delay.
type line struct {
	client, server, mirror int // sockets
	lost                   atomic.Uint64
}

func newLine(ns *netlab.NS, client, server, mirror string) (*line, error) {
	l := &line{}
	return l, ns.Do(func() error {
		tool, err := ethtool.NewEthtool()
		if err != nil {
			return err
		}
		defer tool.Close()
		for name, fd := range map[string]*int{client: &l.client, server: &l.server, mirror: &l.mirror} {
			if err := tool.Change(name, map[string]bool{"rx-gro": false}); err != nil { // frames as they are on the wire
				return err
			}
			iface, err := net.InterfaceByName(name)
			if err != nil {
				return err
			}
			const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in network order
			if *fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all); err != nil {
				return err
			}
			if err := unix.Bind(*fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: iface.Index}); err != nil {
				return err
			}
			if err := unix.SetsockoptInt(*fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
				return err
			}
			if err := unix.SetsockoptTimeval(*fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
				return err
			}
		}
		return nil
	})
}

// carry takes frames from one end to the other until stop is closed; lose tells which are lost behind the mirror port.
func (l *line) carry(stop <-chan struct{}, from, to int, before, after time.Duration, lose func(frame []byte) bool) {
	type frame struct {
		b   []byte
		due time.Time
	}
	near, far := make(chan frame, 1<<14), make(chan frame, 1<<14)
	go func() {
		defer close(far)
		for f := range near {
			time.Sleep(time.Until(f.due))
			_, _ = unix.Write(l.mirror, f.b)
			if !lose(f.b) {
				far <- frame{f.b, f.due.Add(after)}
			}
		}
	}()
	go func() {
		defer close(near)
		for {
			select {
			case <-stop:
				return
			default:
			}
			b := make([]byte, 2048)
			n, sa, err := unix.Recvfrom(from, b, 0)
			if err != nil {
				continue // nothing for a while
			}
			if ll, ok := sa.(*unix.SockaddrLinklayer); ok && ll.Pkttype != unix.PACKET_OUTGOING {
				near <- frame{b[:n], time.Now().Add(before)}
			}
		}
	}()
	for f := range far {
		time.Sleep(time.Until(f.due))
		_, _ = unix.Write(to, f.b)
	}
}

// TestRoundTripAndRetransmits: two kernels talk TCP over a line with delay and loss, and what the sensor at its mirror port
// measures is what they measure: the round trip in its parts, and the segments that the server sent again.
func TestRoundTripAndRetransmits(t *testing.T) {
	rig.NeedRoot(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	const prefix = "tgrtt"
	_, err := netlab.Sweep(prefix)
	must(err)
	lab, err := netlab.New(prefix)
	must(err)
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	spaces := map[string]*netlab.NS{}
	for _, name := range []string{"client", "server", "line", "sensor"} {
		spaces[name], err = lab.Namespace(name)
		must(err)
	}
	clientAddr, serverAddr := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	clientMAC, serverMAC := net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}
	must(lab.Veth(netlab.End{NS: spaces["client"], Name: "client0", Addrs: []netip.Prefix{netip.PrefixFrom(clientAddr, 24)}, MAC: clientMAC},
		netlab.End{NS: spaces["line"], Name: "lineclient"}, 1))
	must(lab.Veth(netlab.End{NS: spaces["server"], Name: "server0", Addrs: []netip.Prefix{netip.PrefixFrom(serverAddr, 24)}, MAC: serverMAC},
		netlab.End{NS: spaces["line"], Name: "lineserver"}, 1))
	must(lab.Veth(netlab.End{NS: spaces["sensor"], Name: "tap0"}, netlab.End{NS: spaces["line"], Name: "linemirror"}, 1))
	must(spaces["client"].Neigh("client0", serverAddr, serverMAC))
	must(spaces["server"].Neigh("server0", clientAddr, clientMAC))

	h := &rig.Host{Host: spaces["sensor"], BPFFS: filepath.Join(t.TempDir(), "bpf")}
	unmount, err := netlab.BPFFS(h.BPFFS)
	must(err)
	t.Cleanup(func() {
		if err := unmount(); err != nil {
			t.Error(err)
		}
	})
	h.Run(t, "--mode", "tap", "--iface", "tap0")

	l, err := newLine(spaces["line"], "lineclient", "lineserver", "linemirror")
	must(err)
	stop := make(chan struct{})
	defer close(stop)
	go l.carry(stop, l.client, l.server, toClient, toServer, func([]byte) bool { return false })
	large := 0
	go l.carry(stop, l.server, l.client, toServer, toClient, func(b []byte) bool {
		const sourcePort = 14 + 20 // IPv4 without options
		if len(b) < 1000 || int(b[sourcePort])<<8|int(b[sourcePort+1]) != lossyPort {
			return false
		}
		if large++; large%lossEvery != 0 {
			return false
		}
		l.lost.Add(1)
		return true
	})

	again := map[uint16]uint32{}
	for port := uint16(lossyPort); port < lossyPort+connections; port++ {
		size := int64(10_000)
		if port <= soundPort {
			size = 3 << 20
		}
		again[port], err = download(spaces["client"], spaces["server"], netip.AddrPortFrom(serverAddr, port), size)
		must(err)
	}
	var toServerUs, toClientUs []uint32
	for port, again := range again {
		var f api.Flow // the only one, else its text is not one object
		must(rig.Eventually(20*time.Second, func() error { return h.Ask(t, &f, "flows", "--port", strconv.Itoa(int(port))) }))
		if f.TCP == nil || f.EndReason != "fin" || f.TCP.RTTUs != f.TCP.RTTClientUs+f.TCP.RTTServerUs || f.TCP.RetransmitsFwd != 0 {
			t.Fatalf("port %d: %+v, %+v", port, f, f.TCP)
		}
		toServerUs, toClientUs = append(toServerUs, f.TCP.RTTServerUs), append(toClientUs, f.TCP.RTTClientUs)
		if f.TCP.RetransmitsRev != again {
			t.Errorf("port %d: %d retransmits of %d packets, the server's kernel says %d", port, f.TCP.RetransmitsRev, f.PacketsRev, again)
		}
	}
	lost := l.lost.Load()
	if lost < 20 || uint64(again[lossyPort]) < lost {
		t.Errorf("%d frames were lost and %d sent again", lost, again[lossyPort])
	}
	// Frames are stamped when the sensor takes them, which a busy machine may let it do late: half of them must be right.
	slices.Sort(toServerUs)
	slices.Sort(toClientUs)
	t.Logf("lost %d, sent again %v; round trips in µs to the server %v, to the client %v", lost, again, toServerUs, toClientUs)
	for name, d := range map[string][2]time.Duration{
		"server": {2 * toServer, time.Duration(toServerUs[connections/2]) * time.Microsecond},
		"client": {2 * toClient, time.Duration(toClientUs[connections/2]) * time.Microsecond},
	} {
		if want, got := d[0], d[1]; got < want-2*time.Millisecond || got > want+want/2 {
			t.Errorf("the round trip to the %s is %v, want about %v", name, got, want)
		}
	}
}

// download moves size bytes from a server to a client, and returns how many segments the server's kernel sent again.
func download(client, server *netlab.NS, addr netip.AddrPort, size int64) (again uint32, err error) {
	var ln net.Listener
	if err := server.Do(func() (err error) { ln, err = net.Listen("tcp", addr.String()); return err }); err != nil {
		return 0, err
	}
	defer func() { _ = ln.Close() }()
	served := make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			served <- err
			return
		}
		defer func() { _ = c.Close() }()
		if _, err := io.CopyN(c, zeros{}, size); err != nil {
			served <- err
			return
		}
		if _, err := io.Copy(io.Discard, c); err != nil { // the client closes when it has all
			served <- err
			return
		}
		tcp, ok := c.(*net.TCPConn)
		if !ok {
			served <- fmt.Errorf("a connection is %T", c)
			return
		}
		raw, err := tcp.SyscallConn()
		if err != nil {
			served <- err
			return
		}
		var info *unix.TCPInfo
		err2 := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }) //nolint:gosec // a file descriptor
		if err = errors.Join(err, err2); err == nil {
			again = info.Total_retrans
		}
		served <- err
	}()
	var conn net.Conn
	if err := client.Do(func() (err error) { conn, err = net.Dial("tcp", addr.String()); return err }); err != nil {
		return 0, err
	}
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	n, err := io.CopyN(io.Discard, conn, size)
	if err := errors.Join(err, conn.Close()); err != nil {
		return 0, fmt.Errorf("after %d bytes: %w", n, err)
	}
	err = <-served
	return again, err
}

// zeros is an endless file of them.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }
