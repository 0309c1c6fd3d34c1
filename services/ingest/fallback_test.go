package ingest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/tidegate-mesh/tidegate/libs/packet"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
)

// sendFrames sends raw frames from the client's end of port a.
func (r *rig) sendFrames(frames ...[]byte) {
	r.t.Helper()
	err := r.client.Do(func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd) //nolint:errcheck // test
		for _, f := range frames {
			if err := unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Ifindex: ifi.Index, Halen: 6}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

// mirrored are frames of n UDP flows, each a packet there and one back, in VLANs 0, 100 and 200 by turns.
func mirrored(n int) (frames [][]byte) {
	h := packet.Header{
		DstMAC: [6]byte{2, 0, 0, 0, 0, 0x22}, SrcMAC: [6]byte{2, 0, 0, 0, 0, 0x11}, // of no machine here, as on a mirror port
		Src: netip.MustParseAddr("192.0.2.1"), Dst: netip.MustParseAddr("192.0.2.2"),
	}
	for i := range n {
		h.VLAN = uint16(i % 3 * 100) //nolint:gosec // small
		there, back := h, h
		back.Src, back.Dst, back.SrcMAC, back.DstMAC = h.Dst, h.Src, h.DstMAC, h.SrcMAC
		port := uint16(10000 + i) //nolint:gosec // small
		frames = append(frames, there.AppendUDP(nil, port, 5353, []byte("tidegate there")), back.AppendUDP(nil, 5353, port, []byte("tidegate back")))
	}
	return frames
}

// tapBalance is balance for a sensor that sends nothing on.
func tapBalance(s *Service) error {
	l := s.Ledger()
	if l["transmitted"]+l["tx_dropped"] != 0 {
		return fmt.Errorf("a tap has transmitted: %v", l)
	}
	l["transmitted"] = l["received"]
	if l["batches_pending"] != 0 {
		return fmt.Errorf("%d batches are pending", l["batches_pending"])
	}
	return balance(l)
}

// What was sent is in the flows with its VLAN and both directions, over AF_XDP and AF_PACKET alike, and the ledger balances.
func TestTapSeesTheSame(t *testing.T) {
	for _, c := range []struct {
		capture, fanout string
		workers         int
		busy            time.Duration
	}{{CaptureAFXDP, "hash", 0, 0}, {CaptureAFXDP, "hash", 0, 20 * time.Microsecond}, {CaptureAFPacket, "hash", 1, 0}, {CaptureAFPacket, "hash", 3, 0}, {CaptureAFPacket, "cpu", 2, 0}} {
		t.Run(fmt.Sprintf("%s %s %d %v", c.capture, c.fanout, c.workers, c.busy), func(t *testing.T) {
			r := newRig(t)
			f := newFakeClassify(t)
			cfg := r.config()
			cfg.Mode, cfg.Ifaces, cfg.BusyPoll = ModeTap, []string{r.a}, c.busy
			cfg.Capture, cfg.PacketWorkers, cfg.PacketFanout, cfg.PacketRing = c.capture, c.workers, c.fanout, 4<<20
			s, tel, stop := start(t, cfg, f.client)
			const flows = 300
			r.sendFrames(mirrored(flows)...)
			eventually(t, "packets", func() error {
				if l := s.Ledger(); l["accounted"] < 2*flows {
					return fmt.Errorf("ledger: %v", l)
				}
				return nil
			})
			if got := labelled(t, tel, "tidegate_ingest_capture", "capture"); got[c.capture] != 1 || got["none"] != 0 || len(got) != len(captureKinds) {
				t.Errorf("capture metric: %v", got)
			}
			stop()
			if err := tapBalance(s); err != nil {
				t.Error(err)
			}
			l := s.Ledger()
			if copied := l["packet_copied"] > 0; copied != (c.capture == CaptureAFPacket) || copied == (l["redirected"] > 0) || l["ring_drops"]+l["lost_at_restart"] != 0 {
				t.Errorf("ledger: %v", l)
			}
			if c.capture == CaptureAFPacket && (l["xdp_passed"] != l["xdp_seen"] || l["xdp_seen"] < 2*flows) {
				t.Errorf("the gate does not pass: %v", l)
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			found, queues := 0, map[int]bool{}
			for id, o := range f.opens {
				if o.Key.Protocol != packet.ProtoUDP || o.Key.DstPort != 5353 || o.Key.SrcPort < 10000 {
					continue
				}
				found++
				queues[queueOf(id)] = true
				if want := (o.Key.SrcPort - 10000) % 3 * 100; o.Key.VLAN != want {
					t.Errorf("flow %v: VLAN %d, want %d", o.Key, o.Key.VLAN, want)
				}
				if e := f.ends[id]; e.Totals.PacketsFwd != 1 || e.Totals.PacketsRev != 1 {
					t.Errorf("flow %v ended with %+v", o.Key, e.Totals)
				}
			}
			if found != flows || c.fanout == "hash" && len(queues) != max(c.workers, 1) {
				t.Errorf("%d of %d flows, in the tables of workers %v", found, flows, queues)
			}
		})
	}
}

// occupy puts an XDP program of somebody else onto an interface, one that passes everything.
func occupy(t *testing.T, iface string) {
	t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R0, 2), asm.Return(), // XDP_PASS
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = prog.Close() })
	ifi, err := net.InterfaceByName(iface)
	if err != nil {
		t.Fatal(err)
	}
	l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: ifi.Index, Flags: link.XDPDriverMode})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
}

