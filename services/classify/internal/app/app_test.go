package app

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"unsafe"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/packet"
)

func key(proto uint8, sport, dport uint16) flow.Key {
	return flow.Key{
		Src: [16]byte{10: 0xFF, 11: 0xFF, 12: 192, 14: 2, 15: 1}, Dst: [16]byte{10: 0xFF, 11: 0xFF, 12: 198, 13: 51, 14: 100, 15: 2},
		SrcPort: sport, DstPort: dport, Protocol: proto,
	}
}

// part is one segment of a test flow.
type part struct {
	dir  uint8
	at   uint32
	data []byte
}

// play feeds parts to a new flow.
func play(e *Engine, k flow.Key, parts ...part) Result {
	f := e.Open(k)
	defer f.Release()
	for _, p := range parts {
		f.Segment(p.dir, p.at, p.data)
	}
	return f.Result()
}

// one is a table row for a single payload of the flow's source.
type one struct {
	name         string
	proto        uint8
	sport, dport uint16
	data         []byte
	want         Result
}

// same compares results. A label wants payload as its confidence unless it says otherwise, and facts count where a
// test names some.
func same(t *testing.T, name string, got, want Result) {
	t.Helper()
	if want.App != Unknown && want.Confidence == NoLabel {
		want.Confidence = Payload
	}
	if want.Facts == (Facts{}) {
		got.Facts = Facts{}
	}
	if got != want {
		t.Errorf("%s: got %+v, want %+v", name, got, want)
	}
}

func check(t *testing.T, tests []one) {
	t.Helper()
	e := NewEngine()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			same(t, tt.name, play(e, key(tt.proto, tt.sport, tt.dport), part{0, 0, tt.data}), tt.want)
		})
	}
}

var (
	unknown = Result{App: Unknown}
	gone    = Result{App: Unknown, Final: true}
)

func TestProtocolNumbers(t *testing.T) {
	e := NewEngine()
	for proto, want := range map[uint8]Result{
		packet.ProtoICMP:   {App: "icmp", Final: true},
		packet.ProtoICMPv6: {App: "icmpv6", Final: true},
		packet.ProtoTCP:    unknown,
		packet.ProtoUDP:    unknown,
		47:                 gone,
		flow.ProtocolARP:   gone,
	} {
		f := e.Open(key(proto, 0, 0))
		same(t, fmt.Sprint("protocol ", proto), f.Result(), want)
		f.Release()
	}
}

// TestPortsAlone sends noise to the well-known ports: no label may come from a port.
func TestPortsAlone(t *testing.T) {
	e := NewEngine()
	r := rand.New(rand.NewPCG(1, 2))
	for _, port := range []uint16{22, 53, 67, 80, 123, 443, 1900, 5353} {
		for _, proto := range []uint8{packet.ProtoTCP, packet.ProtoUDP} {
			labelled := 0
			for range 2000 {
				data := make([]byte, 40+r.IntN(400))
				for i := range data {
					data[i] = byte(r.Uint32())
				}
				if play(e, key(proto, 40000, port), part{0, 0, data}).App != Unknown {
					labelled++
				}
			}
			if labelled > 20 { // 1%: the shapes of DNS and NTP leave that much to chance on their own ports
				t.Errorf("port %d, protocol %d: %d of 2000 random payloads got a label", port, proto, labelled)
			}
		}
	}
}

// TestNoise sends noise both ways between any ports: next to nothing of it may get a label.
func TestNoise(t *testing.T) {
	e := NewEngine()
	r := rand.New(rand.NewPCG(5, 6))
	const flows = 5000
	labels := map[string]int{}
	for range flows {
		for _, proto := range []uint8{packet.ProtoTCP, packet.ProtoUDP} {
			var parts []part
			var at [2]uint32
			for i := range 4 {
				data := make([]byte, 8+r.IntN(300))
				for j := range data {
					data[j] = byte(r.Uint32())
				}
				parts = append(parts, part{uint8(i & 1), at[i&1], data})
				at[i&1] += uint32(len(data))
			}
			k := key(proto, uint16(1024+r.IntN(60000)), uint16(1+r.IntN(65000)))
			if app := play(e, k, parts...).App; app != Unknown {
				labels[app]++
			}
		}
	}
	total := 0
	for _, n := range labels {
		total += n
	}
	if total > flows/1000 {
		t.Errorf("%d of %d flows of noise got a label: %v", total, 2*flows, labels)
	}
}

