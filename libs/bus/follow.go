package bus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

// Gap tells a follower of events what it cannot have any more.
type Gap struct {
	From, To uint64 // stream sequences that were removed, both inclusive; 0 when Restarted
	// Restarted: the stream was made anew and its sequences begin at 1 again. The events it holds follow.
	Restarted bool
}

// ConsumeEventsEphemeral hands events to h one by one in the stream's order, from now on. It returns when ctx
// ends (nil). A slow h delays itself only. After a lost server it goes on from what is there then.
func (b *Bus) ConsumeEventsEphemeral(ctx context.Context, subjects []string, h func(EventMsg)) error {
	cfg := jetstream.OrderedConsumerConfig{FilterSubjects: subjects, DeliverPolicy: jetstream.DeliverNewPolicy}
	return b.again(ctx, "consume_ephemeral", func(progress func()) error {
		return b.follow(ctx, cfg, func(_ uint64, m *EventMsg) error {
			progress()
			if m != nil {
				h(*m)
			}
			return nil
		})
	})
}

// FollowEvents hands every stored event with a stream sequence above after to h, one by one in the stream's order,
// each exactly once, also across reconnects and restarts of the server. It returns when ctx ends (nil). A slow h
// delays itself only. after 0 begins with the oldest event that the stream holds. subjects are patterns, for example
// AllAttacks; none means all events.
//
// When events above after were removed, or the stream was made anew (also when after is above its last sequence),
// gap is told before the next call of h, from the same goroutine, and the oldest event that is left follows. Events
// removed under a follower that is behind are told too, if it takes all subjects.
func (b *Bus) FollowEvents(ctx context.Context, after uint64, subjects []string, h func(EventMsg), gap func(Gap)) error {
	f := follower{b: b, subjects: subjects, last: after, asked: after > 0, h: h, gap: gap}
	return b.again(ctx, "consume_ephemeral", func(progress func()) error { return f.session(ctx, progress) })
}

// follower is the place in the stream that one FollowEvents has reached.
type follower struct {
	b        *Bus
	subjects []string
	last     uint64    // sequence handed over, or removed and told
	asked    bool      // last is a place that somebody has seen: what is missing above it is a gap
	created  time.Time // of the stream that last belongs to; zero at first
	h        func(EventMsg)
	gap      func(Gap)
}

var errAgain = errors.New("the connection or the stream is another one")

// session follows until something happens after which the stream must be looked at again.
func (f *follower) session(ctx context.Context, progress func()) error {
	reconnected := f.b.reconnectSignal()
	s, err := f.b.js.Stream(ctx, StreamEvents)
	if err != nil {
		return fmt.Errorf("follow events: %w", unavailable(err))
	}
	info := s.CachedInfo()
	if st := info.State; f.last > st.LastSeq || !f.created.IsZero() && !info.Created.Equal(f.created) {
		f.last, f.asked = 0, false
		f.gap(Gap{Restarted: true})
	} else if f.asked && st.FirstSeq > f.last+1 {
		f.gap(Gap{From: f.last + 1, To: st.FirstSeq - 1})
		f.last = st.FirstSeq - 1
	}
	f.created = info.Created

	// The client's consumer would go on by itself after a reconnect, but by sequence only: it cannot tell a stream
	// that was made anew.
	session, end := context.WithCancel(ctx)
	defer end()
	go func() {
		select {
		case <-reconnected:
			end()
		case <-session.Done():
		}
	}()
	cfg := jetstream.OrderedConsumerConfig{
		FilterSubjects: f.subjects, DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: f.last + 1,
	}
	return f.b.follow(session, cfg, func(seq uint64, m *EventMsg) error {
		if seq <= f.last {
			return errAgain
		}
		if f.asked && len(f.subjects) == 0 && seq > f.last+1 {
			f.gap(Gap{From: f.last + 1, To: seq - 1})
		}
		f.last, f.asked = seq, true
		progress()
		if m != nil {
			f.h(*m)
		}
		return nil
	})
}

// again runs f until ctx ends: at once when it returns nil, after an error with growing pauses that alive resets.
// Errors are counted under op.
func (b *Bus) again(ctx context.Context, op string, f func(alive func()) error) error {
	wait := retryMin
	for ctx.Err() == nil {
		err := f(func() { wait = retryMin })
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			b.t.CountError(op)
			b.recover(ctx, err)
			sleep(ctx, wait)
			wait = min(2*wait, retryMax)
		}
	}
	return nil
}

