package classify

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
	"github.com/tidegate-mesh/tidegate/libs/packet"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/sketch"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/header"
)

const (
	labStart = int64(1_700_000_000_000_000_000)
	labSlot  = int64(100e6)
)

var victim = netip.MustParseAddr("10.77.0.2")

// lab drives an engine with windows made of frames.
type lab struct {
	t      testing.TB
	e      *Engine
	rng    *rand.Rand
	now    int64 // start of the window being filled
	seq    uint64
	id     uint64
	target map[netip.Prefix]*flowv1.Target
	hll    map[netip.Prefix]*sketch.HLL
	seen   map[netip.Prefix]int
	nets   bool // windows tell of /24 and /16 too
	batch  flowv1.FlowBatch
	out    WindowResult
}

func newLab(t testing.TB, edit ...func(*EngineConfig)) *lab {
	t.Helper()
	cfg := DefaultEngineConfig()
	for _, f := range edit {
		f(&cfg)
	}
	e, err := NewEngine(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, e: e, rng: rand.New(rand.NewPCG(1, 2)), now: labStart} //nolint:gosec // reproducible
	l.clear()
	return l
}

func (l *lab) clear() {
	l.target, l.hll, l.seen = make(map[netip.Prefix]*flowv1.Target), make(map[netip.Prefix]*sketch.HLL), make(map[netip.Prefix]int)
}

func (l *lab) of(dst netip.Prefix) *flowv1.Target {
	t := l.target[dst]
	if t == nil {
		a := dst.Addr().As16()
		t = &flowv1.Target{Addr: a[:], PrefixLen: uint32(128 - 32 + dst.Bits()), Counters: &flowv1.Counters{}} //nolint:gosec // few
		l.target[dst], l.hll[dst] = t, &sketch.HLL{}
	}
	return t
}

// samplesOf is how many a window has of a host, and of a network.
func samplesOf(dst netip.Prefix) int {
	if dst.IsSingleIP() {
		return 64
	}
	return 16
}

// frame counts an Ethernet frame at offset ns within the window. solicited: the receiver asked for it.
func (l *lab) frame(f []byte, offset int64, solicited bool) {
	var p packet.Packet
	if r := p.Decode(f); r != packet.OK {
		l.t.Fatalf("frame: %v", r)
	}
	dst := flow.Addr(p.Dst)
	lengths := []int{32}
	if l.nets {
		lengths = []int{32, 24, 16}
	}
	for _, n := range lengths {
		l.count(netip.PrefixFrom(dst, n).Masked(), &p, f, offset, solicited)
	}
}

func (l *lab) count(dst netip.Prefix, p *packet.Packet, f []byte, offset int64, solicited bool) {
	t := l.of(dst)
	c := t.GetCounters()
	c.Packets++
	c.Bytes += uint64(p.IPLen)
	switch p.Proto {
	case 6:
		c.Tcp++
		if p.TCPFlags&(policy.SYN|policy.ACK) == policy.SYN {
			c.Syn++
		}
	case 17:
		c.Udp++
		if !solicited && header.Reflector(p.SrcPort) {
			reflected(t, p, f)
		}
	case 1, 58:
		c.Icmp++
	}
	l.hll[dst].Add(sketch.Mix(binary.BigEndian.Uint64(p.Src[8:])))
	l.seen[dst]++
	h := f[p.L3:]
	s := &flowv1.HeaderSample{TimeNs: l.now + offset, Length: uint32(p.IPLen), Header: append([]byte(nil), h[:min(len(h), 128)]...)}
	if limit := samplesOf(dst); len(t.Samples) < limit {
		t.Samples = append(t.Samples, s)
	} else if i := l.rng.IntN(l.seen[dst]); i < limit {
		t.Samples[i] = s
	}
}

func reflected(t *flowv1.Target, p *packet.Packet, f []byte) {
	var r *flowv1.Reflector
	for _, x := range t.Reflectors {
		if x.Port == uint32(p.SrcPort) {
			r = x
		}
	}
	if r == nil {
		r = &flowv1.Reflector{Port: uint32(p.SrcPort)}
		t.Reflectors = append(t.Reflectors, r)
	}
	r.Packets++
	r.Bytes += uint64(p.IPLen)
	if b := f[p.Payload:]; p.SrcPort == 53 && len(b) > 3 && b[2]&0x80 != 0 || p.SrcPort == 123 && len(b) > 3 && b[0]&0x87 == 0x87 {
		r.Marked++
	}
}

