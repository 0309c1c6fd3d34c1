package ingest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	"github.com/tidegate-mesh/tidegate/services/ingest/internal/shard"
)

const (
	// shardLook is how often it is looked at which classifiers answer.
	shardLook = 100 * time.Millisecond
	// homePause is how long a classifier that was given up must have answered before its shards go back: each move costs what
	// the one before had learned of its hosts.
	homePause = 5 * time.Second
)

// classifier is one of those that the sensor streams to.
type classifier struct {
	name string
	box  *outbox
	send *sender

	live     bool      // of the goroutine of shards.run
	answers  time.Time // since when one that is not live has answered without a pause; zero: it does not
	patience time.Duration
	slots    atomic.Int32 // that it owns now
}

// shards gives each classifier what concerns its part of the protected networks, and what another one's part is while that
// does not answer. Queues read it; run is one goroutine.
type shards struct {
	*stock
	tel   *telemetry.Telemetry
	sides *shard.Sides
	list  []*classifier
	table atomic.Pointer[shard.Table]
}

// newShards makes an outbox and a sender for each of the classifiers, which are named by cfg.
func newShards(cfg *Config, epoch uint64, tel *telemetry.Telemetry, clients []classifyv1.ClassifyServiceClient, enough func([]byte)) (*shards, error) {
	sides, err := shard.NewSides(cfg.Protected)
	if err != nil {
		return nil, fmt.Errorf("ingest: --protected: %w", err)
	}
	s := &shards{stock: newStock(cfg.Sensor, epoch), tel: tel, sides: sides}
	for i, name := range cfg.Classify {
		box := newOutbox(s.stock, max(cfg.BufferBytes/int64(len(cfg.Classify)), minBuffer))
		if cfg.Mode == ModePcap {
			box.worth = math.MaxInt64
		}
		c := &classifier{
			name: name, box: box, live: true,
			// Every window is acknowledged.
			patience: max(ackPatience, 3*cfg.WindowInterval),
			send:     &sender{name: name, box: box, client: clients[i], tel: tel, enough: enough},
		}
		s.list = append(s.list, c)
	}
	s.share()
	return s, nil
}

// share gives every slot to a live classifier.
func (s *shards) share() {
	names := make([]string, len(s.list))
	for i, c := range s.list {
		names[i] = c.name
	}
	t := shard.NewTable(names, func(i int) bool { return s.list[i].live })
	for i, n := range t.Shares(len(s.list)) {
		s.list[i].slots.Store(int32(n)) //nolint:gosec // at most shard.Slots
	}
	s.table.Store(t)
}

// run sends until ctx ends.
func (s *shards) run(ctx context.Context) {
	var wg sync.WaitGroup
	begun := time.Now()
	for _, c := range s.list {
		c.send.answered.CompareAndSwap(nil, &begun) // it has its time to begin with
		wg.Add(1)
		go func() { defer wg.Done(); c.send.run(ctx) }()
	}
	if len(s.list) > 1 {
		tick := time.NewTicker(shardLook)
		defer tick.Stop()
		for ctx.Err() == nil {
			select {
			case now := <-tick.C:
				s.look(now)
			case <-ctx.Done():
			}
		}
	}
	wg.Wait()
}

// look gives classifiers up that do not answer, and takes those back that do again.
func (s *shards) look(now time.Time) {
	changed := false
	for _, c := range s.list {
		silent := now.Sub(*c.send.answered.Load())
		switch {
		case silent > c.patience:
			c.answers = time.Time{}
			if c.live {
				c.live, changed = false, true
				s.tel.CountError("classifier_silent")
				s.tel.Log.Warn("a classifier does not answer; the others get what is its own", "classify", c.name, "silent", silent.Round(time.Millisecond).String())
			}
		case c.live:
		case c.answers.IsZero():
			c.answers = now
		case now.Sub(c.answers) >= homePause:
			c.live, changed = true, true
			s.tel.Log.Info("a classifier answers again and gets back what is its own", "classify", c.name)
		}
	}
	if changed {
		s.share()
	}
	// Queues may have gone on with the table before: so each time.
	for _, c := range s.list {
		if to := s.heir(c); to != nil {
			to.box.takeOver(c.box.leave(), now)
		}
	}
}

// heir is who gets the batches of a classifier that is not live; nil when they stay. Batches are not split any more: what
// they say of flows that a third classifier owns by now is lost to its memory of good peers, not to the records.
func (s *shards) heir(c *classifier) *classifier {
	if c.live {
		return nil
	}
	if to := s.list[s.table.Load().Name(c.name)]; to.live {
		return to
	}
	return nil
}

// choose is the pipeline's: whose batch a flow's records go to.
func (s *shards) choose(k *flow.Key) int { return s.table.Load().Addr(s.sides.Of(&k.Src, &k.Dst)) }

// put hands a batch to a classifier's outbox.
func (s *shards) put(to int, b *flowv1.FlowBatch, now time.Time) { s.list[to].box.put(b, now) }

// putWindow hands a window to the classifiers, each its part. One that is not live gets parts without anything as long as
// it has acknowledged those before, so that it shows when it answers again.
func (s *shards) putWindow(w *flowv1.Window, now time.Time) {
	s.stamp(w)
	if len(s.list) == 1 {
		s.list[0].box.putWindow(w, now)
		return
	}
	for i, part := range shard.Split(w, s.table.Load(), s.sides, len(s.list)) {
		c := s.list[i]
		if c.slots.Load() == 0 && (!c.send.connected.Load() || !c.box.idle()) {
			continue
		}
		c.box.putWindow(part, now)
	}
}

// connected reports whether there is a stream to every classifier.
func (s *shards) connected() bool {
	for _, c := range s.list {
		if !c.send.connected.Load() {
			return false
		}
	}
	return true
}

// room reports whether every outbox has room; see outbox.room.
func (s *shards) room() bool {
	for _, c := range s.list {
		if !c.box.room() {
			return false
		}
	}
	return true
}

// idle reports whether nothing waits for an acknowledgement.
func (s *shards) idle() bool {
	for _, c := range s.list {
		if !c.box.idle() {
			return false
		}
	}
	return true
}

// stats are the sums over all outboxes.
func (s *shards) stats() outboxCounts {
	var sum outboxCounts
	for _, c := range s.list {
		sum.add(c.box.stats())
	}
	return sum
}

// check is the readiness check: a sentence for each classifier that there is no stream to.
func (s *shards) check() error {
	var all []error
	for _, c := range s.list {
		all = append(all, c.send.check())
	}
	return errors.Join(all...)
}
