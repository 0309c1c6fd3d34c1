package afxdptest

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/afxdp"
)

// Inventory numbers the frames that user space has of a socket's memory, and says how many the memory has; 0 where the
// backend does not show them.
type Inventory func(s afxdp.Socket) (held, spare []int, all int)

// RunPair runs the suite of forwarding between two sockets. shares is whether the backend has them share frame memory.
func RunPair(t *testing.T, backend string, shares bool, inventory Inventory) {
	RequireRoot(t)
	for _, c := range []struct {
		name string
		f    func(*testing.T, *bridge)
	}{
		{"forwards both ways, in order", forwards},
		{"leaves what the other does not take", refusesForward},
		{"keeps forwarded frames readable until release", readable},
		{"loses no receive frame to a port that is down", downPort},
		{"any order of calls", anyOrder},
		{"two goroutines, one a direction", twoWays},
		{"outlives the other", outlives},
		{"allocates nothing", func(t *testing.T, b *bridge) {
			var buf [2048]byte
			out := Frame(buf[:], 1, 100)
			frames := make([]afxdp.Frame, 64)
			if n := testing.AllocsPerRun(200, func() {
				_ = b.links[0].Inject(out)
				n := b.sockets[0].Receive(frames)
				_, _ = b.sockets[0].Forward(frames[:n], b.sockets[1])
				_ = b.sockets[1].Flush()
				b.sockets[0].Release()
			}); n > 2 { // the packet socket's address of Inject
				t.Fatalf("%v allocations a round", n)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, other := NewLinks(t)
			cfg := afxdp.DefaultConfig(l.Near, 0)
			cfg.Backend, cfg.Frames, cfg.TxRing = backend, 256, 64
			p := l.OpenPair(t, other, cfg)
			if (p.Copies == nil) != shares {
				t.Fatalf("frame memory is shared: %v (%v), want %v", p.Copies == nil, p.Copies, shares)
			}
			b := &bridge{
				links: [2]*Link{l, other}, sockets: [2]afxdp.Socket{p.A, p.B}, frames: cfg.Frames, tx: cfg.TxRing,
				shares: shares, inventory: inventory,
			}
			c.f(t, b)
			b.account(t)
		})
	}
	t.Run("frees its queues on close", func(t *testing.T) { reopensPair(t, backend) })
}

// bridge is a pair on two links.
type bridge struct {
	links      [2]*Link
	sockets    [2]afxdp.Socket
	closed     [2]bool
	frames, tx int // of each socket
	shares     bool
	inventory  Inventory
}

// account checks that every frame of the memory is where it belongs, once: each receive half can still hold all of its
// frames, all different, and each transmit half has all of its own back.
func (b *bridge) account(t *testing.T) {
	t.Helper()
	frames := make([]afxdp.Frame, 64)
	var buf [2048]byte
	known := map[*byte]bool{}
	var numbers []int
	all := 0
	for side, s := range b.sockets {
		if b.closed[side] {
			continue
		}
		for s.Receive(frames) > 0 {
			s.Release()
		}
		s.Release()
		for i := range b.frames + 50 {
			if err := b.links[side].Inject(Frame(buf[:], i, 100)); err != nil {
				t.Fatal(err)
			}
		}
		got := 0
		for end := time.Now().Add(patience); got < b.frames && time.Now().Before(end); {
			n := s.Receive(frames)
			for _, f := range frames[:n] {
				known[&f.Data[0]] = true
			}
			got += n
		}
		time.Sleep(5 * time.Millisecond)
		if more := s.Receive(frames); got != b.frames || more != 0 {
			t.Errorf("side %d receives %d+%d frames without a release, of %d", side, got, more, b.frames)
		}
		var held, spare []int
		for end := time.Now().Add(patience); time.Now().Before(end); {
			if err := s.Flush(); err != nil {
				t.Fatal(err)
			}
			held, spare, all = b.inventory(s)
			if all == 0 || len(spare) == b.tx {
				break
			}
			time.Sleep(time.Millisecond)
		}
		if all > 0 && (len(held) != b.frames || len(spare) != b.tx) {
			t.Errorf("side %d has %d receive and %d transmit frames, want %d and %d", side, len(held), len(spare), b.frames, b.tx)
		}
		numbers = append(append(numbers, held...), spare...)
	}
	if open := 2 - count(b.closed[:]); len(known) != open*b.frames {
		t.Errorf("%d different frames were received, want %d", len(known), open*b.frames)
	}
	if all > 0 && count(b.closed[:]) == 0 && b.shares {
		slices.Sort(numbers)
		for i := range all {
			if i >= len(numbers) || numbers[i] != i {
				t.Fatalf("of %d frames of the memory %d are there; the first fault is at %d: %v", all, len(numbers), i, numbers)
			}
		}
	}
	for side, s := range b.sockets {
		if b.closed[side] {
			continue
		}
		st, err := s.Stats()
		if err != nil || st.RxInvalid != 0 || st.TxInvalid != 0 {
			t.Errorf("side %d: bad descriptors: %+v, %v", side, st, err)
		}
	}
}

func count(all []bool) (n int) {
	for _, b := range all {
		if b {
			n++
		}
	}
	return n
}

// arrives reads frame i at a link's far end.
func (b *bridge) arrives(t *testing.T, side, i, length int) {
	t.Helper()
	var buf, want [2048]byte
	n, err := b.links[side].Arrived(buf[:], patience)
	if err != nil {
		t.Fatalf("frame %d: %v", i, err)
	}
	if w := Frame(want[:], i, length); !bytes.Equal(buf[:n], w) {
		got, _ := Number(buf[:n])
		t.Fatalf("frame %d of %d bytes arrived where %d of %d bytes was due, or differs", got, n, i, length)
	}
}

// take receives n frames of the suite, without a release; those of the kernel are released.
func (b *bridge) take(t *testing.T, side, n int) []afxdp.Frame {
	t.Helper()
	var all []afxdp.Frame
	one := make([]afxdp.Frame, 1)
	for end := time.Now().Add(patience); len(all) < n; {
		if b.sockets[side].Receive(one) == 1 {
			if _, ok := Number(one[0].Data); ok {
				all = append(all, one[0])
			}
		} else if time.Now().After(end) {
			t.Fatalf("received %d of %d frames", len(all), n)
		}
	}
	return all
}

func (b *bridge) inject(t *testing.T, side, from, n, length int) {
	t.Helper()
	var buf [2048]byte
	for i := range n {
		if err := b.links[side].Inject(Frame(buf[:], from+i, length)); err != nil {
			t.Fatal(err)
		}
	}
}

// forwards sends many times more frames than there is memory for, in turns of both directions.
func forwards(t *testing.T, b *bridge) {
	const burst = 32
	for i := 0; i < 200*burst; i += burst {
		side, length := (i/burst)%2, lengths[(i/burst)%len(lengths)]
		b.inject(t, side, i, burst, length)
		frames := b.take(t, side, burst)
		if n, err := b.sockets[side].Forward(frames, b.sockets[1-side]); n != burst || err != nil {
			t.Fatalf("Forward took %d of %d frames: %v", n, burst, err)
		}
		if err := b.sockets[1-side].Flush(); err != nil {
			t.Fatal(err)
		}
		b.sockets[side].Release()
		for j := range burst {
			b.arrives(t, 1-side, i+j, length)
		}
	}
}

// refusesForward offers more than the transmit ring takes, and frames that are no longer the caller's.
func refusesForward(t *testing.T, b *bridge) {
	from, to := b.sockets[0], b.sockets[1]
	b.inject(t, 0, 0, b.tx+30, 200)
	frames := b.take(t, 0, b.tx+30)
	n, err := from.Forward(frames, to)
	if n != b.tx || err != nil {
		t.Fatalf("Forward took %d frames of %d into an empty ring of %d: %v", n, len(frames), b.tx, err)
	}
	if n, err := from.Forward(frames[n:], to); b.shares && (n != 0 || err != nil) { // asavie transmits at once
		t.Fatalf("Forward took %d frames into a full ring: %v", n, err)
	}
	if err := to.Flush(); err != nil {
		t.Fatal(err)
	}
	for i := range b.tx {
		b.arrives(t, 1, i, 200)
	}
	if err := to.Flush(); err != nil {
		t.Fatal(err)
	}
	if b.shares {
		if n, err := from.Forward(frames, to); n != 0 || !errors.Is(err, afxdp.ErrNotHeld) {
			t.Fatalf("Forward took %d frames a second time: %v", n, err)
		}
	}
	from.Release() // also of the 30 that were not taken
	if b.shares {
		if n, err := from.Forward(frames[b.tx:], to); n != 0 || !errors.Is(err, afxdp.ErrNotHeld) {
			t.Fatalf("Forward took %d frames after their release: %v", n, err)
		}
	}
}

func readable(t *testing.T, b *bridge) {
	var want [2048]byte
	for round := range 10 {
		n := b.tx / 2
		b.inject(t, 0, round*n, n, 300)
		frames := b.take(t, 0, n)
		for i := range frames { // one by one, each transmitted and its frame back before the next
			if k, err := b.sockets[0].Forward(frames[i:i+1], b.sockets[1]); k != 1 || err != nil {
				t.Fatalf("Forward: %d, %v", k, err)
			}
			if err := b.sockets[1].Flush(); err != nil {
				t.Fatal(err)
			}
			b.arrives(t, 1, round*n+i, 300)
		}
		b.inject(t, 0, 0, b.frames, 400) // fills what the kernel has
		for i, f := range frames {
			if !bytes.Equal(f.Data, Frame(want[:], round*n+i, 300)) {
				t.Fatalf("frame %d changed before release", i)
			}
		}
		b.take(t, 0, b.frames-n)
		b.sockets[0].Release()
	}
}

// downPort forwards to a port that is down, until its ring is full and beyond: everything is received all the same.
func downPort(t *testing.T, b *bridge) {
	b.links[1].Set(t, false)
	accepted, refused := 0, 0
	for round := range 20 {
		b.inject(t, 0, round*100, 100, 100)
		frames := b.take(t, 0, 100)
		n, err := b.sockets[0].Forward(frames, b.sockets[1])
		if err != nil {
			if b.shares {
				t.Fatal(err)
			}
			n = len(frames) // the asavie socket is broken once its port was down
		}
		accepted += n
		refused += len(frames) - n
		_ = b.sockets[1].Flush() // says that the link is down
		b.sockets[0].Release()
	}
	if b.shares && (accepted != b.tx || refused != 2000-b.tx) {
		t.Fatalf("a ring of %d of a port that is down took %d frames and refused %d", b.tx, accepted, refused)
	}
	b.links[1].Set(t, true)
	if !b.shares {
		b.closed[1] = true // not to be used again
		return
	}
	if err := b.sockets[1].Flush(); err != nil {
		t.Fatal(err)
	}
	for i := range b.tx { // late, but none lost
		b.arrives(t, 1, i, 100)
	}
	forwards(t, b)
}

// anyOrder makes random calls, of Send too, which uses the same transmit halves.
func anyOrder(t *testing.T, b *bridge) {
	const seed = 36
	random := rand.New(rand.NewPCG(seed, seed)) //nolint:gosec // repeatable
	var received [2][]afxdp.Frame
	var buf [2048]byte
	frames := make([]afxdp.Frame, 64)
	for range 20_000 {
		side := random.IntN(2)
		s, to := b.sockets[side], b.sockets[1-side]
		switch random.IntN(8) {
		case 0, 1:
			b.inject(t, side, 0, random.IntN(20), 60+random.IntN(1400))
		case 2, 3:
			received[side] = append(received[side], frames[:s.Receive(frames[:random.IntN(len(frames))])]...)
		case 4:
			n := random.IntN(len(received[side]) + 1)
			k, err := s.Forward(received[side][:n], to)
			if err != nil {
				t.Fatal(err)
			}
			received[side] = received[side][k:]
		case 5:
			if _, err := s.Send([][]byte{Frame(buf[:], 0, 100), Frame(buf[:], 0, 100)}); err != nil {
				t.Fatal(err)
			}
		case 6:
			if err := s.Flush(); err != nil {
				t.Fatal(err)
			}
		case 7:
			s.Release()
			received[side] = received[side][:0]
		}
	}
}

// twoWays has one goroutine for each direction: a receive half and the other's transmit half.
func twoWays(t *testing.T, b *bridge) {
	const total = 3000
	var wg sync.WaitGroup
	for side := range b.sockets {
		wg.Add(2)
		from, to := b.sockets[side], b.sockets[1-side]
		go func() {
			defer wg.Done()
			frames := make([]afxdp.Frame, 16)
			for done, end := 0, time.Now().Add(2*patience); done < total && time.Now().Before(end); {
				n := from.Receive(frames)
				for left := frames[:n]; len(left) > 0 && time.Now().Before(end); {
					if _, ok := Number(left[0].Data); !ok {
						left = left[1:]
						continue
					}
					k, err := from.Forward(left[:1], to)
					if err != nil {
						t.Error(err)
						return
					}
					left, done = left[k:], done+k
					if err := to.Flush(); err != nil {
						t.Error(err)
						return
					}
				}
				from.Release()
			}
		}()
		go func() {
			defer wg.Done()
			var buf, in [2048]byte
			for i := range total {
				if err := b.links[side].Inject(Frame(buf[:], i, 300)); err != nil {
					t.Error(err)
					return
				}
				n, err := b.links[1-side].Arrived(in[:], patience)
				if err != nil || !bytes.Equal(in[:n], buf[:300]) {
					t.Errorf("frame %d from side %d: %v", i, side, err)
					return
				}
			}
		}()
	}
	wg.Wait()
}

// outlives closes the socket that the memory was registered by.
func outlives(t *testing.T, b *bridge) {
	forwards(t, b)
	if err := b.sockets[0].Close(); err != nil {
		t.Fatal(err)
	}
	b.closed[0] = true
	b.inject(t, 1, 7, 1, 100)
	frame := b.take(t, 1, 1)
	if n, err := b.sockets[1].Forward(frame, b.sockets[1]); n != 1 || err != nil { // back to where it came from
		t.Fatalf("Forward: %d, %v", n, err)
	}
	if err := b.sockets[1].Flush(); err != nil {
		t.Fatal(err)
	}
	b.sockets[1].Release()
	b.arrives(t, 1, 7, 100)
}

func reopensPair(t *testing.T, backend string) {
	l, other := NewLinks(t)
	cfg := afxdp.DefaultConfig(l.Near, 0)
	cfg.Backend = backend
	peer := cfg
	peer.Iface = other.Near
	for round := range 4 {
		p, err := afxdp.OpenPair(cfg, peer)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if round == 0 {
			if _, err := afxdp.OpenPair(cfg, peer); !errors.Is(err, afxdp.ErrQueueBusy) {
				t.Fatalf("a second pair on the queues: %v, want ErrQueueBusy", err)
			}
		}
		order := []afxdp.Socket{p.A, p.B}
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, s := range append(order, order...) { // twice each
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	peer.Queue = 1
	if _, err := afxdp.OpenPair(cfg, peer); !errors.Is(err, afxdp.ErrNoQueue) {
		t.Fatalf("queue 1 of 1: %v, want ErrNoQueue", err)
	}
	// The failed one left nothing bound.
	s := l.Open(t, cfg)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
