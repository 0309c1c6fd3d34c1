package xdp

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/netlab"
	"github.com/tidegate-mesh/tidegate/libs/policy"
)

// retryRule waits for retries of SYNs to a port.
func retryRule(pps uint64) Rule {
	return Rule{ID: 1, Action: policy.RateLimit, RatePPS: pps, SYNRetry: true, Match: policy.Match{
		HasProtocol: true, Protocol: 6, DstPort: 80, HasDstPort: true, TCPFlags: policy.SYN, TCPFlagsMask: policy.SYN | policy.ACK | policy.FIN | policy.RST,
	}}
}

// TestSYNRetry: a SYN passes when it comes again after half a second, and from then on its source's others do; a flood
// between the two changes nothing.
func TestSYNRetry(t *testing.T) {
	for _, f := range []struct{ name, client, near, other, server string }{
		{"IPv4", "192.0.2.1", "", "192.0.2.2", "198.51.100.7"},
		{"IPv6", "2001:db8:1::1", "2001:db8:1::99", "2001:db8:2::1", "2001:db8:9::7"},
	} {
		t.Run(f.name, func(t *testing.T) {
			r := newRig(t, 1)
			g := r.open(t, Options{Mode: ModeHost})
			p := program(t, g)
			must(t, g.PutRules([]Rule{retryRule(20)}))
			syn := func(src string, port uint16) []byte {
				return tcp(src, f.server, "S").with(func(p *pkt) { p.sport = port }).frame(t)
			}
			expect := func(what string, frame []byte, want uint32) {
				t.Helper()
				if got := send(t, p, frame); got != want {
					t.Errorf("%s: action %d, want %d", what, got, want)
				}
			}
			expect("first SYN", syn(f.client, 5000), drop)
			expect("first SYN of another", syn(f.other, 6000), drop)
			expect("the same at once", syn(f.client, 5000), drop)
			expect("a packet of a connection", tcp(f.client, f.server, "A").frame(t), pass)
			time.Sleep(600 * time.Millisecond)
			flood(t, g, syn(f.client, 1), 20000, 1)
			expect("another SYN of the source", syn(f.client, 5001), drop)
			expect("the same after 0.6 s", syn(f.client, 5000), pass)
			expect("the source's other connections", syn(f.client, 5001), pass)
			if f.near != "" {
				expect("an address of its /64", syn(f.near, 7), pass)
			}
			expect("another source with new ports", syn(f.other, 6001), drop)
			expect("another source's same", syn(f.other, 6000), pass)
			s, err := g.RuleStats([]uint64{1})
			must(t, err)
			// Of each retry the rule counts the dropped SYN and the passed one; the flood's are all dropped, or nearly.
			if c := counters(t, g); s[1].Dropped != c.Drop || s[1].Packets < c.Drop+2 || s[1].Packets > c.Drop+2+c.Drop/100 || s[1].FirstDropNs == 0 || c.RateLimited != 0 {
				t.Errorf("%+v of %+v", s[1], c)
			}
		})
	}
}

// flood sends SYNs of random sources and ports, others for each seed; hardly any may pass.
func flood(t *testing.T, g *Gate, frame []byte, n int, seed uint64) {
	t.Helper()
	p, rng, before := program(t, g), rand.New(rand.NewPCG(seed, 2)), counters(t, g) //nolint:gosec // reproducible
	at, l4 := 26, 34
	if frame[12] == 0x86 {
		at, l4 = 22, 54
	}
	for range n {
		binary.BigEndian.PutUint64(frame[at:], rng.Uint64()) // of IPv4, source and destination
		if at == 26 {
			copy(frame[30:], []byte{198, 51, 100, 7})
		}
		binary.BigEndian.PutUint16(frame[l4:], uint16(rng.Uint32())) //nolint:gosec // as meant
		send(t, p, frame)
	}
	if after := counters(t, g); after.Pass-before.Pass > uint64(n)/100 {
		t.Errorf("%d of %d SYNs of a flood pass", after.Pass-before.Pass, n)
	}
}

// TestSYNRetryRate: a known source gets the rule's rate and a second's worth at once; another's does not change it.
func TestSYNRetryRate(t *testing.T) {
	r := newRig(t, 1)
	g := r.open(t, Options{Mode: ModeHost})
	p := program(t, g)
	must(t, g.PutRules([]Rule{retryRule(10)}))
	frames := [][]byte{tcp("192.0.2.1", "198.51.100.7", "S").frame(t), tcp("192.0.2.2", "198.51.100.7", "S").frame(t)}
	for range 2 {
		for _, f := range frames {
			send(t, p, f)
		}
		time.Sleep(600 * time.Millisecond)
	}
	before := counters(t, g)
	for range 100 {
		send(t, p, frames[0])
	}
	c := counters(t, g)
	if passed, limited := c.Pass-before.Pass, c.RateLimited-before.RateLimited; passed < 8 || passed > 13 || passed+limited != 100 {
		t.Errorf("%d of 100 pass, %d are over the rate", passed, limited)
	}
	if send(t, p, frames[1]) != pass {
		t.Error("another source pays for it")
	}
}

