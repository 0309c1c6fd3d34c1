package doctor

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

const (
	// goodRing bridges 1 ms at 2 million packets a second; beyond bigRing the ring's frames leave the CPU's caches.
	goodRing, bigRing = 2048, 4096
	// lateUsecs is how long a packet may wait for its interrupt; bridges are to add 100 µs at most.
	lateUsecs = 100
	// flushTimeout is what Documentation/networking/af_xdp.rst gives for gro_flush_timeout, in ns.
	flushTimeout = 200_000
	// maxMTU fits the frames of 4,096 bytes that ingest has at most; nativeMTU fits one page with what drivers put around it.
	maxMTU, nativeMTU = 3818, 3498
)

// host is what the findings about an interface depend on beside it.
type host struct {
	cpus    int  // that this process may use
	workers cpus // --cpus of ingest, nil: the scheduler chooses
	useXDP  bool // else frames come by AF_PACKET
}

// tuning judges how an interface receives: what it takes at its speed, and what XDP would not see.
func (n *nic) tuning(h host) []Finding {
	label := "interface " + n.name
	out := []Finding{n.queue(label+" queues", h)}
	for _, f := range []*Finding{
		n.ring(label + " rings"), n.interrupts(label + " interrupts"), n.napi(label + " napi"), n.threads(label + " napi threads"),
		n.rss(label + " rss"), n.numa(label+" numa", h), n.offload(label+" offload", h), n.vlan(label+" vlan", h),
	} {
		if f != nil {
			out = append(out, *f)
		}
	}
	if len(n.silent) > 0 {
		out = append(out, Finding{Name: label + " driver", Level: OK, Found: "does not tell: " + strings.Join(n.silent, ", ")})
	}
	return out
}

func (n *nic) mtu(label string, mtu int) *Finding {
	switch {
	case mtu > maxMTU:
		return &Finding{label, Warn, strconv.Itoa(mtu) + ": its frames do not fit AF_XDP's memory, so tap reads by AF_PACKET and inline is refused",
			fmt.Sprintf("ip link set %s mtu %d, or less", n.name, maxMTU)}
	case mtu > nativeMTU && n.driver != virtual:
		return &Finding{label, Warn, strconv.Itoa(mtu) + ": too much for many drivers' native XDP; generic XDP is used where it is, several times slower",
			fmt.Sprintf("ip link set %s mtu %d, or less", n.name, nativeMTU)}
	}
	return nil
}

func (n *nic) queue(label string, h host) Finding {
	f := Finding{Name: label, Level: OK, Found: fmt.Sprintf("%d rx, driver %s", n.queues, n.driver)}
	kind, most := "combined", 0
	if n.channels != nil {
		most = int(n.channels.MaxCombined)
		if n.channels.CombinedCount == 0 && n.channels.RxCount > 0 {
			kind, most = "rx", int(n.channels.MaxRx)
		}
		f.Found = fmt.Sprintf("%d rx of %d possible, driver %s, %d CPUs", n.queues, max(most, n.queues), n.driver, h.cpus)
	}
	set := fmt.Sprintf("ethtool -L %s %s ", n.name, kind)
	able := h.cpus
	if len(h.workers) > 0 {
		able = min(able, len(h.workers))
	}
	switch {
	case n.queues > able && len(h.workers) > 0:
		f.Level, f.Advice = Warn, fmt.Sprintf("each queue is read by a thread of its own, and --cpus names %d: %s%d", len(h.workers), set, able)
	case n.queues > able:
		f.Level, f.Advice = Warn, fmt.Sprintf("each queue is read by a thread of its own: %s%d", set, able)
	case n.queues == 1 && min(most, able) > 1 && h.cpus > 2:
		f.Level, f.Advice = Warn, fmt.Sprintf("one CPU receives everything: %s%d", set, min(most, max(able/2, 2)))
	}
	return f
}

func (n *nic) ring(label string) *Finding {
	if n.rings == nil || n.rings.RxMaxPending == 0 {
		return nil
	}
	r := n.rings
	f := Finding{Name: label, Level: OK, Found: fmt.Sprintf("rx %d of %d possible, tx %d of %d", r.RxPending, r.RxMaxPending, r.TxPending, r.TxMaxPending)}
	short := ""
	if r.RxPending < min(r.RxMaxPending, goodRing) {
		short += fmt.Sprintf(" rx %d", min(r.RxMaxPending, bigRing))
	}
	if r.TxPending < min(r.TxMaxPending, goodRing) {
		short += fmt.Sprintf(" tx %d", min(r.TxMaxPending, bigRing))
	}
	if short != "" {
		f.Level, f.Advice = Warn, fmt.Sprintf("short rings overflow in a burst: ethtool -G %s%s", n.name, short)
	}
	return &f
}

