package doctor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/safchain/ethtool"
	"golang.org/x/sys/unix"
)

const virtual = "virtual"

// asker asks an interface's driver. unix.EOPNOTSUPP tells that the driver has no answer.
type asker interface {
	GetRing(iface string) (ethtool.Ring, error)
	GetChannels(iface string) (ethtool.Channels, error)
	GetCoalesce(iface string) (ethtool.Coalesce, error)
	FeaturesWithState(iface string) (map[string]ethtool.FeatureState, error)
	Spread(iface string) (spread, error)
}

// nic is what driver and kernel tell of how an interface receives. Every question only reads.
type nic struct {
	name   string
	driver string // virtual if no device is behind the interface
	queues int    // receive queues in use

	channels *ethtool.Channels // nil as the following: the driver does not tell
	rings    *ethtool.Ring
	coalesce *ethtool.Coalesce
	features map[string]ethtool.FeatureState
	spread   *spread
	silent   []string // what the driver does not tell, and why if not because it cannot

	deferIRQs, flushNs, threaded string // of sysfs, "" where the kernel has none
	node                         int    // NUMA node, -1 unknown
	nodeCPUs                     cpus   // of that node, nil where all CPUs are of one
}

// lookAt reads from the sysfs at root and asks the driver.
func lookAt(root string, ask asker, name string) nic {
	dir := filepath.Join(root, "class/net", name)
	n := nic{
		name: name, driver: virtual, node: -1,
		deferIRQs: read(dir, "napi_defer_hard_irqs"), flushNs: read(dir, "gro_flush_timeout"), threaded: read(dir, "threaded"),
	}
	if l, err := os.Readlink(filepath.Join(dir, "device/driver")); err == nil {
		n.driver = filepath.Base(l)
	}
	n.channels = answer(&n, "channels", ask.GetChannels)
	n.rings = answer(&n, "rings", ask.GetRing)
	n.coalesce = answer(&n, "coalescing", ask.GetCoalesce)
	if f := answer(&n, "offloads", ask.FeaturesWithState); f != nil {
		n.features = *f
	}
	n.spread = answer(&n, "RSS", ask.Spread)

	if n.channels != nil {
		n.queues = int(n.channels.RxCount + n.channels.CombinedCount)
	}
	if n.queues == 0 {
		queues, _ := filepath.Glob(filepath.Join(dir, "queues/rx-*"))
		n.queues = len(queues)
	}
	nodes, _ := filepath.Glob(filepath.Join(root, "devices/system/node/node[0-9]*"))
	if node, err := strconv.Atoi(read(dir, "device/numa_node")); err == nil && node >= 0 && len(nodes) > 1 {
		n.node = node
		n.nodeCPUs = cpuList(read(root, fmt.Sprintf("devices/system/node/node%d/cpulist", node)))
	}
	return n
}

// answer is the driver's, nil if there is none.
func answer[T any](n *nic, what string, ask func(iface string) (T, error)) *T {
	a, err := ask(n.name)
	switch {
	case err == nil:
		return &a
	case errors.Is(err, unix.EOPNOTSUPP):
		n.silent = append(n.silent, what)
	default:
		n.silent = append(n.silent, fmt.Sprintf("%s (%v)", what, err))
	}
	return nil
}

func read(dir, file string) string {
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// cpus are numbers of CPUs, ascending.
type cpus []int

// cpuList reads the kernel's lists, such as 0-3,8-11.
func cpuList(s string) cpus {
	var out cpus
	for _, part := range strings.Split(s, ",") {
		first, last, isRange := strings.Cut(part, "-")
		a, err := strconv.Atoi(first)
		if err != nil {
			continue
		}
		b := a
		if isRange {
			if b, err = strconv.Atoi(last); err != nil {
				continue
			}
		}
		for c := a; c <= b; c++ {
			out = append(out, c)
		}
	}
	return out
}

// String is as --cpus takes it.
func (c cpus) String() string {
	parts := make([]string, len(c))
	for i, n := range c {
		parts[i] = strconv.Itoa(n)
	}
	return strings.Join(parts, ",")
}
