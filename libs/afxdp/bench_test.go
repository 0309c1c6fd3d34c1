package afxdp_test

import (
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tidegate-mesh/tidegate/libs/afxdp"
	"github.com/tidegate-mesh/tidegate/libs/afxdp/afxdptest"
)

// BenchmarkReceive offers 60-byte frames as fast as one core makes them and drops them in user space. b.N
// does not matter: each run is one flood. Figures are only comparable within one run of the benchmark.
func BenchmarkReceive(b *testing.B) {
	for _, backend := range []string{afxdp.Native, afxdp.Asavie} {
		b.Run(backend, func(b *testing.B) {
			l := afxdptest.NewLink(b, 1)
			cfg := afxdp.DefaultConfig(l.Near, 0)
			cfg.Backend = backend
			s := l.Open(b, cfg)
			var buf [2048]byte
			const count = 10_000_000
			var done atomic.Bool
			unpin := afxdptest.Pin(b, 0)
			defer unpin()
			start := time.Now()
			go func() {
				if err := l.Flood(b, 1, afxdptest.Frame(buf[:], 1, 60), count); err != nil {
					b.Error(err)
				}
				done.Store(true)
			}()
			frames := make([]afxdp.Frame, 64)
			got := 0
			for quiet := 0; quiet < 3; {
				n := s.Receive(frames)
				got += n
				s.Release()
				if n == 0 && done.Load() {
					time.Sleep(time.Millisecond)
					quiet++
				}
			}
			d := time.Since(start)
			st, err := s.Stats()
			if err != nil {
				b.Fatal(err)
			}
			if sum := uint64(got) + st.Lost(); sum < count { //nolint:gosec // a count
				b.Errorf("received %d + lost %d is less than %d sent", got, st.Lost(), count)
			}
			b.ReportMetric(float64(got)/d.Seconds()/1e6, "Mpps")
			b.ReportMetric(100*float64(st.Lost())/count, "%lost")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkSend transmits 60-byte frames towards a packet socket that does not read them.
func BenchmarkSend(b *testing.B) {
	for _, backend := range []string{afxdp.Native, afxdp.Asavie} {
		b.Run(backend, func(b *testing.B) {
			l := afxdptest.NewLink(b, 1)
			cfg := afxdp.DefaultConfig(l.Near, 0)
			cfg.Backend = backend
			s := l.Open(b, cfg)
			var buf [64][64]byte
			frames := make([][]byte, 64)
			for i := range frames {
				frames[i] = afxdptest.Frame(buf[i][:], i, 60)
			}
			const count = 1_000_000
			start := time.Now()
			for sent := 0; sent < count; {
				n, err := s.Send(frames)
				if err != nil {
					b.Fatal(err)
				}
				if err := s.Flush(); err != nil {
					b.Fatal(err)
				}
				sent += n
			}
			b.ReportMetric(count/time.Since(start).Seconds()/1e6, "Mpps")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkForward bridges two links, with frame memory shared and copied in turns. An iteration is a full ring: it is filled, then
// forwarded, and the latter's CPU time is what counts, the median of all iterations, with the kernel's part of transmitting in it. Other
// work on the machine disturbs that little, as far as caches go.
func BenchmarkForward(b *testing.B) {
	for _, size := range []int{60, 512, 1514} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			ways := []*forwardWay{openForward(b, true), openForward(b, false)}
			for b.Loop() {
				ways[0].round(b, size)
				ways[1].round(b, size)
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(ways[0].median(), "shared-CPU-ns/frame")
			b.ReportMetric(ways[1].median(), "copied-CPU-ns/frame")
		})
	}
}

type forwardWay struct {
	near     *afxdptest.Link
	from, to afxdp.Socket
	frames   []afxdp.Frame
	costs    []float64 // CPU time in ns for a frame
}

func openForward(b *testing.B, shared bool) *forwardWay {
	prefix := "tgxc"
	if shared {
		prefix = "tgxs"
	}
	near, far := afxdptest.NewLinksNamed(b, prefix)
	w := &forwardWay{near: near, frames: make([]afxdp.Frame, 64)}
	if cfg := afxdp.DefaultConfig(near.Near, 0); shared {
		p := near.OpenPair(b, far, cfg)
		if p.Copies != nil {
			b.Fatal(p.Copies)
		}
		w.from, w.to = p.A, p.B
	} else {
		w.from, w.to = near.Open(b, cfg), far.Open(b, afxdp.DefaultConfig(far.Near, 0))
	}
	return w
}

func (w *forwardWay) round(b *testing.B, size int) {
	var buf [2048]byte
	const count = 2048
	if err := w.near.Flood(b, 1, afxdptest.Frame(buf[:], 1, size), count); err != nil {
		b.Fatal(err)
	}
	unpin := afxdptest.Pin(b, 0)
	defer unpin()
	forwarded, used := 0, threadTime(b)
	for {
		n := w.from.Receive(w.frames)
		if n == 0 {
			break
		}
		for left := w.frames[:n]; len(left) > 0; {
			k, err := w.from.Forward(left, w.to)
			if err != nil {
				b.Fatal(err)
			}
			if err := w.to.Flush(); err != nil {
				b.Fatal(err)
			}
			left = left[k:]
			forwarded += k
		}
		w.from.Release()
	}
	if used = threadTime(b) - used; forwarded < count/2 {
		b.Fatalf("%d of %d frames arrived", forwarded, count)
	}
	w.costs = append(w.costs, float64(used.Nanoseconds())/float64(forwarded))
}

func (w *forwardWay) median() float64 {
	slices.Sort(w.costs)
	return w.costs[len(w.costs)/2]
}

// threadTime is the CPU time of the calling thread.
func threadTime(b *testing.B) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		b.Fatal(err)
	}
	return time.Duration(ts.Nano())
}
