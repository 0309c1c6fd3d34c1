// Package capability makes use of the capabilities that a binary's file gives a process without root.
//
// An image's binary has its capabilities permitted, not effective: with effective ones the kernel refuses to start it
// whenever the container is given fewer, be it because the engine knows no BPF or PERFMON (SYS_ADMIN stands in for
// them there) or because a replay needs none. See capabilities(7), "File capabilities".
package capability

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Raise makes effective what is permitted, in every thread. Call it first in main. For root, and for a process that a
// service manager gave ambient capabilities, it changes nothing.
func Raise() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read the capabilities of this process: %w", err)
	}
	if data[0].Effective == data[0].Permitted && data[1].Effective == data[1].Permitted {
		return nil
	}
	for i := range data {
		data[i].Effective = data[i].Permitted
	}
	// Capabilities belong to threads, and the kernel's call changes only its own.
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET,
		uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0) //nolint:gosec // the call's two structs
	if errno != 0 {
		return fmt.Errorf("raise the capabilities of this process: %w", errno)
	}
	return nil
}
