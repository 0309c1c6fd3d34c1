package main

import (
	"context"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// lateBus adds to bus.Late the calls that enforce makes: watches wait for NATS, every other call fails until then.
type lateBus struct{ *bus.Late }

func (l lateBus) ServerAddr() string {
	b, err := l.Get()
	if err != nil {
		return ""
	}
	return b.ServerAddr()
}

func (l lateBus) WatchRules(ctx context.Context, h func(bus.RuleUpdate)) error {
	b, err := l.Wait(ctx)
	if err != nil {
		return err
	}
	return b.WatchRules(ctx, h)
}

func (l lateBus) WatchLists(ctx context.Context, h func(bus.ListUpdate)) error {
	b, err := l.Wait(ctx)
	if err != nil {
		return err
	}
	return b.WatchLists(ctx, h)
}

func (l lateBus) ListEntries(ctx context.Context, object string) ([]byte, error) {
	b, err := l.Get()
	if err != nil {
		return nil, err
	}
	return b.ListEntries(ctx, object)
}

func (l lateBus) SampleFlows(ctx context.Context, limit int, h func(float64, *eventv1.FlowRecords)) error {
	b, err := l.Wait(ctx)
	if err != nil {
		return err
	}
	return b.SampleFlows(ctx, limit, h)
}

func (l lateBus) WatchPanic(ctx context.Context, h func(*eventv1.Panic)) error {
	b, err := l.Wait(ctx)
	if err != nil {
		return err
	}
	return b.WatchPanic(ctx, h)
}

func (l lateBus) UpdateRule(ctx context.Context, r policy.Rule, revision uint64) (uint64, error) {
	b, err := l.Get()
	if err != nil {
		return 0, err
	}
	return b.UpdateRule(ctx, r, revision)
}

func (l lateBus) DeleteRule(ctx context.Context, id string) error {
	b, err := l.Get()
	if err != nil {
		return err
	}
	return b.DeleteRule(ctx, id)
}

func (l lateBus) DeleteRuleRevision(ctx context.Context, id string, revision uint64) error {
	b, err := l.Get()
	if err != nil {
		return err
	}
	return b.DeleteRuleRevision(ctx, id, revision)
}

func (l lateBus) PutPanic(ctx context.Context, p *eventv1.Panic) error {
	b, err := l.Get()
	if err != nil {
		return err
	}
	return b.PutPanic(ctx, p)
}

func (l lateBus) PublishEnforcement(ctx context.Context, e *eventv1.Enforcement) error {
	b, err := l.Get()
	if err != nil {
		return err
	}
	return b.PublishEnforcement(ctx, e)
}

func (l lateBus) Heartbeat(ctx context.Context, n *eventv1.NodeHeartbeat) error {
	b, err := l.Get()
	if err != nil {
		return err
	}
	return b.Heartbeat(ctx, n)
}
