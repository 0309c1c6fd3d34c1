package main

import (
	"context"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// lateBus adds to bus.Late the calls that persist makes; they fail until NATS is reached.
type lateBus struct{ *bus.Late }

func (l lateBus) EnsureStreams(ctx context.Context) error {
	b, err := l.Get()
	if err != nil {
		return err
	}
	return b.EnsureStreams(ctx)
}

func (l lateBus) ConsumeFlows(ctx context.Context, durable string, h func(context.Context, []bus.FlowMsg) error) error {
	b, err := l.Get()
	if err != nil {
		return err
	}
	return b.ConsumeFlows(ctx, durable, h)
}

func (l lateBus) ConsumeEvents(ctx context.Context, durable string, subjects []string, h func(context.Context, []bus.EventMsg) error) error {
	b, err := l.Get()
	if err != nil {
		return err
	}
	return b.ConsumeEvents(ctx, durable, subjects, h)
}

func (l lateBus) Backlog(ctx context.Context, stream, durable string) (uint64, error) {
	b, err := l.Get()
	if err != nil {
		return 0, err
	}
	return b.Backlog(ctx, stream, durable)
}

func (l lateBus) State(ctx context.Context, stream string) (bus.StreamState, error) {
	b, err := l.Get()
	if err != nil {
		return bus.StreamState{}, err
	}
	return b.State(ctx, stream)
}

func (l lateBus) ServeUsual(ctx context.Context, store func(context.Context, *eventv1.UsualDay) error,
	load func(context.Context, *eventv1.UsualQuery) (*eventv1.UsualDay, error),
) error {
	b, err := l.Get()
	if err != nil {
		return err
	}
	return b.ServeUsual(ctx, store, load)
}

func (l lateBus) Heartbeat(ctx context.Context, n *eventv1.NodeHeartbeat) error {
	b, err := l.Get()
	if err != nil {
		return err
	}
	return b.Heartbeat(ctx, n)
}

// DeliverEvents waits until NATS is reached.
func (l lateBus) DeliverEvents(ctx context.Context, durable string, h func(context.Context, *bus.EventMsg, bus.Place) error) error {
	b, err := l.Wait(ctx)
	if err != nil {
		return nil //nolint:nilerr // ctx has ended
	}
	return b.DeliverEvents(ctx, durable, h)
}

// DeliverFlows waits until NATS is reached.
func (l lateBus) DeliverFlows(ctx context.Context, durable string, h func(context.Context, *bus.FlowMsg, bus.Place) error) error {
	b, err := l.Wait(ctx)
	if err != nil {
		return nil //nolint:nilerr // ctx has ended
	}
	return b.DeliverFlows(ctx, durable, h)
}

func (l lateBus) EnsureEVE(ctx context.Context) error {
	b, err := l.Get()
	if err != nil {
		return err
	}
	return b.EnsureEVE(ctx)
}

func (l lateBus) PublishEVE(ctx context.Context, lines []bus.EVELine) error {
	b, err := l.Get()
	if err != nil {
		return err
	}
	return b.PublishEVE(ctx, lines)
}
