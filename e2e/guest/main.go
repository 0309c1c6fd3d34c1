// Guest is the first and only process of the virtual machine in which TestFullKernels runs a test binary on another kernel:
// it mounts what the tests use, loads their driver, runs them with their output on the console, says how they ended, and
// powers off.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// Paths inside the machine, which the test puts there.
const (
	driver = "/veth.ko"
	binary = "/xdp.test"
	args   = "/args" // of the binary, one a line without spaces
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guest: only as the first process of a virtual machine")
		os.Exit(2)
	}
	if err := run(); err != nil {
		fmt.Println("guest: failed:", err)
	} else {
		fmt.Println("guest: passed")
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	for _, m := range []struct{ kind, dir string }{
		{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}, {"tmpfs", "/tmp"}, {"tmpfs", "/run"}, {"bpf", "/sys/fs/bpf"},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil { //nolint:gosec // nobody else is there
			return err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	f, err := os.Open(driver)
	if err != nil {
		return err
	}
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil { //nolint:gosec // a descriptor
		return fmt.Errorf("load %s: %w", driver, err)
	}
	if err := f.Close(); err != nil {
		return err
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	fmt.Println("guest: Linux", unix.ByteSliceToString(u.Release[:]))
	flags, err := os.ReadFile(args)
	if err != nil {
		return err
	}
	cmd := exec.Command(binary, strings.Fields(string(flags))...)
	cmd.Env = append(os.Environ(), "TIDEGATE_CI=1", "HOME=/tmp", "PATH=/")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
	return cmd.Run()
}
