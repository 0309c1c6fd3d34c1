package bus_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
)

func TestRequests(t *testing.T) {
	tel := telemetry.Discard("test")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	srv, err := bus.StartEmbedded(ctx, t.TempDir(), bus.Listen{})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Shutdown()
	b, err := bus.Connect(ctx, tel, "test", bus.Config{Embedded: srv})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	if err := b.EnsureStreams(ctx); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := b.GetRequest(ctx, "k"); ok || err != nil {
		t.Fatalf("a request that nobody made: %v, %v", ok, err)
	}
	first, err := b.PutRequest(ctx, "k", []byte("in progress"), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.PutRequest(ctx, "k", []byte("other"), 0); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("the second of two first requests: %v, want ErrConflict", err)
	}
	second, err := b.PutRequest(ctx, "k", []byte("done"), first)
	if err != nil || second <= first {
		t.Fatalf("revision %d after %d, %v", second, first, err)
	}
	if _, err := b.PutRequest(ctx, "k", []byte("late"), first); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("an answer to a request that was taken over: %v, want ErrConflict", err)
	}
	e, ok, err := b.GetRequest(ctx, "k")
	if err != nil || !ok || string(e.Value) != "done" || e.Revision != second || time.Since(e.Created) > time.Minute {
		t.Errorf("read %+v, %v, %v", e, ok, err)
	}
}
