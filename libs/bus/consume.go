package bus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

const (
	batchMax       = 512
	batchBytes     = 4 << 20 // of a batch, about
	batchLinger    = 200 * time.Millisecond
	busyMessages   = 16 // so many in batchLinger are worth a larger batch …
	busyLinger     = time.Second
	fetchMax       = 64                    // messages of one pull
	pullMin        = 10 * time.Millisecond // a shorter one is not worth its messages
	firstWait      = 10 * time.Second      // one pull while idle
	pullHeartbeat  = 2 * time.Second       // a pull whose server went away ends after two of them
	ackWait        = 30 * time.Second
	keepAliveEvery = 10 * time.Second // a handler that takes long keeps its messages by this
	nakMin         = time.Second
	nakMax         = 30 * time.Second

	// A durable consumer that nobody reads for so long is removed, so that it cannot hold the event stream full.
	forgetDurable = 7 * 24 * time.Hour
)

// FlowMsg is one stored message of flow records.
type FlowMsg struct {
	Records     *eventv1.FlowRecords
	Subject     string
	StreamSeq   uint64
	Stored      time.Time // with StreamSeq it tells one message from another also when the stream was made anew
	Redelivered bool
	Traceparent string
}

// Context is ctx with the publisher's span as the remote parent.
func (m *FlowMsg) Context(ctx context.Context) context.Context {
	return telemetry.Extract(ctx, m.Traceparent)
}

// EventMsg is one stored event: exactly one of the pointers is set.
type EventMsg struct {
	Attack      *eventv1.Attack
	Verdict     *eventv1.Verdict
	Enforcement *eventv1.Enforcement
	Audit       *eventv1.Audit
	Subject     string
	StreamSeq   uint64
	Stored      time.Time // as of FlowMsg
	Redelivered bool
	Traceparent string
}

// Context is ctx with the publisher's span as the remote parent.
func (m *EventMsg) Context(ctx context.Context) context.Context {
	return telemetry.Extract(ctx, m.Traceparent)
}

// ConsumeFlows hands stored flow records to h, from the oldest that this durable consumer has not acknowledged.
// A batch ends 200 ms after its first message, or a second after it when many come, and at 512 messages or 4 MiB; h runs
// in one goroutine. When h returns nil all are
// acknowledged, otherwise all come again after a growing delay of 1 to 30 s, so h must be idempotent. A message that
// cannot be read is terminated and reported to Config.OnBad. It returns when ctx ends (nil), after the batch in h's
// hands; it survives reconnects and lost servers.
func (b *Bus) ConsumeFlows(ctx context.Context, durable string, h func(context.Context, []FlowMsg) error) error {
	return consume(ctx, b, StreamFlows, durable, []string{SubjectFlows + ">"}, decodeFlows, h)
}

func decodeFlows(m jetstream.Msg) (FlowMsg, error) {
	out := FlowMsg{Records: &eventv1.FlowRecords{}, Subject: m.Subject(), Traceparent: m.Headers().Get(headerTrace)}
	if err := proto.Unmarshal(m.Data(), out.Records); err != nil {
		return out, fmt.Errorf("flow records: %w", err)
	}
	out.StreamSeq, out.Stored, out.Redelivered = sequence(m)
	return out, nil
}

// ConsumeEvents does the same for attacks, verdicts, enforcement events and audits; subjects are patterns, for example
// AllAttacks; none means all events.
func (b *Bus) ConsumeEvents(ctx context.Context, durable string, subjects []string, h func(context.Context, []EventMsg) error) error {
	return consume(ctx, b, StreamEvents, durable, subjects, decodeEvent, h)
}

func decodeEvent(m jetstream.Msg) (EventMsg, error) {
	out, err := parseEvent(m.Subject(), m.Data())
	if err != nil {
		return out, err
	}
	out.Traceparent = m.Headers().Get(headerTrace)
	out.StreamSeq, out.Stored, out.Redelivered = sequence(m)
	return out, nil
}

