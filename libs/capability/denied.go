package capability

import (
	"errors"
	"fmt"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// names of the capabilities that Tidegate's services may need, as capabilities(7) writes them.
var names = map[int]string{
	unix.CAP_NET_ADMIN: "CAP_NET_ADMIN", unix.CAP_NET_RAW: "CAP_NET_RAW", unix.CAP_IPC_LOCK: "CAP_IPC_LOCK",
	unix.CAP_BPF: "CAP_BPF", unix.CAP_PERFMON: "CAP_PERFMON",
}

// Missing names those of the wanted capabilities that the calling thread does not have in effect. SYS_ADMIN stands in
// for BPF and PERFMON, which kernels before 5.8 do not know.
func Missing(want ...int) ([]string, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return nil, fmt.Errorf("read the capabilities of this process: %w", err)
	}
	has := func(c int) bool { return data[c/32].Effective>>(c%32)&1 == 1 }
	var missing []string
	for _, c := range want {
		if has(c) || (c == unix.CAP_BPF || c == unix.CAP_PERFMON) && has(unix.CAP_SYS_ADMIN) {
			continue
		}
		missing = append(missing, names[c])
	}
	return missing, nil
}

// A DeniedError says in a sentence for the operator why the kernel has refused what takes capabilities.
type DeniedError struct {
	Missing []string // capabilities; none: the process has all, and something else forbids the call
	Err     error    // what the kernel answered
}

func (e *DeniedError) Error() string {
	var errno syscall.Errno
	_ = errors.As(e.Err, &errno) // Denied has seen it; the words around it are of libraries, and some mislead
	if len(e.Missing) > 0 {
		return fmt.Sprintf("%v: this process lacks %s; run it as root, or give it what is missing (docker: cap_add, systemd: AmbientCapabilities)",
			errno, strings.Join(e.Missing, ", "))
	}
	return fmt.Sprintf("%v, though this process has the capabilities: a seccomp profile, a user namespace or kernel lockdown forbids it; allow it there", errno)
}

func (e *DeniedError) Unwrap() error { return e.Err }

// Denied gives the *DeniedError of a call that takes the wanted capabilities, nil when err is no refusal. EACCES is one
// only while something is missing: the BPF verifier gives it for a program that it rejects, too.
func Denied(err error, want ...int) error {
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
		return nil
	}
	missing, e := Missing(want...)
	if e != nil {
		return errors.Join(err, e)
	}
	if len(missing) == 0 && !errors.Is(err, unix.EPERM) {
		return nil
	}
	return &DeniedError{Missing: missing, Err: err}
}
