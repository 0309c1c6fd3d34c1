package xdp

import (
	"bytes"
	"errors"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/tidegate-mesh/tidegate/libs/policy"
)

func (r *rig) copies(t *testing.T, g *Gate) *Copies {
	t.Helper()
	var c *Copies
	must(t, r.gate.Do(func() (err error) {
		c, err = g.OpenCopies()
		return err
	}))
	t.Cleanup(func() { must(t, c.Close()) })
	return c
}

// TestCopies: what host mode passes is copied, cut to 240 bytes; what is dropped, belongs to an allowed flow or finds the
// ring full is not, and each is counted.
func TestCopies(t *testing.T) {
	r := newRig(t, 1)
	g := r.open(t, Options{Mode: ModeHost})
	p := program(t, g)
	long := udp("192.0.2.1", "198.51.100.7").with(func(p *pkt) { p.payload = 1400 }).frame(t)
	for i := range long[42:] {
		long[42+i] = byte(i * 7)
	}
	send(t, p, long)
	if c := counters(t, g); c.Copied != 0 || c.Uncopied != 0 || c.Pass != 1 {
		t.Errorf("copied though nobody reads: %+v", c)
	}
	c := r.copies(t, g)
	var again *Copies
	err := r.gate.Do(func() (err error) { again, err = g.OpenCopies(); return err })
	if !errors.Is(err, ErrCopiesRead) {
		t.Fatalf("a second reader: %v, %v", again, err)
	}

	before := MonotonicNow()
	sizes := []int{60, 61, 63, 64, 127, 239, 240, 241, 1000, len(long)}
	for _, n := range sizes {
		if got := send(t, p, long[:n]); got != pass {
			t.Errorf("%d bytes: action %d", n, got)
		}
	}
	var frames [64][]byte
	n := c.Receive(frames[:4])
	n += c.Receive(frames[n:])
	if n != len(sizes) {
		t.Fatalf("%d copies of %d packets", n, len(sizes))
	}
	if at, size := c.Last(); at < before || at > MonotonicNow() || size != 127+239+240+241+1000+len(long) {
		t.Errorf("the last %d bytes came at %d, it is %d", size, at, MonotonicNow())
	}
	for i, size := range sizes {
		if want := long[:min(size, 240)]; !bytes.Equal(frames[i], want) {
			t.Errorf("%d bytes: the copy is\n%x, want\n%x", size, frames[i], want)
		}
	}
	c.Release()

	must(t, g.PutRules([]Rule{{ID: 1, Action: policy.Drop, Match: policy.Match{Dst: pfx("203.0.113.0/24")}}}))
	send(t, p, udp("192.0.2.1", "203.0.113.7").frame(t))
	known := udp("192.0.2.1", "198.51.100.9")
	must(t, g.AllowFlow([]FlowKey{{
		Src: host(known.src).Addr().As16(), Dst: host(known.dst).Addr().As16(), SrcPort: known.sport, DstPort: known.dport, Proto: 17,
	}}))
	send(t, p, known.frame(t))
	if n := c.Receive(frames[:]); n != 0 {
		t.Errorf("%d copies of a dropped packet and one of a known flow", n)
	}
	if x := counters(t, g); x.Copied != uint64(len(sizes)) || x.Metered != 1 || x.Drop != 1 || x.Pass != uint64(len(sizes))+2 {
		t.Errorf("%+v", x)
	}

	// A full ring: packets pass, and copies go on when there is room.
	const many = 40_000
	_, err = p.Run(&ebpf.RunOptions{Data: long[:60], Repeat: many})
	must(t, err)
	x := counters(t, g)
	room := x.Copied - uint64(len(sizes))
	if room < 30_000 || x.Uncopied != many-room || x.Pass != uint64(len(sizes))+2+many {
		t.Errorf("%+v", x)
	}
	got := 0
	for n = -1; n != 0; c.Release() {
		n = c.Receive(frames[:])
		got += n
		for i := range n {
			if !bytes.Equal(frames[i], long[:60]) {
				t.Fatalf("copy %d is %x", got, frames[i])
			}
		}
	}
	if uint64(got) != room {
		t.Errorf("%d of %d copies were read", got, room)
	}
	send(t, p, long)
	if n := c.Receive(frames[:]); n != 1 {
		t.Errorf("%d copies after the ring was emptied", n)
	}
	c.Release()
	must(t, c.Stop())
	send(t, p, long)
	if n := c.Receive(frames[:]); n != 0 {
		t.Errorf("%d copies after Stop", n)
	}
}
