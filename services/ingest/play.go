package ingest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/pcapfile"
	"github.com/tidegate-mesh/tidegate/services/ingest/internal/pipeline"
)

// Values of Config.PcapPace.
const (
	PaceCapture = "capture"
	PaceFull    = "full"
)

// captureFile is how frames come in pcap mode.
const captureFile = "capture_file"

const (
	// clockBack is how far a capture's clock may step back before it is taken for another clock (files put together),
	// whose times then go on from here. Smaller steps are packets out of order.
	clockBack = int64(time.Minute)
	// longGap is the longest silence that is waited for at a capture's own pace; a longer one is a broken stamp, or files put
	// together.
	longGap = int64(10 * time.Minute)
	// playChunk is how many records are read between two looks at mail, at the context, and at how far the classifiers are.
	playChunk = 64
	// roomPause is how long a look for room in the outboxes waits for the next.
	roomPause  = 200 * time.Microsecond
	tellEvery  = 10 * time.Second
	waitToTell = 5 * time.Second
)

// captureClock makes a capture's times ascend.
type captureClock struct {
	begun bool
	now   int64 // never backwards
	shift int64 // added to the times of records, after a step back
}

// at moves the clock to a record's time.
func (c *captureClock) at(recordNs int64) int64 {
	// Far-off stamps of broken files, and the steps back behind them, must not overflow what is added to them.
	t := min(min(max(recordNs, 1), math.MaxInt64/4)+c.shift, math.MaxInt64/2)
	if !c.begun {
		c.begun, c.now = true, t
	}
	if t < c.now-clockBack {
		c.shift += c.now - t
	}
	c.now = max(c.now, t)
	return c.now
}

// runUntil runs a queue's timers and windows up to t, window by window while there is anything that time may change. before is
// called before each window's end.
func runUntil(q *pipeline.Queue, t int64, before func()) {
	for end := q.WindowEnd(); end != 0 && t >= end && !q.Idle(); end = q.WindowEnd() {
		before()
		q.Settle(end - 1)
		q.Poll(end)
	}
	q.Settle(t)
}

// player feeds captures to the sensor's only queue. It is one goroutine's.
type player struct {
	s      *Service
	w      *worker
	counts *portCounts
	clock  captureClock
	told   time.Time
	read   uint64
}

// play reads the captures one after the other: at their own pace, with times moved to the present, or as fast as the
// classifiers take what they hold, with times as they are. Nothing is dropped for want of room. A damaged capture gives its
// whole records and does not end the ones after it; the errors are joined. It ends the flows.
func (s *Service) play(ctx context.Context) error {
	p := &player{s: s, w: s.staff(1)[0], counts: s.counts[0], told: time.Now()}
	p.w.wait = func() { p.room(ctx) } // many flows may end at once
	p.counts.capture.Store("capture files, pace: " + s.cfg.PcapPace)
	p.counts.kind.Store(captureFile)
	if !p.awaitClassifiers(ctx) {
		return nil
	}
	s.setProblem(nil)
	s.tel.Log.Info("reading captures", "files", s.cfg.Pcap, "pace", s.cfg.PcapPace)
	var errs []error
	for _, path := range s.cfg.Pcap {
		if err := p.file(ctx, path); err != nil && ctx.Err() == nil {
			s.tel.CountError("capture_file")
			errs = append(errs, fmt.Errorf("ingest: %w", err))
		}
	}
	now := p.now()
	if ctx.Err() == nil && p.clock.begun && s.cfg.PcapPace == PaceFull {
		now += int64(time.Second) // for answers that do not come
		p.until(ctx, now)
	}
	p.room(ctx)
	p.w.pipe.Close(now)
	s.tel.Log.Info("the captures have been read", "packets", p.read)
	return errors.Join(errs...)
}

// now is the queue's time.
func (p *player) now() int64 {
	if p.s.cfg.PcapPace == PaceFull && p.clock.begun {
		return p.clock.now
	}
	return time.Now().UnixNano()
}

// awaitClassifiers waits until there is a stream to each: what is read before would only wait for them.
func (p *player) awaitClassifiers(ctx context.Context) bool {
	for !p.s.shards.connected() {
		if time.Since(p.told) > waitToTell {
			p.told = time.Now()
			p.s.tel.Log.Warn("the captures are read once all classifiers are connected", "classify", p.s.cfg.Classify)
		}
		if !sleepFor(ctx, nap) {
			return false
		}
	}
	return true
}

func sleepFor(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// file reads one capture.
func (p *player) file(ctx context.Context, path string) error {
	in, err := pcapfile.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // only read from
	var own captureClock
	var began, before int64 // at the capture's pace: when its first record is due, and when the one before was
	var rec pcapfile.Record
	for n := 0; ; n++ {
		if n%playChunk == 0 {
			p.w.readMail(mailboxSize)
			if n > 0 {
				p.tell(path, rec.TimeNs)
			}
			if !p.room(ctx) {
				return ctx.Err()
			}
		}
		if rec, err = in.Next(nil); errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		now := int64(0)
		if p.s.cfg.PcapPace == PaceFull {
			now = p.clock.at(rec.TimeNs)
			p.until(ctx, now)
		} else {
			if now = own.at(rec.TimeNs); began == 0 {
				began, before = time.Now().UnixNano()-now, now
			}
			if now-before > longGap {
				began -= now - before - longGap
			}
			before = now
			if now += began; !p.wait(ctx, now) {
				return ctx.Err()
			}
		}
		p.w.pipe.FrameLink(rec.LinkType, rec.Data, now, 0)
		p.read++
		p.counts.tookRecord(len(rec.Data))
	}
}

// until runs timers and windows up to t, no faster than the classifiers take what that makes.
func (p *player) until(ctx context.Context, t int64) {
	runUntil(p.w.pipe, t, func() { p.room(ctx) })
	p.w.pipe.Poll(t)
}

// wait runs the queue until it is t.
func (p *player) wait(ctx context.Context, t int64) bool {
	for {
		now := time.Now().UnixNano()
		if now >= t {
			p.w.pipe.Poll(t)
			return true
		}
		p.w.readMail(mailboxSize)
		p.w.pipe.Poll(now)
		if !sleepFor(ctx, min(nap, time.Duration(t-now))) {
			return false
		}
	}
}

// room waits until the merging of windows and the outboxes have room; false when ctx ended before.
func (p *player) room(ctx context.Context) bool {
	for !p.s.windows.room() || !p.s.shards.room() {
		if !sleepFor(ctx, roomPause) {
			return false
		}
		p.w.readMail(mailboxSize)
	}
	return ctx.Err() == nil
}

func (p *player) tell(path string, recordNs int64) {
	if time.Since(p.told) > tellEvery {
		p.told = time.Now()
		p.s.tel.Log.Info("reading", "file", filepath.Base(path), "packets", p.read, "capture_time", time.Unix(0, recordNs).UTC().Format(time.RFC3339))
	}
}
