package loadgen

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/tidegate-mesh/tidegate/libs/netlab"
	"github.com/tidegate-mesh/tidegate/libs/packet"
)

//go:generate env GOWORK=off GOFLAGS=-mod=readonly go tool -modfile=../../tools/bpf2go/go.mod bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -go-package loadgen -cflags "-O2 -g -Wall -Werror -I/usr/include/x86_64-linux-gnu" loadgen bpf/loadgen.c

// Stream is an even stream of frames made in the kernel: the fastest sender there is without hardware. They are UDP to
// port 27015, of Flows flows: 64 share a source address, each with a port of its own, and talk to one of Hosts
// addresses from Target on: busy clients, not scanners. With Scatter they are a flood.
type Stream struct {
	NS             *netlab.NS
	Iface          string // in NS; frames leave here
	SrcMAC, DstMAC [6]byte
	Source, Target netip.Addr // first addresses, IPv4
	Flows, Hosts   uint32
	// Scatter, 1 to 32, takes one of 2^Scatter sources from Source on for each frame, in no order and each as often as
	// the others, towards Target alone. 0: see above.
	Scatter uint32
	// SYN makes the frames SYNs to TCP port 443, with an MSS and nothing else: 58 bytes.
	SYN bool
	// Renew, at least 2, makes the oldest flow give way to a new one each time so many frames were sent; sources then run
	// on, 64 flows each, through as many addresses as that takes. 0: flows stay.
	Renew uint32
	// Opening is the UDP payload of the first frame of flows that Renew begins, at most 512 bytes; nil: as all others.
	Opening []byte
	// Stamped puts the time into each frame as Link.Stamped does, but for an Opening; Size must be at least 16. Age reads it.
	Stamped bool
	Size    int // IP payload bytes after UDP header; at least 18 makes 60-byte frames
	// Share of the machine's top rate, in 1,024ths: 1,024 sends without pause.
	Share uint32
	CPU   int // the CPU that sends; the receiver's NAPI runs there too
}

// Streamed is what a Stream sent.
type Streamed struct {
	Frames  uint64 // handed to the interface
	Renewed uint64 // flows begun in place of others
}

// Run sends until ctx ends or d passed. d must be positive: load ends by itself.
func (s Stream) Run(ctx context.Context, d time.Duration) (out Streamed, err error) {
	var objs loadgenObjects
	if err := loadLoadgenObjects(&objs, nil); err != nil {
		return out, fmt.Errorf("load the sending program: %w", err)
	}
	defer func() { _ = objs.Close() }()
	err = s.NS.Do(func() error {
		frame, err := s.configure(&objs)
		if err != nil {
			return err
		}
		var old unix.CPUSet
		if err := unix.SchedGetaffinity(0, &old); err != nil {
			return fmt.Errorf("read the CPU affinity: %w", err)
		}
		var set unix.CPUSet
		set.Set(s.CPU % runtime.NumCPU())
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return fmt.Errorf("pin the sender to CPU %d: %w", s.CPU, err)
		}
		defer func() { _ = unix.SchedSetaffinity(0, &old) }()
		// A call pauses for about 22 ms at its end: long calls keep the stream even. The first, short
		// one measures how many repeats fill two seconds.
		deadline := time.Now().Add(d)
		repeat := uint32(1 << 20)
		for ctx.Err() == nil && time.Now().Before(deadline) {
			start := time.Now()
			_, err := objs.Send.Run(&ebpf.RunOptions{Data: frame, Repeat: repeat, Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES, BatchSize: 64})
			if err != nil && !errors.Is(err, unix.EINTR) {
				return fmt.Errorf("send live frames: %w", err)
			}
			took := time.Since(start)
			left := min(time.Until(deadline), 2*time.Second)
			repeat = uint32(max(1<<16, float64(repeat)*left.Seconds()/max(took.Seconds(), 0.001)))
		}
		return nil
	})
	if err != nil {
		return out, err
	}
	var states []loadgenSendState
	if err := objs.SendState.Lookup(uint32(0), &states); err != nil {
		return out, fmt.Errorf("read the sent frames: %w", err)
	}
	for _, st := range states {
		out.Frames += st.Sent
		out.Renewed += st.Renewed
	}
	return out, nil
}

