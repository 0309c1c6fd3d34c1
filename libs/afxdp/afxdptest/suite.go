package afxdptest

import (
	"bytes"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/afxdp"
)

const patience = 5 * time.Second

// Run runs the suite over a backend.
func Run(t *testing.T, backend string) {
	RequireRoot(t)
	for _, c := range []struct {
		name string
		f    func(*testing.T, *Link, afxdp.Config)
	}{
		{"receives what the peer sent, in order", receivesAll},
		{"sends to the peer, in order", sends},
		{"keeps frames until release", func(t *testing.T, l *Link, cfg afxdp.Config) {
			cfg.Frames = 256
			s := l.Open(t, cfg)
			holds(t, l, s, func() { // a transmit half in use must not touch them
				out := [][]byte{make([]byte, 1000)}
				for range 500 {
					sendAll(t, s, out)
				}
			})
		}},
		{"counts what a full ring loses and recovers", overflows},
		{"accepts as many frames as the tx ring takes", fills},
		{"refuses frames larger than a frame", tooLarge},
		{"serves two goroutines, one a direction", duplex},
		{"allocates nothing a frame", allocates},
		{"waits", func(t *testing.T, l *Link, cfg afxdp.Config) { waits(t, l, l.Open(t, cfg)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := NewLink(t, 1)
			cfg := afxdp.DefaultConfig(l.Near, 0)
			cfg.Backend = backend
			c.f(t, l, cfg)
		})
		t.Run("one of a pair "+c.name, func(t *testing.T) {
			l, other := NewLinks(t)
			l.pair = other
			cfg := afxdp.DefaultConfig(l.Near, 0)
			cfg.Backend = backend
			c.f(t, l, cfg)
		})
	}
	t.Run("frees its queue on close", func(t *testing.T) {
		l := NewLink(t, 1)
		cfg := afxdp.DefaultConfig(l.Near, 0)
		cfg.Backend = backend
		reopens(t, l, cfg)
	})
	t.Run("binds every queue", func(t *testing.T) {
		l := NewLink(t, 2)
		cfg := afxdp.DefaultConfig(l.Near, 0)
		cfg.Backend = backend
		queues(t, l, cfg)
	})
}

// RunReceiver runs the part of the suite that only receives. open opens a receiver of the link's near end, which has no XDP
// program, with room for 100 frames that arrive one by one.
func RunReceiver(t *testing.T, open func(t *testing.T, l *Link) afxdp.Receiver) {
	RequireRoot(t)
	for _, c := range []struct {
		name string
		f    func(*testing.T, *Link, afxdp.Receiver)
	}{
		{"receives what the peer sent, in order", receives},
		{"keeps frames until release", func(t *testing.T, l *Link, s afxdp.Receiver) { holds(t, l, s, func() {}) }},
		{"allocates nothing a frame", func(t *testing.T, l *Link, s afxdp.Receiver) {
			out := Frame(make([]byte, 2048), 1, 100)
			frames := make([]afxdp.Frame, 64)
			if n := testing.AllocsPerRun(200, func() {
				_ = l.Inject(out)
				s.Receive(frames)
				s.Release()
			}); n > 2 { // the packet socket's address of Inject
				t.Fatalf("%v allocations a round", n)
			}
		}},
		{"waits", waits},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := NewPlainLink(t, 1)
			c.f(t, l, open(t, l))
		})
	}
}

// lengths are frame lengths to cycle through: Ethernet's smallest and largest, and odd ones.
var lengths = []int{60, 61, 64, 127, 512, 1000, 1499, 1514}

func receivesAll(t *testing.T, l *Link, cfg afxdp.Config) {
	s := l.Open(t, cfg)
	receives(t, l, s)
	st, err := s.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if st.Lost() != 0 || st.RxInvalid != 0 {
		t.Fatalf("statistics after a clean run: %+v", st)
	}
}

