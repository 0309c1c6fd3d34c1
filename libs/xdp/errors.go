package xdp

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"

	"github.com/tidegate-mesh/tidegate/libs/capability"
)

// Errors of Open and of the maps. They come wrapped with the operation and its object.
var (
	ErrNoInterface = errors.New("no such interface in this network namespace")
	ErrNotEthernet = errors.New("the interface carries no Ethernet frames, and those alone are read: name another")
	ErrNotMounted  = errors.New("no BPF file system is mounted there")
	ErrPins        = errors.New("this user may not use the folder of the pins")
	ErrNoXDP       = errors.New("the interface takes no XDP program: name another, or use a driver and kernel that do")
	ErrBusy        = errors.New("another XDP program is attached: remove it with ip link set dev IFACE xdp off")
	ErrForeign     = errors.New("the pins belong to an interface of another network namespace: use a BPF file system of its own for each namespace")
	ErrDetached    = errors.New("the gate is no longer attached to its interface: open it again")
	ErrMaskLimit   = errors.New("the rules use more than 32 different shapes of match: make some alike")
	ErrRuleLimit   = errors.New("the rule map is full: raise Geometry.Rules or delete rules")
	ErrListLimit   = errors.New("the address list map is full: raise Geometry.Hosts or Geometry.Prefixes")
	ErrNeverLimit  = errors.New("the never-block map is full: raise Geometry.Never")
	ErrFlowLimit   = errors.New("the map of allowed flows is full: forget flows or raise Geometry.Flows")
	ErrClosed      = errors.New("the gate is closed")
)

// A FeatureError says which kernel feature the program needs and the first kernel that has it.
type FeatureError struct {
	Feature string
	Kernel  string // first kernel version with it
	Err     error  // what the kernel answered
}

func (e *FeatureError) Error() string {
	return fmt.Sprintf("this kernel lacks %s (Linux %s has it): %v", e.Feature, e.Kernel, e.Err)
}

func (e *FeatureError) Unwrap() error { return e.Err }

// A RuleError says which rule of a batch was not taken.
type RuleError struct {
	ID  uint64
	Err error
}

func (e *RuleError) Error() string { return fmt.Sprintf("rule %#x: %v", e.ID, e.Err) }

func (e *RuleError) Unwrap() error { return e.Err }

// loadError finds out why the kernel refused the program: a missing right, a missing feature, or neither.
func loadError(err error) error {
	if no := denied(err); no != nil {
		return fmt.Errorf("load the XDP program: %w", no)
	}
	if errors.Is(err, unix.ENOSYS) {
		return &FeatureError{Feature: "BPF (CONFIG_BPF_SYSCALL)", Kernel: "3.18", Err: unix.ENOSYS}
	}
	probes := []struct {
		feature, kernel string
		probe           func() error
	}{
		{"XDP programs", "4.8", func() error { return features.HaveProgramType(ebpf.XDP) }},
		{"XSKMAP, the map of AF_XDP sockets", "4.18", func() error { return features.HaveMapType(ebpf.XSKMap) }},
		{"bpf_spin_lock", "5.1", func() error { return features.HaveProgramHelper(ebpf.XDP, asm.FnSpinLock) }},
		{"bounded loops in BPF", "5.3", features.HaveBoundedLoops},
		{"bpf_jiffies64", "5.6", func() error { return features.HaveProgramHelper(ebpf.XDP, asm.FnJiffies64) }},
		{"bpf_ktime_get_coarse_ns", "5.11", func() error { return features.HaveProgramHelper(ebpf.XDP, asm.FnKtimeGetCoarseNs) }},
		{"BPF atomics that return a value", "5.12", features.HaveV3ISA},
	}
	for _, p := range probes {
		if e := p.probe(); errors.Is(e, ebpf.ErrNotSupported) {
			return &FeatureError{Feature: p.feature, Kernel: p.kernel, Err: err}
		}
	}
	return fmt.Errorf("load the XDP program: %w", err)
}

// denied is the *capability.DeniedError of bpf(2), nil if err is something else.
func denied(err error) error {
	return capability.Denied(err, unix.CAP_NET_ADMIN, unix.CAP_BPF, unix.CAP_PERFMON)
}
