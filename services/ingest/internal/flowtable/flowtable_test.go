package flowtable

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
	"unsafe"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/packet"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	"google.golang.org/protobuf/proto"
)

const (
	flagFIN = packet.FlagFIN
	flagSYN = packet.FlagSYN
	flagRST = packet.FlagRST
	flagPSH = packet.FlagPSH
	flagACK = packet.FlagACK
	flagURG = packet.FlagURG
)

// rig drives a table with real frames and collects what it says.
type rig struct {
	t        *testing.T
	table    *Table
	out      *flowv1.FlowBatch
	to       *Out // out alone
	now      int64
	failures []Failure
	p        packet.Packet
}

func newRig(t *testing.T, change func(*Config)) *rig {
	t.Helper()
	c := DefaultConfig()
	c.MaxFlows = 1 << 14
	c.SummariseAbove = 0
	if change != nil {
		change(&c)
	}
	out := &flowv1.FlowBatch{}
	return &rig{t: t, table: New(c, 3), out: out, to: &Out{Batches: []*flowv1.FlowBatch{out}}, now: 1_700_000_000_000_000_000}
}

func header(src, dst string) packet.Header {
	return packet.Header{Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst)}
}

func (r *rig) frame(f []byte) Observation {
	r.t.Helper()
	if reason := r.p.Decode(f); reason != packet.OK {
		r.t.Fatalf("decode: %v", reason)
	}
	o := r.table.Account(&r.p, f[r.p.Payload:r.p.Payload+r.p.PayloadLen], r.now, 1, r.to)
	if o.Failed {
		r.failures = append(r.failures, *o.Failure)
	}
	return o
}

func (r *rig) tcp(src string, sport uint16, dst string, dport uint16, flags uint8, seq uint32, payload string) Observation {
	r.t.Helper()
	h := header(src, dst)
	return r.frame(h.AppendTCP(nil, &packet.TCP{SrcPort: sport, DstPort: dport, Flags: flags, Seq: seq}, []byte(payload)))
}

func (r *rig) udp(src string, sport uint16, dst string, dport uint16, payload string) Observation {
	r.t.Helper()
	h := header(src, dst)
	return r.frame(h.AppendUDP(nil, sport, dport, []byte(payload)))
}

// wait lets time pass in steps, as a queue does.
func (r *rig) wait(d time.Duration) {
	for end := r.now + int64(d); r.now < end; {
		r.now = min(r.now+int64(50*time.Millisecond), end)
		for r.table.Advance(r.now, r.to, func(f *Failure) { r.failures = append(r.failures, *f) }) {
			continue
		}
	}
}

func (r *rig) flush() {
	for r.table.Flush(r.now, r.to, nil) {
		continue
	}
}

func (r *rig) ends() []flow.End {
	r.t.Helper()
	if err := flow.Validate(r.out); err != nil {
		r.t.Fatal(err)
	}
	var list []flow.End
	for i := range int(r.out.GetEnds().GetCount()) {
		list = append(list, flow.EndAt(r.out.Ends, i))
	}
	return list
}

func (r *rig) ledger() {
	r.t.Helper()
	s := r.table.Stats()
	if s.Created != s.Ended+s.Active+s.Summarised+s.Evicted {
		r.t.Fatalf("ledger does not balance: %+v", s)
	}
}

func TestEntryFillsTwoCacheLines(t *testing.T) {
	if s := unsafe.Sizeof(entry{}); s != 128 {
		t.Errorf("an entry has %d bytes, want 128", s)
	}
}

