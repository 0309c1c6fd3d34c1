package app

import (
	"strings"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/packet"
)

// dnsQuery builds a query for a name.
func dnsQuery(name string, typ int) []byte {
	b := []byte{0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	for _, l := range strings.Split(name, ".") {
		b = append(append(b, byte(len(l))), l...)
	}
	return wire16(wire16(append(b, 0), typ), 1)
}

func TestDNS(t *testing.T) {
	udp, tcp := uint8(packet.ProtoUDP), uint8(packet.ProtoTCP)
	query := dnsQuery("WWW.example.org", 1)
	edit := func(at int, v ...byte) []byte {
		b := append([]byte{}, query...)
		copy(b[at:], v)
		return b
	}
	answer := append(edit(2, 0x81, 0x80, 0, 1, 0, 1), 0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 1)
	framed := append(wire16(nil, len(query)), query...)
	want := Result{App: "dns", Host: "www.example.org"} // final with the answer
	check(t, []one{
		{"query", udp, 1, 53, query, want},
		{"answer", udp, 53, 1, answer, Result{App: "dns", Host: "www.example.org", Final: true}},
		{"other port", udp, 1, 5300, query, want},
		{"trailing bytes on another port", udp, 1, 5300, append(append([]byte{}, query...), 1, 2), unknown},
		{"class on another port", udp, 1, 5300, edit(len(query)-2, 0x77, 0), unknown},
		{"counts damaged on its port", udp, 1, 53, edit(6, 0x33), want},
		{"name damaged on its port", udp, 1, 53, edit(12, 0xAA), Result{App: "dns"}},
		{"both damaged", udp, 1, 53, edit(6, 0x33, 0, 0, 0, 0, 0, 0xAA), Result{App: "dns", Confidence: Port, Final: true}},
		{"counts and name damaged", udp, 1, 53, edit(4, 0x33, 0, 0, 0, 0, 0, 0, 0, 0xAA), unknown},
		{"opcode", udp, 1, 53, edit(2, 0x78), unknown},
		{"reserved bit", udp, 1, 53, edit(3, 0x40), unknown},
		{"short", udp, 1, 53, query[:11], unknown},
		{"tcp", tcp, 1, 53, framed, want},
		{"tcp on another port", tcp, 1, 853, framed, want},
		{"tcp length alone", tcp, 1, 53, framed[:2], unknown},
		{"tcp in the header", tcp, 1, 53, framed[:9], unknown},
		{"llmnr", udp, 1, portLLMNR, query, Result{App: "llmnr", Confidence: Port, Host: "www.example.org", Final: true}},
		{"netbios", udp, 137, portNetBIOS, query, unknown},
		{"mdns", udp, portMDNS, portMDNS, edit(0, 0, 0, 0, 0), Result{App: "mdns", Confidence: Port, Host: "www.example.org", Final: true}},
		{"mdns answer", udp, portMDNS, portMDNS, []byte{0, 0, 0x84, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1}, Result{App: "mdns", Confidence: Port, Final: true}},
		{"client on mdns port", udp, portMDNS, 53, query, want},
		{"mdns port alone", udp, portMDNS, portMDNS, []byte("no DNS message at all"), unknown},
	})
	parts := []part{{0, 0, framed[:2]}, {0, 2, framed[2:20]}, {0, 20, framed[20:]}}
	same(t, "tcp in parts", play(NewEngine(), key(tcp, 1, 53), parts...), want)
}

// TestDNSUpdate: an update names what it changes, in whichever section that comes first, else its zone.
func TestDNSUpdate(t *testing.T) {
	zone := dnsQuery("example.org", 6)
	zone[2], zone[3] = opUpdate, 0
	for name, c := range map[string]struct {
		counts [3]byte // prerequisites, updates, additional
		record string
		want   string
	}{
		"update":       {[3]byte{0, 1, 0}, "\x04Host\xC0\x0C\x00\x01\x00\x01" + z(6), "host.example.org"},
		"prerequisite": {[3]byte{1, 0, 0}, "\x01a\x02bc\x00\x00\x05\x00\xFE" + z(6), "a.bc"},
		"nothing":      {[3]byte{0, 0, 0}, "\x04Host\xC0\x0C", "example.org"},
		"cut":          {[3]byte{0, 1, 0}, "\x04Ho", "example.org"},
		"cut pointer":  {[3]byte{0, 1, 0}, "\x04Host\xC0", "example.org"},
		"onto itself":  {[3]byte{0, 1, 0}, "\xC0\x1D", "example.org"},
		"in a circle":  {[3]byte{0, 1, 0}, "\x01a\xC0\x1D", "example.org"},
		"binary":       {[3]byte{0, 1, 0}, "\x01\x07\x00", "example.org"},
		"root":         {[3]byte{0, 1, 0}, "\x00", "example.org"},
	} {
		b := append([]byte{}, zone...)
		b[7], b[9], b[11] = c.counts[0], c.counts[1], c.counts[2]
		if len(b) != 0x1D {
			t.Fatalf("the record is at %#x", len(b))
		}
		r := play(NewEngine(), key(packet.ProtoUDP, 1, 53), part{0, 0, append(b, c.record...)})
		if r.App != "dns" || r.Host != c.want {
			t.Errorf("%s: %+v", name, r)
		}
		b[2] |= 0x80
		r = play(NewEngine(), key(packet.ProtoUDP, 53, 1), part{0, 0, append(b, c.record...)})
		if r.App != "dns" || r.Host != c.want || r.DNSAnswers != "" {
			t.Errorf("answer to %s: %+v", name, r)
		}
	}
}

func FuzzDNS(f *testing.F) {
	query := dnsQuery("www.example.org", 28)
	fuzz(f, query, append(wire16(nil, len(query)), query...), []byte{0, 0, 0x84, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0xC0, 12})
}
