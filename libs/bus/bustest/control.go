package bustest

import (
	"context"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// panicStates records what WatchPanic says.
type panicStates struct {
	mu  sync.Mutex
	got []*eventv1.Panic
}

func (p *panicStates) add(s *eventv1.Panic) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.got = append(p.got, s)
}

// last is the newest state, and how many there were.
func (p *panicStates) last() (*eventv1.Panic, int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.got) == 0 {
		return nil, 0
	}
	return p.got[len(p.got)-1], len(p.got)
}

func control(t *testing.T, s Server) {
	b := Open(t, s.Config)
	ctx := context.Background()
	if p, err := b.Panic(ctx); p != nil || err != nil {
		t.Fatalf("before it was ever set: %v (%v)", p, err)
	}
	var early, late panicStates
	background(t, func(ctx context.Context) error { return b.WatchPanic(ctx, early.add) })
	Wait(t, "no state", func() bool { p, n := early.last(); return p == nil && n == 1 })
	on := &eventv1.Panic{On: true, SinceNs: 42, By: "ada", Reason: "the cure is worse"}
	if err := b.PutPanic(ctx, on); err != nil {
		t.Fatal(err)
	}
	if p, err := b.Panic(ctx); err != nil || !proto.Equal(p, on) {
		t.Errorf("read %v (%v), want %v", p, err, on)
	}
	background(t, func(ctx context.Context) error { return b.WatchPanic(ctx, late.add) })
	for _, w := range []*panicStates{&early, &late} {
		Wait(t, "the state that is on", func() bool { p, _ := w.last(); return proto.Equal(p, on) })
	}
	off := &eventv1.Panic{SinceNs: 43, By: "ada"}
	if err := b.PutPanic(ctx, off); err != nil {
		t.Fatal(err)
	}
	for _, w := range []*panicStates{&early, &late} {
		Wait(t, "the state that is off", func() bool { p, _ := w.last(); return proto.Equal(p, off) })
	}
	if s.Stop == nil {
		return
	}
	_, before := early.last()
	s.Stop(t)
	s.Start(t)
	Wait(t, "the state after a reconnect", func() bool { p, n := early.last(); return n > before && proto.Equal(p, off) })
	Wait(t, "a change after a reconnect", func() bool { return b.PutPanic(ctx, on) == nil })
	Wait(t, "the change in the watch", func() bool { p, _ := early.last(); return proto.Equal(p, on) })
}

func badControl(t *testing.T, s Server) {
	var mu sync.Mutex
	var told string
	cfg := s.Config
	cfg.OnBad = func(subject string, err error) {
		mu.Lock()
		defer mu.Unlock()
		told = subject + ": " + err.Error()
	}
	b := Open(t, cfg)
	ctx := context.Background()
	if err := b.Raw(ctx, "$KV."+bus.BucketControl+".panic", []byte("{")); err != nil {
		t.Fatal(err)
	}
	var states panicStates
	background(t, func(ctx context.Context) error { return b.WatchPanic(ctx, states.add) })
	Wait(t, "the report of a value that is no state", func() bool { mu.Lock(); defer mu.Unlock(); return told != "" })
	Wait(t, "no state", func() bool { p, n := states.last(); return p == nil && n == 1 })
	if p, err := b.Panic(ctx); err == nil {
		t.Errorf("read %v from a value that is no state", p)
	}
	on := &eventv1.Panic{On: true, SinceNs: 42}
	if err := b.PutPanic(ctx, on); err != nil {
		t.Fatal(err)
	}
	Wait(t, "the next state", func() bool { p, _ := states.last(); return proto.Equal(p, on) })
}
