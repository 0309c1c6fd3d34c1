package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
)

// forwardRow is a way from one port to the other.
type forwardRow struct {
	name string
	args []string // of ingest; nil: a bare redirect

	runs []forwardRun
}

type forwardRun struct {
	mpps     float64 // that arrived
	cpu      float64 // of ingest, in nanoseconds for each of those
	p50, p99 time.Duration
	timed    uint64 // frames of which p50 and p99 are
}

// stampedRate is packets a second whose delay is measured.
const stampedRate = 100_000

// TestBenchForward compares inline forwarding with a bare redirect: how much arrives at full speed, and how long frames are under
// way at 100,000 a second. An XDP program at the far end counts and times; the sender stamps.
func TestBenchForward(t *testing.T) {
	needBench(t)
	rows := []*forwardRow{
		{name: "bare redirect (devmap)"},
		{name: "inline, known flows in the kernel", args: []string{"--kernel-forwarding"}},
		{name: "inline, all through user space", args: []string{"--no-kernel-forwarding"}},
		{name: "the same, frames copied", args: []string{"--no-kernel-forwarding", "--no-shared-frames"}},
	}
	turns := 5
	if seconds(4) != 4*time.Second {
		turns = 1
	}
	for range turns {
		for _, row := range rows {
			row.runs = append(row.runs, row.run(t))
		}
	}
	var table strings.Builder
	fmt.Fprintf(&table, "%-36s %8s %8s %8s %10s %10s %10s %10s\n", "", "Mpps", "of bare", "CPU ns", "p50", "p99", "added p50", "added p99")
	median := func(r []forwardRun, of func(*forwardRun) float64) float64 {
		var all []float64
		for i := range r {
			all = append(all, of(&r[i]))
		}
		slices.Sort(all)
		return all[len(all)/2]
	}
	var bare [3]float64
	for i, row := range rows {
		m := [3]float64{
			median(row.runs, func(r *forwardRun) float64 { return r.mpps }),
			median(row.runs, func(r *forwardRun) float64 { return float64(r.p50) }), median(row.runs, func(r *forwardRun) float64 { return float64(r.p99) }),
		}
		if i == 0 {
			bare = m
		}
		fmt.Fprintf(&table, "%-36s %8.2f %8.2f %8.0f %10v %10v %10v %10v\n", row.name, m[0], m[0]/bare[0],
			median(row.runs, func(r *forwardRun) float64 { return r.cpu }), time.Duration(m[1]), time.Duration(m[2]),
			time.Duration(m[1]-bare[1]), time.Duration(m[2]-bare[2]))
	}
	t.Logf("forwarding, medians of %d runs in turns, 60-byte frames; delays at %d packets/s:\n%s", turns, stampedRate, table.String())
}

func (row *forwardRow) run(t *testing.T) (run forwardRun) {
	t.Helper()
	link, err := loadgen.NewLink(loadgen.LinkOptions{Prefix: "tgben", Sink: true})
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, link)
	used := func() float64 { return 0 }
	if row.args == nil {
		relay, err := loadgen.NewRelay(link.PortA, link.PortB)
		if err != nil {
			t.Fatal(err)
		}
		defer closed(t, relay)
	} else {
		address, listen := rig.FreeAddr(t), rig.FreeAddr(t)
		stop, _ := child(t, classifierVariable+"="+address)
		defer stop()
		ingest := startIngest(t, link, address, listen, "inline", row.args...)
		used = func() float64 { return cpuSeconds(t, ingest.PID()) }
		defer func() {
			if err := ingest.Stop(15 * time.Second); err != nil {
				t.Error(err)
			}
		}()
	}
	// The stamped flows come first: nothing else has been asked of the bridge yet.
	sender, err := link.Sender()
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, sender)
	send := func(d time.Duration) loadgen.Delays {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		onLastCPU(t, func() error {
			_, err := sender.Send(ctx, link.Stamped(64), stampedRate, 0)
			return err
		})
		time.Sleep(50 * time.Millisecond)
		d2, err := link.Counter.Delays()
		if err != nil {
			t.Fatal(err)
		}
		return d2
	}
	before := send(2 * time.Second) // flows become known
	delays := send(seconds(4))
	for us := range delays {
		delays[us] -= before[us]
		run.timed += delays[us]
	}
	if run.timed == 0 {
		t.Fatalf("%s: no stamped frame arrived", row.name)
	}
	run.p50, run.p99 = delays.At(0.5), delays.At(0.99)

	stream := link.Stream(1000, 16, 1024, frameSize, runtime.NumCPU()-1)
	if _, err := stream.Run(t.Context(), 2*time.Second); err != nil {
		t.Fatal(err)
	}
	arrived := func() uint64 {
		c, err := link.Counter.Counts()
		if err != nil {
			t.Fatal(err)
		}
		return c.Benign
	}
	count, cpu, began := arrived(), used(), time.Now()
	if _, err := stream.Run(t.Context(), seconds(4)); err != nil {
		t.Fatal(err)
	}
	n := float64(arrived() - count)
	run.mpps = n / time.Since(began).Seconds() / 1e6
	run.cpu = (used() - cpu) / n * 1e9
	return run
}

func closed(t *testing.T, c io.Closer) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// onLastCPU runs f on the CPU that senders have.
func onLastCPU(t *testing.T, f func() error) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var old, set unix.CPUSet
	set.Set(runtime.NumCPU() - 1)
	err := unix.SchedGetaffinity(0, &old)
	if err == nil {
		err = unix.SchedSetaffinity(0, &set)
	}
	if err == nil {
		err = errors.Join(f(), unix.SchedSetaffinity(0, &old))
	}
	if err != nil {
		t.Fatal(err)
	}
}
