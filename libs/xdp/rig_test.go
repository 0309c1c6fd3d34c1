package xdp

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/tidegate-mesh/tidegate/libs/netlab"
)

// rig is a namespace with two ports, left and right, whose other ends are in the namespace outer.
type rig struct {
	lab         *netlab.Lab
	gate, outer *netlab.NS
	bpffs       string
}

func newRig(t testing.TB, queues int) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("TIDEGATE_CI") == "1" {
			t.Fatal("needs root for network namespaces and BPF")
		}
		t.Skip("needs root for network namespaces and BPF")
	}
	lab, err := netlab.New("xdp")
	must(t, err)
	t.Cleanup(func() { must(t, lab.Close()) })
	r := &rig{lab: lab, bpffs: filepath.Join(t.TempDir(), "bpf")}
	r.gate, err = lab.Namespace(netlab.Ifname("g", "a"))
	must(t, err)
	r.outer, err = lab.Namespace(netlab.Ifname("o", "a"))
	must(t, err)
	r.veth(t, "left", queues)
	r.veth(t, "right", queues)
	unmount, err := netlab.BPFFS(r.bpffs)
	must(t, err)
	t.Cleanup(func() { must(t, unmount()) })
	return r
}

// veth makes a port and its other end, which is named like the port with an x.
func (r *rig) veth(t testing.TB, name string, queues int) {
	t.Helper()
	must(t, r.lab.Veth(netlab.End{NS: r.gate, Name: name}, netlab.End{NS: r.outer, Name: name + "x"}, queues))
}

func (r *rig) try(o Options) (g *Gate, err error) {
	o.BPFFS = r.bpffs
	if o.Iface == "" {
		o.Iface = "left"
	}
	if o.Mode == ModeInline && o.Peer == "" {
		o.Peer = "right"
	}
	e := r.gate.Do(func() error {
		g, err = Open(o)
		return nil
	})
	if e != nil {
		return nil, e
	}
	return g, err
}

