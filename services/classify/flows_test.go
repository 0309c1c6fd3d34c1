package classify

import (
	"slices"
	"testing"
	"unsafe"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

// talk is a flow whose sides say one segment each.
type talk struct {
	protocol  uint8
	port      uint16
	ask, tell string
}

var talks = []talk{
	{6, 80, "GET /a HTTP/1.1\r\nHost: shop.example.net\r\nUser-Agent: curl/8.5.0\r\nAuthorization: Basic dTpw\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"},
	// The question is for www.example.org; the answer is an alias, an IPv4 and an IPv6 address.
	{17, 53, "\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03www\x07example\x03org\x00\x00\x01\x00\x01",
		"\x12\x34\x81\x80\x00\x01\x00\x03\x00\x00\x00\x00\x03www\x07example\x03org\x00\x00\x01\x00\x01" +
			"\xc0\x0c\x00\x05\x00\x01\x00\x00\x0e\x10\x00\x06\x03web\xc0\x10" +
			"\xc0\x2d\x00\x01\x00\x01\x00\x00\x0e\x10\x00\x04\xc0\x00\x02\x07" +
			"\xc0\x2d\x00\x1c\x00\x01\x00\x00\x0e\x10\x00\x10\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x07"},
	{6, 22, "SSH-2.0-OpenSSH_9.6\r\n", "SSH-2.0-OpenSSH_9.2\r\n"},
	{6, 4000, "\x00\x9b\x17\xf2\x00\x00\x61", "\xff\xfe\x00\x03"},
}

var talker = [16]byte{0x20, 0x01, 0x0d, 0xb8, 15: 1}

// appendTalks adds every talk as a flow that begins and ends, with ids and source ports from first on.
func appendTalks(b *flowv1.FlowBatch, first uint64) {
	flow.Reset(b)
	b.Sensor, b.Epoch = "s", 7
	for i, t := range talks {
		id := first + uint64(i)
		k := flow.Key{Src: talker, Dst: victim.As16(), SrcPort: uint16(40000 + id), DstPort: t.port, Protocol: t.protocol}
		flow.AppendOpen(b, &flow.Open{ID: id, Key: k, FirstNs: labStart})
		flow.AppendSegment(b, id, 0, 0, labStart, []byte(t.ask))
		flow.AppendSegment(b, id, 1, 0, labStart+1e6, []byte(t.tell))
		flow.AppendEnd(b, &flow.End{ID: id, Key: k, FirstNs: labStart, LastNs: labStart + 2e6, Totals: flow.Totals{PacketsFwd: 3, PacketsRev: 3}})
	}
}

// TestReuse: records that are written over say the same as records of their own, but for the id.
func TestReuse(t *testing.T) {
	var own, again BatchResult
	again.Reuse = true
	for _, only := range []bool{false, true} {
		l, m := newLab(t), newLab(t, func(c *EngineConfig) { c.LabelsOnly = only })
		for round := range uint64(3) {
			appendTalks(&l.batch, 10*round)
			if err := l.e.Batch(&l.batch, &own); err != nil {
				t.Fatal(err)
			}
			slices.Reverse(again.Records) // so that each is written over by another flow
			if err := m.e.Batch(&l.batch, &again); err != nil {
				t.Fatal(err)
			}
			for i, want := range own.Records {
				got := again.Records[i]
				if want.Id == "" || got.Id != "" {
					t.Errorf("ids %q and %q", want.Id, got.Id)
				}
				want.Id = ""
				if w, g := want.String(), got.String(); w != g {
					t.Errorf("labels only %v, round %d:\n got %s\nwant %s", only, round, g, w)
				}
			}
		}
	}
	if a := own.Records[1].GetDnsAnswers(); !slices.Equal(a, []string{"web.example.org", "192.0.2.7", "2001:db8::7"}) {
		t.Errorf("answers %v", a)
	}
	if r := own.Records[0].GetRisks(); !slices.Equal(r, []string{"clear_credentials"}) {
		t.Errorf("risks %v", r)
	}
}

// TestLabelsOnly: nothing is remembered for detectors, and a TCP flow need not wait for its answer.
func TestLabelsOnly(t *testing.T) {
	l := newLab(t, func(c *EngineConfig) { c.LabelsOnly = true })
	l.batch.Sensor, l.batch.Epoch = "s", 7
	k := flow.Key{Src: talker, Dst: victim.As16(), SrcPort: 40000, DstPort: 6789, Protocol: 6}
	flow.AppendOpen(&l.batch, &flow.Open{ID: 5, Key: k, FirstNs: labStart})
	flow.AppendSegment(&l.batch, 5, 0, 0, labStart, []byte("ceph v2\n"))
	flow.AppendUpdate(&l.batch, 5, flow.Totals{PacketsFwd: 9, PacketsRev: 9}, labStart)
	var out BatchResult
	if err := l.e.Batch(&l.batch, &out); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(out.Enough, []uint64{5}) {
		t.Errorf("enough: %v", out.Enough)
	}
	if l.e.peers.Known(k.Dst, k.Src) != nil {
		t.Error("a peer is remembered")
	}
}

// TestFlowAllocations: a flow costs none once as many were seen as are in use; its names are known by then.
func TestFlowAllocations(t *testing.T) {
	l := newLab(t, func(c *EngineConfig) { c.LabelsOnly = true })
	out := BatchResult{Reuse: true}
	id := uint64(0)
	run := func() {
		id += 10
		appendTalks(&l.batch, id)
		if err := l.e.Batch(&l.batch, &out); err != nil {
			t.Fatal(err)
		}
	}
	if n := testing.AllocsPerRun(200, run); n != 0 {
		t.Errorf("%v allocations for %d flows", n, len(talks))
	}
}

// TestFlowMemory: what the engine keeps of a flow beside its label's state, with the slots that its map has for it at most.
func TestFlowMemory(t *testing.T) {
	if n := unsafe.Sizeof(flowState{}) + 2*slotsOfFlow*unsafe.Sizeof(uint64(0)); n > 160 {
		t.Errorf("%d bytes", n)
	}
}