func receives(t *testing.T, l *Link, s afxdp.Receiver) {
	const total = 5000
	got := 0
	var buf, want [2048]byte
	frames := make([]afxdp.Frame, 64)
	take := func() {
		n := s.Receive(frames)
		for _, f := range frames[:n] {
			i, ok := Number(f.Data)
			if !ok {
				continue
			}
			if i != got {
				t.Fatalf("frame %d arrived where %d was due", i, got)
			}
			if w := Frame(want[:], i, lengths[i%len(lengths)]); !bytes.Equal(f.Data, w) {
				t.Fatalf("frame %d differs: %d bytes, want %d", i, len(f.Data), len(w))
			}
			got++
		}
		s.Release()
	}
	for i := range total {
		if err := l.Inject(Frame(buf[:], i, lengths[i%len(lengths)])); err != nil {
			t.Fatal(err)
		}
		if i%50 == 0 {
			take()
		}
	}
	for end := time.Now().Add(patience); got < total && time.Now().Before(end); {
		if _, err := s.Wait(10 * time.Millisecond); err != nil {
			t.Fatal(err)
		}
		take()
	}
	if got != total {
		t.Fatalf("received %d of %d frames", got, total)
	}
}

func sends(t *testing.T, l *Link, cfg afxdp.Config) {
	s := l.Open(t, cfg)
	const total, burst = 5000, 50
	bufs := make([][2048]byte, burst)
	frames := make([][]byte, burst)
	var buf, want [2048]byte
	for sent := 0; sent < total; {
		for j := range frames {
			i := sent + j
			frames[j] = Frame(bufs[j][:], i, lengths[i%len(lengths)])
		}
		sendAll(t, s, frames)
		for j := range frames {
			n, err := l.Arrived(buf[:], patience)
			if err != nil {
				t.Fatalf("frame %d: %v", sent+j, err)
			}
			i, _ := Number(buf[:n])
			if i != sent+j {
				t.Fatalf("frame %d arrived where %d was due", i, sent+j)
			}
			if w := Frame(want[:], i, lengths[i%len(lengths)]); !bytes.Equal(buf[:n], w) {
				t.Fatalf("frame %d differs: %d bytes, want %d", i, n, len(w))
			}
		}
		sent += burst
	}
	if st, err := s.Stats(); err != nil || st.TxInvalid != 0 {
		t.Fatalf("statistics: %+v, %v", st, err)
	}
}

// sendAll sends every frame, with as many flushes as it takes.
func sendAll(t testing.TB, s afxdp.Socket, frames [][]byte) {
	t.Helper()
	for end := time.Now().Add(patience); len(frames) > 0; {
		n, err := s.Send(frames)
		if err != nil {
			t.Fatal(err)
		}
		frames = frames[n:]
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(end) {
			t.Fatalf("%d frames still not accepted", len(frames))
		}
	}
}

// holds keeps 100 frames while disturb runs.
func holds(t *testing.T, l *Link, s afxdp.Receiver, disturb func()) {
	var buf, want [2048]byte
	var held []afxdp.Frame
	one := make([]afxdp.Frame, 1)
	for i := range 100 {
		if err := l.Inject(Frame(buf[:], i, 200)); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(patience); time.Now().Before(end); {
			if s.Receive(one) == 1 {
				if _, ok := Number(one[0].Data); ok {
					held = append(held, one[0])
					break
				}
			}
		}
	}
	if len(held) != 100 {
		t.Fatalf("received %d of 100 frames", len(held))
	}
	disturb()
	for i, f := range held {
		if w := Frame(want[:], i, 200); !bytes.Equal(f.Data, w) {
			t.Fatalf("frame %d changed before release", i)
		}
	}
	s.Release()
}

