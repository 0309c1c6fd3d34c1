package main

import (
	"context"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
)

// lateBus adds to bus.Late the calls that the gateway makes; they fail until NATS is reached.
type lateBus struct{ *bus.Late }

// PublishAudit implements gateway.Bus.
func (l lateBus) PublishAudit(ctx context.Context, entry *eventv1.Audit) error {
	b, err := l.Get()
	if err != nil {
		return err
	}
	return b.PublishAudit(ctx, entry)
}

// GetRequest implements gateway.Bus.
func (l lateBus) GetRequest(ctx context.Context, key string) (bus.RequestEntry, bool, error) {
	b, err := l.Get()
	if err != nil {
		return bus.RequestEntry{}, false, err
	}
	return b.GetRequest(ctx, key)
}

// PutRequest implements gateway.Bus.
func (l lateBus) PutRequest(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	b, err := l.Get()
	if err != nil {
		return 0, err
	}
	return b.PutRequest(ctx, key, value, revision)
}

// Heartbeat implements gateway.Bus.
func (l lateBus) Heartbeat(ctx context.Context, n *eventv1.NodeHeartbeat) error {
	b, err := l.Get()
	if err != nil {
		return err
	}
	return b.Heartbeat(ctx, n)
}

// Nodes implements gateway.Bus.
func (l lateBus) Nodes(ctx context.Context) ([]*eventv1.NodeHeartbeat, error) {
	b, err := l.Get()
	if err != nil {
		return nil, err
	}
	return b.Nodes(ctx)
}

// State implements gateway.Bus.
func (l lateBus) State(ctx context.Context, stream string) (bus.StreamState, error) {
	b, err := l.Get()
	if err != nil {
		return bus.StreamState{}, err
	}
	return b.State(ctx, stream)
}

// FollowEvents implements gateway.Bus.
func (l lateBus) FollowEvents(ctx context.Context, after uint64, subjects []string, h func(bus.EventMsg), gap func(bus.Gap)) error {
	b, err := l.Get()
	if err != nil {
		return err
	}
	return b.FollowEvents(ctx, after, subjects, h, gap)
}

// SubscribeWindows implements gateway.Bus.
func (l lateBus) SubscribeWindows(ctx context.Context, h func(sensor string, w *flowv1.Window)) error {
	b, err := l.Get()
	if err != nil {
		return err
	}
	return b.SubscribeWindows(ctx, h)
}

// Lists implements gateway.Bus.
func (l lateBus) Lists(ctx context.Context) (map[string]bus.ListEntry, error) {
	b, err := l.Get()
	if err != nil {
		return nil, err
	}
	return b.Lists(ctx)
}

// UpdateList implements gateway.Bus.
func (l lateBus) UpdateList(ctx context.Context, list *policyv1.AddressList, revision uint64) (uint64, error) {
	b, err := l.Get()
	if err != nil {
		return 0, err
	}
	return b.UpdateList(ctx, list, revision)
}

// DeleteList implements gateway.Bus.
func (l lateBus) DeleteList(ctx context.Context, name string, revision uint64) error {
	b, err := l.Get()
	if err != nil {
		return err
	}
	return b.DeleteList(ctx, name, revision)
}

// PutListEntries implements gateway.Bus.
func (l lateBus) PutListEntries(ctx context.Context, list string, text []byte) (string, error) {
	b, err := l.Get()
	if err != nil {
		return "", err
	}
	return b.PutListEntries(ctx, list, text)
}

// DeleteListEntries implements gateway.Bus.
func (l lateBus) DeleteListEntries(ctx context.Context, object string) error {
	b, err := l.Get()
	if err != nil {
		return err
	}
	return b.DeleteListEntries(ctx, object)
}
