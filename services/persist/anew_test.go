package persist

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	queryv1 "github.com/tidegate-mesh/tidegate/proto/query/v1"
	"github.com/tidegate-mesh/tidegate/services/persist/internal/sqlstore"
)

// TestStreamMadeAnew: a server that lost its store makes the stream anew and counts from 1 again. Its messages are not
// those that were stored under the same numbers.
func TestStreamMadeAnew(t *testing.T) {
	cfg := DefaultConfig()
	cfg.DatabaseURL = filepath.Join(t.TempDir(), "x.db")
	r := newRig(t, cfg)
	anew := func() {
		t.Helper()
		nc, err := nats.Connect("nats://" + r.nats.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		if err := js.DeleteStream(context.Background(), bus.StreamFlows); err != nil {
			t.Fatal(err)
		}
		if err := r.bus.EnsureStreams(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	rows := func(n uint64) {
		t.Helper()
		r.until("the rows", func(st *queryv1.StatusResponse) bool {
			return ledger(st)["pending"] == 0 && st.GetRows()["flows"] == n
		})
	}
	r.publish(1, 10, 20)
	rows(200)
	anew() // under the running service
	r.publish(101, 10, 20)
	rows(400)
	r.stop()
	anew() // while it is away
	r.start()
	r.publish(201, 10, 20)
	st := r.until("the rows", func(st *queryv1.StatusResponse) bool { return st.GetRows()["flows"] == 600 })
	if ledger(st)["records_committed"] != 200 || ledger(st)["discarded"] != 0 {
		t.Errorf("ledger: %v", ledger(st))
	}
	r.stop()
	s, err := sqlstore.Open(context.Background(), cfg.store(nil))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // a test's
	if at, err := s.Positions(context.Background()); err != nil || at[bus.StreamFlows] != 10 {
		t.Errorf("positions %v, %v: the stream holds 10 messages", at, err)
	}
}
