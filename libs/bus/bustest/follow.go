package bustest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// trail is what one follower was told.
type trail struct {
	mu   sync.Mutex
	seqs []uint64
	gaps []bus.Gap
}

func (tr *trail) start(t *testing.T, b *bus.Bus, after uint64, subjects ...string) (stop func()) {
	return background(t, func(ctx context.Context) error {
		return b.FollowEvents(ctx, after, subjects, func(m bus.EventMsg) {
			tr.mu.Lock()
			defer tr.mu.Unlock()
			tr.seqs = append(tr.seqs, m.StreamSeq)
		}, func(g bus.Gap) {
			tr.mu.Lock()
			defer tr.mu.Unlock()
			tr.gaps = append(tr.gaps, g)
		})
	})
}

// wait waits for exactly these sequences and gaps.
func (tr *trail) wait(t *testing.T, seqs []uint64, gaps []bus.Gap) {
	t.Helper()
	Wait(t, "the followed events", func() bool {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		return len(tr.seqs) >= len(seqs) && len(tr.gaps) >= len(gaps)
	})
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if !slices.Equal(tr.seqs, seqs) || !slices.Equal(tr.gaps, gaps) {
		t.Errorf("followed %v with gaps %v, want %v with %v", tr.seqs, tr.gaps, seqs, gaps)
	}
}

func attacks(t *testing.T, b *bus.Bus, id string, first, last uint32) {
	t.Helper()
	for i := first; i <= last; i++ {
		if err := b.PublishAttack(context.Background(), &eventv1.Attack{Id: id, Revision: i}); err != nil {
			t.Fatal(err)
		}
	}
}

func span(first, last uint64) (seqs []uint64) {
	for ; first <= last; first++ {
		seqs = append(seqs, first)
	}
	return seqs
}

func follow(t *testing.T, s Server) {
	b := Open(t, s.Config)
	ctx := context.Background()
	attacks(t, b, "a", 1, 3)
	if err := errors.Join(
		b.Raw(ctx, bus.SubjectAttack+"x", []byte("{not json")), // 4: passed over, no gap
		b.PublishEnforcement(ctx, &eventv1.Enforcement{Id: "e", Node: "n"}),
	); err != nil {
		t.Fatal(err)
	}
	var all, some, drops trail
	all.start(t, b, 0)
	some.start(t, b, 2)
	drops.start(t, b, 1, bus.AllEnforcements)
	all.wait(t, []uint64{1, 2, 3, 5}, nil)
	some.wait(t, []uint64{3, 5}, nil)
	drops.wait(t, []uint64{5}, nil)
	attacks(t, b, "a", 4, 5)
	all.wait(t, []uint64{1, 2, 3, 5, 6, 7}, nil)
	some.wait(t, []uint64{3, 5, 6, 7}, nil)

	// A place above the stream's end belongs to a stream that is gone.
	var foreign trail
	foreign.start(t, b, 1000)
	foreign.wait(t, []uint64{1, 2, 3, 5, 6, 7}, []bus.Gap{{Restarted: true}})
}

func followGap(t *testing.T, s Server) {
	cfg := s.Config
	cfg.EventsMaxBytes = 1 << 20
	b := Open(t, cfg)
	pad := strings.Repeat("y", 32<<10)
	for i := range uint32(40) { // more than fits, no durable consumer: the older half makes room
		if err := b.PublishAttack(context.Background(), &eventv1.Attack{Id: "a", Revision: i, Type: pad}); err != nil {
			t.Fatal(err)
		}
	}
	st, err := b.State(context.Background(), bus.StreamEvents)
	if err != nil || st.FirstSeq < 4 {
		t.Fatalf("the stream begins at %d (%v), want some events gone", st.FirstSeq, err)
	}
	var late, exact, oldest trail
	late.start(t, b, 2)
	exact.start(t, b, st.FirstSeq-1)
	oldest.start(t, b, 0)
	late.wait(t, span(st.FirstSeq, st.LastSeq), []bus.Gap{{From: 3, To: st.FirstSeq - 1}})
	exact.wait(t, span(st.FirstSeq, st.LastSeq), nil)
	oldest.wait(t, span(st.FirstSeq, st.LastSeq), nil)
}

func followInterrupted(t *testing.T, s Server) {
	if s.Stop == nil {
		t.Log("the connection is in-process: it cannot be interrupted")
		return
	}
	b := Open(t, s.Config)
	var tr trail
	attacks(t, b, "a", 1, 5)
	tr.start(t, b, 1)
	tr.wait(t, span(2, 5), nil)
	for round := range uint32(2) {
		s.Stop(t)
		Wait(t, "Ready to notice", func() bool { return errors.Is(b.Ready(), bus.ErrUnavailable) })
		s.Start(t)
		Wait(t, "Ready", func() bool { return b.Ready() == nil })
		attacks(t, b, "a", 6+5*round, 10+5*round)
		tr.wait(t, span(2, uint64(10+5*round)), nil)
	}
}
