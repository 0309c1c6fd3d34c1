package window

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/packet"
	"github.com/tidegate-mesh/tidegate/libs/sketch"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	"github.com/tidegate-mesh/tidegate/services/ingest/internal/flowtable"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
)

// rig is a flow table in front of builders.
type rig struct {
	t     *testing.T
	table *flowtable.Table
	out   flowtable.Out
	now   int64
	p     packet.Packet
}

func newRig(t *testing.T) *rig {
	t.Helper()
	c := flowtable.DefaultConfig()
	c.MaxFlows = 1 << 16
	return &rig{t: t, table: flowtable.New(c, 0), out: flowtable.Out{Batches: []*flowv1.FlowBatch{{}}}, now: 1_700_000_000_000_000_000}
}

// add decodes a frame, accounts it and adds it to every builder.
func (r *rig) add(f []byte, to ...*Builder) {
	r.t.Helper()
	reason := r.p.Decode(f)
	if reason == packet.NotIP {
		for _, b := range to {
			b.Add(&r.p, f[r.p.L3:], r.now, &flowtable.Observation{})
		}
		return
	}
	if reason != packet.OK {
		r.t.Fatalf("decode: %v", reason)
	}
	o := r.table.Account(&r.p, f[r.p.Payload:r.p.Payload+r.p.PayloadLen], r.now, 0, &r.out)
	for _, b := range to {
		b.Add(&r.p, f[r.p.L3:], r.now, &o)
	}
}

func (r *rig) silence(to ...*Builder) {
	r.now += 4_000_000_000
	for r.table.Advance(r.now, &r.out, func(f *flowtable.Failure) {
		for _, b := range to {
			b.Failure(f)
		}
	}) {
		continue
	}
}

func header(src, dst netip.Addr) packet.Header { return packet.Header{Src: src, Dst: dst} }

func v4(a, b, c, d int) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(a), byte(b), byte(c), byte(d)})
}

func encode(t *testing.T, b *Builder) *flowv1.Window {
	t.Helper()
	w := &flowv1.Window{}
	b.Encode(w)
	if n := proto.Size(w); n > 1<<20-1<<12 {
		t.Errorf("the window has %d bytes", n)
	}
	return w
}

func target(w *flowv1.Window, prefix string) *flowv1.Target {
	p := netip.MustParsePrefix(prefix)
	n := p.Bits()
	if p.Addr().Is4() {
		n += 96
	}
	for _, t := range w.Targets {
		if flow.AddrBytes(t.Addr) == p.Addr() && int(t.PrefixLen) == n {
			return t
		}
	}
	return nil
}

func counts(b []byte) []uint32 {
	var list []uint32
	for ; len(b) >= 4; b = b[4:] {
		list = append(list, binary.LittleEndian.Uint32(b))
	}
	return list
}

func distinct(b []byte) float64 {
	var h sketch.HLL
	h.Merge(b)
	return h.Estimate()
}

