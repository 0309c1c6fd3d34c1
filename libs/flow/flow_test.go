package flow

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

func key(n byte) Key {
	k := Key{SrcPort: 1000 + uint16(n), DstPort: 443, VLAN: 7, Protocol: 6}
	k.Src = netip.MustParseAddr("192.0.2.1").As16()
	k.Dst = netip.MustParseAddr("2001:db8::1").As16()
	k.Src[15] = n
	return k
}

func full() (*flowv1.FlowBatch, []Open, []End) {
	b := &flowv1.FlowBatch{}
	var opens []Open
	var ends []End
	for n := range byte(4) {
		k := key(n)
		k.Tunnel = uint32(n&1) * (1<<32 - 1 - uint32(n)) // of the second and the last
		o := Open{ID: uint64(n) << 56, Key: k, FirstNs: 1e18 + int64(n), TCPFlags: 2, IPLength: 60, TTL: 64, PortIndex: n}
		AppendOpen(b, &o)
		opens = append(opens, o)
		AppendSegment(b, o.ID, n&1, uint32(n)*100, o.FirstNs, make([]byte, int(n)*10))
		AppendUpdate(b, o.ID, Totals{1, 2, 3, 4}, o.FirstNs)
		e := End{ID: o.ID, Key: o.Key, FirstNs: o.FirstNs, LastNs: o.FirstNs + 5, Totals: Totals{9, 8, 7, 6}, FlagsFwd: 0x12, FlagsRev: 0x1A,
			Reason: flowv1.EndReason_END_REASON_FIN, Part: uint16(n),
			TCP: TCP{RTTClientUs: 20_000, RTTServerUs: 1 << 31, RetransmitsFwd: uint32(n), RetransmitsRev: 1<<32 - 1}}
		AppendEnd(b, &e)
		ends = append(ends, e)
	}
	return b, opens, ends
}

func TestBatchOverTheWire(t *testing.T) {
	b, opens, ends := full()
	wire, err := proto.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	var got flowv1.FlowBatch
	if err := proto.Unmarshal(wire, &got); err != nil {
		t.Fatal(err)
	}
	if err := Validate(&got); err != nil {
		t.Fatal(err)
	}
	if n := Records(&got); n != 16 {
		t.Errorf("%d records, want 16", n)
	}
	for i := range opens {
		if d := cmp.Diff(opens[i], OpenAt(got.Opens, i)); d != "" {
			t.Errorf("open %d: %s", i, d)
		}
		if d := cmp.Diff(ends[i], EndAt(got.Ends, i)); d != "" {
			t.Errorf("end %d: %s", i, d)
		}
	}
}

// TestTunnelColumn: a batch without tunnels has no column for them, as one of a sensor that knows none, and the column
// ends with the last that there is.
func TestTunnelColumn(t *testing.T) {
	b := &flowv1.FlowBatch{}
	want := []uint32{0, 0, 9, 0}
	for i, id := range want {
		k := key(byte(i)) //nolint:gosec // four
		k.Tunnel = id
		AppendOpen(b, &Open{Key: k})
		AppendEnd(b, &End{Key: k})
		for _, column := range [][]byte{b.Opens.Tunnel, b.Ends.Tunnel} {
			if n := []int{0, 0, 12, 12}[i]; len(column) != n {
				t.Errorf("the column has %d bytes after %d records, want %d", len(column), i+1, n)
			}
		}
	}
	if err := Validate(b); err != nil {
		t.Fatal(err)
	}
	for i, id := range want {
		if o, e := OpenAt(b.Opens, i).Key.Tunnel, EndAt(b.Ends, i).Key.Tunnel; o != id || e != id {
			t.Errorf("record %d: tunnels %d and %d, want %d", i, o, e, id)
		}
	}
	Reset(b)
	AppendOpen(b, &Open{Key: key(1)})
	if got := OpenAt(b.Opens, 0).Key.Tunnel; got != 0 {
		t.Errorf("after Reset: tunnel %d", got)
	}
}

func TestResetKeepsMemory(t *testing.T) {
	b, opens, _ := full()
	Reset(b)
	if Records(b) != 0 || Validate(b) != nil {
		t.Fatalf("%d records after Reset", Records(b))
	}
	if n := testing.AllocsPerRun(100, func() { Reset(b); AppendOpen(b, &opens[0]) }); n != 0 {
		t.Errorf("%v allocations to append to an emptied batch, want 0", n)
	}
}

