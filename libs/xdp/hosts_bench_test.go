package xdp

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/tidegate-mesh/tidegate/libs/policy"
)

const (
	droppedHosts = 1 << 10 // single addresses, from 20.0.0.0 on
	manyMasks    = 16
)

// BenchmarkHosts is the rate on one CPU, sender included, at which packets of 1,024 addresses are dropped by as many rules, all of
// one shape and of 16 shapes, beside xdp-filter with the same addresses and a program that does nothing but drop. They take
// turns. The bar is 0.92 of xdp-filter with one shape.
func BenchmarkHosts(b *testing.B) {
	if _, err := exec.LookPath("xdp-filter"); err != nil {
		if os.Getenv("TIDEGATE_CI") == "1" {
			b.Fatal("needs xdp-filter (apt-get install xdp-tools)")
		}
		b.Skip("needs xdp-filter (apt-get install xdp-tools)")
	}
	r := newRig(b, 1)
	r.veth(b, "bare", 1)
	r.veth(b, "peer", 1)
	g := r.open(b, Options{Mode: ModeInline, FailClosed: true})
	r.dropAll(b, "bare")
	r.filter(b, "peer")
	frame := udp("192.0.2.1", "198.51.100.7").frame(b)

	one := make([]Rule, droppedHosts)
	for i := range one {
		one[i] = Rule{ID: uint64(i + 1), Action: policy.Drop, Match: policy.Match{Src: netip.PrefixFrom(droppedHost(i), 32)}}
	}
	shapes := make([]Rule, droppedHosts)
	for i := range shapes {
		shapes[i] = one[i]
		m := &shapes[i].Match
		if i&1 != 0 {
			m.HasProtocol, m.Protocol = true, 17
			m.HasDstPort, m.DstPort = i&2 != 0, 53
			m.HasSrcPort, m.SrcPort = i&4 != 0, 1000
		} else {
			m.Dst = netip.PrefixFrom(netip.MustParseAddr("198.51.100.7"), 32-8*(i>>1&3)).Masked()
		}
		if i&8 != 0 {
			m.LengthMin = 1
		}
	}
	rows := []*struct {
		name, port  string
		rules       []Rule
		masks       uint32
		sent, drops float64
		took        time.Duration
	}{
		{name: "XDP_DROP alone", port: "bare"},
		{name: "xdp-filter", port: "peer"},
		{name: "rules of one shape", port: "left", rules: one, masks: 1},
		{name: fmt.Sprintf("rules of %d shapes", manyMasks), port: "left", rules: shapes, masks: manyMasks},
	}
	for range max(3, b.N/20_000_000) {
		for _, row := range rows {
			if row.rules != nil {
				must(b, g.PutRules(row.rules))
				if n := masksInUse(b, g); n != row.masks {
					b.Fatalf("%s: %d masks, not %d", row.name, n, row.masks)
				}
			}
			r.flood(b, row.port, 20<<24, droppedHosts-1, frame, 1<<20) // pages and caches
			before, begin := counters(b, g).Drop, time.Now()
			const count = 5_000_000
			r.flood(b, row.port, 20<<24, droppedHosts-1, frame, count)
			row.took += time.Since(begin)
			row.sent += count
			row.drops += float64(counters(b, g).Drop - before)
			if row.rules != nil {
				var ids []uint64
				for i := range row.rules {
					ids = append(ids, row.rules[i].ID)
				}
				must(b, g.DeleteRules(ids))
			}
		}
	}
	rate := func(i int) float64 { return rows[i].sent / rows[i].took.Seconds() / 1e6 }
	for i, row := range rows {
		if row.rules != nil && row.drops != row.sent {
			b.Errorf("%s: %.0f of %.0f dropped", row.name, row.drops, row.sent)
		}
		b.Logf("%-20s %6.2f Mpps, %.2f of XDP_DROP alone, %.2f of xdp-filter", row.name, rate(i), rate(i)/rate(0), rate(i)/rate(1))
	}
	b.ReportMetric(0, "ns/op")
}

func droppedHost(i int) netip.Addr { return netip.AddrFrom4([4]byte{20, 0, byte(i >> 8), byte(i)}) } //nolint:gosec // the bytes of i

func masksInUse(b testing.TB, g *Gate) uint32 {
	b.Helper()
	c, err := g.config()
	must(b, err)
	var set maskSet
	must(b, g.maps.GateMasks.Lookup(c.MaskSet, &set))
	return set.Count
}

// dropAll attaches a program that drops every packet.
func (r *rig) dropAll(b *testing.B, iface string) {
	b.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, drop), asm.Return()}})
	must(b, err)
	b.Cleanup(func() { _ = prog.Close() })
	must(b, r.gate.Do(func() error {
		dev, err := net.InterfaceByName(iface)
		if err != nil {
			return err
		}
		l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: dev.Index})
		if err == nil {
			b.Cleanup(func() { _ = l.Close() })
		}
		return err
	}))
}

// filter loads xdp-filter with the addresses, and takes it away at the end. It keeps its pins in the machine's bpffs.
func (r *rig) filter(b *testing.B, iface string) {
	b.Helper()
	run := func(args ...string) {
		b.Helper()
		must(b, r.gate.Do(func() error {
			if out, err := exec.Command("xdp-filter", args...).CombinedOutput(); err != nil { //nolint:gosec // fixed arguments
				return fmt.Errorf("xdp-filter %v: %w: %s", args, err, out)
			}
			return nil
		}))
	}
	const pins = "/sys/fs/bpf"
	var fs unix.Statfs_t
	must(b, unix.Statfs(pins, &fs))
	if fs.Type != unix.BPF_FS_MAGIC {
		must(b, unix.Mount("bpffs", pins, "bpf", 0, "mode=0700"))
		b.Cleanup(func() { must(b, unix.Unmount(pins, unix.MNT_DETACH)) })
	}
	run("load", "--mode", "native", "--features", "ipv4", iface)
	b.Cleanup(func() { run("unload", iface) })
	for i := range droppedHosts {
		run("ip", "--mode", "src", droppedHost(i).String())
	}
}
