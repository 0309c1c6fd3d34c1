package xdp

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/tidegate-mesh/tidegate/libs/netlab"
	"github.com/tidegate-mesh/tidegate/libs/policy"
)

// passes reads the passed packets of rx queue 0, where test runs arrive, in one call.
func passes(t testing.TB, g *Gate) (n uint64) {
	t.Helper()
	perCPU := make([]kernelCounters, ebpf.MustPossibleCPU())
	must(t, g.maps.GateCounters.Lookup(uint32(0), &perCPU))
	for i := range perCPU {
		n += perCPU[i].Pass
	}
	return n
}

// TestSourceRate offers four times the rate from each of two sources for two seconds; a third one stays below it.
func TestSourceRate(t *testing.T) {
	r := newRig(t, 1)
	g := r.open(t, Options{Mode: ModeHost})
	p := program(t, g)
	sized := func(p *pkt) { p.payload = 1000 }
	v4 := func(src string) []byte { return udp(src, "198.51.100.7").with(sized).frame(t) }
	v6 := func(src string) []byte { return udp(src, "2001:db8:9::7").with(sized).frame(t) }
	for _, tt := range []struct {
		name   string
		rule   Rule
		frames [3][]byte
		rate   float64 // packets a second
	}{
		{"IPv4", Rule{RatePPS: 5000}, [3][]byte{v4("192.0.2.1"), v4("192.0.2.2"), v4("192.0.2.3")}, 5000},
		{"IPv6", Rule{RatePPS: 500}, [3][]byte{v6("2001:db8:0:1::1"), v6("2001:db8:0:2::1"), v6("2001:db8:0:3::1")}, 500},
		{"bits", Rule{RateBPS: 20e6}, [3][]byte{v4("192.0.2.1"), v4("192.0.2.2"), v4("192.0.2.3")}, 20e6 / 8 / float64(len(v4("192.0.2.1")))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.rule.ID, tt.rule.Action, tt.rule.PerSource = 1, policy.RateLimit, true
			must(t, g.DeleteRules([]uint64{1}))
			must(t, g.PutRules([]Rule{tt.rule}))
			const step, settle, length = 5 * time.Millisecond, time.Second / 2, 5 * time.Second / 2
			before := counters(t, g)
			start := time.Now()
			var passed [3]uint64
			var sent, quiet uint64
			var settled, idle time.Duration
			last := start
			offer := func(i int, n uint32) {
				from := passes(t, g)
				_, err := p.Run(&ebpf.RunOptions{Data: tt.frames[i], Repeat: n})
				must(t, err)
				passed[i] += passes(t, g) - from
				sent += uint64(n)
			}
			for at := time.Duration(0); at < length; at += step {
				time.Sleep(at - time.Since(start))
				if settled == 0 && at >= settle { // what it was ahead by at first is past
					settled, idle, passed[0], passed[1] = time.Since(start), 0, 0, 0
				}
				// A machine that keeps the test from sending for longer than the burst takes that from the rate.
				idle += max(0, time.Since(last)-sourceBurst)
				last = time.Now()
				offer(0, uint32(math.Ceil(4*tt.rate*step.Seconds())))
				offer(1, uint32(math.Ceil(4*tt.rate*step.Seconds())))
				if float64(quiet) < 0.8*tt.rate*time.Since(start).Seconds() {
					offer(2, 1)
					quiet++
				}
			}
			took := (time.Since(start) - settled - idle).Seconds()
			for i := range 2 {
				if dev := float64(passed[i])/took/tt.rate - 1; math.Abs(dev) > 0.05 {
					t.Errorf("source %d: %.0f/s pass, rate %.0f/s: off by %.1f%%", i, float64(passed[i])/took, tt.rate, 100*dev)
				}
			}
			if passed[2] < quiet || quiet == 0 {
				t.Errorf("%d of %d packets of the third source pass", passed[2], quiet)
			}
			c := counters(t, g)
			s, err := g.RuleStats([]uint64{1})
			must(t, err)
			if s[1].Packets != c.Seen-before.Seen || s[1].Packets < sent || // a signal makes a test run begin again
				s[1].Dropped != c.RateLimited-before.RateLimited || s[1].FirstDropNs == 0 || c.Drop != before.Drop || c.Forgotten != 0 {
				t.Errorf("%+v of %+v, sent %d", s[1], c, sent)
			}
		})
	}
}

