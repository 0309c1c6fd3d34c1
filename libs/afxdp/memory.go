package afxdp

import (
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// memory is frame memory (UMEM): a part for each of its sockets, one or the two of a pair.
type memory struct {
	bytes []byte
	size  int          // of a frame
	users atomic.Int32 // sockets, and who opens them
}

// mapMemory maps a part for each socket, on the NUMA node of the socket's interface. The caller is its first user.
func mapMemory(sockets ...Config) (*memory, error) {
	length := 0
	for i := range sockets {
		length += sockets[i].partSize()
	}
	b, err := unix.Mmap(-1, 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes of frame memory: %w", length, err)
	}
	part := b
	for i := range sockets {
		n := sockets[i].partSize()
		preferNode(part[:n], sockets[i].Iface)
		part = part[n:]
	}
	// Touched now, after the NUMA preference, and by this process: neither a page fault nor, where a hypervisor keeps page
	// tables of its own, the first access to a page that madvise populated, should cost microseconds in the hot loop.
	for i := 0; i < len(b); i += os.Getpagesize() {
		b[i] = 0
	}
	m := &memory{bytes: b, size: sockets[0].FrameSize}
	m.users.Store(1)
	return m, nil
}

// partSize is the length in bytes of a socket's part.
func (c *Config) partSize() int { return (c.Frames + c.TxRing) * c.FrameSize }

// register makes it the frame memory of a socket.
func (m *memory) register(fd int) error {
	reg := unix.XDPUmemReg{
		Addr: uint64(uintptr(unsafe.Pointer(&m.bytes[0]))), //nolint:gosec // address of a mapping, which does not move
		Len:  uint64(len(m.bytes)),
		Size: uint32(m.size), //nolint:gosec // checked
	}
	if err := setsockopt(fd, unix.XDP_UMEM_REG, unsafe.Pointer(&reg), unsafe.Sizeof(reg)); err != nil {
		return explain("register frame memory", err)
	}
	return nil
}

// release unmaps it after its last user. The kernel holds the pages itself while a socket lives.
func (m *memory) release() error {
	if m.users.Add(-1) > 0 {
		return nil
	}
	return unix.Munmap(m.bytes)
}
