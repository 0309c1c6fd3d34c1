package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/netlab"
	"github.com/tidegate-mesh/tidegate/libs/pki"
	"github.com/tidegate-mesh/tidegate/libs/token"
)

// poorer is the variable that turns the test binary into a command that gives rights away for good and becomes another
// program. Its value is what go says of a poverty.
const poorer = "TIDEGATE_TEST_POORER"

func TestMain(m *testing.M) {
	if how := os.Getenv(poorer); how != "" {
		err := impoverish(how)
		fmt.Fprintln(os.Stderr, "the test's helper:", err)
		os.Exit(125)
	}
	os.Exit(m.Run())
}

// poverty is what a process lacks besides capabilities.
type poverty struct {
	refuse  syscall.Errno // answer to bpf(2); 0: none is refused
	command int           // to this of its commands alone; -1: to all
	locked  uint64        // limit of locked memory in bytes; 0: as it is
}

func (p poverty) String() string { return fmt.Sprintf("%d %d %d", p.refuse, p.command, p.locked) }

// impoverish puts the limits on this process and becomes the program of the arguments; it returns an error alone.
func impoverish(how string) error {
	var p poverty
	if _, err := fmt.Sscanf(how, "%d %d %d", &p.refuse, &p.command, &p.locked); err != nil {
		return err
	}
	runtime.LockOSThread() // the filter is the thread's, and the program goes on in it
	if p.locked != 0 {
		if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: p.locked, Max: p.locked}); err != nil {
			return fmt.Errorf("limit locked memory: %w", err)
		}
	}
	if p.refuse != 0 {
		if err := p.filter(); err != nil {
			return fmt.Errorf("filter bpf(2): %w", err)
		}
	}
	if err := os.Unsetenv(poorer); err != nil {
		return err
	}
	return syscall.Exec(os.Args[1], os.Args[1:], os.Environ()) //nolint:gosec // the test's own command
}

// filter answers bpf(2) in place of the kernel. The offsets are those of struct seccomp_data.
func (p poverty) filter() error {
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	unless := func(value, skip int) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(value), Jf: uint8(skip)} //nolint:gosec // small numbers
	}
	answer := func(value uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: value}
	}
	no := answer(unix.SECCOMP_RET_ERRNO | uint32(p.refuse)) //nolint:gosec // an errno
	program := []unix.SockFilter{load(0), unless(unix.SYS_BPF, 1), no, answer(unix.SECCOMP_RET_ALLOW)}
	if p.command >= 0 {
		program = []unix.SockFilter{load(0), unless(unix.SYS_BPF, 3), load(16), unless(p.command, 1), no, answer(unix.SECCOMP_RET_ALLOW)}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	f := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]} //nolint:gosec // a handful
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&f)), 0, 0)
}

// host is a machine on which something is missing, as a process meets it.
type host struct {
	name string
	// capabilities of a process that is not root; nil: root with all.
	capabilities []uintptr
	poverty      poverty
	iface        string // "": a veth
	// bpffs is where pins go; "": a BPF file system that is the process's user's.
	bpffs string
	// ingest is what it ends with when it must use AF_XDP and, unless it is the end in any case, warns of before it reads by AF_PACKET; enforce what it waits with and doctor what it finds; "": all is well for it.
	ingest, enforce, doctor string
	ends                    bool // AF_PACKET does not help
}

// all are the capabilities that a sensor has in its unit and its image.
var all = []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_IPC_LOCK}

// without is all but some.
func without(lost ...uintptr) []uintptr {
	return slices.DeleteFunc(slices.Clone(all), func(c uintptr) bool { return slices.Contains(lost, c) })
}

const nobody = 65534

// command is how a binary starts on the host.
func (h *host) command(t *testing.T, dir, name string) (attr *syscall.SysProcAttr, path string, env, first []string) {
	t.Helper()
	path = filepath.Join(dir, name)
	if h.capabilities != nil {
		attr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, AmbientCaps: h.capabilities}
	}
	if h.poverty != (poverty{}) {
		env, first, path = []string{poorer + "=" + h.poverty.String()}, []string{path}, filepath.Join(dir, "helper")
	}
	return attr, path, env, first
}

