package flowtable

import (
	"bytes"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/flow"
)

func TestSegments(t *testing.T) {
	type seg struct {
		seq  uint32
		data string
	}
	tests := []struct {
		name string
		sent []seg
		want string // what a reader puts together
		n    uint32
	}{
		{"in order", []seg{{11, "abc"}, {14, "def"}}, "abcdef", 2},
		{"retransmitted", []seg{{11, "abc"}, {11, "abc"}, {14, "def"}, {12, "bcd"}}, "abcdef", 2},
		{"overlapping", []seg{{11, "abc"}, {12, "bcdef"}}, "abcdef", 2},
		{"out of order", []seg{{11, "ab"}, {15, "ef"}, {13, "cd"}, {13, "cd"}}, "abcdef", 3},
		{"filled in two steps", []seg{{11, "ab"}, {15, "ef"}, {13, "c"}, {14, "d"}}, "abcdef", 4},
		{"two holes", []seg{{11, "a"}, {13, "c"}, {15, "e"}, {12, "b"}, {14, "d"}}, "abcde", 5},
		{"keepalive before the start", []seg{{10, "x"}, {11, "abc"}}, "abc", 1},
		{"padding of an acknowledgement", []seg{{11, "\x00\x00"}, {11, "abc"}, {14, "\x00\x00\x00\x00\x00\x00"}, {14, "def"}}, "abcdef", 2},
		{"fills a hole and goes on", []seg{{11, "ab"}, {15, "e"}, {13, "cdefg"}}, "abcdefg", 3},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, nil)
			r.tcp("192.0.2.1", 1, "198.51.100.1", 80, flagSYN, 10, "")
			for _, s := range tt.sent {
				r.tcp("192.0.2.1", 1, "198.51.100.1", 80, flagACK, s.seq, s.data)
			}
			var got [64]byte
			at, high := 0, 0
			c := r.out.Segments
			for i := range int(c.Count) {
				off, n := int(flow.Column(c.Offset).U32(i)), int(flow.Column(c.Length).U16(i))
				copy(got[off:], c.Data[at:at+n])
				at += n
				high = max(high, off+n)
			}
			if string(got[:high]) != tt.want || c.Count != tt.n {
				t.Errorf("%d segments: %q, want %d: %q", c.Count, got[:high], tt.n, tt.want)
			}
		})
	}
}

func TestSegmentLimits(t *testing.T) {
	r := newRig(t, nil)
	for i := range 20 {
		if o := r.udp("192.0.2.1", 1, "198.51.100.1", 80, "0123456789"); o.Spent != (i == MaxSegments-1) {
			t.Errorf("packet %d: spent is %v", i, o.Spent)
		}
	}
	if n := r.out.Segments.Count; n != MaxSegments {
		t.Errorf("%d segments, want %d", n, MaxSegments)
	}
	if off := flow.Column(r.out.Segments.Offset).U32(7); off != 70 {
		t.Errorf("offset of the eighth is %d", off)
	}
	r.udp("198.51.100.1", 80, "192.0.2.4", 1, "x")
	for range MaxSegments {
		if o := r.udp("192.0.2.4", 1, "198.51.100.1", 80, "0"); o.Spent {
			t.Error("spent, though packets came both ways")
		}
	}
	r.out.Segments.Data = r.out.Segments.Data[:80]
	long := string(bytes.Repeat([]byte("a"), 1400))
	for range 5 {
		r.udp("192.0.2.2", 1, "198.51.100.1", 80, long)
	}
	if n := len(r.out.Segments.Data) - 80; n != MaxSegmentBytes {
		t.Errorf("%d bytes, want %d", n, MaxSegmentBytes)
	}
	o := r.udp("192.0.2.3", 1, "198.51.100.1", 80, "x")
	before := r.out.Segments.Count
	if k, ok := r.table.Enough(o.ID); !ok || k != o.Key {
		t.Errorf("Enough: %v %v", k, ok)
	}
	r.udp("192.0.2.3", 1, "198.51.100.1", 80, "x")
	if r.out.Segments.Count != before {
		t.Error("payload is sent after Enough")
	}
	if _, ok := r.table.Enough(o.ID + 1<<24); ok {
		t.Error("Enough finds a flow of another generation")
	}
}

func TestSegmentBudget(t *testing.T) {
	const each = flow.OpenBytes + flow.SegmentBytes + flow.EndBytes + 10
	r := newRig(t, func(c *Config) { c.SegmentBudget = 10 * each; c.SummariseAbove = 5 })
	for i := range 50 {
		r.udp("192.0.2.1", uint16(i+1), "198.51.100.1", 80, "0123456789")
	}
	if n := r.out.Segments.Count; n != 10 || r.table.Stats().Withheld != 40 || r.out.Opens.Count != 10 {
		t.Errorf("%d segments, %+v", n, r.table.Stats())
	}
	r.udp("198.51.100.1", 80, "192.0.2.1", 1, "answer")
	if n := r.out.Segments.Count; n != 11 {
		t.Error("a flow with answers has no budget of its own")
	}
	r.wait(70 * time.Second)
	if s := r.table.Stats(); s.Summarised != 35 || s.Ended != 15 {
		t.Errorf("%+v", s)
	}
}
