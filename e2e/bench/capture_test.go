package bench

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/afxdp"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
	ingestv1 "github.com/tidegate-mesh/tidegate/proto/ingest/v1"
)

// captureRow is a line of the table: who reads, and what is sent.
type captureRow struct {
	name    string
	backend string // of a reader that drops; "": ingest and a classifier that acknowledges
	capture string // of ingest; "": AF_XDP
	frames  int    // frame memory; 0: ingest's default
	flows   uint32
	random  bool    // every packet a new flow from a source of its own
	syn     bool    // every packet a SYN; else UDP
	pps     float64 // 0: as fast as the sender can; idle: none
	scaled  bool    // pps is of a machine whose limit is referenceLimit; row 0 of the same turn tells this one's

	runs []captureRun
}

const idle = -1

type captureRun struct {
	sent, received uint64
	seconds        float64 // of the stream that is measured
	offered        float64 // packets a second of it
	cpu            float64 // of one core; of ingest's process
	memory         float64 // MiB
	ledger         string
}

func (r *captureRun) mpps() float64  { return r.offered * r.share() / 1e6 }
func (r *captureRun) share() float64 { return float64(r.received) / float64(max(r.sent, 1)) }

// TestBenchCapture compares ingest with the loop that only receives and drops, all on CPU 0 and the sender with the
// kernel's part on the last CPU. Rows take turns, five times; the table has medians.
func TestBenchCapture(t *testing.T) {
	needBench(t)
	rows := []*captureRow{
		{name: "receive and drop (the limit)", backend: afxdp.Native, frames: 2048, flows: 1000},
		{name: "receive and drop, asavie/xdp", backend: afxdp.Asavie, frames: 2048, flows: 1000},
		{name: "receive and drop, AF_PACKET", backend: packetSocket, flows: 1000},
		{name: "ingest, AF_PACKET, 1,000 flows", flows: 1000, capture: "af_packet"},
		{name: "ingest, 1,000 flows", flows: 1000},
		{name: "ingest, 1,000 flows, 2,048 frames", flows: 1000, frames: 2048},
		{name: "ingest, 100,000 flows", flows: 100_000},
		{name: "ingest, 1,000,000 flows", flows: 1_000_000},
		{name: "ingest, 1,000,000 TCP flows", flows: 1_000_000, syn: true},
		{name: "ingest, each packet a new source", flows: 1, random: true},
		{name: "the same, paced (3 M/s of a limit of 11.2 M/s)", flows: 1, random: true, pps: 3e6, scaled: true},
		{name: "ingest, 1,000 flows, 100,000/s", flows: 1000, pps: 1e5},
		{name: "ingest, no packets", pps: idle},
	}
	if only := os.Getenv("TIDEGATE_BENCH_ROWS"); only != "" { // for trying out: the numbers of rows, from 0
		var some []*captureRow
		for _, n := range strings.Split(only, ",") {
			i, err := strconv.Atoi(n)
			if err != nil || i < 0 || i >= len(rows) {
				t.Fatalf("TIDEGATE_BENCH_ROWS=%s: %s is no row", only, n)
			}
			some = append(some, rows[i])
		}
		rows = some
	}
	turns := runs(5)
	if os.Getenv("TIDEGATE_BENCH_SECONDS") != "" {
		turns = runs(1)
	}
	for range turns {
		for _, row := range rows {
			r := *row
			if row.scaled {
				if rows[0].backend != afxdp.Native {
					t.Fatalf("%s: needs row 0, the limit, in the same turn", row.name)
				}
				limit := rows[0].runs[len(rows[0].runs)-1]
				r.pps = paced(row.pps, limit.mpps()*1e6)
			}
			row.runs = append(row.runs, r.run(t))
		}
	}
	limit := 0.0
	var table strings.Builder
	fmt.Fprintf(&table, "%-48s %8s %8s %9s %8s %8s %6s %8s\n", "", "Mpps", "offered", "received", "of limit", "ns each", "CPU", "memory")
	for i, row := range rows {
		slices.SortFunc(row.runs, func(a, b captureRun) int { return int(1e6 * (a.mpps() - b.mpps())) })
		m := row.runs[len(row.runs)/2]
		if i == 0 {
			limit = m.mpps()
		}
		fmt.Fprintf(&table, "%-48s %8.2f %8.2f %9.5f %8.2f %8.0f %5.1f%% %4.0f MiB\n", row.name, m.mpps(), m.offered/1e6,
			m.share(), m.mpps()/limit, 1000/m.mpps(), 100*m.cpu, m.memory)
		for _, r := range row.runs {
			if r.ledger != "" {
				t.Errorf("%s: the ledger does not balance: %s", row.name, r.ledger)
			}
		}
	}
	t.Logf("capture, medians of %d runs in turns, 60-byte frames:\n%s", turns, table.String())
}

