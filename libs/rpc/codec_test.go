package rpc

import (
	"bytes"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

func someBatch() *flowv1.FlowBatch {
	return &flowv1.FlowBatch{Sensor: "s", Epoch: 1, Batch: 2,
		Ends: &flowv1.FlowEnds{Count: 3, FlowId: bytes.Repeat([]byte{7}, 24), Reason: []byte{1, 2, 3}}}
}

// TestCodec: what comes in parts is decoded like any message, without what the message held before; a message that is cut is an error.
func TestCodec(t *testing.T) {
	want := &classifyv1.StreamRequest{Item: &classifyv1.StreamRequest_Batch{Batch: someBatch()}}
	wire, err := proto.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	parts := mem.BufferSlice{mem.SliceBuffer(wire[:5]), mem.SliceBuffer(wire[5:20]), mem.SliceBuffer(wire[20:])}
	got := &classifyv1.StreamRequest{Item: &classifyv1.StreamRequest_Window{Window: &flowv1.Window{Sensor: "of before"}}}
	c := newCodec()
	if err := c.Unmarshal(parts, got); err != nil || !proto.Equal(got, want) {
		t.Fatalf("%v: %v, not %v", err, got, want)
	}
	cut := bytes.Clone(wire[:len(wire)-1])
	clear(wire) // gRPC uses its buffers again
	if longer := append(got.GetBatch().GetEnds().Reason, 9); len(longer) != 4 || !proto.Equal(got, want) {
		t.Errorf("what was decoded has changed: %v", got)
	}
	sent, err := c.Marshal(want)
	if err != nil || sent.Len() != len(wire) {
		t.Errorf("encoded to %d bytes: %v", sent.Len(), err)
	}
	if c.Unmarshal(mem.BufferSlice{mem.SliceBuffer(cut)}, got) == nil {
		t.Error("a cut message was decoded")
	}
	if c.Unmarshal(nil, "no message") == nil {
		t.Error("a string was decoded")
	}
}

// TestInPlace: bytes fields lie in the buffer.
func TestInPlace(t *testing.T) {
	wire, err := proto.Marshal(someBatch())
	if err != nil {
		t.Fatal(err)
	}
	var got flowv1.FlowBatch
	if err := Unmarshal(wire, &got); err != nil {
		t.Fatal(err)
	}
	clear(wire)
	if got.Sensor != "s" || got.Ends.FlowId[0] != 0 {
		t.Errorf("%v does not lie in the buffer, or its text does", &got)
	}
}

func FuzzUnmarshal(f *testing.F) {
	wire, err := proto.Marshal(&classifyv1.StreamRequest{Item: &classifyv1.StreamRequest_Batch{Batch: someBatch()}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(wire)
	f.Add(append(wire, wire...)) // of one field the last wins, messages are joined
	f.Fuzz(func(t *testing.T, b []byte) {
		var ours, theirs classifyv1.StreamRequest
		a, e := Unmarshal(bytes.Clone(b), &ours), proto.Unmarshal(b, &theirs)
		if (a == nil) != (e == nil) || a == nil && !proto.Equal(&ours, &theirs) {
			t.Errorf("%x: %v and %v, %v and %v", b, a, e, &ours, &theirs)
		}
	})
}
