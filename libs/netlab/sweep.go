package netlab

import (
	"bytes"
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
	s := sweeper{prefix: prefix}
	if err := s.check(); err != nil {
		return nil, err
	}
	s.links()
	s.namespaces()
	s.mounts()
	return s.removed, errors.Join(s.errs...)
}

// SweepNamespaces is Sweep for namespaces alone, whose names are below the caller's own /run: a container in the
// machine's network has pids of its own, and what it takes for an abandoned interface may be in use on the machine.
func SweepNamespaces(prefix string) (removed []string, err error) {
	s := sweeper{prefix: prefix}
	if err := s.check(); err != nil {
		return nil, err
	}
	s.namespaces()
	return s.removed, errors.Join(s.errs...)
}

// sweeper collects what a sweep does.
type sweeper struct {
	prefix  string
	removed []string
	errs    []error
}

func (s *sweeper) check() error {
	if letters(s.prefix) != s.prefix || s.prefix == "" {
		return fmt.Errorf("sweep prefix %q: use one to six ASCII letters", s.prefix)
	}
	return nil
}

func (s *sweeper) note(kind, name string, err error) {
	if err != nil {
		s.errs = append(s.errs, err)
		return
	}
	s.removed = append(s.removed, kind+" "+name)
}

func (s *sweeper) links() {
	links, err := netlink.LinkList()
	if err != nil {
		s.errs = append(s.errs, fmt.Errorf("sweep: list interfaces: %w", err))
	}
	for _, link := range links {
		name := link.Attrs().Name
		if !abandoned(s.prefix, name) {
			continue
		}
		// The peer of a pair that was just deleted is in the list but gone.
		current, err := netlink.LinkByName(name)
		var gone netlink.LinkNotFoundError
		if errors.As(err, &gone) {
			s.note("link", name, nil)
			continue
		}
		if err == nil {
			err = netlink.LinkDel(current)
		}
		s.note("link", name, err)
	}
}

func (s *sweeper) namespaces() {
	spaces, err := os.ReadDir(namespaceDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		s.errs = append(s.errs, fmt.Errorf("sweep: list namespaces: %w", err))
	}
	for _, space := range spaces {
		if abandoned(s.prefix, space.Name()) {
			s.note("netns", space.Name(), removeNamespace(space.Name()))
		}
	}
}

func (s *sweeper) mounts() {
	mounts, err := bpffsMounts()
	if err != nil {
		s.errs = append(s.errs, err)
	}
	for _, dir := range mounts {
		for _, element := range strings.Split(dir, "/") {
			if abandoned(s.prefix, element) {
				s.note("bpffs", dir, unmountDir(dir))
				break
			}
		}
	}
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

// alive probes with signal 0; EPERM means that the process exists and belongs to somebody else. One that was killed and
// that its parent has not waited for, as the first process of many a container does not, is dead.
func alive(pid int) bool {
	if err := unix.Kill(pid, 0); err != nil && !errors.Is(err, unix.EPERM) {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return !errors.Is(err, os.ErrNotExist)
	}
	// pid (name) state …, of proc_pid_stat(5); the name may contain anything.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	return len(fields) == 0 || fields[0] != "Z" && fields[0] != "X"
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
