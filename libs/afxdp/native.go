package afxdp

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// native is the backend with rings of our own.
//
// Its part of the frame memory has Frames frames of the receive half, which wander fill ring → kernel → receive
// ring → held → fill ring, and TxRing frames of the transmit half, which wander spare → transmit ring → kernel →
// completion ring → spare. Each half always has as many, and the halves of a socket share no state. To forward a
// frame by descriptor, a receive half and the transmit half of the other socket of its pair exchange frames one for
// one: the received frame goes to the transmit ring, a spare one takes its place among the held. So no transmit
// ring, however slow or dead its port, takes frames that the receive half needs, and no frame has two owners.
type native struct {
	fd       int
	memory   *memory
	umem     []byte // memory's bytes
	mask     uint64 // clears the offset within a frame
	size     int    // of a frame
	wakeup   bool   // need-wakeup was asked for
	busy     bool   // the receiver drives the driver's poll loop
	zeroCopy bool

	fill    ring[uint64]
	rx      ring[unix.XDPDesc]
	held    []uint64 // received, not yet released; with the offset within the frame
	copier  copier
	touched byte

	tx         ring[unix.XDPDesc]
	completion ring[uint64]
	spare      []uint64 // transmit frames that are free
	kicks      int      // most calls one Flush makes, beside one for each frame that is dropped
	txDropped  atomic.Uint64
}

// xdpMaxTxSkbBudget is XDP_MAX_TX_SKB_BUDGET of linux/if_xdp.h (kernel 6.17): how many frames one call
// transmits in copy mode; 32 without it.
const xdpMaxTxSkbBudget = 9

// copyBudget is the kernel's default number of frames a transmit call moves in copy mode.
const copyBudget = 32

// Socket options of busy polling (asm-generic/socket.h).
const busyPollBudget = 64

func openNative(cfg Config, ifindex int) (_ Socket, err error) {
	m, err := mapMemory(cfg)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.release()) }()
	return newNative(cfg, ifindex, m, 0, nil)
}

// newNative opens a socket whose part of the memory begins at part. first is the bound socket that registered the
// memory; nil: this one does.
func newNative(cfg Config, ifindex int, m *memory, part int, first *native) (_ *native, err error) {
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, explain("socket", err)
	}
	m.users.Add(1)
	s := &native{
		fd: fd, memory: m, umem: m.bytes, size: cfg.FrameSize,
		mask: ^uint64(cfg.FrameSize - 1), wakeup: cfg.NeedWakeup, busy: cfg.BusyPoll > 0, //nolint:gosec // a checked size
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if first == nil {
		if err = m.register(fd); err != nil {
			return nil, err
		}
	}
	if err = s.mapRings(cfg); err != nil {
		return nil, err
	}
	s.held = make([]uint64, 0, cfg.Frames)
	s.spare = make([]uint64, 0, cfg.TxRing)
	for i := range cfg.Frames {
		s.held = append(s.held, uint64(part+i*cfg.FrameSize)) //nolint:gosec // within the mapping
	}
	for i := range cfg.TxRing {
		s.spare = append(s.spare, uint64(part+(cfg.Frames+i)*cfg.FrameSize)) //nolint:gosec // within the mapping
	}
	// The kernel must own frames before the first one arrives.
	s.Release()

	budget := copyBudget
	if unix.SetsockoptInt(fd, unix.SOL_XDP, xdpMaxTxSkbBudget, cfg.TxRing) == nil {
		budget = cfg.TxRing
	}
	s.kicks = cfg.TxRing/budget + 1
	if cfg.BusyPoll > 0 {
		if err = busyPoll(fd, cfg.BusyPoll); err != nil {
			return nil, err
		}
	}
	if err = s.bind(cfg, ifindex, first); err != nil {
		return nil, err
	}
	if v, err := unix.GetsockoptInt(fd, unix.SOL_XDP, unix.XDP_OPTIONS); err == nil {
		s.zeroCopy = v&unix.XDP_OPTIONS_ZEROCOPY != 0
	}
	return s, nil
}

