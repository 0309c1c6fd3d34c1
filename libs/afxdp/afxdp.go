// Package afxdp moves raw Ethernet frames between a network interface's queue and user space through an
// AF_XDP socket (Linux Documentation/networking/af_xdp.rst).
//
// Two backends stand behind the narrow Socket type: "native", this package's own rings, and "asavie", the
// socket of github.com/asavie/xdp. Both pass the suite in afxdptest. The package attaches no XDP program:
// whoever owns the interface's program (libs/xdp) puts the socket's descriptor into its XSKMAP.
package afxdp

import (
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tidegate-mesh/tidegate/libs/capability"
)

// Frame is a received Ethernet frame. Data lies in the socket's shared frame memory: it may be read and
// written until the next Release of the socket, never after.
type Frame struct {
	Data []byte
	slot int // where the native socket holds it until Release
}

// forwarded is the slot of a frame that is in a transmit ring.
const forwarded = -1

// Receiver is the receive half of a Socket, for one goroutine at a time. The sockets of libs/afpacket have it too.
type Receiver interface {
	// Receive takes up to len(frames) frames that have arrived and returns how many; it never blocks.
	// The frames are borrowed until the next Release.
	Receive(frames []Frame) int
	// Release gives all frames received so far back to the kernel.
	Release()
	// Wait sleeps until a frame can be received or the timeout ends, and reports whether one can. A
	// negative timeout waits without end.
	Wait(timeout time.Duration) (bool, error)
	// FD is the descriptor of the socket, to poll for frames; it stays valid until Close.
	FD() int
}

// Socket is one AF_XDP socket on one queue. FD is what goes into an XSKMAP.
//
// The receive half (Receive, Release, Wait) and the transmit half (Send, Flush) may each be used by one
// goroutine at a time; the two halves by two different goroutines. Stats and FD may be called by any.
// Close must not run beside other calls.
type Socket interface {
	Receiver
	// Send copies frames into the transmit ring and returns how many it accepted, which is fewer than
	// len(frames) while the ring is full: Flush and try the rest again. An error concerns frames[n].
	// Nothing is certain to leave before Flush.
	Send(frames [][]byte) (n int, err error)
	// Forward transmits received frames, not yet released, as they were received, by another socket: the receive half
	// of this socket and the transmit half of the other in one goroutine. It returns how many the other accepted, as
	// its Send does. Between the sockets of a Pair with shared memory no byte is copied: such a frame goes to the
	// kernel once, else ErrNotHeld concerns frames[n], and from then on until Release it may be read, not
	// written, as long as no other goroutine uses the other's transmit half. Between other sockets it is copied.
	Forward(frames []Frame, to Socket) (n int, err error)
	// Flush tells the kernel to transmit what was sent and takes back the frames that have left.
	Flush() error
	// Stats reads the kernel's counters of this socket; they start at 0 when the socket is opened.
	Stats() (Stats, error)
	// ZeroCopy reports whether driver and socket share frame memory without a copy.
	ZeroCopy() bool
	// Close detaches from the queue and frees the frame memory; borrowed frames become invalid.
	Close() error
}

// Stats are the kernel's counters (struct xdp_statistics). Frames lost on the way to the receive ring are
// RxDropped + RxRingFull.
type Stats struct {
	// RxDropped counts frames not delivered because no free frame was there (see RxFillEmpty) or because
	// they are longer than FrameSize less 256 bytes of headroom.
	RxDropped uint64
	// RxRingFull counts frames not delivered because the receive ring was full.
	RxRingFull uint64
	// RxFillEmpty counts how often the kernel found the fill ring empty; in copy mode each is one
	// frame and part of RxDropped.
	RxFillEmpty uint64
	// RxInvalid and TxInvalid count bad descriptors in the fill and transmit rings: 0 unless there is
	// a fault in this package.
	RxInvalid, TxInvalid uint64
	// TxEmpty counts how often the kernel found nothing to transmit.
	TxEmpty uint64
	// TxDropped counts frames that the kernel took from the transmit ring and dropped, because the interface has no carrier.
	// The native backend counts them, in copy mode; this is not one of the kernel's counters.
	TxDropped uint64
}

// Lost is the number of frames that the XDP program redirected to this socket and that never reached the
// receive ring.
func (s Stats) Lost() uint64 { return s.RxDropped + s.RxRingFull }

// ZeroCopy selects how frames come into the frame memory.
type ZeroCopy uint8

// Values of ZeroCopy.
const (
	ZeroCopyAuto    ZeroCopy = iota // zero-copy where the driver has it, else copy
	ZeroCopyNever                   // copy
	ZeroCopyRequire                 // fail where the driver cannot
)

// Names of the backends.
const (
	Native = "native"
	Asavie = "asavie"
)

// Config describes a socket.
type Config struct {
	Iface string // interface in the calling thread's network namespace
	Queue int    // hardware queue, from 0
	// Frames is the number of receive frames, a power of two. Small memory stays in the CPU's caches:
	// 2,048 is measured to be faster than more.
	Frames int
	// FrameSize in bytes: 2,048 or 4,096. 256 bytes of it are headroom, so 2,048 carries frames of up
	// to 1,792 bytes.
	FrameSize int
	// RxRing and TxRing are ring sizes in frames, powers of two. The transmit half has TxRing frames.
	RxRing, TxRing int
	ZeroCopy       ZeroCopy
	Backend        string // Native or Asavie; "" is Native
	// NeedWakeup lets the kernel say when it wants to be called (native only; kernel 5.4).
	NeedWakeup bool
	// BusyPoll, when above 0, makes the calling thread run the driver's poll loop for up to this long
	// (native only; SO_PREFER_BUSY_POLL, kernel 5.11). Rounded up to 1 µs.
	BusyPoll time.Duration
}