func TestFallback(t *testing.T) {
	r := newRig(t)
	f := newFakeClassify(t)
	occupy(t, r.a)
	cfg := r.config()
	cfg.Mode, cfg.Ifaces, cfg.PacketWorkers = ModeTap, []string{r.a}, 2

	refused := func(c Config, want ...string) {
		t.Helper()
		s, err := New(c, Deps{Telemetry: telemetry.Discard("ingest"), Classify: []classifyv1.ClassifyServiceClient{f.client}})
		if err == nil {
			err = s.Run(context.Background())
		}
		for _, part := range want {
			if err == nil || !strings.Contains(err.Error(), part) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v, want a sentence with %q", err, part)
			}
		}
	}
	demanded := cfg
	demanded.Capture = CaptureAFXDP
	refused(demanded, "another XDP program is attached")
	inline := r.config()
	refused(inline, "another XDP program is attached", "AF_PACKET, the fallback of tap mode, cannot hold frames back")
	host := cfg
	host.Mode = ModeHost
	refused(host, "another XDP program is attached", "AF_PACKET, the fallback of tap mode")
	absent := cfg
	absent.Ifaces = []string{"tg-absent"}
	refused(absent, "tg-absent")

	s, tel, stop := start(t, cfg, f.client)
	r.sendFrames(mirrored(10)...)
	eventually(t, "packets without an XDP program of ours", func() error {
		if l := s.Ledger(); l["accounted"] < 20 || l["xdp_seen"] != 0 {
			return fmt.Errorf("ledger: %v", l)
		}
		return nil
	})
	if got := labelled(t, tel, "tidegate_ingest_capture", "capture"); got[CaptureAFPacket] != 1 || got[CaptureAFXDP] != 0 {
		t.Errorf("capture metric: %v", got)
	}
	if n := metric(t, tel, "tidegate_errors_total"); n == 0 {
		t.Error("the fallback is no error")
	}
	st, err := s.Status(t.Context(), nil)
	if err != nil || len(st.Interfaces) != 1 || st.Interfaces[0].Queues != 2 ||
		!strings.HasPrefix(st.Interfaces[0].Capture, "af_packet by hash (no AF_XDP: ") || !strings.Contains(st.Interfaces[0].Capture, "another XDP program") {
		t.Errorf("status: %v, %v", st, err)
	}
	stop()
	if err := tapBalance(s); err != nil {
		t.Error(err)
	}
}

