package hook

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// BenchmarkEVEFlows makes and writes the lines of a message of 500 records; ns are of a line.
func BenchmarkEVEFlows(b *testing.B) {
	records := flowRecords(1)
	for n := range 499 {
		r := proto.Clone(records.Records[0]).(*eventv1.FlowRecord) //nolint:errcheck // a clone has the type
		r.Id = fmt.Sprintf("edge1/1/%d/0", n+8)
		records.Records = append(records.Records, r)
	}
	msg := &bus.FlowMsg{Records: records}
	e := &eveFile{path: filepath.Join(b.TempDir(), "eve.json"), t: telemetry.Discard("persist"), duplicates: prometheus.NewCounter(prometheus.CounterOpts{Name: "x"})}
	begin := time.Now()
	for b.Loop() {
		if err := e.write(context.Background(), flowLines(msg, bus.Place{}), false); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(time.Since(begin).Nanoseconds())/float64(b.N*len(records.Records)), "ns/line")
}
