package bus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// What hooks read with and write to.
const (
	// StreamEVE holds the lines of the hook that writes EVE to NATS, the oldest discarded.
	StreamEVE = "TG_EVE"
	// SubjectEVE is followed by the event type: alert, flow or drop.
	SubjectEVE = "tg.v1.eve."

	// HookDurable begins the names of hooks' consumers. They never hold the event stream full: a receiver that stays
	// down must not stop those who publish.
	HookDurable = "hook-"

	// HookPlaces is how many webhooks and how many scripts there may be: the rights on NATS name each consumer.
	HookPlaces = 4

	eveBytes     = 256 << 20
	duplicateEVE = 10 * time.Minute

	hookAckWait   = 6 * time.Second // after a kill the next reader waits so long
	hookKeepAlive = 2 * time.Second
)

// HookNames lists the consumers that hooks may have on a stream.
func HookNames(stream string) []string {
	names := []string{HookDurable + "eve-file", HookDurable + "eve-nats"}
	if stream != StreamEvents {
		return names
	}
	for n := range HookPlaces {
		place := strconv.Itoa(n + 1)
		names = append(names, HookDurable+"webhook-"+place, HookDurable+"script-"+place)
	}
	return names
}

// Place is where a message is in its stream, and what is missing before it.
type Place struct {
	ID     string // the publisher's message id, the same each time the message is delivered
	Seq    uint64 // in the stream
	Stored time.Time
	// Lost messages were removed from the stream after the former one that this consumer has had. What a publisher
	// removed to make room while nobody read is not among them: it counts the error hook_lost.
	Lost uint64
	// Redelivered: a former delivery was not acknowledged; the handler of a process that ended may have taken it.
	Redelivered bool
}

// DeliverEvents hands every event to h one by one in the stream's order. A durable consumer of that name keeps the
// place, also while nobody reads, for a week; a new one begins with what is published from then on. Several readers
// share the work and the order stays: one message is on its way at a time.
//
// A message is acknowledged when h returns nil, which may take as long as it likes; while it works the message is not
// delivered to others. When h fails the message comes again at once: h waits as it sees fit, and fails when ctx ends.
// What was acknowledged while the connection broke is not handed over twice by one process; a process that ends between
// h and the acknowledgement leaves a message that comes again. It returns when ctx ends (nil).
func (b *Bus) DeliverEvents(ctx context.Context, durable string, h func(context.Context, *EventMsg, Place) error) error {
	return deliver(ctx, b, StreamEvents, durable, decodeEvent, h)
}

// DeliverFlows does the same for messages of flow records.
func (b *Bus) DeliverFlows(ctx context.Context, durable string, h func(context.Context, *FlowMsg, Place) error) error {
	return deliver(ctx, b, StreamFlows, durable, decodeFlows, h)
}

// delivery is the place in a stream that one reader has reached.
type delivery[T any] struct {
	b       *Bus
	stream  string
	durable string
	decode  func(jetstream.Msg) (T, error)
	h       func(context.Context, *T, Place) error

	created  time.Time // of the stream that the numbers below belong to; zero: none yet
	last     uint64    // highest sequence that was delivered
	sent     uint64    // deliveries of the consumer so far: one more is the next
	finished uint64    // sequence that this process has handled
	floor    uint64    // up to here everything was handled, by whatever process, or was published before the hook was there
}

func deliver[T any](ctx context.Context, b *Bus, stream, durable string, decode func(jetstream.Msg) (T, error),
	h func(context.Context, *T, Place) error,
) error {
	d := &delivery[T]{b: b, stream: stream, durable: durable, decode: decode, h: h}
	return b.again(ctx, "deliver_"+stream, func(alive func()) error { return d.session(ctx, alive) })
}