// close judges the window and begins the next.
func (l *lab) close(sources ...*flowv1.Source) *WindowResult {
	l.t.Helper()
	l.seq++
	w := &flowv1.Window{Sensor: "lab", Epoch: 1, Sequence: l.seq, StartNs: l.now, EndNs: l.now + labSlot, Sources: sources}
	for a, t := range l.target {
		t.SourceRegisters = l.hll[a][:]
		w.Targets = append(w.Targets, t)
	}
	slices.SortFunc(w.Targets, func(a, b *flowv1.Target) int { // hosts, then their networks, as sensors do
		return cmp.Or(cmp.Compare(b.PrefixLen, a.PrefixLen), bytes.Compare(a.Addr, b.Addr))
	})
	if err := l.e.Window(w, &l.out); err != nil {
		l.t.Fatal(err)
	}
	l.clear()
	l.now += labSlot
	return &l.out
}

// benign is one window of n clients' completed connections to the victim, the clients taken in turn.
func (l *lab) benign(clients []netip.Addr, n int) {
	flow.Reset(&l.batch)
	l.batch.Sensor, l.batch.Epoch = "lab", 1
	for i := range n {
		c := clients[(int(l.seq)*n+i)%len(clients)]
		port := []uint16{443, 80}[i%2]
		h := packet.Header{Src: c, Dst: victim, TTL: 64, DontFragment: true}
		sport := uint16(32768 + l.rng.IntN(28000))
		syn := packet.TCP{SrcPort: sport, DstPort: port, Seq: l.rng.Uint32(), Flags: policy.SYN, Window: 64240, Options: loadgen.LinuxSYNOptions(l.rng.Uint32())}
		l.frame(h.AppendTCP(nil, &syn, nil), int64(i)*1e6, false)
		ack := packet.TCP{SrcPort: sport, DstPort: port, Flags: policy.ACK, Window: 502}
		l.frame(h.AppendTCP(nil, &ack, make([]byte, 200)), int64(i)*1e6+5e5, false)
		l.of(netip.PrefixFrom(victim, 32)).GetCounters().Handshakes++
		l.id++
		k := flow.Key{Src: c.As16(), Dst: victim.As16(), SrcPort: sport, DstPort: port, Protocol: 6}
		flow.AppendOpen(&l.batch, &flow.Open{ID: l.id, Key: k, FirstNs: l.now})
		flow.AppendSegment(&l.batch, l.id, 0, 0, l.now, []byte("GET / HTTP/1.1\r\nHost: shop.example.net\r\n\r\n"))
		flow.AppendSegment(&l.batch, l.id, 1, 0, l.now, []byte("HTTP/1.1 200 OK\r\n\r\n"))
		flow.AppendEnd(&l.batch, &flow.End{ID: l.id, Key: k, FirstNs: l.now, LastNs: l.now, Totals: flow.Totals{PacketsFwd: 4, PacketsRev: 4, BytesFwd: 500, BytesRev: 500}})
	}
	var out BatchResult
	if err := l.e.Batch(&l.batch, &out); err != nil {
		l.t.Fatal(err)
	}
	if len(out.Records) != n {
		l.t.Fatalf("%d records of %d flows", len(out.Records), n)
	}
}

// attack adds n frames of a generator over the window.
func (l *lab) attack(f *loadgen.Frames, n int) {
	for i := range n {
		l.frame(f.Next(nil), int64(i)*labSlot/int64(n), false)
	}
}

func clients(n int) []netip.Addr {
	out := make([]netip.Addr, n)
	for i := range out {
		out[i] = netip.AddrFrom4([4]byte{10, 77, byte(1 + i/200), byte(10 + i%200)})
	}
	return out
}

// dropped is what XDP would do with a packet: the most specific matching rule wins, an allow before a drop. A rule that waits
// for retries drops a packet that nobody sends again.
func dropped(f *header.Facts, rules []policy.Rule) bool {
	drop := false
	for i := range rules {
		if !f.Matched(&rules[i].Match) {
			continue
		}
		switch rules[i].Action {
		case policy.Allow:
			return false
		case policy.Drop:
			drop = true
		case policy.RateLimit:
			drop = drop || rules[i].SYNRetry
		}
	}
	return drop
}

func facts(t testing.TB, frame []byte) header.Facts {
	t.Helper()
	f, ok := header.Parse(&flowv1.HeaderSample{Header: frame[14:]})
	if !ok {
		t.Fatal("frame cannot be parsed")
	}
	return f
}
