package bus

import (
	"context"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// TestReadyAgain: streams that could not be looked at once, as while a cluster has no leader, and that nobody has missed
// since, do not keep a service unready.
func TestReadyAgain(t *testing.T) {
	ctx := context.Background()
	e, err := StartEmbedded(ctx, t.TempDir(), Listen{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Shutdown)
	b, err := Connect(ctx, telemetry.Discard("t"), "t", Config{Embedded: e})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	if err := b.EnsureStreams(ctx); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, time.Nanosecond)
	defer cancel()
	if err := b.EnsureStreams(short); err == nil || b.Ready() == nil {
		t.Fatalf("%v, ready %v", err, b.Ready())
	}
	if err := b.PublishAttack(ctx, &eventv1.Attack{Id: "a"}); err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	b.setupAt = b.setupAt.Add(-setupStale)
	b.mu.Unlock()
	if err := b.Ready(); err != nil {
		t.Error(err)
	}
}
