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
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
)

// checkEvents compares what is in the event stream with what is in SQL: every event there, once.
func (m *mesh) checkEvents(t *testing.T, db *sql.DB) {
	t.Helper()
	cfg := bus.DefaultConfig()
	cfg.URL = m.natsURL
	b, err := bus.Connect(t.Context(), telemetry.Discard("e2e"), "e2e", cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	var mu sync.Mutex
	stream := map[string]map[string]bool{"attacks": {}, "verdicts": {}, "enforcements": {}}
	doubled := 0
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	_ = b.ConsumeEvents(ctx, "e2e-check", []string{bus.AllAttacks, bus.AllVerdicts, bus.AllEnforcements}, func(_ context.Context, msgs []bus.EventMsg) error {
		mu.Lock()
		defer mu.Unlock()
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
			if stream[table][id] && !msg.Redelivered {
				doubled++
			}
			stream[table][id] = true
		}
		return nil
	})
	if doubled > 0 {
		t.Errorf("%d events are in the stream twice", doubled)
	}
	for table, ids := range stream {
		err := rig.Eventually(10*time.Second, func() error {
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
