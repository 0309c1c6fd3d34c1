package ingest

import (
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tidegate-mesh/tidegate/libs/afxdp"
	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	"github.com/tidegate-mesh/tidegate/services/ingest/internal/pipeline"
)

const (
	// rxBatch is how many frames a worker takes at a time: enough to pay for the calls, few enough to stay
	// in the CPU's first cache with their headers.
	rxBatch = 64
	// txAttempts bounds how often a full transmit ring is flushed for one batch before the rest is dropped.
	txAttempts = 64
	// nap is the longest sleep of a worker with a batch in the making: timers of its queue run at least this often. Without
	// one it may sleep until its window ends, but looks whether it shall stop.
	nap     = 2 * time.Millisecond
	longNap = 50 * time.Millisecond
	// rest is how long a worker sleeps between two looks for frames that come slower than spinRate, in packets a second:
	// spinning for them would burn a CPU for nothing, and to be woken for each costs more than to take some at a time. Those
	// that it forwards must not wait for long. After restLimit without any it waits to be woken.
	rest      = 200 * time.Microsecond
	shortRest = 50 * time.Microsecond
	restLimit = time.Millisecond
	spinRate  = 1_000_000
	// timeSlice of a worker's thread is the least that the kernel's scheduler takes (sched_setattr(2)).
	timeSlice = 100 * time.Microsecond
	// mailboxSize bounds the messages that wait for a worker.
	mailboxSize = 256
)

// worker owns queue n of every interface of the sensor: both directions of a flow are in one table when the
// network cards hash them alike (one queue, or symmetric RSS; ethtool -X … xfrm symmetric-xor). In inline mode
// it also owns the transmit half of queue n, so no frame crosses goroutines.
//
// The worker outlives planes: its flow table goes on when an interface is made again.
type worker struct {
	n          int
	pipe       *pipeline.Queue
	mail       chan mail
	allowed    map[uint64]bool // flows that the kernel may forward, and whether offload has them
	offload    *offload        // nil without kernel forwarding
	shards     *shards
	tel        *telemetry.Telemetry
	recordings *recordings
	wait       func() // until there is room for a batch: of captures and at the end; else nil, as frames do not wait

	inputs []input
	fds    []unix.PollFd
	data   [rxBatch][]byte
}

// receiver is what frames come out of, one goroutine's.
type receiver interface {
	receive(frames [][]byte) int // borrowed until Release
	Release()
	FD() int
}

// socketReceiver is a queue's AF_XDP socket, or a worker's AF_PACKET socket.
type socketReceiver struct {
	afxdp.Receiver
	frames [rxBatch]afxdp.Frame
}

func (r *socketReceiver) receive(frames [][]byte) int {
	n := r.Receive(r.frames[:len(frames)])
	for i := range n {
		frames[i] = r.frames[i].Data
	}
	return n
}

// copyReceiver is the ring of host mode.
type copyReceiver struct{ *xdp.Copies }

func (r copyReceiver) receive(frames [][]byte) int { return r.Receive(frames) }

// input is one port's queue as a worker sees it.
type input struct {
	rx     receiver
	copies *xdp.Copies   // host mode: rx, whose packets bring their time and size; else nil
	from   afxdp.Socket  // inline: rx's socket; else nil
	frames []afxdp.Frame // inline: what rx received last; else nil
	tx     afxdp.Socket  // inline: the other port's socket; else nil
	txLock *sync.Mutex   // not nil when other workers send through tx too
	port   uint8
	queue  *queueCounts
	out    *portCounts // of the port that tx belongs to
}

// mail comes to a worker from other goroutines and is read between batches.
type mail struct {
	enough    []uint64
	meters    []meterReading
	forgotten []uint64
}

// attach gives the worker its queue of a new plane.
func (w *worker) attach(p *plane, inline bool) {
	w.inputs, w.fds = w.inputs[:0], w.fds[:0]
	w.forgotten(slices.Collect(maps.Keys(w.allowed))) // the new plane's gates forward nothing yet
	for i, q := range p.ports {
		in := input{port: q.index, queue: &q.counts.queues[w.n]}
		switch {
		case q.copies != nil && w.n == 0:
			in.rx, in.copies = copyReceiver{q.copies}, q.copies
		case w.n < len(q.sockets):
			rx := &socketReceiver{Receiver: q.sockets[w.n]}
			in.rx, in.from, in.frames = rx, q.sockets[w.n], rx.frames[:]
		case w.n < len(q.packets):
			in.rx = &socketReceiver{Receiver: q.packets[w.n]}
		default:
			continue
		}
		if inline {
			other := p.ports[1-i]
			k := w.n % len(other.sockets)
			in.tx, in.out = other.sockets[k], other.counts
			if other.txLocks != nil {
				in.txLock = &other.txLocks[k]
			}
		}
		w.inputs = append(w.inputs, in)
		w.fds = append(w.fds, unix.PollFd{Fd: int32(in.rx.FD()), Events: unix.POLLIN}) //nolint:gosec // descriptors are small
	}
}

