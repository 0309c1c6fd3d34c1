package ingest

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/afpacket"
	"github.com/tidegate-mesh/tidegate/libs/afxdp"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
)

// plane is an opened data plane: gates and sockets of all interfaces. When an interface disappears the plane
// is closed and another is opened; what queues have counted outlives it.
type plane struct {
	ports   []*port
	packets bool // read by AF_PACKET
	shared  bool // forwarded frames are not copied
}

// port is one interface of a plane.
type port struct {
	name    string
	index   uint8
	ifindex int
	gate    *xdp.Gate          // with AF_PACKET nil where XDP cannot be had
	queues  int                // receive queues that AF_XDP reads, when opened
	claim   io.Closer          // host mode: keeps other sensors away; nil: it could not be had
	promisc io.Closer          // keeps the interface promiscuous; nil: it could not be
	sockets []afxdp.Socket     // a queue
	packets []*afpacket.Socket // tap without AF_XDP: what there is instead, a worker
	copies  *xdp.Copies        // host mode: what there is instead of sockets, for all queues
	// txLocks guard the sockets' transmit halves when the two ports have different numbers of queues, so
	// that several workers send through one socket; nil when each socket has one sender.
	txLocks []sync.Mutex
	base    xdp.Counters // when opened
	counts  *portCounts
}

// portCounts are an interface's part of the ledger over all planes of this run. Workers add once a batch.
type portCounts struct {
	name        string
	capture     atomic.Value // string
	kind        atomic.Value // string: one of captureKinds
	queues      []queueCounts
	records     atomic.Uint64 // of capture files
	transmitted atomic.Uint64
	txDropped   atomic.Uint64

	mu   sync.Mutex
	past portLedger // of closed planes
	last portLedger // as last read from the open plane
}

type queueCounts struct{ packets, bytes atomic.Uint64 }

// portLedger is what gate and sockets of one port have counted.
type portLedger struct {
	xdp           xdp.Counters
	ring          afxdp.Stats
	packets       afpacket.Stats
	received      uint64
	lostAtRestart uint64
}

// maxQueues bounds the queues of an interface: a queue's number is one byte of its flows' ids.
const maxQueues = 256

// openXDP attaches the gates and binds a socket to every queue. Frames flow only after connect.
func (s *Service) openXDP() (_ *plane, err error) {
	p := &plane{}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if err := refuseSecond(s.cfg.Ifaces); err != nil {
		return nil, err
	}
	size, err := frameSize(s.cfg.Ifaces)
	if err != nil && s.cfg.Mode != ModeHost {
		return nil, err
	}
	mode := map[string]xdp.Mode{ModeInline: xdp.ModeInline, ModeTap: xdp.ModeTap, ModeHost: xdp.ModeHost}[s.cfg.Mode]
	for i, name := range s.cfg.Ifaces {
		o := xdp.Options{
			Iface: name, BPFFS: s.cfg.BPFFS, Mode: mode, FailClosed: s.cfg.FailClosed,
			Geometry: xdp.DefaultGeometry(), Log: s.tel.Log,
		}
		if s.cfg.Mode == ModeInline {
			o.Peer = s.cfg.Ifaces[1-i]
		}
		g, err := xdp.Open(o)
		if err != nil {
			return nil, err // it names the interface
		}
		q := &port{name: name, index: uint8(i), ifindex: g.Ifindex(), gate: g, counts: s.counts[i]} //nolint:gosec // 0 or 1
		p.ports = append(p.ports, q)
		if s.cfg.Mode == ModeHost {
			q.claim, _ = claim(name) // it was free
		}
		if q.base, err = g.Counters(); err != nil {
			return nil, err
		}
		if s.cfg.Mode == ModeHost {
			if q.copies, err = g.OpenCopies(); err != nil {
				return nil, err
			}
			q.counts.capture.Store("ring buffer, 240 bytes of a packet")
			q.counts.kind.Store(captureRing)
			continue
		}
		q.queues = min(g.Queues(), maxQueues)
		// A mirror's frames, and a bridge's, are for others' addresses.
		if q.promisc, err = afpacket.Promiscuous(name); err != nil {
			s.tel.Log.Warn("frames for other machines may not come up", "iface", name, "error", err)
			q.promisc = nil
		}
	}
	if s.cfg.Mode == ModeHost {
		return p, nil
	}
	return p, p.openSockets(&s.cfg, size, s.tel.Log)
}

