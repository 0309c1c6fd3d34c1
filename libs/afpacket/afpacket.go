// Package afpacket reads an interface's Ethernet frames through AF_PACKET sockets with TPACKET_V3 rings (Linux
// Documentation/networking/packet_mmap.rst): for hosts where AF_XDP cannot be had.
//
// The kernel copies each frame that comes in, after an XDP program has passed it and the network stack has joined
// segments (GRO), and hands copies over a block at a time. Reading stops nothing: the frames go their usual way.
package afpacket

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tidegate-mesh/tidegate/libs/afxdp"
	"github.com/tidegate-mesh/tidegate/libs/capability"
)

// Names of the ways to spread frames over an interface's sockets.
const (
	FanoutHash = "hash" // by the flow, both directions alike
	FanoutCPU  = "cpu"  // by the CPU that the frame came in on, which the card's RSS chooses
)

// Config describes the sockets of an interface.
type Config struct {
	Iface   string // in the calling thread's network namespace
	Readers int    // sockets that share the frames, 1 to 256
	Fanout  string // FanoutHash or FanoutCPU; "" is FanoutHash
	// Ring is the memory of a socket's ring in bytes, a multiple of Block. A frame takes about 90 bytes beside its own.
	Ring int
	// Block is what the kernel hands over at a time, in bytes: a power of two, at least 64 KiB, and more than the longest frame.
	Block int
	// Retire is the age at which a block is handed over though it is not full, whole milliseconds; the kernel rounds it up to
	// its clock's ticks (1 to 10 ms). This much later than over AF_XDP a frame may be seen.
	Retire time.Duration
}

// DefaultConfig is one socket with a ring of 32 MiB in blocks of 256 KiB, handed over after 2 ms.
func DefaultConfig(iface string) Config {
	return Config{Iface: iface, Readers: 1, Fanout: FanoutHash, Ring: 32 << 20, Block: 256 << 10, Retire: 2 * time.Millisecond}
}

// Validate reports the first mistake.
func (c *Config) Validate() error {
	switch {
	case c.Readers < 1 || c.Readers > 256:
		return fmt.Errorf("%d readers: use 1 to 256", c.Readers)
	case c.Fanout != "" && c.Fanout != FanoutHash && c.Fanout != FanoutCPU:
		return fmt.Errorf("fanout %q is neither %q nor %q", c.Fanout, FanoutHash, FanoutCPU)
	case c.Block < 64<<10 || c.Block > 16<<20 || c.Block&(c.Block-1) != 0:
		return fmt.Errorf("block of %d bytes: use a power of two from 65536 to 16777216", c.Block)
	case c.Ring < 2*c.Block || c.Ring > 1<<30 || c.Ring%c.Block != 0:
		return fmt.Errorf("ring of %d bytes: use a multiple of %d from %d to 1073741824", c.Ring, c.Block, 2*c.Block)
	case c.Retire < time.Millisecond || c.Retire > time.Second:
		return fmt.Errorf("blocks handed over after %v: use 1ms to 1s", c.Retire)
	}
	return nil
}

// Errors of Open and Wait; test with errors.Is. Without the right to open sockets Open gives a *capability.DeniedError.
var (
	ErrNoInterface = errors.New("no such network interface")
	ErrNotEthernet = errors.New("the interface carries no Ethernet frames, and those alone are read: name another")
	ErrUnsupported = errors.New("this kernel has no packet sockets (CONFIG_PACKET)")
	ErrDown        = errors.New("the interface is down: ip link set IFACE up")
)

// vlanTag is the room for a tag that the kernel has taken out of the frame.
const vlanTag = 4

// Socket is one reader of an interface. Receive, Release and Wait belong to one goroutine at a time; Start, Stop, Stats and
// FD may be called by any. Close must not run beside other calls.
type Socket struct {
	fd     int
	ring   []byte
	block  int
	blocks int
	retire time.Duration

	at      int  // the block that is read, or is read next
	reading bool // at is the reader's
	left    uint32
	offset  uint32 // of the next frame's header in the block
	held    int    // blocks before at that are read and not released

	mu    sync.Mutex
	stats Stats
}

// Stats are the kernel's counters of a socket since it was opened: Copied = received + Dropped, once what is in the ring is
// read.
type Stats struct {
	Copied  uint64 // frames for this socket
	Dropped uint64 // of these, lost because the ring was full
}

// Open makes the sockets of an interface, which share its frames. The interface is promiscuous while they are open.
// Frames are counted and come only after Start.
func Open(cfg Config) (_ []*Socket, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("open AF_PACKET socket on %s: %w", cfg.Iface, err)
		}
	}()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	ifi, err := net.InterfaceByName(cfg.Iface)
	if err != nil {
		return nil, ErrNoInterface
	}
	var list []*Socket
	defer func() {
		if err != nil {
			for _, s := range list {
				err = errors.Join(err, s.Close())
			}
		}
	}()
	for range cfg.Readers {
		s, err := open(&cfg, ifi)
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	if len(list) > 1 {
		if err := spread(list, cfg.Fanout); err != nil {
			return nil, fmt.Errorf("share frames among %d sockets: %w", len(list), err)
		}
	}
	return list, nil
}