// run moves frames until stop is set and the rings are empty, or a socket fails. It stays on one thread, and
// on one CPU when cpu is not negative.
func (w *worker) run(stop *atomic.Bool, cpu int, cfg *Config) error {
	// Not unlocked: a thread with a CPU of its own must not serve other goroutines afterwards.
	runtime.LockOSThread()
	if cpu >= 0 {
		if err := pin(cpu); err != nil {
			return fmt.Errorf("pin the worker of queue %d to CPU %d: %w", w.n, cpu, err)
		}
	}
	if cfg.Nice != 0 {
		// A worker that may not have it works all the same, with a little less room before a ring overflows.
		_ = prioritise(cfg.Nice)
	}
	// Without it the kernel rounds a rest up by half. Refused, it costs latency only.
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1000, 0, 0, 0)
	last := time.Now()
	pace := pace{since: last}
	for {
		ending := stop.Load() // before the look, which then finds all that came until it was set
		n := 0
		for i := range w.inputs {
			n += w.receive(&w.inputs[i])
		}
		w.readMail(1)
		if n > 0 {
			pace.frames += n
			last = time.Now()
			continue
		}
		now := time.Now()
		w.pipe.Poll(now.UnixNano())
		w.flush()
		if ending {
			return nil
		}
		switch quiet := now.Sub(last); {
		case quiet < cfg.Spin && pace.fast(now):
		case quiet < restLimit && cfg.BusyPoll > 0: // to look for frames is what fetches them
		case quiet < restLimit:
			w.rest()
		default:
			if err := w.sleep(); err != nil {
				return err
			}
		}
	}
}

// pin binds this thread to a CPU.
func pin(cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	return unix.SchedSetaffinity(0, &set)
}

// tryCPUs reports the first that workers cannot be bound to.
func tryCPUs(cpus []int) error {
	tried := make(chan error)
	go func() {
		runtime.LockOSThread() // and not unlocked: the thread ends here
		for _, n := range cpus {
			if err := pin(n); err != nil {
				tried <- fmt.Errorf("--cpus names CPU %d, which this machine or this process's cpuset does not have: %w", n, err)
				return
			}
		}
		tried <- nil
	}()
	return <-tried
}

// prioritise sets the priority of this thread, not of the process (C library and kernel differences in setpriority(2)), with
// a time slice so short that the end of a rest interrupts what runs meanwhile (EEVDF; ignored before Linux 6.12).
func prioritise(nice int) error {
	return unix.SchedSetAttr(0, &unix.SchedAttr{
		Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Nice: int32(nice), Runtime: uint64(timeSlice), //nolint:gosec // -20 to 19; positive
	}, 0)
}

// rest sleeps without telling Go's scheduler, which in a system call that it knows of gives the worker's place (its P) away:
// with no other free, the worker then had to wait until another goroutine's 10 ms were over. So short a time holds up
// nobody; the collector's signal ends it.
func (w *worker) rest() {
	d := rest
	if w.inputs[0].tx != nil {
		d = shortRest
	}
	ts := unix.NsecToTimespec(d.Nanoseconds())
	_, _, _ = unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&ts)), 0, 0) //nolint:gosec // how nanosleep(2) takes it
}

// pace measures how fast frames come, a millisecond or more at a time.
type pace struct {
	frames int // since then
	since  time.Time
	spin   bool
}

// fast tells whether it is worth while to spin for the next.
func (p *pace) fast(now time.Time) bool {
	if d := now.Sub(p.since); d >= time.Millisecond {
		p.spin = float64(p.frames) >= spinRate*d.Seconds()
		p.frames, p.since = 0, now
	}
	return p.spin
}

// receive moves one batch of an input and returns its size.
func (w *worker) receive(in *input) int {
	n := in.rx.receive(w.data[:])
	if n == 0 {
		return 0
	}
	bytes := 0
	for _, frame := range w.data[:n] {
		bytes += len(frame)
	}
	if in.tx != nil {
		w.forward(in, in.frames[:n])
	}
	now := time.Now().UnixNano()
	if in.copies != nil {
		var at uint64
		at, bytes = in.copies.Last()
		now = xdp.MonotonicToUnix(at).UnixNano()
	}
	w.pipe.Frames(w.data[:n], now, in.port)
	w.recordings.offer(w.n, w.data[:n], now, in.port)
	in.queue.packets.Add(uint64(n)) //nolint:gosec // at most rxBatch
	in.queue.bytes.Add(uint64(bytes))
	in.rx.Release()
	return n
}

