package filter

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Numbers of protocols, of RFC 790's successors at IANA.
const (
	etherIP, etherARP, etherRARP, etherIP6 = 0x0800, 0x0806, 0x8035, 0x86DD
	protoTCP, protoUDP, protoSCTP          = 6, 17, 132
	protoIP6Fragment                       = 44
)

var etherTypes = map[string]uint32{"ip": etherIP, "ip6": etherIP6, "arp": etherARP, "rarp": etherRARP}

// ipProtocol is a protocol above IP; by is the network layers that the keyword means.
type ipProtocol struct {
	number   uint8
	ip4, ip6 bool
	keyword  bool
}

var ipProtocols = map[string]ipProtocol{
	"tcp": {protoTCP, true, true, true}, "udp": {protoUDP, true, true, true}, "sctp": {protoSCTP, true, true, true},
	"icmp": {1, true, false, true}, "igmp": {2, true, false, true}, "icmp6": {58, false, true, true}, "vrrp": {112, true, false, true},
	"esp": {50, true, true, true}, "ah": {51, true, true, true}, "pim": {103, true, true, true},
	"gre": {47, true, true, false}, "ospf": {89, true, true, false}, "ipv6": {41, true, true, false}, "ipv6-icmp": {58, true, true, false},
}

// isProtocol tells a word that names a protocol in an expression.
func isProtocol(s string) bool {
	_, ethernet := etherTypes[s]
	return ethernet || s == "ether" || s == "link" || ipProtocols[s].keyword
}

func u8(f []byte, at int) (uint32, bool) {
	if at < 0 || at >= len(f) {
		return 0, false
	}
	return uint32(f[at]), true
}

func u16(f []byte, at int) (uint32, bool) {
	if at < 0 || at+2 > len(f) {
		return 0, false
	}
	return uint32(binary.BigEndian.Uint16(f[at:])), true
}

func u32(f []byte, at int) (uint32, bool) {
	if at < 0 || at+4 > len(f) {
		return 0, false
	}
	return binary.BigEndian.Uint32(f[at:]), true
}

// ether tests the Ethernet type.
func (p *parser) ether(want uint32) test {
	at := p.etherType
	return func(f []byte, _ int) result {
		v, ok := u16(f, at)
		if !ok {
			return beyond
		}
		return is(v == want)
	}
}

func byteIs(at int, want uint8) test {
	return func(f []byte, _ int) result {
		v, ok := u8(f, at)
		if !ok {
			return beyond
		}
		return is(v == uint32(want))
	}
}

func (p *parser) ip4Protocol(n uint8) test { return and(p.ether(etherIP), byteIs(p.payload+9, n)) }

// ip6Protocol looks at the next header, and behind a fragment header that comes first.
func (p *parser) ip6Protocol(n uint8) test {
	at := p.payload
	behind := and(byteIs(at+6, protoIP6Fragment), byteIs(at+40, n))
	return and(p.ether(etherIP6), or(byteIs(at+6, n), behind))
}

// protocol is a protocol's name by itself.
func (p *parser) protocol(t token) (test, bool) {
	if v, ok := etherTypes[t.text]; ok {
		return p.ether(v), true
	}
	v, ok := ipProtocols[t.text]
	if !ok { // ether, link
		return nil, p.fail("expected host, proto, src, dst, broadcast or multicast after %s", t.text)
	}
	switch {
	case !v.ip6:
		return p.ip4Protocol(v.number), true
	case !v.ip4:
		return p.ip6Protocol(v.number), true
	}
	return or(p.ip4Protocol(v.number), p.ip6Protocol(v.number)), true
}

