package main

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/lifecycle"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

// lateBus is the bus from the moment on at which NATS is reached: the gateway answers before.
type lateBus struct {
	bus  atomic.Pointer[bus.Bus]
	fail atomic.Pointer[string]
}

// connect retries until NATS answers, and tells whether it did before ctx ended.
func (l *lateBus) connect(ctx context.Context, t *telemetry.Telemetry, cfg bus.Config) bool {
	return lifecycle.Retry(ctx, 200*time.Millisecond, 5*time.Second, func(ctx context.Context) error {
		b, err := bus.Connect(ctx, t, "tidegate-gateway", cfg)
		if err != nil {
			return err
		}
		l.bus.Store(b)
		return nil
	}, func(err error, _ time.Duration) {
		text := err.Error()
		if old := l.fail.Swap(&text); old == nil || *old != text {
			t.Log.Warn("NATS cannot be reached, retrying", "error", err)
		}
		t.CountError("connect_nats")
	}) == nil
}

func (l *lateBus) close() { _ = l.bus.Load().Close() } // an audit entry that was not acknowledged was reported

// now is the bus, or why there is none.
func (l *lateBus) now() (*bus.Bus, error) {
	if b := l.bus.Load(); b != nil {
		return b, nil
	}
	if why := l.fail.Load(); why != nil {
		return nil, errors.New(*why)
	}
	return nil, errors.New("NATS was not reached yet")
}

// Ready implements gateway.Bus.
func (l *lateBus) Ready() error {
	b, err := l.now()
	if err != nil {
		return err
	}
	return b.Ready()
}

// PublishAudit implements gateway.Bus.
func (l *lateBus) PublishAudit(ctx context.Context, entry *eventv1.Audit) error {
	b, err := l.now()
	if err != nil {
		return err
	}
	return b.PublishAudit(ctx, entry)
}

// GetRequest implements gateway.Bus.
func (l *lateBus) GetRequest(ctx context.Context, key string) (bus.RequestEntry, bool, error) {
	b, err := l.now()
	if err != nil {
		return bus.RequestEntry{}, false, err
	}
	return b.GetRequest(ctx, key)
}

// PutRequest implements gateway.Bus.
func (l *lateBus) PutRequest(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	b, err := l.now()
	if err != nil {
		return 0, err
	}
	return b.PutRequest(ctx, key, value, revision)
}

// Heartbeat implements gateway.Bus.
func (l *lateBus) Heartbeat(ctx context.Context, n *eventv1.NodeHeartbeat) error {
	b, err := l.now()
	if err != nil {
		return err
	}
	return b.Heartbeat(ctx, n)
}

// Nodes implements gateway.Bus.
func (l *lateBus) Nodes(ctx context.Context) ([]*eventv1.NodeHeartbeat, error) {
	b, err := l.now()
	if err != nil {
		return nil, err
	}
	return b.Nodes(ctx)
}

// State implements gateway.Bus.
func (l *lateBus) State(ctx context.Context, stream string) (bus.StreamState, error) {
	b, err := l.now()
	if err != nil {
		return bus.StreamState{}, err
	}
	return b.State(ctx, stream)
}

// FollowEvents implements gateway.Bus.
func (l *lateBus) FollowEvents(ctx context.Context, after uint64, subjects []string, h func(bus.EventMsg), gap func(bus.Gap)) error {
	b, err := l.now()
	if err != nil {
		return err
	}
	return b.FollowEvents(ctx, after, subjects, h, gap)
}

// SubscribeWindows implements gateway.Bus.
func (l *lateBus) SubscribeWindows(ctx context.Context, h func(sensor string, w *flowv1.Window)) error {
	b, err := l.now()
	if err != nil {
		return err
	}
	return b.SubscribeWindows(ctx, h)
}