// TestTunnels has one 5-tuple in two networks and outside of any.
func TestTunnels(t *testing.T) {
	r := newRig(t, nil)
	there, back := header("10.0.0.1", "10.0.0.2"), header("10.0.0.2", "10.0.0.1")
	in := func(tunnel uint32, f []byte) Observation {
		t.Helper()
		if reason := r.p.Decode(f); reason != packet.OK {
			t.Fatal(reason)
		}
		r.p.Tunnel = tunnel
		return r.table.Account(&r.p, f[r.p.Payload:r.p.Payload+r.p.PayloadLen], r.now, 1, r.to)
	}
	question := there.AppendUDP(nil, 4000, 53, []byte("question"))
	ids := map[uint64]uint32{}
	for _, tunnel := range []uint32{0, 7, 1<<32 - 1} {
		o := in(tunnel, question)
		if !o.New || o.Key.Tunnel != tunnel {
			t.Errorf("tunnel %d: %+v", tunnel, o)
		}
		ids[o.ID] = tunnel
	}
	if len(ids) != 3 {
		t.Fatalf("flows %v, want three", ids)
	}
	// An answer belongs to the flow in its own network, and so does what says that there will be none.
	if o := in(7, back.AppendUDP(nil, 53, 4000, []byte("answer"))); ids[o.ID] != 7 || !o.Reverse {
		t.Errorf("the answer: %+v", o)
	}
	if o := in(1<<32-1, back.AppendICMP(nil, 3, 3, 0, question[14:])); !o.Failed || ids[o.Failure.ID] != 1<<32-1 {
		t.Errorf("unreachable: %+v", o)
	}
	if o := in(8, back.AppendICMP(nil, 3, 3, 0, question[14:])); o.Failed {
		t.Errorf("unreachable of another network: %+v", o)
	}
	r.flush()
	if ends := r.ends(); len(ends) != 5 {
		t.Errorf("%d flows, want 5", len(ends))
	}
	r.ledger()
}

