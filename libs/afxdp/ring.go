package afxdp

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ring is a single-producer single-consumer ring shared with the kernel. The kernel publishes with a
// release store and reads with an acquire load; sync/atomic gives both (and a little more) on every
// architecture. prod and cons are private copies that spare most looks at the shared words.
type ring[T any] struct {
	producer, consumer, flags *uint32
	entries                   []T
	mask                      uint32
	prod, cons                uint32
	memory                    []byte
}

// mapRing maps one ring of the socket. size is a power of two.
func mapRing[T any](fd int, pageOffset int64, o *unix.XDPRingOffset, size int) (ring[T], error) {
	var entry T
	length := int(o.Desc) + size*int(unsafe.Sizeof(entry)) //nolint:gosec // offsets within a mapping
	m, err := unix.Mmap(fd, pageOffset, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return ring[T]{}, err
	}
	r := ring[T]{
		producer: (*uint32)(unsafe.Pointer(&m[o.Producer])), //nolint:gosec // the kernel gives aligned offsets within m
		consumer: (*uint32)(unsafe.Pointer(&m[o.Consumer])), //nolint:gosec // as above
		flags:    (*uint32)(unsafe.Pointer(&m[o.Flags])),    //nolint:gosec // as above
		entries:  unsafe.Slice((*T)(unsafe.Pointer(&m[o.Desc])), size),
		mask:     uint32(size - 1), //nolint:gosec // size is at most 2^20
		memory:   m,
	}
	r.prod, r.cons = atomic.LoadUint32(r.producer), atomic.LoadUint32(r.consumer)
	return r, nil
}

func (r *ring[T]) unmap() error {
	if r.memory == nil {
		return nil
	}
	m := r.memory
	*r = ring[T]{}
	return unix.Munmap(m)
}

// free is how many entries may be produced, looking at the kernel's consumer only when fewer than want
// seem free.
func (r *ring[T]) free(want uint32) uint32 {
	size := r.mask + 1
	if n := size - (r.prod - r.cons); n >= want {
		return n
	}
	r.cons = atomic.LoadUint32(r.consumer)
	return size - (r.prod - r.cons)
}

// available is how many entries may be consumed, looking at the kernel's producer only when fewer than
// want are known.
func (r *ring[T]) available(want uint32) uint32 {
	if n := r.prod - r.cons; n >= want {
		return n
	}
	r.prod = atomic.LoadUint32(r.producer)
	return r.prod - r.cons
}

// publish makes what was written to entries up to prod visible to the kernel.
func (r *ring[T]) publish() { atomic.StoreUint32(r.producer, r.prod) }

// consume tells the kernel that entries up to cons may be overwritten.
func (r *ring[T]) consume() { atomic.StoreUint32(r.consumer, r.cons) }

func (r *ring[T]) needsWakeup() bool {
	return atomic.LoadUint32(r.flags)&unix.XDP_RING_NEED_WAKEUP != 0
}
