package xdp

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// copyRecord mirrors struct copy of bpf/state.h.
type copyRecord struct {
	TimeNs     uint64
	Size, Kept uint32
	Bytes      [240]byte
}

// Bits of a record's length word (kernel, include/uapi/linux/bpf.h: BPF_RINGBUF_BUSY_BIT, BPF_RINGBUF_DISCARD_BIT), and how
// long its header is.
const (
	ringBusy    = 1 << 31
	ringDiscard = 1 << 30
	ringHeader  = 8
)

// Copies are the first 240 bytes of packets that host mode passed to the machine's stack, read from the kernel's ring buffer
// in place (kernel Documentation/bpf/ringbuf.rst). One goroutine may use it.
type Copies struct {
	gate     *Gate
	claim    net.Listener // one reader an interface: two would free each other's records
	position *uint64      // the reader's, shared with the kernel
	end      *uint64      // the writer's, of the kernel
	data     []byte       // twice the ring, so that no record is in two parts
	mask     uint64
	next     uint64 // what Release frees up to
	timeNs   uint64
	bytes    int
	shared   [2][]byte
}

// ErrCopiesRead is the error of OpenCopies when another process reads the interface's copies.
var ErrCopiesRead = errors.New("another process reads this interface's packets in host mode")

// OpenCopies begins to copy packets up in host mode: all that no rule drops and that belong to no flow of AllowFlow. What an
// earlier reader left is skipped. A process that dies leaves the ring to fill; packets pass all the same.
func (g *Gate) OpenCopies() (_ *Copies, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: read copies of packets: %w", g.iface, err)
		}
	}()
	c := &Copies{gate: g}
	if c.claim, err = net.Listen("unix", fmt.Sprintf("@tidegate-copies-%d", g.ifindex)); err != nil {
		if errors.Is(err, unix.EADDRINUSE) {
			return nil, ErrCopiesRead
		}
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = c.unmap()
		}
	}()
	page, size := os.Getpagesize(), int(g.maps.GateCopies.MaxEntries())
	fd := g.maps.GateCopies.FD()
	if c.shared[0], err = unix.Mmap(fd, 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, err
	}
	if c.shared[1], err = unix.Mmap(fd, int64(page), page+2*size, unix.PROT_READ, unix.MAP_SHARED); err != nil {
		return nil, err
	}
	c.position = (*uint64)(unsafe.Pointer(&c.shared[0][0])) //nolint:gosec // a page begins here
	c.end = (*uint64)(unsafe.Pointer(&c.shared[1][0]))      //nolint:gosec // as above
	c.data, c.mask = c.shared[1][page:], uint64(size-1)     //nolint:gosec // positive
	c.next = atomic.LoadUint64(c.end)
	c.Release()
	return c, g.locked(func() error { return g.setConfig(func(cfg *config) { cfg.CopiesRead = 1 }) })
}

// Receive takes up to len(frames) copies and returns how many; it never blocks. They are borrowed until Release and must not be
// written to.
func (c *Copies) Receive(frames [][]byte) (n int) {
	end := atomic.LoadUint64(c.end)
	c.bytes = 0
	for n < len(frames) && c.next < end {
		at := c.next & c.mask
		length := atomic.LoadUint32((*uint32)(unsafe.Pointer(&c.data[at]))) //nolint:gosec // records begin at multiples of 8
		if length&ringBusy != 0 {
			break // still being written
		}
		if length&ringDiscard == 0 {
			r := (*copyRecord)(unsafe.Pointer(&c.data[at+ringHeader])) //nolint:gosec // the program makes no other records
			frames[n] = r.Bytes[:min(r.Kept, uint32(len(r.Bytes)))]
			c.timeNs = r.TimeNs
			c.bytes += int(r.Size)
			n++
		}
		c.next += ringHeader + uint64(length&^(ringBusy|ringDiscard)+7)&^7
	}
	return n
}

// Release gives what was received back to the kernel.
func (c *Copies) Release() { atomic.StoreUint64(c.position, c.next) }

// Last tells of the newest Receive when its last packet came, in ns of CLOCK_MONOTONIC, and how many bytes all its frames have,
// of which the copies may hold less.
func (c *Copies) Last() (timeNs uint64, bytes int) { return c.timeNs, c.bytes }

// FD can be polled for copies.
func (c *Copies) FD() int { return c.gate.maps.GateCopies.FD() }

// Stop ends the copying; what is in the ring can still be received.
func (c *Copies) Stop() error {
	return c.gate.locked(func() error { return c.gate.setConfig(func(cfg *config) { cfg.CopiesRead = 0 }) })
}

// Close frees the memory; frames become invalid.
func (c *Copies) Close() error { return c.unmap() }

func (c *Copies) unmap() error {
	errs := []error{c.claim.Close()}
	for _, m := range c.shared {
		if m != nil {
			errs = append(errs, unix.Munmap(m))
		}
	}
	return errors.Join(errs...)
}