func TestFailures(t *testing.T) {
	quote := func(f []byte) []byte { return f[14:] }
	tests := []struct {
		name string
		play func(r *rig)
		want []FailureReason
	}{
		{"refused", func(r *rig) {
			r.tcp("192.0.2.1", 1, "198.51.100.1", 80, flagSYN, 1, "")
			r.tcp("198.51.100.1", 80, "192.0.2.1", 1, flagRST|flagACK, 0, "")
			r.tcp("192.0.2.1", 1, "198.51.100.1", 80, flagSYN, 1, "") // the client tries again
			r.tcp("198.51.100.1", 80, "192.0.2.1", 1, flagRST|flagACK, 0, "")
		}, []FailureReason{Refused}},
		{"silence", func(r *rig) { r.tcp("192.0.2.1", 1, "198.51.100.1", 80, flagSYN, 1, "") }, []FailureReason{Silence}},
		{"silence udp", func(r *rig) { r.udp("192.0.2.1", 1, "198.51.100.1", 80, "x") }, []FailureReason{Silence}},
		{"half-open scan of an open port", func(r *rig) {
			r.tcp("192.0.2.1", 1, "198.51.100.1", 80, flagSYN, 1, "")
			r.tcp("198.51.100.1", 80, "192.0.2.1", 1, flagSYN|flagACK, 0, "")
			r.tcp("192.0.2.1", 1, "198.51.100.1", 80, flagRST, 2, "")
		}, nil},
		{"reset after data", func(r *rig) {
			r.tcp("192.0.2.1", 1, "198.51.100.1", 80, flagSYN, 1, "")
			r.tcp("198.51.100.1", 80, "192.0.2.1", 1, flagSYN|flagACK, 0, "")
			r.tcp("192.0.2.1", 1, "198.51.100.1", 80, flagACK, 2, "GET")
			r.tcp("198.51.100.1", 80, "192.0.2.1", 1, flagRST, 1, "")
		}, nil},
		{"ack scan", func(r *rig) {
			r.tcp("192.0.2.1", 1, "198.51.100.1", 80, flagACK, 1, "")
			r.tcp("198.51.100.1", 80, "192.0.2.1", 1, flagRST, 0, "")
		}, []FailureReason{Refused}},
		{"null scan", func(r *rig) { r.tcp("192.0.2.1", 1, "198.51.100.1", 80, 0, 1, "") }, []FailureReason{Silence}},
		{"backscatter", func(r *rig) {
			r.tcp("192.0.2.1", 80, "198.51.100.1", 1, flagSYN|flagACK, 1, "")
			r.tcp("192.0.2.1", 80, "198.51.100.2", 1, flagRST|flagACK, 1, "")
			r.tcp("192.0.2.1", 80, "198.51.100.3", 1, flagRST, 1, "")
		}, nil},
		{"answer of a reflector", func(r *rig) { r.udp("192.0.2.1", 53, "198.51.100.1", 4000, "x") }, nil},
		{"multicast", func(r *rig) { r.udp("192.0.2.1", 5353, "224.0.0.251", 5353, "x") }, nil},
		{"mid-stream", func(r *rig) { r.tcp("192.0.2.1", 1, "198.51.100.1", 80, flagACK, 1, "x") }, nil},
		{"unreachable", func(r *rig) {
			h := header("192.0.2.1", "198.51.100.1")
			f := h.AppendUDP(nil, 7, 9, []byte("x"))
			r.frame(f)
			b := header("198.51.100.1", "192.0.2.1")
			o := r.frame(b.AppendICMP(nil, 3, 3, 0, quote(f)))
			if !o.New || o.Attempt || !o.Failed {
				r.t.Errorf("unreachable: %+v", o)
			}
			r.frame(b.AppendICMP(nil, 3, 3, 0, quote(f)))
		}, []FailureReason{Unreachable}},
		{"unreachable v6", func(r *rig) {
			h := header("2001:db8::1", "2001:db8::2")
			f := h.AppendTCP(nil, &packet.TCP{SrcPort: 7, DstPort: 9, Flags: flagSYN}, nil)
			r.frame(f)
			b := header("2001:db8::ff", "2001:db8::1")
			r.frame(b.AppendICMP(nil, 1, 4, 0, quote(f)))
		}, []FailureReason{Unreachable}},
		{"unreachable of nothing we know", func(r *rig) {
			h := header("192.0.2.1", "198.51.100.1")
			b := header("198.51.100.1", "192.0.2.1")
			r.frame(b.AppendICMP(nil, 3, 3, 0, quote(h.AppendUDP(nil, 7, 9, []byte("x")))))
			r.frame(b.AppendICMP(nil, 3, 3, 0, []byte{0x45, 0}))
		}, nil},
		{"protocol unreachable, the question unseen", func(r *rig) {
			h := header("203.0.113.1", "198.51.100.1") // the quote is from before address translation
			b := header("198.51.100.1", "192.0.2.1")
			o := r.frame(b.AppendICMP(nil, 3, 2, 0, quote(h.AppendIP(nil, 99, 0))))
			if f := o.Failure; f == nil || f.Key.Src != o.Key.Dst || f.Key.Dst != o.Key.Src || f.Key.Protocol != 99 {
				r.t.Errorf("failure: %+v", f)
			}
		}, []FailureReason{Unreachable}},
		{"ping answered", func(r *rig) {
			h, b := header("192.0.2.1", "198.51.100.1"), header("198.51.100.1", "192.0.2.1")
			if o := r.frame(h.AppendICMP(nil, 8, 0, 1, nil)); !o.Attempt {
				r.t.Error("echo is no attempt")
			}
			r.frame(b.AppendICMP(nil, 0, 0, 1, nil))
		}, nil},
		{"ping without answer", func(r *rig) {
			h := header("192.0.2.1", "198.51.100.1")
			r.frame(h.AppendICMP(nil, 8, 0, 1, nil))
		}, []FailureReason{Silence}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, nil)
			first := r.now
			tt.play(r)
			r.wait(10 * time.Second)
			if len(r.failures) != len(tt.want) {
				t.Fatalf("failures: %+v, want %v", r.failures, tt.want)
			}
			for i, f := range r.failures {
				if f.Reason != tt.want[i] || f.FirstNs != first || flow.Addr(f.Key.Src).String()[0] != '1' && !flow.Addr(f.Key.Src).Is6() {
					t.Errorf("failure %+v, want %v", f, tt.want[i])
				}
				if f.Reason == Silence && (f.AtNs-first < int64(3*time.Second) || f.AtNs-first > int64(3200*time.Millisecond)) {
					t.Errorf("silence is noticed after %v", time.Duration(f.AtNs-first))
				}
			}
			r.ledger()
		})
	}
}

func TestImpossibleFlags(t *testing.T) {
	for f, want := range map[uint8]bool{
		0: true, flagFIN: true, flagFIN | flagPSH | flagURG: true, flagSYN | flagFIN: true, flagSYN | flagRST: true, flagPSH: true, flagRST | flagFIN: true,
		flagSYN: false, flagSYN | flagACK: false, flagACK: false, flagRST: false, flagRST | flagACK: false, flagFIN | flagACK: false, flagPSH | flagACK: false,
		flagSYN | packet.FlagECE | packet.FlagCWR: false,
	} {
		if ImpossibleFlags(f) != want {
			t.Errorf("ImpossibleFlags(%#x) = %v", f, !want)
		}
	}
	r := newRig(t, nil)
	if o := r.tcp("192.0.2.1", 1, "198.51.100.1", 80, flagFIN|flagPSH|flagURG, 1, ""); !o.Invalid || !o.Attempt || !o.OutOfState {
		t.Errorf("xmas: %+v", o)
	}
}

