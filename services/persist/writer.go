package persist

import (
	"context"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/lifecycle"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/services/persist/internal/sqlstore"
)

const (
	// chunkRows bounds a transaction: large enough for COPY, small enough to be repeated. One message may be larger;
	// where the database allows fewer rows the store shares it out.
	chunkRows = 20_000
	// attemptTimeout bounds one attempt to commit a chunk, so that a database that hangs counts as one that
	// is down.
	attemptTimeout = 30 * time.Second
	// stopGrace is how long an attempt may go on after the service was told to stop.
	stopGrace = 3 * time.Second
	// quietConflicts is how often in a row transactions may meet before it is a problem: on a cluster they do.
	quietConflicts = 3
	// rememberDone bounds the set of committed sequences that may come again.
	rememberDone = 1 << 16
)

// terms count what became of messages or records. Every one that was taken from the bus is in exactly one of
// the first three.
type terms struct{ committed, duplicate, rejected uint64 }

// writer keeps the ledger of one stream. Its consumer is one goroutine; the ledger is read by others.
type writer struct {
	s      *Service
	stream string
	name   string // flows or events

	mu          sync.Mutex
	high        uint64           // highest sequence seen
	highStored  int64            // when that message was stored; 0: not seen by this process
	resumed     uint64           // highest sequence committed by an earlier process
	done        map[uint64]int64 // sequences that this process committed, and when they were stored; older ones are forgotten
	anew        bool             // the stream was made anew, which the stored position does not know yet
	messages    terms
	records     terms
	redelivered uint64 // records that came again after their commit; in no other term
	discarded   uint64 // messages
	pending     uint64 // messages, at the last look
}

func newWriter(s *Service, stream, name string) *writer {
	return &writer{s: s, stream: stream, name: name, done: map[uint64]int64{}}
}

func (w *writer) resume(seq uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.high, w.resumed = seq, seq
}

// sameStream looks whether the stream can be the one whose position was stored.
func (w *writer) sameStream(ctx context.Context) error {
	w.mu.Lock()
	resumed := w.resumed
	w.mu.Unlock()
	if resumed == 0 {
		return nil
	}
	st, err := w.s.bus.State(ctx, w.stream)
	if err == nil && st.LastSeq < resumed {
		w.mu.Lock()
		w.startOver()
		w.mu.Unlock()
	}
	return err
}

// startOver forgets the sequences of a stream that is no more, whose numbers now mean other messages. w.mu is held.
func (w *writer) startOver() {
	w.s.t.Log.Warn("the stream was made anew: what it held and was not stored is lost", "stream", w.stream, "position", w.high)
	w.high, w.highStored, w.resumed, w.anew = 0, 0, 0, true
	clear(w.done)
}

// arrive notes a message and tells whether it was committed by this process already.
func (w *writer) arrive(ctx context.Context, p place, redelivered bool) (committed bool) {
	w.mu.Lock()
	stored, known := w.done[p.seq]
	if known && stored == p.stored {
		w.mu.Unlock()
		return true
	}
	// In one stream a number is of one message, and a lower number is of an earlier one.
	if known || !redelivered && p.seq < w.high && w.highStored != 0 && p.stored > w.highStored {
		w.startOver()
	}
	gapFrom := w.high + 1
	gap := !redelivered && p.seq > gapFrom
	first := w.high == 0
	if p.seq >= w.high {
		w.high, w.highStored = p.seq, p.stored
	}
	w.mu.Unlock()
	if !gap {
		return false
	}
	// Missing are the messages that the stream no longer has. What it still has went to another instance
	// or was malformed; a first start on a stream that has dropped messages before missed those too.
	missing := p.seq - gapFrom
	ask, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	st, err := w.s.bus.State(ask, w.stream)
	switch {
	case err == nil && st.FirstSeq <= gapFrom:
		missing = 0
	case err == nil:
		missing = min(missing, st.FirstSeq-gapFrom)
	case first:
		missing = 0 // nothing is known of the stream's past
	}
	if missing > 0 {
		w.s.metrics.discarded.WithLabelValues(w.name).Add(float64(missing))
		w.mu.Lock()
		w.discarded += missing
		w.mu.Unlock()
	}
	return false
}

// place is where a message is in its stream, and when it was stored there, in Unix ns.
type place struct {
	seq    uint64
	stored int64
}

// chunk is what one transaction commits.
type chunk struct {
	batch    sqlstore.Batch
	places   []place // of its messages
	rejected int     // records that cannot be rows
	old      bool    // an earlier process got further than this: rows that are there are no duplicates
	spans    []trace.Span
}

