package app

import (
	"encoding/binary"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/packet"
)

func wire16(b []byte, v int) []byte { return binary.BigEndian.AppendUint16(b, uint16(v)) }

// extension wraps an extension's value.
func extension(kind int, value []byte) []byte {
	return append(wire16(wire16(nil, kind), len(value)), value...)
}

// clientHelloMessage builds a ClientHello of at least size bytes; empty names leave their extension out.
func clientHelloMessage(host, alpn string, size int) []byte {
	var ext []byte
	ext = append(ext, extension(0x0A0A, nil)...)
	if host != "" {
		name := append(wire16([]byte{0}, len(host)), host...)
		ext = append(ext, extension(0, append(wire16(nil, len(name)), name...))...)
	}
	if alpn != "" {
		list := append([]byte{byte(len(alpn))}, alpn...)
		ext = append(ext, extension(16, append(wire16(nil, len(list)), list...))...)
	}
	body := append([]byte{3, 3}, make([]byte, 32)...)
	body = append(body, 32)
	body = append(body, make([]byte, 32)...)
	body = append(wire16(body, 4), 0x13, 0x01, 0x13, 0x02)
	body = append(body, 1, 0)
	if pad := size - 4 - len(body) - 2 - len(ext) - 4; pad > 0 {
		ext = append(ext, extension(21, make([]byte, pad))...)
	}
	body = append(wire16(body, len(ext)), ext...)
	return append([]byte{clientHello, 0, byte(len(body) >> 8), byte(len(body))}, body...)
}

func record(message []byte) []byte {
	return append(wire16([]byte{recordHandshake, 3, 1}, len(message)), message...)
}

func TestTLS(t *testing.T) {
	message := clientHelloMessage("WWW.Example.org.", "h2", 0)
	whole := record(message)
	split := append(record(message[:50]), record(message[50:])...)
	edit := func(b []byte, at int, v ...byte) []byte {
		b = append([]byte{}, b...)
		copy(b[at:], v)
		return b
	}
	old := append([]byte{0x80, 9 + 6 + 16, 1, 3, 1, 0, 6, 0, 0, 0, 16}, make([]byte, 22)...)
	serverSide := record([]byte{serverHello, 0, 0, 40, 3, 3, 0, 0})
	full := Result{App: "tls", Host: "www.example.org", ALPN: "h2"} // final with the answer
	tcp := uint8(packet.ProtoTCP)
	check(t, []one{
		{"hello", tcp, 1, 443, whole, full},
		{"other port", tcp, 1, 9999, whole, full},
		{"split over records", tcp, 1, 443, split, full},
		{"no names", tcp, 1, 443, record(clientHelloMessage("", "", 0)), Result{App: "tls"}},
		{"binary name", tcp, 1, 443, record(clientHelloMessage("a\x00b", "h2", 0)), Result{App: "tls", ALPN: "h2"}},
		{"not whole", tcp, 1, 443, whole[:100], Result{App: "tls"}},
		{"first bytes", tcp, 1, 443, whole[:5], unknown},
		{"cipher length lies", tcp, 1, 443, edit(whole, 5+4+35+32, 0xFF, 0xFF), Result{App: "tls", Final: true}},
		{"lengths disagree", tcp, 1, 443, edit(edit(whole, 5+4+35+32, 0xFF, 0xFF), 3, 0, 90), unknown},
		{"sslv2 form", tcp, 1, 443, old, Result{App: "tls", Final: true}},
		{"sslv2 form of another size", tcp, 1, 443, edit(old, 1, 99), unknown},
		{"server hello", tcp, 443, 1, serverSide, Result{App: "tls"}},
		{"alert", tcp, 1, 443, []byte{recordAlert, 3, 3, 0, 2, 2, 40}, Result{App: "tls"}},
		{"version", tcp, 1, 443, edit(whole, 1, 4), unknown},
		{"record of nothing", tcp, 1, 443, edit(whole, 3, 0, 0), unknown},
		{"on udp", packet.ProtoUDP, 1, 443, whole, unknown},
	})
}

func TestTLSLongHello(t *testing.T) {
	whole := record(clientHelloMessage("www.example.org", "h2", 3*MaxBytes))
	var parts []part
	for at := 0; at < MaxBytes; at += 1400 {
		parts = append(parts, part{0, uint32(at), whole[at:min(at+1400, MaxBytes)]})
	}
	want := Result{App: "tls", Host: "www.example.org", ALPN: "h2"}
	same(t, "long hello", play(NewEngine(), key(packet.ProtoTCP, 1, 443), parts...), want)
}

func FuzzTLS(f *testing.F) {
	whole := record(clientHelloMessage("www.example.org", "h2", 300))
	fuzz(f, whole, whole[:77], append([]byte{0x80, 31, 1, 3, 1, 0, 6, 0, 0, 0, 16}, make([]byte, 22)...),
		[]byte{recordData, 3, 3, 0, 1, 7, recordAlert, 3, 3, 0, 2, 1, 0})
}
