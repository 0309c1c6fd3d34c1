package ingest

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tidegate-mesh/tidegate/libs/afxdp"
	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/packet"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	"github.com/tidegate-mesh/tidegate/services/ingest/internal/flowtable"
	"github.com/tidegate-mesh/tidegate/services/ingest/internal/window"
)

// fakeSocket has a transmit ring of room frames, of which each flush frees some.
type fakeSocket struct {
	room, perFlush int
	sent, flushes  int
	flushErr       error
	rx, data       [][]byte
}

func (s *fakeSocket) Receive(frames []afxdp.Frame) int {
	n := min(len(frames), len(s.rx))
	for i := range n {
		frames[i].Data = s.rx[i]
	}
	s.rx = s.rx[n:]
	return n
}
func (s *fakeSocket) Release() {}
func (s *fakeSocket) Send(frames [][]byte) (int, error) {
	n := 0
	for n < len(frames) && s.room > 0 {
		if len(frames[n]) > 2048 {
			return n, afxdp.ErrFrameTooLarge
		}
		n++
		s.room--
		s.sent++
	}
	return n, nil
}
func (s *fakeSocket) Forward(frames []afxdp.Frame, to afxdp.Socket) (int, error) {
	s.data = s.data[:0]
	for i := range frames {
		s.data = append(s.data, frames[i].Data)
	}
	return to.Send(s.data)
}
func (s *fakeSocket) Flush() error                     { s.flushes++; s.room += s.perFlush; return s.flushErr }
func (s *fakeSocket) Wait(time.Duration) (bool, error) { return len(s.rx) > 0, nil }
func (s *fakeSocket) Stats() (afxdp.Stats, error)      { return afxdp.Stats{}, nil }
func (s *fakeSocket) FD() int                          { return -1 }
func (s *fakeSocket) ZeroCopy() bool                   { return false }
func (s *fakeSocket) Close() error                     { return nil }

func TestForward(t *testing.T) {
	small := func(n int) []afxdp.Frame {
		f := make([]afxdp.Frame, n)
		for i := range f {
			f[i].Data = make([]byte, 60)
		}
		return f
	}
	huge := small(10)
	huge[4].Data = make([]byte, 4000)
	for _, c := range []struct {
		name          string
		sock          fakeSocket
		frames        []afxdp.Frame
		sent, dropped uint64
	}{
		{"room", fakeSocket{room: 100}, small(64), 64, 0},
		{"full at times", fakeSocket{room: 10, perFlush: 10}, small(64), 64, 0},
		{"stays full", fakeSocket{room: 10}, small(64), 10, 54},
		{"one too large", fakeSocket{room: 100}, huge, 9, 1},
		{"port down", fakeSocket{room: 10, perFlush: 10, flushErr: errors.New("down")}, small(64), 10, 54},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := &portCounts{}
			(&worker{}).forward(&input{from: &fakeSocket{}, tx: &c.sock, out: out}, c.frames)
			if out.transmitted.Load() != c.sent || out.txDropped.Load() != c.dropped {
				t.Errorf("transmitted %d, dropped %d; want %d and %d", out.transmitted.Load(), out.txDropped.Load(), c.sent, c.dropped)
			}
			if uint64(len(c.frames)) != c.sent+c.dropped || c.sock.flushes == 0 || c.sock.flushes > txAttempts {
				t.Errorf("%d frames, %d flushes", len(c.frames), c.sock.flushes)
			}
		})
	}
}

// TestSent: what the kernel dropped behind the ring did not leave, also while its batch is not counted yet.
func TestSent(t *testing.T) {
	c := &portCounts{}
	c.transmitted.Store(10)
	c.txDropped.Store(3)
	for dropped, want := range map[uint64][2]uint64{0: {10, 3}, 4: {6, 7}, 12: {0, 13}} {
		l := portLedger{ring: afxdp.Stats{TxDropped: dropped}}
		if sent, lost := c.sent(&l); sent != want[0] || lost != want[1] {
			t.Errorf("%d dropped: %d sent, %d lost", dropped, sent, lost)
		}
	}
}

