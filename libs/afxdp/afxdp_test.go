package afxdp_test

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/afxdp"
	"github.com/tidegate-mesh/tidegate/libs/afxdp/afxdptest"
	"github.com/tidegate-mesh/tidegate/libs/netlab"
	"github.com/vishvananda/netlink"
)

func TestNative(t *testing.T) { afxdptest.Run(t, afxdp.Native) }
func TestAsavie(t *testing.T) { afxdptest.Run(t, afxdp.Asavie) }

func TestNativePair(t *testing.T) { afxdptest.RunPair(t, afxdp.Native, true, afxdp.Inventory) }
func TestAsaviePair(t *testing.T) { afxdptest.RunPair(t, afxdp.Asavie, false, afxdp.Inventory) }

func TestOpenRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*afxdp.Config)
		want   error
	}{
		{"no such interface", func(c *afxdp.Config) { c.Iface = "tg-absent" }, afxdp.ErrNoInterface},
		{"negative queue", func(c *afxdp.Config) { c.Queue = -1 }, nil},
		{"frames no power of two", func(c *afxdp.Config) { c.Frames = 1000 }, nil},
		{"rings no power of two", func(c *afxdp.Config) { c.RxRing = 3 }, nil},
		{"rings too large", func(c *afxdp.Config) { c.TxRing = 1 << 21 }, nil},
		{"frame size", func(c *afxdp.Config) { c.FrameSize = 1500 }, nil},
		{"backend", func(c *afxdp.Config) { c.Backend = "other" }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := afxdp.DefaultConfig("lo", 0)
			c.change(&cfg)
			s, err := afxdp.Open(cfg)
			if err == nil {
				_ = s.Close()
				t.Fatal("opened")
			}
			if c.want != nil && !errors.Is(err, c.want) {
				t.Fatalf("%v, want %v", err, c.want)
			}
		})
	}
}

// TestPairRefused: where memory cannot be shared, there is a reason, and two sockets that forward by copying.
func TestPairRefused(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(b *afxdp.Config)
	}{
		{"frame size", func(b *afxdp.Config) { b.FrameSize = 4096 }},
		{"need-wakeup", func(b *afxdp.Config) { b.NeedWakeup = false }},
		{"one is asavie", func(b *afxdp.Config) { b.Backend = afxdp.Asavie }},
	} {
		t.Run(c.name, func(t *testing.T) {
			near, far := afxdptest.NewLinks(t)
			a, b := afxdp.DefaultConfig(near.Near, 0), afxdp.DefaultConfig(far.Near, 0)
			c.change(&b)
			p, err := afxdp.OpenPair(a, b)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _, _ = p.A.Close(), p.B.Close() })
			if p.Copies == nil {
				t.Fatal("no reason")
			}
			near.Register(t, 0, p.A)
			var buf, in [2048]byte
			want := afxdptest.Frame(buf[:], 1, 500)
			if err := near.Inject(want); err != nil {
				t.Fatal(err)
			}
			frames := make([]afxdp.Frame, 1)
			for end := time.Now().Add(5 * time.Second); time.Now().Before(end); p.A.Release() {
				if p.A.Receive(frames) == 0 {
					continue
				}
				if _, ours := afxdptest.Number(frames[0].Data); ours {
					break
				}
			}
			if n, err := p.A.Forward(frames, p.B); n != 1 || err != nil {
				t.Fatalf("Forward: %d, %v", n, err)
			}
			if err := p.B.Flush(); err != nil {
				t.Fatal(err)
			}
			if n, err := far.Arrived(in[:], 5*time.Second); err != nil || !bytes.Equal(in[:n], want) {
				t.Fatalf("%d bytes arrived: %v", n, err)
			}
		})
	}
}

func TestLost(t *testing.T) {
	s := afxdp.Stats{RxDropped: 3, RxRingFull: 4, RxFillEmpty: 3}
	if s.Lost() != 7 {
		t.Fatalf("Lost() = %d, want 7", s.Lost())
	}
}

// TestNoCarrier: frames for a port whose cable is out are dropped at once, not kept until it is in again, and counted.
func TestNoCarrier(t *testing.T) {
	afxdptest.RequireRoot(t)
	lab, err := netlab.New("tgx")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	}()
	ns, err := lab.Namespace("peer")
	if err != nil {
		t.Fatal(err)
	}
	near := netlab.Ifname("tgx", "n")
	if err := lab.Veth(netlab.End{Name: near}, netlab.End{NS: ns, Name: "far"}, 1); err != nil {
		t.Fatal(err)
	}
	far := func(do func(netlink.Link) error) {
		t.Helper()
		if err := ns.Do(func() error {
			l, err := netlink.LinkByName("far")
			if err != nil {
				return err
			}
			return do(l)
		}); err != nil {
			t.Fatal(err)
		}
	}
	s, err := afxdp.Open(afxdp.DefaultConfig(near, 0))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	frames := make([][]byte, 64)
	for i := range frames {
		frames[i] = append([]byte{2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 0x88, 0xB5}, make([]byte, 46)...)
	}
	for _, c := range []struct {
		name             string
		change           func(netlink.Link) error
		arrived, dropped uint64
	}{
		{"carrier", netlink.LinkSetUp, 640, 0},
		{"no carrier", netlink.LinkSetDown, 0, 640},
		{"carrier again", netlink.LinkSetUp, 640, 640},
	} {
		far(c.change)
		var before, after uint64
		far(func(l netlink.Link) error { before = l.Attrs().Statistics.RxPackets; return nil })
		for range 10 {
			if n, err := s.Send(frames); n != len(frames) || err != nil {
				t.Fatalf("%s: sent %d, %v", c.name, n, err)
			}
			if err := s.Flush(); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
		}
		for end := time.Now().Add(time.Second); after < c.arrived && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			far(func(l netlink.Link) error { after = l.Attrs().Statistics.RxPackets - before; return nil })
		}
		st, err := s.Stats()
		if after < c.arrived || after > c.arrived+8 || st.TxDropped != c.dropped || err != nil { // a link that comes up says so
			t.Errorf("%s: %d arrived, %d were dropped, %v", c.name, after, st.TxDropped, err)
		}
	}
}