// cast = "broadcast" | "multicast" of a protocol.
func (p *parser) cast(protocol string) (test, bool) {
	kind := p.peek().text
	p.last = qualifiers{}
	at := p.payload
	switch {
	case (protocol == "ether" || protocol == "link") && kind == "broadcast":
		p.next++
		return etherHost(0, net.HardwareAddr{255, 255, 255, 255, 255, 255}), true
	case (protocol == "ether" || protocol == "link") && kind == "multicast":
		p.next++
		return func(f []byte, _ int) result {
			v, ok := u8(f, 0)
			if !ok {
				return beyond
			}
			return is(v&1 != 0)
		}, true
	case protocol == "ip" && kind == "multicast":
		p.next++
		return and(p.ether(etherIP), func(f []byte, _ int) result {
			v, ok := u8(f, at+16)
			if !ok {
				return beyond
			}
			return is(v >= 224)
		}), true
	case protocol == "ip6" && kind == "multicast":
		p.next++
		return and(p.ether(etherIP6), byteIs(at+24, 255)), true
	}
	return nil, p.fail("%s %s is not supported: take ether broadcast, ether multicast, ip multicast or ip6 multicast", protocol, kind)
}

// toward joins the tests of both directions.
func (d direction) toward(src, dst test) test {
	switch d {
	case source:
		return src
	case destination:
		return dst
	case both:
		return and(src, dst)
	}
	return or(src, dst)
}

// value reads what the qualifiers are about.
func (p *parser) value(q qualifiers) (test, bool) {
	t := p.peek()
	if t.kind != word && (t.kind != quoted || q.typ != "proto") {
		return nil, p.fail("expected %s", expected(q))
	}
	switch q.typ {
	case "proto":
		return p.protocolValue(q, t)
	case "port":
		return p.port(q, t)
	case "portrange":
		return p.portRange(q, t)
	case "net":
		return p.network(q, t)
	}
	return p.host(q, t)
}

func expected(q qualifiers) string {
	switch q.typ {
	case "proto":
		return "a protocol's number or name"
	case "port":
		return "a port"
	case "portrange":
		return "two ports as 1-1024"
	case "net":
		return "a network as 10.0.0.0/8 or 2001:db8::/32"
	}
	return "an address"
}

// host = an IPv4, IPv6 or Ethernet address.
func (p *parser) host(q qualifiers, t token) (test, bool) {
	if q.protocol == "ether" || q.protocol == "link" {
		mac, err := net.ParseMAC(t.text)
		if err != nil || len(mac) != 6 {
			return nil, p.fail("expected an Ethernet address as 02:00:5e:10:00:01")
		}
		p.next++
		return q.dir.toward(etherHost(6, mac), etherHost(0, mac)), true
	}
	a, err := netip.ParseAddr(t.text)
	if err != nil || a.Zone() != "" {
		if q == (qualifiers{}) {
			return nil, p.fail("%q is not a known word or an address; supported are %s", t.text, Supported)
		}
		return nil, p.fail("expected an IPv4 or IPv6 address; names are not looked up")
	}
	if p.ahead(1).text == "/" {
		p.next++
		return nil, p.fail("a prefix length goes with net: write net %s/…", t.text)
	}
	p.next++
	return p.prefix(q, netip.PrefixFrom(a, a.BitLen()), t)
}

func etherHost(at int, mac net.HardwareAddr) test {
	want := string(mac)
	return func(f []byte, _ int) result {
		if at+6 > len(f) {
			return beyond
		}
		return is(string(f[at:at+6]) == want)
	}
}

// network = "10.0.0.0/8", "10.0.0.0 mask 255.0.0.0", "10", "192.168" or "2001:db8::/32".
func (p *parser) network(q qualifiers, t token) (test, bool) {
	text, bits := t.text, 8*(strings.Count(t.text, ".")+1)
	if !strings.Contains(text, ":") {
		text += strings.Repeat(".0", max(0, 3-strings.Count(text, ".")))
	} else {
		bits = 128
	}
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return nil, p.fail("expected %s; names are not looked up", expected(q))
	}
	p.next++
	switch {
	case p.take("/"):
		n, ok := p.number("a prefix length", uint32(a.BitLen())) //nolint:gosec // 32 or 128
		if !ok {
			return nil, false
		}
		bits = int(n)
	case p.take("mask"):
		m, err := netip.ParseAddr(p.peek().text)
		if err != nil || !m.Is4() || !a.Is4() {
			return nil, p.fail("expected a mask as 255.255.0.0")
		}
		ones, size := net.IPMask(m.AsSlice()).Size()
		if size == 0 {
			return nil, p.fail("the mask has holes: only masks of leading ones are supported")
		}
		bits = ones
		p.next++
	}
	pre := netip.PrefixFrom(a, bits)
	if pre.Masked() != pre {
		return nil, p.failAt(t, "%s has bits beyond its length: write %s", pre, pre.Masked())
	}
	return p.prefix(q, pre, t)
}

