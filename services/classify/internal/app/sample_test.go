package app

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/packet"
)

// sample is a short conversation of one protocol, written after its specification.
type sample struct {
	label string
	port  uint16 // of the destination; the source's is 40000
	udp   bool
	says  []string // each segment or datagram behind > (from the source) or < (from the destination)
	whole bool     // the first message has to come in one segment to be known
}

var families = map[string][]sample{
	"building": buildingSamples, "chat": chatSamples, "database": databaseSamples, "directory": directorySamples,
	"discovery": discoverySamples, "game": gameSamples, "home": homeSamples, "industrial": industrialSamples,
	"mail": mailSamples, "messaging": messagingSamples, "peer": peerSamples, "remote": remoteSamples,
	"routing": routingSamples, "store": storeSamples, "voice": voiceSamples, "vpn": vpnSamples, "web": webSamples,
}

func (s *sample) parts() []part {
	var out []part
	var at [2]uint32
	for _, m := range s.says {
		dir := uint8(strings.IndexByte("><", m[0])) //nolint:gosec // 0 or 1 in every sample
		data := []byte(m[1:])
		out = append(out, part{dir, at[dir], data})
		at[dir] += uint32(len(data)) //nolint:gosec // short
	}
	return out
}

func (s *sample) proto() uint8 {
	if s.udp {
		return packet.ProtoUDP
	}
	return packet.ProtoTCP
}

// TestSamples wants each sample's label; over TCP also when the first message comes in two pieces, wherever it is
// cut, because a sender chooses where.
func TestSamples(t *testing.T) {
	e := NewEngine()
	for family, samples := range families {
		for i := range samples {
			s := &samples[i]
			k := key(s.proto(), 40000, s.port)
			parts := s.parts()
			got := play(e, k, parts...)
			if got.App != s.label || got.Confidence == NoLabel {
				t.Errorf("%s %d: %q %v, want %q", family, i, got.App, got.Confidence, s.label)
				continue
			}
			if s.udp || s.whole {
				continue
			}
			first := parts[0]
			for cut := 1; cut < min(len(first.data), 64); cut++ {
				two := append([]part{{first.dir, 0, first.data[:cut]}, {first.dir, uint32(cut), first.data[cut:]}}, parts[1:]...) //nolint:gosec // short
				if got := play(e, k, two...); got.App != s.label {
					t.Errorf("%s %d %s cut at %d: %q", family, i, s.label, cut, got.App)
					break
				}
			}
		}
	}
}

// TestSampleBeginnings hands over nothing but the beginning of each first message: it may leave the flow unknown,
// but never with another label.
func TestSampleBeginnings(t *testing.T) {
	kin := map[string][]string{ // what a label is refined from
		"http_proxy": {"http"}, "http_connect": {"http"}, "soap": {"http"}, "websocket": {"http"}, "http2": {"http"}, "mining": {"json_rpc"},
		"smtps": {"smtp"}, "imaps": {"imap"}, "pop3s": {"pop3"}, "ftps": {"ftp"}, "srtp": {"stun"}, "gnutella": {"tls"},
	}
	e := NewEngine()
	for family, samples := range families {
		for i := range samples {
			s := &samples[i]
			first := s.parts()[0]
			for n := 1; n < min(len(first.data), 200); n++ {
				got := play(e, key(s.proto(), 40000, s.port), part{first.dir, 0, first.data[:n]}).App
				if got != Unknown && got != s.label && !slices.Contains(kin[s.label], got) {
					t.Errorf("%s %d %s: %q after %d bytes", family, i, s.label, got, n)
					break
				}
			}
		}
	}
}

// TestEveryLabel wants a sample of every label, so that none is without a test.
func TestEveryLabel(t *testing.T) {
	seen := map[string]bool{ // have tests of their own
		"tls": true, "quic": true, "http": true, "dns": true, "mdns": true, "ssh": true, "dhcp": true, "ntp": true, "ssdp": true,
		"icmp": true, "icmpv6": true, "dtls": true, "imaps": true, "pop3s": true, "smtps": true, "ftps": true, "applepush": true,
		"ftp_data": true, "rsh": true, "igmp": true, "ospf": true, "ip_pim": true, "vrrp": true, "pgm": true, "sctp": true,
	}
	for _, samples := range families {
		for _, s := range samples {
			seen[s.label] = true
		}
	}
	for _, l := range Labels() {
		if !seen[l] {
			t.Errorf("no sample of %s", l)
		}
	}
}

// fuzzSamples lets mutations of a family's samples talk over both transports, in both directions and in pieces.
func fuzzSamples(f *testing.F, samples []sample) {
	for i := range samples {
		parts := samples[i].parts()
		answer := parts[len(parts)-1].data
		f.Add(parts[0].data, answer, samples[i].port, uint16(i)) //nolint:gosec // few samples
	}
	e := NewEngine()
	labels := map[string]bool{Unknown: true}
	for _, l := range Labels() {
		labels[l] = true
	}
	f.Fuzz(func(t *testing.T, data, answer []byte, port, at uint16) {
		cut := min(int(at), len(data))
		for _, proto := range []uint8{packet.ProtoTCP, packet.ProtoUDP} {
			for _, parts := range [][]part{
				{{0, 0, data}, {1, 0, answer}, {0, uint32(len(data)), answer}},                                   //nolint:gosec // below 1 MiB
				{{1, 0, data[:cut]}, {1, uint32(cut), data[cut:]}, {0, 0, answer}, {1, uint32(len(data)), data}}, //nolint:gosec // below 1 MiB
			} {
				r := play(e, key(proto, 40000, port), parts...)
				if !labels[r.App] || len(r.Host) > 255 || strings.ContainsFunc(r.Host, func(c rune) bool { return c <= ' ' || c >= 0x7F }) {
					t.Fatalf("%+v", r)
				}
			}
		}
	})
}