// TestBadHost: whatever the machine refuses, ingest falls back to AF_PACKET, or ends where it must not or cannot, and enforce
// waits, with one sentence that names what is missing and what to do: in the log, in /readyz, in `tidegate status` and, before anything is started, in `tidegate doctor`.
func TestBadHost(t *testing.T) {
	rig.NeedRoot(t)
	dir := binaries(t, "tidegate", "tidegate-ingest", "tidegate-enforce")
	lab, err := netlab.New("tghost")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	}()
	veth := func(n int) string {
		name := netlab.Ifname("tghost", "a"+strconv.Itoa(n))
		if err := lab.Veth(netlab.End{Name: name}, netlab.End{Name: netlab.Ifname("tghost", "b"+strconv.Itoa(n))}, 1); err != nil {
			t.Fatal(err)
		}
		return name
	}
	tunnel := netlab.Ifname("tghost", "t")
	device := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: tunnel}, Mode: netlink.TUNTAP_MODE_TUN}
	if err := netlink.LinkAdd(device); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := netlink.LinkDel(device); err != nil {
			t.Error(err)
		}
	}()
	// mount gives a BPF file system that user nobody gets through to its own folder of.
	mount := func(owner int) string {
		where := filepath.Join(dir, "bpf"+strconv.Itoa(owner))
		unmount, err := netlab.BPFFS(where)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unmount(); err != nil {
				t.Error(err)
			}
		})
		pins := filepath.Join(where, "tidegate")
		if err := errors.Join(os.Chmod(where, 0o711), os.Mkdir(pins, 0o700), os.Chown(pins, owner, owner)); err != nil { //nolint:gosec // nobody gets through
			t.Fatal(err)
		}
		return where
	}
	roots, nobodys := mount(0), mount(nobody)
	unmounted := filepath.Join(dir, "unmounted")
	if err := os.Mkdir(unmounted, 0o755); err != nil { //nolint:gosec // nobody gets through
		t.Fatal(err)
	}

	const bpf, forbidden = "load the XDP program: operation not permitted: ", "though this process has the capabilities: a seccomp profile"
	hosts := []host{
		{name: "all five", capabilities: all},
		{name: "no NET_RAW", capabilities: without(unix.CAP_NET_RAW), ingest: "operation not permitted: this process lacks CAP_NET_RAW; run it as root", doctor: "missing CAP_NET_RAW", ends: true},
		{name: "no BPF", capabilities: without(unix.CAP_BPF), ingest: bpf + "this process lacks CAP_BPF; run it as root", enforce: bpf + "this process lacks CAP_BPF; run it as root", doctor: "missing CAP_BPF"},
		{name: "no NET_ADMIN", capabilities: without(unix.CAP_NET_ADMIN), ingest: bpf + "this process lacks CAP_NET_ADMIN;", enforce: bpf + "this process lacks CAP_NET_ADMIN;", doctor: "missing CAP_NET_ADMIN"},
		{name: "no PERFMON", capabilities: without(unix.CAP_PERFMON), ingest: "this process lacks CAP_PERFMON;", enforce: "this process lacks CAP_PERFMON;", doctor: "missing CAP_PERFMON"},
		{name: "no IPC_LOCK", capabilities: without(unix.CAP_IPC_LOCK), poverty: poverty{locked: 1 << 20}, ingest: "register frame memory: the limit of locked memory is below the frame memory: give the process CAP_IPC_LOCK", doctor: "limit 1024 KiB"},
		{name: "bpf refused", poverty: poverty{refuse: unix.EPERM, command: -1}, ingest: "operation not permitted, " + forbidden, enforce: "operation not permitted, " + forbidden, doctor: forbidden},
		{name: "no BPF links", poverty: poverty{refuse: unix.EINVAL, command: unix.BPF_LINK_CREATE}, ingest: "this kernel lacks XDP attached by a BPF link (Linux 5.9 has it)", enforce: "this kernel lacks XDP attached by a BPF link (Linux 5.9 has it)"},
		{name: "no bpf at all", poverty: poverty{refuse: unix.ENOSYS, command: -1}, ingest: "this kernel lacks BPF", enforce: "this kernel lacks BPF", doctor: "this kernel lacks BPF"},
		{name: "no XDP in the driver", poverty: poverty{refuse: unix.EOPNOTSUPP, command: unix.BPF_LINK_CREATE}, ingest: "the interface takes no XDP program: name another", enforce: "the interface takes no XDP program: name another"},
		{name: "no Ethernet", iface: tunnel, ingest: "the interface carries no Ethernet frames", enforce: "the interface carries no Ethernet frames", doctor: "only Ethernet frames are read", ends: true},
		{name: "no bpffs", capabilities: all, bpffs: unmounted, ingest: "no BPF file system is mounted there (operation not permitted): run mount -t bpf bpf " + unmounted, enforce: "no BPF file system is mounted there (operation not permitted): run mount -t bpf bpf " + unmounted, doctor: "not mounted at " + unmounted},
		{name: "pins of another user", capabilities: all, bpffs: roots, ingest: "this user may not use the folder of the pins", enforce: "make " + roots + "/tidegate and what is in it user 65534's (chown -R)", doctor: "uid 65534 cannot write to " + roots + "/tidegate"},
	}

	certs := filepath.Join(dir, "certs")
	rig.MakeCerts(t, certs)
	give(t, certs)
	_, natsURL := rig.NATS(t, certs)
	var enforcers []string
	for i := range hosts {
		h := &hosts[i]
		if h.iface == "" {
			h.iface = veth(i)
		}
		if h.bpffs == "" {
			h.bpffs = nobodys
			if h.capabilities == nil {
				h.bpffs = roots
			}
		}
		t.Run(h.name, func(t *testing.T) {
			h.doctors(t, dir)
			h.ingests(t, dir, certs, "af_xdp")
			h.ingests(t, dir, certs, "auto")
		})
		enforcers = append(enforcers, h.enforces(t, dir, certs, natsURL))
	}

	g := rig.NewGateway(t, certs, pki.FilesOf(certs, pki.Gateway).CA)
	rig.Start(t, rig.Binary(t, "tidegate-gateway"), nil, "--tls-dir", certs, "--nats-url", natsURL, "--listen", g.Addr, "--metrics-listen", "",
		"--jwks-file", filepath.Join(certs, token.JWKSFile), "--enforce", strings.Join(enforcers, ","))
	var out []byte
	flags := append([]string{"status"}, g.Flags(t, "viewer")...)
	err = rig.Eventually(20*time.Second, func() error {
		out, _ = exec.Command(rig.Binary(t, "tidegate"), flags...).CombinedOutput() // what it says is looked at
		for _, h := range hosts {
			want := "ready"
			if h.enforce != "" {
				want = fmt.Sprintf("interface %s is not enforced on: ", h.iface)
			}
			if line := lineOf(string(out), dashed(h.name)); !strings.Contains(line, want) || !strings.Contains(line, h.enforce) {
				return fmt.Errorf("%s: tidegate status does not say %q and %q:\n%s", h.name, want, h.enforce, out)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func dashed(name string) string { return strings.ReplaceAll(name, " ", "-") }

func lineOf(text, word string) string {
	for line := range strings.Lines(text) {
		if slices.Contains(strings.Fields(line), word) {
			return line
		}
	}
	return ""
}

// doctors runs the doctor as the service would run.
func (h *host) doctors(t *testing.T, dir string) {
	attr, path, env, args := h.command(t, dir, "tidegate")
	cmd := exec.Command(path, append(args, "doctor", "--bpffs", h.bpffs, "--iface", h.iface)...)
	cmd.SysProcAttr, cmd.Env, cmd.Dir = attr, append(os.Environ(), env...), dir
	out, err := cmd.CombinedOutput()
	if !strings.Contains(string(out), h.doctor) {
		t.Errorf("doctor does not say %q: %s", h.doctor, out)
	}
	if well := h.doctor == "" || h.poverty.locked != 0; (err == nil) != well { // a low limit is a warning: with fewer frames it does
		t.Errorf("doctor ends with %v: %s", err, out)
	}
}

// ingests runs a sensor, which ends when it cannot capture.
func (h *host) ingests(t *testing.T, dir, certs, capture string) {
	metrics := rig.FreeAddr(t)
	attr, path, env, args := h.command(t, dir, "tidegate-ingest")
	args = append(args, "--tls-dir", certs, "--iface", h.iface, "--mode", "tap", "--bpffs", h.bpffs, "--listen", rig.FreeAddr(t), "--metrics-listen", metrics,
		"--classify", "127.0.0.1:1", "--capture", capture)
	p := rig.StartAs(t, attr, path, env, args...)
	if h.ingest == "" || capture == "auto" && !h.ends {
		sayUntil(t, p, metrics, "classify: no stream to classify")
		want := []string{`"capture runs"`, `"capture":"af_xdp `}
		if h.ingest != "" {
			want = []string{`"capture runs"`, `"capture":"af_packet `, "AF_XDP cannot be had; frames are read by AF_PACKET", h.ingest}
		}
		if err := rig.Eventually(10*time.Second, func() error {
			for _, part := range want {
				if !strings.Contains(p.Log(), part) {
					return fmt.Errorf("ingest with --capture %s does not say %q: %s", capture, part, p.Log())
				}
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		if err := p.Stop(15 * time.Second); err != nil {
			t.Error(err)
		}
		return
	}
	err := p.Wait(20 * time.Second)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("ingest ends with %v, want exit status 1", err)
	}
	if last := lastLine(p.Log()); !strings.Contains(last, h.ingest) || !strings.Contains(last, h.iface) || strings.Contains(last, "RemoveMemlock") {
		t.Errorf("ingest does not say %q: %s", h.ingest, last)
	}
}

// enforces runs a node, which lives on and tries again, and returns its gRPC address.
func (h *host) enforces(t *testing.T, dir, certs, natsURL string) string {
	addr, metrics := rig.FreeAddr(t), rig.FreeAddr(t)
	attr, path, env, args := h.command(t, dir, "tidegate-enforce")
	p := rig.StartAs(t, attr, path, env, append(args, "--tls-dir", certs, "--nats-url", natsURL, "--iface", h.iface, "--bpffs", h.bpffs,
		"--node", dashed(h.name), "--listen", addr, "--metrics-listen", metrics)...)
	if h.enforce == "" {
		sayUntil(t, p, metrics, "ready")
		return addr
	}
	sayUntil(t, p, metrics, "enforce: interface "+h.iface+" is not enforced on: ", h.enforce)
	if err := rig.Eventually(5*time.Second, func() error { // the log comes through a pipe
		if log := p.Log(); !strings.Contains(log, h.enforce) {
			return fmt.Errorf("%s: enforce's log does not say %q: %s", h.name, h.enforce, log)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	return addr
}

// TestGenericXDP: a driver without XDP of its own is a warning in log and doctor, and status tells what the interface got.
func TestGenericXDP(t *testing.T) {
	rig.NeedRoot(t)
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: netlab.Ifname("tghost", "br")}}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := netlink.LinkDel(link); err != nil {
			t.Error(err)
		}
	}()
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	bpffs := filepath.Join(t.TempDir(), "bpf")
	unmount, err := netlab.BPFFS(bpffs)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unmount(); err != nil {
			t.Error(err)
		}
	}()
	metrics := rig.FreeAddr(t)
	p := rig.Start(t, rig.Binary(t, "tidegate-ingest"), nil, "--insecure", "--iface", link.Name, "--mode", "tap", "--bpffs", bpffs,
		"--listen", rig.FreeAddr(t), "--metrics-listen", metrics, "--classify", "127.0.0.1:1")
	sayUntil(t, p, metrics, "classify: ")
	err = rig.Eventually(10*time.Second, func() error {
		for _, part := range []string{"the driver has no native XDP, using generic XDP", `"capture":"af_xdp generic copy"`} {
			if !strings.Contains(p.Log(), part) {
				return fmt.Errorf("the log does not say %q", part)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	out, err := exec.Command(rig.Binary(t, "tidegate"), "doctor", "--bpffs", bpffs, "--iface", link.Name).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "the driver has no native XDP") {
		t.Errorf("doctor: %v: %s", err, out)
	}
	if err := p.Stop(15 * time.Second); err != nil {
		t.Error(err)
	}
}

// give makes a folder and its files user nobody's.
func give(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, nobody, nobody))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// binaries copies binaries, and the helper, to where every user may run them: the checkout may be closed to others.
func binaries(t *testing.T, names ...string) (dir string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "tidegate-nobody-") // t.TempDir is closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // another user runs what is in it
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	from := map[string]string{"helper": self}
	for _, name := range names {
		from[name] = rig.Binary(t, name)
	}
	for name, path := range from {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o755); err != nil { //nolint:gosec // another user runs it
			t.Fatal(err)
		}
	}
	return dir
}
