package bus_test

import (
	"context"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus/bustest"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// TestSampleFlows: of a burst it hands over as many as asked for, which stand for the others; of little traffic all.
func TestSampleFlows(t *testing.T) {
	b, _ := embedded(t)
	ctx, cancel := context.WithCancel(context.Background())
	type taken struct {
		stands float64
		batch  uint64
	}
	got := make(chan taken, 1000)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = b.SampleFlows(ctx, 5, func(stands float64, f *eventv1.FlowRecords) { got <- taken{stands, f.GetBatch()} })
	}()
	defer func() { cancel(); <-done }()
	batch := uint64(0)
	publish := func() {
		batch++
		if _, err := b.PublishFlows(ctx, &eventv1.FlowRecords{Sensor: "s", Epoch: 1, Batch: batch}); err != nil {
			t.Fatal(err)
		}
	}
	bustest.Wait(t, "the first batch", func() bool {
		publish()
		time.Sleep(1100 * time.Millisecond) // one a second: each stands for itself
		return len(got) > 0
	})
	if g := <-got; g.stands != 1 {
		t.Errorf("a single batch stands for %v", g.stands)
	}
	for range 400 {
		publish()
	}
	sampled := 0.0
	bustest.Wait(t, "a sample of the burst", func() bool {
		for len(got) > 0 {
			sampled = max(sampled, (<-got).stands)
		}
		return sampled > 1
	})
	before := batch
	bustest.Wait(t, "that it listens again", func() bool {
		publish()
		time.Sleep(300 * time.Millisecond)
		for len(got) > 0 {
			if (<-got).batch > before {
				return true
			}
		}
		return false
	})
}
