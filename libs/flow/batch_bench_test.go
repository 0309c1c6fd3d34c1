package flow

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/tidegate-mesh/tidegate/libs/rpc"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

// benchFlows is how many flows a batch of BenchmarkCodec has.
const benchFlows = 1000

// BenchmarkCodec is what a batch of the ends of 1,000 flows, all columns, costs a flow: append writes the columns, encode
// makes the message of them, decode reads the message into a batch that is used again and checks it, read reads each end.
func BenchmarkCodec(b *testing.B) {
	batch := &flowv1.FlowBatch{}
	ends := make([]End, benchFlows)
	for i := range ends {
		ends[i] = End{ID: uint64(i), Key: key(byte(i)), FirstNs: 1e18, LastNs: 1e18 + 5, Totals: Totals{9, 8, 7, 6}, FlagsFwd: 0x12, FlagsRev: 0x1A, //nolint:gosec // small
			Reason: flowv1.EndReason_END_REASON_FIN, Part: uint16(i), TCP: TCP{20_000, 300, 1, 2}} //nolint:gosec // small
	}
	fill := func() {
		Reset(batch)
		for i := range ends {
			AppendEnd(batch, &ends[i])
		}
	}
	fill()
	wire, err := proto.Marshal(batch)
	if err != nil {
		b.Fatal(err)
	}
	each := func(name string, f func() error) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for range b.N {
				if err := f(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/benchFlows, "ns/flow")
		})
	}
	each("append", func() error { fill(); return nil })
	var buf []byte
	each("encode", func() error {
		var err error
		buf, err = proto.MarshalOptions{}.MarshalAppend(buf[:0], batch)
		return err
	})
	got := &flowv1.FlowBatch{}
	each("decode", func() error {
		if err := rpc.Unmarshal(wire, got); err != nil { // as servers do
			return err
		}
		return Validate(got)
	})
	sum := uint64(0)
	each("read", func() error {
		for i := range benchFlows {
			e := EndAt(got.Ends, i)
			sum += e.Totals.BytesFwd
		}
		return nil
	})
	if sum == 0 {
		b.Error("nothing was read")
	}
}
