package main

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/lifecycle"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

// lateBus is NATS from the moment on at which it is reached. Until then every call fails, so that the gRPC
// server is up, batches wait unacknowledged and /readyz says why.
type lateBus struct {
	bus atomic.Pointer[bus.Bus]
	why atomic.Pointer[string]
}

// connect tries until NATS answers; false when ctx ended before.
func (l *lateBus) connect(ctx context.Context, t *telemetry.Telemetry, cfg bus.Config) bool {
	return lifecycle.Retry(ctx, 200*time.Millisecond, 5*time.Second, func(ctx context.Context) error {
		b, err := bus.Connect(ctx, t, "tidegate-classify", cfg)
		if err == nil {
			l.bus.Store(b)
		}
		return err
	}, func(err error, _ time.Duration) {
		text := err.Error()
		if old := l.why.Swap(&text); old == nil || *old != text {
			t.Log.Warn("NATS cannot be reached, trying again", "error", err)
		}
		t.CountError("connect_nats")
	}) == nil
}

func (l *lateBus) close() error { return l.bus.Load().Close() }

// get is the connection, or why there is none.
func (l *lateBus) get() (*bus.Bus, error) {
	if b := l.bus.Load(); b != nil {
		return b, nil
	}
	if why := l.why.Load(); why != nil {
		return nil, errors.New(*why)
	}
	return nil, errors.New("NATS was not reached yet")
}

func (l *lateBus) ready() error {
	b, err := l.get()
	if err != nil {
		return err
	}
	return b.Ready()
}

func (l *lateBus) EnsureStreams(ctx context.Context) error {
	b, err := l.get()
	if err != nil {
		return err
	}
	return b.EnsureStreams(ctx)
}

func (l *lateBus) PublishFlows(ctx context.Context, f *eventv1.FlowRecords) error {
	b, err := l.get()
	if err != nil {
		return err
	}
	return b.PublishFlows(ctx, f)
}

// PublishAttack waits for the connection, as the bus itself waits for an acknowledgement.
func (l *lateBus) PublishAttack(ctx context.Context, a *eventv1.Attack) error {
	b, err := l.wait(ctx)
	if err != nil {
		return err
	}
	return b.PublishAttack(ctx, a)
}

func (l *lateBus) PublishVerdict(ctx context.Context, v *eventv1.Verdict) error {
	b, err := l.wait(ctx)
	if err != nil {
		return err
	}
	return b.PublishVerdict(ctx, v)
}

func (l *lateBus) wait(ctx context.Context) (b *bus.Bus, err error) {
	err = lifecycle.Retry(ctx, 50*time.Millisecond, time.Second, func(context.Context) (err error) {
		b, err = l.get()
		return err
	}, nil)
	return b, err
}

func (l *lateBus) PublishWindow(ctx context.Context, sensor string, w *flowv1.Window) error {
	b, err := l.get()
	if err != nil {
		return err
	}
	return b.PublishWindow(ctx, sensor, w)
}

func (l *lateBus) PutRule(ctx context.Context, r policy.Rule) error {
	b, err := l.get()
	if err != nil {
		return err
	}
	return b.PutRule(ctx, r)
}

func (l *lateBus) Rules(ctx context.Context) (map[string]bus.RuleEntry, error) {
	b, err := l.get()
	if err != nil {
		return nil, err
	}
	return b.Rules(ctx)
}

func (l *lateBus) ConsumeEventsEphemeral(ctx context.Context, subjects []string, h func(bus.EventMsg)) error {
	b, err := l.get()
	if err != nil {
		return err
	}
	return b.ConsumeEventsEphemeral(ctx, subjects, h)
}

func (l *lateBus) Heartbeat(ctx context.Context, n *eventv1.NodeHeartbeat) error {
	b, err := l.get()
	if err != nil {
		return err
	}
	return b.Heartbeat(ctx, n)
}
