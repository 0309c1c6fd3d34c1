package app

import (
	"encoding/binary"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/packet"
)

const udp = packet.ProtoUDP

// dhcpDiscover builds the fixed part with the cookie and one option.
func dhcpDiscover() []byte {
	b := make([]byte, 240, 244)
	b[0], b[1], b[2] = 1, 1, 6
	binary.BigEndian.PutUint32(b[236:], 0x63825363)
	return append(b, 53, 1, 1, 255)
}

func TestDHCP(t *testing.T) {
	good := dhcpDiscover()
	bad := dhcpDiscover()
	bad[239]++
	op := dhcpDiscover()
	op[0] = 3
	want := Result{App: "dhcp", Final: true}
	check(t, []one{
		{"discover", udp, 68, 67, good, want},
		{"other port", udp, 4011, 4011, good, want},
		{"cookie", udp, 68, 67, bad, unknown},
		{"operation", udp, 68, 67, op, unknown},
		{"short", udp, 68, 67, good[:239], unknown},
	})
}

// ntpPacket builds a packet with a transmit time stamp.
func ntpPacket(first byte, transmit uint32) []byte {
	b := make([]byte, 48)
	b[0], b[1] = first, 2
	binary.BigEndian.PutUint32(b[40:], transmit)
	return b
}

func TestNTP(t *testing.T) {
	want := Result{App: "ntp", Final: true}
	const y2020 = 3786825600
	client := ntpPacket(0x23, y2020)
	monlist := []byte{0x17, 0, 3, 42, 0, 0, 0, 0}
	control := []byte{0x16, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0}
	stratum := ntpPacket(0x23, y2020)
	stratum[1] = 99
	check(t, []one{
		{"client", udp, 1, 123, client, want},
		{"other port", udp, 1, 1123, client, want},
		{"no time on its port", udp, 1, 123, ntpPacket(0x0B, 0), want},
		{"no time on another port", udp, 1, 1123, ntpPacket(0x23, 0), unknown},
		{"with a digest", udp, 1, 123, append(ntpPacket(0x24, y2020), make([]byte, 20)...), want},
		{"monlist", udp, 1, 123, monlist, want},
		{"monlist on another port", udp, 1, 1123, monlist, unknown},
		{"control", udp, 1, 123, control, want},
		{"version 0", udp, 1, 123, ntpPacket(0x03, y2020), unknown},
		{"stratum", udp, 1, 123, stratum, unknown},
		{"short", udp, 1, 123, client[:47], unknown},
	})
}

func TestSSDP(t *testing.T) {
	want := Result{App: "ssdp", Final: true}
	check(t, []one{
		{"search", udp, 1, 1900, []byte("M-SEARCH * HTTP/1.1\r\nHost: 239.255.255.250:1900\r\n\r\n"), want},
		{"notify on another port", udp, 1, 2000, []byte("NOTIFY * HTTP/1.1\r\n\r\n"), want},
		{"answer", udp, 1900, 1, []byte("HTTP/1.1 200 OK\r\nST: upnp:rootdevice\r\n\r\n"), want},
		{"http over udp", udp, 1900, 1, []byte("HTTP/1.1 200 OK\r\nServer: x\r\n\r\n"), unknown},
		{"on tcp", packet.ProtoTCP, 1, 1900, []byte("M-SEARCH * HTTP/1.1\r\n\r\n"), unknown},
	})
}

func TestSSH(t *testing.T) {
	tcp := uint8(packet.ProtoTCP)
	want := Result{App: "ssh"} // the key exchange may follow
	check(t, []one{
		{"two", tcp, 1, 22, []byte("SSH-2.0-OpenSSH_9.6\r\n"), want},
		{"old on another port", tcp, 1, 2222, []byte("SSH-1.99-x\n"), want},
		{"short", tcp, 1, 22, []byte("SSH-"), unknown},
		{"other", tcp, 1, 22, []byte("SSHX2.0"), unknown},
		{"version", tcp, 1, 22, []byte("SSH-x.0"), unknown},
	})
}

func FuzzDHCP(f *testing.F) { fuzz(f, dhcpDiscover()) }

func FuzzNTP(f *testing.F) {
	fuzz(f, ntpPacket(0x23, 3786825600), []byte{0x17, 0, 3, 42, 0, 0, 0, 0}, []byte{0x16, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0})
}

func FuzzSSDP(f *testing.F) {
	fuzz(f, []byte("M-SEARCH * HTTP/1.1\r\n\r\n"), []byte("HTTP/1.1 200 OK\r\nUSN: a\r\n\r\n"))
}

func FuzzSSH(f *testing.F) { fuzz(f, []byte("SSH-2.0-x\r\n")) }
