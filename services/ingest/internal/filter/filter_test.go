package filter

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/net/bpf"

	"github.com/tidegate-mesh/tidegate/libs/pcapfile"
	"github.com/tidegate-mesh/tidegate/libs/pcapfile/corpustest"
)

// expressions are compared with tcpdump's compiler.
var expressions = []string{
	"", "ip", "ip6", "arp", "rarp", "tcp", "udp", "icmp", "icmp6", "igmp", "sctp", "esp", "ah", "pim", "vrrp", "not tcp", "! ip", "not not ip",
	"ip proto 17", "ip proto \\udp", "ip6 proto 58", "proto 6", "ip proto 47", "ether proto 0x86dd", "ether proto \\arp", "ether proto \\ip",
	"host 10.0.0.1", "src host 192.168.1.2", "dst 192.168.1.1", "ip host 192.168.1.1", "arp host 192.168.1.1", "src or dst host 8.8.8.8",
	"src and dst host 127.0.0.1", "host 192.168.1.1 and 192.168.1.2", "not host 192.168.1.1",
	"host fe80::1", "src host ff02::1", "dst host ff02::fb", "ip6 host ff02::fb", "net fe80::/10", "dst net ff00::/8", "src net 2001::/16",
	"net 10.0.0.0/8", "net 192.168", "src net 10", "dst net 172.16.0.0/12", "net 192.168.0.0 mask 255.255.0.0", "net 192.168.1.0/25 or net 10.0.0.0/9",
	"not net 192.168.0.0/16", "net 0.0.0.0/0", "arp net 192.168.0.0/16",
	"port 53", "src port 53", "dst port 443", "tcp port 80", "udp port 53", "tcp src port 443", "udp dst port 1900", "sctp port 5060",
	"port 80 or 443", "tcp dst port 80 or 443 or 8080", "port (80 or 443)", "src and dst port 123", "dst or src port 5353", "not port 53",
	"port domain", "tcp port https", "ip6 and port 53", "ip and port 53", "portrange 1-1023", "udp portrange 5000-6000", "src portrange 1024-65535", "not tcp portrange 80-443",
	"tcp[tcpflags] & tcp-syn != 0", "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0", "tcp[13] = 2", "tcp[tcpflags] == tcp-syn|tcp-ack",
	"tcp[13] & 0x12 = 0x12 and port 443", "not tcp[13] & 4 != 0", "(tcp[12] & 0xf0) >> 2 > 20", "tcp[((tcp[12] & 0xf0) >> 2):4] = 0x47455420",
	"tcp port 80 and (((ip[2:2] - ((ip[0]&0xf)<<2)) - ((tcp[12]&0xf0)>>2)) != 0)", "icmp[icmptype] = icmp-echo", "icmp[icmptype] != icmp-echoreply and icmp",
	"icmp[0] == 3", "icmp6[icmp6type] = icmp6-neighborsolicit", "icmp6[0] >= 133", "ip[0] & 0xf != 5", "ip[8] < 64", "ip[6:2] & 0x1fff != 0", "ip[16] >= 224",
	"ip6[6] = 17", "ip6[7] = 255", "udp[4:2] > 100", "udp[8:4] & 0xffff = 0", "ether[0] & 1 = 0", "ether[12:2] = 0x800", "ether[6:4] != ether[0:4]", "arp[6:2] = 1",
	"len > 100", "len <= 60", "less 64", "greater 1000", "len % 2 = 0", "ip[2:2] + 14 = len", "ip[2:2] / 4 * 4 = ip[2:2]", "1 = 1", "ip[8] ^ 0x40 = 0", "ip[8] - 5 > 100", "(ip[2:2] / 7) % 5 > 3",
	"vlan", "vlan 5", "vlan and ip", "vlan and tcp port 80", "vlan 10 and host 10.0.0.1", "vlan and vlan", "ip or vlan and ip", "(vlan and udp port 53) or tcp", "not vlan", "vlan and vlan and ip and tcp",
	"ether broadcast", "ether multicast", "broadcast", "multicast", "ip multicast", "ip6 multicast", "ether host ff:ff:ff:ff:ff:ff", "ether dst 01:00:5e:00:00:fb", "ether src host 00:00:00:00:00:00",
	"tcp or udp and port 53", "tcp and port 80 or udp", "(tcp or udp) and port 53", "tcp and not (port 80 or port 443)", "ip and (tcp or icmp) and not net 10.0.0.0/8",
	"src host 192.168.1.2 and (dst port 80 or dst port 443)", "tcp && ! port 22", "udp || icmp", "ip and not broadcast and not multicast", "host 10.1.2.3 or (ip6 and tcp)",
	"tcp port 443 and (tcp[((tcp[12] & 0xf0) >> 2)] = 0x16)", "(host 192.168.1.1 or 192.168.1.2) and (port 53 or 123)", "((((tcp))))", "(tcp[13] & 2) != 0", "( (tcp[13]) & (2) ) != (0) and (ip)",
}