// openSockets binds a socket to every queue. In a bridge, queue n of one port and queue n of the other share frame memory
// if they can.
func (p *plane) openSockets(cfg *Config, size int, log *slog.Logger) error {
	if cfg.Mode == ModeInline {
		if err := p.openPairs(cfg, size, log); err != nil {
			return err
		}
	}
	for _, q := range p.ports {
		for n := len(q.sockets); n < q.queues; n++ {
			sock, err := afxdp.Open(cfg.sockets(q.name, n, size))
			if err != nil {
				return fmt.Errorf("capture from %s is not possible: %w", q.name, err)
			}
			q.sockets = append(q.sockets, sock)
		}
		if len(q.sockets) == 0 {
			return fmt.Errorf("capture from %s is not possible: it has no receive queue", q.name)
		}
		q.describeSockets(p.shared)
	}
	return nil
}

// openPairs binds the sockets of a bridge's queues that share frame memory, if asked to. A frame that several workers'
// sockets could transmit would have several owners, so with different numbers of queues frames are copied, under locks.
func (p *plane) openPairs(cfg *Config, size int, log *slog.Logger) error {
	a, b := p.ports[0], p.ports[1]
	copies := fmt.Errorf("%s has %d queues and %s has %d; give both the same number (ethtool -L)", a.name, a.queues, b.name, b.queues)
	if a.queues == b.queues {
		copies = nil
	} else {
		a.txLocks, b.txLocks = make([]sync.Mutex, a.queues), make([]sync.Mutex, b.queues)
	}
	if !cfg.SharedFrames {
		return nil
	}
	for n := 0; n < a.queues && copies == nil; n++ {
		pair, err := afxdp.OpenPair(cfg.sockets(a.name, n, size), cfg.sockets(b.name, n, size))
		if err != nil {
			return fmt.Errorf("capture from %s and %s is not possible: %w", a.name, b.name, err)
		}
		a.sockets, b.sockets = append(a.sockets, pair.A), append(b.sockets, pair.B)
		copies = pair.Copies
	}
	p.shared = copies == nil
	if copies != nil {
		log.Info("forwarded frames are copied from one port's memory to the other's", "reason", copies)
	}
	return nil
}

// frameSize checks that the interfaces can be captured from and returns what the largest MTU takes: the
// ports of a bridge send each other's frames. 256 bytes of a frame are headroom; a link header takes up to 22.
func frameSize(ifaces []string) (int, error) {
	const overhead = 256 + 22
	size := 2048
	for _, name := range ifaces {
		ifi, err := net.InterfaceByName(name)
		switch {
		case err != nil:
			continue // attaching says what is wrong
		case ifi.MTU+overhead > 4096:
			return 0, fmt.Errorf("capture from %s is not possible: its MTU of %d does not fit an AF_XDP frame; set it to %d or less", name, ifi.MTU, 4096-overhead)
		case ifi.MTU+overhead > size:
			size = 4096
		}
	}
	return size, nil
}

// claim takes the first queue of an interface, as every sensor that reads by AF_XDP does, so that another finds it taken.
func claim(iface string) (afxdp.Socket, error) {
	cfg := afxdp.DefaultConfig(iface, 0)
	cfg.Frames, cfg.RxRing, cfg.TxRing, cfg.ZeroCopy = 64, 64, 64, afxdp.ZeroCopyNever
	return afxdp.Open(cfg)
}

// refuseSecond fails where another sensor reads an interface. It is asked before the gates are opened, which changes their
// mode: that of the other, too. What else is wrong with an interface shows later.
func refuseSecond(ifaces []string) error {
	for _, name := range ifaces {
		sock, err := claim(name)
		if errors.Is(err, afxdp.ErrQueueBusy) {
			return fmt.Errorf("capture from %s is not possible while another sensor reads it; stop that one first: %w", name, err)
		}
		if err == nil {
			_ = sock.Close()
		}
	}
	return nil
}