func open(cfg *Config, ifi *net.Interface) (_ *Socket, err error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) // of no protocol, so that nothing comes yet
	if err != nil {
		return nil, explain("socket", err)
	}
	s := &Socket{fd: fd, block: cfg.Block, blocks: cfg.Ring / cfg.Block, retire: cfg.Retire}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if err := s.Stop(); err != nil {
		return nil, err
	}
	for _, o := range []struct {
		name          string
		option, value int
	}{{"choose TPACKET_V3", unix.PACKET_VERSION, unix.TPACKET_V3}, {"reserve room for VLAN tags", unix.PACKET_RESERVE, vlanTag}} {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, o.option, o.value); err != nil {
			return nil, explain(o.name, err)
		}
	}
	const frame = 2048       // any divisor of the block: TPACKET_V3 packs frames
	req := unix.TpacketReq3{ //nolint:gosec // checked sizes
		Block_size: uint32(cfg.Block), Block_nr: uint32(s.blocks), Frame_size: frame, Frame_nr: uint32(cfg.Ring / frame),
		Retire_blk_tov: uint32(cfg.Retire.Milliseconds()),
	}
	if err := unix.SetsockoptTpacketReq3(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &req); err != nil {
		return nil, explain(fmt.Sprintf("create a ring of %d bytes", cfg.Ring), err)
	}
	if s.ring, err = unix.Mmap(fd, 0, cfg.Ring, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, explain("map the ring", err)
	}
	if ifi.Flags&net.FlagUp == 0 {
		return nil, ErrDown
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: ifi.Index}); err != nil {
		return nil, explain("bind", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return nil, explain("read the interface's type", err)
	}
	if l, ok := name.(*unix.SockaddrLinklayer); !ok || l.Hatype != unix.ARPHRD_ETHER && l.Hatype != unix.ARPHRD_LOOPBACK {
		return nil, ErrNotEthernet
	}
	if err := promiscuous(fd, ifi.Index); err != nil {
		return nil, err
	}
	return s, nil
}

// spread makes the sockets a fanout group (packet(7), PACKET_FANOUT) with a number that no other group has.
func spread(list []*Socket, fanout string) error {
	kind := unix.PACKET_FANOUT_HASH
	if fanout == FanoutCPU {
		kind = unix.PACKET_FANOUT_CPU
	}
	if err := unix.SetsockoptInt(list[0].fd, unix.SOL_PACKET, unix.PACKET_FANOUT, (kind|unix.PACKET_FANOUT_FLAG_UNIQUEID)<<16); err != nil {
		return explain("make a fanout group", err)
	}
	group, err := unix.GetsockoptInt(list[0].fd, unix.SOL_PACKET, unix.PACKET_FANOUT)
	if err != nil {
		return explain("read the fanout group", err)
	}
	for _, s := range list[1:] {
		if err := unix.SetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_FANOUT, group&0xffff|kind<<16); err != nil {
			return explain("join the fanout group", err)
		}
	}
	return nil
}

// Start lets frames come: those that the interface receives, not those that this machine sends.
func (s *Socket) Start() error {
	const (
		packetType = 0xfffff000 + 4 // SKF_AD_OFF + SKF_AD_PKTTYPE of linux/filter.h
		all        = 1 << 18
	)
	return s.filter([]unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: packetType},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.PACKET_OUTGOING, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: all},
	})
}

// Stop lets no more frames come, and none be counted. Those that are in the ring can be read at the latest after Settle.
func (s *Socket) Stop() error {
	return s.filter([]unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}})
}

// Settle is how long after Stop the kernel may take to hand the last block over.
func (s *Socket) Settle() time.Duration { return s.retire + 20*time.Millisecond } // a tick of the slowest clock, and one to begin with

func (s *Socket) filter(program []unix.SockFilter) error {
	f := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]} //nolint:gosec // a handful
	if err := unix.SetsockoptSockFprog(s.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &f); err != nil {
		return explain("attach a filter", err)
	}
	return nil
}

// Receive takes up to len(frames) frames that have been handed over and returns how many; it never blocks. The frames are
// borrowed until the next Release; VLAN tags that the kernel took out are in them again.
func (s *Socket) Receive(frames []afxdp.Frame) int {
	n := 0
	for n < len(frames) && (s.left > 0 || s.next()) {
		frames[n].Data = s.frame()
		n++
	}
	return n
}

// next goes on to the next block with frames, if it is the reader's.
func (s *Socket) next() bool {
	for {
		if s.reading {
			s.finish()
		}
		if s.held == s.blocks {
			return false // all are borrowed
		}
		h := s.header(s.at)
		if atomic.LoadUint32(&h.Block_status)&unix.TP_STATUS_USER == 0 { // acquires what the kernel has written
			return false
		}
		s.reading, s.left, s.offset = true, h.Num_pkts, h.Offset_to_first_pkt
		if s.left > 0 {
			return true
		}
	}
}

