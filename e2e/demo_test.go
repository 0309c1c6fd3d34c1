package e2e

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	_ "modernc.org/sqlite" // the demo's database

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/api/client"
)

// demoReport is what demo --json ends with.
type demoReport struct {
	PPS     uint64 `json:"pps"`
	Packets uint64 `json:"packets"`
	Attacks []struct {
		Type        string  `json:"type"`
		Seed        uint64  `json:"seed"`
		DetectedMs  float64 `json:"detected_ms"`
		FirstDropMs float64 `json:"first_drop_ms"`
		TraceID     string  `json:"trace_id"`
		Stopped     bool    `json:"stopped"`
		Sent        uint64  `json:"sent_after_drop"`
		Arrived     uint64  `json:"arrived_after_drop"`
		Begun       uint64  `json:"connections_begun_after_drop"`
		Completed   uint64  `json:"connections_completed_after_drop"`
	} `json:"attacks"`
	Benign struct {
		Sent      uint64 `json:"sent"`
		Arrived   uint64 `json:"arrived"`
		Begun     uint64 `json:"connections_begun"`
		Completed uint64 `json:"connections_completed"`
	} `json:"benign"`
	Attack struct {
		Sent    uint64 `json:"sent"`
		Arrived uint64 `json:"arrived"`
	} `json:"attack"`
	Ledger api.Ledger `json:"ledger"`
}

// leftovers lists what a demo must not leave behind.
func leftovers(t *testing.T) []string {
	t.Helper()
	var out []string
	if ifaces, err := net.Interfaces(); err == nil {
		for _, i := range ifaces {
			if strings.HasPrefix(i.Name, "tgdemo") {
				out = append(out, "interface "+i.Name)
			}
		}
	}
	for _, pattern := range []string{"/run/netns/tgdemo*", filepath.Join(os.TempDir(), "tgdemo*")} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, found...)
	}
	return out
}

// TestDemo is the whole path in one process: real packets, each attack dropped in the driver, benign
// connections completing, evidence in SQL, nothing left behind.
func TestDemo(t *testing.T) {
	rig.NeedRoot(t)
	data := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	metrics := rig.FreeAddr(t)
	scraped := make(chan map[string]bool, 1)
	local := filepath.Join(t.TempDir(), "local.json")
	go func() {
		time.Sleep(20 * time.Second)
		askDemo(ctx, t, local)
		scraped <- scrape(ctx, "http://"+metrics+"/metrics", 5*time.Second)
	}()
	out, err := rig.Output(ctx, rig.Binary(t, "tidegate"), "demo", "--json", "--for", "38s", "--data", data,
		"--listen", rig.FreeAddr(t), "--metrics", metrics, "--gateway-listen", rig.FreeAddr(t), "--local-credentials", local)
	if err != nil {
		t.Fatal(err)
	}
	have := <-scraped
	for _, name := range contractMetrics {
		if !have[name] {
			t.Errorf("no metric %s", name)
		}
	}
	var r demoReport
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	t.Logf("%s", out)
	seen := map[string]bool{}
	for _, a := range r.Attacks {
		seen[a.Type] = true
		if !a.Stopped {
			t.Errorf("%s (seed %d) was not stopped", a.Type, a.Seed)
			continue
		}
		if a.TraceID == "" {
			t.Errorf("%s: no trace id", a.Type)
		}
		if a.Sent == 0 || float64(a.Arrived) > 0.01*float64(a.Sent) {
			t.Errorf("%s: %d of %d attack packets arrived after the first drop, want at most 1%%", a.Type, a.Arrived, a.Sent)
		}
		if a.Begun == 0 || float64(a.Completed) < 0.95*float64(a.Begun) {
			t.Errorf("%s: %d of %d benign connections completed after the first drop, want at least 95%%", a.Type, a.Completed, a.Begun)
		}
	}
	for _, want := range []string{"syn_flood", "amp_dns", "port_scan"} {
		if !seen[want] {
			t.Errorf("no %s among the attacks", want)
		}
	}
	if r.Ledger.Difference != 0 || len(r.Ledger.Stages) < 7 {
		t.Errorf("the ledger does not balance or lacks stages: %+v", r.Ledger)
	}
	if left := leftovers(t); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := os.Stat(local); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the credentials of this machine stay behind: %v", err)
	}
	rows := countRows(t, filepath.Join(data, "persist.db"))
	for _, table := range []string{"flows", "attacks", "verdicts", "enforcements"} {
		if rows[table] == 0 {
			t.Errorf("no rows in %s: %v", table, rows)
		}
	}
}

// askDemo asks the demo's gateway with the credentials that it left for this machine.
func askDemo(ctx context.Context, t *testing.T, local string) {
	credentials, err := client.LoadCredentials(local)
	if err != nil {
		t.Error(err)
		return
	}
	o, err := credentials.Options()
	if err != nil {
		t.Error(err)
		return
	}
	c, err := client.New(o)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	s, err := c.Status(ctx)
	if err != nil || len(s.Services) != 4 || len(s.Missing) != 0 || !s.Enforcing {
		t.Errorf("status: %+v, %v", s, err)
	}
	for a, err := range c.Attacks(ctx, client.Query{Limit: 1}) {
		if err != nil || a.Type != "syn_flood" && a.Type != "amp_dns" {
			t.Errorf("attacks: %+v, %v", a, err)
		}
	}
}