// TestSourceBucket: who shares a rate and who does not.
func TestSourceBucket(t *testing.T) {
	r := newRig(t, 1)
	g := r.open(t, Options{Mode: ModeHost})
	p := program(t, g)
	at := func(dst string) Rule {
		// A frame of 60 bytes takes 4.8 s of this.
		return Rule{ID: uint64(len(dst)), Action: policy.RateLimit, RateBPS: 100, PerSource: true, Match: policy.Match{Dst: pfx(dst)}}
	}
	one, other := at("198.51.100.7/32"), at("198.51.0.0/17")
	must(t, g.PutRules([]Rule{one, other, at("2001:db8::/32")}))
	for _, s := range []struct {
		what string
		pkt  pkt
		want uint32
	}{
		{"first packet", udp("192.0.2.1", "198.51.100.7"), pass},
		{"second packet", udp("192.0.2.1", "198.51.100.7"), drop},
		{"another protocol and port", tcp("192.0.2.1", "198.51.100.7", "S"), drop},
		{"the source at another rule", udp("192.0.2.1", "198.51.100.8"), pass},
		{"another source", udp("192.0.2.2", "198.51.100.7"), pass},
		{"first packet, IPv6", udp("2001:db8:1::1", "2001:db8:9::7"), pass},
		{"another address of its /64", udp("2001:db8:1::99:1", "2001:db8:9::7"), drop},
		{"another /64", udp("2001:db8:1:1::1", "2001:db8:9::7"), pass},
	} {
		if got := send(t, p, s.pkt.frame(t)); got != s.want {
			t.Errorf("%s: action %d, want %d", s.what, got, s.want)
		}
	}
	frame := udp("192.0.2.1", "198.51.100.7").frame(t)
	must(t, g.PutRules([]Rule{one}))
	if got := send(t, p, frame); got != drop {
		t.Errorf("after the rule's renewal: action %d", got)
	}
	one.RateBPS = 200
	must(t, g.PutRules([]Rule{one}))
	if got := send(t, p, frame); got != pass {
		t.Errorf("after a change of its rate: action %d", got)
	}
	one.WouldDrop = true
	must(t, g.PutRules([]Rule{one}))
	must(t, g.DeleteRules([]uint64{other.ID}))
	if got := send(t, p, frame); got != pass {
		t.Errorf("in shadow: action %d", got)
	}
	back, err := g.Rules()
	must(t, err)
	for _, b := range back {
		if !b.PerSource {
			t.Errorf("read back %+v", b)
		}
	}
	for _, bad := range []Rule{
		{ID: 5, Action: policy.Drop, PerSource: true},
		{ID: 5, Action: policy.RateLimit, PerSource: true},
		{ID: 5, Action: policy.RateLimit, RatePPS: 1, PerSource: true, SYNRetry: true, Match: retryRule(1).Match},
	} {
		if g.PutRules([]Rule{bad}) == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
}

// TestSourceTableFull: in a table of four places a fifth source passes and is limited; the one that it pushed out begins
// anew. Places whose source's next packet is due are free.
func TestSourceTableFull(t *testing.T) {
	r := newRig(t, 1)
	g := r.open(t, Options{Mode: ModeHost, Geometry: Geometry{Sources: 4}})
	p := program(t, g)
	must(t, g.PutRules([]Rule{{ID: 1, Action: policy.RateLimit, RateBPS: 60 * 8 / 3, PerSource: true}})) // a frame in 3 s
	expect := func(source int, want uint32, forgotten uint64) {
		t.Helper()
		if got := send(t, p, udp(fmt.Sprintf("192.0.2.%d", source), "198.51.100.7").frame(t)); got != want {
			t.Errorf("source %d: action %d, want %d", source, got, want)
		}
		if c := counters(t, g); c.Forgotten != forgotten {
			t.Errorf("source %d: %d sources are forgotten, want %d", source, c.Forgotten, forgotten)
		}
	}
	for _, want := range []uint32{pass, drop} {
		for i := range 4 {
			expect(i, want, 0)
		}
	}
	expect(4, pass, 1)
	expect(4, drop, 1)
	expect(3, drop, 1)
	expect(0, pass, 2)
	time.Sleep(3100 * time.Millisecond)
	for i := range 4 {
		expect(100+i, pass, 2)
	}
}

// TestSourceMany: of 100,000 sources each has its own rate; only those that a full line pushed out pass twice.
func TestSourceMany(t *testing.T) {
	r := newRig(t, 1)
	g := r.open(t, Options{Mode: ModeHost})
	p := program(t, g)
	must(t, g.PutRules([]Rule{{ID: 1, Action: policy.RateLimit, RateBPS: 1, PerSource: true}}))
	frame := udp("10.0.0.0", "198.51.100.7").frame(t)
	const sources = 100_000
	for round := range 2 {
		for i := range sources {
			frame[27], frame[28], frame[29] = byte(i>>16), byte(i>>8), byte(i)
			send(t, p, frame)
		}
		c := counters(t, g)
		if round == 0 && c.Pass != sources {
			t.Errorf("%d of %d sources pass once", c.Pass, sources)
		}
		if twice := c.Pass - sources; twice > c.Forgotten || twice > sources/1000 {
			t.Errorf("%d of %d sources pass twice, %d were forgotten", twice, sources, c.Forgotten)
		}
	}
}

// TestSourceOnTwoCPUs: one source's packets on as many CPUs as there are have one rate.
func TestSourceOnTwoCPUs(t *testing.T) {
	r := newRig(t, 1)
	g := r.open(t, Options{Mode: ModeHost})
	p := program(t, g)
	const rate = 100_000
	must(t, g.PutRules([]Rule{{ID: 1, Action: policy.RateLimit, RatePPS: rate, PerSource: true}}))
	frame := udp("192.0.2.1", "198.51.100.7").frame(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for range 2 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for ctx.Err() == nil {
				if _, err := p.Run(&ebpf.RunOptions{Data: frame, Repeat: 10000}); err != nil {
					t.Error(err)
					return
				}
			}
		}()
	}
	time.Sleep(time.Second / 2)
	from, start := passes(t, g), time.Now()
	time.Sleep(2 * time.Second)
	n, took := passes(t, g)-from, time.Since(start).Seconds()
	if dev := float64(n)/took/rate - 1; math.Abs(dev) > 0.05 {
		t.Errorf("%.0f/s pass, rate %d/s: off by %.1f%%", float64(n)/took, rate, 100*dev)
	}
}