// testService is a Service that no interface belongs to.
func testService(t *testing.T) *Service {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Ifaces, cfg.Sensor, cfg.MaxFlows = []string{"a", "b"}, "test-sensor", 4096
	tel := telemetry.Discard("ingest")
	s := &Service{cfg: cfg, tel: tel, recordings: newRecordings()}
	var err error
	if s.shards, err = newShards(&cfg, 1, tel, make([]classifyv1.ClassifyServiceClient, 1), s.enough); err != nil {
		t.Fatal(err)
	}
	s.windows = newWindows(tel, s.shards.putWindow, func() int { return 1 })
	s.offload = newOffload(tel, 10, func(queue int, m mail) bool { return queue != 0 || s.workers[0].post(m) })
	s.offload.start([]flowGate{newFakeGate()})
	s.workers = []*worker{s.newWorker(0, 1)}
	return s
}

func TestWorkerHandsFlowsToTheKernelAndBack(t *testing.T) {
	s := testService(t)
	w := s.workers[0]
	h := packet.Header{Src: flow.Addr([16]byte{10: 0xff, 11: 0xff, 12: 10, 15: 1}), Dst: flow.Addr([16]byte{10: 0xff, 11: 0xff, 12: 10, 15: 2})}
	var queue queueCounts
	frame := h.AppendUDP(nil, 1000, 53, []byte("payload"))
	in := &input{rx: &socketReceiver{Receiver: &fakeSocket{rx: [][]byte{frame}}}, queue: &queue}
	if w.receive(in) != 1 || queue.packets.Load() != 1 {
		t.Fatal("the frame was not taken")
	}
	now := time.Now()
	w.pipe.Poll(now.Add(time.Second).UnixNano())
	var batch *flowv1.FlowBatch
	box := s.shards.list[0].box
	for p := box.take(now); p != nil && batch == nil; p = box.take(now) {
		batch = p.batch
	}
	if batch.GetOpens().GetCount() != 1 {
		t.Fatalf("no batch with an open: %v", batch)
	}
	id := flow.Column(batch.Opens.FlowId).U64(0)
	// Through the service, as an acknowledgement brings it; unknown ids are nothing.
	ids := make([]byte, 0, 24)
	for _, v := range []uint64{id, 1234567, 9 << 56} {
		for i := range 8 {
			ids = append(ids, byte(v>>(8*i)))
		}
	}
	s.enough(ids)
	w.readMail(mailboxSize)
	s.offload.step(now)
	if s.offload.forwards.Load() != 1 {
		t.Fatalf("%d flows are in the kernel", s.offload.forwards.Load())
	}
	// Silent for half a minute it is forgotten. When it goes on, its next part brings it back.
	s.offload.step(now.Add(offloadIdle + time.Second))
	w.readMail(mailboxSize)
	if s.offload.forwards.Load() != 0 {
		t.Error("a silent flow is still in the kernel")
	}
	later := now.Add(50 * time.Second)
	w.pipe.Frames([][]byte{frame}, later.UnixNano(), 0)
	for at := later; at.Before(now.Add(s.cfg.ActiveTimeout + 5*time.Second)); at = at.Add(100 * time.Millisecond) {
		w.pipe.Poll(at.UnixNano())
	}
	s.offload.step(later)
	if s.offload.forwards.Load() != 1 {
		t.Errorf("%d flows are in the kernel after the silence", s.offload.forwards.Load())
	}
	w.pipe.Close(now.Add(2 * time.Minute).UnixNano())
	s.offload.step(now)
	if s.offload.forwards.Load() != 0 {
		t.Error("the ended flow is still in the kernel")
	}
}

func TestWorkerAllocatesNothingAFrame(t *testing.T) {
	s := testService(t)
	w := s.workers[0]
	h := packet.Header{Src: flow.Addr([16]byte{10: 0xff, 11: 0xff, 12: 10, 15: 1}), Dst: flow.Addr([16]byte{10: 0xff, 11: 0xff, 12: 10, 15: 2})}
	frames := make([][]byte, rxBatch)
	for i := range frames {
		frames[i] = h.AppendUDP(nil, uint16(1000+i), 53, []byte("payload"))
	}
	rx, tx := &fakeSocket{}, &fakeSocket{perFlush: rxBatch, room: rxBatch}
	var queue queueCounts
	from := &socketReceiver{Receiver: rx}
	in := &input{rx: from, from: rx, frames: from.frames[:], tx: tx, queue: &queue, out: &portCounts{}}
	batch := func() {
		rx.rx = frames
		w.receive(in)
	}
	batch()
	// Handing a batch or a window over allocates a little, every few milliseconds.
	if n := testing.AllocsPerRun(1000, batch); n > 1 && !raceDetector {
		t.Errorf("%v allocations for %d frames", n, rxBatch)
	}
	if queue.packets.Load() != 1002*rxBatch || uint64(tx.sent) != 1002*rxBatch { //nolint:gosec // a count
		t.Errorf("received %d, sent %d", queue.packets.Load(), tx.sent)
	}
}