// DefaultConfig is 2,048 receive frames of 2,048 bytes, rings of 2,048 and need-wakeup on.
func DefaultConfig(iface string, queue int) Config {
	return Config{
		Iface: iface, Queue: queue, Frames: 2048, FrameSize: 2048, RxRing: 2048, TxRing: 2048,
		ZeroCopy: ZeroCopyAuto, Backend: Native, NeedWakeup: true,
	}
}

// Errors of Open and Send; test with errors.Is. Without the right to open sockets Open gives a *capability.DeniedError.
var (
	ErrNoInterface   = errors.New("no such network interface")
	ErrUnsupported   = errors.New("this kernel has no AF_XDP sockets (CONFIG_XDP_SOCKETS, kernel 4.18)")
	ErrQueueBusy     = errors.New("another AF_XDP socket is bound to this queue")
	ErrNoQueue       = errors.New("the interface has no such queue")
	ErrNoZeroCopy    = errors.New("the interface's driver has no AF_XDP zero-copy: use copies, or leave the choice to the driver")
	ErrFrameTooLarge = errors.New("frame is larger than the socket's frame size")
	ErrNotHeld       = errors.New("the frame was forwarded or released before")
	ErrLockedMemory  = errors.New("the limit of locked memory is below the frame memory: give the process CAP_IPC_LOCK, raise the limit (LimitMEMLOCK of systemd, ulimit -l), or use fewer --frames")
)

// Open creates a socket and binds it to the queue. Frames arrive once FD is in the XSKMAP of the
// interface's XDP program.
func Open(cfg Config) (Socket, error) {
	ifindex, err := cfg.resolve()
	if err != nil {
		return nil, err
	}
	var s Socket
	if cfg.Backend == Asavie {
		s, err = openAsavie(cfg, ifindex)
	} else {
		s, err = openNative(cfg, ifindex)
	}
	if err != nil {
		return nil, cfg.describe(err)
	}
	return s, nil
}

// resolve checks the configuration and finds the interface.
func (c *Config) resolve() (ifindex int, err error) {
	if err := c.Validate(); err != nil {
		return 0, c.describe(err)
	}
	ifi, err := net.InterfaceByName(c.Iface)
	if err != nil {
		return 0, c.describe(ErrNoInterface)
	}
	return ifi.Index, nil
}

func (c *Config) describe(err error) error {
	return fmt.Errorf("open AF_XDP socket on %s queue %d: %w", c.Iface, c.Queue, err)
}

// Validate reports the first mistake; it does not look at the interface.
func (c *Config) Validate() error {
	switch {
	case c.Queue < 0:
		return fmt.Errorf("queue %d is negative", c.Queue)
	case !powerOfTwo(c.Frames) || !powerOfTwo(c.RxRing) || !powerOfTwo(c.TxRing):
		return fmt.Errorf("frames (%d), rx ring (%d) and tx ring (%d) must be powers of two", c.Frames, c.RxRing, c.TxRing)
	case c.Frames > 1<<20 || c.RxRing > 1<<20 || c.TxRing > 1<<20:
		return fmt.Errorf("frames (%d), rx ring (%d) and tx ring (%d) must be at most 1,048,576", c.Frames, c.RxRing, c.TxRing)
	case c.FrameSize != 2048 && c.FrameSize != 4096:
		return fmt.Errorf("frame size %d is neither 2048 nor 4096", c.FrameSize)
	case c.Backend != "" && c.Backend != Native && c.Backend != Asavie:
		return fmt.Errorf("backend %q is neither %q nor %q", c.Backend, Native, Asavie)
	}
	return nil
}

func powerOfTwo(n int) bool { return n > 0 && n&(n-1) == 0 }

// explain joins what an errno of a set-up call means here with the errno itself.
func explain(op string, err error) error {
	if no := capability.Denied(err, unix.CAP_NET_RAW); no != nil {
		return fmt.Errorf("%s: %w", op, no)
	}
	switch {
	case errors.Is(err, unix.ENOBUFS): // of registering the frame memory: xdp_umem_account_pages of the kernel
		return fmt.Errorf("%s: %w (%w)", op, ErrLockedMemory, err)
	case errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EPROTONOSUPPORT):
		return fmt.Errorf("%s: %w (%w)", op, ErrUnsupported, err)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s: %w (%w)", op, ErrQueueBusy, err)
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%s: %w (%w)", op, ErrNoInterface, err)
	}
	return fmt.Errorf("%s: %w", op, err)
}

// explainBind is explain for bind(2), where EINVAL can only mean the queue number and EOPNOTSUPP only
// the driver's missing zero-copy.
func explainBind(err error) error {
	switch {
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("bind: %w (%w)", ErrNoQueue, err)
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("bind: %w (%w)", ErrNoZeroCopy, err)
	}
	return explain("bind", err)
}