func (n *nic) interrupts(label string) *Finding {
	if n.coalesce == nil {
		return nil
	}
	c := n.coalesce
	adaptive := "off"
	if c.UseAdaptiveRxCoalesce != 0 {
		adaptive = "on"
	}
	f := Finding{Name: label, Level: OK, Found: fmt.Sprintf("rx-usecs %d, rx-frames %d, adaptive-rx %s", c.RxCoalesceUsecs, c.RxMaxCoalescedFrames, adaptive)}
	if c.RxCoalesceUsecs > lateUsecs && adaptive == "off" {
		f.Level, f.Advice = Warn, fmt.Sprintf("a packet waits up to %d µs for its interrupt: ethtool -C %s rx-usecs 20", c.RxCoalesceUsecs, n.name)
	}
	return &f
}

// napi: with both settings above 0 interrupts stay off while a timer or a busy-polling socket polls (kernel
// Documentation/networking/napi.rst); the first without the second does nothing.
func (n *nic) napi(label string) *Finding {
	if n.deferIRQs == "" || n.flushNs == "" {
		return nil
	}
	deferred, _ := strconv.ParseUint(n.deferIRQs, 10, 64)
	flush, _ := strconv.ParseUint(n.flushNs, 10, 64)
	f := Finding{Name: label, Level: OK, Found: fmt.Sprintf("napi_defer_hard_irqs %d, gro_flush_timeout %d ns", deferred, flush)}
	set := fmt.Sprintf("echo %d > /sys/class/net/%s/gro_flush_timeout", flushTimeout, n.name)
	switch {
	case deferred > 0 && flush == 0:
		f.Level, f.Advice = Warn, "interrupts are put off only with a timeout: "+set
	case deferred > 0 && flush > 1_000_000:
		f.Level, f.Advice = Warn, fmt.Sprintf("a packet waits up to %d µs for the timer: %s", flush/1000, set)
	}
	return &f
}

// threads: napi/IFACE-… threads have the usual priority, which ingest's --nice puts below its workers.
func (n *nic) threads(label string) *Finding {
	if n.threaded == "" || n.threaded == "0" {
		return nil
	}
	return &Finding{label, Warn, "the driver's polling runs in threads, which wait for ingest's workers on the same CPU",
		fmt.Sprintf("echo 0 > /sys/class/net/%s/threaded, or keep the napi/%s-* threads off --cpus with taskset", n.name, n.name)}
}

func (n *nic) rss(label string) *Finding {
	if n.spread == nil || n.queues < 2 {
		return nil
	}
	s := n.spread
	f := Finding{Name: label, Level: OK, Found: fmt.Sprintf("both directions of a flow alike, tcp4 by %s, udp4 by %s", hashed(s.tcp), hashed(s.udp))}
	idle := s.unused(n.queues)
	switch {
	case len(idle) > 0:
		f.Level, f.Found = Warn, "no packets go to queue "+idle.String()
		f.Advice = fmt.Sprintf("ethtool -X %s equal %d", n.name, n.queues)
	case oneSided(s.tcp):
		f.Level, f.Found = Warn, "tcp4 by "+hashed(s.tcp)+": both directions of a flow go to different queues, or all to one"
		f.Advice = fmt.Sprintf("ethtool -N %s rx-flow-hash tcp4 sdfn", n.name)
	case oneSided(s.udp):
		f.Level, f.Found = Warn, "udp4 by "+hashed(s.udp)+": both directions of a flow go to different queues, or all to one"
		f.Advice = fmt.Sprintf("ethtool -N %s rx-flow-hash udp4 sd", n.name)
	case !s.symmetric():
		f.Level, f.Found = Warn, "the two directions of a flow go to different queues, so to different flow tables"
		f.Advice = fmt.Sprintf("on every port of the sensor: ethtool -X %s xfrm symmetric-xor", n.name)
		if s.hash <= hashToeplitz && len(s.key) > 0 {
			f.Advice = fmt.Sprintf("on every port of the sensor: ethtool -X %s hkey %s", n.name, symmetricKey(len(s.key)))
		}
	}
	return &f
}