func (row *captureRow) run(t *testing.T) (run captureRun) {
	t.Helper()
	link, err := loadgen.NewLink(loadgen.LinkOptions{Prefix: "tgben", Sink: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := link.Close(); err != nil {
			t.Error(err)
		}
	}()
	stream := link.Stream(row.flows, max(1, row.flows/64), 1024, frameSize, runtime.NumCPU()-1)
	stream.SYN = row.syn
	if row.random {
		stream.Source, stream.Scatter = netip.MustParseAddr("32.0.0.0"), 29
	}
	var finish func()
	var pid int
	if row.backend != "" {
		text, err := json.Marshal(readerJob{Iface: link.PortA, BPFFS: link.BPFFS, Backend: row.backend, Frames: row.frames})
		if err != nil {
			t.Fatal(err)
		}
		var stop func() []byte
		stop, pid = child(t, readerVariable+"="+string(text))
		finish = func() {
			if err := json.Unmarshal(stop(), &run.received); err != nil {
				t.Fatalf("%s: %v", row.name, err)
			}
		}
	} else {
		address, listen := rig.FreeAddr(t), rig.FreeAddr(t)
		stop, _ := child(t, classifierVariable+"="+address)
		var args []string
		if row.frames > 0 {
			args = []string{"--frames", strconv.Itoa(row.frames), "--rx-ring", strconv.Itoa(row.frames)}
		}
		if row.capture != "" {
			args = append(args, "--capture", row.capture, "--packet-workers", "1")
		}
		ingest := startIngest(t, link, address, listen, "tap", args...)
		pid = ingest.PID()
		if row.pps > 0 {
			stream.Share = shareOf(t, stream, row.pps)
		}
		if !row.random && row.pps != idle { // all flows are there and judged
			if _, err := stream.Run(t.Context(), 3*time.Second); err != nil {
				t.Fatal(err)
			}
		}
		before, _ := settled(t, listen)
		finish = func() {
			run.received, run.ledger = settled(t, listen)
			run.received -= before
			if err := ingest.Stop(15 * time.Second); err != nil {
				t.Error(err)
			}
			stop()
		}
	}
	began, used, sent := time.Now(), cpuSeconds(t, pid), uint64(0)
	if row.pps == idle {
		time.Sleep(seconds(4))
	} else {
		streamed, err := stream.Run(t.Context(), seconds(4))
		if err != nil {
			t.Fatal(err)
		}
		sent = streamed.Frames
	}
	run.seconds = time.Since(began).Seconds()
	run.offered = float64(sent) / run.seconds
	run.sent = sent
	run.cpu = (cpuSeconds(t, pid) - used) / run.seconds
	run.memory, _ = rig.Memory(t, pid)
	finish()
	return run
}

// startIngest starts the sensor on CPU 0, on port A, and inline on both ports.
func startIngest(t *testing.T, link *loadgen.Link, classify, listen, mode string, args ...string) *rig.Process {
	t.Helper()
	args = append([]string{
		"-c", "0", rig.Binary(t, "tidegate-ingest"), "--insecure", "--mode", mode, "--iface", link.PortA, "--bpffs", link.BPFFS,
		"--classify", classify, "--listen", listen, "--metrics-listen", rig.FreeAddr(t), "--cpus", "0", "--log-level", "error",
	}, args...)
	if mode == "inline" {
		args = append(args, "--iface", link.PortB)
	}
	p := rig.Start(t, "/usr/bin/taskset", nil, args...)
	status(t, listen, func(s *ingestv1.StatusResponse) bool { return s.GetStatus().GetReady() })
	return p
}

// status asks ingest until its answer is as wanted.
func status(t *testing.T, address string, good func(*ingestv1.StatusResponse) bool) *ingestv1.StatusResponse {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	var s *ingestv1.StatusResponse
	err = rig.Eventually(15*time.Second, func() (err error) {
		if s, err = ingestv1.NewIngestServiceClient(conn).Status(t.Context(), &ingestv1.StatusRequest{}); err == nil && !good(s) {
			err = fmt.Errorf("not yet: %v", s)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// settled waits until what the XDP program gave to ingest is in its ledger, and tells what is wrong with it.
func settled(t *testing.T, address string) (received uint64, wrong string) {
	t.Helper()
	s := status(t, address, func(s *ingestv1.StatusResponse) bool {
		l := s.GetStatus().GetLedger().GetTerms()
		return l["raised"] == l["received"]+l["ring_drops"] && l["received"] == l["accounted"]+l["undecodable"]
	})
	l := s.GetStatus().GetLedger().GetTerms()
	if out := l["xdp_no_reader"] + l["redirected"] + l["xdp_passed"]; l["xdp_seen"] != out {
		wrong = fmt.Sprintf("seen %d, no reader, redirected and passed %d", l["xdp_seen"], out)
	}
	return l["received"], wrong
}

// shareOf is which share of its frames the stream must send for a rate.
func shareOf(t *testing.T, s loadgen.Stream, pps float64) uint32 {
	t.Helper()
	s.Share = 64
	for range 3 {
		began := time.Now()
		n, err := s.Run(t.Context(), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		s.Share = uint32(min(1024, max(1, float64(s.Share)*pps*time.Since(began).Seconds()/float64(n.Frames)+0.5)))
	}
	return s.Share
}

// child starts this binary on CPU 0 in another role and waits until it is ready. stop ends it and returns what it printed.
func child(t *testing.T, role string) (stop func() []byte, pid int) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/usr/bin/taskset", "-c", "0", self)
	cmd.Env = append(os.Environ(), role)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("the process is not ready: %q, %v", line, err)
	}
	return func() []byte {
		_ = in.Close()
		text, err := io.ReadAll(lines)
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		return text
	}, cmd.Process.Pid
}

// cpuSeconds is the time that a process has used, of proc_pid_stat(5) fields 14 and 15.
func cpuSeconds(t *testing.T, pid int) float64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	const ticks = 100 // a second, USER_HZ
	sum := 0.0
	for _, f := range fields[11:13] {
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += n / ticks
	}
	return sum
}
