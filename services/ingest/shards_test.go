package ingest

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	"github.com/tidegate-mesh/tidegate/services/ingest/internal/shard"
)

func TestSeveralClassifiersAreChecked(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"--protected": func(c *Config) { c.Protected = nil },
		"named twice": func(c *Config) { c.Classify = []string{"a:1", "a:1"} },
		"--classify":  func(c *Config) { c.Classify = nil },
		"at most":     func(c *Config) { c.Classify = slices.Repeat([]string{"x:1"}, 17) },
		`"10.0.0.0/"`: func(c *Config) { c.Protected = []string{"10.0.0.0/"} },
	} {
		cfg := DefaultConfig()
		cfg.Ifaces, cfg.Sensor, cfg.Classify, cfg.Protected = []string{"a", "b"}, "s", []string{"a:1", "b:1"}, []string{"10.0.0.0/8"}
		change(&cfg)
		_, err := New(cfg, Deps{Telemetry: telemetry.Discard("ingest"), Classify: make([]classifyv1.ClassifyServiceClient, len(cfg.Classify))})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error that says %s, got %v", want, err)
		}
	}
}

// TestShardsMoveAndComeHome: what a silent classifier has not acknowledged and what is its own goes to the other, nothing is
// lost or counted twice, and it gets its own back.
func TestShardsMoveAndComeHome(t *testing.T) {
	fakes := []*fakeClassify{newFakeClassify(t), newFakeClassify(t)}
	cfg := DefaultConfig()
	cfg.Sensor, cfg.Classify, cfg.Protected = "test-sensor", []string{"first:1", "second:1"}, []string{"10.0.0.0/8"}
	tel := telemetry.Discard("ingest")
	s, err := newShards(&cfg, 1, tel, []classifyv1.ClassifyServiceClient{fakes[0].client, fakes[1].client}, func([]byte) {})
	if err != nil {
		t.Fatal(err)
	}
	if s.check() == nil || !strings.Contains(s.check().Error(), "first:1") || !strings.Contains(s.check().Error(), "second:1") {
		t.Errorf("before there are streams: %v", s.check())
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { s.run(ctx); close(ended) }()
	defer func() { cancel(); <-ended }()

	// A sensor's day: windows all the time, and a flow to one network of each classifier.
	var keys [2]flow.Key
	table := shard.NewTable(cfg.Classify, func(int) bool { return true })
	for i, found := 0, [2]bool{}; !found[0] || !found[1]; i++ {
		dst := netip.AddrFrom4([4]byte{10, byte(i), 0, 1}).As16()
		owner := table.Addr(&dst)
		found[owner], keys[owner].Dst = true, dst
	}
	target := func(k flow.Key) *flowv1.Target {
		return &flowv1.Target{Addr: k.Dst[:], PrefixLen: 128, Counters: &flowv1.Counters{Packets: 1}}
	}
	made := uint64(0)
	step := func() {
		for _, k := range keys {
			made++
			b := s.empty()
			flow.AppendOpen(b, &flow.Open{ID: made, Key: k})
			flow.AppendEnd(b, &flow.End{ID: made, Key: k})
			s.put(s.choose(&k), b, time.Now())
		}
		s.putWindow(&flowv1.Window{Total: &flowv1.Counters{Packets: 1}, Targets: []*flowv1.Target{target(keys[0]), target(keys[1])}}, time.Now())
		time.Sleep(20 * time.Millisecond)
	}
	until := func(what string, limit time.Duration, ok func() bool) time.Duration {
		begun := time.Now()
		for !ok() {
			if time.Since(begun) > limit {
				t.Fatalf("%s: not after %v; %+v", what, limit, s.stats())
			}
			step()
			if c := s.stats(); c.BatchesMade != c.BatchesAcked+c.BatchesDropped+c.BatchesPending {
				t.Fatalf("%s: batches do not add up: %+v", what, c)
			}
		}
		return time.Since(begun)
	}
	share := func(i int) int { return int(s.list[i].slots.Load()) }
	until("both acknowledge", patience, func() bool { return s.list[0].box.stats().BatchesAcked > 5 && s.list[1].box.stats().BatchesAcked > 5 })

	fakes[0].set(func() { fakes[0].mute = true })
	took := until("its part moves", patience, func() bool { return share(0) == 0 })
	if took < ackPatience/2 || took > 2*ackPatience {
		t.Errorf("the part of a silent classifier moved after %v, want about %v", took, ackPatience)
	}
	if share(1) != shard.Slots || s.choose(&keys[0]) != 1 {
		t.Errorf("the other has %d slots, and the flow goes to %d", share(1), s.choose(&keys[0]))
	}
	eventually(t, "the other acknowledges everything", func() error {
		if c := s.stats(); c.BatchesPending != 0 || c.BatchesAcked != made || c.BatchesDropped != 0 || c.Moved == 0 {
			return fmt.Errorf("%d batches were made: %+v", made, c)
		}
		return nil
	})
	fakes[1].mu.Lock()
	if n := len(fakes[1].ends); n < int(made)/2 { //nolint:gosec // small
		t.Errorf("the other has %d of %d flows", n, made)
	}
	fakes[1].mu.Unlock()
	if n := s.list[1].box.stats().BatchesPending; n != 0 {
		t.Errorf("%d batches are pending", n)
	}

	fakes[0].set(func() { fakes[0].mute = false })
	took = until("its part comes home", 2*patience, func() bool { return share(0) > 0 })
	if took < homePause {
		t.Errorf("home after %v already", took)
	}
	if *s.table.Load() != *table {
		t.Error("the parts are not those of before")
	}
	before := s.list[0].box.stats().BatchesAcked
	until("it acknowledges again", patience, func() bool { return s.list[0].box.stats().BatchesAcked > before+3 })

	// With nobody there everything waits where it is at home.
	for _, f := range fakes {
		f.srv.Stop()
	}
	until("both are given up", patience, func() bool { return errorCount(t, tel, "classifier_silent") == 3 })
	if *s.table.Load() != *table {
		t.Error("with none there the parts must be those of before")
	}
	for _, f := range fakes {
		f.start()
	}
	eventually(t, "everything arrives in the end", func() error {
		c := s.stats()
		if c.BatchesPending != 0 || c.BatchesAcked != made || c.RecordsAcked != 2*made {
			return fmt.Errorf("%d batches were made: %+v", made, c)
		}
		return s.check()
	})
	all := map[uint64]bool{}
	for _, f := range fakes {
		f.mu.Lock()
		for id := range f.ends {
			all[id] = true
		}
		f.mu.Unlock()
	}
	if uint64(len(all)) != made {
		t.Errorf("%d of %d flows arrived", len(all), made)
	}
}

// errorCount is how often an operation failed.
func errorCount(t *testing.T, tel *telemetry.Telemetry, op string) float64 {
	t.Helper()
	families, err := tel.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if f.GetName() == "tidegate_errors_total" && l.GetValue() == op {
					return m.GetCounter().GetValue()
				}
			}
		}
	}
	return 0
}