// parseEvent reads an event's JSON as what its subject says.
func parseEvent(subject string, data []byte) (EventMsg, error) {
	out := EventMsg{Subject: subject}
	var into proto.Message
	switch {
	case strings.HasPrefix(out.Subject, SubjectAttack):
		out.Attack = &eventv1.Attack{}
		into = out.Attack
	case strings.HasPrefix(out.Subject, SubjectVerdict):
		out.Verdict = &eventv1.Verdict{}
		into = out.Verdict
	case strings.HasPrefix(out.Subject, SubjectEnforcement):
		out.Enforcement = &eventv1.Enforcement{}
		into = out.Enforcement
	case strings.HasPrefix(out.Subject, SubjectAudit):
		out.Audit = &eventv1.Audit{}
		into = out.Audit
	default:
		return out, fmt.Errorf("unknown subject %q", out.Subject)
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(data, into); err != nil {
		return out, fmt.Errorf("event: %w", err)
	}
	return out, nil
}

func sequence(m jetstream.Msg) (seq uint64, stored time.Time, redelivered bool) {
	meta, err := m.Metadata()
	if err != nil {
		return 0, time.Time{}, false
	}
	return meta.Sequence.Stream, meta.Timestamp, meta.NumDelivered > 1
}

// consume is the loop of both durable consumers.
func consume[T any](ctx context.Context, b *Bus, stream, durable string, subjects []string,
	decode func(jetstream.Msg) (T, error), h func(context.Context, []T) error,
) error {
	cfg := jetstream.ConsumerConfig{
		Durable: durable, FilterSubjects: subjects, AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait,
		DeliverPolicy: jetstream.DeliverAllPolicy, MaxAckPending: 2 * batchMax, InactiveThreshold: forgetDurable,
	}
	wait := retryMin
	pause := func(op string, err error) {
		b.t.CountError(op)
		b.recover(ctx, err)
		sleep(ctx, wait)
		wait = min(2*wait, retryMax)
	}
	nak := nakMin
	for ctx.Err() == nil {
		c, err := b.js.CreateOrUpdateConsumer(ctx, stream, cfg)
		if err != nil {
			if errors.Is(err, jetstream.ErrInvalidConsumerName) {
				return fmt.Errorf("consumer %q: %w", durable, err)
			}
			pause("consume_"+stream, err)
			continue
		}
		for ctx.Err() == nil {
			msgs, err := fetch(ctx, c)
			if err != nil && ctx.Err() == nil {
				pause("consume_"+stream, err)
				break // the consumer may be gone: make it again
			}
			wait = retryMin
			batch, good := make([]T, 0, len(msgs)), msgs[:0]
			for _, m := range msgs {
				v, err := decode(m)
				if err != nil {
					b.bad("decode_"+stream, m.Subject(), err)
					b.check(m.TermWithReason(err.Error()))
					continue
				}
				batch, good = append(batch, v), append(good, m)
			}
			if len(batch) == 0 {
				continue
			}
			if ctx.Err() != nil { // fetched but not handled: another reader may have them at once
				for _, m := range good {
					b.check(m.Nak())
				}
				break
			}
			if err := b.handle(ctx, good, func() error { return h(ctx, batch) }); err == nil {
				nak = nakMin
				continue
			}
			b.t.CountError("handle_" + stream)
			for _, m := range good {
				b.check(m.NakWithDelay(nak))
			}
			sleep(ctx, nak) // what comes later would most likely fail as well
			nak = min(2*nak, nakMax)
		}
	}
	return nil
}

// handle runs h, keeps the messages from being delivered again while it works, and acknowledges them.
func (b *Bus) handle(ctx context.Context, msgs []jetstream.Msg, h func() error) error {
	if err := b.inProgress(msgs, keepAliveEvery, h); err != nil {
		return err
	}
	for _, m := range msgs[:len(msgs)-1] {
		b.check(m.Ack())
	}
	// The last one waits for the server: acknowledgements are in order, so a clean stop leaves none behind.
	ack, cancel := context.WithTimeout(context.WithoutCancel(ctx), ackTimeout)
	defer cancel()
	b.check(msgs[len(msgs)-1].DoubleAck(ack))
	return nil
}

// inProgress runs h and tells the server now and then that the messages are still in hand.
func (b *Bus) inProgress(msgs []jetstream.Msg, every time.Duration, h func() error) error {
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				for _, m := range msgs {
					b.check(m.InProgress())
				}
			}
		}
	}()
	err := h()
	close(stop)
	<-done
	return err
}

// check counts a lost acknowledgement: the message comes again.
func (b *Bus) check(err error) {
	if err != nil {
		b.t.CountError("acknowledge")
	}
}

// fetch waits for a first message and takes more until a batch is full or its time is over: what costs by the batch, such
// as a page of an index that it writes, costs less when many messages share it. No message in firstWait is not an error.
func fetch(ctx context.Context, c jetstream.Consumer) ([]jetstream.Msg, error) {
	first, cancel := context.WithTimeout(ctx, firstWait)
	defer cancel()
	m, err := c.Next(jetstream.FetchContext(first), jetstream.FetchHeartbeat(pullHeartbeat))
	if err != nil {
		if errors.Is(err, nats.ErrTimeout) || errors.Is(err, context.DeadlineExceeded) {
			return nil, nil
		}
		return nil, err
	}
	begun := time.Now()
	msgs, bytes := append(make([]jetstream.Msg, 0, fetchMax), m), len(m.Data())
	for len(msgs) < batchMax && bytes < batchBytes {
		linger := batchLinger
		if len(msgs) >= busyMessages {
			linger = busyLinger
		}
		left := linger - time.Since(begun)
		if left < pullMin || ctx.Err() != nil {
			break
		}
		room := 1 + (batchBytes-bytes)*len(msgs)/max(bytes, 1) // if the next are as large as those so far
		more, err := c.Fetch(min(fetchMax, batchMax-len(msgs), room), jetstream.FetchMaxWait(min(left, batchLinger)))
		if err != nil {
			break // what is there is handled first; the next fetch reports it
		}
		for m := range more.Messages() {
			msgs, bytes = append(msgs, m), bytes+len(m.Data())
		}
	}
	return msgs, nil
}
