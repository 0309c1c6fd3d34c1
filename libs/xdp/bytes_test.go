package xdp

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tidegate-mesh/tidegate/libs/policy"
)

// TestBytes sends frames of known sizes over a veth: each action counts exactly the bytes of its frames.
func TestBytes(t *testing.T) {
	r := newRig(t, 1)
	g := r.open(t, Options{Mode: ModeHost})
	must(t, g.PutRules([]Rule{
		{ID: 1, Action: policy.Drop, Match: policy.Match{Dst: pfx("198.51.100.0/24")}},
		{ID: 2, Action: policy.RateLimit, RatePPS: 1, Match: policy.Match{Dst: pfx("2001:db8::/32")}},
		{ID: 3, Action: policy.Count, Match: policy.Match{Dst: pfx("203.0.113.0/24")}},
	}))
	sized := func(payload int, vlans ...uint16) func(*pkt) {
		return func(p *pkt) { p.payload, p.vlans = payload, vlans }
	}
	const n = 50
	for _, tt := range []struct {
		name  string
		frame []byte
		of    func(c *Counters) (packets, bytes uint64)
	}{
		{"drop", udp("192.0.2.1", "198.51.100.7").frame(t), func(c *Counters) (uint64, uint64) { return c.Drop, c.Bytes.Drop }},
		{
			"drop with a tag", udp("192.0.2.1", "198.51.100.7").with(sized(1000, 5)).frame(t),
			func(c *Counters) (uint64, uint64) { return c.Drop, c.Bytes.Drop },
		},
		{"pass", udp("192.0.2.1", "192.0.2.9").with(sized(77)).frame(t), func(c *Counters) (uint64, uint64) { return c.Pass, c.Bytes.Pass }},
		{"count", udp("192.0.2.1", "203.0.113.7").with(sized(300)).frame(t), func(c *Counters) (uint64, uint64) { return c.Count, c.Bytes.Count }},
		{
			"rate limit", udp("2001:db8:1::1", "2001:db8::7").with(sized(1200)).frame(t),
			func(c *Counters) (uint64, uint64) { return c.RateLimited, c.Bytes.RateLimited },
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := counters(t, g)
			r.sendTimes(t, tt.frame, n)
			after := settle(t, g, before.Seen+n)
			size := uint64(len(tt.frame))
			p0, b0 := tt.of(&before)
			p1, b1 := tt.of(&after)
			want := uint64(n)
			if tt.name == "rate limit" {
				want = n - (after.Pass - before.Pass) // the burst is let through
			}
			if p1-p0 != want || want < n/2 || b1-b0 != want*size {
				t.Errorf("%d packets and %d bytes, want %d and %d", p1-p0, b1-b0, want, want*size)
			}
			if got := after.Bytes.Seen - before.Bytes.Seen; got != n*size {
				t.Errorf("%d bytes seen, want %d", got, n*size)
			}
		})
	}
}

// sendTimes sends a frame out of the far end of the port left.
func (r *rig) sendTimes(t *testing.T, frame []byte, n int) {
	t.Helper()
	must(t, r.outer.Do(func() error {
		dev, err := net.InterfaceByName("leftx")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		for range n {
			if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: dev.Index}); err != nil {
				return err
			}
		}
		return nil
	}))
}