func overflows(t *testing.T, l *Link, cfg afxdp.Config) {
	cfg.Frames, cfg.RxRing = 64, 64
	s := l.Open(t, cfg)
	var buf [2048]byte
	frames := make([]afxdp.Frame, 16)
	for round := range 3 {
		before, err := s.Stats()
		if err != nil {
			t.Fatal(err)
		}
		const total = 500
		for i := range total {
			if err := l.Inject(Frame(buf[:], i, 100)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(20 * time.Millisecond)
		got := 0
		for n := s.Receive(frames); n > 0; n = s.Receive(frames) {
			got += n
		}
		s.Release()
		after, err := s.Stats()
		if err != nil {
			t.Fatal(err)
		}
		lost := int(after.Lost() - before.Lost()) //nolint:gosec // a few hundred
		// The kernel's own frames on the link may add a few.
		if sum := got + lost; sum < total || sum > total+20 || got != 64 {
			t.Fatalf("round %d: received %d, lost %d of %d sent with 64 frames of memory; %+v", round, got, lost, total, after)
		}
		if after.RxFillEmpty == before.RxFillEmpty && after.RxRingFull == before.RxRingFull {
			t.Fatalf("round %d: no reason is counted: %+v", round, after)
		}
	}
}

func fills(t *testing.T, l *Link, cfg afxdp.Config) {
	cfg.TxRing = 64
	s := l.Open(t, cfg)
	const total = 300
	bufs := make([][128]byte, total)
	frames := make([][]byte, total)
	for i := range frames {
		frames[i] = Frame(bufs[i][:], i, 100)
	}
	n, err := s.Send(frames)
	if err != nil {
		t.Fatal(err)
	}
	if n != 64 {
		t.Fatalf("an empty ring of 64 accepted %d frames", n)
	}
	sendAll(t, s, frames[n:])
	var buf [2048]byte
	for i := range frames {
		k, err := l.Arrived(buf[:], patience)
		if err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
		if j, _ := Number(buf[:k]); j != i {
			t.Fatalf("frame %d arrived where %d was due", j, i)
		}
	}
}

func tooLarge(t *testing.T, l *Link, cfg afxdp.Config) {
	s := l.Open(t, cfg)
	var buf [2048]byte
	good := Frame(buf[:], 7, 100)
	n, err := s.Send([][]byte{good, make([]byte, cfg.FrameSize+1), good})
	if n != 1 || !errors.Is(err, afxdp.ErrFrameTooLarge) {
		t.Fatalf("Send returned %d, %v; want 1 and ErrFrameTooLarge", n, err)
	}
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	var in [2048]byte
	if k, err := l.Arrived(in[:], patience); err != nil || !bytes.Equal(in[:k], good) {
		t.Fatalf("the frame before it did not arrive: %v", err)
	}
}

func duplex(t *testing.T, l *Link, cfg afxdp.Config) {
	s := l.Open(t, cfg)
	const total = 3000
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		var buf [2048]byte
		for i := range total {
			f := [][]byte{Frame(buf[:], i, 300)}
			for end := time.Now().Add(patience); len(f) > 0 && time.Now().Before(end); {
				n, err := s.Send(f)
				if err != nil {
					t.Error(err)
					return
				}
				f = f[n:]
				if err := s.Flush(); err != nil {
					t.Error(err)
					return
				}
			}
		}
	}()
	var buf, in [2048]byte
	frames := make([]afxdp.Frame, 32)
	received, arrived := 0, 0
	for i := range total {
		if err := l.Inject(Frame(buf[:], i, 300)); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(patience); received <= i && time.Now().Before(end); {
			for _, f := range frames[:s.Receive(frames)] {
				if _, ok := Number(f.Data); ok {
					received++
				}
			}
			s.Release()
		}
		for arrived <= i {
			if _, err := l.Arrived(in[:], patience); err != nil {
				t.Fatalf("frame %d: %v", arrived, err)
			}
			arrived++
		}
	}
	wg.Wait()
	if received != total || arrived != total {
		t.Fatalf("received %d and delivered %d of %d", received, arrived, total)
	}
}

func allocates(t *testing.T, l *Link, cfg afxdp.Config) {
	s := l.Open(t, cfg)
	var buf, in [2048]byte
	out := [][]byte{Frame(buf[:], 1, 100)}
	frames := make([]afxdp.Frame, 64)
	if n := testing.AllocsPerRun(200, func() {
		_, _ = s.Send(out)
		_ = s.Flush()
		_ = l.Inject(out[0])
		s.Receive(frames)
		s.Release()
	}); n > 2 { // the packet socket's address of Inject
		t.Fatalf("%v allocations a round", n)
	}
	_, _ = l.Arrived(in[:], patience)
}

func waits(t *testing.T, l *Link, s afxdp.Receiver) {
	frames := make([]afxdp.Frame, 64)
	for range 5 {
		// Whatever the kernel sent by itself is taken first.
		for ok := true; ok; {
			var err error
			if ok, err = s.Wait(20 * time.Millisecond); err != nil {
				t.Fatal(err)
			}
			s.Receive(frames)
			s.Release()
		}
		go func() {
			var buf [2048]byte
			time.Sleep(20 * time.Millisecond)
			_ = l.Inject(Frame(buf[:], 1, 100))
		}()
		start := time.Now()
		ok, err := s.Wait(patience)
		if err != nil || !ok {
			t.Fatalf("Wait returned %v, %v with a frame on the way", ok, err)
		}
		if d := time.Since(start); d > time.Second {
			t.Fatalf("woke after %v", d)
		}
		s.Receive(frames)
		s.Release()
	}
}

func reopens(t *testing.T, l *Link, cfg afxdp.Config) {
	var buf [2048]byte
	frames := make([]afxdp.Frame, 64)
	for round := range 5 {
		s, err := afxdp.Open(cfg)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if round == 0 {
			if second, err := afxdp.Open(cfg); !errors.Is(err, afxdp.ErrQueueBusy) {
				if err == nil {
					_ = second.Close()
				}
				t.Fatalf("a second socket on the queue: %v, want ErrQueueBusy", err)
			}
		}
		l.Register(t, cfg.Queue, s)
		if err := l.Inject(Frame(buf[:], round, 100)); err != nil {
			t.Fatal(err)
		}
		found := false
		for end := time.Now().Add(patience); !found && time.Now().Before(end); {
			if _, err := s.Wait(10 * time.Millisecond); err != nil {
				t.Fatal(err)
			}
			for _, f := range frames[:s.Receive(frames)] {
				if i, ok := Number(f.Data); ok && i == round {
					found = true
				}
			}
			s.Release()
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatalf("second close: %v", err)
		}
		if !found {
			t.Fatalf("round %d: the frame did not arrive", round)
		}
	}
}

func queues(t *testing.T, l *Link, cfg afxdp.Config) {
	var buf [2048]byte
	sockets := make([]afxdp.Socket, 2)
	for q := range sockets {
		cfg.Queue = q
		sockets[q] = l.Open(t, cfg)
	}
	frames := make([]afxdp.Frame, 64)
	for q := range sockets {
		// The peer's frames arrive on the queue of the CPU they were sent on.
		unpin := Pin(t, q)
		if err := l.Inject(Frame(buf[:], q, 100)); err != nil {
			t.Fatal(err)
		}
		unpin()
	}
	seen := 0
	for end := time.Now().Add(patience); seen < 2 && time.Now().Before(end); {
		for _, s := range sockets {
			for _, f := range frames[:s.Receive(frames)] {
				if _, ok := Number(f.Data); ok {
					seen++
				}
			}
			s.Release()
		}
	}
	if seen != 2 {
		t.Fatalf("%d of 2 frames arrived", seen)
	}
	cfg.Queue = 2
	if _, err := afxdp.Open(cfg); !errors.Is(err, afxdp.ErrNoQueue) {
		t.Fatalf("queue 2 of 2: %v, want ErrNoQueue", err)
	}
}
