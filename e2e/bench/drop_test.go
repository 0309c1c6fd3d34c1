package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
)

// floodPPS is packets a second of a flood; the sender makes fewer on a slow machine.
const floodPPS = 1_000_000

// demoAttack is what the demo's JSON says of one.
type demoAttack struct {
	DetectedMs    float64 `json:"detected_ms"`
	FirstDropMs   float64 `json:"first_drop_ms"`
	Stopped       bool    `json:"stopped"`
	Sent          uint64  `json:"sent_after_drop"`
	Arrived       uint64  `json:"arrived_after_drop"`
	Begun         uint64  `json:"connections_begun_after_drop"`
	Completed     uint64  `json:"connections_completed_after_drop"`
	PortBegun     uint64  `json:"port_connections_begun_after_drop"`
	PortCompleted uint64  `json:"port_connections_completed_after_drop"`
	Held          struct {
		Connections    int    `json:"connections"`
		Sent           uint64 `json:"sent"`
		Arrived        uint64 `json:"arrived"`
		AnswersSent    uint64 `json:"answers_sent"`
		AnswersArrived uint64 `json:"answers_arrived"`
	} `json:"held_after_drop"`
	LinkDropped uint64 `json:"-"` // in the whole run
}

// pace is a demo's attacks: packets a second, how long each lasts, and the pause after it. Benign traffic alone always comes
// before, for 2 s: a second of it must be a second old to be what an attack is compared with.
type pace struct {
	pps          int
	attack, rest time.Duration
}

// demo runs attacks one after the other in a new process; one that was not stopped is an error and not in what it returns. The
// ledger must balance.
func demo(t *testing.T, seed int, p pace, kinds []string, args ...string) map[string]demoAttack {
	t.Helper()
	out, err := rig.Output(t.Context(), rig.Binary(t, "tidegate"), append([]string{"demo", "--json", "--rounds", "1", "--warm-up", "2s",
		"--attack-for", p.attack.String(), "--rest", p.rest.String(), "--pps", fmt.Sprint(p.pps), "--seed", fmt.Sprint(seed),
		"--attacks", strings.Join(kinds, ","), "--listen", "", "--metrics", "", "--gateway-listen", ""}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	var r struct {
		Attacks     []demoAttack `json:"attacks"`
		LinkDropped uint64       `json:"link_dropped"`
		Ledger      struct {
			Difference int64 `json:"difference"`
		} `json:"ledger"`
	}
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatal(err)
	}
	if r.Ledger.Difference != 0 {
		t.Errorf("seed %d: the ledger's difference is %d: %s", seed, r.Ledger.Difference, out)
	}
	stopped := map[string]demoAttack{}
	for i, kind := range kinds {
		if i >= len(r.Attacks) || !r.Attacks[i].Stopped {
			t.Errorf("seed %d: %s was not stopped: %s", seed, kind, out)
			continue
		}
		a := r.Attacks[i]
		a.LinkDropped = r.LinkDropped
		stopped[kind] = a
	}
	return stopped
}

// runs is n, or what TIDEGATE_BENCH_RUNS says.
func runs(n int) int {
	if given, err := strconv.Atoi(os.Getenv("TIDEGATE_BENCH_RUNS")); err == nil && given > 0 {
		return given
	}
	return n
}

// TestBenchFirstDrop runs each demo attack 20 times, for 2 s and each time in a new process, and those alone that
// TIDEGATE_BENCH_ATTACKS names, for 1 s, so that hundreds of runs take minutes.
func TestBenchFirstDrop(t *testing.T) {
	needBench(t)
	kinds := []string{loadgen.SYNFlood, loadgen.AmpDNS, loadgen.PortScan, loadgen.SYNFloodLookalike}
	of := pace{floodPPS, 2 * time.Second, time.Second}
	if named := os.Getenv("TIDEGATE_BENCH_ATTACKS"); named != "" {
		kinds, of = strings.Split(named, ","), pace{floodPPS, time.Second, 500 * time.Millisecond}
	}
	// The look-alike is a SYN flood too: in one process it would be the other one, still on.
	var processes [][]string
	alone := func(kind string) bool { return kind == loadgen.SYNFloodLookalike }
	if together := slices.DeleteFunc(slices.Clone(kinds), alone); len(together) > 0 {
		processes = append(processes, together)
	}
	if slices.ContainsFunc(kinds, alone) {
		processes = append(processes, []string{loadgen.SYNFloodLookalike})
	}
	byKind := map[string][]demoAttack{}
	for seed := 1; seed <= runs(20); seed++ {
		for _, p := range processes {
			for kind, a := range demo(t, seed, of, p) {
				byKind[kind] = append(byKind[kind], a)
			}
		}
	}
	for _, kind := range kinds {
		list := byKind[kind]
		if len(list) == 0 {
			continue
		}
		var sum demoAttack
		var detected, drop []float64
		for _, a := range list {
			detected, drop = append(detected, a.DetectedMs), append(drop, a.FirstDropMs)
			sum.Sent, sum.Arrived, sum.Begun, sum.Completed = sum.Sent+a.Sent, sum.Arrived+a.Arrived, sum.Begun+a.Begun, sum.Completed+a.Completed
		}
		slices.Sort(detected)
		slices.Sort(drop)
		n := len(list)
		t.Logf("%s of %v: first frame to first drop median %.0f ms (bar 120), p90 %.0f ms, p99 %.0f ms (bar 250), maximum %.0f ms; detected median %.0f ms; "+
			"then %d of %d attack packets arrived, %d of %d benign connections completed; %d runs",
			kind, of.attack, drop[n/2], drop[n*9/10], drop[n*99/100], drop[n-1], detected[n/2], sum.Arrived, sum.Sent, sum.Completed, sum.Begun, n)
	}
}
