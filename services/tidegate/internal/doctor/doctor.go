// Package doctor checks whether this machine can do what Tidegate needs, and says what to change.
package doctor

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tidegate-mesh/tidegate/libs/afpacket"
	"github.com/tidegate-mesh/tidegate/libs/capability"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
)

// Level is how bad a finding is.
type Level string

// Levels.
const (
	OK   Level = "ok"
	Warn Level = "warn" // works, not at its best
	Fail Level = "fail" // the main job cannot run
)

// Finding is one checked thing.
type Finding struct {
	Name   string `json:"name"`
	Level  Level  `json:"level"`
	Found  string `json:"found"`
	Advice string `json:"advice,omitempty"` // what to do, empty when all is well
}

// sysfs is where the kernel tells about interfaces of the own network namespace.
const sysfs = "/sys"

// Run checks the machine, and the interfaces named; workers are the CPUs that ingest is given with --cpus, none if it is not.
func Run(bpffs string, ifaces []string, workers []int) []Finding {
	program, sockets, copies, pins := bpf(), xskmap(), packets(), mount(bpffs)
	canXDP := program.Level != Fail && sockets.Level != Fail && pins.Level != Fail
	out := []Finding{kernel(), privileges(), program, sockets, copies, modes(canXDP, copies.Level != Fail), pins, memlock(), jit()}
	if len(ifaces) == 0 {
		return out
	}
	drivers, err := openDriver()
	if err != nil {
		return append(out, Finding{"interfaces", Fail, err.Error(), "let this process open sockets"})
	}
	defer drivers.close()
	for _, name := range ifaces {
		out = append(out, iface(sysfs, drivers, name, host{runtime.NumCPU(), workers, canXDP})...)
	}
	return out
}

func kernel() Finding {
	f := Finding{Name: "kernel", Level: OK}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Finding{"kernel", Warn, err.Error(), ""}
	}
	// Only told: a version says little about distributions' kernels, so what they can do is tried below.
	f.Found = unix.ByteSliceToString(u.Release[:]) + " " + runtime.GOARCH
	return f
}

func privileges() Finding {
	f := Finding{Name: "privileges", Level: OK, Found: "uid " + strconv.Itoa(os.Geteuid())}
	missing, err := capability.Missing(unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_BPF, unix.CAP_PERFMON)
	if err != nil {
		return Finding{"privileges", Warn, err.Error(), "look at CapEff in /proc/self/status"}
	}
	if len(missing) > 0 {
		f.Level, f.Found = Fail, "missing "+strings.Join(missing, ", ")
		f.Advice = "run as root, or give the process these capabilities"
	}
	return f
}

func bpf() Finding {
	err := xdp.Probe()
	var no *capability.DeniedError
	switch {
	case err == nil:
		return Finding{Name: "xdp", Level: OK, Found: "the XDP program loads"}
	case errors.As(err, &no):
		return denied("xdp", no)
	}
	return Finding{"xdp", Fail, err.Error(), "use a kernel with CONFIG_BPF_SYSCALL and CONFIG_XDP_SOCKETS"}
}

func xskmap() Finding {
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		_ = unix.Close(fd)
		return Finding{Name: "af_xdp", Level: OK, Found: "sockets open"}
	}
	if no := capability.Denied(err, unix.CAP_NET_RAW); no != nil {
		return denied("af_xdp", no)
	}
	return Finding{"af_xdp", Fail, err.Error(), "use a kernel with CONFIG_XDP_SOCKETS"}
}

// packets is the fallback of AF_XDP in tap mode.
func packets() Finding {
	err := afpacket.Probe()
	var no *capability.DeniedError
	switch {
	case err == nil:
		return Finding{Name: "af_packet", Level: OK, Found: "sockets open: what tap mode falls back to"}
	case errors.As(err, &no):
		return denied("af_packet", no)
	}
	return Finding{"af_packet", Warn, err.Error(), "use a kernel with CONFIG_PACKET, unless AF_XDP is there"}
}

// modes says what can run here, whatever the interfaces can.
func modes(xdp, packets bool) Finding {
	switch {
	case xdp:
		return Finding{Name: "modes", Level: OK, Found: "inline, tap and host, by XDP and AF_XDP"}
	case packets:
		return Finding{"modes", Warn, "tap alone, by AF_PACKET: slower, and nothing can be stopped", "what the checks of xdp, af_xdp and bpffs advise: inline and host need it, and tap is faster with it"}
	}
	return Finding{"modes", Fail, "none", "what the checks of xdp, af_xdp and af_packet advise"}
}

