package e2e

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/dbtest"
	"github.com/tidegate-mesh/tidegate/libs/pki"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// storing is a persist process with its database and a real NATS, and records that are published at an even rate.
type storing struct {
	t        *testing.T
	database *rig.Database
	bus      *bus.Bus
	persist  *rig.Process
	stop     func() // ends the load

	flows, verdicts atomic.Int64 // acknowledged by JetStream
}

const (
	messagesPerSecond = 100
	recordsPerMessage = 20
)

func newStoring(t *testing.T, database *rig.Database) *storing {
	t.Helper()
	certs := rig.Certs(t)
	_, natsURL := rig.NATS(t, certs)
	s := &storing{t: t, database: database}
	cfg := bus.DefaultConfig()
	cfg.URL = natsURL
	operator := pki.FilesOf(certs, pki.Tidegate)
	cfg.TLS = cfg.TLS.Or(operator.CA, operator.Cert, operator.Key)
	var err error
	if s.bus, err = bus.Connect(t.Context(), telemetry.Discard("e2e"), "e2e", cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.bus.Close() })
	if err := s.bus.EnsureStreams(t.Context()); err != nil {
		t.Fatal(err)
	}
	env := append(database.Env(), "TIDEGATE_TLS_DIR="+certs, "NATS_URL="+natsURL)
	s.persist = rig.Start(t, rig.Binary(t, "tidegate-persist"), env, "--listen", rig.FreeAddr(t), "--metrics-listen", rig.FreeAddr(t))

	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.publish(ctx)
	}()
	s.stop = func() { cancel(); <-done }
	t.Cleanup(s.stop)
	return s
}

