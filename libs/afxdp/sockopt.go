package afxdp

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func setsockopt(fd, option int, value unsafe.Pointer, size uintptr) error {
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_XDP, uintptr(option), uintptr(value), size, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func getsockopt(fd, option int, value unsafe.Pointer, size uintptr) error {
	length := uint32(size) //nolint:gosec // size of a small struct
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_XDP, uintptr(option), uintptr(value),
		uintptr(unsafe.Pointer(&length)), 0) //nolint:gosec // the kernel writes the length here
	if errno != 0 {
		return errno
	}
	return nil
}

func readStats(fd int) (Stats, error) {
	var k unix.XDPStatistics
	if err := getsockopt(fd, unix.XDP_STATISTICS, unsafe.Pointer(&k), unsafe.Sizeof(k)); err != nil { //nolint:gosec // the kernel fills k
		return Stats{}, fmt.Errorf("read AF_XDP statistics: %w", err)
	}
	return Stats{
		RxDropped: k.Rx_dropped, RxRingFull: k.Rx_ring_full, RxFillEmpty: k.Rx_fill_ring_empty_descs,
		RxInvalid: k.Rx_invalid_descs, TxInvalid: k.Tx_invalid_descs, TxEmpty: k.Tx_ring_empty_descs,
	}, nil
}

// waitReadable polls for received frames. A vanished interface is an error: the socket will never
// receive again.
func waitReadable(fd int, timeout time.Duration) (bool, error) {
	p := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} //nolint:gosec // descriptors are small
	deadline := time.Now().Add(timeout)
	var err error
	for {
		var limit *unix.Timespec
		if timeout >= 0 {
			ts := unix.NsecToTimespec(max(0, time.Until(deadline).Nanoseconds()))
			limit = &ts
		}
		// The runtime's own signals interrupt it.
		if _, err = unix.Ppoll(p[:], limit, nil); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	switch {
	case err != nil:
		return false, fmt.Errorf("wait on AF_XDP socket: %w", err)
	case p[0].Revents&(unix.POLLERR|unix.POLLNVAL) != 0:
		return false, fmt.Errorf("wait on AF_XDP socket: %w", unix.ENETDOWN)
	}
	return p[0].Revents&unix.POLLIN != 0, nil
}

// busyPoll turns on preferred busy polling (Documentation/networking/af_xdp.rst).
func busyPoll(fd int, d time.Duration) error {
	us := int((d + time.Microsecond - 1) / time.Microsecond)
	for _, o := range []struct{ option, value int }{
		{unix.SO_PREFER_BUSY_POLL, 1}, {unix.SO_BUSY_POLL, us}, {unix.SO_BUSY_POLL_BUDGET, busyPollBudget},
	} {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, o.option, o.value); err != nil {
			return fmt.Errorf("turn on busy polling (kernel 5.11): %w", err)
		}
	}
	return nil
}

// preferNode asks for frame memory on the interface's NUMA node. It does nothing on hosts with one node
// and for virtual interfaces, and a refusal only costs speed.
func preferNode(m []byte, iface string) {
	if nodes, err := filepath.Glob("/sys/devices/system/node/node[0-9]*"); err != nil || len(nodes) < 2 {
		return
	}
	b, err := os.ReadFile(filepath.Join("/sys/class/net", filepath.Base(iface), "device/numa_node"))
	if err != nil {
		return
	}
	node, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || node < 0 || node > 62 {
		return
	}
	const preferred = 1 // MPOL_PREFERRED of linux/mempolicy.h
	nodes := uint64(1) << node
	_, _, _ = unix.Syscall6(unix.SYS_MBIND, uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), preferred, //nolint:gosec // a mapping
		uintptr(unsafe.Pointer(&nodes)), 64, 0) //nolint:gosec // the kernel reads one mask word
}
