package xdp

import (
	"errors"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/tidegate-mesh/tidegate/libs/policy"
)

// flood sends UDP frames to a port of the gate's namespace from inside the kernel, on the last CPU, as fast as that goes. Their
// sources are base with random bits in the places of mask. The receiving program runs on the same CPU.
func (r *rig) flood(b *testing.B, port string, base, mask uint32, frame []byte, count uint32) {
	b.Helper()
	must(b, r.outer.Do(func() error {
		far, err := net.InterfaceByName(port + "x")
		if err != nil {
			return err
		}
		prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.FnGetPrandomU32.Call(),
			asm.LoadImm(asm.R1, int64(mask), asm.DWord),
			asm.And.Reg(asm.R0, asm.R1),
			asm.LoadImm(asm.R1, int64(base), asm.DWord),
			asm.Or.Reg(asm.R0, asm.R1),
			asm.HostTo(asm.BE, asm.R0, asm.Word),
			asm.LoadMem(asm.R2, asm.R6, 0, asm.Word), // data
			asm.LoadMem(asm.R3, asm.R6, 4, asm.Word), // data_end
			asm.Mov.Reg(asm.R4, asm.R2),
			asm.Add.Imm(asm.R4, 30),
			asm.JGT.Reg(asm.R4, asm.R3, "out"),
			asm.StoreMem(asm.R2, 26, asm.R0, asm.Word), // the source, after Ethernet
			asm.Mov.Imm(asm.R1, int32(far.Index)),      //nolint:gosec // an interface index
			asm.Mov.Imm(asm.R2, 0),
			asm.FnRedirect.Call(),
			asm.Return(),
			asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
			asm.Return(),
		}})
		if err != nil {
			return err
		}
		defer func() { _ = prog.Close() }() // nothing depends on it
		var old, set unix.CPUSet
		if err := unix.SchedGetaffinity(0, &old); err != nil {
			return err
		}
		set.Set(runtime.NumCPU() - 1)
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return err
		}
		defer func() { _ = unix.SchedSetaffinity(0, &old) }()
		_, err = prog.Run(&ebpf.RunOptions{Data: frame, Repeat: count, Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES, BatchSize: 64})
		if errors.Is(err, unix.EINTR) {
			err = nil
		}
		return err
	}))
}

// BenchmarkLists is the rate on one CPU, sender included, with long address lists; the bars are 1.8 million packets a
// second with a million hosts and sources among them, 1.5 with a million prefixes and random sources.
func BenchmarkLists(b *testing.B) {
	r := newRig(b, 1)
	g := r.open(b, Options{Mode: ModeInline, FailClosed: true})
	frame := udp("192.0.2.1", "198.51.100.7").frame(b)
	hosts := make([]Listed, 1<<20)
	for i := range hosts {
		a := netip.AddrFrom4([4]byte{20, byte(i >> 16), byte(i >> 8), byte(i)})
		hosts[i] = Listed{Prefix: netip.PrefixFrom(a, 32), List: 1, Action: policy.Drop}
	}
	full := newCoverage()
	full.fill(0, 2*coveredV6)
	for _, bb := range []struct {
		name       string
		list       []Listed
		base, mask uint32
		all        bool // every bit of the bitmap is set: as if there were none
	}{
		{"none", nil, 20 << 24, 0xfffff, false},
		{"1Mi hosts, sources listed", hosts, 20 << 24, 0xfffff, false},
		{"1Mi hosts, random sources", hosts, 0, 0xffffffff, false},
		{"1M prefixes, random sources", randomListed(1_000_000, false, 1), 0, 0xffffffff, false},
		{"1M prefixes, random sources, no bitmap", randomListed(1_000_000, false, 1), 0, 0xffffffff, true},
	} {
		b.Run(bb.name, func(b *testing.B) {
			syncLists(b, g, bb.list, -1, -1, 0)
			if bb.all {
				must(b, g.cover(full, false, g.locked))
			}
			r.flood(b, "left", bb.base, bb.mask, frame, 1<<20) // pages and caches
			before := counters(b, g)
			begin := time.Now()
			for range max(1, b.N/5_000_000) {
				r.flood(b, "left", bb.base, bb.mask, frame, 5_000_000)
			}
			took := time.Since(begin)
			after := counters(b, g)
			b.ReportMetric(float64(after.Seen-before.Seen)/took.Seconds()/1e6, "Mpps")
			b.ReportMetric(100*float64(after.Drop-before.Drop)/float64(after.Seen-before.Seen), "%dropped")
			b.ReportMetric(0, "ns/op")
			syncLists(b, g, nil, 0, -1, 0)
		})
	}
}