// oneSided tells whether the hash leaves an address out; 0 says nothing.
func oneSided(fields uint64) bool {
	return fields != 0 && fields&(hashSource|hashTarget) != hashSource|hashTarget
}

func hashed(fields uint64) string {
	var out []string
	for _, f := range []struct {
		bits uint64
		name string
	}{{hashSource, "source"}, {hashTarget, "destination"}, {hashPorts, "ports"}} {
		if fields&f.bits == f.bits {
			out = append(out, f.name)
		}
	}
	if len(out) == 0 {
		return "unknown fields"
	}
	return strings.Join(out, ", ")
}

// symmetricKey repeats 16 bits of which half are set.
func symmetricKey(size int) string {
	parts := make([]string, size)
	for i := range parts {
		parts[i] = []string{"6d", "5a"}[i%2]
	}
	return strings.Join(parts, ":")
}

func (n *nic) numa(label string, h host) *Finding {
	if n.node < 0 || len(n.nodeCPUs) == 0 {
		return nil
	}
	f := Finding{Name: label, Level: OK, Found: fmt.Sprintf("node %d, where all of --cpus are", n.node)}
	var far cpus
	for _, c := range h.workers {
		if !slices.Contains(n.nodeCPUs, c) {
			far = append(far, c)
		}
	}
	advice := fmt.Sprintf("ingest --cpus %s: frames then stay on their node", n.nodeCPUs[:min(len(n.nodeCPUs), max(n.queues, 1))])
	switch {
	case len(h.workers) == 0:
		f.Level, f.Found, f.Advice = Warn, fmt.Sprintf("node %d; workers may run on others, as --cpus names none", n.node), advice
	case len(far) > 0:
		f.Level, f.Found, f.Advice = Warn, fmt.Sprintf("node %d; of --cpus %s are on others", n.node, far), advice
	}
	return &f
}

// offload looks at what joins segments before they are read: XDP comes before GRO, but not before what the card joins.
func (n *nic) offload(label string, h host) *Finding {
	if n.features == nil {
		return nil
	}
	if !h.useXDP {
		if !n.features["rx-gro"].Active && !n.features["rx-lro"].Active {
			return nil
		}
		return &Finding{label, Warn, "GRO or LRO is on: AF_PACKET sees segments joined, fewer packets than on the wire",
			"ethtool -K " + n.name + " gro off lro off"}
	}
	off, fixed := n.switchOff("rx-lro", "lro", "rx-gro-hw", "rx-gro-hw")
	switch {
	case off != "":
		return &Finding{label, Warn, "the card joins segments (LRO or hardware GRO): drivers refuse native XDP, or it sees fewer packets than on the wire",
			"ethtool -K " + n.name + off}
	case fixed != "":
		return &Finding{label, Warn, "the card joins segments, and that is fixed (" + fixed + ")", "name an interface of another driver, or switch it off in the hypervisor (QEMU's virtio-net: guest_tso4=off,guest_tso6=off)"}
	}
	return &Finding{Name: label, Level: OK, Found: "the card joins no segments"}
}

func (n *nic) vlan(label string, h host) *Finding {
	if n.features == nil || !h.useXDP { // AF_PACKET gets the tag beside the frame
		return nil
	}
	off, fixed := n.switchOff("rx-vlan-hw-parse", "rxvlan", "rx-vlan-stag-hw-parse", "rx-vlan-stag-hw-parse")
	switch {
	case off != "":
		return &Finding{label, Warn, "the card takes VLAN tags out of frames: XDP does not see them, and bridged frames lose them",
			"ethtool -K " + n.name + off}
	case fixed != "":
		return &Finding{label, Warn, "the card takes VLAN tags out of frames, and that is fixed (" + fixed + ")", "name an interface of another driver, where there are VLANs"}
	}
	return &Finding{Name: label, Level: OK, Found: "tags stay in the frames"}
}

// switchOff gives ethtool -K's words for those features that are on and may be switched off, and the names of those that may
// not. pairs are a feature's name and ethtool's word for it.
func (n *nic) switchOff(pairs ...string) (words, fixed string) {
	var names []string
	for i := 0; i < len(pairs); i += 2 {
		switch f := n.features[pairs[i]]; {
		case f.Active && (f.NeverChanged || !f.Available):
			names = append(names, pairs[i])
		case f.Active:
			words += " " + pairs[i+1] + " off"
		}
	}
	return words, strings.Join(names, ", ")
}
