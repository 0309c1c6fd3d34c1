package pipeline

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/packet"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	"github.com/tidegate-mesh/tidegate/services/ingest/internal/window"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

const start = int64(1_700_000_000_000_000_000)

// desk takes batches and windows like a sender does, with two builders.
type desk struct {
	t         testing.TB
	q         *Queue
	batches   int
	largest   int
	opens     int
	ends      int
	windows   [][2]int64
	packets   uint64 // of the windows' totals
	opened    uint64
	spare     *window.Builder
	encoded   flowv1.Window
	afterEach func(*flowv1.FlowBatch)
}

func newDesk(t testing.TB, change func(*Config)) *desk {
	t.Helper()
	d := &desk{t: t, spare: window.New(window.Config{})}
	c := DefaultConfig()
	c.Flow.MaxFlows = 1 << 16
	if change != nil {
		change(&c)
	}
	c.OnBatch = func(_ int, b *flowv1.FlowBatch) *flowv1.FlowBatch {
		d.batches++
		d.opens += int(b.GetOpens().GetCount())
		d.ends += int(b.GetEnds().GetCount())
		if d.afterEach != nil {
			d.afterEach(b)
		}
		flow.Reset(b)
		return b
	}
	c.OnWindow = func(b *window.Builder) *window.Builder {
		d.windows = append(d.windows[:min(len(d.windows), 1000)], [2]int64{b.StartNs, b.EndNs})
		d.opened += b.Flows.Opened
		fresh := d.spare
		b.Encode(&d.encoded)
		d.packets += d.encoded.Total.Packets
		b.Reset()
		d.spare = b
		return fresh
	}
	d.q = New(c, 1)
	return d
}

func udp(n int, payload []byte) []byte {
	h := packet.Header{
		Src: netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), Dst: netip.AddrFrom4([4]byte{198, 51, 100, byte(n % 16)}),
	}
	return h.AppendUDP(nil, 1000, 2000, payload)
}

// vxlan puts a frame into a network's tunnel.
func vxlan(vni uint32, frame []byte) []byte {
	h := packet.Header{Src: netip.MustParseAddr("192.0.2.1"), Dst: netip.MustParseAddr("192.0.2.2")}
	return h.AppendUDP(nil, 50000, 4789, append(binary.BigEndian.AppendUint32([]byte{8, 0, 0, 0}, vni<<8), frame...))
}