// refuseLoopback keeps the machine's services connected to each other.
func refuseLoopback(ifaces []string) error {
	for _, name := range ifaces {
		if ifi, err := net.InterfaceByName(name); err == nil && ifi.Flags&net.FlagLoopback != 0 {
			return fmt.Errorf("%s is the loopback interface: capture would cut this machine's services off from each other; use --mode host", name)
		}
	}
	return nil
}

func (q *port) describeSockets(shared bool) {
	attach, copying := "native", "copy"
	if q.gate.Generic() {
		attach = "generic"
	}
	if q.sockets[0].ZeroCopy() {
		copying = "zero-copy"
	}
	if shared {
		copying += ", shared memory"
	}
	q.counts.capture.Store("af_xdp " + attach + " " + copying)
	q.counts.kind.Store(CaptureAFXDP)
}

// readers is how many workers the port feeds.
func (q *port) readers() int {
	if q.copies != nil {
		return 1
	}
	return max(len(q.sockets), len(q.packets))
}

// connect makes the sockets the readers of their queues.
func (p *plane) connect() error {
	for _, q := range p.ports {
		for _, sock := range q.packets {
			if err := sock.Start(); err != nil {
				return fmt.Errorf("capture from %s: %w", q.name, err)
			}
		}
		for n, sock := range q.sockets {
			if err := q.gate.SetSocket(n, sock.FD()); err != nil {
				return err
			}
		}
	}
	return nil
}

// disconnect takes the sockets out of the gates, which then forward in the kernel (inline), pass (host) or drop (tap),
// and waits until packets that were on the way have reached the rings.
func (p *plane) disconnect() error {
	var errs []error
	settle := 5 * time.Millisecond
	for _, q := range p.ports {
		for n := range q.sockets {
			errs = append(errs, q.gate.ClearSocket(n))
		}
		for _, sock := range q.packets {
			errs = append(errs, sock.Stop())
			settle = sock.Settle()
		}
		if q.copies != nil {
			errs = append(errs, q.copies.Stop())
		}
	}
	time.Sleep(settle)
	return errors.Join(errs...)
}

// workers is how many workers the plane needs: the largest number of queues of a port; one in host mode.
func (p *plane) workers() int {
	n := 0
	for _, q := range p.ports {
		n = max(n, q.readers())
	}
	return n
}

// alive reports what is wrong with the interfaces, nil if nothing is.
func (p *plane) alive() error {
	for _, q := range p.ports {
		ifi, err := net.InterfaceByName(q.name)
		if err != nil {
			return fmt.Errorf("interface %s is gone", q.name)
		}
		if ifi.Index != q.ifindex {
			return fmt.Errorf("interface %s was made again", q.name)
		}
		if q.gate == nil {
			continue
		}
		if err := q.gate.Alive(); err != nil {
			return err
		}
	}
	return nil
}

// account reads gates and sockets. Receivers are read before senders, so that what is between them shows as
// in flight, never as a surplus.
func (p *plane) account() error {
	var errs []error
	for _, q := range p.ports {
		l := portLedger{received: q.counts.received()}
		for _, sock := range q.sockets {
			st, err := sock.Stats()
			if err != nil {
				errs = append(errs, err)
				continue
			}
			l.ring.RxDropped += st.RxDropped
			l.ring.RxRingFull += st.RxRingFull
			l.ring.RxFillEmpty += st.RxFillEmpty
			l.ring.RxInvalid += st.RxInvalid
			l.ring.TxInvalid += st.TxInvalid
			l.ring.TxDropped += st.TxDropped
		}
		for _, sock := range q.packets {
			st, err := sock.Stats()
			if err != nil {
				errs = append(errs, err)
			}
			l.packets.Copied += st.Copied
			l.packets.Dropped += st.Dropped
		}
		if q.gate != nil {
			now, err := q.gate.Counters()
			if err != nil {
				errs = append(errs, err)
				continue
			}
			l.xdp = subtract(now, q.base)
		}
		q.counts.mu.Lock()
		l.received -= q.counts.past.received
		q.counts.last = l
		q.counts.mu.Unlock()
	}
	return errors.Join(errs...)
}