func (s *native) mapRings(cfg Config) error {
	for _, r := range []struct {
		name         string
		option, size int
	}{
		{"fill", unix.XDP_UMEM_FILL_RING, cfg.Frames},
		{"completion", unix.XDP_UMEM_COMPLETION_RING, cfg.TxRing},
		{"rx", unix.XDP_RX_RING, cfg.RxRing},
		{"tx", unix.XDP_TX_RING, cfg.TxRing},
	} {
		if err := unix.SetsockoptInt(s.fd, unix.SOL_XDP, r.option, r.size); err != nil {
			return explain("create "+r.name+" ring", err)
		}
	}
	var o unix.XDPMmapOffsets
	if err := getsockopt(s.fd, unix.XDP_MMAP_OFFSETS, unsafe.Pointer(&o), unsafe.Sizeof(o)); err != nil {
		return explain("read ring offsets", err)
	}
	var err error
	if s.fill, err = mapRing[uint64](s.fd, unix.XDP_UMEM_PGOFF_FILL_RING, &o.Fr, cfg.Frames); err != nil {
		return fmt.Errorf("map fill ring: %w", err)
	}
	if s.completion, err = mapRing[uint64](s.fd, unix.XDP_UMEM_PGOFF_COMPLETION_RING, &o.Cr, cfg.TxRing); err != nil {
		return fmt.Errorf("map completion ring: %w", err)
	}
	if s.rx, err = mapRing[unix.XDPDesc](s.fd, unix.XDP_PGOFF_RX_RING, &o.Rx, cfg.RxRing); err != nil {
		return fmt.Errorf("map rx ring: %w", err)
	}
	if s.tx, err = mapRing[unix.XDPDesc](s.fd, unix.XDP_PGOFF_TX_RING, &o.Tx, cfg.TxRing); err != nil {
		return fmt.Errorf("map tx ring: %w", err)
	}
	return nil
}

