// Package bench measures the built system on a test link; make bench runs it. Nothing here is part of the
// tests: figures depend on the machine, so each run prints what it saw beside its bar.
package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
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
