package ingest

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/telemetry"
)

func TestSender(t *testing.T) {
	f := newFakeClassify(t)
	f.enough = true
	box := newOutbox(newStock("test-sensor", 1), 1<<20)
	decided := make(chan int, 100)
	s := &sender{box: box, client: f.client, tel: telemetry.Discard("ingest"), enough: func(ids []byte) { decided <- len(ids) / 8 }}
	if s.check() == nil {
		t.Error("ready before there is a stream")
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { s.run(ctx); close(ended) }()
	box.put(batchOf(box, 2, 0), time.Now())
	acked := func(n uint64) func() error {
		return func() error {
			if c := box.stats(); c.BatchesAcked != n || !box.idle() {
				return errors.New("not yet")
			}
			return s.check()
		}
	}
	eventually(t, "the first acknowledgement", acked(1))
	if n := <-decided; n != 2 {
		t.Errorf("%d flows have final labels, want 2", n)
	}

	if at := s.answered.Load(); at == nil || !strings.Contains(at.String(), " m=") { // time.Time.String of a monotonic reading
		t.Errorf("the acknowledgement came at %v, which the system's clock may change", at)
	}

	f.srv.Stop()
	eventually(t, "the loss is noticed", func() error {
		if err := s.check(); err == nil || !strings.Contains(err.Error(), "classify") {
			return errors.New("not yet")
		}
		return nil
	})
	for range 3 {
		box.put(batchOf(box, 1, 0), time.Now())
	}
	f.start()
	eventually(t, "the rest is acknowledged", acked(4))
	if c := box.stats(); c.RecordsAcked != 5 || c.Published != 5 || c.BatchesDropped != 0 {
		t.Errorf("counts: %+v", c)
	}
	cancel()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("the sender does not end")
	}
}