// bind asks for zero-copy unless told otherwise: without a mode flag the kernel tries it and falls back. A second
// socket in the first one's memory has the first one's mode and need-wakeup; the kernel takes no flags beside it.
func (s *native) bind(cfg Config, ifindex int, first *native) error {
	sa := unix.SockaddrXDP{Ifindex: uint32(ifindex), QueueID: uint32(cfg.Queue)} //nolint:gosec // both checked non-negative
	switch cfg.ZeroCopy {
	case ZeroCopyNever:
		sa.Flags = unix.XDP_COPY
	case ZeroCopyRequire:
		sa.Flags = unix.XDP_ZEROCOPY
	case ZeroCopyAuto:
	}
	if cfg.NeedWakeup {
		sa.Flags |= unix.XDP_USE_NEED_WAKEUP
	}
	if first != nil {
		sa.Flags, sa.SharedUmemFD = unix.XDP_SHARED_UMEM, uint32(first.fd) //nolint:gosec // descriptors are small
	}
	// A queue stays bound for a moment after its last socket is closed: the kernel frees it in the
	// background.
	var err error
	for range 40 {
		if err = unix.Bind(s.fd, &sa); !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	switch {
	case err == nil:
		return nil
	case first != nil: // EINVAL may mean the first one's mode
		return explain("bind in the frame memory of another socket", err)
	}
	return explainBind(err)
}

func (s *native) Receive(frames []Frame) int {
	n := s.rx.available(uint32(len(frames))) //nolint:gosec // callers pass short slices
	if n == 0 {
		if s.busy || s.wakeup && s.fill.needsWakeup() {
			s.wakeReceive()
		}
		return 0
	}
	n = min(n, uint32(len(frames))) //nolint:gosec // as above
	cons, mask := s.rx.cons, s.rx.mask
	for i := range n {
		d := &s.rx.entries[(cons+i)&mask]
		frames[i].slot = len(s.held)
		s.held = append(s.held, d.Addr)
		frames[i].Data = s.umem[d.Addr : d.Addr+uint64(d.Len) : d.Addr+uint64(d.Len)]
	}
	s.rx.cons += n
	s.rx.consume()
	return int(n)
}

func (s *native) Release() {
	n := uint32(len(s.held)) //nolint:gosec // at most Frames
	if n == 0 {
		return
	}
	// There are as many receive frames as fill entries, so this always has room.
	s.fill.free(n)
	prod, mask := s.fill.prod, s.fill.mask
	for i, addr := range s.held {
		s.fill.entries[(prod+uint32(i))&mask] = addr & s.mask //nolint:gosec // as above
	}
	s.held = s.held[:0]
	s.fill.prod += n
	s.fill.publish()
	if s.wakeup && s.fill.needsWakeup() {
		s.wakeReceive()
	}
}

// wakeReceive makes the driver look at the fill ring again. Errors say that the link is down or nothing
// is there: Wait reports the former.
func (s *native) wakeReceive() {
	_, _, _ = unix.Syscall6(unix.SYS_RECVFROM, uintptr(s.fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
}

func (s *native) Send(frames [][]byte) (int, error) {
	want := uint32(len(frames)) //nolint:gosec // callers pass short slices
	if uint32(len(s.spare)) < want {
		s.reclaim()
	}
	room := min(s.tx.free(want), uint32(len(s.spare)), want) //nolint:gosec // spare has at most TxRing
	var err error
	n := uint32(0)
	for ; n < room; n++ {
		f := frames[n]
		if len(f) > s.size {
			err = fmt.Errorf("send %d bytes: %w (%d)", len(f), ErrFrameTooLarge, s.size)
			break
		}
		last := len(s.spare) - 1
		addr := s.spare[last]
		s.spare = s.spare[:last]
		copy(s.umem[addr:addr+uint64(s.size)], f)                                                         //nolint:gosec // a checked size
		s.tx.entries[(s.tx.prod+n)&s.tx.mask] = unix.XDPDesc{Addr: addr, Len: uint32(len(f)), Options: 0} //nolint:gosec // at most size
	}
	if n > 0 {
		s.tx.prod += n
		s.tx.publish()
	}
	return int(n), err
}

func (s *native) Forward(frames []Frame, to Socket) (int, error) {
	t, ok := to.(*native)
	if !ok || t.memory != s.memory {
		return s.copier.forward(frames, to)
	}
	want := uint32(len(frames)) //nolint:gosec // callers pass short slices
	if uint32(len(t.spare)) < want {
		t.reclaim()
	}
	room := min(t.tx.free(want), uint32(len(t.spare)), want) //nolint:gosec // spare has at most TxRing
	// Reading all frames first lets their cache misses overlap; transmitting in copy mode, the kernel meets them one by one.
	for i := range frames[:room] {
		s.touched += frames[i].Data[0]
	}
	var err error
	n := uint32(0)
	for ; n < room; n++ {
		f := &frames[n]
		if f.slot < 0 || f.slot >= len(s.held) {
			err = ErrNotHeld
			break
		}
		last := len(t.spare) - 1
		t.tx.entries[(t.tx.prod+n)&t.tx.mask] = unix.XDPDesc{Addr: s.held[f.slot], Len: uint32(len(f.Data)), Options: 0} //nolint:gosec // at most size
		s.held[f.slot] = t.spare[last]
		t.spare = t.spare[:last]
		f.slot = forwarded
	}
	if n > 0 {
		t.tx.prod += n
		t.tx.publish()
	}
	return int(n), err
}

// reclaim takes transmitted frames from the completion ring.
func (s *native) reclaim() {
	n := s.completion.available(s.completion.mask + 1)
	if n == 0 {
		return
	}
	cons, mask := s.completion.cons, s.completion.mask
	for i := range n {
		s.spare = append(s.spare, s.completion.entries[(cons+i)&mask]&s.mask)
	}
	s.completion.cons += n
	s.completion.consume()
}

func (s *native) Flush() error {
	if s.wakeup && !s.tx.needsWakeup() {
		s.reclaim()
		return nil
	}
	defer s.reclaim()
	// In copy mode one call moves a limited number of frames and says EAGAIN while more wait.
	for kicks, dropped := 0, 0; kicks < s.kicks; {
		if atomic.LoadUint32(s.tx.consumer) == s.tx.prod {
			break
		}
		_, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(s.fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
		switch {
		case errno == 0 || errno == unix.EAGAIN || errno == unix.EINTR:
			kicks++
		case errno == unix.EBUSY && !s.zeroCopy && dropped < len(s.tx.entries):
			// The port has no carrier: the kernel took a frame out of the ring, dropped it and stopped (xsk_generic_xmit). Were the
			// others to stay, they would leave once the port has one again, however late.
			dropped++
			s.txDropped.Add(1)
		case errno == unix.EBUSY || errno == unix.ENOBUFS: // no room or memory in the driver now; the frames stay in the ring
			return nil
		default:
			return fmt.Errorf("transmit on AF_XDP socket: %w", errno)
		}
	}
	return nil
}

func (s *native) Wait(timeout time.Duration) (bool, error) {
	if s.rx.available(1) > 0 {
		return true, nil
	}
	return waitReadable(s.fd, timeout)
}

func (s *native) Stats() (Stats, error) {
	st, err := readStats(s.fd)
	st.TxDropped = s.txDropped.Load()
	return st, err
}

func (s *native) FD() int        { return s.fd }
func (s *native) ZeroCopy() bool { return s.zeroCopy }

func (s *native) Close() error {
	if s.fd < 0 {
		return nil
	}
	// The mappings hold the socket too: the queue is free only after all of them are gone.
	errs := []error{s.fill.unmap(), s.completion.unmap(), s.rx.unmap(), s.tx.unmap(), unix.Close(s.fd)}
	s.fd, s.umem = -1, nil
	errs = append(errs, s.memory.release())
	s.held, s.spare = nil, nil
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close AF_XDP socket: %w", err)
	}
	return nil
}