// session delivers until ctx ends or something breaks.
func (d *delivery[T]) session(ctx context.Context, alive func()) error {
	c, err := d.open(ctx)
	if err != nil {
		return fmt.Errorf("deliver %s to %s: %w", d.stream, d.durable, unavailable(err))
	}
	it, err := c.Messages(jetstream.PullMaxMessages(1), jetstream.PullHeartbeat(pullHeartbeat))
	if err != nil {
		return fmt.Errorf("deliver %s to %s: %w", d.stream, d.durable, unavailable(err))
	}
	defer d.release(it)
	for {
		m, err := it.Next(jetstream.NextContext(ctx))
		if err != nil {
			if ctx.Err() != nil {
				return nil //nolint:nilerr // that is how it ends
			}
			return fmt.Errorf("deliver %s to %s: %w", d.stream, d.durable, unavailable(err))
		}
		alive()
		if err := d.one(ctx, m); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// release ends the delivery and gives back what is on its way, so that the next reader need not wait for the
// acknowledgement's deadline.
func (d *delivery[T]) release(it jetstream.MessagesContext) {
	it.Drain()
	for {
		m, err := it.Next(jetstream.NextMaxWait(time.Second))
		if err != nil {
			break
		}
		d.b.check(m.Nak())
	}
	it.Stop()
	if d.b.nc.IsConnected() {
		_ = d.b.nc.FlushTimeout(time.Second) // nothing to do about it: the deadline passes
	}
}

// open finds the consumer or makes it, where this process knows better than "from now on", from there.
func (d *delivery[T]) open(ctx context.Context) (jetstream.Consumer, error) {
	s, err := d.b.js.Stream(ctx, d.stream)
	if err != nil {
		return nil, err
	}
	info := s.CachedInfo()
	same := info.Created.Equal(d.created)
	c, err := s.Consumer(ctx, d.durable)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		cfg := jetstream.ConsumerConfig{
			Durable: d.durable, AckPolicy: jetstream.AckExplicitPolicy, AckWait: hookAckWait, MaxAckPending: 1,
			DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: info.State.LastSeq + 1, InactiveThreshold: forgetDurable,
		}
		switch {
		case !d.created.IsZero() && same: // the consumer was lost
			cfg.OptStartSeq = d.floor + 1
		case !d.created.IsZero(): // the stream was
			cfg.OptStartSeq = 1
		}
		c, err = s.CreateConsumer(ctx, cfg)
	}
	if err != nil {
		return nil, err
	}
	state := c.CachedInfo()
	if !same {
		d.created, d.finished, d.sent, d.floor = info.Created, 0, 0, 0
	}
	d.floor = max(d.floor, state.AckFloor.Stream, max(state.Config.OptStartSeq, 1)-1)
	if d.last == 0 || !same || d.sent != state.Delivered.Consumer { // another reader got on, or this one begins
		d.sent, d.last = state.Delivered.Consumer, state.Delivered.Stream
		if first := state.Config.OptStartSeq; first > 0 {
			d.last = max(d.last, first-1)
		}
	}
	return c, nil
}

// one handles a message; an error ends the session.
func (d *delivery[T]) one(ctx context.Context, m jetstream.Msg) error {
	meta, err := m.Metadata()
	if err != nil {
		return fmt.Errorf("deliver %s to %s: %w", d.stream, d.durable, err)
	}
	place := Place{
		ID: m.Headers().Get(jetstream.MsgIDHeader), Seq: meta.Sequence.Stream, Stored: meta.Timestamp, Redelivered: meta.NumDelivered > 1,
	}
	if place.ID == "" {
		place.ID = d.stream + "/" + strconv.FormatInt(d.created.UnixNano(), 36) + "/" + strconv.FormatUint(place.Seq, 10)
	}
	// The consumer takes all subjects, so what is missing was removed, unless another reader had deliveries in between.
	if meta.Sequence.Consumer == d.sent+1 && place.Seq > d.last+1 {
		place.Lost = place.Seq - d.last - 1
	}
	d.sent, d.last = meta.Sequence.Consumer, max(d.last, place.Seq)
	d.floor = max(d.floor, place.Seq-1) // one message is on its way at a time
	if place.Seq != d.finished {
		v, err := d.decode(m)
		if err != nil {
			d.b.bad("decode_"+d.stream, m.Subject(), err)
		} else if err := d.b.inProgress([]jetstream.Msg{m}, hookKeepAlive, func() error { return d.h(ctx, &v, place) }); err != nil {
			d.b.check(m.Nak())
			return fmt.Errorf("deliver %s to %s: %w", d.stream, d.durable, err)
		}
		d.finished = place.Seq
	}
	d.floor = max(d.floor, place.Seq)
	ack, cancel := context.WithTimeout(context.WithoutCancel(ctx), ackTimeout)
	defer cancel()
	if err := m.DoubleAck(ack); err != nil { // it comes again, and is known then
		d.b.t.CountError("acknowledge")
		return fmt.Errorf("deliver %s to %s: %w", d.stream, d.durable, unavailable(err))
	}
	return nil
}

// EnsureEVE makes the stream of EVE lines if it is missing. One that is there keeps its limits.
func (b *Bus) EnsureEVE(ctx context.Context) error {
	def := jetstream.StreamConfig{
		Name: StreamEVE, Description: "alerts, flows and drops as EVE lines, oldest discarded", Subjects: []string{SubjectEVE + ">"},
		Storage: jetstream.FileStorage, Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardOld,
		MaxBytes: eveBytes, Duplicates: duplicateEVE, Replicas: 1,
	}
	if err := b.ensureStream(ctx, def, 0); err != nil {
		return fmt.Errorf("stream %s: %w", StreamEVE, unavailable(err))
	}
	return nil
}

// EVELine is one line of EVE and what identifies it.
type EVELine struct {
	Type string // alert, flow or drop
	ID   string // published again within ten minutes, it is stored once
	JSON []byte // without a newline
}

// PublishEVE stores lines in their order, all on the way at once, and returns after the stream has acknowledged all.
// After an error some may be stored: publish all again.
func (b *Bus) PublishEVE(ctx context.Context, lines []EVELine) error {
	acks := make([]jetstream.PubAckFuture, 0, len(lines))
	for i := range lines {
		m := &nats.Msg{Subject: SubjectEVE + Token(lines[i].Type), Data: lines[i].JSON, Header: nats.Header{jetstream.MsgIDHeader: {lines[i].ID}}}
		ack, err := b.js.PublishMsgAsync(m)
		if err != nil {
			return fmt.Errorf("publish EVE: %w", unavailable(err))
		}
		acks = append(acks, ack)
	}
	limit, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	for _, ack := range acks {
		select {
		case <-ack.Ok():
		case err := <-ack.Err():
			return fmt.Errorf("publish EVE: %w", unavailable(err))
		case <-limit.Done():
			return fmt.Errorf("publish EVE: %w (%w)", ErrUnavailable, limit.Err())
		}
	}
	return nil
}

func isHook(durable string) bool { return strings.HasPrefix(durable, HookDurable) }