func TestMailboxNeverBlocks(t *testing.T) {
	s := testService(t)
	for i := range 2 * mailboxSize {
		if ok := s.post(0, mail{}); ok != (i < mailboxSize) {
			t.Fatalf("post %d: %v", i, ok)
		}
	}
	if s.post(7, mail{}) {
		t.Error("a queue that does not exist took a message")
	}
}

// lateSocket gets frames behind the look that found none, and then the worker is told to stop.
type lateSocket struct {
	fakeSocket
	stop *atomic.Bool
	late [][]byte
}

func (s *lateSocket) Receive(frames []afxdp.Frame) int {
	n := s.fakeSocket.Receive(frames)
	if n == 0 {
		s.rx, s.late = s.late, nil
		s.stop.Store(true)
	}
	return n
}

func TestWorkerTakesTheLastFrames(t *testing.T) {
	var stop atomic.Bool
	var queue queueCounts
	w := testService(t).workers[0]
	h := packet.Header{Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2")}
	rx := &lateSocket{stop: &stop, late: [][]byte{h.AppendUDP(nil, 1, 2, []byte("x"))}}
	w.inputs = []input{{rx: &socketReceiver{Receiver: rx}, queue: &queue}}
	done := make(chan error)
	go func() { done <- w.run(&stop, -1, &Config{}) }() // its thread is its own
	if err := <-done; err != nil || queue.packets.Load() != 1 {
		t.Errorf("%d frames were taken before the end, %v", queue.packets.Load(), err)
	}
}

// fullSocket is one whose driver has room only at the second call.
type fullSocket struct {
	fakeSocket
	left int // of what was sent
	stop *atomic.Bool
}

func (s *fullSocket) Flush() error {
	if s.flushes++; s.flushes > 1 {
		s.left = s.sent
		s.stop.Store(true)
	}
	return nil
}

// TestWorkerFlushesAgain: a frame that stays in the transmit ring does not wait for the next one.
func TestWorkerFlushesAgain(t *testing.T) {
	var stop atomic.Bool
	var queue queueCounts
	w := testService(t).workers[0]
	h := packet.Header{Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2")}
	sock := &fakeSocket{rx: [][]byte{h.AppendUDP(nil, 1, 2, []byte("x"))}}
	rx, tx := &socketReceiver{Receiver: sock}, &fullSocket{fakeSocket: fakeSocket{room: 10}, stop: &stop}
	w.inputs = []input{{rx: rx, from: sock, frames: rx.frames[:], tx: tx, out: &portCounts{}, queue: &queue}}
	time.AfterFunc(200*time.Millisecond, func() { stop.Store(true) })
	done := make(chan error)
	go func() { done <- w.run(&stop, -1, &Config{}) }()
	if err := <-done; err != nil || tx.sent != 1 || tx.left != 1 {
		t.Errorf("%d frames of %d left after %d calls, %v", tx.left, tx.sent, tx.flushes, err)
	}
}

func TestWindowsMerge(t *testing.T) {
	tel := telemetry.Discard("ingest")
	box := newOutbox(newStock("s", 1), 1<<20)
	w := newWindows(tel, func(m *flowv1.Window, now time.Time) { box.putWindow(box.stamp(m), now) }, func() int { return 2 })
	a, b := w.take(emptyBuilder(100)), w.take(emptyBuilder(100))
	w.take(emptyBuilder(200))
	if a == nil || b == nil {
		t.Fatal("a window was not taken")
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { w.run(ctx); close(done) }()
	eventually(t, "two windows", func() error {
		if n := box.stats().WindowsMade; n != 2 {
			return errors.New("not yet")
		}
		return nil
	})
	cancel()
	<-done
	// When nobody merges, taking stops instead of blocking.
	full := 0
	for range 2 * builderPool {
		if w.take(emptyBuilder(300)) == nil {
			full++
		}
	}
	if full != builderPool {
		t.Errorf("%d windows were not taken, want %d", full, builderPool)
	}
}

// TestLastWindows: what waits to be merged when the sensor ends are windows of their own, as it is with captures at full speed.
func TestLastWindows(t *testing.T) {
	var got [][2]int64
	w := newWindows(telemetry.Discard("ingest"), func(m *flowv1.Window, _ time.Time) { got = append(got, [2]int64{m.StartNs, m.EndNs}) }, func() int { return 2 })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b := window.New(window.DefaultConfig())
	for range 8 { // the end is not always what is seen first
		got = got[:0]
		for _, start := range []int64{100, 200, 200, 300} {
			b.StartNs, b.EndNs = start, start+100
			b = w.take(b)
		}
		w.run(ctx)
		if !slices.Equal(got, [][2]int64{{100, 200}, {200, 300}, {300, 400}}) {
			t.Fatalf("windows %v", got)
		}
	}
}

// TestSeeds: builders of a live sensor choose their samples, and the places in their tables, by seeds of their own.
func TestSeeds(t *testing.T) {
	h := packet.Header{Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2")}
	var ports [2][]byte
	for i := range ports {
		b := newBuilder()
		for port := range uint16(2000) {
			var p packet.Packet
			f := h.AppendUDP(nil, port, 53, nil)
			p.Decode(f)
			b.Add(&p, f[p.L3:], 1, &flowtable.Observation{})
		}
		var w flowv1.Window
		b.Encode(&w)
		for _, sample := range w.Targets[0].Samples {
			ports[i] = append(ports[i], sample.Header[20:22]...)
		}
	}
	if len(ports[0]) == 0 || bytes.Equal(ports[0], ports[1]) {
		t.Errorf("two builders kept the same %d samples of 2000 packets", len(ports[0])/2)
	}
}

// TestRecentWindows: the last second's are kept, also after the clock was set back.
func TestRecentWindows(t *testing.T) {
	var r recentWindows
	play := func(from int64) {
		for i := range int64(100) {
			r.add(&flowv1.Window{StartNs: from + i*1e8, EndNs: from + (i+1)*1e8})
		}
	}
	for _, from := range []int64{1e12, 1e12 - 6e11, 5e12} {
		if play(from); len(r.list) != 10 || r.list[0].EndNs != from+91e8 {
			t.Errorf("from %d: %d windows, the first until %d", from, len(r.list), r.list[0].EndNs)
		}
	}
}

func emptyBuilder(start int64) *window.Builder {
	b := window.New(window.DefaultConfig())
	b.StartNs, b.EndNs = start, start+100
	return b
}

func TestPace(t *testing.T) {
	now := time.Unix(1, 0)
	p := pace{since: now}
	for _, step := range []struct {
		frames int
		after  time.Duration
		fast   bool
	}{
		{2000, 500 * time.Microsecond, false}, // too soon to tell
		{0, 500 * time.Microsecond, true},     // 2,000 in a millisecond
		{100, 900 * time.Microsecond, true},   // too soon to tell otherwise
		{100, 600 * time.Microsecond, false},  // 200 in 1.5 ms
		{1000, time.Millisecond, true},
		{0, time.Minute, false},
	} {
		p.frames += step.frames
		now = now.Add(step.after)
		if fast := p.fast(now); fast != step.fast {
			t.Errorf("%d more after %v more: fast is %v", step.frames, step.after, fast)
		}
	}
}

func TestPriority(t *testing.T) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and ended with it, so that no other goroutine has its priority
		before, err := unix.SchedGetAttr(0, 0)
		if err != nil {
			t.Error(err)
			return
		}
		want := min(before.Nice+1, 19) // lower, which anybody may
		if err := prioritise(int(want)); err != nil {
			t.Error(err)
			return
		}
		got, err := unix.SchedGetAttr(0, 0)
		if err != nil || got.Nice != want || got.Policy != unix.SCHED_NORMAL {
			t.Errorf("%+v, %v: want priority %d", got, err, want)
		}
		if got.Runtime != 0 && got.Runtime != uint64(timeSlice) { // 0: a kernel without slices
			t.Errorf("slice %d, want %d", got.Runtime, uint64(timeSlice))
		}
	}()
	<-done
}
