package afxdp_test

import (
	"fmt"
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

// BenchmarkForward bridges two links, from one to the other, while one core makes frames as fast as it can: with frame
// memory shared, and copied. b.N does not matter, as for BenchmarkReceive. The CPU time of the forwarding thread has the
// kernel's part of transmitting in it.
func BenchmarkForward(b *testing.B) {
	for _, size := range []int{60, 1514} {
		for _, shared := range []bool{true, false} {
			name := "copied"
			if shared {
				name = "shared"
			}
			b.Run(fmt.Sprintf("%d/%s", size, name), func(b *testing.B) { forward(b, size, shared) })
		}
	}
}

func forward(b *testing.B, size int, shared bool) {
	near, far := afxdptest.NewLinks(b)
	var from, to afxdp.Socket
	if cfg := afxdp.DefaultConfig(near.Near, 0); shared {
		p := near.OpenPair(b, far, cfg)
		if p.Copies != nil {
			b.Fatal(p.Copies)
		}
		from, to = p.A, p.B
	} else {
		from, to = near.Open(b, cfg), far.Open(b, afxdp.DefaultConfig(far.Near, 0))
	}
	var buf [2048]byte
	const count = 2_000_000
	var done atomic.Bool
	unpin := afxdptest.Pin(b, 0)
	defer unpin()
	cpu := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	frames := make([]afxdp.Frame, 64)
	start, used := time.Now(), cpu()
	go func() {
		if err := near.Flood(b, 1, afxdptest.Frame(buf[:], 1, size), count); err != nil {
			b.Error(err)
		}
		done.Store(true)
	}()
	forwarded := 0
	for !done.Load() {
		n := from.Receive(frames)
		for left := frames[:n]; len(left) > 0; {
			k, err := from.Forward(left, to)
			if err != nil {
				b.Fatal(err)
			}
			if err := to.Flush(); err != nil {
				b.Fatal(err)
			}
			left = left[k:]
			forwarded += k
		}
		from.Release()
	}
	used = cpu() - used
	b.ReportMetric(float64(forwarded)/time.Since(start).Seconds()/1e6, "Mpps")
	b.ReportMetric(float64(used.Nanoseconds())/float64(forwarded), "CPU-ns/frame")
	b.ReportMetric(0, "ns/op")
}