// A jumbo frame fits no AF_XDP frame, but AF_PACKET.
func TestFallbackTakesJumboFrames(t *testing.T) {
	r := newRig(t)
	f := newFakeClassify(t)
	for _, end := range []struct {
		in   func(func() error) error
		name string
	}{{r.client.Do, "eth0"}, {func(f func() error) error { return f() }, r.a}} {
		if err := end.in(func() error { return exec.Command("ip", "link", "set", end.name, "mtu", "9000").Run() }); err != nil { //nolint:gosec // test
			t.Fatal(err)
		}
	}
	cfg := r.config()
	cfg.Mode, cfg.Ifaces, cfg.PacketWorkers = ModeTap, []string{r.a}, 1
	s, _, stop := start(t, cfg, f.client)
	h := packet.Header{Src: netip.MustParseAddr("192.0.2.1"), Dst: netip.MustParseAddr("192.0.2.2"), VLAN: 5}
	r.sendFrames(h.AppendUDP(nil, 10000, 53, make([]byte, 8000)))
	eventually(t, "the frame", func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, o := range f.opens {
			if o.Key.SrcPort == 10000 && o.Key.VLAN == 5 {
				return nil
			}
		}
		return errors.New("it did not come")
	})
	stop()
	if err := tapBalance(s); err != nil {
		t.Error(err)
	}
}

// Rules on a mirror port only count, whichever way frames come: what a drop rule matches is still read.
func TestPacketsBehindRules(t *testing.T) {
	r := newRig(t)
	f := newFakeClassify(t)
	cfg := r.config()
	cfg.Mode, cfg.Ifaces, cfg.Capture, cfg.PacketWorkers = ModeTap, []string{r.a}, CaptureAFPacket, 1
	s, _, _ := start(t, cfg, f.client)
	g, err := xdp.Open(xdp.Options{Iface: r.a, BPFFS: r.bpffs})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close() //nolint:errcheck // test
	rule := xdp.Rule{ID: 7, Match: policy.Match{Src: netip.MustParsePrefix("192.0.2.1/32")}, Action: policy.Drop}
	if err := g.PutRules([]xdp.Rule{rule}); err != nil {
		t.Fatal(err)
	}
	r.sendFrames(mirrored(50)...)
	eventually(t, "packets and hits", func() error {
		st, err := g.RuleStats([]uint64{7})
		if err != nil {
			return err
		}
		if l := s.Ledger(); st[7].Packets != 50 || st[7].Dropped != 0 || l["accounted"] < 100 || l["xdp_dropped"] != 0 {
			return fmt.Errorf("rule %+v, ledger %v", st[7], l)
		}
		return nil
	})
}

// An interface that goes away and comes back is read again, and nothing is left behind.
func TestPacketsInterfaceMadeAgain(t *testing.T) {
	r := newRig(t)
	f := newFakeClassify(t)
	cfg := r.config()
	cfg.Mode, cfg.Ifaces, cfg.Capture, cfg.PacketWorkers, cfg.PacketRing = ModeTap, []string{r.a}, CaptureAFPacket, 2, 1<<20
	s, tel, stop := start(t, cfg, f.client)
	before := runtime.NumGoroutine()
	for round := range 3 {
		r.sendFrames(mirrored(20)...)
		eventually(t, "packets", func() error {
			if l := s.Ledger(); l["accounted"] < uint64(40*(round+1)) { //nolint:gosec // small
				return fmt.Errorf("round %d: ledger %v", round, l)
			}
			return nil
		})
		if round == 2 {
			break
		}
		r.remake(tel)
	}
	fewer := func(n int) func() error {
		return func() error {
			if now := runtime.NumGoroutine(); now > n {
				return fmt.Errorf("%d goroutines, want at most %d", now, n)
			}
			return nil
		}
	}
	eventually(t, "no goroutine is left by earlier planes", fewer(before))
	stop()
	eventually(t, "the workers and what served them have ended", fewer(before-4))
	if err := tapBalance(s); err != nil {
		t.Error(err)
	}
}

// labelled are a metric's values by one label.
func labelled(t *testing.T, tel *telemetry.Telemetry, name, label string) map[string]float64 {
	t.Helper()
	families, err := tel.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == label {
					out[l.GetValue()] += m.GetGauge().GetValue() + m.GetCounter().GetValue()
				}
			}
		}
	}
	return out
}
