// Package bench measures the built system on a test link; make bench runs it. Nothing here is part of the
// tests: figures depend on the machine, so each run prints what it saw beside its bar.
package bench

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
)

func needBench(t *testing.T) {
	t.Helper()
	if os.Getenv("TIDEGATE_BENCH") == "" {
		t.Skip("a benchmark: run it with make bench")
	}
	rig.NeedRoot(t)
}

const (
	benchFlows = 10_000
	benchHosts = 157 // one a source, 64 flows each
	frameSize  = 18  // payload that makes 60-byte frames
)

// system is the all-in-one on a test link.
type system struct {
	link    *loadgen.Link
	gateway *rig.Gateway
	process *rig.Process
}

func start(t *testing.T, mode string, args ...string) *system {
	t.Helper()
	return startOn(t, fmt.Sprintf("0-%d", runtime.NumCPU()-1), mode, args...)
}

// startOn starts it on CPUs, as taskset names them.
func startOn(t *testing.T, cpus, mode string, args ...string) *system {
	t.Helper()
	data := t.TempDir()
	s := &system{
		link:    rig.Link(t, loadgen.LinkOptions{Prefix: "tgben", Sink: true}),
		gateway: rig.NewGateway(t, data, filepath.Join(data, "certs", "ca.pem")),
	}
	args = append([]string{
		"-c", cpus, rig.Binary(t, "tidegate"), "run", "--mode", mode, "--iface", s.link.PortA, "--bpffs", s.link.BPFFS, "--data", data,
		"--listen", "", "--metrics-listen", rig.FreeAddr(t), "--gateway-listen", s.gateway.Addr, "--local-credentials", "", "--log-level", "error", "--ingest-sensor", "bench", "--ingest-cpus", "0",
	}, args...)
	if mode == "inline" {
		args = append(args, "--iface", s.link.PortB)
	}
	s.process = rig.Start(t, "/usr/bin/taskset", nil, args...)
	s.gateway.WaitReady(t, 4, 30*time.Second)
	return s
}

