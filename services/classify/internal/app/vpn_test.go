package app

import "testing"

var vpnSamples = []sample{
	{label: "wireguard", port: 51820, udp: true, says: []string{">\x01\x00\x00\x00" + x(144)}},
	{label: "wireguard", port: 51820, udp: true, says: []string{"<\x02\x00\x00\x00" + x(88)}},
	{label: "openvpn", port: 1194, udp: true, says: []string{">\x38abcdefgh\x00" + u32(0)}},
	{label: "openvpn", port: 1194, udp: true, says: []string{">\x38abcdefgh" + x(28), "<\x40ABCDEFGH" + x(20) + "\x01" + u32(0) + "abcdefgh" + u32(0)}},
	{label: "openvpn", port: 1194, says: []string{">" + in16("\x38abcdefgh\x00"+u32(0)), "<" + in16("\x40ABCDEFGH\x01"+u32(0)+"abcdefgh"+u32(0))}},
	{label: "openvpn", port: 443, says: []string{ // tls-crypt
		">" + in16("\x38abcdefgh"+u32(1)+u32(0x63CF4FF5)+x(37)), "<" + in16("\x40ABCDEFGH"+u32(1)+u32(0x63CF4FF6)+x(49))}},
	{label: "cloudflarewarp", port: 2408, udp: true, says: []string{
		">\xc1" + z(3) + x(190), "<\xc2idxrecv" + x(700), ">\xc4idxrecv" + l32(1) + z(4) + x(68), ">\xc4idxrecv" + l32(2) + z(4) + x(68)}},
	{label: "ipsec", port: 500, udp: true, says: []string{">abcdefgh" + z(8) + "\x21\x20\x22\x08" + u32(0) + u32(40) + x(12)}},
	{label: "ipsec", port: 4500, udp: true, says: []string{">" + u32(0x1234567) + u32(1) + x(40), ">" + u32(0x1234567) + u32(2) + x(40)}},
	{label: "softether", port: 5004, udp: true, says: []string{"<IP=192.0.2.1,PORT=5004"}},
	{label: "pptp", port: 1723, says: []string{">" + u16(156) + u16(1) + u32(0x1A2B3C4D) + u16(1) + z(2)}},
	{label: "tailscale", port: 41641, udp: true, says: []string{">TS\xf0\x9f\x92\xac" + x(60)}},
	{label: "tinc", port: 655, says: []string{">0 alpha 17.7\n"}},
	{label: "teredo", port: 3544, udp: true, says: []string{">\x60\x00\x00\x00" + u16(0) + "\x3b\x15" + u32(0x20010000) + x(12) + x(16) + "\x01\x04" + x(4)}},
	{label: "teredo", port: 3544, udp: true, says: []string{">\x60\x00\x00\x00" + u16(8) + "\x3a\x40" + u32(0x20010000) + x(12) + x(16) + x(8)}},
	{label: "dnscrypt", port: 443, udp: true, says: []string{"<r6fnvWj8" + x(60)}},
	{label: "socks", port: 1080, says: []string{">\x05\x01\x00", "<\x05\x00", ">\x05\x01\x00\x03\x0bexample.org\x00\x50"}},
	{label: "socks", port: 1080, says: []string{">\x04\x01\x00\x50\x00\x00\x00\x01bob\x00example.org\x00"}},
}

// TestSocksHost: the host is that of the request or, where the request has an address, that of what follows.
func TestSocksHost(t *testing.T) {
	greeting := []string{">\x05\x01\x00", "<\x05\x00"}
	get := "GET / HTTP/1.1\r\nHost: example.org:80\r\n\r\n"
	v4 := "\x04\x01\x00\x50\xc0\x00\x02\x01bob\x00"
	for name, says := range map[string][]string{
		"name":            append(greeting, ">\x05\x01\x00\x03\x0bexample.org\x00\x50"),
		"IPv4, HTTP":      append(greeting, ">\x05\x01\x00\x01\xc0\x00\x02\x01\x00\x50", "<\x05\x00\x00\x01"+z(6), ">"+get),
		"IPv4, in pieces": append(greeting, ">\x05\x01\x00\x01\xc0\x00\x02\x01\x00\x50", ">"+get[:20], ">"+get[20:]),
		"IPv6, TLS":       append(greeting, ">\x05\x01\x00\x04"+x(16)+"\x01\xbb", ">"+string(record(clientHelloMessage("example.org", "h2", 0)))),
		"SOCKS 4":         {">" + v4, "<\x00\x5a" + z(6), ">" + get},
		"SOCKS 4a":        {">\x04\x01\x00\x50\x00\x00\x00\x01bob\x00example.org\x00"},
	} {
		s := sample{says: says}
		if r := play(NewEngine(), key(6, 1, 1080), s.parts()...); r.App != "socks" || r.Host != "example.org" {
			t.Errorf("%s: %+v", name, r)
		}
	}
	for name, inner := range map[string]string{"other": "SSH-2.0-x\r\n", "no host": "GET / HTTP/1.0\r\n\r\n", "broken TLS": "\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"} {
		s := sample{says: append(greeting, ">\x05\x01\x00\x01\xc0\x00\x02\x01\x00\x50", ">"+inner)}
		if r := play(NewEngine(), key(6, 1, 1080), s.parts()...); r.App != "socks" || r.Host != "" {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func FuzzVPN(f *testing.F) { fuzzSamples(f, vpnSamples) }