// TestSourceRateDelivered counts what sockets behind the program receive: of two hosts that send four times the rate from
// several ports, over two queues, each gets the rate; a third one within it loses nothing.
func TestSourceRateDelivered(t *testing.T) {
	r := newRig(t, 1)
	const rate, settle, length = 2000, time.Second, 5 * time.Second
	server := netip.MustParseAddrPort("192.0.2.1:5000")
	hosts := []string{"192.0.2.2", "192.0.2.3", "192.0.2.4"}
	pps := []float64{4 * rate, 4 * rate, 0.8 * rate}
	inside := netlab.End{NS: r.gate, Name: "srv", Addrs: []netip.Prefix{netip.PrefixFrom(server.Addr(), 24)}}
	outside := netlab.End{NS: r.outer, Name: "srvx"}
	for _, h := range hosts {
		outside.Addrs = append(outside.Addrs, pfx(h+"/24"))
	}
	must(t, r.lab.Veth(inside, outside, 2))
	g := r.open(t, Options{Iface: "srv", Mode: ModeHost})
	must(t, g.PutRules([]Rule{{ID: 1, Action: policy.RateLimit, RatePPS: rate, PerSource: true, Match: policy.Match{HasProtocol: true, Protocol: 17}}}))
	var l *net.UDPConn
	must(t, r.gate.Do(func() (err error) {
		l, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(server))
		return err
	}))
	must(t, l.SetReadBuffer(8<<20))
	var received, sent [3]atomic.Uint64
	var idle [3]atomic.Int64 // ns in which a host was kept from sending for longer than the burst
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		buf := make([]byte, 64)
		for {
			_, from, err := l.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			received[from.Addr().As4()[3]-2].Add(1)
		}
	}()
	ctx, cancel := context.WithCancel(t.Context())
	var senders sync.WaitGroup
	for i, h := range hosts {
		var ports []net.Conn
		must(t, r.outer.Do(func() error {
			for range 8 {
				d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(h)}}
				c, err := d.Dial("udp4", server.String())
				if err != nil {
					return err
				}
				ports = append(ports, c)
			}
			return nil
		}))
		senders.Add(1)
		go func() {
			defer senders.Done()
			start := time.Now()
			last := start
			for n := uint64(0); ctx.Err() == nil; time.Sleep(time.Millisecond) {
				// Whoever was kept from sending goes on where it is now, not with a burst that a rate would not bear.
				idle[i].Add(int64(max(0, time.Since(last)-sourceBurst)))
				last = time.Now()
				due := uint64(pps[i] * time.Since(start).Seconds())
				for n = max(n, due-min(due, uint64(pps[i]/20))); n < due; n++ {
					if _, err := ports[n%8].Write([]byte("x")); err != nil && !errors.Is(err, net.ErrClosed) {
						t.Error(err)
						return
					}
					sent[i].Add(1)
				}
			}
			for _, c := range ports {
				_ = c.Close()
			}
		}()
	}
	time.Sleep(settle)
	var from [3]uint64
	for i := range received {
		from[i] = received[i].Load()
		idle[i].Store(0)
	}
	start := time.Now()
	time.Sleep(length)
	took := time.Since(start).Seconds()
	for i := range 2 {
		if got := float64(received[i].Load()-from[i]) / (took - time.Duration(idle[i].Load()).Seconds()); math.Abs(got/rate-1) > 0.05 {
			t.Errorf("host %d gets %.0f packets/s through, rate %d: off by %.1f%%", i, got, rate, 100*(got/rate-1))
		}
	}
	cancel()
	senders.Wait()
	time.Sleep(200 * time.Millisecond)
	must(t, l.Close())
	wg.Wait()
	if s, got := sent[2].Load(), received[2].Load(); s != got || s == 0 {
		t.Errorf("%d of %d packets of the host within the rate arrive", got, s)
	}
	c := counters(t, g)
	all := sent[0].Load() + sent[1].Load() + sent[2].Load()
	if arrived := received[0].Load() + received[1].Load() + received[2].Load(); all != arrived+c.RateLimited {
		t.Errorf("sent %d, arrived %d, over the rate %d", all, arrived, c.RateLimited)
	}
	queues, err := g.QueueCounters()
	must(t, err)
	if len(queues) != 2 || queues[0].Seen == 0 {
		t.Errorf("not spread over two queues: %+v", queues)
	}
}