func TestValidateRefuses(t *testing.T) {
	for name, spoil := range map[string]func(b *flowv1.FlowBatch){
		"count":   func(b *flowv1.FlowBatch) { b.Opens.Count++ },
		"column":  func(b *flowv1.FlowBatch) { b.Ends.Vlan = b.Ends.Vlan[1:] },
		"tunnel":  func(b *flowv1.FlowBatch) { b.Opens.Tunnel = append(b.Opens.Tunnel, 0, 0, 0, 0) },
		"tunnels": func(b *flowv1.FlowBatch) { b.Ends.Tunnel = b.Ends.Tunnel[1:] },
		"data":    func(b *flowv1.FlowBatch) { b.Segments.Data = b.Segments.Data[1:] },
		"updates": func(b *flowv1.FlowBatch) { b.Updates.LastNs = nil },
	} {
		b, _, _ := full()
		spoil(b)
		if Validate(b) == nil {
			t.Errorf("%s: a malformed batch was accepted", name)
		}
	}
}

// TestOlderSensor: a batch without the newest column is taken, and its ends say so.
func TestOlderSensor(t *testing.T) {
	b, _, ends := full()
	if e := EndAt(b.Ends, 1); e.NoTCP || e.TCP != ends[1].TCP {
		t.Errorf("%+v", e)
	}
	b.Ends.Tcp = b.Ends.Tcp[:16]
	if Validate(b) == nil {
		t.Error("a column that is too short was accepted")
	}
	b.Ends.Tcp = nil
	if err := Validate(b); err != nil {
		t.Fatal(err)
	}
	if e := EndAt(b.Ends, 1); !e.NoTCP || e.TCP != (TCP{}) || e.ID != ends[1].ID {
		t.Errorf("%+v", e)
	}
}

// FuzzBatch: whatever Validate accepts can be read to its end.
func FuzzBatch(f *testing.F) {
	b, _, _ := full()
	wire, err := proto.Marshal(b)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(wire)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, wire []byte) {
		var b flowv1.FlowBatch
		if proto.Unmarshal(wire, &b) != nil || Validate(&b) != nil {
			return
		}
		for i := range int(b.GetOpens().GetCount()) {
			_ = OpenAt(b.Opens, i)
		}
		for i := range int(b.GetEnds().GetCount()) {
			_ = EndAt(b.Ends, i)
		}
	})
}

func TestKey(t *testing.T) {
	k := key(9)
	r := k.Reverse()
	if r.Src != k.Dst || r.DstPort != k.SrcPort || r.Reverse() != k || r.VLAN != k.VLAN {
		t.Errorf("reverse of %+v is %+v", k, r)
	}
	if a := AddrBytes(k.Src[:]); a != netip.MustParseAddr("192.0.2.9") {
		t.Errorf("address %v, want the unmapped one", a)
	}
	if AddrBytes([]byte{1, 2}).IsValid() {
		t.Error("two bytes are no address")
	}
	for p, want := range map[uint8]string{6: "tcp", 17: "udp", 58: "icmpv6", ProtocolARP: "arp", 200: "200"} {
		if got := ProtocolName(p); got != want {
			t.Errorf("protocol %d is %q, want %q", p, got, want)
		}
	}
}

// codec runs f over a batch of 1,000 flows that ended, with or without a tunnel around each.
func codec(bench *testing.B, f func(b *flowv1.FlowBatch, ends []End)) {
	for name, tunnel := range map[string]uint32{"plain": 0, "tunnels": 42} {
		bench.Run(name, func(bench *testing.B) {
			b := &flowv1.FlowBatch{}
			_, _, list := full()
			ends := make([]End, 1000)
			for i := range ends {
				ends[i] = list[0]
				ends[i].Key.Tunnel = tunnel
				AppendEnd(b, &ends[i])
			}
			bench.ReportAllocs()
			for range bench.N {
				f(b, ends)
			}
			bench.ReportMetric(float64(bench.Elapsed().Nanoseconds())/float64(bench.N)/1000, "ns/flow")
		})
	}
}

func BenchmarkEncodeEnds(bench *testing.B) {
	codec(bench, func(b *flowv1.FlowBatch, ends []End) {
		Reset(b)
		for i := range ends {
			AppendEnd(b, &ends[i])
		}
	})
}

func BenchmarkDecodeEnds(bench *testing.B) {
	codec(bench, func(b *flowv1.FlowBatch, _ []End) {
		if Validate(b) != nil {
			bench.Fatal("not valid")
		}
		for i := range int(b.Ends.Count) {
			decoded = EndAt(b.Ends, i)
		}
	})
}

// decoded keeps the compiler from leaving the decoding out.
var decoded End
