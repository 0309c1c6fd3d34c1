package bench

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/pcapfile"
)

// TestBenchReplay: replay's packets/s on one core against nDPI's reader on the same file, in turns, because other work on
// the machine weighs on both. The file is the nDPI captures one behind the other, several times over, each time later
// than any flow lives; start-up is a part of what is measured.
func TestBenchReplay(t *testing.T) {
	needBench(t)
	_, err := exec.LookPath("ndpiReader")
	rig.Need(t, err == nil, "ndpiReader (apt: libndpi-bin)")
	file, packets := mergedCaptures(t, filepath.Join(rig.Shared(t), "corpus", "ndpi"), 10)
	run := func(args ...string) float64 {
		cmd := exec.CommandContext(t.Context(), "taskset", append([]string{"-c", "0"}, args...)...)
		cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return float64(packets) / (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	}
	var ours, theirs, ratios []float64
	for range 5 {
		ours = append(ours, run(rig.Binary(t, "tidegate"), "replay", file))
		theirs = append(theirs, run("ndpiReader", "-q", "-i", file))
		ratios = append(ratios, ours[len(ours)-1]/theirs[len(theirs)-1])
	}
	for _, s := range [][]float64{ours, theirs, ratios} {
		slices.Sort(s)
	}
	t.Logf("replay of %d packets on one core: %.0f packets/s of CPU time, nDPI %.0f; ratio median %.2f (bar 1.5), %.2f to %.2f in 5 turns",
		packets, ours[2], theirs[2], ratios[2], ratios[0], ratios[4])
}

var captureName = regexp.MustCompile(`\.(pcap|pcapng|cap)$`)

// mergedCaptures joins the Ethernet captures below dir into one file, times over.
func mergedCaptures(t *testing.T, dir string, times int) (path string, packets int) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "merged.pcap")
	out, err := os.Create(path) //nolint:gosec // in the test's own folder
	if err != nil {
		t.Fatal(err)
	}
	w, err := pcapfile.NewWriter(out, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	if err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && captureName.MatchString(strings.ToLower(p)) {
			files = append(files, p)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	now := int64(1_700_000_000e9)
	for range times {
		for _, file := range files {
			r, err := pcapfile.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			before := int64(0) // of the capture's own clock
			for {
				rec, err := r.Next(nil)
				if err != nil {
					if !errors.Is(err, io.EOF) {
						t.Logf("%s ends early: %v", filepath.Base(file), err)
					}
					break
				}
				if rec.LinkType != 1 {
					continue
				}
				if before != 0 {
					now += min(max(rec.TimeNs-before, 0), int64(10*time.Second)) // a clock or two is damaged
				}
				before = rec.TimeNs
				if err := w.Write(now, rec.Data, rec.WireLen); err != nil {
					t.Fatal(err)
				}
				packets++
			}
			_ = r.Close()
		}
		now += int64(10 * time.Minute)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	return path, packets
}