func TestHistogramsAndCounters(t *testing.T) {
	r, b := newRig(t), New(Config{})
	src, dst := v4(192, 0, 2, 1), v4(198, 51, 100, 7)
	h := header(src, dst)
	h.TTL = 57
	r.add(h.AppendTCP(nil, &packet.TCP{SrcPort: 1, DstPort: 80, Flags: packet.FlagSYN}, nil), b)
	r.add(h.AppendTCP(nil, &packet.TCP{SrcPort: 1, DstPort: 80, Flags: packet.FlagACK}, nil), b)
	r.add(h.AppendTCP(nil, &packet.TCP{SrcPort: 1, DstPort: 80, Flags: packet.FlagACK | packet.FlagPSH}, make([]byte, 500)), b)
	r.add(h.AppendTCP(nil, &packet.TCP{SrcPort: 2, DstPort: 80, Flags: packet.FlagACK | packet.FlagRST}, nil), b)
	r.add(h.AppendTCP(nil, &packet.TCP{SrcPort: 3, DstPort: 80, Flags: packet.FlagACK | packet.FlagSYN}, nil), b)
	r.add(h.AppendUDP(nil, 4, 53, make([]byte, 1400)), b)
	r.add(h.AppendICMP(nil, 8, 0, 0, nil), b)
	f := h
	f.MoreFragments = true
	r.add(append(f.AppendIP(nil, packet.ProtoUDP, 16), make([]byte, 16)...), b)
	r.add(append(h.AppendIP(nil, 47, 8), make([]byte, 8)...), b)
	arp := header(src, dst)
	r.add(arp.AppendARP(nil, 1, [6]byte{}), b)

	w := encode(t, b)
	bytes := uint64(40 + 40 + 540 + 40 + 40 + 1428 + 28 + 36 + 28)
	want := &flowv1.Counters{
		Packets: 9, Bytes: bytes, Tcp: 5, Udp: 2, Icmp: 1, Other: 1, Fragments: 1, Syn: 1, SynAck: 1, Rst: 1, AckOnly: 1,
		Handshakes: 1, Opens: 7, OutOfState: 2,
	}
	for _, prefix := range []string{"198.51.100.7/32", "198.51.100.0/24", "198.51.0.0/16"} {
		x := target(w, prefix)
		if x == nil {
			t.Fatalf("no target %s", prefix)
		}
		if d := cmp.Diff(want, x.Counters, protocmp.Transform()); d != "" {
			t.Errorf("%s: counters (-want +got):\n%s", prefix, d)
		}
		lengths := make([]uint32, 16)
		for _, l := range []uint16{40, 40, 540, 40, 40, 1428, 28, 36, 28} {
			lengths[LengthClass(l)]++
		}
		if d := cmp.Diff(lengths, counts(x.LengthHistogram)); d != "" {
			t.Errorf("%s: lengths (-want +got):\n%s", prefix, d)
		}
		if d := cmp.Diff([]uint32{0, 2, 1, 1, 4, 0, 0, 0}, counts(x.FlagHistogram)); d != "" {
			t.Errorf("%s: flags (-want +got):\n%s", prefix, d)
		}
		if ttl := counts(x.TtlHistogram); len(ttl) != 32 || ttl[7] != 9 {
			t.Errorf("%s: ttl %v", prefix, ttl)
		}
		if len(x.Samples) != 9 || len(x.TopSources) != 1 || x.TopSources[0].Packets != 9 || x.TopSources[0].Bytes != bytes {
			t.Errorf("%s: %d samples, top %v", prefix, len(x.Samples), x.TopSources)
		}
		if p := x.DstPorts; p[0].Port != 80 || p[0].Packets != 5 || p[0].Protocol != 6 {
			t.Errorf("%s: ports %v", prefix, p)
		}
	}
	s := target(w, "198.51.100.7/32").Samples[2]
	if s.Length != 540 || len(s.Header) != sampleBytes || s.Header[0] != 0x45 || s.TimeNs != r.now {
		t.Errorf("sample %v", s)
	}
	want = proto.Clone(want).(*flowv1.Counters)
	want.Packets, want.Other = want.Packets+1, want.Other+1
	if d := cmp.Diff(want, w.Total, protocmp.Transform()); d != "" {
		t.Errorf("total (-want +got):\n%s", d)
	}
}

func TestLengthClass(t *testing.T) {
	for l, want := range map[uint16]int{0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 40: 5, 63: 5, 64: 6, 1500: 10, 65535: 15} {
		if c := LengthClass(l); c != want {
			t.Errorf("LengthClass(%d) = %d, want %d", l, c, want)
		}
	}
}

// TestHeavyHittersUnderSkew floods one host from random sources, with a few heavy ones among them, while many
// other hosts get a packet now and then.
func TestHeavyHittersUnderSkew(t *testing.T) {
	r, b := newRig(t), New(Config{Seed: 5})
	rng := rand.New(rand.NewPCG(1, 2))
	victim := v4(198, 51, 100, 7)
	for i := range 200_000 {
		src, dst := v4(rng.IntN(200)+1, rng.IntN(256), rng.IntN(256), rng.IntN(256)), victim
		switch {
		case i%10 == 0:
			src = v4(203, 0, 113, i/10%5)
		case i%3 == 0:
			dst = v4(20+rng.IntN(100), rng.IntN(256), rng.IntN(256), rng.IntN(256))
		}
		p := packet.Packet{Src: src.As16(), Dst: dst.As16(), SrcPort: 1000, DstPort: 80, Proto: 6, IPLen: 40, IsIP: true, TTL: 64, TCPFlags: packet.FlagSYN}
		b.Add(&p, nil, r.now, &flowtable.Observation{New: true, Attempt: true})
	}
	w := encode(t, b)
	if len(w.Targets) != MaxHosts+MaxNets+MaxRegions || len(w.Sources) != MaxSources {
		t.Errorf("%d targets, %d sources", len(w.Targets), len(w.Sources))
	}
	x := w.Targets[0]
	if flow.AddrBytes(x.Addr) != victim || x.Counters.Packets != 140_000 {
		t.Fatalf("heaviest is %v with %d packets", flow.AddrBytes(x.Addr), x.Counters.Packets)
	}
	if d := distinct(x.SourceRegisters); math.Abs(d-120_000) > 25_000 {
		t.Errorf("%.0f distinct sources, want about 120000", d)
	}
	for i := range 5 {
		s := x.TopSources[i]
		if a := flow.AddrBytes(s.Addr); a.As4()[0] != 203 || s.Packets < 3600 || s.Packets > 4000 {
			t.Errorf("top source %d is %v with %d packets", i, a, s.Packets)
		}
	}
	if n := x.TopSources[5].Packets; n > 10 {
		t.Errorf("a random source is said to have sent %d packets", n)
	}
	if len(x.Samples) != hostSamples || x.DstPorts[0].Packets != 140_000 {
		t.Errorf("%d samples, ports %v", len(x.Samples), x.DstPorts)
	}
	var sum uint64
	for _, t := range w.Targets[MaxHosts:] {
		if t.PrefixLen == 112 {
			sum += t.Counters.Packets
		}
	}
	if sum < 140_000 || sum > 200_000 {
		t.Errorf("/16s have %d packets", sum)
	}
	var heavy int
	for _, s := range w.Sources {
		if a := flow.AddrBytes(s.Addr).As4(); a[0] == 203 && a[1] == 0 && s.Attempts > 3600 {
			heavy++
		}
	}
	if heavy != 5 {
		t.Errorf("%d of 5 heavy sources", heavy)
	}
}

