package xdp

import (
	"net/netip"
	"runtime"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// TestMeterOfManyCPUs: packets of one flow that come to several CPUs at once are all counted.
func TestMeterOfManyCPUs(t *testing.T) {
	r := newRig(t, 1)
	g := r.open(t, Options{Mode: ModeHost})
	p := program(t, g)
	key := FlowKey{Src: netip.MustParseAddr("192.0.2.1").As16(), Dst: netip.MustParseAddr("198.51.100.7").As16(), SrcPort: 1000, DstPort: 80, Proto: 6}
	must(t, g.AllowFlow([]FlowKey{key}))
	frame := tcp("192.0.2.1", "198.51.100.7", "A").frame(t)
	const each = 200_000
	cpus := min(runtime.NumCPU(), 4)
	var wg sync.WaitGroup
	for cpu := range cpus {
		wg.Add(1)
		go func() {
			defer wg.Done()
			runtime.LockOSThread() // not unlocked: the thread ends with its CPU
			var set unix.CPUSet
			set.Set(cpu)
			if err := unix.SchedSetaffinity(0, &set); err != nil {
				t.Error(err)
				return
			}
			if _, err := p.Run(&ebpf.RunOptions{Data: frame, Repeat: each}); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	meters, err := g.AllowedFlows(nil)
	must(t, err)
	want := uint64(cpus * each)
	if len(meters) != 1 || meters[0].Packets != want || meters[0].Bytes != want*uint64(len(frame)) {
		t.Errorf("%+v, want %d packets of %d bytes", meters, want, len(frame))
	}
}
