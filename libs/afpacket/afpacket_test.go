package afpacket_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tidegate-mesh/tidegate/libs/afpacket"
	"github.com/tidegate-mesh/tidegate/libs/afxdp"
	"github.com/tidegate-mesh/tidegate/libs/afxdp/afxdptest"
	"github.com/tidegate-mesh/tidegate/libs/packet"
)

const patience = 5 * time.Second

func open(t *testing.T, cfg afpacket.Config) []*afpacket.Socket {
	t.Helper()
	list, err := afpacket.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		t.Cleanup(func() {
			if err := errors.Join(s.Close(), s.Close()); err != nil {
				t.Error(err)
			}
		})
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
	}
	return list
}

func TestReceiver(t *testing.T) {
	afxdptest.RunReceiver(t, func(t *testing.T, l *afxdptest.Link) afxdp.Receiver {
		return open(t, afpacket.DefaultConfig(l.Near))[0]
	})
}

// read copies the suite's frames, and those that want takes, until there are n or patience ends.
func read(t *testing.T, s *afpacket.Socket, n int, want func([]byte) bool) (list [][]byte) {
	t.Helper()
	frames := make([]afxdp.Frame, 7) // no divisor of a block's
	for end := time.Now().Add(patience); len(list) < n && time.Now().Before(end); {
		if _, err := s.Wait(5 * time.Millisecond); err != nil {
			t.Fatal(err)
		}
		for _, f := range frames[:s.Receive(frames)] {
			if want(f.Data) {
				list = append(list, bytes.Clone(f.Data))
			}
		}
		s.Release()
	}
	return list
}

func numbered(f []byte) bool { _, ok := afxdptest.Number(f); return ok }

func inject(t *testing.T, l *afxdptest.Link, f []byte) {
	t.Helper()
	if err := l.Inject(f); err != nil {
		t.Fatal(err)
	}
}

// The kernel takes the outer tag out of each frame; the reader must see what was on the wire.
func TestVLANTags(t *testing.T) {
	l := afxdptest.NewPlainLink(t, 1)
	s := open(t, afpacket.DefaultConfig(l.Near))[0]
	h := packet.Header{
		DstMAC: [6]byte{2, 0, 0, 0, 0, 2}, SrcMAC: [6]byte{2, 0, 0, 0, 0, 1},
		Src: netip.MustParseAddr("192.0.2.1"), Dst: netip.MustParseAddr("192.0.2.2"),
	}
	tagged, double := h, h
	tagged.VLAN = 100
	double.VLAN, double.InnerVLAN = 4094, 7
	payload := []byte("tidegate vlan")
	sent := [][]byte{h.AppendUDP(nil, 1, 2, payload), tagged.AppendUDP(nil, 1, 2, payload), double.AppendUDP(nil, 1, 2, payload)}
	prioritised := bytes.Clone(sent[1])
	binary.BigEndian.PutUint16(prioritised[14:], 5<<13|1<<12|100) // priority and DEI are part of the tag
	sent = append(sent, prioritised)
	for _, f := range sent {
		inject(t, l, f)
	}
	got := read(t, s, len(sent), func(f []byte) bool { return bytes.Contains(f, payload) })
	if len(got) != len(sent) {
		t.Fatalf("%d of %d frames arrived", len(got), len(sent))
	}
	for i := range sent {
		if !bytes.Equal(got[i], sent[i]) {
			t.Errorf("frame %d\narrived as %x\nsent as    %x", i, got[i], sent[i])
		}
	}
	var p packet.Packet
	if r := p.Decode(got[2]); r != packet.OK || p.VLAN != 4094 {
		t.Errorf("decoded %v, VLAN %d", r, p.VLAN)
	}
}

// What this machine sends itself is not what the interface receives.
func TestOutgoing(t *testing.T) {
	l := afxdptest.NewPlainLink(t, 1)
	s := open(t, afpacket.DefaultConfig(l.Near))[0]
	ifi, err := net.InterfaceByName(l.Near)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd) //nolint:errcheck // test
	var buf [2048]byte
	for i := range 20 {
		if err := unix.Sendto(fd, afxdptest.Frame(buf[:], 1000+i, 100), 0, &unix.SockaddrLinklayer{Ifindex: ifi.Index, Halen: 6}); err != nil {
			t.Fatal(err)
		}
		inject(t, l, afxdptest.Frame(buf[:], i, 100))
	}
	for i, f := range read(t, s, 20, numbered) {
		if n, _ := afxdptest.Number(f); n != i {
			t.Fatalf("frame %d where %d was due", n, i)
		}
	}
	time.Sleep(s.Settle())
	frames := make([]afxdp.Frame, 64)
	for _, f := range frames[:s.Receive(frames)] {
		if n, ok := afxdptest.Number(f.Data); ok {
			t.Errorf("frame %d that went out was read", n)
		}
	}
}

// Every frame is received or counted as lost, also over a Stop, and afterwards there is room again.
func TestOverflow(t *testing.T) {
	l := afxdptest.NewPlainLink(t, 1)
	cfg := afpacket.DefaultConfig(l.Near)
	cfg.Block, cfg.Ring = 64<<10, 128<<10
	s := open(t, cfg)[0]
	var buf [2048]byte
	received := uint64(0)
	drain := func() {
		time.Sleep(s.Settle())
		frames := make([]afxdp.Frame, 64)
		for n := s.Receive(frames); n > 0; n = s.Receive(frames) {
			received += uint64(n) //nolint:gosec // at most 64
			s.Release()
		}
	}
	lost := uint64(0)
	for round := range 3 {
		for i := range 500 { // of 1,514 bytes: about 80 fit
			inject(t, l, afxdptest.Frame(buf[:], i, 1514))
		}
		drain()
		st, err := s.Stats()
		if err != nil {
			t.Fatal(err)
		}
		if st.Dropped <= lost || st.Copied != received+st.Dropped || st.Copied < uint64(500*(round+1)) { //nolint:gosec // small
			t.Fatalf("round %d: received %d, kernel %+v", round, received, st)
		}
		lost = st.Dropped
	}
	inject(t, l, afxdptest.Frame(buf[:], 1, 100))
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		inject(t, l, afxdptest.Frame(buf[:], i, 100))
	}
	drain()
	st, err := s.Stats()
	if err != nil || st.Copied != received+lost || st.Dropped != lost {
		t.Fatalf("after Stop: received %d and lost %d, kernel %+v, %v", received, lost, st, err)
	}
}