func TestGivesUp(t *testing.T) {
	e := NewEngine()
	f := e.Open(key(packet.ProtoTCP, 1, 2))
	for i := range uint32(2 * MaxPackets) {
		done := f.Segment(uint8(i&1), i/2*3, []byte("xyz"))
		if want := i == 2*MaxPackets-1; done != want {
			t.Errorf("segment %d: final %v", i, done)
		}
	}
	if f.Result() != gone {
		t.Errorf("%+v", f.Result())
	}
	f.Release()
	f = e.Open(key(packet.ProtoUDP, 1, 2))
	big := bytes.Repeat([]byte{1}, MaxBytes)
	f.Segment(0, 0, big)
	if !f.Segment(1, 0, big) || f.Result() != gone {
		t.Errorf("after %d bytes a direction: %+v", MaxBytes, f.Result())
	}
	f.Release()
}

// TestSegmentOrder hands over one ClientHello and one request in every kind of order.
func TestSegmentOrder(t *testing.T) {
	request := []byte("GET /a/long/path HTTP/1.1\r\nUser-Agent: x\r\nHost: Example.ORG:8080\r\n\r\n")
	hello := record(clientHelloMessage("www.example.org", "h2", 600))
	for name, whole := range map[string][]byte{"http": request, "tls": hello} {
		want := Result{App: "http", Host: "example.org"} // final with the answer
		if name == "tls" {
			want = Result{App: "tls", Host: "www.example.org", ALPN: "h2"}
		}
		k := key(packet.ProtoTCP, 40000, 8443)
		n := len(whole)
		cut := func(from, to int) part { return part{0, uint32(from), whole[from:to]} }
		junk := bytes.Repeat([]byte{'!'}, 40)
		for order, parts := range map[string][]part{
			"whole":            {cut(0, n)},
			"two":              {cut(0, 10), cut(10, n)},
			"reversed":         {cut(10, n), cut(0, 10)},
			"repeated":         {cut(0, 10), cut(0, 10), cut(10, n)},
			"overlapping":      {cut(0, 30), cut(10, 40), cut(20, n)},
			"first copy wins":  {cut(0, 40), {0, 0, junk}, cut(40, n)},
			"probe before":     {{0, 0, []byte{0}}, {0, 1, whole}},
			"second beginning": {{0, 0, []byte{0, 0}}, cut(0, n)},
			"tiny":             {cut(0, 1), cut(1, 2), cut(2, 3), cut(3, 4), cut(4, 5), cut(5, 6), cut(6, n)},
			"other side first": {{1, 0, []byte{}}, cut(0, 20), cut(20, n)},
			"syn counted":      {{0, 1, whole[:20]}, {0, 21, whole[20:]}},
			"before beginning": {cut(0, 20), {0, 0xFFFFFFF0, junk}, cut(20, n)},
		} {
			same(t, name+" "+order, play(NewEngine(), k, parts...), want)
		}
	}
}

// model is a byte-wise reference for pieces.
type model struct {
	have [MaxBytes]bool
	b    [MaxBytes]byte
}

func (m *model) insert(offset int, data []byte) {
	for i, c := range data {
		if at := offset + i; at < MaxBytes && !m.have[at] {
			m.have[at], m.b[at] = true, c
		}
	}
}

func (m *model) prefix() int {
	for i, ok := range m.have {
		if !ok {
			return i
		}
	}
	return MaxBytes
}

func FuzzPieces(f *testing.F) {
	f.Add([]byte{0, 5, 3, 9, 20, 4, 2, 30})
	f.Add([]byte{200, 200, 100, 200, 0, 255})
	f.Fuzz(func(t *testing.T, steps []byte) {
		var p pieces
		var m model
		buf := make([]byte, MaxBytes)
		for i := 0; i+1 < len(steps); i += 2 {
			offset, n := int(steps[i])*17, int(steps[i+1])
			data := bytes.Repeat([]byte{byte(i + 1)}, n)
			full := p.n == maxPieces
			before := p
			p.insert(buf, uint32(offset), data)
			if full && p == before {
				// Dropped or already there; the model must not know more than the pieces do.
				continue
			}
			m.insert(offset, data)
			if p.prefix() != m.prefix() {
				t.Fatalf("prefix %d, want %d", p.prefix(), m.prefix())
			}
			for _, r := range p.list[:p.n] {
				if r.from >= r.to || !bytes.Equal(buf[r.from:r.to], m.b[r.from:r.to]) {
					t.Fatalf("bytes %d to %d differ", r.from, r.to)
				}
			}
			for j := 1; j < int(p.n); j++ {
				if p.list[j-1].to >= p.list[j].from {
					t.Fatalf("pieces %v touch", p.list[:p.n])
				}
			}
		}
	})
}