// finish leaves a block that is read.
func (s *Socket) finish() {
	s.reading = false
	s.at = (s.at + 1) % s.blocks
	s.held++
}

func (s *Socket) header(block int) *unix.TpacketHdrV1 {
	d := (*unix.TpacketBlockDesc)(unsafe.Pointer(&s.ring[block*s.block])) //nolint:gosec // a block of the mapping, which the kernel aligns
	return (*unix.TpacketHdrV1)(unsafe.Pointer(&d.Hdr))                   //nolint:gosec // the union's only member
}

func (s *Socket) frame() []byte {
	from := s.at*s.block + int(s.offset)
	h := (*unix.Tpacket3Hdr)(unsafe.Pointer(&s.ring[from])) //nolint:gosec // the kernel aligns headers to 16 bytes
	s.left--
	s.offset += h.Next_offset
	from += int(h.Mac)
	end := from + int(h.Snaplen)
	const addresses = 12
	if h.Status&unix.TP_STATUS_VLAN_VALID != 0 && h.Snaplen >= addresses {
		from -= vlanTag
		copy(s.ring[from:from+addresses], s.ring[from+vlanTag:])
		kind := uint16(unix.ETH_P_8021Q)
		if h.Status&unix.TP_STATUS_VLAN_TPID_VALID != 0 {
			kind = h.Hv1.Vlan_tpid
		}
		binary.BigEndian.PutUint16(s.ring[from+addresses:], kind)
		binary.BigEndian.PutUint16(s.ring[from+addresses+2:], uint16(h.Hv1.Vlan_tci)) //nolint:gosec // the tag's 16 bits
	}
	return s.ring[from:end:end]
}

// Release gives the blocks that have been read to their end back to the kernel.
func (s *Socket) Release() {
	if s.reading && s.left == 0 {
		s.finish()
	}
	for ; s.held > 0; s.held-- {
		h := s.header((s.at - s.held + s.blocks) % s.blocks)
		atomic.StoreUint32(&h.Block_status, unix.TP_STATUS_KERNEL) // releases the reads before it
	}
}

// Wait sleeps until a frame can be received or the timeout ends, and reports whether one can. A negative timeout waits
// without end. It fails with ErrDown when the interface went down or away.
func (s *Socket) Wait(timeout time.Duration) (bool, error) {
	if s.left > 0 {
		return true, nil
	}
	var limit *unix.Timespec
	if timeout >= 0 {
		ts := unix.NsecToTimespec(timeout.Nanoseconds())
		limit = &ts
	}
	fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}} //nolint:gosec // descriptors are small
	n, err := unix.Ppoll(fds, limit, nil)
	switch {
	case errors.Is(err, unix.EINTR):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("wait for frames: %w", err)
	case n > 0 && fds[0].Revents&(unix.POLLERR|unix.POLLHUP|unix.POLLNVAL) != 0:
		return false, fmt.Errorf("wait for frames: %w", ErrDown)
	}
	return n > 0, nil
}

// Stats reads the kernel's counters.
func (s *Socket) Stats() (Stats, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st, err := unix.GetsockoptTpacketStatsV3(s.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS) // which sets them to 0
	if err != nil {
		return s.stats, fmt.Errorf("read the statistics of an AF_PACKET socket: %w", err)
	}
	s.stats.Copied += uint64(st.Packets) // drops are among them
	s.stats.Dropped += uint64(st.Drops)
	return s.stats, nil
}

// FD is the descriptor to poll for frames; it stays valid until Close.
func (s *Socket) FD() int { return s.fd }

// Close frees the ring; borrowed frames become invalid. A second Close does nothing.
func (s *Socket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return nil
	}
	var err error
	if s.ring != nil {
		err = unix.Munmap(s.ring)
	}
	err = errors.Join(err, unix.Close(s.fd))
	s.fd, s.ring = -1, nil
	s.reading, s.left, s.held, s.blocks = false, 0, 0, 0
	return err
}

// Probe tells whether this process can read by AF_PACKET: nil, or what is missing.
func Probe() error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return explain("socket", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3); err != nil {
		return explain("choose TPACKET_V3", err)
	}
	return nil
}

func explain(op string, err error) error {
	if no := capability.Denied(err, unix.CAP_NET_RAW); no != nil {
		return fmt.Errorf("%s: %w", op, no)
	}
	switch {
	case errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EPROTONOSUPPORT):
		return fmt.Errorf("%s: %w (%w)", op, ErrUnsupported, err)
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%s: %w (%w)", op, ErrNoInterface, err)
	case errors.Is(err, unix.ENETDOWN):
		return fmt.Errorf("%s: %w (%w)", op, ErrDown, err)
	}
	return fmt.Errorf("%s: %w", op, err)
}

func networkOrder(v uint16) uint16 { return v<<8 | v>>8 }
