package packet

import (
	"errors"
	"io"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/tidegate-mesh/tidegate/libs/pcapfile"
	"github.com/tidegate-mesh/tidegate/libs/pcapfile/corpustest"
)

// seen is what the oracle says about a frame.
type seen struct {
	src, dst     netip.Addr
	sport, dport uint16
	proto        uint8
	payload      int
	flags        uint8
	vlan         uint16
}

// oracle decodes with gopacket and keeps the outermost IP and its transport. ok is false where gopacket
// itself reports an error or stops before the transport header.
func oracle(link int, frame []byte) (s seen, ok bool) {
	var first gopacket.Decoder = layers.LinkType(link) //nolint:gosec // link types fit a byte here
	switch link {
	case LinkRaw, LinkRawOld, LinkRawOpenBSD, LinkIPv4, LinkIPv6:
		if len(frame) == 0 {
			return s, false
		}
		first = layers.LayerTypeIPv4
		if frame[0]>>4 == 6 {
			first = layers.LayerTypeIPv6
		}
	case LinkCooked2, LinkCiscoHDLC:
		return s, false // gopacket has no decoder for them
	}
	p := gopacket.NewPacket(frame, first, gopacket.DecodeOptions{Lazy: true, NoCopy: true})
	all := p.Layers()
	if p.ErrorLayer() != nil && p.TransportLayer() == nil {
		return s, false
	}
	found := false
	for i, l := range all {
		switch l := l.(type) {
		case *layers.Dot1Q:
			if !found && s.vlan == 0 {
				s.vlan = l.VLANIdentifier
			}
		case *layers.IPv4:
			if found {
				return s, false
			}
			if l.Version != 4 {
				return s, false // not looked at by gopacket
			}
			found = true
			s.src, s.dst = addr(l.SrcIP), addr(l.DstIP)
			s.proto = uint8(l.Protocol)
			s.payload = len(l.Payload)
			if l.Flags&layers.IPv4MoreFragments != 0 || l.FragOffset != 0 {
				return s, false // gopacket does not look into any fragment; tables in packet_test.go do
			}
			if l.Protocol != layers.IPProtocolTCP && l.Protocol != layers.IPProtocolUDP {
				return s, l.Protocol != layers.IPProtocolSCTP && l.Protocol != layers.IPProtocolICMPv4 && l.Protocol != layers.IPProtocolICMPv6
			}
		case *layers.IPv6:
			if found {
				return s, false
			}
			found = true
			s.src, s.dst = addr(l.SrcIP), addr(l.DstIP)
			s.proto = uint8(l.NextHeader)
		case *layers.IPv6Fragment:
			return s, false
		case *layers.TCP:
			if l.DataOffset < 5 || int(l.DataOffset)*4 > len(l.Contents) {
				return s, false // gopacket keeps the ports of a header it could not read
			}
			s.proto = ProtoTCP
			s.sport, s.dport = uint16(l.SrcPort), uint16(l.DstPort)
			s.payload = len(l.Payload)
			for bit, on := range []bool{l.FIN, l.SYN, l.RST, l.PSH, l.ACK, l.URG, l.ECE, l.CWR} {
				if on {
					s.flags |= 1 << bit
				}
			}
			return s, found
		case *layers.UDP:
			s.proto = ProtoUDP
			s.sport, s.dport = uint16(l.SrcPort), uint16(l.DstPort)
			s.payload = len(l.Payload)
			return s, found && l.Length != 0
		case *layers.SCTP:
			s.proto = ProtoSCTP
			s.sport, s.dport = uint16(l.SrcPort), uint16(l.DstPort)
			s.payload = len(all[i].LayerPayload())
			return s, found
		}
	}
	return s, false
}

func addr(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a.Unmap()
}

// compare returns a description of the difference, or "".
func compare(p *Packet, s *seen) string {
	src, dst := netip.AddrFrom16(p.Src).Unmap(), netip.AddrFrom16(p.Dst).Unmap()
	switch {
	case src != s.src || dst != s.dst:
		return "addresses"
	case p.SrcPort != s.sport || p.DstPort != s.dport:
		return "ports"
	case p.Proto != s.proto:
		return "protocol"
	case p.PayloadLen != s.payload:
		return "payload length"
	case p.TCPFlags != s.flags:
		return "flags"
	case p.VLAN != s.vlan:
		return "vlan"
	}
	return ""
}

func TestOracleBuiltFrames(t *testing.T) {
	compared := 0
	for name, frame := range frames() {
		var p Packet
		p.Decode(frame)
		s, ok := oracle(LinkEthernet, frame)
		if !ok {
			continue
		}
		compared++
		if d := compare(&p, &s); d != "" {
			t.Errorf("%s: %s differ: %+v, gopacket %+v", name, d, p, s)
		}
		// Checksums as another decoder computes them.
		g := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
		if l, ok := g.TransportLayer().(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok {
			if err := l.SetNetworkLayerForChecksum(g.NetworkLayer()); err != nil {
				t.Fatal(err)
			}
		}
		if err, bad := g.VerifyChecksums(); err != nil || len(bad) > 0 {
			t.Errorf("%s: checksums: %v %v", name, err, bad)
		}
	}
	if compared < 9 {
		t.Errorf("only %d frames compared", compared)
	}
}

// TestOracleCorpus compares every frame of the shared captures that gopacket decodes down to the transport.
func TestOracleCorpus(t *testing.T) {
	dir := corpustest.Dir(t)
	var compared, differ int
	var reasons [NumReasons]int
	for _, path := range corpustest.Captures(t, dir) {
		r, err := pcapfile.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		var p Packet
		for i := 1; ; i++ {
			rec, err := r.Next(nil)
			if err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, pcapfile.ErrFormat) {
					t.Error(err)
				}
				break
			}
			reason := p.DecodeLink(rec.LinkType, rec.Data)
			reasons[reason]++
			if reason == UnsupportedLinkType {
				continue
			}
			s, ok := oracle(rec.LinkType, rec.Data)
			if !ok {
				continue
			}
			if reason == OK {
				compared++
				if d := compare(&p, &s); d != "" {
					if differ++; differ < 40 {
						t.Logf("%s frame %d: %s differ: %+v, gopacket %+v", filepath.Base(path), i, d, p, s)
					}
				}
			} else {
				if differ++; differ < 40 {
					t.Logf("%s frame %d: we say %v, gopacket %+v", filepath.Base(path), i, reason, s)
				}
			}
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if differ > 0 || compared < 200_000 {
		t.Errorf("%d frames compared, %d differ", compared, differ)
	}
	for r, n := range reasons {
		if n > 0 {
			t.Logf("%7d %v", n, Reason(r))
		}
	}
}