func TestMeter(t *testing.T) {
	r := newRig(t, nil)
	o := r.udp("192.0.2.1", 1, "198.51.100.1", 80, "x")
	if _, ok := r.table.Meter(o.Key.Reverse(), 10, 1000, r.now+5); !ok {
		t.Fatal("the flow is not found")
	}
	if _, ok := r.table.Meter(flow.Key{}, 10, 1000, r.now); ok {
		t.Fatal("a flow that is not there is found")
	}
	if o := r.udp("192.0.2.1", 1, "198.51.100.1", 80, "x"); !o.Solicited {
		t.Error("forwarded packets are no answer")
	}
	r.flush()
	if e := r.ends(); len(e) != 1 || e[0].Totals.PacketsRev != 10 || e[0].Totals.BytesRev != 1000 || e[0].Totals.PacketsFwd != 2 {
		t.Errorf("ends: %+v", e)
	}
}

// TestLedgerUnderRandomTraffic plays random packets at random times against a small table.
func TestLedgerUnderRandomTraffic(t *testing.T) {
	play := func(seed uint64) (*rig, []byte) {
		rng := rand.New(rand.NewPCG(seed, 1))
		r := newRig(t, func(c *Config) { c.MaxFlows = 500; c.InitialFlows = 16; c.SummariseAbove = 3 })
		ids := map[uint64]flow.Key{}
		addr := func() string {
			return netip.AddrFrom4([4]byte{10, 0, byte(rng.IntN(2)), byte(rng.IntN(40))}).String()
		}
		for range 60000 {
			src, dst := addr(), addr()
			sport, dport := uint16(rng.IntN(20)), uint16(rng.IntN(20))
			payload := "payload of some length"[:rng.IntN(3)*7]
			var o Observation
			switch rng.IntN(4) {
			case 0:
				o = r.udp(src, sport, dst, dport, payload)
			case 1:
				h := header(src, dst)
				o = r.frame(h.AppendICMP(nil, uint8(rng.IntN(14)), 0, 0, []byte(payload)))
			default:
				o = r.tcp(src, sport, dst, dport, uint8(rng.IntN(64)), rng.Uint32(), payload)
			}
			if o.New {
				if _, ok := ids[o.ID]; ok {
					t.Fatalf("flow id %x is given twice", o.ID)
				}
				ids[o.ID] = o.Key
			} else if o.ID != 0 && ids[o.ID] != o.Key {
				t.Fatalf("flow id %x has changed its key", o.ID)
			}
			if rng.IntN(50) == 0 {
				r.wait(time.Duration(rng.Int64N(int64(2 * time.Second))))
			}
			r.ledger()
		}
		r.flush()
		r.ledger()
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(r.out)
		if err != nil {
			t.Fatal(err)
		}
		return r, b
	}
	r, first := play(7)
	s := r.table.Stats()
	if s.Active != 0 || s.Ended == 0 || s.Summarised == 0 || s.Evicted == 0 {
		t.Errorf("the traffic does not reach everything: %+v", s)
	}
	var ended, summed uint64
	for _, e := range r.ends() {
		if e.Reason != flowv1.EndReason_END_REASON_ACTIVE {
			ended++
		}
	}
	for _, m := range r.out.Summaries {
		summed += m.Flows
	}
	if ended != s.Ended+s.Evicted || summed != s.Summarised {
		t.Errorf("%d ends and %d in summaries, %+v", ended, summed, s)
	}
	if _, second := play(7); !bytes.Equal(first, second) {
		t.Error("the same packets give other records")
	}
}

func TestNoAllocations(t *testing.T) {
	r := newRig(t, nil)
	h := header("192.0.2.1", "198.51.100.1")
	frames := make([][]byte, 256)
	for i := range frames {
		frames[i] = h.AppendTCP(nil, &packet.TCP{SrcPort: uint16(i % 64), DstPort: 80, Flags: flagACK, Seq: uint32(i)}, []byte("payload"))
	}
	run := func() {
		for _, f := range frames {
			r.frame(f)
			r.now += int64(time.Millisecond)
		}
		r.table.Advance(r.now, r.to, nil)
		flow.Reset(r.out)
	}
	for range 300 {
		run()
	}
	if n := testing.AllocsPerRun(100, run); n != 0 {
		t.Errorf("%v allocations per 256 packets", n)
	}
}