// TestCarpet floods a /24 so thinly that no host is heavy.
func TestCarpet(t *testing.T) {
	b := New(Config{})
	// Other hosts take the details that are given freely.
	for i := range 500 {
		p := packet.Packet{Src: v4(1, 1, 1, 1).As16(), Dst: v4(10, 0, i/250, i%250).As16(), Proto: 17, IPLen: 100, IsIP: true}
		b.Add(&p, nil, 1, &flowtable.Observation{})
	}
	for i := range 2560 {
		p := packet.Packet{Src: v4(203, 0, 113, i%7).As16(), Dst: v4(198, 51, 100, i%256).As16(), SrcPort: 9, DstPort: 7, Proto: 17, IPLen: 100, IsIP: true, TTL: 64}
		b.Add(&p, nil, 1, &flowtable.Observation{})
	}
	w := encode(t, b)
	x := target(w, "198.51.100.0/24")
	if x == nil || x.Counters.Packets != 2560 || x.Counters.Udp != 2560 || x.Counters.Bytes != 256_000 {
		t.Fatalf("the /24: %v", x.GetCounters())
	}
	if d := distinct(x.SourceRegisters); math.Round(d) != 7 || len(x.Samples) == 0 || x.DstPorts[0].Packets < 2500 {
		t.Errorf("%v sources, %d samples, ports %v", d, len(x.Samples), x.DstPorts)
	}
	if x = target(w, "198.51.0.0/16"); x == nil || x.Counters.Packets != 2560 {
		t.Errorf("the /16: %v", x.GetCounters())
	}
}

func dnsAnswer() []byte {
	b := make([]byte, 60)
	b[2] = 0x81
	return b
}

func TestReflectors(t *testing.T) {
	r, b := newRig(t), New(Config{})
	victim, client := v4(198, 51, 100, 7), v4(198, 51, 100, 8)
	monlist := append([]byte{0xD7, 0, 3, 42}, make([]byte, 400)...)
	for i := range 3 {
		h := header(v4(203, 0, 113, i), victim)
		r.add(h.AppendUDP(nil, 123, 4000, monlist), b)
		r.add(h.AppendUDP(nil, 123, 4001, []byte{0x24, 1, 2, 3}), b)
		r.add(h.AppendUDP(nil, 53, 4000, dnsAnswer()), b)
		r.add(h.AppendUDP(nil, 1900, 4000, []byte("HTTP/1.1 200 OK")), b)
	}
	// A client that asks gets answers that nobody minds.
	h, back := header(client, v4(203, 0, 113, 1)), header(v4(203, 0, 113, 1), client)
	r.add(h.AppendUDP(nil, 4000, 53, make([]byte, 20)), b)
	r.add(back.AppendUDP(nil, 53, 4000, dnsAnswer()), b)
	w := encode(t, b)
	want := []*flowv1.Reflector{
		{Port: 123, Packets: 6, Bytes: 3 * (32 + 432), Marked: 3},
		{Port: 53, Packets: 3, Bytes: 3 * 88, Marked: 3},
		{Port: 1900, Packets: 3, Bytes: 3 * 43},
	}
	if d := cmp.Diff(want, target(w, "198.51.100.7/32").Reflectors, protocmp.Transform()); d != "" {
		t.Errorf("reflectors (-want +got):\n%s", d)
	}
	if x := target(w, "198.51.100.8/32"); len(x.Reflectors) != 0 {
		t.Errorf("asked for, and counted: %v", x.Reflectors)
	}
	if x := target(w, "198.51.100.0/24"); x.Reflectors[0].Marked != 3 || x.Reflectors[0].Packets != 6 {
		t.Errorf("the /24 has %v", x.Reflectors)
	}
	for _, s := range w.Sources {
		if a := flow.AddrBytes(s.Addr); a != client {
			t.Errorf("the reflector %v is said to try something", a)
		}
	}
}