func TestNames(t *testing.T) {
	var n names
	n.reset()
	a := n.get([]byte("kept"))
	for i := range 3 * maxNames {
		n.get([]byte{byte(i), byte(i >> 8), byte(i >> 16)})
		if i%1000 == 0 && n.get([]byte("kept")) != a {
			t.Fatal("a name in use changed")
		}
	}
	if len(n.young) > maxNames+1 || len(n.old) > maxNames+1 {
		t.Errorf("%d and %d names", len(n.young), len(n.old))
	}
}

// typical are flows as they come, for allocations and speed.
func typical() map[string]func(e *Engine) Result {
	hello := record(clientHelloMessage("www.example.org", "h2", 1200))
	request := []byte("GET / HTTP/1.1\r\nHost: example.org\r\nAccept: */*\r\n\r\n")
	query := dnsQuery("www.example.org", 1)
	banner := []byte("SSH-2.0-x\r\n")
	noise := bytes.Repeat([]byte{0x55, 0xAA, 0x13}, 30)
	initial := initialPacket(quicV1, []byte{1, 2, 3, 4, 5, 6, 7, 8}, 0, cryptoFrame(0, clientHelloMessage("www.example.org", "h3", 300)))
	return map[string]func(e *Engine) Result{
		"tls": func(e *Engine) Result {
			return play(e, key(packet.ProtoTCP, 40000, 443), part{0, 0, hello[:700]}, part{0, 700, hello[700:]})
		},
		"http": func(e *Engine) Result { return play(e, key(packet.ProtoTCP, 40000, 80), part{0, 0, request}) },
		"dns":  func(e *Engine) Result { return play(e, key(packet.ProtoUDP, 40000, 53), part{0, 0, query}) },
		"ssh": func(e *Engine) Result {
			return play(e, key(packet.ProtoTCP, 40000, 22), part{1, 0, banner})
		},
		"icmp": func(e *Engine) Result { return play(e, key(packet.ProtoICMP, 0, 0)) },
		"unknown": func(e *Engine) Result {
			return play(e, key(packet.ProtoUDP, 40000, 9999), part{0, 0, noise}, part{1, 0, noise}, part{0, 90, noise}, part{1, 90, noise})
		},
		"quic": func(e *Engine) Result { return play(e, key(packet.ProtoUDP, 40000, 443), part{0, 0, initial}) },
	}
}

func TestNoAllocation(t *testing.T) {
	e := NewEngine()
	for name, run := range typical() {
		if got := run(e); got.App != name {
			t.Errorf("%s: %+v", name, got)
		}
		if n := testing.AllocsPerRun(200, func() { run(e) }); n > 0 {
			t.Errorf("%s: %v allocations a flow", name, n)
		}
	}
}

// TestMemory holds both directions of an unknown flow in every kind of wait, and counts what it keeps.
func TestMemory(t *testing.T) {
	const limit = 2048 - 360 // what the classifier keeps beside it; see its TestFlowMemory
	waits := map[string][]part{
		"beginnings":   {{0, 0, []byte("GE")}, {1, 0, []byte("HT")}},
		"long":         {{0, 0, bytes.Repeat([]byte("a line "), 200)}, {1, 0, bytes.Repeat([]byte("no line "), 180)}},
		"gap":          {{0, 1400, make([]byte, 1400)}, {1, 100, make([]byte, 1400)}},
		"many":         {{0, 0, []byte("abc")}, {0, 3, make([]byte, 1400)}, {0, 1403, make([]byte, 1400)}, {1, 7, []byte("x")}, {1, 0, []byte("12345")}},
		"out of order": {{0, 300, []byte("abc")}, {0, 200, []byte("abc")}, {0, 100, []byte("abc")}, {1, 5000, []byte("abc")}},
	}
	for name, parts := range waits {
		e := NewEngine()
		f := e.Open(key(packet.ProtoTCP, 40000, 9999))
		for _, p := range parts {
			f.Segment(p.dir, p.at, p.data)
		}
		if r := f.Result(); r.App != Unknown || r.Final {
			t.Fatalf("%s: %+v", name, r)
		}
		size := int(unsafe.Sizeof(*f)) + len(f.dirs[0].buf) + len(f.dirs[1].buf)
		if f.quic != nil {
			size += int(unsafe.Sizeof(*f.quic))
		}
		if size > limit {
			t.Errorf("%s: %d bytes, want at most %d", name, size, limit)
		}
		f.Release()
		pooled := 0
		for _, pool := range e.buffers {
			for _, b := range pool {
				pooled += len(b)
			}
		}
		if pooled > 2*maxUndecided {
			t.Errorf("%s: %d bytes in the pools", name, pooled)
		}
	}
}