func TestOutboxMoves(t *testing.T) {
	st := newStock("s", 1)
	a, b := newOutbox(st, 1<<20), newOutbox(st, 1<<20)
	for range 3 {
		a.put(batchOf(a, 1, 0), t0) // 1, 3, 5
		b.put(batchOf(b, 1, 0), t0) // 2, 4, 6
	}
	p := a.take(t0) // 1 is with gRPC
	b.sent(b.take(t0))
	b.takeOver(a.leave(), t0)
	if a.ackBatch(1, 1, 0, t0) {
		t.Error("a batch that moved was acknowledged by the one it left")
	}
	a.sent(p)
	if p.batch.Opens.Count != 1 {
		t.Error("the batch was emptied though another outbox has it")
	}
	var order []uint64
	for q := b.take(t0); q != nil; q = b.take(t0) {
		b.sent(q)
		order = append(order, q.number)
	}
	if fmt.Sprint(order) != "[1 3 4 5 6]" {
		t.Errorf("sent %v", order)
	}
	for n := range uint64(6) {
		if !b.ackBatch(n+1, 1, 0, t0) {
			t.Errorf("batch %d is not there", n+1)
		}
	}
	if c := a.stats(); c != (outboxCounts{}) || !a.idle() {
		t.Errorf("left behind: %+v", c)
	}
	checkCounts(t, b, outboxCounts{BatchesMade: 6, BatchesAcked: 6, RecordsAcked: 6, Published: 6, Resent: 1, Moved: 3})
	// What does not fit is dropped and counted, the oldest first.
	small := newOutbox(st, 3000)
	for range 3 {
		a.put(batchOf(a, 1, 2000), t0)
	}
	small.takeOver(a.leave(), t0)
	checkCounts(t, small, outboxCounts{BatchesMade: 3, BatchesDropped: 2, BatchesPending: 1, RecordsDropped: 4, Moved: 3})
}