// prefix tests addresses in the protocols that the qualifiers allow.
func (p *parser) prefix(q qualifiers, pre netip.Prefix, t token) (test, bool) {
	if q.protocol != "" && etherTypes[q.protocol] == 0 {
		return nil, p.failAt(t, "%s does not go with an address: write %s and host …", q.protocol, q.protocol)
	}
	if pre.Addr().Is6() {
		if q.protocol != "" && q.protocol != "ip6" {
			return nil, p.failAt(t, "%s has no IPv6 addresses", q.protocol)
		}
		return and(p.ether(etherIP6), q.dir.toward(address6(p.payload+8, pre), address6(p.payload+24, pre))), true
	}
	ip := and(p.ether(etherIP), q.dir.toward(address4(p.payload+12, pre), address4(p.payload+16, pre)))
	inARP := q.dir.toward(address4(p.payload+14, pre), address4(p.payload+24, pre))
	switch q.protocol {
	case "ip":
		return ip, true
	case "arp", "rarp":
		return and(p.ether(etherTypes[q.protocol]), inARP), true
	case "":
		return or(or(ip, and(p.ether(etherARP), inARP)), and(p.ether(etherRARP), inARP)), true
	}
	return nil, p.failAt(t, "ip6 has no IPv4 addresses")
}

func address4(at int, pre netip.Prefix) test {
	b := pre.Addr().As4()
	want, mask := binary.BigEndian.Uint32(b[:]), uint32(^uint64(0)<<(32-pre.Bits())) //nolint:gosec // the low 32 bits are the mask
	return func(f []byte, _ int) result {
		v, ok := u32(f, at)
		if !ok {
			return beyond
		}
		return is(v&mask == want)
	}
}

func address6(at int, pre netip.Prefix) test {
	b, m := pre.Addr().As16(), net.CIDRMask(pre.Bits(), 128)
	var want, mask [4]uint32
	for i := range want {
		want[i], mask[i] = binary.BigEndian.Uint32(b[4*i:]), binary.BigEndian.Uint32(m[4*i:])
	}
	return func(f []byte, _ int) result {
		for i := range want {
			v, ok := u32(f, at+4*i)
			if !ok {
				return beyond
			}
			if v&mask[i] != want[i] {
				return no
			}
		}
		return yes
	}
}

// port = a number or a service's name.
func (p *parser) port(q qualifiers, t token) (test, bool) {
	if n, err := strconv.ParseUint(t.text, 0, 16); err == nil {
		p.next++
		return p.ports(q, uint16(n), uint16(n), protoTCP, protoUDP, protoSCTP)
	}
	tcp, noTCP := net.LookupPort("tcp", t.text)
	udp, noUDP := net.LookupPort("udp", t.text)
	switch {
	case isNumber(t.text) || noTCP != nil && noUDP != nil:
		return nil, p.fail("expected a port, a number from 0 to 65535 or a service's name")
	case noTCP == nil && noUDP == nil && tcp == udp:
		p.next++
		return p.ports(q, uint16(tcp), uint16(tcp), protoTCP, protoUDP, protoSCTP) //nolint:gosec // a port
	case noTCP == nil && q.protocol != "udp":
		p.next++
		return p.ports(q, uint16(tcp), uint16(tcp), protoTCP) //nolint:gosec // a port
	case noUDP == nil && q.protocol != "tcp":
		p.next++
		return p.ports(q, uint16(udp), uint16(udp), protoUDP) //nolint:gosec // a port
	}
	return nil, p.fail("the service %s does not use %s", t.text, q.protocol)
}

