package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/api/client"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
)

// verdictTrace reads a verdict's trace back from Jaeger: every hop has to be there, in one tree.
func verdictTrace(ctx context.Context, jaeger, id string) error {
	return checkTrace(ctx, &rig.Jaeger{Query: jaeger}, id, rig.Steps{Applied: true, FirstDrop: true, Stored: true})
}

func checkTrace(ctx context.Context, j *rig.Jaeger, id string, want rig.Steps) error {
	spans, err := j.Trace(ctx, id)
	if err == nil {
		err = rig.CheckVerdict(spans, want)
	}
	if err != nil {
		return fmt.Errorf("trace %s: %w", id, err)
	}
	return nil
}

// TestFullDemoTraceInJaeger: the trace whose id the demo prints is whole in a real Jaeger. It takes 10 s.
func TestFullDemoTraceInJaeger(t *testing.T) {
	rig.NeedRoot(t)
	j := rig.StartJaeger(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, rig.Binary(t, "tidegate"), "demo", "--json", "--for", "7s", "--warm-up", "2s", "--attack-for", "3s",
		"--attacks", "amp_dns", "--listen", "", "--metrics", "", "--gateway-listen", "", "--local-credentials", "")
	cmd.Env = append(os.Environ(), "OTEL_EXPORTER_OTLP_ENDPOINT=http://"+j.OTLP)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var report demoReport
	if err := json.Unmarshal(out, &report); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if len(report.Attacks) != 1 || report.Attacks[0].TraceID == "" {
		t.Fatalf("no trace id: %s", out)
	}
	// The demo has ended, so it has sent everything; Jaeger may take a moment to store it.
	err = rig.Eventually(5*time.Second, func() error { return verdictTrace(ctx, j.Query, report.Attacks[0].TraceID) })
	if err != nil {
		t.Error(err)
	}
}

// tracedTargets is attacked one address after the other (RFC 2544's addresses for benchmarks).
var tracedTargets = netip.MustParsePrefix("198.18.0.0/24")

// TestFullTracesInJaeger: five processes, real attacks on a real XDP link, and the trace of every verdict whole in a real
// Jaeger, after all processes have ended. 10 attacks take 40 s; make bench runs 100.
func TestFullTracesInJaeger(t *testing.T) {
	attacks := 10
	if os.Getenv("TIDEGATE_BENCH") != "" {
		attacks = 100
	}
	rig.NeedRoot(t)
	j := rig.StartJaeger(t)
	m := newMeshOn(t, rig.SQLite, "OTEL_EXPORTER_OTLP_ENDPOINT=http://"+j.OTLP)
	db := m.open(t)
	sender, err := m.link.Sender()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sender.Close() }()
	attack := func(target netip.Addr, seed uint64) {
		frames, err := loadgen.NewFrames(loadgen.Attack{
			Kind: loadgen.SYNFlood, Seed: seed, Target: target, Avoid: []netip.Prefix{loadgen.BenignPrefix},
			SrcMAC: [6]byte(loadgen.GeneratorMAC), DstMAC: [6]byte(loadgen.VictimMAC),
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sender.Send(t.Context(), frames.Next, 1000, 800); err != nil {
			t.Fatal(err)
		}
	}
	dropped := func(target netip.Addr) bool {
		return count(t, db, `SELECT count(*) FROM verdicts v JOIN enforcements e ON e.trace_id = v.trace_id AND e.state = 'first_drop'
			WHERE v.target = ?`, target.String()) > 0
	}
	target := tracedTargets.Addr()
	var waiting []netip.Addr
	for seed := range uint64(attacks) { //nolint:gosec // a small number
		target = target.Next()
		waiting = append(waiting, target)
		attack(target, seed)
	}
	// A loaded machine may decide after the attack's last packet; such an attack goes on.
	for try := uint64(0); len(waiting) > 0; try++ {
		if try == 5 {
			t.Fatalf("no drop is stored of attacks on %v", waiting)
		}
		time.Sleep(1500 * time.Millisecond) // rows are written once a second
		var rest []netip.Addr
		for _, a := range waiting {
			if !dropped(a) {
				rest = append(rest, a)
			}
		}
		waiting = rest
		for i, a := range waiting {
			if try > 0 {
				attack(a, 1000*try+uint64(i))
			}
		}
	}
	// Over REST the attack names the trace of one of its verdicts.
	viewer := m.gateway.Client(t, "viewer")
	named := map[string]bool{}
	for a, err := range viewer.Attacks(t.Context(), client.Query{}) {
		if err != nil {
			t.Fatal(err)
		}
		named[a.TraceID] = true
	}
	// What waits in a process has to be sent at its end.
	for _, p := range []*rig.Process{m.gatewayProc, m.ingest, m.classify, m.enforce, m.persist} {
		if err := p.Stop(15 * time.Second); err != nil {
			t.Errorf("%s ended with %v", p.Name, err)
		}
		if strings.Contains(p.Log(), "trace export failed") {
			t.Errorf("%s lost spans", p.Name)
		}
	}
	rows, err := db.Query(`SELECT v.trace_id, v.target,
		(SELECT count(*) FROM enforcements e WHERE e.trace_id = v.trace_id AND e.state = 'applied'),
		(SELECT count(*) FROM enforcements e WHERE e.trace_id = v.trace_id AND e.state = 'first_drop') FROM verdicts v`)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	verdicts, complete, whole := 0, 0, map[string]bool{}
	seen := map[string]bool{}
	for rows.Next() {
		var id, target string
		var applied, drops int
		if err := rows.Scan(&id, &target, &applied, &drops); err != nil {
			t.Fatal(err)
		}
		verdicts++
		if seen[id] {
			t.Errorf("trace %s has two verdicts", id)
		}
		seen[id] = true
		// A later verdict of an attack may have rules that have nothing left to drop.
		want := rig.Steps{Applied: applied > 0, FirstDrop: drops > 0, Stored: true, Apart: true}
		if err := rig.Eventually(5*time.Second, func() error { return checkTrace(t.Context(), j, id, want) }); err != nil {
			t.Errorf("verdict on %s: %v", target, err)
			continue
		}
		complete++
		if drops > 0 {
			whole[target] = true
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	t.Logf("verdict traces complete in Jaeger: %d of %d; with the first drop: %d of %d attacks", complete, verdicts, len(whole), attacks)
	if len(whole) < attacks {
		t.Errorf("%d of %d attacks have a whole trace", len(whole), attacks)
	}
	for id := range named {
		if !seen[id] {
			t.Errorf("the trace %q that REST names is no verdict's", id)
		}
	}
}
