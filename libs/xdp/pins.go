package xdp

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

const (
	defaultBPFFS = "/sys/fs/bpf"
	pinFolder    = "tidegate"
	linkPin      = "link"
	programPin   = "program"
)

// mountBPFFS makes sure that root is a BPF file system, by mounting one if needed and allowed.
func mountBPFFS(root string) error {
	mounted := func() bool {
		var st unix.Statfs_t
		return unix.Statfs(root, &st) == nil && int64(st.Type) == unix.BPF_FS_MAGIC //nolint:unconvert // int32 on some machines
	}
	if mounted() {
		return nil
	}
	err := error(unix.EPERM) // only root may mount
	if os.Geteuid() == 0 {
		if err = os.MkdirAll(root, 0o700); err == nil {
			err = unix.Mount("bpf", root, "bpf", 0, "mode=0700")
		}
	}
	if err != nil && !mounted() {
		return fmt.Errorf("%s: %w (%w): run mount -t bpf bpf %s, or name another with --bpffs", root, ErrNotMounted, err, root)
	}
	return nil
}

// explainPins makes a sentence of an error about the files below root.
func explainPins(root string, err error) error {
	if !errors.Is(err, os.ErrPermission) {
		return err
	}
	if no := denied(err); no != nil { // the larger lack of the two
		return fmt.Errorf("open the pins: %w", no)
	}
	dir := filepath.Join(root, pinFolder)
	return fmt.Errorf("%w (%w): make %s and what is in it user %d's (chown -R), and let that user through %s (chmod a+x)", ErrPins, err, dir, os.Geteuid(), root)
}

// pinDir is where an interface's pins are. A bpffs refuses dots in names.
func pinDir(root string, ifindex int, iface string) string {
	return filepath.Join(root, pinFolder, fmt.Sprintf("%d-%s", ifindex, pinName(iface)))
}

func pinPath(dir, name string) string { return filepath.Join(dir, name) }

// lockDir makes dir and returns it open. Whoever removed dir in between makes us start over, so that two
// processes never hold different directories of one name.
func lockDir(dir string) (*os.File, error) {
	for range 100 {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make the pin directory: %w", err)
		}
		f, err := os.Open(dir) //nolint:gosec // the pin directory
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("open the pin directory: %w", err)
		}
		if err := flock(f, unix.LOCK_EX); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if current(f, dir) {
			return f, nil
		}
		_ = f.Close()
	}
	return nil, fmt.Errorf("%s: the pin directory is removed again and again by another process", dir)
}

func current(f *os.File, dir string) bool {
	a, errA := f.Stat()
	b, errB := os.Stat(dir)
	return errA == nil && errB == nil && os.SameFile(a, b)
}

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		return nil
	}
}

func flocked(f *os.File, do func() error) error {
	if err := flock(f, unix.LOCK_EX); err != nil {
		return err
	}
	defer func() { _ = flock(f, unix.LOCK_UN) }()
	return do()
}

// removePins unpins all of dir, the link first, so that the program is detached before its maps go. The
// link is also taken off the interface, in case another process still holds it.
func removePins(dir string) error {
	if l, err := link.LoadPinnedLink(pinPath(dir, linkPin), nil); err == nil {
		if d, ok := l.(interface{ Detach() error }); ok {
			_ = d.Detach() // a link without a device is detached already
		}
		_ = l.Close()
	}
	if err := os.Remove(pinPath(dir, linkPin)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unpin the link: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the pin directory: %w", err)
	}
	for _, e := range entries {
		if err := os.Remove(pinPath(dir, e.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("unpin %s: %w", e.Name(), err)
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the pin directory: %w", err)
	}
	return nil
}

// pinFolders lists the pin directories below root by interface number and name.
func pinFolders(root string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(root, pinFolder))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the pins: %w", err)
	}
	var out []string
	for _, e := range entries {
		if n, _, ok := strings.Cut(e.Name(), "-"); ok && e.IsDir() {
			if _, err := strconv.Atoi(n); err == nil {
				out = append(out, filepath.Join(root, pinFolder, e.Name()))
			}
		}
	}
	sort.Strings(out)
	return out, nil
}

// dead reports whether the pinned link has lost its interface. Pins without a link are those of a process
// that died within Open, or that is there now: the caller holds the lock and knows that it is not.
func dead(dir string) bool {
	l, err := link.LoadPinnedLink(pinPath(dir, linkPin), nil)
	if err != nil {
		return errors.Is(err, os.ErrNotExist)
	}
	defer func() { _ = l.Close() }()
	ifindex, _, err := linkTarget(l)
	return err == nil && ifindex == 0
}

// linkTarget returns what a link is attached to, interface 0 once that is gone, and its program.
func linkTarget(l link.Link) (ifindex int, program ebpf.ProgramID, err error) {
	info, err := l.Info()
	if err != nil {
		return 0, 0, err
	}
	x := info.XDP()
	if x == nil {
		return 0, info.Program, fmt.Errorf("not an XDP link, but of type %v", info.Type)
	}
	return int(x.Ifindex), info.Program, nil
}

// Pinned tells whether there are pins of an interface. bpffs "" is /sys/fs/bpf.
func Pinned(bpffs, iface string) (bool, error) {
	if bpffs == "" {
		bpffs = defaultBPFFS
	}
	dirs, err := pinFolders(bpffs)
	return slices.ContainsFunc(dirs, func(dir string) bool { return pinnedName(dir) == pinName(iface) }), err
}

// pinName is an interface's name in that of its folder, pinnedName gives it back.
func pinName(iface string) string { return strings.ReplaceAll(iface, ".", "_") }

func pinnedName(dir string) string {
	_, name, _ := strings.Cut(filepath.Base(dir), "-")
	return name
}

// Remove detaches the program from an interface and removes its pins, also those of earlier interfaces of
// the same name. bpffs "" is /sys/fs/bpf.
func Remove(bpffs, iface string) error {
	return removeWhere(bpffs, func(name, _ string) bool { return name == pinName(iface) })
}

// Sweep removes pins whose interface is gone. bpffs "" is /sys/fs/bpf.
func Sweep(bpffs string) error {
	return removeWhere(bpffs, func(_, dir string) bool { return dead(dir) })
}

func removeWhere(bpffs string, which func(name, dir string) bool) error {
	if bpffs == "" {
		bpffs = defaultBPFFS
	}
	dirs, err := pinFolders(bpffs)
	for _, dir := range dirs {
		f, e := lockDir(dir)
		if e != nil {
			err = errors.Join(err, e)
			continue
		}
		if which(pinnedName(dir), dir) {
			err = errors.Join(err, removePins(dir))
		}
		err = errors.Join(err, f.Close())
	}
	return err
}
