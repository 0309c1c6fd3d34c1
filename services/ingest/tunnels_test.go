package ingest

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/netlab"
	"github.com/tidegate-mesh/tidegate/libs/packet"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
)

// The tunnels' ends, and the hosts inside, which are the same in all networks.
var (
	east, west   = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	inner, other = netip.MustParseAddr("10.200.0.1"), netip.MustParseAddr("10.200.0.2")
)

// inTunnel is a frame from east or west with what a tunnel's header and payload are.
func inTunnel(back bool, proto uint8, port uint16, parts ...[]byte) []byte {
	h := packet.Header{Src: east, Dst: west}
	if back {
		h.Src, h.Dst = west, east
	}
	payload := slices.Concat(parts...)
	if proto == packet.ProtoUDP {
		return h.AppendUDP(nil, cmp.Or(map[bool]uint16{true: 50000}[back && port != 2152], port), port, payload) // VXLAN's source port differs by direction
	}
	return append(h.AppendIP(nil, proto, len(payload)), payload...)
}

// carried is a frame of the one flow that every tunnel of these tests carries.
func carried(back bool) []byte {
	h := packet.Header{Src: inner, Dst: other}
	if back {
		h.Src, h.Dst = other, inner
		return h.AppendUDP(nil, 5353, 40000, []byte("tidegate back"))
	}
	return h.AppendUDP(nil, 40000, 5353, []byte("tidegate there"))
}

// tunnelled are frames of the same inner flow in tunnels of each kind, there and back.
func tunnelled() (frames [][]byte) {
	vxlan := func(vni uint32) []byte { return binary.BigEndian.AppendUint32([]byte{8, 0, 0, 0}, vni<<8) }
	geneve := func(vni uint32) []byte { return binary.BigEndian.AppendUint32([]byte{0, 0, 0x65, 0x58}, vni<<8) }
	gtp := func(teid uint32) []byte { return binary.BigEndian.AppendUint32([]byte{0x30, 0xFF, 0, 0}, teid) }
	gre := func(key uint32) []byte { return binary.BigEndian.AppendUint32([]byte{0x20, 0, 8, 0}, key) }
	for _, back := range []bool{false, true} {
		frame := carried(back)
		ip := frame[14:]
		teid := map[bool]uint32{false: 0x1000, true: 0x2000}[back]
		frames = append(frames,
			inTunnel(back, packet.ProtoUDP, 4789, vxlan(1), frame),
			inTunnel(back, packet.ProtoUDP, 4789, vxlan(2), frame),
			inTunnel(back, packet.ProtoUDP, 6081, geneve(3), frame),
			inTunnel(back, 47, 0, gre(0x10000004), ip),
			inTunnel(back, 47, 0, gre(5), ip),
			// What names no network is one flow, also with other identifiers in the other direction.
			inTunnel(back, 47, 0, []byte{0, 0, 8, 0}, ip),
			inTunnel(back, packet.ProtoUDP, 2152, gtp(teid), ip),
			inTunnel(back, 4, 0, ip),
			// The identifier is that of the innermost tunnel that has one.
			inTunnel(back, packet.ProtoUDP, 4789, vxlan(6), inTunnel(back, packet.ProtoUDP, 2152, gtp(teid), ip)),
		)
	}
	return frames
}

// wantTunnelled is what tunnelled has inside: packets of both directions by tunnel.
var wantTunnelled = map[uint32]uint64{1: 2, 2: 2, 3: 2, 0x10000004: 2, 5: 2, 0: 6, 6: 2}

// stubborn are tunnel packets that are not looked into, or not to their end.
func stubborn() (frames [][]byte, unopened map[string]uint64) {
	loop := carried(false)[14:]
	for range 20 {
		loop = inTunnel(false, 4, 0, loop)[14:]
	}
	arp := packet.Header{Src: inner, Dst: other}
	h := packet.Header{Src: east, Dst: west, MoreFragments: true}
	return [][]byte{
		inTunnel(false, 4, 0, loop),
		inTunnel(false, packet.ProtoUDP, 4789, []byte{8, 0, 0, 0, 0, 0, 7, 0}, arp.AppendARP(nil, 1, [6]byte{})),
		inTunnel(false, 47, 0, []byte{0, 0, 8, 0}, []byte{0x45}),
		append(h.AppendIP(nil, 4, 40), make([]byte, 40)...),
	}, map[string]uint64{"too_deep": 1, "no_packet": 2, "fragment": 1}
}