func (r *rig) open(t testing.TB, o Options) *Gate {
	t.Helper()
	g, err := r.try(o)
	must(t, err)
	t.Cleanup(func() { must(t, g.Close()) })
	return g
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// program is what the pins say is attached.
func program(t testing.TB, g *Gate) *ebpf.Program {
	t.Helper()
	p, err := ebpf.LoadPinnedProgram(pinPath(g.dir, programPin), nil)
	must(t, err)
	t.Cleanup(func() { _ = p.Close() })
	return p
}

const (
	drop     = 1
	pass     = 2
	redirect = 4
)

// send runs the attached program on a frame.
func send(t testing.TB, p *ebpf.Program, frame []byte) uint32 {
	t.Helper()
	ret, err := p.Run(&ebpf.RunOptions{Data: frame})
	must(t, err)
	return ret
}

// sendQueue is send with an rx queue of the interface.
func (r *rig) sendQueue(t testing.TB, g *Gate, p *ebpf.Program, queue uint32, frame []byte) uint32 {
	t.Helper()
	md := make([]byte, 24)
	binary.NativeEndian.PutUint32(md[4:], uint32(len(frame)))
	binary.NativeEndian.PutUint32(md[12:], uint32(g.Ifindex()))
	binary.NativeEndian.PutUint32(md[16:], queue)
	var ret uint32
	must(t, r.gate.Do(func() (err error) {
		ret, err = p.Run(&ebpf.RunOptions{Data: frame, Context: md})
		return err
	}))
	return ret
}

func counters(t testing.TB, g *Gate) Counters {
	t.Helper()
	c, err := g.Counters()
	must(t, err)
	if c.Seen != c.sum() {
		t.Fatalf("ledger does not hold: %+v", c)
	}
	return c
}

// xskSocket is an AF_XDP socket that is bound to nothing: good enough to be in the map.
func xskSocket(t testing.TB) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// pkt describes a frame for gopacket to build.
type pkt struct {
	src, dst string
	proto    layers.IPProtocol
	sport    uint16
	dport    uint16
	flags    string // of TCP: letters of FSRPA
	ttl      uint8  // 0 = 64
	payload  int
	vlans    []uint16
	options  bool   // IPv4 options
	exts     string // IPv6 extension headers: h hop-by-hop, r routing, d destination, a authentication
	offset   uint16 // fragment offset in units of 8 bytes
	more     bool   // more fragments
	atomic   bool   // IPv6 fragment header on a whole packet
}

func udp(src, dst string) pkt {
	return pkt{src: src, dst: dst, proto: layers.IPProtocolUDP, sport: 1000, dport: 53}
}

func tcp(src, dst, flags string) pkt {
	return pkt{src: src, dst: dst, proto: layers.IPProtocolTCP, sport: 1000, dport: 80, flags: flags}
}

func (p pkt) with(f func(*pkt)) pkt { f(&p); return p }

func (p pkt) frame(t testing.TB) []byte {
	t.Helper()
	src, dst := netip.MustParseAddr(p.src), netip.MustParseAddr(p.dst)
	ethType := layers.EthernetTypeIPv4
	if src.Is6() {
		ethType = layers.EthernetTypeIPv6
	}
	types := []layers.EthernetType{}
	for i := range p.vlans {
		if i == 0 && len(p.vlans) > 1 {
			types = append(types, layers.EthernetTypeQinQ)
		} else {
			types = append(types, layers.EthernetTypeDot1Q)
		}
	}
	types = append(types, ethType)
	stack := []gopacket.SerializableLayer{&layers.Ethernet{
		SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DstMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, EthernetType: types[0],
	}}
	for i, v := range p.vlans {
		stack = append(stack, &layers.Dot1Q{VLANIdentifier: v, Type: types[i+1]})
	}
	ttl := p.ttl
	if ttl == 0 {
		ttl = 64
	}
	var network gopacket.NetworkLayer
	if src.Is4() {
		ip := &layers.IPv4{Version: 4, TTL: ttl, Protocol: p.proto, SrcIP: src.AsSlice(), DstIP: dst.AsSlice(), FragOffset: p.offset}
		if p.more {
			ip.Flags = layers.IPv4MoreFragments
		}
		if p.options {
			ip.Options = []layers.IPv4Option{{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}}
		}
		network = ip
		stack = append(stack, ip)
	} else {
		ip := &layers.IPv6{Version: 6, HopLimit: ttl, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
		network = ip
		stack = append(stack, ip)
		raw := p.extensions()
		if raw == nil {
			ip.NextHeader = p.proto
		} else {
			ip.NextHeader = layers.IPProtocol(raw.first)
			stack = append(stack, gopacket.Payload(raw.bytes))
		}
	}
	body := make([]byte, p.payload)
	if p.offset == 0 {
		stack = append(stack, p.transport(t, network)...)
	}
	stack = append(stack, gopacket.Payload(body))
	buf := gopacket.NewSerializeBuffer()
	must(t, gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, stack...))
	return buf.Bytes()
}

func (p pkt) transport(t testing.TB, network gopacket.NetworkLayer) []gopacket.SerializableLayer {
	t.Helper()
	switch p.proto {
	case layers.IPProtocolTCP:
		l := &layers.TCP{SrcPort: layers.TCPPort(p.sport), DstPort: layers.TCPPort(p.dport)}
		for _, f := range p.flags {
			switch f {
			case 'F':
				l.FIN = true
			case 'S':
				l.SYN = true
			case 'R':
				l.RST = true
			case 'P':
				l.PSH = true
			case 'A':
				l.ACK = true
			}
		}
		must(t, l.SetNetworkLayerForChecksum(network))
		return []gopacket.SerializableLayer{l}
	case layers.IPProtocolUDP:
		l := &layers.UDP{SrcPort: layers.UDPPort(p.sport), DstPort: layers.UDPPort(p.dport)}
		must(t, l.SetNetworkLayerForChecksum(network))
		return []gopacket.SerializableLayer{l}
	case layers.IPProtocolSCTP:
		return []gopacket.SerializableLayer{&layers.SCTP{SrcPort: layers.SCTPPort(p.sport), DstPort: layers.SCTPPort(p.dport)}}
	case layers.IPProtocolICMPv4:
		return []gopacket.SerializableLayer{&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0)}}
	case layers.IPProtocolICMPv6:
		l := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(128, 0)}
		must(t, l.SetNetworkLayerForChecksum(network))
		return []gopacket.SerializableLayer{l}
	}
	return nil
}

type extensions struct {
	first uint8
	bytes []byte
}

// extensions chains IPv6 extension headers of 8 or 16 bytes (RFC 8200 4, RFC 4302 2).
func (p pkt) extensions() *extensions {
	kinds := map[rune]uint8{'h': 0, 'r': 43, 'd': 60, 'a': 51}
	var order []uint8
	for _, e := range p.exts {
		order = append(order, kinds[e])
	}
	if p.offset != 0 || p.more || p.atomic {
		order = append(order, 44)
	}
	if len(order) == 0 {
		return nil
	}
	out := &extensions{first: order[0]}
	for i, kind := range order {
		next := uint8(p.proto)
		if i+1 < len(order) {
			next = order[i+1]
		}
		header := make([]byte, 8)
		header[0] = next
		switch kind {
		case 44:
			f := p.offset << 3
			if p.more {
				f |= 1
			}
			binary.BigEndian.PutUint16(header[2:], f)
		case 51:
			header = append(header, make([]byte, 8)...)
			header[1] = 2
		case 60:
			header = append(header, make([]byte, 8)...)
			header[1] = 1
			header[2], header[3] = 1, 12
		default:
			header[2], header[3] = 1, 4
		}
		out.bytes = append(out.bytes, header...)
	}
	return out
}