// Sockets share the frames: each comes to one of them, and both directions of a flow to the same.
func TestFanout(t *testing.T) {
	const flows, rounds = 64, 5
	for _, how := range []string{afpacket.FanoutHash, afpacket.FanoutCPU} {
		t.Run(how, func(t *testing.T) {
			l := afxdptest.NewPlainLink(t, 1)
			cfg := afpacket.DefaultConfig(l.Near)
			cfg.Readers, cfg.Ring, cfg.Fanout = 3, 4<<20, how
			list := open(t, cfg)
			a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
			for range rounds {
				for i := range flows {
					h := packet.Header{DstMAC: [6]byte{2, 0, 0, 0, 0, 2}, SrcMAC: [6]byte{2, 0, 0, 0, 0, 1}, Src: a, Dst: b}
					inject(t, l, h.AppendUDP(nil, uint16(5000+i), 53, make([]byte, 30))) //nolint:gosec // a port
					h.Src, h.Dst = b, a
					inject(t, l, h.AppendUDP(nil, 53, uint16(5000+i), make([]byte, 30))) //nolint:gosec // a port
				}
			}
			time.Sleep(list[0].Settle())
			where, total, busy := map[uint16]int{}, 0, 0
			for n, s := range list {
				got := 0
				frames := make([]afxdp.Frame, 64)
				for k := s.Receive(frames); k > 0; k = s.Receive(frames) {
					for _, f := range frames[:k] {
						var p packet.Packet
						if p.Decode(f.Data) != packet.OK || p.Proto != packet.ProtoUDP || min(p.SrcPort, p.DstPort) != 53 {
							continue
						}
						got++
						port := max(p.SrcPort, p.DstPort)
						if first, ok := where[port]; how == afpacket.FanoutHash && ok && first != n {
							t.Errorf("flow %d came to sockets %d and %d", port, first, n)
						}
						where[port] = n
					}
					s.Release()
				}
				total += got
				if got > 0 {
					busy++
				}
			}
			if total != 2*flows*rounds || how == afpacket.FanoutHash && busy != len(list) {
				t.Errorf("%d of %d frames, over %d of %d sockets", total, 2*flows*rounds, busy, len(list))
			}
		})
	}
}

// The interface is promiscuous while it is read, and its removal ends the waiting.
func TestInterface(t *testing.T) {
	l := afxdptest.NewPlainLink(t, 1)
	list := open(t, afpacket.DefaultConfig(l.Near))
	flags := func() string {
		out, err := exec.Command("ip", "-details", "link", "show", l.Near).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	if !bytes.Contains([]byte(flags()), []byte("promiscuity 1")) {
		t.Errorf("not promiscuous: %s", flags())
	}
	if err := list[0].Close(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains([]byte(flags()), []byte("promiscuity 0")) {
		t.Errorf("still promiscuous: %s", flags())
	}
	s := open(t, afpacket.DefaultConfig(l.Near))[0]
	go func() {
		time.Sleep(50 * time.Millisecond)
		_ = exec.Command("ip", "link", "del", l.Near).Run()
	}()
	for end := time.Now().Add(patience); ; {
		if _, err := s.Wait(patience); err != nil {
			if !errors.Is(err, afpacket.ErrDown) {
				t.Errorf("Wait: %v", err)
			}
			break
		}
		if time.Now().After(end) {
			t.Fatal("nobody says that the interface is gone")
		}
		frames := make([]afxdp.Frame, 64)
		s.Receive(frames)
		s.Release()
	}
	if _, err := afpacket.Open(afpacket.DefaultConfig(l.Near)); !errors.Is(err, afpacket.ErrNoInterface) {
		t.Errorf("Open without the interface: %v", err)
	}
}

func TestDown(t *testing.T) {
	l := afxdptest.NewPlainLink(t, 1)
	if out, err := exec.Command("ip", "link", "set", l.Near, "down").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if _, err := afpacket.Open(afpacket.DefaultConfig(l.Near)); !errors.Is(err, afpacket.ErrDown) {
		t.Errorf("Open while it is down: %v", err)
	}
}

func TestValidate(t *testing.T) {
	for _, change := range []func(*afpacket.Config){
		func(c *afpacket.Config) { c.Readers = 0 },
		func(c *afpacket.Config) { c.Readers = 257 },
		func(c *afpacket.Config) { c.Fanout = "random" },
		func(c *afpacket.Config) { c.Block = 3 << 16 },
		func(c *afpacket.Config) { c.Ring = c.Block },
		func(c *afpacket.Config) { c.Ring += 5 },
		func(c *afpacket.Config) { c.Retire = time.Microsecond },
	} {
		cfg := afpacket.DefaultConfig("lo")
		change(&cfg)
		if list, err := afpacket.Open(cfg); err == nil {
			t.Errorf("opened %d sockets of %+v", len(list), cfg)
		}
	}
}