// close settles the ledger and frees everything. Workers must have ended.
func (p *plane) close() {
	_ = p.account() // a vanished interface keeps its last reading
	for _, q := range p.ports {
		q.counts.settle()
		for _, sock := range q.sockets {
			_ = sock.Close()
		}
		for _, sock := range q.packets {
			_ = sock.Close()
		}
		if q.copies != nil {
			_ = q.copies.Close()
		}
		for _, c := range []io.Closer{q.claim, q.promisc} {
			if c != nil {
				_ = c.Close()
			}
		}
		if q.gate != nil {
			_ = q.gate.Close()
		}
	}
}

// tookRecord counts a record of a capture file.
func (c *portCounts) tookRecord(bytes int) {
	c.queues[0].packets.Add(1)
	c.queues[0].bytes.Add(uint64(bytes)) //nolint:gosec // a length
	c.records.Add(1)
}

func (c *portCounts) received() uint64 {
	sum := uint64(0)
	for i := range c.queues {
		sum += c.queues[i].packets.Load()
	}
	return sum
}

// settle adds the last reading to the past. What was redirected or copied and never came out of a ring is lost.
func (c *portCounts) settle() {
	received := c.received()
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.last
	l.received = received - c.past.received
	if got := l.received + l.lost(); l.raised() > got {
		l.lostAtRestart = l.raised() - got
	}
	c.past = c.past.plus(l)
	c.last = portLedger{}
}

// sent is how many frames left by the port, and how many were to and did not. What the kernel dropped behind the ring was
// counted as transmitted, or is just about to be.
func (c *portCounts) sent(l *portLedger) (transmitted, dropped uint64) {
	took := c.transmitted.Load()
	lost := min(l.ring.TxDropped, took)
	return took - lost, c.txDropped.Load() + lost
}

// ledger is the sum over all planes.
func (c *portCounts) ledger() portLedger {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.past.plus(c.last)
}

// raised is what was meant for user space, by the gate or by AF_PACKET.
func (l *portLedger) raised() uint64 {
	return l.xdp.Redirect + l.xdp.Copied + l.xdp.Uncopied + l.packets.Copied
}

// lost is what of that a full ring had no room for.
func (l *portLedger) lost() uint64 { return l.ring.Lost() + l.xdp.Uncopied + l.packets.Dropped }

func (l portLedger) plus(o portLedger) portLedger {
	l.xdp.Seen += o.xdp.Seen
	l.xdp.Drop += o.xdp.Drop
	l.xdp.RateLimited += o.xdp.RateLimited
	l.xdp.Pass += o.xdp.Pass
	l.xdp.Forward += o.xdp.Forward
	l.xdp.Redirect += o.xdp.Redirect
	l.xdp.NoReader += o.xdp.NoReader
	l.xdp.Count += o.xdp.Count
	l.xdp.Allow += o.xdp.Allow
	l.xdp.Unread += o.xdp.Unread
	l.xdp.Metered += o.xdp.Metered
	l.xdp.Copied += o.xdp.Copied
	l.xdp.Uncopied += o.xdp.Uncopied
	l.xdp.Bytes.Add(&o.xdp.Bytes)
	l.ring.RxDropped += o.ring.RxDropped
	l.ring.RxRingFull += o.ring.RxRingFull
	l.ring.RxFillEmpty += o.ring.RxFillEmpty
	l.ring.RxInvalid += o.ring.RxInvalid
	l.ring.TxInvalid += o.ring.TxInvalid
	l.ring.TxDropped += o.ring.TxDropped
	l.packets.Copied += o.packets.Copied
	l.packets.Dropped += o.packets.Dropped
	l.received += o.received
	l.lostAtRestart += o.lostAtRestart
	return l
}

func subtract(now, base xdp.Counters) xdp.Counters {
	now.Seen -= base.Seen
	now.Drop -= base.Drop
	now.RateLimited -= base.RateLimited
	now.Pass -= base.Pass
	now.Forward -= base.Forward
	now.Redirect -= base.Redirect
	now.NoReader -= base.NoReader
	now.Count -= base.Count
	now.Allow -= base.Allow
	now.Unread -= base.Unread
	now.Never -= base.Never
	now.Metered -= base.Metered
	now.Copied -= base.Copied
	now.Uncopied -= base.Uncopied
	now.Bytes.Subtract(&base.Bytes)
	return now
}
