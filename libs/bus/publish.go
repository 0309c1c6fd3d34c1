package bus

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

const (
	headerTrace = "traceparent" // W3C Trace Context 3.2
	retryMin    = 50 * time.Millisecond
	retryMax    = 2 * time.Second

	errStreamMaxBytes = 10077 // the server's code of a store that is full (discard new)
)

// PublishFlows stores a batch and returns after the stream has acknowledged it. The message id is
// sensor/epoch/batch/part; already tells that the stream had it, from an attempt before or another classifier. An error wraps ErrUnavailable when there was no acknowledgement (the batch may be
// stored nevertheless; publish it again) or ErrTooLarge when it must be split into more parts.
func (b *Bus) PublishFlows(ctx context.Context, f *eventv1.FlowRecords) (already bool, err error) {
	data, err := proto.Marshal(f)
	if err != nil {
		return false, fmt.Errorf("encode flow records: %w", err)
	}
	id := f.GetSensor() + "/" + strconv.FormatUint(f.GetEpoch(), 10) + "/" + strconv.FormatUint(f.GetBatch(), 10) + "/" +
		strconv.FormatUint(uint64(f.GetPart()), 10)
	if already, err = b.store(ctx, SubjectFlows+Token(f.GetSensor()), id, telemetry.Inject(ctx), data); err != nil {
		return false, fmt.Errorf("publish flows %s: %w", id, err)
	}
	return already, nil
}

// PublishAttack stores a state of an attack; the message id is the attack's id and revision. It retries until it
// is acknowledged or ctx ends.
func (b *Bus) PublishAttack(ctx context.Context, a *eventv1.Attack) error {
	id := a.GetId() + "/" + strconv.FormatUint(uint64(a.GetRevision()), 10)
	return b.publishEvent(ctx, SubjectAttack+Token(a.GetSensor()), "attack/"+id, telemetry.Inject(ctx), a)
}

// PublishVerdict stores a verdict; the message id is its id. Its own traceparent stands in when ctx has no span. It
// retries until it is acknowledged or ctx ends.
func (b *Bus) PublishVerdict(ctx context.Context, v *eventv1.Verdict) error {
	tp := telemetry.Inject(ctx)
	if tp == "" {
		tp = v.GetTraceparent()
	}
	return b.publishEvent(ctx, SubjectVerdict+Token(v.GetSensor()), "verdict/"+v.GetId(), tp, v)
}

// PublishEnforcement stores what a node did with a rule; the message id is the event's id. It retries until it is
// acknowledged or ctx ends.
func (b *Bus) PublishEnforcement(ctx context.Context, e *eventv1.Enforcement) error {
	return b.publishEvent(ctx, SubjectEnforcement+Token(e.GetNode()), "enforcement/"+e.GetId(), telemetry.Inject(ctx), e)
}

// PublishWindow sends a live window to whoever listens now (core NATS, at most once). A window above the server's
// payload limit is refused with ErrTooLarge.
func (b *Bus) PublishWindow(_ context.Context, sensor string, w *flowv1.Window) error {
	data, err := proto.Marshal(w)
	if err != nil {
		return fmt.Errorf("encode window: %w", err)
	}
	if err := b.nc.Publish(SubjectWindow+Token(sensor), data); err != nil {
		return fmt.Errorf("publish window of %s: %w", sensor, unavailable(err))
	}
	return nil
}

func (b *Bus) publishEvent(ctx context.Context, subject, id, traceparent string, m proto.Message) error {
	data, err := protojson.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode %s: %w", id, err)
	}
	wait := retryMin
	for {
		_, err = b.store(ctx, subject, id, traceparent, data)
		if err == nil {
			return nil
		}
		if errors.Is(err, ErrTooLarge) {
			return fmt.Errorf("publish %s: %w", id, err)
		}
		b.t.CountError("publish_event")
		b.recover(ctx, err)
		jitter := rand.N(wait / 2) // #nosec G404 -- needs no secrecy
		if !sleep(ctx, wait/2+jitter) {
			return fmt.Errorf("publish %s: %w: last: %w", id, context.Cause(ctx), err)
		}
		wait = min(2*wait, retryMax)
	}
}

// Raw stores bytes under a subject of the streams, without a message id: for tools and tests.
func (b *Bus) Raw(ctx context.Context, subject string, data []byte) error {
	if _, err := b.js.Publish(ctx, subject, data); err != nil {
		return fmt.Errorf("publish %s: %w", subject, unavailable(err))
	}
	return nil
}

// store is one attempt, acknowledged. already tells that the stream had the id.
func (b *Bus) store(ctx context.Context, subject, id, traceparent string, data []byte) (already bool, err error) {
	m := &nats.Msg{Subject: subject, Data: data, Header: nats.Header{jetstream.MsgIDHeader: []string{id}}}
	if traceparent != "" {
		m.Header.Set(headerTrace, traceparent)
	}
	if limit := b.nc.MaxPayload(); limit > 0 && int64(len(data)+len(id)+256) > limit {
		return false, fmt.Errorf("%w: %d of %d bytes", ErrTooLarge, len(data), limit)
	}
	attempt, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	ack, err := b.js.PublishMsg(attempt, m)
	return err == nil && ack.Duplicate, unavailable(err)
}

// recover does what may help the next attempt: room in a full stream, or the stream itself after a server lost it.
func (b *Bus) recover(ctx context.Context, err error) {
	var api *jetstream.APIError
	switch {
	case errors.As(err, &api) && api.ErrorCode == errStreamMaxBytes:
		err = b.reclaim(ctx)
	case b.nc.IsConnected() && (errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, jetstream.ErrStreamNotFound) ||
		errors.Is(err, jetstream.ErrBucketNotFound)):
		err = b.EnsureStreams(ctx)
	default:
		return
	}
	if err != nil {
		b.t.CountError("recover_stream")
	}
}

// sleep waits and reports false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
