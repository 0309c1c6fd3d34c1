package bus

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// Heartbeat says that an instance is alive. It is forgotten after 30 s; send one every 5 to 10 s.
func (b *Bus) Heartbeat(ctx context.Context, n *eventv1.NodeHeartbeat) error {
	value, err := protojson.Marshal(n)
	if err != nil {
		return fmt.Errorf("encode heartbeat: %w", err)
	}
	kv, err := b.bucket(ctx, BucketNodes)
	if err != nil {
		return fmt.Errorf("heartbeat: %w", err)
	}
	if _, err := kv.Put(ctx, Token(n.GetService())+"."+Token(n.GetInstance()), value); err != nil {
		return fmt.Errorf("heartbeat: %w", unavailable(err))
	}
	return nil
}

const heartbeatEvery = 5 * time.Second

// Beat sends heartbeats of n until ctx ends; its version and times are filled in. What fails is counted as the error
// "heartbeat" and tried again with the next.
func Beat(ctx context.Context, to interface {
	Heartbeat(ctx context.Context, n *eventv1.NodeHeartbeat) error
}, t *telemetry.Telemetry, n *eventv1.NodeHeartbeat) {
	n.Version, _ = telemetry.Build()
	n.StartedNs = time.Now().UnixNano()
	tick := time.NewTicker(heartbeatEvery)
	defer tick.Stop()
	for {
		n.TimeNs = time.Now().UnixNano()
		if err := to.Heartbeat(ctx, n); err != nil && ctx.Err() == nil {
			t.CountError("heartbeat")
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Nodes lists the instances that were alive within the last 30 s, by service and instance.
func (b *Bus) Nodes(ctx context.Context) ([]*eventv1.NodeHeartbeat, error) {
	kv, err := b.bucket(ctx, BucketNodes)
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	var out []*eventv1.NodeHeartbeat
	err = snapshot(ctx, kv, func(e jetstream.KeyValueEntry) {
		n := &eventv1.NodeHeartbeat{}
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(e.Value(), n); err != nil {
			b.bad("decode_heartbeat", e.Key(), err)
			return
		}
		out = append(out, n)
	})
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	slices.SortFunc(out, func(a, b *eventv1.NodeHeartbeat) int {
		return strings.Compare(a.GetService()+"."+a.GetInstance(), b.GetService()+"."+b.GetInstance())
	})
	return out, nil
}
