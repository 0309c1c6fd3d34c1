package main

import (
	"context"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

// lateBus adds to bus.Late the calls that classify makes. Until NATS is reached they fail, so that batches wait
// unacknowledged; attacks and verdicts wait for it.
type lateBus struct{ *bus.Late }

func (l lateBus) EnsureStreams(ctx context.Context) error {
	b, err := l.Get()
	if err != nil {
		return err
	}
	return b.EnsureStreams(ctx)
}

func (l lateBus) PublishFlows(ctx context.Context, f *eventv1.FlowRecords) (already bool, err error) {
	b, err := l.Get()
	if err != nil {
		return false, err
	}
	return b.PublishFlows(ctx, f)
}

// PublishAttack waits for the connection, as the bus itself waits for an acknowledgement.
func (l lateBus) PublishAttack(ctx context.Context, a *eventv1.Attack) error {
	b, err := l.Wait(ctx)
	if err != nil {
		return err
	}
	return b.PublishAttack(ctx, a)
}

func (l lateBus) PublishVerdict(ctx context.Context, v *eventv1.Verdict) error {
	b, err := l.Wait(ctx)
	if err != nil {
		return err
	}
	return b.PublishVerdict(ctx, v)
}

func (l lateBus) PublishWindow(ctx context.Context, sensor string, w *flowv1.Window) error {
	b, err := l.Get()
	if err != nil {
		return err
	}
	return b.PublishWindow(ctx, sensor, w)
}

func (l lateBus) PutRule(ctx context.Context, r policy.Rule) error {
	b, err := l.Get()
	if err != nil {
		return err
	}
	return b.PutRule(ctx, r)
}

func (l lateBus) Rules(ctx context.Context) (map[string]bus.RuleEntry, error) {
	b, err := l.Get()
	if err != nil {
		return nil, err
	}
	return b.Rules(ctx)
}

func (l lateBus) UpdateRule(ctx context.Context, r policy.Rule, revision uint64) (uint64, error) {
	b, err := l.Get()
	if err != nil {
		return 0, err
	}
	return b.UpdateRule(ctx, r, revision)
}

// The watches are asked for once, so they wait for the connection.

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

func (l lateBus) ConsumeEventsEphemeral(ctx context.Context, subjects []string, h func(bus.EventMsg)) error {
	b, err := l.Get()
	if err != nil {
		return err
	}
	return b.ConsumeEventsEphemeral(ctx, subjects, h)
}

func (l lateBus) StoreUsual(ctx context.Context, d *eventv1.UsualDay) error {
	b, err := l.Get()
	if err != nil {
		return err
	}
	return b.StoreUsual(ctx, d)
}

func (l lateBus) LoadUsual(ctx context.Context, q *eventv1.UsualQuery) (*eventv1.UsualDay, error) {
	b, err := l.Get()
	if err != nil {
		return nil, err
	}
	return b.LoadUsual(ctx, q)
}

func (l lateBus) Heartbeat(ctx context.Context, n *eventv1.NodeHeartbeat) error {
	b, err := l.Get()
	if err != nil {
		return err
	}
	return b.Heartbeat(ctx, n)
}
