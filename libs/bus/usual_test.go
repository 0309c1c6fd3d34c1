package bus_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/bus/bustest"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// TestUsual: requests without anybody who answers, of which one of two who answer gets each, and what they say.
func TestUsual(t *testing.T) {
	e, err := bus.StartEmbedded(t.Context(), t.TempDir(), bus.Listen{Addr: "127.0.0.1:0", Insecure: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Shutdown)
	b := bustest.Open(t, bus.Config{Embedded: e})
	ctx := t.Context()
	if err := b.StoreUsual(ctx, &eventv1.UsualDay{Node: "n", Day: 1}); !errors.Is(err, bus.ErrUnavailable) || !strings.Contains(err.Error(), "no persist answers") {
		t.Fatalf("without persist: %v", err)
	}
	run, stop := context.WithCancel(ctx)
	var stores atomic.Int64
	ended := make(chan error, 2)
	store := func(_ context.Context, d *eventv1.UsualDay) error {
		stores.Add(1)
		if d.GetNode() == "bad" {
			return errors.New("the disk is full")
		}
		return nil
	}
	load := func(_ context.Context, q *eventv1.UsualQuery) (*eventv1.UsualDay, error) {
		if q.GetAfter() != "" {
			return nil, nil //nolint:nilnil // there is no more
		}
		return &eventv1.UsualDay{Node: "n", Day: q.GetDay(), Hosts: []*eventv1.UsualHost{{Addr: make([]byte, 500_000)}}}, nil
	}
	for range 2 {
		go func() { ended <- b.ServeUsual(run, store, load) }()
	}
	bustest.Wait(t, "an answer", func() bool { return b.StoreUsual(ctx, &eventv1.UsualDay{Node: "n", Day: 1}) == nil })
	before := stores.Load()
	for range 20 {
		if err := b.StoreUsual(ctx, &eventv1.UsualDay{Node: "n", Day: 1}); err != nil {
			t.Fatal(err)
		}
	}
	if n := stores.Load() - before; n != 20 {
		t.Errorf("20 requests were handled %d times", n)
	}
	if err := b.StoreUsual(ctx, &eventv1.UsualDay{Node: "bad"}); err == nil || !strings.Contains(err.Error(), "the disk is full") {
		t.Errorf("a store that fails: %v", err)
	}
	if err := b.StoreUsual(ctx, &eventv1.UsualDay{Rates: []string{string(bytes.Repeat([]byte("x"), 2<<20))}}); !errors.Is(err, bus.ErrTooLarge) {
		t.Errorf("two megabytes: %v", err)
	}
	d, err := b.LoadUsual(ctx, &eventv1.UsualQuery{Day: 7})
	if err != nil || d.GetDay() != 7 || len(d.GetHosts()[0].GetAddr()) != 500_000 {
		t.Errorf("load: day %d, %v", d.GetDay(), err)
	}
	if d, err := b.LoadUsual(ctx, &eventv1.UsualQuery{Day: 7, After: "n"}); err != nil || d != nil {
		t.Errorf("load after the last: %v, %v", d, err)
	}
	stop()
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}
