package rig

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

// Memory is a running process's resident memory in MiB, now and at its highest (proc_pid_status(5)).
func Memory(t *testing.T, pid int) (now, peak float64) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		into := map[string]*float64{"VmRSS": &now, "VmHWM": &peak}[name]
		if into == nil {
			continue
		}
		kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
		if err != nil {
			t.Fatalf("process %d: %q: %v", pid, line, err)
		}
		*into = kib / 1024
	}
	if now == 0 {
		t.Fatalf("process %d has ended", pid)
	}
	return now, peak
}
