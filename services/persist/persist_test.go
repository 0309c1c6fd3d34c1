package persist

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/dbtest"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
	queryv1 "github.com/tidegate-mesh/tidegate/proto/query/v1"
)

func TestDefaultsMatchTags(t *testing.T) {
	for _, v := range []string{"DB_TYPE", "DATABASE_URL"} {
		t.Setenv(v, "")
	}
	var c Config
	k, err := kong.New(&c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Parse(nil); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(DefaultConfig(), c); d != "" {
		t.Errorf("DefaultConfig and the tags differ (-DefaultConfig +tags):\n%s", d)
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}

func TestConfigProblems(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"DATABASE_URL is empty":          func(c *Config) { c.DBType = "mariadb" },
		"did you mean mariadb?":          func(c *Config) { c.DBType = "mariadbb" },
		"an SQLite file has no password": func(c *Config) { c.PasswordFile = "x" },
		"at least 1 MiB":                 func(c *Config) { c.MaxBytes = 5 },
		"above 0":                        func(c *Config) { c.QueryTimeout = 0 },
		"flow retention of 0":            func(c *Config) { c.FlowRetention = 0 },
		"event retention of 0":           func(c *Config) { c.EventRetention = 0 },
	} {
		c := DefaultConfig()
		change(&c)
		if _, err := New(c, Deps{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want an error with %q", err, want)
		}
	}
}

func TestFromBusToQuery(t *testing.T) {
	eachDatabase(t, func(t *testing.T, cfg Config) {
		for _, v := range []string{"DB_TYPE", "DATABASE_URL"} {
			t.Setenv(v, "")
		}
		r := newRig(t, cfg)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		r.publish(1, 20, 50)

		hostile := record(30, 0)
		hostile.Host = "a\x00b"
		broken := record(30, 1)
		broken.SrcIp = []byte{1, 2, 3}
		huge := record(30, 2)
		huge.BytesFwd = 1 << 63
		if _, err := r.bus.PublishFlows(ctx, &eventv1.FlowRecords{Sensor: "edge-1", Epoch: 42, Batch: 30, Records: []*eventv1.FlowRecord{hostile, broken, huge}}); err != nil {
			t.Fatal(err)
		}

		const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
		traced := telemetry.Extract(ctx, parent)
		attack := &eventv1.Attack{Id: "syn_flood|192.0.2.1|1", Type: "syn_flood", Target: "192.0.2.1", Sensor: "edge-1", FirstNs: begin, DetectedNs: begin + 2e8,
			UpdatedNs: begin + 2e8, Packets: 1000, Bytes: 60000, Pps: 5000.5, Bps: 2.4e6, Sources: 900, TopSources: []string{"10.1.1.1", "10.1.1.2"}, TraceId: "4bf92f3577b34da6a3ce929d0e0e4736"}
		for rev, state := range []eventv1.AttackState{eventv1.AttackState_ATTACK_STATE_STARTED, eventv1.AttackState_ATTACK_STATE_UPDATED, eventv1.AttackState_ATTACK_STATE_ENDED} {
			attack.Revision, attack.State = uint32(rev+1), state
			attack.UpdatedNs += 1e9
			if err := r.bus.PublishAttack(traced, attack); err != nil {
				t.Fatal(err)
			}
		}
		fragment := false
		verdict := &eventv1.Verdict{Id: "v-1", AttackId: attack.Id, Type: attack.Type, Target: attack.Target, Sensor: "edge-1", DecidedNs: begin + 2e8, Key: "signature",
			Explanation: "Many sources send SYNs of one length.", TraceId: attack.TraceId, Traceparent: parent,
			Rules: []*policyv1.Rule{{Id: "r-1", Action: policyv1.Action_ACTION_DROP, Match: &policyv1.Match{Dst: "192.0.2.1/32", Fragment: &fragment}, ExpiresNs: begin + 6e10}},
			Evidence: &eventv1.Evidence{Features: map[string]float64{"syn_share": 0.99}, Thresholds: map[string]float64{"syn_pps": 1000}, ConfigVersion: "3",
				Windows: []uint64{1, 1 << 60}, AttackShare: 1, Samples: [][]byte{{0x45, 0, 0, 1}}, SampleTimesNs: []int64{begin}}}
		if err := r.bus.PublishVerdict(traced, verdict); err != nil {
			t.Fatal(err)
		}
		enforcement := &eventv1.Enforcement{Id: "n1/1", Node: "n1", RuleId: "r-1", AttackId: attack.Id, State: eventv1.EnforcementState_ENFORCEMENT_STATE_FIRST_DROP,
			TimeNs: begin + 3e8, FirstDropNs: begin + 3e8, TimeToFirstDropNs: 3e8, ApplyNs: 12345, Packets: 17, Bytes: 1700, Shadow: true, Action: policyv1.Action_ACTION_DROP}
		if err := r.bus.PublishEnforcement(ctx, enforcement); err != nil {
			t.Fatal(err)
		}

		audits := []*eventv1.Audit{
			{Id: "c-1", Revision: 1, TimeNs: begin + 4e8, Actor: "ann", Role: "operator", Remote: "192.0.2.9", Action: "rule.add", Target: "r-2",
				Outcome: eventv1.AuditOutcome_AUDIT_OUTCOME_REQUESTED, RequestId: "q-1", Gateway: "gw-1"},
			{Id: "c-1", Revision: 2, TimeNs: begin + 5e8, Actor: "ann", Role: "operator", Remote: "192.0.2.9", Action: "rule.add", Target: "r-2",
				Outcome: eventv1.AuditOutcome_AUDIT_OUTCOME_DONE, RequestId: "q-1", Gateway: "gw-1", After: `{"id": "r-2",  "action":"drop"}`, TraceId: attack.TraceId},
			{Id: "c-2", Revision: 1, TimeNs: begin + 6e8, Actor: "b\x00b", Role: "admin", Action: "panic.on", Outcome: eventv1.AuditOutcome_AUDIT_OUTCOME_FAILED,
				Before: "no JSON\x00", Detail: "NATS is away", Gateway: "gw-2"},
		}
		for _, a := range audits {
			for range 2 { // as a gateway does that did not hear the acknowledgement
				if err := r.bus.PublishAudit(ctx, a); err != nil {
					t.Fatal(err)
				}
			}
		}

		st := r.until("everything stored", func(st *queryv1.StatusResponse) bool {
			return ledger(st)["records_committed"] == 1001 && ledger(st)["events_committed"] == 8 && ledger(st)["pending"] == 0 && ledger(st)["events_pending"] == 0
		})
		for term, want := range map[string]uint64{"committed": 21, "duplicate": 0, "rejected": 0, "discarded": 0, "records_rejected": 2, "records_duplicate": 0,
			"events_duplicate": 0, "events_rejected": 0, "events_discarded": 0} {
			if got, ok := ledger(st)[term]; got != want || !ok {
				t.Errorf("ledger %s: %d, want %d", term, got, want)
			}
		}
		st = r.until("the counts", func(st *queryv1.StatusResponse) bool { return st.GetRows()["flows"] == 1001 })
		if !st.GetStatus().GetReady() || st.GetSizeBytes() == 0 || st.GetDatabase() == "" || st.GetRows()["flows"] != 1001 || st.GetRows()["attacks"] != 3 || st.GetRows()["audit"] != 3 {
			t.Errorf("status: %v", st)
		}
		for table, want := range map[string]float64{"flows": 1001, "attacks": 3, "verdicts": 1, "enforcements": 1, "audit": 3} {
			if got := testutil.ToFloat64(r.svc.metrics.rows.WithLabelValues(table)); got != want {
				t.Errorf("rows_total{%s} = %g, want %g", table, got, want)
			}
		}
		if got := testutil.ToFloat64(r.svc.metrics.records.WithLabelValues("flows", "rejected")); got != 2 {
			t.Errorf("records_total rejected = %g", got)
		}
		if n, err := testutil.GatherAndCount(r.tel.Registry, "tidegate_persist_insert_seconds", "tidegate_persist_backlog_messages"); err != nil || n != 2 {
			t.Errorf("%d metrics, %v", n, err)
		}
		if problems := r.tel.Ready(); len(problems) != 0 {
			t.Errorf("not ready: %v", problems)
		}

		// What comes out is what went in.
		attacks, err := r.client.ListAttacks(ctx, &queryv1.ListAttacksRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([]*eventv1.Attack{attack}, attacks.GetAttacks(), protocmp.Transform()); d != "" {
			t.Errorf("attacks (-want +got):\n%s", d)
		}
		for token, rev := "", uint32(3); ; rev-- {
			page, err := r.client.ListAttacks(ctx, &queryv1.ListAttacksRequest{Id: attack.Id, AllRevisions: true, Limit: 1, PageToken: token})
			if err != nil || len(page.GetAttacks()) != 1 || page.GetAttacks()[0].GetRevision() != rev || page.GetAttacks()[0].GetState() != eventv1.AttackState(rev) {
				t.Fatalf("revision %d: %v, %v", rev, page, err)
			}
			if token = page.GetNextPageToken(); (token == "") != (rev == 1) {
				t.Fatalf("page token %q after revision %d", token, rev)
			}
			if token == "" {
				break
			}
		}
		entries, err := r.client.ListAudit(ctx, &queryv1.ListAuditRequest{Limit: 1})
		if err != nil || entries.GetNextPageToken() == "" {
			t.Fatalf("audit: %v, %v", entries, err)
		}
		audits[2].Actor, audits[2].Before = "b\uFFFDb", `"no JSON\u0000"`
		if d := cmp.Diff(audits[2:], entries.GetEntries(), protocmp.Transform()); d != "" {
			t.Errorf("audit (-want +got):\n%s", d)
		}
		entries, err = r.client.ListAudit(ctx, &queryv1.ListAuditRequest{Limit: 1, PageToken: entries.GetNextPageToken()})
		if err != nil || entries.GetNextPageToken() != "" {
			t.Fatalf("audit, second page: %v, %v", entries, err)
		}
		if d := cmp.Diff(audits[1:2], entries.GetEntries(), protocmp.Transform()); d != "" {
			t.Errorf("audit, second page (-want +got):\n%s", d)
		}
		for _, q := range []*queryv1.ListAuditRequest{{Actor: "ann"}, {Action: "rule.add"}, {Target: "r-2"}, {Range: &queryv1.TimeRange{ToNs: begin + 6e8}}} {
			if entries, err := r.client.ListAudit(ctx, q); err != nil || len(entries.GetEntries()) != 1 || entries.GetEntries()[0].GetId() != "c-1" {
				t.Errorf("audit of %v: %v, %v", q, entries, err)
			}
		}
		verdicts, err := r.client.ListVerdicts(ctx, &queryv1.ListVerdictsRequest{AttackId: attack.Id})
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([]*eventv1.Verdict{verdict}, verdicts.GetVerdicts(), protocmp.Transform()); d != "" {
			t.Errorf("verdicts (-want +got):\n%s", d)
		}
		enforcements, err := r.client.ListEnforcements(ctx, &queryv1.ListEnforcementsRequest{RuleId: "r-1"})
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([]*eventv1.Enforcement{enforcement}, enforcements.GetEnforcements(), protocmp.Transform(), protocmp.IgnoreFields(&eventv1.Enforcement{}, "trace_id")); d != "" {
			t.Errorf("enforcements (-want +got):\n%s", d)
		}
		flows, err := r.client.ListFlows(ctx, &queryv1.ListFlowsRequest{Prefix: "10.1.7.3"})
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([]*eventv1.FlowRecord{record(7, 3)}, flows.GetFlows(), protocmp.Transform()); d != "" {
			t.Errorf("flows (-want +got):\n%s", d)
		}
		if flows, err = r.client.ListFlows(ctx, &queryv1.ListFlowsRequest{Host: "a\uFFFDb"}); err != nil || len(flows.GetFlows()) != 1 {
			t.Errorf("the hostile host name's flow: %v, %v", flows, err)
		}
		top, err := r.client.Top(ctx, &queryv1.TopRequest{By: "dst"})
		if err != nil || len(top.GetRows()) != 1 || top.GetRows()[0].GetKey() != "192.0.2.1" || top.GetRows()[0].GetFlows() != 1001 || top.GetRows()[0].GetBytes() != 10_010_000 {
			t.Errorf("top: %v, %v", top, err)
		}
		if top, err = r.client.Top(ctx, &queryv1.TopRequest{By: "src", Prefix: "10.1.7.0/24", App: "tls", Host: "example.org", Port: 443, Limit: 100}); err != nil || len(top.GetRows()) != 50 {
			t.Errorf("top of a prefix: %v, %v", top, err)
		}
		series, err := r.client.TimeSeries(ctx, &queryv1.TimeSeriesRequest{Range: &queryv1.TimeRange{FromNs: begin, ToNs: begin + 100e9}, By: "app", Host: "example.org"})
		if err != nil || series.GetStepNs() != 1e9 || len(series.GetSeries()) != 1 || series.GetSeries()[0].GetKey() != "tls" {
			t.Fatalf("time series: %v, %v", series, err)
		}
		total := uint64(0)
		for _, p := range series.GetSeries()[0].GetPoints() {
			total += p.GetFlows()
			if p.GetStartNs()%1e9 != 0 || p.GetPackets() != 19*p.GetFlows() || p.GetBytes() != 10_000*p.GetFlows() {
				t.Errorf("point %v", p)
			}
		}
		if total != 1000 {
			t.Errorf("%d flows in the time series, want 1000", total)
		}
		https := uint32(443)
		tcp := uint32(6)
		match := &policyv1.Match{Dst: "192.0.2.0/24", Protocol: &tcp, DstPort: &https}
		matching, err := r.client.CountMatching(ctx, &queryv1.CountMatchingRequest{Range: &queryv1.TimeRange{FromNs: begin}, Match: match})
		want := &queryv1.CountMatchingResponse{Flows: 1001, Packets: 10_010, Bytes: 1_001_000,
			Apps: []*queryv1.TopRow{{Key: "tls", Flows: 1001, Packets: 10_010, Bytes: 1_001_000}}}
		if d := cmp.Diff(want, matching, protocmp.Transform()); d != "" || err != nil {
			t.Errorf("matching: %v (-want +got):\n%s", err, d)
		}
		match.Fragment, want.Approximate = &fragment, true
		matching, err = r.client.CountMatching(ctx, &queryv1.CountMatchingRequest{Range: &queryv1.TimeRange{FromNs: begin}, Match: match})
		if d := cmp.Diff(want, matching, protocmp.Transform()); d != "" || err != nil {
			t.Errorf("matching whole packets: %v (-want +got):\n%s", err, d)
		}
		seen := map[string]bool{}
		for token := ""; ; {
			page, err := r.client.ListFlows(ctx, &queryv1.ListFlowsRequest{App: "tls", Limit: 300, PageToken: token})
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range page.GetFlows() {
				if seen[f.GetId()] {
					t.Fatalf("%s comes again", f.GetId())
				}
				seen[f.GetId()] = true
			}
			if token = page.GetNextPageToken(); token == "" {
				break
			}
		}
		if len(seen) != 1001 {
			t.Errorf("%d flows in pages", len(seen))
		}
		continued := map[string]int{}
		for _, s := range r.spans.GetSpans() {
			if s.Name == "persist.insert" && s.SpanContext.TraceID().String() == attack.TraceId && s.Parent.IsRemote() {
				for _, a := range s.Attributes {
					continued[a.Value.Emit()]++
				}
			}
		}
		if continued["attacks"] != 3 || continued["verdicts"] != 1 {
			t.Errorf("insert spans in the publisher's trace: %v", continued)
		}
	})
}

// TestRedelivery has every message come again, to the same process and to a new one.
func TestRedelivery(t *testing.T) {
	eachDatabase(t, func(t *testing.T, cfg Config) {
		r := newRig(t, cfg)
		r.publish(1, 10, 20)
		r.until("the first delivery", func(st *queryv1.StatusResponse) bool { return ledger(st)["committed"] == 10 })
		again := func() {
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
			if err := js.DeleteConsumer(context.Background(), bus.StreamFlows, durable); err != nil {
				t.Fatal(err)
			}
		}
		again() // the running service makes its consumer again and gets everything from the beginning
		r.publish(11, 1, 20)
		st := r.until("the second delivery", func(st *queryv1.StatusResponse) bool {
			return ledger(st)["committed"] == 11 && ledger(st)["pending"] == 0
		})
		if ledger(st)["duplicate"] != 0 || ledger(st)["discarded"] != 0 || ledger(st)["records_committed"] != 220 {
			t.Errorf("ledger after the second delivery: %v", ledger(st))
		}
		r.stop()
		again()
		r.start()
		r.publish(12, 1, 20)
		st = r.until("the third delivery", func(st *queryv1.StatusResponse) bool {
			return ledger(st)["records_redelivered"] == 220 && ledger(st)["committed"] == 1 && ledger(st)["pending"] == 0
		})
		if ledger(st)["duplicate"] != 0 || ledger(st)["records_committed"] != 20 || ledger(st)["discarded"] != 0 {
			t.Errorf("after the third delivery: %v", st)
		}
		r.until("the counts", func(st *queryv1.StatusResponse) bool { return st.GetRows()["flows"] == 240 })
		// The same records published twice, as a classifier does that did not hear the acknowledgement and
		// restarted: another message, the same rows.
		m := &eventv1.FlowRecords{Sensor: "edge-1", Epoch: 43, Batch: 1}
		for j := range 20 {
			m.Records = append(m.Records, record(5, j))
		}
		if _, err := r.bus.PublishFlows(context.Background(), m); err != nil {
			t.Fatal(err)
		}
		st = r.until("the duplicate", func(st *queryv1.StatusResponse) bool { return ledger(st)["duplicate"] == 1 })
		if ledger(st)["records_duplicate"] != 20 || ledger(st)["committed"] != 1 {
			t.Errorf("after the duplicate: %v", ledger(st))
		}
	})
}

// TestDatabaseDown takes PostgreSQL away from before the start, and later while messages come.
func TestDatabaseDown(t *testing.T) {
	srv := dbtest.Start(t, dbtest.PostgreSQL)
	srv.Stop()
	cfg := DefaultConfig()
	cfg.DatabaseURL = srv.URL
	r := newRig(t, cfg)
	r.publish(1, 5, 10)
	st := r.until("a problem", func(st *queryv1.StatusResponse) bool { return len(st.GetStatus().GetProblems()) > 0 })
	if st.GetStatus().GetReady() || !strings.HasPrefix(st.GetStatus().GetProblems()[0], "database:") {
		t.Errorf("status without a database: %v", st)
	}
	if _, err := r.client.ListFlows(context.Background(), &queryv1.ListFlowsRequest{}); err == nil || !strings.Contains(err.Error(), "Unavailable") {
		t.Errorf("a query without a database: %v", err)
	}
	if len(r.tel.Ready()) == 0 {
		t.Error("ready without a database")
	}
	srv.Run()
	r.until("the first messages", func(st *queryv1.StatusResponse) bool {
		return ledger(st)["committed"] == 5 && st.GetStatus().GetReady()
	})

	srv.Kill()
	r.publish(6, 30, 10)
	st = r.until("a problem and a backlog", func(st *queryv1.StatusResponse) bool {
		return ledger(st)["pending"] == 30 && strings.Contains(strings.Join(st.GetStatus().GetProblems(), " "), "insert_flows")
	})
	if ledger(st)["committed"] != 5 || st.GetStatus().GetReady() || len(r.tel.Ready()) == 0 {
		t.Errorf("while the database is down: %v, readiness %v", st, r.tel.Ready())
	}
	srv.Run()
	r.until("the rest", func(st *queryv1.StatusResponse) bool {
		return ledger(st)["committed"] == 35 && ledger(st)["pending"] == 0 && ledger(st)["duplicate"] == 0 && len(r.tel.Ready()) == 0 && st.GetRows()["flows"] == 350
	})
}

// TestStopAndGoOn stops the service with messages under way: the next instance stores the rest, no row twice.
func TestStopAndGoOn(t *testing.T) {
	cfg := DefaultConfig()
	cfg.DatabaseURL = filepath.Join(t.TempDir(), "x.db")
	r := newRig(t, cfg)
	for i := range 4 {
		r.publish(1+i*40, 40, 5)
		r.stop()
		r.start()
	}
	r.until("all rows", func(st *queryv1.StatusResponse) bool {
		return st.GetRows()["flows"] == 800 && ledger(st)["pending"] == 0 && ledger(st)["duplicate"] == 0
	})
}