// forward sends frames out of the other port. What its ring does not take after a bounded number of flushes is
// dropped and counted, and goes back to the kernel with the batch: waiting longer would only move the loss to the
// receive ring. Frames stay readable, because nobody else sends through a socket that shares memory with another.
func (w *worker) forward(in *input, frames []afxdp.Frame) {
	if in.txLock != nil {
		in.txLock.Lock()
		defer in.txLock.Unlock()
	}
	left, sent := frames, uint64(0)
	for range txAttempts {
		n, err := in.from.Forward(left, in.tx)
		sent += uint64(n) //nolint:gosec // at most rxBatch
		left = left[n:]
		if err != nil && len(left) > 0 { // this frame will never fit
			left = left[1:]
			in.out.txDropped.Add(1)
		}
		// An error means the port is down; the frames stay in its ring.
		if err := in.tx.Flush(); err != nil || len(left) == 0 {
			break
		}
	}
	in.out.transmitted.Add(sent)
	if len(left) > 0 {
		in.out.txDropped.Add(uint64(len(left)))
	}
}

// flush has the ports transmit what their drivers had no room for when it came, so that it does not wait for the next frame.
func (w *worker) flush() {
	for i := range w.inputs {
		in := &w.inputs[i]
		if in.tx == nil {
			continue
		}
		if in.txLock != nil {
			in.txLock.Lock()
		}
		_ = in.tx.Flush() // the port is down; the frames stay in its ring
		if in.txLock != nil {
			in.txLock.Unlock()
		}
	}
}

var errPortGone = errors.New("the interface went down or away")

// sleep waits for frames on any input, for at most a nap.
func (w *worker) sleep() error {
	limit := nap
	if !w.pipe.Pending() {
		limit = longNap
		if end := w.pipe.WindowEnd(); end != 0 {
			limit = min(limit, max(0, time.Until(time.Unix(0, end))))
		}
	}
	ts := unix.NsecToTimespec(limit.Nanoseconds())
	_, err := unix.Ppoll(w.fds, &ts, nil)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("wait for frames on queue %d: %w", w.n, err)
	}
	for i := range w.fds {
		if err == nil && w.fds[i].Revents&(unix.POLLERR|unix.POLLNVAL|unix.POLLHUP) != 0 {
			return fmt.Errorf("wait for frames on queue %d: %w", w.n, errPortGone)
		}
	}
	return nil
}

// readMail handles at most limit messages.
func (w *worker) readMail(limit int) {
	for range limit {
		if len(w.mail) == 0 {
			return
		}
		m := <-w.mail
		for _, id := range m.enough {
			w.enough(id)
		}
		for i := range m.meters {
			r := &m.meters[i]
			w.pipe.Meter(r.key, r.packets, r.bytes, r.lastNs)
		}
		w.forgotten(m.forgotten)
	}
}

// enough ends the payload copies of a flow and hands it to the kernel.
func (w *worker) enough(id uint64) {
	key, ok := w.pipe.Enough(id)
	if !ok || w.offload == nil || !forwardable(&key) {
		return
	}
	if w.allowed[id] {
		return
	}
	if has := w.offload.add(id, key); has || len(w.allowed) < 2*w.offload.limit {
		w.allowed[id] = has
	}
}

// forgotten notes flows that the kernel does not forward any more, or had no room for. Should they go on, it is asked again.
func (w *worker) forgotten(ids []uint64) {
	for _, id := range ids {
		if w.allowed[id] {
			w.allowed[id] = false
		}
	}
}

// forwardable tells whether the kernel can recognise a flow's packets: it needs ports.
func forwardable(k *flow.Key) bool {
	return k.Protocol == unix.IPPROTO_TCP || k.Protocol == unix.IPPROTO_UDP
}

// onBatch takes a classifier's batch over from the pipeline.
func (w *worker) onBatch(to int, b *flowv1.FlowBatch) *flowv1.FlowBatch {
	if len(w.allowed) > 0 {
		w.followEnds(b.GetEnds())
	}
	if w.wait != nil {
		w.wait()
	}
	b.Traceparent = sampled(w.tel, "ingest.batch")
	w.shards.put(to, b, time.Now())
	return w.shards.empty()
}

// followEnds makes the kernel forget flows that ended, before their ports are used again, and asks it again for those that it
// had no room for or had forgotten and that go on.
func (w *worker) followEnds(c *flowv1.FlowEnds) {
	for i := range int(c.GetCount()) {
		id := flow.Column(c.FlowId).U64(i)
		has, known := w.allowed[id]
		switch {
		case !known:
		case flowv1.EndReason(c.Reason[i]) != flowv1.EndReason_END_REASON_ACTIVE:
			delete(w.allowed, id)
			w.offload.end(id)
		case !has:
			w.enough(id)
		}
	}
}

// post leaves a message without waiting; false when the mailbox is full.
func (w *worker) post(m mail) bool {
	select {
	case w.mail <- m:
		return true
	default:
		return false
	}
}