// denied makes a finding of a sentence that has what is found and what to do.
func denied(name string, no error) Finding {
	found, advice, _ := strings.Cut(no.Error(), "; ")
	return Finding{name, Fail, found, advice}
}

func mount(dir string) Finding {
	var s unix.Statfs_t
	root := os.Geteuid() == 0
	if err := unix.Statfs(dir, &s); err != nil || s.Type != unix.BPF_FS_MAGIC {
		if root {
			return Finding{"bpffs", Warn, "not mounted at " + dir, "nothing if Tidegate runs as root (it mounts it); else: mount -t bpf bpf " + dir}
		}
		return Finding{"bpffs", Fail, "not mounted at " + dir, "mount -t bpf bpf " + dir}
	}
	pins := filepath.Join(dir, "tidegate")
	if !root && unix.Access(pins, unix.R_OK|unix.W_OK|unix.X_OK) != nil {
		return Finding{"bpffs", Fail, fmt.Sprintf("uid %d cannot write to %s", os.Geteuid(), pins),
			fmt.Sprintf("as root: chmod a+x %s && mkdir -p %s && chown -R %d %s", dir, pins, os.Geteuid(), pins)}
	}
	return Finding{Name: "bpffs", Level: OK, Found: "mounted at " + dir}
}

func memlock() Finding {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &l); err != nil {
		return Finding{"locked memory", Warn, err.Error(), ""}
	}
	f := Finding{Name: "locked memory", Level: OK, Found: "unlimited"}
	if l.Cur != unix.RLIM_INFINITY {
		f.Found = fmt.Sprintf("limit %d KiB", l.Cur/1024)
		if os.Geteuid() != 0 && l.Cur < 64<<20 {
			f.Level, f.Advice = Warn, "raise it (LimitMEMLOCK=infinity) or give the process IPC_LOCK, else frame memory may not register"
		}
	}
	return f
}

func jit() Finding {
	b, err := os.ReadFile("/proc/sys/net/core/bpf_jit_enable")
	if err != nil {
		return Finding{Name: "bpf jit", Level: OK, Found: "always on"}
	}
	if strings.TrimSpace(string(b)) == "0" {
		return Finding{"bpf jit", Warn, "off", "sysctl net.core.bpf_jit_enable=1: the interpreter is several times slower"}
	}
	return Finding{Name: "bpf jit", Level: OK, Found: "on"}
}

// iface looks at one interface.
func iface(root string, ask asker, name string, h host) []Finding {
	label := "interface " + name
	i, err := net.InterfaceByName(name)
	if err != nil {
		return []Finding{{label, Fail, "not found", "name an interface of `ip link` in this network namespace"}}
	}
	out := []Finding{{Name: label, Level: OK, Found: fmt.Sprintf("index %d, MTU %d, %s", i.Index, i.MTU, i.Flags)}}
	if i.Flags&net.FlagUp == 0 {
		out[0].Level, out[0].Advice = Fail, "ip link set "+name+" up"
	}
	if i.Flags&net.FlagLoopback != 0 {
		out[0].Level, out[0].Advice = Fail, "only --mode host takes the loopback interface: name another"
		return out
	}
	n := lookAt(root, ask, name)
	if f := n.mtu(label+" mtu", i.MTU); f != nil {
		out = append(out, *f)
	}
	if len(i.HardwareAddr) == 0 {
		return append(out, Finding{label + " frames", Fail, "not Ethernet", "only Ethernet frames are read: name another"})
	}
	h.useXDP = h.useXDP && i.MTU <= maxMTU
	out = append(out, n.tuning(h)...)
	if d, err := xdp.DriverOf(i.Index); err == nil { // kernels before 6.3 cannot say
		out = append(out, native(label+" xdp", d))
	}
	return out
}

func native(label string, d xdp.Driver) Finding {
	switch {
	case !d.Native:
		return Finding{label, Warn, "the driver has no native XDP", "generic XDP is used, several times slower: name an interface whose driver has it, where speed matters"}
	case d.ZeroCopy:
		return Finding{Name: label, Level: OK, Found: "native, AF_XDP without copies"}
	}
	return Finding{Name: label, Level: OK, Found: "native, AF_XDP copies frames"}
}
