package loadgen

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/tidegate-mesh/tidegate/libs/afxdp/afxdptest"
	"github.com/vishvananda/netlink"

	"github.com/tidegate-mesh/tidegate/libs/netlab"
	"github.com/tidegate-mesh/tidegate/libs/packet"
)

func attack(t *testing.T, kind string, seed uint64) *Frames {
	t.Helper()
	f, err := NewFrames(Attack{Kind: kind, Seed: seed, Target: VictimAddr, Avoid: []netip.Prefix{BenignPrefix}})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestFramesAreValidAndVary(t *testing.T) {
	for _, kind := range Kinds() {
		t.Run(kind, func(t *testing.T) {
			var first [2][]byte
			shapes := map[[4]uint16]bool{}
			for seed := range uint64(12) {
				f := attack(t, kind, seed)
				var p packet.Packet
				for i := range 200 {
					b := f.Next(nil)
					if r := p.Decode(b); r != 0 {
						t.Fatalf("seed %d frame %d is undecodable: %v", seed, i, r)
					}
					src := netip.AddrFrom16(p.Src).Unmap()
					if BenignPrefix.Contains(src) {
						t.Fatalf("seed %d: attack source %s is a benign address", seed, src)
					}
					if i == 0 {
						shapes[[4]uint16{p.IPLen, uint16(p.TTL), p.DstPort, p.Window}] = true
						if seed < 2 {
							first[seed] = b
						}
					}
				}
			}
			if kind != SYNFloodLookalike && len(shapes) < 6 {
				t.Errorf("12 seeds gave %d shapes only", len(shapes))
			}
			if bytes.Equal(first[0], first[1]) {
				t.Error("two seeds gave the same frame")
			}
			if again := attack(t, kind, 0).Next(nil); !bytes.Equal(again, first[0]) {
				t.Error("the same seed gave another frame")
			}
		})
	}
}

func TestUnknownKind(t *testing.T) {
	if _, err := NewFrames(Attack{Kind: "nonsense", Target: VictimAddr}); err == nil {
		t.Fatal("an unknown attack was accepted")
	}
}

// newTestLink joins the link's ports by the kernel's own bridge, so that the link is tested by itself.
func newTestLink(t *testing.T, o LinkOptions) *Link {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("TIDEGATE_CI") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root for network namespaces")
	}
	o.Prefix = "tglg"
	l, err := NewLink(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close the link: %v", err)
		}
	})
	bridge(t, l.PortA, l.PortB, netlab.Ifname("tglg", "br"))
	return l
}