// contractMetrics are the metrics whose names are fixed (DESIGN 5).
var contractMetrics = []string{
	"tidegate_ingest_packets_total", "tidegate_ingest_bytes_total", "tidegate_ingest_drops_total", "tidegate_ingest_flows_active",
	"tidegate_ingest_batches_total", "tidegate_classify_flows_total", "tidegate_classify_verdicts_total", "tidegate_classify_latency_seconds",
	"tidegate_xdp_packets_total", "tidegate_enforce_rules", "tidegate_enforce_apply_seconds", "tidegate_enforce_refusals_total",
	"tidegate_persist_rows_total", "tidegate_persist_insert_seconds", "tidegate_persist_backlog_messages",
	"tidegate_gateway_requests_seconds", "tidegate_time_to_first_drop_seconds", "tidegate_ledger", "tidegate_ledger_difference", "tidegate_errors_total", "go_goroutines",
}

// scrape reads the names of the metrics after a while, when every kind of event has happened.
func scrape(ctx context.Context, url string, after time.Duration) map[string]bool {
	names := map[string]bool{}
	select {
	case <-ctx.Done():
		return names
	case <-time.After(after):
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return names
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return names
	}
	defer resp.Body.Close()
	sc := bufio.NewScanner(resp.Body)
	for sc.Scan() {
		if f := strings.Fields(sc.Text()); len(f) > 2 && f[0] == "#" {
			names[f[2]] = true
		}
	}
	return names
}

func countRows(t *testing.T, file string) map[string]int {
	t.Helper()
	db, err := sql.Open("sqlite", file)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	rows := map[string]int{}
	for _, table := range []string{"flows", "attacks", "verdicts", "enforcements"} {
		var n int
		if err := db.QueryRow("SELECT count(*) FROM " + table).Scan(&n); err != nil {
			t.Fatalf("count %s: %v", table, err)
		}
		rows[table] = n
	}
	return rows
}

// TestDemoLookalike sends the flood that copies benign SYNs in all but its sources.
func TestDemoLookalike(t *testing.T) {
	rig.NeedRoot(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := rig.Output(ctx, rig.Binary(t, "tidegate"), "demo", "--json", "--for", "14s", "--attacks", "syn_flood_lookalike",
		"--listen", "", "--metrics", "", "--gateway-listen", "")
	if err != nil {
		t.Fatal(err)
	}
	var r demoReport
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	t.Logf("%s", out)
	if len(r.Attacks) != 1 || !r.Attacks[0].Stopped {
		t.Fatalf("the flood was not stopped: %+v", r.Attacks)
	}
	a := r.Attacks[0]
	if float64(a.Arrived) > 0.01*float64(a.Sent) {
		t.Errorf("%d of %d attack packets arrived after the first drop, want at most 1%%", a.Arrived, a.Sent)
	}
	if a.Begun == 0 || float64(a.Completed) < 0.95*float64(a.Begun) {
		t.Errorf("%d of %d benign connections completed, want at least 95%%", a.Completed, a.Begun)
	}
}

// TestFullDemoOtherAttacks sends the attacks that the demo does not show by itself.
func TestFullDemoOtherAttacks(t *testing.T) {
	rig.NeedRoot(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	kinds := []string{"udp_flood", "icmp_flood", "amp_ntp", "host_sweep"}
	out, err := rig.Output(ctx, rig.Binary(t, "tidegate"), "demo", "--json", "--for", "22s", "--attacks", strings.Join(kinds, ","),
		"--warm-up", "3s", "--attack-for", "3s", "--rest", "2s", "--listen", "", "--metrics", "", "--gateway-listen", "")
	if err != nil {
		t.Fatal(err)
	}
	var r demoReport
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	t.Logf("%s", out)
	if len(r.Attacks) < len(kinds) {
		t.Fatalf("%d attacks, want %d", len(r.Attacks), len(kinds))
	}
	for i, kind := range kinds {
		a := r.Attacks[i]
		if a.Type != kind || !a.Stopped || float64(a.Arrived) > 0.01*float64(a.Sent) || float64(a.Completed) < 0.95*float64(a.Begun) {
			t.Errorf("%s: %+v", kind, a)
		}
	}
	if r.Ledger.Difference != 0 {
		t.Errorf("the ledger does not balance: %+v", r.Ledger)
	}
}

// TestDemoEnds interrupts a demo, and kills one: the first cleans up itself, the second's leftovers go with
// the next start.
func TestDemoEnds(t *testing.T) {
	rig.NeedRoot(t)
	args := []string{"demo", "--listen", "", "--metrics", "", "--gateway-listen", ""}
	p := rig.Start(t, rig.Binary(t, "tidegate"), nil, args...)
	if err := waitLog(p, "seen"); err != nil {
		t.Fatal(err)
	}
	p.Signal(syscall.SIGINT)
	if err := p.Wait(20 * time.Second); err != nil {
		t.Errorf("after Ctrl-C: %v", err)
	}
	if left := leftovers(t); len(left) > 0 {
		t.Errorf("Ctrl-C left behind: %v", left)
	}

	killed := rig.Start(t, rig.Binary(t, "tidegate"), nil, args...)
	if err := waitLog(killed, "seen"); err != nil {
		t.Fatal(err)
	}
	killed.Kill()
	if left := leftovers(t); len(left) == 0 {
		t.Error("a killed demo left nothing: the test does not test anything")
	}
	next := rig.Start(t, rig.Binary(t, "tidegate"), nil, append(args, "--for", "3s")...)
	if err := next.Wait(40 * time.Second); err != nil {
		t.Errorf("the start after a crash: %v", err)
	}
	if left := leftovers(t); len(left) > 0 {
		t.Errorf("the start after a crash left behind: %v", left)
	}
}

func waitLog(p *rig.Process, text string) error {
	return rig.Eventually(40*time.Second, func() error {
		if !strings.Contains(p.Log(), text) {
			return fmt.Errorf("%s does not say %q: %s", p.Name, text, p.Log())
		}
		return nil
	})
}
