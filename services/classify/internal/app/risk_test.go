package app

import (
	"strings"
	"testing"
)

func TestRisks(t *testing.T) {
	const data = "nbswy3dpfqqho33snrscc5dijfzsa2lt"
	tunnel := dnsQuery(strings.Repeat(data, 1)+"mfxgils7n4."+data+"mfxgils7n4."+data+".t.example.org", 16)
	plain := dnsQuery(strings.Repeat("this-is-a-long-but-readable-name-of-a-service.", 3)+"example.org", 1)
	oldHello := record(clientHelloMessage("a.example", "", 0))
	oldHello[10] = 1 // TLS 1.0
	lying := record(clientHelloMessage("a.example", "", 0))
	lying[5+4+35+32] = 0xFF
	for _, tt := range []struct {
		name  string
		proto uint8
		port  uint16
		data  []byte
		want  Risk
	}{
		{"tunnel", 17, 53, tunnel, DNSTunnel},
		{"null", 17, 53, dnsQuery("a.example.org", 10), DNSTunnel},
		{"long name", 17, 53, plain, 0},
		{"counts that cannot be", 17, 53, append(append([]byte{}, plain[:6]...), append([]byte{0x33}, plain[7:]...)...), Malformed},
		{"old version", 6, 443, oldHello, ObsoleteTLS},
		{"length that lies", 6, 443, lying, Malformed},
		{"shell on the web's port", 6, 443, []byte("SSH-2.0-x\r\n"), UnexpectedPort},
		{"shell on its port", 6, 22, []byte("SSH-2.0-x\r\n"), 0},
		{"unknown on a known port", 6, 22, []byte("\x00\x01\x02\x03"), 0},
	} {
		if r := play(NewEngine(), key(tt.proto, 40000, tt.port), part{0, 0, tt.data}); r.Risks != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, r.Risks, tt.want)
		}
	}
	for _, p := range portsOf {
		for _, l := range p {
			found := false
			for _, known := range Labels() {
				found = found || l == known
			}
			if !found {
				t.Errorf("%q is no label", l)
			}
		}
	}
}

func TestDNSType(t *testing.T) {
	for typ, want := range map[int]string{1: "A", 65: "HTTPS", 99: "TYPE99"} {
		if r := play(NewEngine(), key(17, 40000, 53), part{0, 0, dnsQuery("a.example", typ)}); r.DNSType != want {
			t.Errorf("%d: %q, want %q", typ, r.DNSType, want)
		}
	}
}