// follow hands what an ordered consumer delivers to h; an event that cannot be read is reported and handed over as
// nil. It returns the first error, also h's, or that ctx ended.
func (b *Bus) follow(ctx context.Context, cfg jetstream.OrderedConsumerConfig, h func(seq uint64, m *EventMsg) error) error {
	c, err := b.js.OrderedConsumer(ctx, StreamEvents, cfg)
	if err != nil {
		return fmt.Errorf("follow events: %w", unavailable(err))
	}
	it, err := c.Messages()
	if err != nil {
		return fmt.Errorf("follow events: %w", unavailable(err))
	}
	defer context.AfterFunc(ctx, it.Stop)()
	defer it.Stop()
	for {
		// Stop alone is not enough: while the iterator makes its consumer again it stops the one that was before.
		m, err := it.Next(jetstream.NextContext(ctx))
		if errors.Is(err, jetstream.ErrNoHeartbeat) {
			continue // the iterator makes its consumer again
		}
		if err != nil {
			return fmt.Errorf("follow events: %w", unavailable(err))
		}
		ev, err := decodeEvent(m)
		if err != nil {
			b.bad("decode_event", m.Subject(), err)
			seq, _, _ := sequence(m)
			err = h(seq, nil)
		} else {
			err = h(ev.StreamSeq, &ev)
		}
		if err != nil {
			return fmt.Errorf("follow events: %w", err)
		}
	}
}

// SubscribeWindows hands live windows of all sensors to h, one at a time, until ctx ends. Windows that h is too
// slow for are lost.
func (b *Bus) SubscribeWindows(ctx context.Context, h func(sensor string, w *flowv1.Window)) error {
	ch := make(chan *nats.Msg, 64)
	sub, err := b.nc.ChanSubscribe(AllWindows, ch)
	if err != nil {
		return fmt.Errorf("subscribe to windows: %w", unavailable(err))
	}
	defer func() { _ = sub.Unsubscribe() }() // an error means that the connection is gone and the subscription with it
	for {
		select {
		case <-ctx.Done():
			return nil
		case m := <-ch:
			var w flowv1.Window
			if err := proto.Unmarshal(m.Data, &w); err != nil {
				b.bad("decode_window", m.Subject, err)
				continue
			}
			h(strings.TrimPrefix(m.Subject, SubjectWindow), &w)
		}
	}
}

// SampleFlows hands h batches of classified flows of all sensors as they are published, one at a time, until ctx ends: about
// limit a second at most, the first ones; one stands for stands then. After limit batches the server sends none until the
// next second, so that a listener costs little however much is published.
func (b *Bus) SampleFlows(ctx context.Context, limit int, h func(stands float64, f *eventv1.FlowRecords)) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for ctx.Err() == nil {
		if err := b.sampleFlows(ctx, limit, tick.C, h); err != nil {
			b.bad("sample_flows", AllFlows, err)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	return nil
}

// sampleFlows listens to limit batches. The batches of a second are told at its end, when it is known for how
// many they stand.
func (b *Bus) sampleFlows(ctx context.Context, limit int, second <-chan time.Time, h func(float64, *eventv1.FlowRecords)) error {
	ch := make(chan *nats.Msg, limit)
	sub, err := b.nc.ChanSubscribe(AllFlows, ch)
	if err != nil {
		return fmt.Errorf("subscribe to flows: %w", unavailable(err))
	}
	defer func() { _ = sub.Unsubscribe() }() // an error means that the connection is gone and the subscription with it
	if err := sub.AutoUnsubscribe(limit); err != nil {
		return fmt.Errorf("subscribe to flows: %w", unavailable(err))
	}
	var batches []*nats.Msg
	tell := func(stands float64) {
		for _, m := range batches {
			var f eventv1.FlowRecords
			if err := proto.Unmarshal(m.Data, &f); err != nil {
				b.bad("decode_flows", m.Subject, err)
				continue
			}
			h(stands, &f)
		}
		batches = batches[:0]
	}
	begin, left := time.Now(), limit
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-second:
			tell(1)
			begin = time.Now()
		case m := <-ch:
			batches = append(batches, m)
			if left--; left == 0 {
				tell(max(1, float64(time.Second)/float64(max(time.Since(begin), time.Millisecond))))
				return nil
			}
		}
	}
}
