package flowtable

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// memory holds a table's arrays outside the Go heap: the kernel gives their pages when they are first written, so that
// they can be as large as the table may become, and large pages where it has them, which spares most of the
// translations that a million flows in no order would wait for. On the heap they would also make the collector let as
// much garbage stand beside them.
type memory struct{ maps [][]byte }

// reserve returns n zeroed values. T must have no pointers. It is valid until free of it, or release.
func reserve[T any](m *memory, n int) []T {
	var one T
	b, err := unix.Mmap(-1, 0, n*int(unsafe.Sizeof(one)), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil { // an address space limit
		return make([]T, n)
	}
	_ = unix.Madvise(b, unix.MADV_HUGEPAGE) // EINVAL where the kernel has none: it only costs speed
	m.maps = append(m.maps, b)
	return unsafe.Slice((*T)(unsafe.Pointer(&b[0])), n) //nolint:gosec // page-aligned, and as long as n values
}

// free gives back what reserve returned.
func free[T any](m *memory, s []T) {
	for i, b := range m.maps {
		if unsafe.Pointer(&b[0]) == unsafe.Pointer(&s[0]) { //nolint:gosec // only compared
			_ = unix.Munmap(b)
			m.maps = append(m.maps[:i], m.maps[i+1:]...)
			return
		}
	}
}

// release gives everything back.
func (m *memory) release() {
	for _, b := range m.maps {
		_ = unix.Munmap(b)
	}
	m.maps = nil
}