// Numbers and padding of samples.
func u16(n int) string { return string([]byte{byte(n >> 8), byte(n)}) }
func u32(n int) string { return u16(n>>16) + u16(n) }
func l16(n int) string { return string([]byte{byte(n), byte(n >> 8)}) }
func l32(n int) string { return l16(n) + l16(n>>16) }
func z(n int) string   { return strings.Repeat("\x00", n) }
func x(n int) string   { return strings.Repeat("x", n) }

// framed puts a message behind its length, in two bytes or four.
func in16(s string) string { return u16(len(s)) + s }
func in32(s string) string { return u32(len(s)) + s }

// TestMatchersOnEveryPrefix asks every protocol about every beginning of every sample, damaged and whole, whatever
// the others would have said before: none may read past the end.
func TestMatchersOnEveryPrefix(t *testing.T) {
	e := NewEngine()
	r := rand.New(rand.NewPCG(3, 4))
	for _, samples := range families {
		for i := range samples {
			s := &samples[i]
			for _, p := range s.parts() {
				for n := 1; n <= min(len(p.data), 120); n++ {
					data := append(make([]byte, 0, n), p.data[:n]...)
					if n > 2 && n%3 == 0 {
						data[r.IntN(n)] = byte(r.Uint32())
					}
					askAll(t, e, s.port, p.dir, data, p.data)
				}
			}
		}
	}
}

// askAll puts data to every protocol of both transports: as the first message, and as one behind an answer and an
// earlier message.
func askAll(t *testing.T, e *Engine, port uint16, dir uint8, data, answer []byte) {
	t.Helper()
	for i := range protocols {
		for _, proto := range []uint8{packet.ProtoTCP, packet.ProtoUDP} {
			func() {
				defer func() {
					if p := recover(); p != nil {
						t.Fatalf("%s, protocol %d, % x: %v", protocols[i].label, proto, data, p)
					}
				}()
				f := e.Open(key(proto, 40000, port))
				f.dirs[dir].packets = 1
				f.run(i, &input{dir: dir, data: data})
				f.at, f.app, f.final = -1, "", false
				f.dirs[dir^1].first.keep(answer)
				f.dirs[dir].previous.keep(answer)
				f.run(i, &input{dir: dir, data: data})
				if f.at >= 0 && len(answer) > 0 {
					f.run(i, &input{dir: dir ^ 1, data: answer})
				}
				f.Release()
			}()
		}
	}
}

// TestLeads puts every first byte before every message: none may be kept from a protocol that would not have said no.
func TestLeads(t *testing.T) {
	e := NewEngine()
	for i := range protocols {
		p := &protocols[i]
		for _, proto := range []uint8{packet.ProtoTCP, packet.ProtoUDP} {
			match, lead := p.stream, p.streamLead
			if proto == packet.ProtoUDP {
				match, lead = p.datagram, func(*Engine) [256]bool { return p.datagramLead() }
			}
			if match == nil {
				continue
			}
			possible := lead(e)
			for _, samples := range families {
				for j := range samples {
					s := &samples[j]
					if s.proto() != proto {
						continue
					}
					parts := s.parts()
					for _, m := range parts {
						data := append([]byte{}, m.data...)
						for c := 0; c < 256 && len(data) > 0; c++ {
							if possible[c] {
								continue
							}
							data[0] = byte(c)
							f := e.Open(key(proto, 40000, s.port))
							d, other := &f.dirs[m.dir], &f.dirs[m.dir^1]
							for again := range 2 {
								d.packets = uint8(again + 1)
								if o := match(f, &input{dir: m.dir, data: data}); o != no {
									t.Errorf("%s: %v to % x, which its lead excludes", p.label, o, data[:min(len(data), 16)])
								}
								d.previous.keep(m.data)
								d.first.keep(parts[0].data)
								for _, answer := range parts {
									if answer.dir != m.dir {
										other.first.keep(answer.data)
										other.previous.keep(answer.data)
									}
								}
							}
							f.Release()
						}
					}
				}
			}
		}
	}
}

// FuzzProtocols asks every protocol, so that none hides behind one that is asked before.
func FuzzProtocols(f *testing.F) {
	for _, samples := range families {
		for i := range samples {
			parts := samples[i].parts()
			f.Add(parts[0].data, parts[len(parts)-1].data, samples[i].port)
		}
	}
	e := NewEngine()
	f.Fuzz(func(t *testing.T, data, answer []byte, port uint16) {
		if len(data) > 0 && len(data) <= MaxBytes && len(answer) <= MaxBytes {
			askAll(t, e, port, 0, data, answer)
			askAll(t, e, port, 1, data, answer)
		}
	})
}
