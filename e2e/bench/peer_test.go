package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
)

// TestBenchFastNetMon compares, for the same SYN floods in turns, our first dropped packet with FastNetMon's call of its script,
// which is where somebody else would begin to drop. Both have the threshold of their defaults. FastNetMon looks once a second, so the
// floods begin at moments spread over one.
func TestBenchFastNetMon(t *testing.T) {
	needBench(t)
	fastnetmon, err := exec.LookPath("fastnetmon")
	rig.Need(t, err == nil, "fastnetmon (apt-get install fastnetmon)")
	var ours, theirs []float64
	n := runs(10)
	for seed := 1; seed <= n; seed++ {
		for _, a := range demo(t, seed, pace{floodPPS, 2 * time.Second, time.Second}, []string{loadgen.SYNFlood}) {
			ours = append(ours, a.FirstDropMs)
		}
		theirs = append(theirs, banned(t, fastnetmon, seed, time.Duration(seed-1)*time.Second/time.Duration(n)))
	}
	slices.Sort(ours)
	slices.Sort(theirs)
	if len(ours) == 0 {
		t.Fatal("no flood was stopped")
	}
	o, f := ours[len(ours)/2], theirs[len(theirs)/2]
	t.Logf("first packet of a SYN flood of %d packets/s asked: to our first drop median %.0f ms, to FastNetMon's script %.0f ms, ratio %.1f (bar 5); %d runs: %.0f; %.0f",
		floodPPS, o, f, f/o, n, ours, theirs)
}

// banned is how many ms after a flood's first packet FastNetMon calls its script. The flood begins 3 s and phase after its start.
func banned(t *testing.T, fastnetmon string, seed int, phase time.Duration) (ms float64) {
	t.Helper()
	t.Run(fmt.Sprintf("fastnetmon seed %d", seed), func(t *testing.T) {
		link := rig.Link(t, loadgen.LinkOptions{Prefix: "tgben", Sink: true})
		dir := t.TempDir()
		called := filepath.Join(dir, "called")
		write := func(name, text string, mode os.FileMode) string {
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, []byte(text), mode); err != nil {
				t.Fatal(err)
			}
			return path
		}
		// A file at a time of its own shows when the script ran, to the nanosecond.
		script := write("script.sh", "#!/bin/sh\ndate +%s%N >> "+called+"\n", 0o700)
		packaged, err := os.ReadFile("/etc/fastnetmon.conf")
		if err != nil {
			t.Fatal(err)
		}
		conf := string(packaged)
		for key, value := range map[string]string{
			"interfaces": link.PortA, "mirror_afpacket": "on", "disable_usage_report": "on", "average_calculation_time": "1", "enable_api": "off",
			"networks_list_path": write("networks", loadgen.VictimAddr.String()+"/24\n", 0o600), "white_list_path": write("whitelist", "", 0o600),
			"notify_script_path": script, "cli_stats_file_path": filepath.Join(dir, "stats"), "cli_stats_ipv6_file_path": filepath.Join(dir, "stats6"),
			"monitor_local_ip_addresses": "off",
		} {
			conf = regexp.MustCompile(`(?m)^`+key+` = .*$`).ReplaceAllString(conf, key+" = "+value)
		}
		p := rig.Start(t, "/usr/bin/taskset", nil, "-c", "0", fastnetmon, "--configuration_file", write("fastnetmon.conf", conf, 0o600),
			"--log_to_console", "--disable_pid_logic")
		time.Sleep(3*time.Second + phase)
		frames, err := link.Attack(loadgen.SYNFlood, uint64(seed)) //nolint:gosec // small
		if err != nil {
			t.Fatal(err)
		}
		sender, err := link.Sender()
		if err != nil {
			t.Fatal(err)
		}
		defer closed(t, sender)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		var sent loadgen.Sent
		onLastCPU(t, func() (err error) {
			sent, err = sender.Send(ctx, frames.Next, floodPPS, 0)
			return err
		})
		var line string
		err = rig.Eventually(5*time.Second, func() error {
			b, err := os.ReadFile(called) //nolint:gosec // in the test's folder
			if err == nil {
				line, _, _ = strings.Cut(string(b), "\n")
			}
			return err
		})
		if err != nil {
			t.Fatalf("FastNetMon did not call its script: %v", err)
		}
		at, err := strconv.ParseInt(line, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		ms = float64(at-xdp.MonotonicToUnix(sent.FirstNs).UnixNano()) / 1e6
		if err := p.Stop(15 * time.Second); err != nil {
			t.Logf("fastnetmon: %v", err)
		}
	})
	return ms
}
