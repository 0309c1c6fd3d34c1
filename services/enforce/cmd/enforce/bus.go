package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/lifecycle"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// lateBus is NATS from the moment on at which it is reached. Until then watches wait and every other call fails, so that
// the interfaces are opened, gRPC answers and /readyz says all that is wrong, not NATS alone.
type lateBus struct {
	bus     atomic.Pointer[bus.Bus]
	why     atomic.Pointer[error]
	reached chan struct{} // closed when bus is set
}

func newLateBus() *lateBus { return &lateBus{reached: make(chan struct{})} }

// connect tries until NATS answers and has the streams; false when ctx ended before.
func (l *lateBus) connect(ctx context.Context, t *telemetry.Telemetry, name string, cfg bus.Config) bool {
	var b *bus.Bus
	err := lifecycle.Retry(ctx, 200*time.Millisecond, 5*time.Second, func(ctx context.Context) error {
		var err error
		if b, err = bus.Connect(ctx, t, name, cfg); err != nil {
			return err
		}
		if err = b.EnsureStreams(ctx); err != nil {
			_ = b.Close() // the error says more
		}
		return err
	}, func(err error, _ time.Duration) {
		if old := l.why.Swap(&err); old == nil || (*old).Error() != err.Error() {
			t.Log.Warn("waiting for NATS; rules already in the kernel stay in force until they expire", "error", err)
		}
		t.CountError("connect_nats")
	})
	if err != nil {
		return false
	}
	l.bus.Store(b)
	close(l.reached)
	return true
}

func (l *lateBus) close() { _ = l.bus.Load().Close() } // everything that matters was acknowledged

// get is the connection, or why there is none.
func (l *lateBus) get() (*bus.Bus, error) {
	if b := l.bus.Load(); b != nil {
		return b, nil
	}
	if why := l.why.Load(); why != nil {
		return nil, *why
	}
	return nil, fmt.Errorf("%w: it was not reached yet", bus.ErrUnavailable)
}

// wait is the connection; it blocks until there is one or ctx ends.
func (l *lateBus) wait(ctx context.Context) (*bus.Bus, error) {
	select {
	case <-l.reached:
		return l.bus.Load(), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *lateBus) Ready() error {
	b, err := l.get()
	if err != nil {
		return err
	}
	return b.Ready()
}

func (l *lateBus) ServerAddr() string {
	b, err := l.get()
	if err != nil {
		return ""
	}
	return b.ServerAddr()
}

func (l *lateBus) WatchRules(ctx context.Context, h func(bus.RuleUpdate)) error {
	b, err := l.wait(ctx)
	if err != nil {
		return err
	}
	return b.WatchRules(ctx, h)
}

func (l *lateBus) WatchPanic(ctx context.Context, h func(*eventv1.Panic)) error {
	b, err := l.wait(ctx)
	if err != nil {
		return err
	}
	return b.WatchPanic(ctx, h)
}

func (l *lateBus) UpdateRule(ctx context.Context, r policy.Rule, revision uint64) (uint64, error) {
	b, err := l.get()
	if err != nil {
		return 0, err
	}
	return b.UpdateRule(ctx, r, revision)
}

func (l *lateBus) DeleteRule(ctx context.Context, id string) error {
	b, err := l.get()
	if err != nil {
		return err
	}
	return b.DeleteRule(ctx, id)
}

func (l *lateBus) DeleteRuleRevision(ctx context.Context, id string, revision uint64) error {
	b, err := l.get()
	if err != nil {
		return err
	}
	return b.DeleteRuleRevision(ctx, id, revision)
}

func (l *lateBus) PutPanic(ctx context.Context, p *eventv1.Panic) error {
	b, err := l.get()
	if err != nil {
		return err
	}
	return b.PutPanic(ctx, p)
}

func (l *lateBus) PublishEnforcement(ctx context.Context, e *eventv1.Enforcement) error {
	b, err := l.get()
	if err != nil {
		return err
	}
	return b.PublishEnforcement(ctx, e)
}

func (l *lateBus) Heartbeat(ctx context.Context, n *eventv1.NodeHeartbeat) error {
	b, err := l.get()
	if err != nil {
		return err
	}
	return b.Heartbeat(ctx, n)
}
