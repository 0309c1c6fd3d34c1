package ring

import (
	"bytes"
	"sync/atomic"
	"testing"
)

// TestOrderAndBytes: a writer and a reader at once; every frame arrives whole and in order, or is counted.
func TestOrderAndBytes(t *testing.T) {
	const frames = 200000
	r := New(5000)
	if len(r.buf) != 8192 {
		t.Fatalf("a ring of 5000 bytes has %d", len(r.buf))
	}
	var done atomic.Bool
	go func() {
		defer done.Store(true)
		var data [300]byte
		for i := range frames {
			d := data[:i%len(data)]
			for j := range d {
				d[j] = byte(i)
			}
			r.Put(int64(i), d, i)
		}
	}()
	taken, last, buf := uint64(0), int64(-1), []byte(nil)
	for {
		ended := done.Load()
		stamp, ok := r.Next()
		if !ok {
			if ended {
				break
			}
			continue
		}
		data, timeNs, wire := r.Take(buf[:0])
		buf = data
		if timeNs != stamp || timeNs <= last || int64(wire) != timeNs || len(data) != wire%300 ||
			bytes.Count(data, []byte{byte(wire)}) != len(data) {
			t.Fatalf("after frame %d: frame %d of %d bytes, %d kept: %x", last, timeNs, wire, len(data), data)
		}
		taken, last = taken+1, timeNs
	}
	if taken+r.Missed() != frames || taken == 0 {
		t.Errorf("%d taken and %d missed of %d", taken, r.Missed(), frames)
	}
	t.Logf("%d taken, %d missed", taken, r.Missed())
}

func TestFull(t *testing.T) {
	r := New(64)
	for range 5 {
		r.Put(1, make([]byte, 16), 16) // 32 bytes with their header
	}
	if r.Missed() != 3 {
		t.Errorf("%d missed, want 3", r.Missed())
	}
	r.Take(nil)
	r.Put(2, make([]byte, 16), 16)
	r.Put(3, make([]byte, 100), 100) // never fits
	if stamp, ok := r.Next(); !ok || stamp != 1 || r.Missed() != 4 {
		t.Errorf("stamp %d, %v, %d missed", stamp, ok, r.Missed())
	}
	if n := testing.AllocsPerRun(100, func() { r.Put(4, nil, 0) }); n != 0 {
		t.Errorf("Put allocates %v times", n)
	}
}