func (p *parser) portRange(q qualifiers, t token) (test, bool) {
	from, to, found := strings.Cut(t.text, "-")
	low, err1 := strconv.ParseUint(from, 0, 16)
	high, err2 := strconv.ParseUint(to, 0, 16)
	if !found || err1 != nil || err2 != nil {
		return nil, p.fail("expected %s", expected(q))
	}
	p.next++
	return p.ports(q, uint16(min(low, high)), uint16(max(low, high)), protoTCP, protoUDP, protoSCTP)
}

// ports tests for ports from low to high in first fragments of the protocols.
func (p *parser) ports(q qualifiers, low, high uint16, protocols ...uint8) (test, bool) {
	in4, in6 := true, true
	switch q.protocol {
	case "tcp", "udp", "sctp":
		n := ipProtocols[q.protocol].number
		if !slices.Contains(protocols, n) {
			return nil, p.fail("the service does not use %s", q.protocol)
		}
		protocols = []uint8{n}
	case "ip":
		in6 = false
	case "ip6":
		in4 = false
	case "":
	default:
		return nil, p.fail("%s has no ports: use tcp, udp or sctp", q.protocol)
	}
	four, six := p.ports4(q.dir, uint32(low), uint32(high), protocols), p.ports6(q.dir, uint32(low), uint32(high), protocols)
	switch {
	case !in6:
		return four, true
	case !in4:
		return six, true
	}
	return or(four, six), true
}

func (p *parser) ports4(d direction, low, high uint32, protocols []uint8) test {
	at := p.payload
	return and(p.ether(etherIP), func(f []byte, _ int) result {
		if at+10 > len(f) {
			return beyond
		}
		if !slices.Contains(protocols, f[at+9]) || binary.BigEndian.Uint16(f[at+6:])&0x1FFF != 0 {
			return no
		}
		return portsAt(f, at+4*int(f[at]&15), d, low, high)
	})
}

func (p *parser) ports6(d direction, low, high uint32, protocols []uint8) test {
	at := p.payload
	return and(p.ether(etherIP6), func(f []byte, _ int) result {
		if at+7 > len(f) {
			return beyond
		}
		if !slices.Contains(protocols, f[at+6]) {
			return no
		}
		return portsAt(f, at+40, d, low, high)
	})
}

// portsAt tests the source port at a place and the destination port behind it.
func portsAt(f []byte, at int, d direction, low, high uint32) result {
	if d != destination {
		v, ok := u16(f, at)
		if !ok {
			return beyond
		}
		hit := v >= low && v <= high
		if d == source || hit == (d == either) {
			return is(hit)
		}
	}
	v, ok := u16(f, at+2)
	if !ok {
		return beyond
	}
	return is(v >= low && v <= high)
}

// protocolValue = the value after proto.
func (p *parser) protocolValue(q qualifiers, t token) (test, bool) {
	if q.dir != either {
		return nil, p.failAt(t, "proto has no direction: leave src and dst out")
	}
	if q.protocol == "ether" || q.protocol == "link" {
		v, ok := etherTypes[t.text]
		if !ok {
			n, err := strconv.ParseUint(t.text, 0, 16)
			if err != nil || n <= 1500 {
				return nil, p.fail("expected an Ethernet type: ip, ip6, arp, rarp or a number from 1501 to 65535")
			}
			v = uint32(n)
		}
		p.next++
		return p.ether(v), true
	}
	number := ipProtocols[t.text].number
	if number == 0 {
		n, err := strconv.ParseUint(t.text, 0, 8)
		if err != nil {
			return nil, p.fail("expected a protocol's number from 0 to 255, or one of icmp igmp tcp udp gre esp ah icmp6 ospf pim vrrp sctp")
		}
		number = uint8(n)
	}
	p.next++
	switch q.protocol {
	case "ip":
		return p.ip4Protocol(number), true
	case "ip6":
		return p.ip6Protocol(number), true
	case "":
		return or(p.ip4Protocol(number), p.ip6Protocol(number)), true
	}
	return nil, p.failAt(t, "proto goes with ether, ip or ip6, not with %s", q.protocol)
}