func (w *writer) isOld(seq uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return seq <= w.resumed
}

// commit stores a chunk, retrying until the database takes it or ctx ends.
func (w *writer) commit(ctx context.Context, c *chunk) error {
	if len(c.places) == 0 {
		return nil
	}
	c.batch.Stream = w.stream
	for _, p := range c.places {
		c.batch.Seq = max(c.batch.Seq, p.seq)
	}
	w.mu.Lock()
	c.batch.Anew = w.anew
	w.mu.Unlock()
	op := "insert_" + w.name
	var res sqlstore.Result
	conflicts := 0
	err := lifecycle.Retry(ctx, retryMin, retryMax, func(ctx context.Context) error {
		begin := time.Now()
		attempt, cancel := context.WithTimeout(context.WithoutCancel(ctx), attemptTimeout)
		defer cancel()
		defer context.AfterFunc(ctx, func() { time.AfterFunc(stopGrace, cancel) })()
		var err error
		res, err = w.s.store.Load().Insert(attempt, c.batch)
		if err == nil {
			w.s.metrics.insert.Observe(time.Since(begin).Seconds())
		}
		return err
	}, func(err error, _ time.Duration) {
		if conflicts < quietConflicts && w.s.store.Load().Conflict(err) {
			conflicts++
			w.s.t.CountError(op)
			return
		}
		w.s.problem(op, err)
	})
	for _, span := range c.spans {
		if err != nil {
			span.SetStatus(codes.Error, err.Error())
		}
		span.End()
	}
	if err != nil {
		return err // ctx ended; the messages come again
	}
	w.s.well(op)
	for _, r := range res.Rejections {
		w.s.t.Log.Warn("the database rejected a row", "row", r)
	}
	w.count(c, res)
	return nil
}