func TestLinkCountsAndServes(t *testing.T) {
	l := newTestLink(t, LinkOptions{})
	client := l.Client(50, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := client.Run(ctx); err != nil {
		t.Fatal(err)
	}
	st := client.Stats()
	if st.Begun < 50 || st.Completed != st.Begun {
		t.Errorf("%d of %d benign connections completed, want all of at least 50", st.Completed, st.Begun)
	}
	sender, err := l.Sender()
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	f, err := l.Attack(SYNFlood, 1)
	if err != nil {
		t.Fatal(err)
	}
	before, err := l.Counter.Counts()
	if err != nil {
		t.Fatal(err)
	}
	sent, err := sender.Send(t.Context(), f.Next, 20000, 5000)
	if err != nil {
		t.Fatal(err)
	}
	if sent.Frames != 5000 || sent.FirstNs == 0 || sent.LastNs < sent.FirstNs {
		t.Errorf("sent %+v, want 5,000 frames with times", sent)
	}
	took := time.Duration(sent.LastNs - sent.FirstNs)
	if took < 200*time.Millisecond || took > 500*time.Millisecond {
		t.Errorf("5,000 frames at 20,000 a second took %v, want about 250 ms", took)
	}
	time.Sleep(100 * time.Millisecond)
	after, err := l.Counter.Counts()
	if err != nil {
		t.Fatal(err)
	}
	if got := after.Attack - before.Attack; got != 5000 {
		t.Errorf("the victim counted %d attack packets, want 5,000", got)
	}
}

// TestHeld: packets of connections that stay open are counted at both ends, each that is lost too.
func TestHeld(t *testing.T) {
	l := newTestLink(t, LinkOptions{})
	held, err := l.Client(50, 1).Hold(5)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- held.Run(ctx) }()
	second := func(port uint16) HeldCounts {
		t.Helper()
		before, err := held.Counts(port)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		after, err := held.Counts(port)
		if err != nil {
			t.Fatal(err)
		}
		return after.Sub(before)
	}
	for port, connections := range map[uint16]int{443: 3, 80: 2, 25565: 5} {
		n := uint64(connections) //nolint:gosec // few
		c := second(port)
		if c.Connections != connections || c.Sent < 25*n || c.Arrived+n < c.Sent || c.Arrived > c.Sent+n || c.AnswersArrived+n < c.AnswersSent {
			t.Errorf("port %d: %+v, want about 50 packets a second of each of %d connections, all arrived", port, c, connections)
		}
	}
	port, err := netlink.LinkByName(l.PortB)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetDown(port); err != nil {
		t.Fatal(err)
	}
	if c := second(0); c.Sent < 5 || c.Arrived > 5 {
		t.Errorf("with the link down: %+v, want packets sent that do not arrive", c)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestStreamArrives(t *testing.T) {
	l := newTestLink(t, LinkOptions{Sink: true})
	n, err := l.Stream(1000, 100, 8, 18, 1).Run(t.Context(), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	got, err := l.Counter.Counts()
	if err != nil {
		t.Fatal(err)
	}
	if n.Frames < 10000 || got.Benign != n.Frames {
		t.Errorf("sent %d, %d arrived: want all", n.Frames, got.Benign)
	}
}

// TestStreamFrames runs the sending program on its template as the kernel does, a frame at a time.
func TestStreamFrames(t *testing.T) {
	l := newTestLink(t, LinkOptions{Sink: true})
	s := l.Stream(130, 2, 1024, 18, 1)
	seen := map[netip.AddrPort]int{}
	for i, f := range streamed(t, s, 260) {
		seen[f.source]++
		source := s.Source.As4()
		source[3] += byte(i % 130 / 64) //nolint:gosec // at most 2
		if want := netip.AddrFrom4(source); f.source.Addr() != want {
			t.Fatalf("frame %d comes from %v, want %v", i, f.source, want)
		}
		target := s.Target.As4()
		target[3] += byte(i % 130 / 64 % 2) //nolint:gosec // at most 1
		if want := netip.AddrFrom4(target); f.target != want {
			t.Fatalf("frame %d goes to %v, want %v", i, f.target, want)
		}
	}
	if len(seen) != 130 {
		t.Errorf("%d flows, want 130", len(seen))
	}
	s = l.Stream(1, 1, 1024, 18, 1)
	s.Source, s.Scatter = netip.MustParseAddr("32.0.0.0"), 12
	sources := map[netip.Addr]int{}
	for _, f := range streamed(t, s, 1<<12) {
		sources[f.source.Addr()]++
		if !netip.MustParsePrefix("32.0.0.0/20").Contains(f.source.Addr()) || f.target != s.Target {
			t.Fatalf("a frame from %v to %v", f.source, f.target)
		}
	}
	if len(sources) != 1<<12 {
		t.Errorf("%d sources of 4,096 frames: want as many", len(sources))
	}
}

// TestStreamRenews: each seventh frame begins a flow, with the opening, in place of the oldest one.
func TestStreamRenews(t *testing.T) {
	l := newTestLink(t, LinkOptions{Sink: true})
	s := l.Stream(130, 2, 1024, 18, 1)
	s.Renew, s.Opening, s.Stamped = 7, []byte("a question of more bytes than the frames of the rest have"), true
	seen := map[netip.AddrPort]int{}
	fresh := 0
	for i, f := range streamed(t, s, 7*300) {
		_, stamped := Age(f.payload)
		if i%7 == 6 {
			fresh++
			if !bytes.HasPrefix(f.payload, s.Opening) || stamped || seen[f.source] != 0 {
				t.Fatalf("frame %d of %v, seen %d times, has %q: want a new flow with the opening", i, f.source, seen[f.source], f.payload)
			}
		} else if !stamped || len(f.payload) != 18 {
			t.Fatalf("frame %d has % x: want a stamp in 18 bytes", i, f.payload)
		}
		seen[f.source]++
	}
	if len(seen) != 130+fresh {
		t.Errorf("%d flows, want 130 and %d more", len(seen), fresh)
	}
	first := netip.AddrPortFrom(s.Source, 10000)
	if n := seen[first]; n == 0 || n > 2 {
		t.Errorf("the oldest flow got %d frames: it gives way after 7", n)
	}
	s.Renew = 1
	if _, err := s.Run(t.Context(), time.Second); err == nil || !strings.Contains(err.Error(), "every frame") {
		t.Errorf("a new flow with every frame: %v", err)
	}
}

func TestStreamOfSYNs(t *testing.T) {
	l := newTestLink(t, LinkOptions{Sink: true})
	s := l.Stream(1, 1, 1024, 0, 1)
	s.Source, s.Scatter, s.SYN = netip.MustParseAddr("32.0.0.0"), 20, true
	sources := map[netip.Addr]bool{}
	for _, f := range streamed(t, s, 1000) {
		if f.flags != packet.FlagSYN || f.port != 443 || f.target != s.Target || len(f.payload) != 0 {
			t.Fatalf("%+v: want a SYN to port 443 of %v", f, s.Target)
		}
		sources[f.source.Addr()] = true
	}
	if len(sources) != 1000 {
		t.Errorf("%d sources of 1,000 frames", len(sources))
	}
}

type streamedFrame struct {
	source  netip.AddrPort
	target  netip.Addr
	port    uint16
	flags   uint8
	payload []byte
}

// streamed makes n frames and checks their checksums.
func streamed(t *testing.T, s Stream, n int) (all []streamedFrame) {
	t.Helper()
	var objs loadgenObjects
	if err := loadLoadgenObjects(&objs, nil); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = objs.Close() }()
	var frame []byte
	err := s.NS.Do(func() (err error) {
		frame, err = s.configure(&objs)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer afxdptest.Pin(t, 0)() // the program counts for each CPU
	for range n {
		out := make([]byte, 256)
		run := ebpf.RunOptions{Data: frame, DataOut: out}
		if _, err := objs.Send.Run(&run); err != nil {
			t.Fatal(err)
		}
		f := run.DataOut
		if sum := packet.Checksum(0, f[14:34]); sum != 0 {
			t.Fatalf("the IP checksum of % x is off by %#x", f[14:34], sum)
		}
		var p packet.Packet
		if r := p.Decode(f); r != packet.OK {
			t.Fatalf("% x: %v", f, r)
		}
		if segment := f[34:]; p.Proto == packet.ProtoTCP && packet.Checksum(uint32(packet.ProtoTCP)+uint32(len(segment)), append(bytes.Clone(f[26:34]), segment...)) != 0 { //nolint:gosec // a frame
			t.Fatalf("the TCP checksum of % x is off", segment)
		}
		all = append(all, streamedFrame{
			source: netip.AddrPortFrom(netip.AddrFrom16(p.Src).Unmap(), p.SrcPort), target: netip.AddrFrom16(p.Dst).Unmap(),
			port: p.DstPort, flags: p.TCPFlags, payload: f[p.Payload : p.Payload+p.PayloadLen],
		})
	}
	return all
}
