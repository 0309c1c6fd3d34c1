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
)

// lateBus is the bus from the moment on at which NATS is reached: the service registers and answers before.
type lateBus struct {
	bus  atomic.Pointer[bus.Bus]
	fail atomic.Pointer[string]
}

var errNoBus = errors.New("NATS was not reached yet")

// connect retries until NATS answers, and tells whether it did before ctx ended.
func (l *lateBus) connect(ctx context.Context, t *telemetry.Telemetry, cfg bus.Config) bool {
	return lifecycle.Retry(ctx, 200*time.Millisecond, 5*time.Second, func(ctx context.Context) error {
		b, err := bus.Connect(ctx, t, "tidegate-persist", cfg)
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

func (l *lateBus) close() { _ = l.bus.Load().Close() } // what failed to flush is not acknowledged and comes again

func (l *lateBus) ready() error {
	if b := l.bus.Load(); b != nil {
		return b.Ready()
	}
	if why := l.fail.Load(); why != nil {
		return errors.New(*why)
	}
	return errNoBus
}

func (l *lateBus) EnsureStreams(ctx context.Context) error {
	if b := l.bus.Load(); b != nil {
		return b.EnsureStreams(ctx)
	}
	return errNoBus
}

func (l *lateBus) ConsumeFlows(ctx context.Context, durable string, h func(context.Context, []bus.FlowMsg) error) error {
	if b := l.bus.Load(); b != nil {
		return b.ConsumeFlows(ctx, durable, h)
	}
	return errNoBus
}

func (l *lateBus) ConsumeEvents(ctx context.Context, durable string, subjects []string, h func(context.Context, []bus.EventMsg) error) error {
	if b := l.bus.Load(); b != nil {
		return b.ConsumeEvents(ctx, durable, subjects, h)
	}
	return errNoBus
}

func (l *lateBus) Backlog(ctx context.Context, stream, durable string) (uint64, error) {
	if b := l.bus.Load(); b != nil {
		return b.Backlog(ctx, stream, durable)
	}
	return 0, errNoBus
}

func (l *lateBus) State(ctx context.Context, stream string) (bus.StreamState, error) {
	if b := l.bus.Load(); b != nil {
		return b.State(ctx, stream)
	}
	return bus.StreamState{}, errNoBus
}

func (l *lateBus) Heartbeat(ctx context.Context, n *eventv1.NodeHeartbeat) error {
	if b := l.bus.Load(); b != nil {
		return b.Heartbeat(ctx, n)
	}
	return errNoBus
}
