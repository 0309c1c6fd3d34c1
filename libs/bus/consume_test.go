package bus_test

import (
	"context"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/bus/bustest"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// TestBatchBytes: a backlog of large messages comes in batches of 4 MiB, not of as many messages as small ones.
func TestBatchBytes(t *testing.T) {
	b, _ := embedded(t)
	ctx, cancel := context.WithCancel(context.Background())
	const n = 40
	pad := strings.Repeat("x", 400<<10)
	for i := range uint64(n) {
		if _, err := b.PublishFlows(ctx, &eventv1.FlowRecords{Sensor: "s", Batch: i, Records: []*eventv1.FlowRecord{{Id: pad}}}); err != nil {
			t.Fatal(err)
		}
	}
	var mu sync.Mutex
	most, got := 0, 0
	done := make(chan error, 1)
	go func() {
		done <- b.ConsumeFlows(ctx, "d", func(_ context.Context, msgs []bus.FlowMsg) error {
			size := 0
			for _, m := range msgs {
				size += proto.Size(m.Records)
			}
			mu.Lock()
			defer mu.Unlock()
			most, got = max(most, size), got+len(msgs)
			return nil
		})
	}()
	bustest.Wait(t, "all", func() bool { mu.Lock(); defer mu.Unlock(); return got == n })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if most > 5<<20 {
		t.Errorf("a batch of %d MiB", most>>20)
	}
}