// stream sends at pps for d, on the last CPU; the share of the machine's top rate is found first.
func (s *system) stream(t *testing.T, pps float64, d time.Duration) (sent uint64, rate float64) {
	t.Helper()
	share := uint32(1024)
	run := func(d time.Duration) (uint64, float64) {
		began := time.Now()
		streamed, err := s.link.Stream(benchFlows, benchHosts, share, frameSize, runtime.NumCPU()-1).Run(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		sent += streamed.Frames
		return streamed.Frames, float64(streamed.Frames) / time.Since(began).Seconds()
	}
	if pps > 0 {
		share = 8
		for range 5 {
			_, got := run(1500 * time.Millisecond)
			share = uint32(min(1024, max(1, float64(share)*pps/got+0.999)))
		}
	}
	_, rate = run(d)
	return sent, rate
}

// TestBenchInline: the victim counts with an XDP program; nothing may be lost.
func TestBenchInline(t *testing.T) {
	needBench(t)
	for _, forwarding := range []bool{true, false} {
		t.Run(fmt.Sprintf("kernel_forwarding=%v", forwarding), func(t *testing.T) {
			s := start(t, "inline", fmt.Sprintf("--ingest-kernel-forwarding=%v", forwarding))
			sent, rate := s.stream(t, 600_000, seconds(60))
			st := s.gateway.WaitBalanced(t, 10*time.Second)
			c, err := s.link.Counter.Counts()
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("inline, kernel forwarding %v: %.0f packets/s (bar 600,000), %d sent, %d arrived, ring drops %d, ledger difference %d\n%s",
				forwarding, rate, sent, c.Benign, ringDrops(st), st.Ledger.Difference, stages(st))
			if c.Benign != sent || ringDrops(st) != 0 {
				t.Errorf("%d of %d packets were lost", sent-c.Benign, sent)
			}
		})
	}
}

// TestBenchTap: everything goes to user space.
func TestBenchTap(t *testing.T) {
	needBench(t)
	s := start(t, "tap")
	sent, rate := s.stream(t, 2_000_000, seconds(60))
	st := s.gateway.WaitBalanced(t, 10*time.Second)
	received := st.Interfaces[0].Received
	t.Logf("tap: %.0f packets/s (bar 2,000,000), %d sent, %d received, ring drops %d, ledger difference %d\n%s",
		rate, sent, received, ringDrops(st), st.Ledger.Difference, stages(st))
	if received < sent || ringDrops(st) != 0 {
		t.Errorf("%d of %d packets were lost", sent-min(sent, received), sent)
	}
}

// TestBenchFullSpeed reports what full speed reaches; losses are counted, not failures.
func TestBenchFullSpeed(t *testing.T) {
	needBench(t)
	for _, mode := range []string{"inline", "tap"} {
		t.Run(mode, func(t *testing.T) {
			s := start(t, mode)
			began := time.Now()
			sent, rate := s.stream(t, 0, seconds(10))
			took := time.Since(began).Seconds()
			st := s.gateway.WaitBalanced(t, 10*time.Second)
			arrived := st.Interfaces[0].Received
			if mode == "inline" {
				c, err := s.link.Counter.Counts()
				if err != nil {
					t.Fatal(err)
				}
				arrived = c.Benign
			}
			t.Logf("%s at full speed: %.0f packets/s offered, %.0f through, ring drops %d of %d, ledger difference %d",
				mode, rate, float64(arrived)/took, ringDrops(st), sent, st.Ledger.Difference)
		})
	}
}

// floodPPS is packets a second of a flood; the sender makes fewer on a slow machine.
const floodPPS = 1_000_000

// demoAttack is what the demo's JSON says of one.
type demoAttack struct {
	DetectedMs  float64 `json:"detected_ms"`
	FirstDropMs float64 `json:"first_drop_ms"`
	Stopped     bool    `json:"stopped"`
	Sent        uint64  `json:"sent_after_drop"`
	Arrived     uint64  `json:"arrived_after_drop"`
	Begun       uint64  `json:"connections_begun_after_drop"`
	Completed   uint64  `json:"connections_completed_after_drop"`
}

// demo runs attacks one after the other in a new process; one that was not stopped is an error and not in what it returns.
func demo(t *testing.T, seed int, kinds ...string) map[string]demoAttack {
	t.Helper()
	out, err := rig.Output(t.Context(), rig.Binary(t, "tidegate"), "demo", "--json", "--for", fmt.Sprintf("%ds", 2+3*len(kinds)), "--warm-up", "2s",
		"--attack-for", "2s", "--rest", "1s", "--pps", fmt.Sprint(floodPPS), "--seed", fmt.Sprint(seed), "--attacks", strings.Join(kinds, ","),
		"--listen", "", "--metrics", "", "--gateway-listen", "")
	if err != nil {
		t.Fatal(err)
	}
	var r struct {
		Attacks []demoAttack `json:"attacks"`
	}
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatal(err)
	}
	stopped := map[string]demoAttack{}
	for i, kind := range kinds {
		if i >= len(r.Attacks) || !r.Attacks[i].Stopped {
			t.Errorf("seed %d: %s was not stopped: %s", seed, kind, out)
			continue
		}
		stopped[kind] = r.Attacks[i]
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

// TestBenchFirstDrop runs each demo attack 20 times, each time in a new process.
func TestBenchFirstDrop(t *testing.T) {
	needBench(t)
	byKind := map[string][]demoAttack{}
	for seed := 1; seed <= runs(20); seed++ {
		for _, kinds := range [][]string{{loadgen.SYNFlood, loadgen.AmpDNS, loadgen.PortScan}, {loadgen.SYNFloodLookalike}} {
			for kind, a := range demo(t, seed, kinds...) {
				byKind[kind] = append(byKind[kind], a)
			}
		}
	}
	for kind, list := range byKind {
		var sum demoAttack
		slices.SortFunc(list, func(a, b demoAttack) int { return cmp.Compare(a.DetectedMs, b.DetectedMs) })
		detected := list[len(list)/2].DetectedMs
		slices.SortFunc(list, func(a, b demoAttack) int { return cmp.Compare(a.FirstDropMs, b.FirstDropMs) })
		for _, a := range list {
			sum.Sent, sum.Arrived, sum.Begun, sum.Completed = sum.Sent+a.Sent, sum.Arrived+a.Arrived, sum.Begun+a.Begun, sum.Completed+a.Completed
		}
		n := len(list)
		t.Logf("%s: first frame to first drop median %.0f ms (bar 120), p99 %.0f ms (bar 250); detected median %.0f ms; then %d of %d attack packets arrived, %d of %d benign connections completed; %d runs",
			kind, list[n/2].FirstDropMs, list[n*99/100].FirstDropMs, detected, sum.Arrived, sum.Sent, sum.Completed, sum.Begun, n)
	}
}

func ringDrops(s api.Status) (n uint64) {
	for _, i := range s.Interfaces {
		n += i.RingDrops
	}
	return n
}

func stages(s api.Status) string {
	out := ""
	for _, st := range s.Ledger.Stages {
		out += fmt.Sprintf("    %-8s %d = %v\n", st.Stage, st.In, st.Out)
	}
	return out
}

// seconds is n seconds, or what TIDEGATE_BENCH_SECONDS says, for trying out.
func seconds(n int) time.Duration {
	if s := os.Getenv("TIDEGATE_BENCH_SECONDS"); s != "" {
		if d, err := time.ParseDuration(s + "s"); err == nil {
			return d
		}
	}
	return time.Duration(n) * time.Second
}
