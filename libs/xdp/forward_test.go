package xdp

import (
	"bytes"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tidegate-mesh/tidegate/libs/policy"
)

// TestForward sends frames in at one port and takes them off the other's far end: what is forwarded in the
// kernel arrives, byte for byte, and what is dropped does not.
func TestForward(t *testing.T) {
	r := newRig(t, 1)
	g := r.open(t, Options{Mode: ModeInline})
	must(t, g.PutRules([]Rule{{ID: 1, Action: policy.Drop, Match: policy.Match{Dst: pfx("198.51.100.0/24")}}}))
	var in, out int
	far := func(iface string, fd *int) {
		must(t, r.outer.Do(func() error {
			dev, err := net.InterfaceByName(iface)
			if err != nil {
				return err
			}
			if *fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
				return err
			}
			const everything = 0x0300 // ETH_P_ALL in network order
			if err := unix.SetsockoptTimeval(*fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 300000}); err != nil {
				return err
			}
			return unix.Bind(*fd, &unix.SockaddrLinklayer{Ifindex: dev.Index, Protocol: everything})
		}))
		t.Cleanup(func() { _ = unix.Close(*fd) })
	}
	far("leftx", &in)
	far("rightx", &out)
	passing := [][]byte{udp("192.0.2.1", "203.0.113.7").frame(t), tcp("2001:db8::1", "2001:db8::2", "S").frame(t), udp("192.0.2.1", "203.0.113.7").with(func(p *pkt) { p.payload = 1400 }).frame(t)}
	stopped := udp("192.0.2.1", "198.51.100.7").frame(t)
	for range 50 {
		for _, f := range append(passing, stopped) {
			_, err := unix.Write(in, f)
			must(t, err)
		}
		time.Sleep(100 * time.Microsecond)
	}
	buf := make([]byte, 2048)
	got := 0
	for {
		n, err := unix.Read(out, buf)
		if err != nil {
			break
		}
		known := false
		for _, f := range passing {
			known = known || bytes.Equal(f, buf[:n])
		}
		if !known {
			t.Fatalf("a frame of %d bytes arrived that was not sent to pass", n)
		}
		got++
	}
	if got != 150 {
		t.Errorf("%d frames arrived, want 150", got)
	}
	if c := counters(t, g); c.Seen != 200 || c.Drop != 50 || c.Forward != 150 {
		t.Errorf("%+v", c)
	}
}

// TestGeneric: loopback has no native XDP; the fallback says so, works and is known again at the next Open.
func TestGeneric(t *testing.T) {
	r := newRig(t, 1)
	var said bytes.Buffer
	log := slog.New(slog.NewTextHandler(&said, nil))
	g := r.open(t, Options{Iface: "lo", Mode: ModeHost, Log: log})
	if !g.Generic() || !strings.Contains(said.String(), "generic") {
		t.Errorf("generic %t, said %q", g.Generic(), said.String())
	}
	must(t, g.PutRules([]Rule{{ID: 1, Action: policy.Drop, Match: policy.Match{HasProtocol: true, Protocol: 17}}}))
	must(t, r.gate.Do(func() error {
		c, err := net.Dial("udp", "127.0.0.1:9")
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		_, err = c.Write([]byte("x"))
		return err
	}))
	if c := settle(t, g, 1); c.Drop != 1 {
		t.Errorf("%+v", c)
	}
	if again := r.open(t, Options{Iface: "lo"}); !again.Generic() || again.Reattached() != "" {
		t.Errorf("opened again: generic %t, %q", again.Generic(), again.Reattached())
	}
	native := r.open(t, Options{Mode: ModeHost})
	if again := r.open(t, Options{}); native.Generic() || again.Generic() {
		t.Error("veth is said to be generic")
	}
}