// count puts a committed chunk into the ledger.
func (w *writer) count(c *chunk, res sqlstore.Result) {
	var sum sqlstore.Count
	for t, n := range res.Count {
		w.s.metrics.rows.WithLabelValues(string(t)).Add(float64(n.Committed))
		sum.Committed += n.Committed
		sum.Duplicate += n.Duplicate
		sum.Rejected += n.Rejected
	}
	sum.Rejected += int64(c.rejected)
	redelivered := int64(0)
	if c.old {
		redelivered, sum.Duplicate = sum.Duplicate, 0
	}
	for result, n := range map[string]int64{"committed": sum.Committed, "duplicate": sum.Duplicate, "rejected": sum.Rejected, "redelivered": redelivered} {
		w.s.metrics.records.WithLabelValues(w.name, result).Add(float64(n))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	add := func(t *terms, committed, duplicate, rejected int64) {
		t.committed += uint64(committed) //nolint:gosec // counts
		t.duplicate += uint64(duplicate) //nolint:gosec // counts
		t.rejected += uint64(rejected)   //nolint:gosec // counts
	}
	add(&w.records, sum.Committed, sum.Duplicate, sum.Rejected)
	w.redelivered += uint64(redelivered) //nolint:gosec // a count

	// Each message is in one term. In a transaction that held both new and known rows, messages are shared
	// out by the share of rows; transactions of one kind, nearly all, are exact.
	n := int64(len(c.places))
	total := sum.Committed + sum.Duplicate + sum.Rejected + redelivered
	if total == 0 {
		add(&w.messages, n, 0, 0)
	} else {
		again := n * redelivered / total
		dup, rej := n*sum.Duplicate/total, n*sum.Rejected/total
		add(&w.messages, n-again-dup-rej, dup, rej)
	}
	for _, p := range c.places {
		w.done[p.seq] = p.stored
	}
	w.anew = false
	if len(w.done) > 2*rememberDone {
		for seq := range w.done {
			if seq+rememberDone < w.high {
				delete(w.done, seq)
			}
		}
	}
}

// updatePending asks the bus for the backlog.
func (w *writer) updatePending(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	n, err := w.s.bus.Backlog(ctx, w.stream, durable)
	if err != nil {
		return 0, err
	}
	w.mu.Lock()
	w.pending = n
	w.mu.Unlock()
	return n, nil
}

// storeFlows is the handler of flow messages.
func (s *Service) storeFlows(ctx context.Context, msgs []bus.FlowMsg) error {
	w := s.flows
	c := &chunk{}
	flush := func() error {
		err := w.commit(ctx, c)
		c = &chunk{}
		return err
	}
	limit := chunkRows
	if n := s.store.Load().BatchRows(); n > 0 {
		limit = min(limit, n)
	}
	for i := range msgs {
		m := &msgs[i]
		at := place{m.StreamSeq, m.Stored.UnixNano()}
		if w.arrive(ctx, at, m.Redelivered) {
			continue
		}
		if n := len(c.batch.Flows); n > 0 && n+len(m.Records.GetRecords()) > limit {
			if err := flush(); err != nil {
				return err
			}
		}
		if old := w.isOld(m.StreamSeq); old != c.old {
			if err := flush(); err != nil {
				return err
			}
			c.old = old
		}
		if len(c.spans) == 0 && m.Traceparent != "" {
			c.spans = append(c.spans, s.span(m.Context(ctx), sqlstore.Flows, m.StreamSeq))
		}
		for _, r := range m.Records.GetRecords() {
			row, err := flowRow(m.Records.GetSensor(), r)
			if err != nil {
				c.rejected++
				continue
			}
			c.batch.Flows = append(c.batch.Flows, row)
		}
		c.places = append(c.places, at)
	}
	return flush()
}

// storeEvents is the handler of attacks, verdicts, enforcement events and audits.
func (s *Service) storeEvents(ctx context.Context, msgs []bus.EventMsg) error {
	w := s.events
	c := &chunk{}
	for i := range msgs {
		m := &msgs[i]
		at := place{m.StreamSeq, m.Stored.UnixNano()}
		if w.arrive(ctx, at, m.Redelivered) {
			continue
		}
		if old := w.isOld(m.StreamSeq); old != c.old {
			if err := w.commit(ctx, c); err != nil {
				return err
			}
			c = &chunk{old: old}
		}
		var err error
		parent := m.Context(ctx)
		switch {
		case m.Attack != nil:
			var row sqlstore.Attack
			if row, err = attackRow(m.Attack); err == nil {
				c.batch.Attacks = append(c.batch.Attacks, row)
				if m.Traceparent != "" {
					c.spans = append(c.spans, s.span(parent, sqlstore.Attacks, m.StreamSeq))
				}
			}
		case m.Verdict != nil:
			if m.Traceparent == "" {
				parent = telemetry.Extract(ctx, m.Verdict.GetTraceparent())
			}
			var row sqlstore.Verdict
			if row, err = verdictRow(m.Verdict); err == nil {
				c.batch.Verdicts = append(c.batch.Verdicts, row)
				c.spans = append(c.spans, s.span(telemetry.AlwaysSample(parent), sqlstore.Verdicts, m.StreamSeq))
			}
		case m.Enforcement != nil:
			var row sqlstore.Enforcement
			if row, err = enforcementRow(m.Enforcement); err == nil {
				c.batch.Enforcements = append(c.batch.Enforcements, row)
				if m.Traceparent != "" {
					c.spans = append(c.spans, s.span(parent, sqlstore.Enforcements, m.StreamSeq))
				}
			}
		case m.Audit != nil:
			var row sqlstore.Audit
			if row, err = auditRow(m.Audit); err == nil {
				c.batch.Audits = append(c.batch.Audits, row)
				if m.Traceparent != "" {
					c.spans = append(c.spans, s.span(parent, sqlstore.Audits, m.StreamSeq))
				}
			}
		}
		if err != nil {
			c.rejected++
			s.t.Log.Warn("an event cannot be stored", "subject", m.Subject, "error", err)
		}
		c.places = append(c.places, at)
	}
	return w.commit(ctx, c)
}

// span begins the insert of one message in the trace of its publisher.
func (s *Service) span(parent context.Context, t sqlstore.Table, seq uint64) trace.Span {
	_, span := s.t.Tracer.Start(parent, "persist.insert", trace.WithSpanKind(trace.SpanKindConsumer),
		trace.WithAttributes(attribute.String("db.collection.name", string(t)),
			attribute.Int64("messaging.nats.stream_sequence", int64(seq)))) //nolint:gosec // below 2^63
	return span
}

// ledger adds the writer's terms to m. Terms without a unit count messages: what JetStream discards or still
// holds is known in messages only.
func (w *writer) ledger(prefix string, m map[string]uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m[prefix+"committed"] = w.messages.committed
	m[prefix+"duplicate"] = w.messages.duplicate
	m[prefix+"rejected"] = w.messages.rejected
	m[prefix+"discarded"] = w.discarded
	m[prefix+"pending"] = w.pending
	m[prefix+"records_committed"] = w.records.committed
	m[prefix+"records_duplicate"] = w.records.duplicate
	m[prefix+"records_rejected"] = w.records.rejected
	m[prefix+"records_redelivered"] = w.redelivered
}