// TestManyWait: flows whose beginning never goes on do not fill the memory, and when they are gone others have it.
func TestManyWait(t *testing.T) {
	e := NewEngine()
	e.most = 64 * MaxBytes
	hello := initialPacket(quicV1, []byte{1, 2, 3, 4, 5, 6, 7, 8}, 0, cryptoFrame(0, clientHelloMessage("www.example.org", "h3", 1800)[:700]))
	request := []byte("GET /" + strings.Repeat("a", 3000) + " HTTP/1.1\r\nHost: example.org\r\n\r\n")
	parts := []part{{0, 0, request[:100]}, {0, 100, request[100:1500]}, {0, 1500, request[1500:2900]}, {0, 2900, request[2900:]}}
	var flows []*Flow
	for range 1000 {
		q, h := e.Open(key(udp, 40000, 443)), e.Open(key(packet.ProtoTCP, 40000, 80))
		q.Segment(0, 0, hello)
		for _, p := range parts[:3] {
			h.Segment(p.dir, p.at, p.data)
		}
		flows = append(flows, q, h)
	}
	held := 0
	for _, f := range flows {
		held += len(f.dirs[0].buf) + len(f.dirs[1].buf)
		if f.quic != nil {
			held += quicSize
		}
	}
	if held > e.most || held < e.most/2 {
		t.Errorf("%d bytes are held, of at most %d", held, e.most)
	}
	if r := play(e, key(packet.ProtoTCP, 40001, 80), part{0, 0, []byte("GET / HTTP/1.1\r\nHost: example.org\r\n\r\n")}); r.App != "http" || r.Host != "example.org" {
		t.Errorf("a request in one segment meanwhile: %+v", r)
	}
	for _, f := range flows {
		f.Release()
	}
	if r := play(e, key(packet.ProtoTCP, 40000, 80), parts...); r.App != "http" || r.Host != "example.org" {
		t.Errorf("afterwards: %+v", r)
	}
	if free := e.held; free > e.most {
		t.Errorf("%d bytes are kept", free)
	}
}

// TestGrows wants a labelled flow to keep what its protocol reads on for, whatever the order.
func TestGrows(t *testing.T) {
	request := []byte("GET /" + strings.Repeat("a", 3000) + " HTTP/1.1\r\nHost: example.org\r\n\r\n")
	for _, n := range []int{600, 1000, 1400, 3003} {
		var parts []part
		for at := 0; at < len(request); at += n {
			parts = append(parts, part{0, uint32(at), request[at:min(at+n, len(request))]})
		}
		if r := play(NewEngine(), key(packet.ProtoTCP, 40000, 80), parts...); r.App != "http" || r.Host != "example.org" {
			t.Errorf("in pieces of %d: %+v", n, r)
		}
	}
}

func BenchmarkFlow(b *testing.B) {
	e := NewEngine()
	for name, run := range typical() {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for range b.N {
				run(e)
			}
		})
	}
}

// fuzz feeds arbitrary bytes to a flow of each transport, whole and in two segments, so that the parser under
// test meets them in every state.
func fuzz(f *testing.F, seeds ...[]byte) {
	for _, s := range seeds {
		f.Add(s, uint16(53), uint16(7))
		f.Add(s, uint16(5353), uint16(100))
	}
	e := NewEngine()
	f.Fuzz(func(t *testing.T, data []byte, port, at uint16) {
		cut := min(int(at), len(data))
		for _, proto := range []uint8{packet.ProtoTCP, packet.ProtoUDP} {
			k := key(proto, 40000, port)
			for _, parts := range [][]part{
				{{0, 0, data}},
				{{0, 0, data[:cut]}, {0, uint32(cut), data[cut:]}},
				{{0, uint32(cut), data[cut:]}, {0, 0, data[:cut]}, {1, 0, data}},
			} {
				r := play(e, k, parts...)
				if r.App == "" || len(r.Host) > 255 || len(r.ALPN) > 255 {
					t.Fatalf("%+v", r)
				}
				for _, c := range []byte(r.Host + r.ALPN) {
					if c <= ' ' || c >= 0x7F {
						t.Fatalf("%q is no name", r.Host+r.ALPN)
					}
				}
			}
		}
	})
}
