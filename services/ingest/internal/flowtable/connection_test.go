package flowtable

import (
	"encoding/binary"
	"testing"
	"time"
	"unsafe"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/packet"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

func TestConnectionFillsHalfACacheLine(t *testing.T) {
	if s := unsafe.Sizeof(connection{}); s != 32 {
		t.Errorf("a connection has %d bytes, want 32", s)
	}
}

// talk plays packets between a client and a server.
type talk struct{ *rig }

func newTalk(t *testing.T) talk { return talk{newRig(t, nil)} }

// after lets time pass and sends a packet of the client (d 0) or the server (1).
func (k talk) after(d time.Duration, from int, flags uint8, seq, ack uint32, payload string) Observation {
	k.t.Helper()
	k.now += int64(d)
	src, dst, sport, dport := "192.0.2.1", "198.51.100.1", uint16(40000), uint16(443)
	if from == 1 {
		src, dst, sport, dport = dst, src, dport, sport
	}
	h := header(src, dst)
	return k.frame(h.AppendTCP(nil, &packet.TCP{SrcPort: sport, DstPort: dport, Flags: flags, Seq: seq, Ack: ack}, []byte(payload)))
}

// open shakes hands in 30 ms, 20 of them at the server's side; the next sequence numbers are client and server.
func (k talk) open(client, server uint32) {
	k.after(0, 0, flagSYN, client-1, 0, "")
	k.after(20*time.Millisecond, 1, flagSYN|flagACK, server-1, client, "")
	k.after(10*time.Millisecond, 0, flagACK, client, server, "")
}

// end is what the only flow's end tells.
func (k talk) end() flow.TCP {
	k.t.Helper()
	k.flush()
	ends := k.ends()
	if len(ends) != 1 {
		k.t.Fatalf("%d ends", len(ends))
	}
	return ends[0].TCP
}

func TestHandshakeRTT(t *testing.T) {
	const ms = time.Millisecond
	tests := []struct {
		name string
		play func(k talk)
		want flow.TCP
	}{
		{"as it should be", func(k talk) { k.open(101, 501) }, flow.TCP{RTTServerUs: 20_000, RTTClientUs: 10_000}},
		{"with data in the last packet", func(k talk) {
			k.after(0, 0, flagSYN, 1<<32-1, 0, "")
			k.after(3*ms, 1, flagSYN|flagACK, 1<<32-1, 0, "")
			k.after(4*ms, 0, flagACK|flagPSH, 0, 0, "hello")
		}, flow.TCP{RTTServerUs: 3_000, RTTClientUs: 4_000}},
		{"faster than the clock", func(k talk) {
			k.after(0, 0, flagSYN, 100, 0, "")
			k.after(0, 1, flagSYN|flagACK, 500, 101, "")
			k.after(0, 0, flagACK, 101, 501, "")
		}, flow.TCP{RTTServerUs: 1, RTTClientUs: 1}},
		{"SYN lost, the second is answered", func(k talk) {
			k.after(0, 0, flagSYN, 100, 0, "")
			k.after(1000*ms, 0, flagSYN, 100, 0, "")
			k.after(5*ms, 1, flagSYN|flagACK, 500, 101, "")
			k.after(6*ms, 0, flagACK, 101, 501, "")
		}, flow.TCP{RTTServerUs: 5_000, RTTClientUs: 6_000, RetransmitsFwd: 1}},
		{"SYN-ACK lost behind the sensor", func(k talk) {
			k.after(0, 0, flagSYN, 100, 0, "")
			k.after(5*ms, 1, flagSYN|flagACK, 500, 101, "")
			k.after(1000*ms, 1, flagSYN|flagACK, 500, 101, "")
			k.after(6*ms, 0, flagACK, 101, 501, "")
		}, flow.TCP{RTTServerUs: 5_000, RTTClientUs: 6_000, RetransmitsRev: 1}},
		{"another attempt between the same ports", func(k talk) {
			k.after(0, 0, flagSYN, 100, 0, "")
			k.after(1000*ms, 0, flagSYN, 900, 0, "")
			k.after(5*ms, 1, flagSYN|flagACK, 500, 901, "")
			k.after(6*ms, 0, flagACK, 901, 501, "")
		}, flow.TCP{RTTServerUs: 5_000, RTTClientUs: 6_000}},
		{"data in the SYN (RFC 7413)", func(k talk) {
			k.after(0, 0, flagSYN, 100, 0, "hello")
			k.after(5*ms, 1, flagSYN|flagACK, 500, 106, "world")
			k.after(6*ms, 0, flagACK, 106, 506, "")
		}, flow.TCP{RTTServerUs: 5_000, RTTClientUs: 6_000}},
		{"half open", func(k talk) {
			k.after(0, 0, flagSYN, 100, 0, "")
			k.after(5*ms, 1, flagSYN|flagACK, 500, 101, "")
		}, flow.TCP{RTTServerUs: 5_000}},
		{"SYN-ACK to something else", func(k talk) {
			k.after(0, 0, flagSYN, 100, 0, "")
			k.after(5*ms, 1, flagSYN|flagACK, 500, 77, "")
			k.after(6*ms, 0, flagACK, 101, 501, "")
		}, flow.TCP{}},
		{"ACK of something else", func(k talk) {
			k.after(0, 0, flagSYN, 100, 0, "")
			k.after(5*ms, 1, flagSYN|flagACK, 500, 101, "")
			k.after(6*ms, 0, flagACK, 101, 77, "")
		}, flow.TCP{RTTServerUs: 5_000}},
		{"seen from one side", func(k talk) {
			k.after(0, 0, flagSYN, 100, 0, "")
			k.after(5*ms, 0, flagACK, 101, 501, "")
		}, flow.TCP{}},
		{"begun before the sensor", func(k talk) {
			k.after(0, 1, flagSYN|flagACK, 500, 101, "")
			k.after(5*ms, 0, flagACK, 101, 501, "")
		}, flow.TCP{}},
		{"a clock that goes backwards", func(k talk) {
			k.after(0, 0, flagSYN, 100, 0, "")
			k.after(-5*ms, 1, flagSYN|flagACK, 500, 101, "")
			k.after(6*ms, 0, flagACK, 101, 501, "")
		}, flow.TCP{}},
		{"reset", func(k talk) {
			k.after(0, 0, flagSYN, 100, 0, "")
			k.after(5*ms, 1, flagRST|flagACK, 0, 101, "")
		}, flow.TCP{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k := newTalk(t)
			tt.play(k)
			if got := k.end(); got != tt.want {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestRetransmits(t *testing.T) {
	const ms = time.Millisecond
	const data = flagACK | flagPSH
	tests := []struct {
		name string
		play func(k talk, s uint32) // s is the client's next sequence number
		want uint32
	}{
		{"none", func(k talk, s uint32) {
			k.after(ms, 0, data, s, 0, "abc")
			k.after(ms, 0, data, s+3, 0, "def")
		}, 0},
		{"the same again", func(k talk, s uint32) {
			k.after(ms, 0, data, s, 0, "abc")
			k.after(ms, 0, data, s, 0, "abc")
			k.after(ms, 0, data, s, 0, "abc")
		}, 2},
		{"cut anew (RFC 9293 3.8.6.2)", func(k talk, s uint32) {
			k.after(ms, 0, data, s, 0, "abc")
			k.after(ms, 0, data, s, 0, "abcdef")
			k.after(ms, 0, data, s+2, 0, "cdefgh")
			k.after(ms, 0, data, s+3, 0, "de")
		}, 3},
		{"overtaken", func(k talk, s uint32) {
			k.after(ms, 0, data, s, 0, "abc")
			k.after(ms, 0, data, s+6, 0, "ghi")
			k.after(ms, 0, data, s+3, 0, "def")
			k.after(ms, 0, data, s+9, 0, "jkl")
		}, 0},
		{"overtaken by two", func(k talk, s uint32) {
			k.after(ms, 0, data, s+3, 0, "def")
			k.after(ms, 0, data, s+9, 0, "jkl")
			k.after(ms, 0, data, s, 0, "abc")
			k.after(ms, 0, data, s+6, 0, "ghi")
		}, 0},
		{"lost before the sensor", func(k talk, s uint32) {
			k.after(ms, 0, data, s, 0, "abc")
			k.after(ms, 0, data, s+6, 0, "ghi")
			k.after(31*ms, 0, data, s+3, 0, "def")
		}, 1},
		{"lost before the sensor, and what was behind it again", func(k talk, s uint32) {
			k.after(ms, 0, data, s+3, 0, "def")
			k.after(40*ms, 0, data, s, 0, "abcdef")
		}, 1},
		{"overtaken after an old loss", func(k talk, s uint32) {
			for range MaxSegments {
				k.after(ms, 0, data, s, 0, "abc")
				s += 3
			}
			k.after(ms, 0, data, s+3, 0, "def") // lost for good
			k.after(time.Second, 0, data, s+9, 0, "jkl")
			k.after(ms, 0, data, s+6, 0, "ghi")
		}, 0},
		{"keep-alive with a byte and without", func(k talk, s uint32) {
			k.after(ms, 0, data, s, 0, "abc")
			for range 3 {
				k.after(time.Second, 0, flagACK, s+2, 0, "c")
				k.after(time.Second, 0, flagACK, s+2, 0, "")
				k.after(time.Second, 0, flagACK, s+2, 0, "\x00")
			}
		}, 0},
		{"keep-alive before any data", func(k talk, s uint32) { k.after(time.Second, 0, flagACK, s-1, 0, "x") }, 0},
		{"zero-window probes, then what did not fit", func(k talk, s uint32) {
			k.after(ms, 0, data, s, 0, "abc")
			for range 3 {
				k.after(time.Second, 0, flagACK, s+3, 0, "d")
			}
			k.after(ms, 0, data, s+3, 0, "defghi")
		}, 0},
		{"acknowledgements", func(k talk, s uint32) {
			k.after(ms, 0, data, s, 0, "abc")
			for range 3 {
				k.after(ms, 0, flagACK, s+3, 0, "")
				k.after(ms, 0, flagACK, s+3, 0, "\x00\x00\x00\x00\x00\x00") // padded
			}
			k.after(ms, 0, data, s+3, 0, "def")
		}, 0},
		{"FIN again", func(k talk, s uint32) {
			k.after(ms, 0, data, s, 0, "abc")
			k.after(ms, 0, flagACK|flagFIN, s+3, 0, "")
			k.after(ms, 0, flagACK|flagFIN, s+3, 0, "")
			k.after(ms, 0, flagACK|flagFIN, s, 0, "abc")
		}, 2},
		{"of another connection", func(k talk, s uint32) {
			k.after(ms, 0, data, s, 0, "abc")
			k.after(ms, 0, data, s-1<<31, 0, "abc")
			k.after(ms, 0, data, s-1<<31+3, 0, "def")
		}, 0},
		{"forwarded by the kernel in between", func(k talk, s uint32) {
			o := k.after(ms, 0, data, s, 0, "abc")
			k.after(ms, 0, data, s, 0, "abc")
			k.table.Enough(o.ID)
			k.table.Meter(o.Key, 1000, 3_000_000_000, k.now)
			k.after(ms, 0, data, s+3_000_000_000, 0, "abc")
			k.after(ms, 0, data, s+3_000_000_000, 0, "abc")
		}, 2},
		{"long after segments are wanted", func(k talk, s uint32) {
			for range 100 * MaxSegments {
				k.after(ms, 0, data, s, 0, "abcdefgh")
				s += 8
			}
			k.after(ms, 0, data, s-16, 0, "abcdefgh")
			k.after(ms, 0, data, s-8, 0, "abcdefgh")
		}, 2},
	}
	for _, tt := range tests {
		for _, start := range []uint32{1000, 1<<32 - 4, 1<<31 - 4} { // the numbers wrap in the middle
			t.Run(tt.name, func(t *testing.T) {
				k := newTalk(t)
				k.open(start, 700)
				tt.play(k, start)
				want := flow.TCP{RTTServerUs: 20_000, RTTClientUs: 10_000, RetransmitsFwd: tt.want}
				if got := k.end(); got != want {
					t.Errorf("%+v, want %+v", got, want)
				}
			})
		}
	}
}

// TestManyBytes sends 9 GiB by the lengths in the headers: sequence numbers wrap twice, with a retransmit in each 100 MB
// or so and one segment overtaken.
func TestManyBytes(t *testing.T) {
	k := newTalk(t)
	k.open(1, 1)
	const n = uint32(60_000)
	h := header("192.0.2.1", "198.51.100.1")
	frame := h.AppendTCP(nil, &packet.TCP{SrcPort: 40000, DstPort: 443, Flags: flagACK}, make([]byte, n))
	seq, want := uint32(1), uint32(0)
	send := func(at uint32) {
		k.now += int64(100 * time.Microsecond)
		binary.BigEndian.PutUint32(frame[14+20+4:], at)
		k.frame(frame)
	}
	for i := range 150_000 {
		switch i % 1500 {
		case 700:
			send(seq - 3*n)
			want++
		case 900:
			send(seq + n)
			send(seq)
			seq += n
		default:
			send(seq)
		}
		if i%1500 != 700 {
			seq += n
		}
	}
	if got := k.end(); got.RetransmitsFwd != want || want != 100 {
		t.Errorf("%+v, want %d", got, want)
	}
}

// TestParts: each part of a long flow tells its own retransmits, and all the round trip.
func TestParts(t *testing.T) {
	k := newTalk(t)
	k.open(101, 501)
	for i := range uint32(130) {
		k.after(0, 0, flagACK|flagPSH, 101+3*i, 0, "abc")
		if i == 10 || i == 70 || i == 71 {
			k.after(time.Millisecond, 0, flagACK|flagPSH, 101+3*i, 0, "abc")
		}
		k.wait(time.Second)
	}
	k.flush()
	var got []uint32
	for _, e := range k.ends() {
		got = append(got, e.TCP.RetransmitsFwd)
		if e.TCP.RTTServerUs != 20_000 || e.TCP.RTTClientUs != 10_000 {
			t.Errorf("part %d: %+v", e.Part, e.TCP)
		}
	}
	if len(got) != 3 || got[0] != 1 || got[1] != 2 || got[2] != 0 {
		t.Errorf("retransmits of the parts: %v", got)
	}
}

// TestGapsShareAPlace: of two streams that have a gap at once and share a place the later one keeps it. What fills the
// other's counts as sent again, and both go on.
func TestGapsShareAPlace(t *testing.T) {
	r := newRig(t, func(c *Config) { c.MaxFlows = 1024 })
	send := func(i int, seq uint32, payload string) {
		r.tcp("192.0.2.1", uint16(i+1), "198.51.100.1", 80, flagACK|flagPSH, seq, payload)
	}
	last := len(r.table.gaps) / 2 // flows for so many places of two directions
	for i := range last + 1 {
		send(i, 1, "ab")
	}
	for _, i := range []int{0, last} {
		send(i, 5, "ef")
	}
	for _, i := range []int{0, last} {
		send(i, 3, "cd")
		send(i, 7, "gh")
	}
	r.flush()
	again := map[uint16]uint32{}
	for _, e := range r.ends() {
		again[e.Key.SrcPort] = e.TCP.RetransmitsFwd
	}
	if len(again) != last+1 || again[1] != 1 || again[uint16(last+1)] != 0 {
		t.Errorf("%d flows; sent again: %d of the first, %d of the last", len(again), again[1], again[uint16(last+1)])
	}
}

// TestEntryUsedAgain: a new flow has nothing of the one whose place it takes.
func TestEntryUsedAgain(t *testing.T) {
	k := newTalk(t)
	k.open(101, 501)
	k.after(0, 0, flagACK|flagPSH, 101, 0, "abc")
	k.after(0, 0, flagACK|flagPSH, 101, 0, "abc")
	k.after(0, 1, flagRST, 501, 0, "")
	k.wait(3 * time.Second)
	for range 2 {
		k.tcp("192.0.2.9", 5, "198.51.100.9", 80, flagACK, 7, "data")
	}
	k.flush()
	ends := k.ends()
	if len(ends) != 2 || ends[0].TCP.RetransmitsFwd != 1 || ends[1].TCP != (flow.TCP{RetransmitsFwd: 1}) {
		t.Errorf("%+v", ends)
	}
}

func TestConnection(t *testing.T) {
	r := newRig(t, nil)
	o := r.tcp("192.0.2.1", 40000, "198.51.100.1", 443, flagSYN, 100, "")
	if !o.New || !o.Attempt || o.Solicited || o.Reverse || o.ID>>56 != 3 {
		t.Fatalf("SYN: %+v", o)
	}
	if r.out.Opens != nil {
		t.Error("a single packet without payload has an open")
	}
	o = r.tcp("198.51.100.1", 443, "192.0.2.1", 40000, flagSYN|flagACK, 500, "")
	if o.New || !o.Solicited || !o.Reverse || o.Key.DstPort != 443 {
		t.Fatalf("SYN-ACK: %+v", o)
	}
	if o = r.tcp("192.0.2.1", 40000, "198.51.100.1", 443, flagACK, 101, ""); !o.Handshake {
		t.Fatalf("ACK completes no handshake: %+v", o)
	}
	if o = r.tcp("192.0.2.1", 40000, "198.51.100.1", 443, flagACK|flagPSH, 101, "hello"); o.Handshake {
		t.Fatal("the handshake completes twice")
	}
	r.tcp("192.0.2.1", 40000, "198.51.100.1", 443, flagACK|flagPSH, 101, "hello") // retransmit
	r.tcp("198.51.100.1", 443, "192.0.2.1", 40000, flagACK|flagPSH, 501, "world")
	r.tcp("192.0.2.1", 40000, "198.51.100.1", 443, flagACK|flagFIN, 106, "")
	r.tcp("198.51.100.1", 443, "192.0.2.1", 40000, flagACK|flagFIN, 506, "")
	r.wait(time.Second)
	if n := len(r.ends()); n != 0 {
		t.Fatalf("%d ends before the linger is over", n)
	}
	r.wait(1200 * time.Millisecond)
	ends := r.ends()
	if len(ends) != 1 || ends[0].Reason != flowv1.EndReason_END_REASON_FIN || ends[0].Totals.PacketsFwd != 5 ||
		ends[0].Totals.PacketsRev != 3 || ends[0].Totals.BytesFwd != 5*40+10 || ends[0].FlagsRev != flagSYN|flagACK|flagPSH|flagFIN {
		t.Fatalf("ends: %+v", ends)
	}
	if n := r.out.Opens.Count; n != 1 {
		t.Fatalf("%d opens, want 1", n)
	}
	open := flow.OpenAt(r.out.Opens, 0)
	if open.ID != o.ID || open.TCPFlags != flagSYN || open.IPLength != 40 || open.TTL != 64 || open.PortIndex != 1 || open.Key.SrcPort != 40000 {
		t.Errorf("open: %+v", open)
	}
	if s := r.out.Segments; s.Count != 2 || string(s.Data) != "helloworld" || flow.Column(s.Offset).U32(0) != 0 ||
		s.Direction[1] != 1 || flow.Column(s.Offset).U32(1) != 0 {
		t.Errorf("segments: %v", s)
	}
	if len(r.failures) != 0 {
		t.Errorf("failures: %+v", r.failures)
	}
	r.ledger()
}

func TestHandshakeSeenFromOneSide(t *testing.T) {
	r := newRig(t, nil)
	r.tcp("192.0.2.1", 40000, "198.51.100.1", 443, flagSYN, 100, "")
	if o := r.tcp("192.0.2.1", 40000, "198.51.100.1", 443, flagACK, 101, ""); !o.Handshake {
		t.Error("SYN, ACK is no handshake")
	}
	r.wait(4 * time.Second)
	if len(r.failures) != 0 {
		t.Errorf("failures: %+v", r.failures)
	}
}