// TestSYNRetryObserved: in shadow and in tap mode nothing is dropped and nobody is remembered.
func TestSYNRetryObserved(t *testing.T) {
	r := newRig(t, 1)
	g := r.open(t, Options{Mode: ModeHost})
	p := program(t, g)
	rule := retryRule(10)
	rule.WouldDrop = true
	must(t, g.PutRules([]Rule{rule}))
	frame := tcp("192.0.2.1", "198.51.100.7", "S").frame(t)
	if got := send(t, p, frame); got != pass {
		t.Errorf("shadow: action %d", got)
	}
	back, err := g.Rules()
	must(t, err)
	if len(back) != 1 || !back[0].SYNRetry || back[0].RatePPS != 10 || !back[0].WouldDrop {
		t.Errorf("read back %+v", back)
	}
	time.Sleep(600 * time.Millisecond)
	rule.WouldDrop = false
	must(t, g.PutRules([]Rule{rule}))
	if got := send(t, p, frame); got != drop {
		t.Errorf("first SYN in force: action %d", got)
	}
	for _, bad := range []Rule{
		{ID: 2, Action: policy.RateLimit, RatePPS: 1, SYNRetry: true},
		{ID: 2, Action: policy.Drop, SYNRetry: true, Match: rule.Match},
		{ID: 2, Action: policy.RateLimit, RateBPS: 1, SYNRetry: true, Match: rule.Match},
	} {
		if g.PutRules([]Rule{bad}) == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
}

// TestSYNRetryConnects: the kernel's own TCP connects through a rule that waits for retries, the first time after its
// retransmission (RFC 6298: one second), from then on at once, while a flood of made-up sources is on.
func TestSYNRetryConnects(t *testing.T) {
	r := newRig(t, 1)
	server, client := netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("192.0.2.2/24")
	must(t, r.lab.Veth(netlab.End{NS: r.gate, Name: "srv", Addrs: []netip.Prefix{server}}, netlab.End{NS: r.outer, Name: "srvx", Addrs: []netip.Prefix{client}}, 1))
	g := r.open(t, Options{Iface: "srv", Mode: ModeHost})
	var l net.Listener
	must(t, r.gate.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(server.Addr(), 80).String())
		return err
	}))
	defer func() { _ = l.Close() }()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	dial := func() (took time.Duration, err error) {
		start := time.Now()
		err = r.outer.Do(func() error {
			c, err := net.DialTimeout("tcp", netip.AddrPortFrom(server.Addr(), 80).String(), 10*time.Second)
			if err == nil {
				_ = c.Close()
			}
			return err
		})
		return time.Since(start), err
	}
	connect := func() time.Duration {
		took, err := dial()
		must(t, err)
		return took
	}
	if d := connect(); d > 500*time.Millisecond {
		t.Fatalf("without a rule a connection takes %s", d)
	}
	must(t, g.PutRules([]Rule{retryRule(20)}))
	first, failed := make(chan time.Duration, 1), make(chan error, 1)
	go func() {
		took, err := dial()
		first <- took
		failed <- err
	}()
	frame := tcp("198.51.100.1", server.Addr().String(), "S").frame(t)
	for seed := uint64(0); len(failed) == 0; seed++ {
		flood(t, g, frame, 1000, seed)
	}
	must(t, <-failed)
	if d := <-first; d < 500*time.Millisecond || d > 4*time.Second {
		t.Errorf("the first connection takes %s, want a retransmission's second", d)
	}
	for range 3 {
		if d := connect(); d > 500*time.Millisecond {
			t.Errorf("a known client's connection takes %s", d)
		}
	}
}

// TestSYNRetryClock: the coarse clock of one CPU may be a tick behind that of the one which saw the source before.
func TestSYNRetryClock(t *testing.T) {
	r := newRig(t, 1)
	g := r.open(t, Options{Mode: ModeHost})
	p := program(t, g)
	must(t, g.PutRules([]Rule{retryRule(10)}))
	who := hostKey{Addr: netip.MustParseAddr("192.0.2.1").As16()}
	ahead := known{LastNs: MonotonicNow() + uint64(20*time.Millisecond)}
	must(t, g.maps.GateKnown.Put(&who, &ahead))
	if send(t, p, tcp("192.0.2.1", "198.51.100.7", "S").frame(t)) != pass {
		t.Error("a source that is known must show itself again")
	}
}