// need gives the path of a program; tests that want it are skipped without it, and fail with TIDEGATE_CI=1.
func need(t *testing.T, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err == nil {
		return path
	}
	if os.Getenv("TIDEGATE_CI") == "1" {
		t.Fatalf("%s is not installed", program)
	}
	t.Skipf("%s is not installed", program)
	return ""
}

// oracle is tcpdump's program for an expression, without its optimizer: that takes out loads, so that it gives another
// answer for frames that are cut within a header.
func oracle(t testing.TB, tcpdump, expression string) *bpf.VM {
	t.Helper()
	out, err := exec.Command(tcpdump, "-O", "-y", "EN10MB", "-ddd", "--", expression).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("tcpdump does not take %q: %s", expression, exit.Stderr)
		}
		t.Fatal(err)
	}
	var program []bpf.Instruction
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n")[1:] {
		var n [4]uint64
		for i, f := range strings.Fields(line) {
			if n[i], err = strconv.ParseUint(f, 10, 32); err != nil {
				t.Fatal(err)
			}
		}
		program = append(program, bpf.RawInstruction{Op: uint16(n[0]), Jt: uint8(n[1]), Jf: uint8(n[2]), K: uint32(n[3])}.Disassemble())
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatalf("%q: %v", expression, err)
	}
	return vm
}

// frames are those of the corpus's captures, a bounded number of each, whole, tagged and cut.
func frames(t *testing.T) [][]byte {
	t.Helper()
	const each = 8
	random := rand.New(rand.NewPCG(1, 2))
	var out [][]byte
	for _, file := range corpustest.Captures(t, corpustest.Dir(t)) {
		r, err := pcapfile.Open(file)
		if err != nil {
			continue // damaged on purpose
		}
		for range each {
			rec, err := r.Next(nil)
			if err != nil {
				break
			}
			if rec.LinkType != 1 || len(rec.Data) < 14 {
				continue
			}
			f := append([]byte(nil), rec.Data...)
			out = append(out, f)
			switch random.IntN(4) {
			case 0: // cut anywhere
				out = append(out, f[:random.IntN(len(f)+1)])
			case 1: // a VLAN tag, or two
				tagged := f
				for range 1 + random.IntN(2) {
					tag := binary.BigEndian.AppendUint16(append([]byte(nil), tagged[:12]...), []uint16{0x8100, 0x88A8, 0x9100}[random.IntN(3)])
					tag = binary.BigEndian.AppendUint16(tag, uint16(random.IntN(12)))
					tagged = append(tag, tagged[12:]...)
				}
				out = append(out, tagged)
			case 2: // a damaged header
				bad := append([]byte(nil), f...)
				bad[random.IntN(min(len(bad), 60))] ^= byte(1 << random.IntN(8))
				out = append(out, bad)
			}
		}
		_ = r.Close()
	}
	return out
}

// TestAsTcpdump runs what tcpdump compiles and what Compile gives over the same frames.
func TestAsTcpdump(t *testing.T) {
	tcpdump := need(t, "tcpdump")
	all := frames(t)
	if len(all) < 4000 {
		t.Fatalf("only %d frames in the corpus", len(all))
	}
	matched := 0
	for _, e := range expressions {
		f, err := Compile(e)
		if err != nil {
			t.Errorf("%q: %v", e, err)
			continue
		}
		vm, hits := oracle(t, tcpdump, e), 0
		for i, frame := range all {
			n, err := vm.Run(frame)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := f.Match(frame, len(frame)), n != 0; got != want {
				t.Errorf("%q: frame %d, %d bytes: %v, tcpdump %v: %x", e, i, len(frame), got, want, frame[:min(len(frame), 80)])
				break
			} else if got {
				hits++
			}
		}
		if hits > 0 {
			matched++
		}
	}
	t.Logf("%d expressions over %d frames; %d of them matched some", len(expressions), len(all), matched)
	if matched < len(expressions)*9/10 {
		t.Errorf("only %d of %d expressions matched any frame", matched, len(expressions))
	}
}

