package afxdp

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/asavie/xdp"
	"golang.org/x/sys/unix"
)

// asavie is the backend over github.com/asavie/xdp v0.3.3. That socket keeps one table of free frames for
// both directions without locks or barriers, so a lock guards every use of it here.
//
// Its table says that a received frame is free as soon as it was received. Frames are therefore split as in
// the native backend, but with the transmit half first: GetDescs scans from frame 0, so it gives transmit
// frames as long as there are any, and whatever it gives beyond them is cut off.
type asavie struct {
	mu     sync.Mutex
	x      *xdp.Socket
	txEnd  uint64 // first address of the receive half
	mask   uint64
	size   int
	frames int
	held   []xdp.Desc
	copier copier
	broken error
}

func openAsavie(cfg Config, ifindex int) (Socket, error) {
	if cfg.ZeroCopy != ZeroCopyAuto {
		return nil, errors.New("the asavie backend takes its bind flags from a global: only ZeroCopyAuto is possible")
	}
	var x *xdp.Socket
	var err error
	// A queue stays bound for a moment after its last socket is closed.
	for range 40 {
		x, err = xdp.NewSocket(ifindex, cfg.Queue, &xdp.SocketOptions{
			NumFrames: cfg.Frames + cfg.TxRing, FrameSize: cfg.FrameSize,
			FillRingNumDescs: cfg.Frames, CompletionRingNumDescs: cfg.TxRing,
			RxRingNumDescs: cfg.RxRing, TxRingNumDescs: cfg.TxRing,
		})
		// It flattens errors to text.
		if err == nil || !strings.Contains(err.Error(), unix.EBUSY.Error()) {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err != nil {
		return nil, explainText(err)
	}
	s := &asavie{
		x: x, size: cfg.FrameSize, mask: ^uint64(cfg.FrameSize - 1), //nolint:gosec // a checked size
		txEnd: uint64(cfg.TxRing * cfg.FrameSize), frames: cfg.Frames, //nolint:gosec // checked sizes
		held: make([]xdp.Desc, 0, cfg.Frames),
	}
	for i := range cfg.Frames {
		s.held = append(s.held, xdp.Desc{Addr: s.txEnd + uint64(i*cfg.FrameSize)}) //nolint:gosec // checked sizes
	}
	s.Release()
	return s, nil
}

// explainText finds the errno in an error that carries it only as text.
func explainText(err error) error {
	text := err.Error()
	bind := strings.Contains(text, "Bind")
	for _, errno := range []unix.Errno{unix.EPERM, unix.EACCES, unix.EAFNOSUPPORT, unix.EBUSY, unix.ENODEV, unix.EINVAL, unix.ENOBUFS} {
		if !strings.HasSuffix(text, errno.Error()) {
			continue
		}
		if bind {
			return explainBind(errno)
		}
		return explain(text, errno)
	}
	return err
}

func (s *asavie) Receive(frames []Frame) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	descs := s.x.Receive(len(frames))
	for i, d := range descs {
		frames[i].Data = s.x.GetFrame(d)
		s.held = append(s.held, d)
	}
	return len(descs)
}

func (s *asavie) Release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.held {
		s.held[i].Addr &= s.mask
	}
	n := s.x.Fill(s.held)
	s.held = s.held[:copy(s.held, s.held[n:])]
}

// Send transmits at once, because the library's Transmit does.
func (s *asavie) Send(frames [][]byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return 0, s.broken
	}
	var tooLarge error
	for i, f := range frames {
		if len(f) > s.size {
			tooLarge = fmt.Errorf("send %d bytes: %w (%d)", len(f), ErrFrameTooLarge, s.size)
			frames = frames[:i]
			break
		}
	}
	s.reclaim()
	// Never more than the ring takes: Transmit cuts silently and the frames beyond would be lost.
	descs := s.x.GetDescs(min(len(frames), s.x.NumFreeTxSlots()))
	n := 0
	for n < len(descs) && descs[n].Addr < s.txEnd {
		descs[n].Len = uint32(len(frames[n])) //nolint:gosec // at most the frame size
		copy(s.x.GetFrame(descs[n]), frames[n])
		n++
	}
	if n > 0 {
		if err := s.transmit(descs[:n]); err != nil {
			return n, err
		}
	}
	if n < len(frames) {
		return n, nil
	}
	return n, tooLarge
}

func (s *asavie) Forward(frames []Frame, to Socket) (int, error) { return s.copier.forward(frames, to) }

// transmit turns the library's panic on an unexpected errno (the link went down) into an error; the
// socket's transmit half is unusable afterwards.
func (s *asavie) transmit(descs []xdp.Desc) (err error) {
	defer func() {
		if r := recover(); r != nil {
			s.broken = fmt.Errorf("transmit on AF_XDP socket: %v", r)
			err = s.broken
		}
	}()
	s.x.Transmit(descs)
	return nil
}

func (s *asavie) reclaim() {
	if n := s.x.NumCompleted(); n > 0 {
		s.x.Complete(n)
	}
}

func (s *asavie) Flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return s.broken
	}
	// One call moves 32 frames in copy mode; the ring tells what is left.
	for range s.frames/copyBudget + 1 {
		s.reclaim()
		if s.x.NumTransmitted() == 0 {
			return nil
		}
		before := s.x.NumFreeTxSlots()
		if err := s.transmit(nil); err != nil {
			return err
		}
		if s.x.NumFreeTxSlots() == before {
			break
		}
	}
	s.reclaim()
	return nil
}

func (s *asavie) Wait(timeout time.Duration) (bool, error) {
	s.mu.Lock()
	ready := s.x.NumReceived() > 0
	s.mu.Unlock()
	if ready {
		return true, nil
	}
	return waitReadable(s.x.FD(), timeout)
}

func (s *asavie) Stats() (Stats, error) { return readStats(s.x.FD()) }
func (s *asavie) FD() int               { return s.x.FD() }

func (s *asavie) ZeroCopy() bool {
	v, err := unix.GetsockoptInt(s.x.FD(), unix.SOL_XDP, unix.XDP_OPTIONS)
	return err == nil && v&unix.XDP_OPTIONS_ZEROCOPY != 0
}

// Close also unmaps the rings, which the library leaves mapped: they would keep the queue bound until the
// process ends.
func (s *asavie) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	fd := s.x.FD()
	if fd < 0 {
		return nil
	}
	rings, err := socketMappings(fd)
	err = errors.Join(err, s.x.Close())
	for _, r := range rings {
		if _, _, errno := unix.Syscall(unix.SYS_MUNMAP, r.addr, r.length, 0); errno != 0 {
			err = errors.Join(err, errno)
		}
	}
	if err != nil {
		return fmt.Errorf("close AF_XDP socket: %w", err)
	}
	return nil
}

type mapping struct{ addr, length uintptr }

// socketMappings lists this process's mappings of a socket, from /proc/self/maps (proc(5)).
func socketMappings(fd int) ([]mapping, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("stat socket: %w", err)
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	name := fmt.Sprintf("socket:[%d]", st.Ino)
	var found []mapping
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if !strings.HasSuffix(sc.Text(), name) {
			continue
		}
		span, _, _ := strings.Cut(sc.Text(), " ")
		from, to, _ := strings.Cut(span, "-")
		a, err1 := strconv.ParseUint(from, 16, 64)
		b, err2 := strconv.ParseUint(to, 16, 64)
		if err1 == nil && err2 == nil {
			found = append(found, mapping{uintptr(a), uintptr(b - a)})
		}
	}
	return found, nil
}
