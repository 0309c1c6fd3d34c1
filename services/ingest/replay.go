package ingest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/packet"
	"github.com/tidegate-mesh/tidegate/libs/pcapfile"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	"github.com/tidegate-mesh/tidegate/services/ingest/internal/flowtable"
	"github.com/tidegate-mesh/tidegate/services/ingest/internal/pipeline"
	"github.com/tidegate-mesh/tidegate/services/ingest/internal/window"
)

// ReplayConfig says how a capture is replayed. The zero value takes the defaults.
type ReplayConfig struct {
	Sensor        string        // default "replay"
	MaxFlows      int           // flows at a time, default 1 Mi
	Idle          time.Duration // idle timeout of every flow that was not closed, default 10 min
	AnswerTimeout time.Duration // an attempt without an answer for this long failed, default 3 s
	NoWindows     bool          // the sink gets none: closing them is most of the work on a capture of hours
}

// Sink takes what a replay makes, in order. Arguments are valid during the call only. An error ends the replay.
type Sink interface {
	// Batch may name flows of which no more payload is wanted.
	Batch(*flowv1.FlowBatch) (enough []uint64, err error)
	Window(*flowv1.Window) error
}

// ReplayLedger says where a capture's packets and flows went.
type ReplayLedger struct {
	Packets     uint64            // records read
	Undecodable map[string]uint64 // by reason; reasons without packets are absent
	Flows       uint64
	// Difference is what is not accounted for: packets that are neither accounted nor undecodable and flows
	// that the sink was not told the end of. 0 unless the sink failed or the context ended.
	Difference int64
}

// Replay runs a capture file (pcap or pcapng, also gzipped) through the pipeline by the capture's own clock, and
// returns the ledger. It is deterministic: one queue, no summaries, one record a flow. Windows are on a grid of
// 100 ms; of a stretch without traffic only the first window is given. Attempts that got no answer before the end
// of the capture count as failed. A file that ends early gives all its whole records, then an error with
// io.ErrUnexpectedEOF in its chain beside a balanced ledger.
func Replay(ctx context.Context, cfg ReplayConfig, path string, sink Sink) (ReplayLedger, error) {
	in, err := pcapfile.Open(path)
	if err != nil {
		return ReplayLedger{Undecodable: map[string]uint64{}}, fmt.Errorf("replay: %w", err)
	}
	defer func() { _ = in.Close() }() // only read from
	if cfg.Sensor == "" {
		cfg.Sensor = "replay"
	}
	if cfg.Idle <= 0 {
		cfg.Idle = 10 * time.Minute
	}
	if cfg.AnswerTimeout <= 0 {
		cfg.AnswerTimeout = 3 * time.Second
	}
	r := newReplay(cfg, sink)
	err = r.read(ctx, in)
	if ctx.Err() == nil && r.err == nil {
		r.finish()
	}
	if err == nil {
		err = r.err
	}
	if err != nil {
		err = fmt.Errorf("replay: %w", err)
	}
	return r.ledger(), err
}

// replay is one capture's state.
type replay struct {
	cfg    ReplayConfig
	sink   Sink
	q      *pipeline.Queue
	w      flowv1.Window
	err    error // the sink's first
	clock  captureClock
	epoch  uint64
	batch  uint64
	window uint64
	quiet  bool // the last window given was empty

	records uint64
	ends    uint64
}

func newReplay(cfg ReplayConfig, sink Sink) *replay {
	r := &replay{cfg: cfg, sink: sink, quiet: true}
	p := pipeline.Config{
		Flow: flowtable.Config{
			MaxFlows: cfg.MaxFlows, InitialFlows: 1 << 14,
			IdleTCP: cfg.Idle, IdleUDP: cfg.Idle, IdleOther: cfg.Idle, IdleSingle: cfg.Idle,
			AnswerTimeout: cfg.AnswerTimeout,
		},
		OnBatch: r.onBatch, CountAge: time.Second,
	}
	if cfg.NoWindows {
		// By size only: nobody waits for them, and a batch of a few packets costs more than they do. This size stays in
		// the CPU's second cache until it is read.
		p.BatchAge, p.BatchBytes = -1, 1<<16
	} else { // batches end with the windows
		p.BatchAge, p.OnWindow = -1, r.onWindow
	}
	r.q = pipeline.New(p, 0)
	return r
}

func (r *replay) onBatch(_ int, b *flowv1.FlowBatch) *flowv1.FlowBatch {
	r.batch++
	b.Sensor, b.Epoch, b.Batch = r.cfg.Sensor, r.epoch, r.batch
	if r.err == nil {
		var enough []uint64
		enough, r.err = r.sink.Batch(b)
		for _, id := range enough {
			r.q.Enough(id)
		}
	}
	if r.err == nil {
		r.ends += uint64(b.GetEnds().GetCount())
	}
	flow.Reset(b)
	return b
}

func (r *replay) onWindow(b *window.Builder) *window.Builder {
	empty := b.Empty()
	if empty && r.quiet {
		return b // nothing in it, so it needs no Reset
	}
	r.quiet = empty
	r.window++
	b.Encode(&r.w)
	r.w.Sensor, r.w.Epoch, r.w.Sequence = r.cfg.Sensor, r.epoch, r.window
	if r.err == nil {
		r.err = r.sink.Window(&r.w)
	}
	if !empty {
		b.Reset()
	}
	return b
}

// read takes all records.
func (r *replay) read(ctx context.Context, in *pcapfile.Reader) error {
	for {
		if r.records%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		rec, err := in.Next(nil)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		r.records++
		r.advance(rec.TimeNs)
		r.q.FrameLink(rec.LinkType, rec.Data, r.clock.now, 0)
		if r.err != nil {
			return r.err
		}
	}
}

// advance moves the clock to a record's time and runs what is due until then.
func (r *replay) advance(recordNs int64) {
	t := r.clock.at(recordNs)
	if r.epoch == 0 {
		r.epoch = uint64(t) //nolint:gosec // positive
	}
	r.step(t)
}

// step runs what is due up to t.
func (r *replay) step(t int64) {
	runUntil(r.q, t, func() {})
	if !r.cfg.NoWindows {
		r.q.Poll(t)
	}
}

// finish waits, in capture time, for answers that do not come, and ends all flows.
func (r *replay) finish() {
	if !r.clock.begun {
		return
	}
	r.step(r.clock.now + int64(r.cfg.AnswerTimeout) + int64(200*time.Millisecond))
	r.q.Close(r.clock.now)
}

func (r *replay) ledger() ReplayLedger {
	c, f := r.q.Counts(), r.q.Flows()
	l := ReplayLedger{Packets: r.records, Undecodable: map[string]uint64{}, Flows: f.Created}
	known := c.Accounted
	for reason, n := range c.Undecodable {
		if n != 0 {
			l.Undecodable[packet.Reason(reason).String()] = n //nolint:gosec // an index below NumReasons
			known += n
		}
	}
	l.Difference = distance(r.records, known) + distance(f.Created, r.ends+f.Summarised)
	return l
}

func distance(a, b uint64) int64 {
	if a < b {
		a, b = b, a
	}
	return int64(a - b) //nolint:gosec // counts of one file
}