// TestTunnels counts what is looked into, and four tunnels deep at most.
func TestTunnels(t *testing.T) {
	for _, inner := range []bool{false, true} {
		d := newDesk(t, func(c *Config) { c.Inner = inner })
		var keys []flow.Key
		d.afterEach = func(b *flowv1.FlowBatch) {
			for i := range int(b.GetEnds().GetCount()) {
				keys = append(keys, flow.EndAt(b.Ends, i).Key)
			}
		}
		frame := udp(1, []byte("x"))
		list := [][]byte{frame}
		for depth := uint32(1); depth <= 6; depth++ {
			frame = vxlan(depth, frame)
			list = append(list, frame)
		}
		h := packet.Header{Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2")}
		list = append(list, vxlan(1, h.AppendARP(nil, 1, [6]byte{})))
		d.q.Frames(list, start, 0)
		d.q.Close(start)
		c := d.q.Counts()
		if c.Received != 8 || c.Accounted != 8 {
			t.Errorf("%+v", c)
		}
		inside := map[uint32]int{}
		for _, k := range keys {
			if k.DstPort == 2000 {
				inside[k.Tunnel]++
			}
		}
		if !inner {
			if len(inside) != 1 || c.Tunnels != [packet.NumTunnels]uint64{} || c.Unopened != [numUnopened]uint64{} || d.packets != 8 {
				t.Errorf("by outer headers: %v, %+v", inside, c)
			}
			continue
		}
		// The innermost tunnel is number 1 in all of them, and without one it is a flow of its own.
		if len(inside) != 2 || inside[0] != 1 || inside[1] != 1 || c.Tunnels[packet.VXLAN] != 1+2+3+4+4+4 ||
			c.Unopened[TooDeep] != 2 || c.Unopened[NoPacket] != 1 || c.Unopened[Fragment] != 0 || d.packets != 8 {
			t.Errorf("%v, %+v, windows have %d packets", inside, c, d.packets)
		}
	}
}

// TestClockSetBack: windows, batches and timeouts go on though the system's clock is an hour behind at once.
func TestClockSetBack(t *testing.T) {
	var went time.Duration
	d := newDesk(t, func(c *Config) { c.OnBack = func(by time.Duration) { went = by } })
	now := start
	play := func(length time.Duration) {
		for end := now + int64(length); now < end; now += int64(5 * time.Millisecond) {
			d.q.Frames([][]byte{udp(1, []byte("x"))}, now, 0)
		}
	}
	d.q.Frames([][]byte{udp(2, []byte("x"))}, now, 0)
	play(time.Second)
	windows, batches := len(d.windows), d.batches
	now -= int64(time.Hour)
	d.q.Frames([][]byte{udp(3, []byte("x"))}, now, 0)
	play(time.Second)
	if n := len(d.windows) - windows; n < 10 || n > 12 || d.batches == batches || went < 59*time.Minute || went > time.Hour {
		t.Fatalf("%d windows and %d batches in the second after the clock was set back by %v", n, d.batches-batches, went)
	}
	for i, w := range d.windows {
		if w[1]-w[0] != int64(100*time.Millisecond) {
			t.Errorf("window %d from %d to %d", i, w[0], w[1])
		}
	}
	play(56 * time.Second)
	if f := d.q.Flows(); f.Active != 3 {
		t.Errorf("%+v", f)
	}
	play(4 * time.Second)
	if f := d.q.Flows(); f.Active != 1 || f.Ended != 2 {
		t.Errorf("two flows are silent for longer than their timeout: %+v", f)
	}
	d.q.Close(now)
	if c := d.q.Counts(); d.packets != c.Received || d.ends < 2 {
		t.Errorf("%+v, windows have %d packets, %d ends", c, d.packets, d.ends)
	}
}

func TestCountsBalance(t *testing.T) {
	d := newDesk(t, nil)
	good := udp(1, []byte("x"))
	h := packet.Header{Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2")}
	d.q.Frames([][]byte{good, good[:20], good[:38], nil, h.AppendARP(nil, 1, [6]byte{}), good}, start, 0)
	d.q.Close(start)
	c := d.q.Counts()
	if c.Received != 6 || c.Accounted != 3 || c.Undecodable[packet.TruncatedIPv4] != 1 ||
		c.Undecodable[packet.TruncatedUDP] != 1 || c.Undecodable[packet.TruncatedEthernet] != 1 || c.Bytes != 58 {
		t.Errorf("%+v", c)
	}
	if f := d.q.Flows(); f.Created != 1 || f.Ended != 1 || f.Active != 0 || d.ends != 1 || d.opened != 1 {
		t.Errorf("%+v, %d ends, %d opened", f, d.ends, d.opened)
	}
	if d.packets != 3 {
		t.Errorf("windows have %d packets", d.packets)
	}
}

func TestBatchAge(t *testing.T) {
	d := newDesk(t, nil)
	now := start
	d.q.Poll(now)
	now += int64(time.Millisecond)
	d.q.Frames([][]byte{udp(1, []byte("x"))}, now, 0)
	for range 3 {
		now += int64(time.Millisecond)
		d.q.Poll(now)
	}
	if d.batches != 0 {
		t.Error("handed over early")
	}
	now += int64(time.Millisecond)
	d.q.Poll(now)
	if d.batches != 1 || d.opens != 1 {
		t.Errorf("%d batches after 4 ms", d.batches)
	}
}

func TestBatchSize(t *testing.T) {
	d := newDesk(t, func(c *Config) { c.BatchAge = time.Hour; c.Flow.SegmentBudget = 0; c.Flow.SummariseAbove = 0 })
	seen := 0
	d.afterEach = func(b *flowv1.FlowBatch) {
		if err := flow.Validate(b); err != nil {
			t.Fatal(err)
		}
		estimate, real := size(b), proto.Size(b)
		d.largest = max(d.largest, real)
		if real > estimate+100 {
			t.Fatalf("a batch of %d bytes is taken for %d", real, estimate)
		}
		seen += int(b.GetSegments().GetCount())
	}
	payload := make([]byte, 1400)
	for i := range 30_000 {
		d.q.Frames([][]byte{udp(i, payload[:i%1400+1])}, start, 0)
	}
	d.q.Close(start)
	if d.largest > MaxBatchBytes || d.largest < MaxBatchBytes/4 || d.ends != 30_000 || seen != 30_000 {
		t.Errorf("largest batch %d bytes, %d ends, %d segments", d.largest, d.ends, seen)
	}
}

func TestWindowBoundaries(t *testing.T) {
	d := newDesk(t, nil)
	now := start + int64(30*time.Millisecond)
	for range 100 {
		d.q.Frames([][]byte{udp(1, nil)}, now, 0)
		now += int64(7 * time.Millisecond)
	}
	now += int64(time.Second) // a pause
	d.q.Frames([][]byte{udp(1, nil)}, now, 0)
	d.q.Close(now)
	for i, w := range d.windows {
		if w[0]%1e8 != 0 || w[1]-w[0] != 1e8 || i > 0 && w[0] < d.windows[i-1][1] {
			t.Errorf("window %d is %v", i, w)
		}
	}
	if len(d.windows) != 9 || d.packets != 101 {
		t.Errorf("%d windows with %d packets", len(d.windows), d.packets)
	}
}

// TestWindowNotTaken lets the taker refuse: the window goes on and loses nothing.
func TestWindowNotTaken(t *testing.T) {
	d := newDesk(t, nil)
	take, refused := d.q.cfg.OnWindow, 0
	d.q.cfg.OnWindow = func(b *window.Builder) *window.Builder {
		if refused < 3 {
			refused++
			return nil
		}
		return take(b)
	}
	for i := range 50 {
		d.q.Frames([][]byte{udp(1, nil)}, start+int64(i)*1e7, 0)
	}
	d.q.Close(start + 50e7)
	if d.packets != 50 || d.windows[0] != [2]int64{start, start + 4e8} {
		t.Errorf("%d packets, windows %v", d.packets, d.windows)
	}
}

// FuzzFrames cuts arbitrary bytes into frames: nothing may panic, and every frame and flow is accounted for.
func FuzzFrames(f *testing.F) {
	h := packet.Header{Src: netip.MustParseAddr("192.0.2.1"), Dst: netip.MustParseAddr("198.51.100.1")}
	back := packet.Header{Src: h.Dst, Dst: h.Src}
	question := h.AppendUDP(nil, 7, 9, []byte("x"))
	var seed []byte
	for _, b := range [][]byte{
		question, back.AppendICMP(nil, 3, 3, 0, question[14:]), back.AppendICMP(nil, 3, 2, 0, question[14:]),
		h.AppendTCP(nil, &packet.TCP{Flags: packet.FlagSYN}, nil), back.AppendUDP(nil, 123, 4000, []byte{0xD7, 0, 3, 42}),
		h.AppendARP(nil, 1, [6]byte{}), vxlan(1, question), vxlan(2, vxlan(3, question)), append(h.AppendIP(nil, 4, len(question)-14), question[14:]...),
		append(append(h.AppendIP(nil, 47, len(question)-6), 0x20, 0, 8, 0, 0, 0, 0, 9), question[14:]...),
	} {
		seed = append(append(seed, byte(len(b))), b...)
	}
	f.Add(seed)
	// One queue serves all runs, as its memory takes longer to make than a run; each run ends with no flow active.
	d := newDesk(f, func(c *Config) { c.Flow.MaxFlows = 8; c.Flow.SummariseAbove = 1; c.Inner = true })
	now, n := start, uint64(0)
	f.Fuzz(func(t *testing.T, b []byte) {
		d.afterEach = func(b *flowv1.FlowBatch) {
			if err := flow.Validate(b); err != nil {
				t.Fatal(err)
			}
		}
		for len(b) > 0 {
			end := min(1+int(b[0]), len(b))
			d.q.Frames([][]byte{b[1:end]}, now, 0)
			now += int64(b[0]) * 1e7
			b = b[end:]
			n++
		}
		for range 4 { // later deadlines than the wheel reaches, and those of windows
			now += int64(150 * time.Second)
			d.q.Poll(now)
		}
		c, fl := d.q.Counts(), d.q.Flows()
		sum := c.Accounted
		for _, u := range c.Undecodable {
			sum += u
		}
		if c.Received != n || sum != n || fl.Active != 0 || fl.Created != fl.Ended+fl.Summarised+fl.Evicted || d.packets != c.Accounted {
			t.Fatalf("%d frames, %+v, %+v, windows %d", n, c, fl, d.packets)
		}
	})
}

func frames(flows int, payload string) [][]byte {
	list := make([][]byte, flows)
	for i := range list {
		h := packet.Header{
			Src: netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), Dst: netip.AddrFrom4([4]byte{198, 51, 100, byte(i % 16)}),
		}
		list[i] = h.AppendTCP(nil, &packet.TCP{SrcPort: 4000, DstPort: 443, Flags: packet.FlagACK}, []byte(payload))
	}
	return list
}

func TestNoAllocations(t *testing.T) {
	d := newDesk(t, func(c *Config) { c.Inner = true })
	list := frames(1000, "abcdef")
	for i := range list[:500] {
		list[i] = vxlan(7, list[i])
	}
	now := start
	run := func() {
		for i := 0; i < len(list); i += 50 {
			d.q.Frames(list[i:i+50], now, 0)
			now += int64(100 * time.Microsecond)
		}
	}
	for range 100 {
		run()
	}
	d.q.cfg.OnWindow = func(b *window.Builder) *window.Builder { // without the encoding, which is another's work
		b.Reset()
		return b
	}
	if n := testing.AllocsPerRun(100, run); n != 0 {
		t.Errorf("%v allocations per 1,000 packets", n)
	}
}

// benchmark plays the frames again and again; change, if there is one, makes each what it is in the round.
func benchmark(b *testing.B, list [][]byte, change func(frame []byte, round uint32)) {
	benchmarkOf(b, list, change, false)
}

func benchmarkOf(b *testing.B, list [][]byte, change func(frame []byte, round uint32), inner bool) {
	d := newDesk(b, func(c *Config) { c.Flow.MaxFlows = 1 << 21; c.Inner = inner })
	d.q.cfg.OnWindow = func(w *window.Builder) *window.Builder { w.Reset(); return w }
	now, at, round := start, 0, uint32(0)
	turn := func() {
		if at+64 > len(list) {
			at = 0
			round++
		}
		if change != nil {
			for _, f := range list[at : at+64] {
				change(f, round)
			}
		}
		d.q.Frames(list[at:at+64], now, 0)
		at += 64
		now += 64 * 100 // 10 M packets/s
	}
	for range 3 * len(list) / 64 {
		turn()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	b.ResetTimer()
	before := threadCPU(b)
	for i := 0; i < b.N; i += 64 {
		turn()
	}
	// Wall time means little on a machine that others use too.
	b.ReportMetric(float64(threadCPU(b)-before)/float64(b.N), "cpu-ns/op")
}

func threadCPU(b *testing.B) int64 {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// newFlow makes it a SYN from another network.
func newFlow(frame []byte, round uint32) {
	frame[26], frame[47] = byte(round), packet.FlagSYN //nolint:gosec // 256 networks
}

// goesOn makes it the next segment of its flow.
func goesOn(frame []byte, round uint32) {
	binary.BigEndian.PutUint32(frame[14+20+4:], round*6)
}

// Where there is no change every segment is one that was sent again.
func BenchmarkFrames1kFlows(b *testing.B)   { benchmark(b, frames(1000, "abcdef"), nil) }
func BenchmarkFrames10kFlows(b *testing.B)  { benchmark(b, frames(10_000, "abcdef"), nil) }
func BenchmarkFrames1MFlows(b *testing.B)   { benchmark(b, frames(1_000_000, "abcdef"), nil) }
func BenchmarkFrames1MStreams(b *testing.B) { benchmark(b, frames(1_000_000, "abcdef"), goesOn) }
func BenchmarkFramesNewFlows(b *testing.B)  { benchmark(b, frames(100_000, "abcdef"), newFlow) }
func BenchmarkFramesSYNFlood(b *testing.B)  { benchmark(b, frames(100_000, ""), newFlow) }

// BenchmarkFramesTunnels looks into tunnels: where there are none, and VXLAN's.
func BenchmarkFramesTunnels(b *testing.B) {
	b.Run("none", func(b *testing.B) { benchmarkOf(b, frames(1000, "abcdef"), nil, true) })
	b.Run("vxlan", func(b *testing.B) {
		list := frames(1000, "abcdef")
		for i := range list {
			list[i] = vxlan(7, list[i])
		}
		benchmarkOf(b, list, nil, true)
	})
}
