package bus

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"

	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// Requests of classify that persist answers, over core NATS: what classifiers learned about hosts is kept in SQL. Requests are
// UsualDay and UsualQuery, answers UsualReply, all protobuf.
const (
	subjectUsual      = "tg.v1.usual."
	SubjectUsualStore = subjectUsual + "store"
	SubjectUsualLoad  = subjectUsual + "load"
)

// queueUsual: of several instances of persist, which share a database, one answers.
const queueUsual = "persist"

// StoreUsual stores a day, in the place of what its node stored of it before, and returns after the commit. The error wraps
// ErrUnavailable when NATS or persist did not answer.
func (b *Bus) StoreUsual(ctx context.Context, d *eventv1.UsualDay) error {
	if _, err := b.ask(ctx, SubjectUsualStore, d); err != nil {
		return fmt.Errorf("store what is usual on day %d: %w", d.GetDay(), err)
	}
	return nil
}

// LoadUsual returns what the query asks for; nil: there is no more.
func (b *Bus) LoadUsual(ctx context.Context, q *eventv1.UsualQuery) (*eventv1.UsualDay, error) {
	r, err := b.ask(ctx, SubjectUsualLoad, q)
	if err != nil {
		return nil, fmt.Errorf("read what is usual on day %d: %w", q.GetDay(), err)
	}
	return r.GetFound(), nil
}

// ask sends a request and waits for the answer, at most ackTimeout.
func (b *Bus) ask(ctx context.Context, subject string, m proto.Message) (*eventv1.UsualReply, error) {
	data, err := proto.Marshal(m)
	if err != nil {
		return nil, err
	}
	if limit := b.nc.MaxPayload(); limit > 0 && int64(len(data)) > limit {
		return nil, fmt.Errorf("%w: %d of %d bytes", ErrTooLarge, len(data), limit)
	}
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	msg, err := b.nc.RequestWithContext(ctx, subject, data)
	if errors.Is(err, nats.ErrNoResponders) {
		return nil, fmt.Errorf("%w: no persist answers", ErrUnavailable)
	}
	if err != nil {
		return nil, unavailable(err)
	}
	r := &eventv1.UsualReply{}
	if err := proto.Unmarshal(msg.Data, r); err != nil {
		return nil, fmt.Errorf("answer: %w", err)
	}
	if r.GetError() != "" {
		return nil, fmt.Errorf("persist: %s", r.GetError())
	}
	return r, nil
}

// ServeUsual answers both requests until ctx ends, one at a time; load returns nil when there is no more.
func (b *Bus) ServeUsual(ctx context.Context, store func(context.Context, *eventv1.UsualDay) error,
	load func(context.Context, *eventv1.UsualQuery) (*eventv1.UsualDay, error),
) error {
	requests := make(chan *nats.Msg, 64)
	sub, err := b.nc.ChanQueueSubscribe(subjectUsual+"*", queueUsual, requests)
	if err != nil {
		return fmt.Errorf("answer requests for what is usual: %w", unavailable(err))
	}
	defer func() { _ = sub.Unsubscribe() }() // fails only when the connection is closed
	for {
		select {
		case <-ctx.Done():
			return nil
		case m := <-requests:
			r := &eventv1.UsualReply{}
			var err error
			switch m.Subject {
			case SubjectUsualStore:
				d := &eventv1.UsualDay{}
				if err = proto.Unmarshal(m.Data, d); err == nil {
					err = store(ctx, d)
				}
			case SubjectUsualLoad:
				q := &eventv1.UsualQuery{}
				if err = proto.Unmarshal(m.Data, q); err == nil {
					r.Found, err = load(ctx, q)
				}
			default:
				continue
			}
			if err != nil {
				b.t.CountError("usual")
				r = &eventv1.UsualReply{Error: err.Error()}
			}
			data, err := proto.Marshal(r)
			if err == nil {
				err = m.Respond(data)
			}
			if err != nil { // who asked asks again
				b.t.CountError("usual_reply")
			}
		}
	}
}