// TestRecordsOfAFlowStayTogether: with several batches, all records of a flow are in the one that its key, in the
// direction of its first packet, is for; together they are what one batch would hold.
func TestRecordsOfAFlowStayTogether(t *testing.T) {
	play := func(batches int) *rig {
		r := newRig(t, func(c *Config) { c.SummariseAbove = 4 })
		for range batches - 1 {
			r.to.Batches = append(r.to.Batches, &flowv1.FlowBatch{})
		}
		r.to.Choose = func(k *flow.Key) int { return int(k.Dst[14]) % batches }
		for i := range 40 {
			server := netip.AddrFrom4([4]byte{198, 51, byte(i % 4), 1}).String()
			r.tcp("192.0.2.1", uint16(1000+i), server, 443, packet.FlagSYN, 1, "")                         //nolint:gosec // small
			r.tcp(server, 443, "192.0.2.1", uint16(1000+i), packet.FlagSYN|packet.FlagACK, 9, "")          //nolint:gosec // small
			r.tcp("192.0.2.1", uint16(1000+i), server, 443, packet.FlagACK|packet.FlagPSH, 2, "request")   //nolint:gosec // small
			r.tcp(server, 443, "192.0.2.1", uint16(1000+i), packet.FlagACK|packet.FlagPSH, 10, "response") //nolint:gosec // small
			r.tcp("192.0.2.9", uint16(1000+i), server, 80, packet.FlagSYN, 1, "")                          //nolint:gosec // small
		}
		r.wait(8 * time.Second)
		for i := range 40 {
			server := netip.AddrFrom4([4]byte{198, 51, byte(i % 4), 1}).String()
			r.tcp("192.0.2.1", uint16(1000+i), server, 443, packet.FlagACK, 9, "") //nolint:gosec // small
		}
		r.wait(30 * time.Second)
		r.flush()
		return r
	}
	one, four := play(1).to.Batches[0], play(4).to.Batches
	var opens, segments, updates, ends, summarised int
	for i, b := range four {
		if err := flow.Validate(b); err != nil {
			t.Fatal(err)
		}
		here := map[uint64]bool{}
		for j := range int(b.GetOpens().GetCount()) {
			o := flow.OpenAt(b.Opens, j)
			here[o.ID] = true
			if int(o.Key.Dst[14]) != i {
				t.Errorf("batch %d: a flow to %v", i, flow.Addr(o.Key.Dst))
			}
		}
		for j := range int(b.GetSegments().GetCount()) {
			if !here[flow.Column(b.Segments.FlowId).U64(j)] {
				t.Errorf("batch %d has a segment of a flow that is elsewhere", i)
			}
		}
		for j := range int(b.GetUpdates().GetCount()) {
			if !here[flow.Column(b.Updates.FlowId).U64(j)] {
				t.Errorf("batch %d has an update of a flow that is elsewhere", i)
			}
		}
		for j := range int(b.GetEnds().GetCount()) {
			if x := flow.EndAt(b.Ends, j); int(x.Key.Dst[14]) != i {
				t.Errorf("batch %d: the end of a flow to %v", i, flow.Addr(x.Key.Dst))
			}
		}
		for _, m := range b.Summaries {
			if int(m.DstIp[14]) != i {
				t.Errorf("batch %d has a summary for %v", i, flow.AddrBytes(m.DstIp))
			}
			summarised += int(m.Flows) //nolint:gosec // small
		}
		opens, segments = opens+int(b.GetOpens().GetCount()), segments+int(b.GetSegments().GetCount())
		updates, ends = updates+int(b.GetUpdates().GetCount()), ends+int(b.GetEnds().GetCount())
	}
	want := 0
	for _, m := range one.Summaries {
		want += int(m.Flows) //nolint:gosec // small
	}
	if opens != int(one.Opens.Count) || segments != int(one.Segments.Count) || updates != int(one.GetUpdates().GetCount()) || ends != int(one.Ends.Count) ||
		summarised != want || opens != 40 || updates == 0 || summarised == 0 {
		t.Errorf("four batches have %d opens, %d segments, %d updates, %d ends and %d summarised; one has %d, %d, %d, %d and %d", opens, segments,
			updates, ends, summarised, one.Opens.Count, one.Segments.Count, one.GetUpdates().GetCount(), one.Ends.Count, want)
	}
}