func TestMistakes(t *testing.T) {
	for _, c := range []struct {
		expression string
		at         int
		want       string
	}{
		{"tcp and", 7, "expected an expression"},
		{"tcp port", 8, "expected a port"},
		{"tcp port 70000", 9, "expected a port"},
		{"tcp port no-such-service", 9, "expected a port"},
		{"host example.org", 5, "names are not looked up"},
		{"frobnicate", 0, "supported are"},
		{"mpls 5", 0, `"mpls" is not supported; supported are`},
		{"tcp and gateway 10.0.0.1", 8, "not supported"},
		{"net 10.1.0.0/8", 4, "write 10.0.0.0/8"},
		{"net 10.0.0.0/33", 13, "a prefix length"},
		{"host 10.0.0.0/8", 13, "write net 10.0.0.0/"},
		{"net 10.0.0.0 mask 255.0.255.0", 18, "holes"},
		{"tcp host 10.0.0.1", 9, "write tcp and host"},
		{"icmp port 5", 0, "icmp takes no value"},
		{"ip6 host 10.0.0.1", 9, "no IPv4"},
		{"ip host ::1", 8, "no IPv6"},
		{"arp port 5", 10, "arp has no ports"},
		{"(tcp or udp", 11, "expected and, or, or )"},
		{"tcp) or udp", 3, "expected and, or, or the end"},
		{"tcp[13 & 2", 10, "]"},
		{"tcp[13] & 2", 11, "expected one of ="},
		{"tcp[13:3] = 2", 7, "a size of 1, 2 or 4"},
		{"ip[0] / 0 = 1", 6, "division by zero"},
		{"ip[0] << 40 = 1", 6, "more than 31"},
		{"vlan 5000", 5, "from 0 to 4095"},
		{"src proto 6", 10, "no direction"},
		{"tcp @ udp", 4, "no meaning"},
		{"portrange 80", 10, "two ports"},
		{"ether host 10.0.0.1", 11, "an Ethernet address"},
		{"ip broadcast", 3, "ether broadcast"},
		{strings.Repeat("(", 100) + "tcp" + strings.Repeat(")", 100), 64, "nested"},
		{strings.Repeat("not ", 100) + "tcp", 4 * 64, "nested"},
		{strings.Repeat("a", MaxLength+1), MaxLength, "at most"},
	} {
		f, err := Compile(c.expression)
		var e *Error
		if !errors.As(err, &e) || f != nil {
			t.Errorf("%q: %v", c.expression, err)
			continue
		}
		if e.At != c.at || !strings.Contains(e.Error(), c.want) || strings.Contains(e.Error(), "\n") {
			t.Errorf("%.40q: at %d, want %d: %v", c.expression, e.At, c.at, e)
		}
	}
}

// FuzzCompile: no expression and no frame makes it panic, hang or allocate while matching.
func FuzzCompile(f *testing.F) {
	for _, e := range expressions {
		f.Add(e, []byte("\x01\x00\x5e\x00\x00\xfb\x02\x00\x00\x00\x00\x01\x08\x00\x45\x00\x00\x28"))
	}
	f.Fuzz(func(t *testing.T, expression string, frame []byte) {
		c, err := Compile(expression)
		if err == nil {
			c.Match(frame, len(frame))
		}
	})
}

var webFrame = []byte("\x02\x00\x00\x00\x00\x02\x02\x00\x00\x00\x00\x01\x08\x00" +
	"\x45\x00\x00\x28\x00\x01\x40\x00\x40\x06\x00\x00\x0a\x00\x00\x01\x0a\x00\x00\x02" +
	"\xc0\x00\x01\xbb\x00\x00\x00\x01\x00\x00\x00\x01\x50\x12\xff\xff\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")

func TestMatchDoesNotAllocate(t *testing.T) {
	for _, e := range expressions {
		f, err := Compile(e)
		if err != nil {
			t.Fatal(err)
		}
		if n := testing.AllocsPerRun(10, func() { f.Match(webFrame, len(webFrame)) }); n != 0 {
			t.Errorf("%q allocates %v times a frame", e, n)
		}
	}
}

// BenchmarkMatch: ns a frame, and with the virtual machine of tcpdump's program.
func BenchmarkMatch(b *testing.B) {
	for _, e := range []string{"udp", "tcp port 443", "host 10.0.0.2 and tcp port 443", "tcp[tcpflags] & (tcp-syn|tcp-ack) = tcp-syn|tcp-ack and net 10.0.0.0/8"} {
		f, err := Compile(e)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(e, func(b *testing.B) {
			for b.Loop() {
				f.Match(webFrame, len(webFrame))
			}
		})
		tcpdump, err := exec.LookPath("tcpdump")
		if err != nil {
			continue
		}
		vm := oracle(b, tcpdump, e)
		b.Run(e+"/virtual machine", func(b *testing.B) {
			for b.Loop() {
				_, _ = vm.Run(webFrame)
			}
		})
	}
}
