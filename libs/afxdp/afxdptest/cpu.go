package afxdptest

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// Pin keeps the calling goroutine on one CPU until the returned function runs; where the CPU is missing it
// only locks the thread.
func Pin(t testing.TB, cpu int) func() {
	t.Helper()
	runtime.LockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Logf("CPU %d cannot be had: %v", cpu, err)
	}
	return func() {
		_ = unix.SchedSetaffinity(0, &before)
		runtime.UnlockOSThread()
	}
}