// checkTunnelled compares the flows of tunnelled's hosts.
func checkTunnelled(t *testing.T, ends []flow.End) {
	t.Helper()
	got := map[uint32]uint64{}
	for _, e := range ends {
		if flow.Addr(e.Key.Src) != inner || flow.Addr(e.Key.Dst) != other {
			continue
		}
		if _, again := got[e.Key.Tunnel]; again || e.Totals.PacketsFwd != e.Totals.PacketsRev {
			t.Errorf("tunnel %d: a flow of its own, or one direction of it: %+v", e.Key.Tunnel, e)
		}
		got[e.Key.Tunnel] += e.Totals.PacketsFwd + e.Totals.PacketsRev
	}
	for id, n := range wantTunnelled {
		if got[id] != n {
			t.Errorf("tunnel %d: %d packets, want %d", id, got[id], n)
		}
	}
	if len(got) != len(wantTunnelled) {
		t.Errorf("flows in tunnels %v, want %v", got, wantTunnelled)
	}
}

func TestReplayTunnels(t *testing.T) {
	list, _ := stubborn()
	var frames []frameAt
	for i, f := range append(tunnelled(), list...) {
		frames = append(frames, frameAt{time.Duration(i) * time.Millisecond, f})
	}
	var got record
	l, err := Replay(context.Background(), ReplayConfig{}, capture(t, frames), &got)
	if err != nil || l.Difference != 0 || len(l.Undecodable) != 0 {
		t.Fatalf("%v, ledger %+v", err, l)
	}
	var ends []flow.End
	for _, b := range got.batches {
		for i := range int(b.GetEnds().GetCount()) {
			ends = append(ends, flow.EndAt(b.Ends, i))
		}
	}
	checkTunnelled(t, ends)
}

// What a tap sees of tunnels is what replay sees of them, over AF_XDP and AF_PACKET.
func TestTapTunnels(t *testing.T) {
	for _, way := range []string{CaptureAFXDP, CaptureAFPacket} {
		t.Run(way, func(t *testing.T) {
			r := newRig(t)
			f := newFakeClassify(t)
			cfg := r.config()
			cfg.Mode, cfg.Ifaces, cfg.Capture, cfg.Tunnels, cfg.PacketRing = ModeTap, []string{r.a}, way, TunnelsInner, 4<<20
			s, tel, stop := start(t, cfg, f.client)
			list, unopened := stubborn()
			list = append(tunnelled(), list...)
			r.sendFrames(list...)
			eventually(t, "packets", func() error {
				if l := s.Ledger(); l["accounted"] < uint64(len(list)) {
					return fmt.Errorf("ledger: %v", l)
				}
				return nil
			})
			stop()
			if err := tapBalance(s); err != nil {
				t.Error(err)
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			var ends []flow.End
			for _, e := range f.ends {
				ends = append(ends, e)
			}
			checkTunnelled(t, ends)
			l := s.Ledger()
			got := labelled(t, tel, "tidegate_ingest_tunnels_total", "tunnel")
			for kind, n := range map[string]uint64{"vxlan": 6, "geneve": 2, "gre": 6, "gtp_u": 4, "ip_in_ip": 2 + 4, "6in4": 0, "capwap": 0} {
				if got[kind] != float64(n) || l["tunnels_"+kind] != n {
					t.Errorf("%s: metric %v, ledger %d, want %d", kind, got[kind], l["tunnels_"+kind], n)
				}
			}
			left := labelled(t, tel, "tidegate_ingest_tunnels_unopened_total", "reason")
			for reason, n := range unopened {
				if left[reason] != float64(n) || l["tunnels_unopened_"+reason] != n {
					t.Errorf("%s: metric %v, ledger %d, want %d", reason, left[reason], l["tunnels_unopened_"+reason], n)
				}
			}
			st, err := s.Status(context.Background(), nil)
			if err != nil || !strings.HasSuffix(st.Interfaces[0].Capture, ", tunnels looked into") {
				t.Errorf("status: %v, %v", st, err)
			}
		})
	}
}

func TestTunnelsRefused(t *testing.T) {
	for _, mode := range []string{ModeInline, ModeHost} {
		cfg := DefaultConfig()
		cfg.Mode, cfg.Ifaces, cfg.Tunnels = mode, []string{"a", "b"}, TunnelsInner
		_, err := New(cfg, Deps{Telemetry: telemetry.Discard("ingest"), Classify: []classifyv1.ClassifyServiceClient{nil}})
		if err == nil || !strings.Contains(err.Error(), "--tunnels inner is for --mode tap: the XDP program of "+mode+" mode matches outer headers") {
			t.Errorf("%s: %v", mode, err)
		}
	}
	cfg := DefaultConfig()
	cfg.Mode, cfg.Ifaces, cfg.Tunnels = ModeTap, []string{"a"}, "both"
	if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), `"both" is none of outer and inner`) {
		t.Error(err)
	}
}

