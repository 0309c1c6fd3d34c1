package e2e

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/pki"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
)

// eventLog is a second durable reader of the event stream, beside persist.
type eventLog struct {
	mu      sync.Mutex
	ids     map[string]map[string]bool // by table
	doubled []string
	stop    func()
}

// recordEvents reads all events from now on until the test ends.
func (m *mesh) recordEvents(t *testing.T) *eventLog {
	t.Helper()
	cfg := bus.DefaultConfig()
	cfg.URL = m.natsURL
	operator := pki.FilesOf(m.certs, pki.Tidegate)
	cfg.TLS = cfg.TLS.Or(operator.CA, operator.Cert, operator.Key)
	b, err := bus.Connect(t.Context(), telemetry.Discard("e2e"), "e2e", cfg)
	if err != nil {
		t.Fatal(err)
	}
	l := &eventLog{ids: map[string]map[string]bool{"attacks": {}, "verdicts": {}, "enforcements": {}}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = b.ConsumeEvents(ctx, "e2e-check", []string{bus.AllAttacks, bus.AllVerdicts, bus.AllEnforcements}, l.take)
	}()
	l.stop = sync.OnceFunc(func() { cancel(); <-done; _ = b.Close() })
	t.Cleanup(l.stop)
	return l
}

func (l *eventLog) take(_ context.Context, msgs []bus.EventMsg) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, msg := range msgs {
		var table, id string
		switch {
		case msg.Attack != nil:
			table, id = "attacks", fmt.Sprintf("%s/%d", msg.Attack.Id, msg.Attack.Revision)
		case msg.Verdict != nil:
			table, id = "verdicts", msg.Verdict.Id
		case msg.Enforcement != nil:
			table, id = "enforcements", msg.Enforcement.Id
		}
		if l.ids[table][id] && !msg.Redelivered {
			l.doubled = append(l.doubled, table+" "+id)
		}
		l.ids[table][id] = true
	}
	return nil
}

// check compares what went through the stream with what is in SQL: every event there, once.
func (l *eventLog) check(t *testing.T, db *sql.DB) {
	t.Helper()
	time.Sleep(2 * time.Second) // the last events are under way
	l.stop()
	if len(l.doubled) > 0 {
		t.Errorf("%d events are in the stream twice: %v", len(l.doubled), l.doubled)
	}
	for table, ids := range l.ids {
		// What a killed reader had taken and not acknowledged comes again after 30 s.
		err := rig.Eventually(45*time.Second, func() error {
			if n := count(t, db, "SELECT count(*) FROM "+table); n != len(ids) {
				return fmt.Errorf("%s: %d events in the stream, %d rows", table, len(ids), n)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		if len(ids) == 0 {
			t.Errorf("no %s in the stream", table)
		}
		t.Logf("%s: %d events, each one row", table, len(ids))
	}
}
