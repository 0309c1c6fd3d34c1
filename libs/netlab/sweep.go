package netlab

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Sweep removes what processes that no longer run have left behind under prefix: namespaces, interfaces of the
// calling thread's namespace, and mounted BPF file systems with the pid in a path element. It returns what it has
// removed, as "netns NAME", "link NAME" and "bpffs PATH". It goes on after an error and returns all of them joined.
//
// Pids are those of the caller's pid namespace: containers that share /run/netns but not pids must not sweep.
func Sweep(prefix string) (removed []string, err error) {
	if letters(prefix) != prefix || prefix == "" {
		return nil, fmt.Errorf("sweep prefix %q: use one to six ASCII letters", prefix)
	}
	var errs []error
	note := func(kind, name string, err error) {
		if err != nil {
			errs = append(errs, err)
			return
		}
		removed = append(removed, kind+" "+name)
	}

	links, err := netlink.LinkList()
	if err != nil {
		errs = append(errs, fmt.Errorf("sweep: list interfaces: %w", err))
	}
	for _, link := range links {
		name := link.Attrs().Name
		if !abandoned(prefix, name) {
			continue
		}
		// The peer of a pair that was just deleted is in the list but gone.
		current, err := netlink.LinkByName(name)
		var gone netlink.LinkNotFoundError
		if errors.As(err, &gone) {
			note("link", name, nil)
			continue
		}
		if err == nil {
			err = netlink.LinkDel(current)
		}
		note("link", name, err)
	}

	spaces, err := os.ReadDir(namespaceDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, fmt.Errorf("sweep: list namespaces: %w", err))
	}
	for _, space := range spaces {
		if abandoned(prefix, space.Name()) {
			note("netns", space.Name(), removeNamespace(space.Name()))
		}
	}

	mounts, err := bpffsMounts()
	if err != nil {
		errs = append(errs, err)
	}
	for _, dir := range mounts {
		for _, element := range strings.Split(dir, "/") {
			if abandoned(prefix, element) {
				note("bpffs", dir, unmountDir(dir))
				break
			}
		}
	}
	return removed, errors.Join(errs...)
}

// abandoned says whether name is one that Ifname or Lab.Name makes with prefix, by a process that is gone.
func abandoned(prefix, name string) bool {
	pid, ok := pidOf(prefix, name)
	return ok && !alive(pid)
}

// pidOf reads the pid out of <prefix><pid><suffix> or <prefix>-<pid>-<suffix>.
func pidOf(prefix, name string) (int, bool) {
	rest, ok := strings.CutPrefix(name, prefix)
	if !ok {
		return 0, false
	}
	rest = strings.TrimPrefix(rest, "-")
	n := 0
	for n < len(rest) && rest[n] >= '0' && rest[n] <= '9' {
		n++
	}
	pid, err := strconv.Atoi(rest[:n])
	if err != nil || pid <= 0 {
		return 0, false
	}
	return pid, true
}

// alive probes with signal 0; EPERM means that the process exists and belongs to somebody else.
func alive(pid int) bool {
	err := unix.Kill(pid, 0)
	return err == nil || errors.Is(err, unix.EPERM)
}

// bpffsMounts lists mount points of type bpf, newest first, from proc_pid_mountinfo(5).
func bpffsMounts() ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("sweep: list mounts: %w", err)
	}
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var dirs []string
	for _, line := range strings.Split(string(data), "\n") {
		left, right, ok := strings.Cut(line, " - ")
		fields := strings.Fields(left)
		if !ok || len(fields) < 5 || !strings.HasPrefix(right, "bpf ") {
			continue
		}
		dirs = append([]string{unescape.Replace(fields[4])}, dirs...)
	}
	return dirs, nil
}