// publish repeats a message that JetStream did not acknowledge, under the same id, so that what is counted is what is
// there.
func (s *storing) publish(ctx context.Context) {
	tick := time.NewTicker(time.Second / messagesPerSecond)
	defer tick.Stop()
	begin := time.Now().Add(-time.Hour).UnixNano()
	for i := int64(0); ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		m := &eventv1.FlowRecords{Sensor: "e2e", Epoch: 1, Batch: uint64(i)}
		for j := range int64(recordsPerMessage) {
			ts := begin + i*1e6 + j
			src := [16]byte{10: 0xff, 11: 0xff, 12: 10, 13: byte(i >> 8), 14: byte(i), 15: byte(j)}
			dst := [16]byte{10: 0xff, 11: 0xff, 12: 192, 13: 0, 14: 2, 15: 1}
			m.Records = append(m.Records, &eventv1.FlowRecord{
				Id: fmt.Sprintf("e2e/1/%d/%d", i, j), SrcIp: src[:], DstIp: dst[:], SrcPort: 40000, DstPort: 443, Protocol: 6,
				FirstNs: ts, LastNs: ts + 1e9, PacketsFwd: 10, PacketsRev: 9, BytesFwd: 1000, BytesRev: 9000, EndReason: 3, App: "tls",
			})
		}
		v := &eventv1.Verdict{Id: fmt.Sprintf("v-%d", i), AttackId: "a", Type: "syn_flood", Target: "192.0.2.1", Sensor: "e2e", DecidedNs: begin + i*1e6}
		for ctx.Err() == nil {
			if _, err := s.bus.PublishFlows(context.Background(), m); err == nil {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if err := s.bus.PublishVerdict(context.Background(), v); err != nil {
			s.t.Errorf("publish: %v", err)
			return
		}
		s.flows.Add(recordsPerMessage)
		s.verdicts.Add(1)
	}
}

// rows asks the database itself.
func rows(db *sql.DB, query string) (n int64, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err = db.QueryRowContext(ctx, query).Scan(&n)
	return n, err
}

// progress waits until what was published by now is stored, within limit.
func (s *storing) progress(db *sql.DB, limit time.Duration) {
	s.t.Helper()
	want := s.flows.Load()
	err := rig.Eventually(limit, func() error {
		n, err := rows(db, "SELECT count(*) FROM flows")
		if err == nil && n < want {
			err = fmt.Errorf("%d of %d records are stored", n, want)
		}
		return err
	})
	if err != nil {
		s.t.Fatalf("no progress: %v", err)
	}
}

// complete ends the load and asserts that every record that JetStream acknowledged is one row.
func (s *storing) complete(db *sql.DB) {
	s.t.Helper()
	s.stop()
	s.progress(db, 90*time.Second)
	err := rig.Eventually(15*time.Second, func() error {
		for _, stream := range []string{bus.StreamFlows, bus.StreamEvents} {
			n, err := s.bus.Backlog(s.t.Context(), stream, "persist")
			if err == nil && n > 0 {
				err = fmt.Errorf("%d messages wait in %s", n, stream)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		s.t.Error(err)
	}
	for _, c := range []struct {
		table, query string
		want         int64
	}{
		{"flows", "SELECT count(*) FROM flows", s.flows.Load()},
		{"distinct flows", "SELECT count(DISTINCT id) FROM flows", s.flows.Load()},
		{"verdicts", "SELECT count(*) FROM verdicts", s.verdicts.Load()},
		{"distinct verdicts", "SELECT count(DISTINCT id) FROM verdicts", s.verdicts.Load()},
	} {
		n, err := rows(db, c.query)
		if err != nil || n != c.want {
			s.t.Errorf("%d %s in the database, %d were published: %v", n, c.table, c.want, err)
		}
		s.t.Logf("%s: %d of %d", c.table, n, c.want)
	}
}

// TestFullKills ends persist and the database in turn with SIGKILL under load: nothing is lost and nothing doubled.
// About 90 seconds, all at the same time; half a minute of it waits for JetStream to deliver again what a killed persist had
// in hand.
func TestFullKills(t *testing.T) {
	for _, c := range []struct {
		kind  string
		kills int
	}{{dbtest.PostgreSQL, 20}, {rig.SQLite, 5}, {dbtest.MariaDB, 5}, {dbtest.MySQL, 5}} {
		t.Run(c.kind, func(t *testing.T) {
			t.Parallel()
			s := newStoring(t, rig.NewDatabase(t, c.kind))
			db := s.database.Open(t)
			s.progress(db, 2*time.Minute) // it makes the schema first
			for i := range c.kills {
				// Somewhere within a batch.
				time.Sleep(time.Duration(37*i%200) * time.Millisecond)
				begin, what := time.Now(), "persist"
				if i%2 == 0 || s.database.Server == nil {
					s.persist.Kill()
					s.persist.Restart()
				} else {
					what = "the database"
					s.database.Server.Kill()
					s.database.Server.Run()
				}
				again := time.Since(begin)
				s.progress(db, time.Minute)
				t.Logf("%s killed: runs again after %v, all stored after %v", what, again.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond))
			}
			s.complete(db)
		})
	}
}

// TestFullGaleraNodesLost takes a node of three away, in turn killed, cut off from the others, and cut off from the others and
// persist: nothing is lost and nothing doubled. Each takes half a minute: three times, in the soak ten times.
func TestFullGaleraNodesLost(t *testing.T) {
	s := newStoring(t, rig.NewDatabase(t, dbtest.Galera))
	c := s.database.Cluster
	var dbs []*sql.DB
	for _, n := range c.Nodes {
		dbs = append(dbs, rig.OpenServer(t, n))
	}
	s.progress(dbs[0], 2*time.Minute) // it makes the schema first
	ways := []struct {
		name       string
		begin, end func(int)
	}{{"killed", c.Kill, c.Run}, {"cut off", c.Cut, c.Heal}, {"isolated", c.Isolate, c.Heal}}
	losses := 3
	if os.Getenv("TIDEGATE_SOAK") != "" {
		losses = 10
	}
	for i := range losses {
		// Every third time it is the node that persist prefers, each time in another way.
		node, way := i%3, ways[(i+i/3)%3]
		begin := time.Now()
		way.begin(node)
		s.progress(dbs[(node+1)%3], 60*time.Second)
		lost := time.Since(begin)
		way.end(node)
		c.Size(node, 3)
		t.Logf("node %d %s: stored again within %v, back after %v", node, way.name, lost.Round(100*time.Millisecond), time.Since(begin).Round(100*time.Millisecond))
	}
	s.complete(dbs[0])
	for i := range dbs {
		if n, err := rows(dbs[i], "SELECT count(*) FROM flows"); err != nil || n != s.flows.Load() {
			t.Errorf("node %d has %d flows of %d: %v", i, n, s.flows.Load(), errors.Join(err))
		}
	}
}