// TestTapKernelVXLAN watches a hub between two hosts whose kernels run two VXLAN networks with the same addresses: a
// connection in each, from the same port to the same port.
func TestTapKernelVXLAN(t *testing.T) {
	r := newRig(t)
	f := newFakeClassify(t)
	ip := func(ns *netlab.NS, args string) error {
		if out, err := exec.Command("ip", append([]string{"-n", ns.Name()}, strings.Fields(args)...)...).CombinedOutput(); err != nil { //nolint:gosec // of this test
			return fmt.Errorf("ip %s: %w: %s", args, err, out)
		}
		return nil
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// The client's namespace becomes the hub: its bridge learns nothing, so port a gets every frame.
	if err := ip(r.client, "link add br0 type bridge ageing_time 0"); err != nil {
		needKernel(t, err)
	}
	must(ip(r.client, "link set br0 up"))
	must(ip(r.client, "link set eth0 master br0"))
	hosts := map[string]*netlab.NS{}
	for i, name := range []string{"east", "west"} {
		host := r.namespace(name)
		hosts[name] = host
		addr := netip.PrefixFrom([]netip.Addr{east, west}[i], 24)
		must(r.lab.Veth(netlab.End{NS: host, Name: "eth0", Addrs: []netip.Prefix{addr}}, netlab.End{NS: r.client, Name: name}, 1))
		must(ip(r.client, "link set "+name+" master br0"))
		remote := []netip.Addr{west, east}[i]
		for _, vni := range []string{"42", "4242"} {
			inside := r.namespace(name + vni)
			hosts[name+vni] = inside
			if err := ip(host, "link add vx"+vni+" type vxlan id "+vni+" dstport 4789 dev eth0 local "+addr.Addr().String()+" remote "+remote.String()); err != nil {
				needKernel(t, err)
			}
			must(ip(host, "link set vx"+vni+" netns "+inside.Name()))
			must(ip(inside, "address add "+netip.PrefixFrom([]netip.Addr{inner, other}[i], 24).String()+" dev vx"+vni))
			must(ip(inside, "link set vx"+vni+" up"))
		}
	}
	cfg := r.config()
	cfg.Mode, cfg.Ifaces, cfg.Tunnels = ModeTap, []string{r.a}, TunnelsInner
	s, _, stop := start(t, cfg, f.client)
	for _, vni := range []string{"42", "4242"} {
		var ln net.Listener
		must(hosts["west"+vni].Do(func() (err error) {
			ln, err = net.Listen("tcp", netip.AddrPortFrom(other, 7777).String())
			return err
		}))
		go func() {
			if c, err := ln.Accept(); err == nil {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}
		}()
		must(hosts["east"+vni].Do(func() error {
			d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(inner, 40000)), Timeout: patience}
			c, err := d.Dial("tcp", netip.AddrPortFrom(other, 7777).String())
			if err != nil {
				return err
			}
			return errors.Join(c.SetDeadline(time.Now().Add(patience)), echoOn(c, 10<<10), c.Close())
		}))
		must(ln.Close())
	}
	eventually(t, "packets", func() error {
		if l := s.Ledger(); l["tunnels_vxlan"] < 40 {
			return fmt.Errorf("ledger: %v", l)
		}
		return nil
	})
	stop()
	if err := tapBalance(s); err != nil {
		t.Error(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	want := flow.Key{Src: inner.As16(), Dst: other.As16(), SrcPort: 40000, DstPort: 7777, Protocol: packet.ProtoTCP}
	for _, vni := range []uint32{42, 4242} {
		want.Tunnel = vni
		found := 0
		for _, e := range f.ends {
			// Each way the echo of 10 KiB takes 10 segments, beside the handshake.
			if e.Key == want && e.Totals.PacketsFwd > 10 && e.Totals.PacketsRev > 10 && e.Totals.BytesFwd > 10<<10 {
				found++
			}
		}
		if found != 1 {
			t.Errorf("network %d: %d whole flows, want 1", vni, found)
		}
	}
	if l := s.Ledger(); l["tunnels_unopened_no_packet"] == 0 {
		t.Errorf("no ARP was seen in the networks: %v", l)
	}
}

// needKernel ends a test for which the kernel lacks a kind of device.
func needKernel(t *testing.T, err error) {
	t.Helper()
	if os.Getenv("TIDEGATE_CI") == "1" || !strings.Contains(err.Error(), "Unknown device type") {
		t.Fatal(err)
	}
	t.Skip(err)
}