// configure tells the program what to send and returns the frame whose addresses and source port it replaces. It must be
// called in NS.
func (s Stream) configure(objs *loadgenObjects) (frame []byte, err error) {
	iface, err := net.InterfaceByName(s.Iface)
	if err != nil {
		return nil, fmt.Errorf("find the sender's interface %s: %w", s.Iface, err)
	}
	src, dst := s.Source.As4(), s.Target.As4()
	cfg := loadgenSendConfig{
		Share: s.Share, Hosts: s.Hosts, Scatter: s.Scatter, Renew: s.Renew, Opening: uint32(len(s.Opening)), //nolint:gosec // see below
		SourceBase: binary.BigEndian.Uint32(src[:]), TargetBase: binary.BigEndian.Uint32(dst[:]),
	}
	switch {
	case s.Flows == 0 || s.Hosts == 0:
		return nil, errors.New("a stream of no flows, or to no host: it has at least one of each")
	case s.Renew == 1:
		return nil, errors.New("a stream cannot begin a flow with every frame: renew after 2 or more, or scatter")
	case len(s.Opening) > len(cfg.First):
		return nil, fmt.Errorf("an opening of %d bytes: give at most %d", len(s.Opening), len(cfg.First))
	case s.SYN && (s.Stamped || s.Opening != nil):
		return nil, errors.New("SYNs carry neither stamp nor opening: those are UDP's")
	}
	copy(cfg.First[:], s.Opening)
	if s.Stamped {
		cfg.Stamped = 1
	}
	frame = s.template()
	cfg.Length = uint32(len(frame) - ethernetBytes) //nolint:gosec // a frame
	for at := ethernetBytes; at < ethernetBytes+12; at += 2 {
		if at != ethernetBytes+2 && at != ethernetBytes+10 { // what stays as it is: neither length nor checksum
			cfg.FixedSum += uint32(binary.BigEndian.Uint16(frame[at:]))
		}
	}
	if s.SYN {
		cfg.TcpSum = uint32(^binary.BigEndian.Uint16(frame[ethernetBytes+20+16:]))
	}
	if err := objs.SendPort.Put(uint32(0), uint32(iface.Index)); err != nil { //nolint:gosec // the kernel's, positive
		return nil, fmt.Errorf("name the sending program's interface: %w", err)
	}
	if err := objs.SendConfig.Put(uint32(0), cfg); err != nil {
		return nil, fmt.Errorf("configure the sending program: %w", err)
	}
	states := make([]loadgenSendState, ebpf.MustPossibleCPU())
	for i := range states {
		states[i].Newest.Flow, states[i].Newest.Host, states[i].Until = s.Flows, s.Flows/64%s.Hosts, s.Renew
	}
	if err := objs.SendState.Put(uint32(0), states); err != nil {
		return nil, fmt.Errorf("number the sending program's flows: %w", err)
	}
	return frame, nil
}

const ethernetBytes = 14

// template is the frame before that. A SYN's has no addresses and no source port: its checksum is of all else.
func (s Stream) template() []byte {
	h := packet.Header{SrcMAC: s.SrcMAC, DstMAC: s.DstMAC, Src: netip.IPv4Unspecified(), Dst: netip.IPv4Unspecified()}
	if s.SYN {
		return h.AppendTCP(nil, &packet.TCP{DstPort: 443, Seq: 1, Flags: packet.FlagSYN, Window: 64240, Options: packet.AppendMSS(nil, 1460)}, nil)
	}
	frame := h.AppendUDP(nil, 10000, 27015, make([]byte, s.Size))
	const checksum = ethernetBytes + 20 + 6
	frame[checksum], frame[checksum+1] = 0, 0 // none (RFC 768)
	return frame
}

// Counts is what arrived at a Counter's interface: IPv4 packets from inside the benign prefix, from
// elsewhere, and all else.
type Counts struct {
	Benign, Attack, Other uint64
}

// Counter counts on an interface with an XDP program before any stack sees the packets.
type Counter struct {
	objs loadgenObjects
	link link.Link
}

// NewCounter attaches to iface inside ns (nil: the current namespace). drop discards what was counted.
func NewCounter(ns *netlab.NS, iface string, benign netip.Prefix, drop bool) (*Counter, error) {
	c := &Counter{}
	if err := loadLoadgenObjects(&c.objs, nil); err != nil {
		return nil, fmt.Errorf("load the counting program: %w", err)
	}
	addr := benign.Masked().Addr().As4()
	mask := net.CIDRMask(benign.Bits(), 32)
	cfg := loadgenCountConfig{BenignPrefix: binary.NativeEndian.Uint32(addr[:]), BenignMask: binary.NativeEndian.Uint32(mask)}
	if drop {
		cfg.Drop = 1
	}
	err := c.objs.CountConfig.Put(uint32(0), cfg)
	if err == nil {
		attach := func() error {
			i, err := net.InterfaceByName(iface)
			if err != nil {
				return err
			}
			c.link, err = link.AttachXDP(link.XDPOptions{Program: c.objs.Count, Interface: i.Index})
			return err
		}
		if ns != nil {
			err = ns.Do(attach)
		} else {
			err = attach()
		}
	}
	if err != nil {
		_ = c.objs.Close()
		return nil, fmt.Errorf("count on %s: %w", iface, err)
	}
	return c, nil
}

// Counts reads the counters.
func (c *Counter) Counts() (Counts, error) {
	var sums [3]uint64
	for class := range sums {
		var v []loadgenCountValue
		if err := c.objs.Counts.Lookup(uint32(class), &v); err != nil {
			return Counts{}, fmt.Errorf("read the victim's counters: %w", err)
		}
		for _, x := range v {
			sums[class] += x.Packets
		}
	}
	return Counts{Benign: sums[0], Attack: sums[1], Other: sums[2]}, nil
}

// Close detaches the program.
func (c *Counter) Close() error { return errors.Join(c.link.Close(), c.objs.Close()) }