// TestOneMarkedPacketIsSeen hides one monlist answer among hosts with far more traffic.
func TestOneMarkedPacketIsSeen(t *testing.T) {
	r, b := newRig(t), New(Config{})
	for i := range 300 * 40 {
		p := packet.Packet{Src: v4(1, 1, 1, 1).As16(), Dst: v4(10, 0, i%300/100, i%100).As16(), Proto: 17, IPLen: 100, IsIP: true}
		b.Add(&p, nil, 1, &flowtable.Observation{})
	}
	h := header(v4(203, 0, 113, 9), v4(198, 51, 100, 7))
	r.add(h.AppendUDP(nil, 123, 4000, []byte{0x97, 0, 3, 20, 0, 0, 0, 0}), b)
	w := encode(t, b)
	x := target(w, "198.51.100.7/32")
	if x == nil || x.Reflectors[0].Marked != 1 {
		t.Fatalf("the target: %v", x)
	}
	hosts := slices.DeleteFunc(slices.Clone(w.Targets), func(t *flowv1.Target) bool { return t.PrefixLen != 128 })
	if len(hosts) != MaxHosts {
		t.Errorf("%d hosts", len(hosts))
	}
}

func TestResetEmpties(t *testing.T) {
	r, b := newRig(t), New(Config{})
	h := header(v4(203, 0, 113, 9), v4(198, 51, 100, 7))
	for i := range 100 {
		r.add(h.AppendUDP(nil, 53, uint16(i), dnsAnswer()), b)
	}
	w := encode(t, b)
	b.Reset()
	if !b.Empty() {
		t.Error("not empty")
	}
	h = header(v4(203, 0, 113, 10), v4(198, 51, 100, 9))
	r.add(h.AppendUDP(nil, 7, 9, nil), b)
	b.Encode(w) // over the old one
	fresh := New(Config{})
	r2 := newRig(t)
	r2.add(h.AppendUDP(nil, 7, 9, nil), fresh)
	if d := cmp.Diff(encode(t, fresh), w, protocmp.Transform()); d != "" {
		t.Errorf("traces of the window before (-fresh +reset):\n%s", d)
	}
}

func TestV6Prefixes(t *testing.T) {
	r, b := newRig(t), New(Config{})
	h := header(netip.MustParseAddr("2001:db8:1:2::9"), netip.MustParseAddr("2001:db8:5:6::7"))
	r.add(h.AppendUDP(nil, 7, 9, nil), b)
	w := encode(t, b)
	for _, p := range []string{"2001:db8:5:6::7/128", "2001:db8:5:6::/64", "2001:db8:5::/48"} {
		if target(w, p) == nil {
			t.Errorf("no target %s", p)
		}
	}
}

// TestSizeIsBounded fills everything with IPv6 and large counts.
func TestSizeIsBounded(t *testing.T) {
	b := New(Config{})
	rng := rand.New(rand.NewPCG(9, 9))
	ip := make([]byte, 200)
	for range 300_000 {
		p := packet.Packet{Proto: uint8(rng.IntN(200)), SrcPort: uint16(rng.IntN(60000)), DstPort: uint16(rng.IntN(60000)), IPLen: 60000, IsIP: true, IsV6: true}
		binary.BigEndian.PutUint64(p.Src[:], rng.Uint64N(300)+1)
		binary.BigEndian.PutUint64(p.Dst[:], (rng.Uint64N(20)+1)<<48)
		binary.BigEndian.PutUint64(p.Dst[8:], rng.Uint64N(10))
		o := flowtable.Observation{New: true, Attempt: true, Failed: true, Failure: &flowtable.Failure{Key: p.Key(), FirstNs: math.MaxInt64}}
		b.Add(&p, ip, math.MaxInt64, &o)
	}
	w := encode(t, b)
	t.Logf("%d bytes, %d targets, %d sources", proto.Size(w), len(w.Targets), len(w.Sources))
}

func TestNoAllocations(t *testing.T) {
	b := New(Config{})
	rng := rand.New(rand.NewPCG(9, 9))
	ps := make([]packet.Packet, 1000)
	for i := range ps {
		ps[i] = packet.Packet{Src: v4(1, rng.IntN(256), rng.IntN(256), 1).As16(), Dst: v4(10, 0, rng.IntN(9), rng.IntN(256)).As16(), Proto: 6, IPLen: 100, IsIP: true}
	}
	o := flowtable.Observation{New: true, Attempt: true}
	ip := make([]byte, 100)
	if n := testing.AllocsPerRun(50, func() {
		for i := range ps {
			b.Add(&ps[i], ip, 1, &o)
		}
		b.Reset()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
