package xdp

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/netlab"
	"github.com/tidegate-mesh/tidegate/libs/policy"
)

// BenchmarkRateDelivered is what a socket behind the program receives in 10 s of UDP that is offered at more than a rule's
// rate over two queues; the bar is the rate ± 5%.
func BenchmarkRateDelivered(b *testing.B) {
	r := newRig(b, 1)
	server := netip.MustParseAddrPort("192.0.2.1:5000")
	must(b, r.lab.Veth(netlab.End{NS: r.gate, Name: "srv", Addrs: []netip.Prefix{netip.PrefixFrom(server.Addr(), 24)}},
		netlab.End{NS: r.outer, Name: "srvx", Addrs: []netip.Prefix{pfx("192.0.2.2/24")}}, 2))
	g := r.open(b, Options{Iface: "srv", Mode: ModeHost})
	var l *net.UDPConn
	must(b, r.gate.Do(func() (err error) {
		l, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(server))
		return err
	}))
	must(b, l.SetReadBuffer(8<<20))
	var received atomic.Uint64
	go func() {
		buf := make([]byte, 2048)
		for {
			if _, _, err := l.ReadFromUDPAddrPort(buf); err != nil {
				return
			}
			received.Add(1)
		}
	}()
	b.Cleanup(func() { must(b, l.Close()) })
	const payload = 100
	const frame = 14 + 20 + 8 + payload // bytes that a rate in bits counts
	for _, bb := range []struct {
		name    string
		rule    Rule
		rate    float64 // packets/s
		offered float64
	}{
		{"2000 packets a second", Rule{RatePPS: 2000}, 2000, 8000},
		{"40000 packets a second", Rule{RatePPS: 40_000}, 40_000, 80_000},
		{"10 Mbit a second", Rule{RateBPS: 10_000_000}, 10e6 / 8 / frame, 40e6 / 8 / frame},
	} {
		b.Run(bb.name, func(b *testing.B) {
			bb.rule.ID, bb.rule.Action = 1, policy.RateLimit
			bb.rule.Match = policy.Match{HasProtocol: true, Protocol: 17}
			must(b, g.PutRules([]Rule{bb.rule}))
			ctx, cancel := context.WithCancel(b.Context())
			var senders sync.WaitGroup
			for range 2 {
				ports := dialers(b, r.outer, server.String())
				senders.Add(1)
				go func() {
					defer senders.Done()
					offer(ctx, ports, bb.offered/2, make([]byte, payload))
				}()
			}
			for b.Loop() {
				time.Sleep(time.Second) // what the rate has to begin with
				before, from, start := queueSeen(b, g), received.Load(), time.Now()
				time.Sleep(10 * time.Second)
				n, took, after := float64(received.Load()-from), time.Since(start).Seconds(), queueSeen(b, g)
				b.ReportMetric(n/took, "delivered/s")
				b.ReportMetric(100*(n/took/bb.rate-1), "%off")
				seen := float64(after[0] - before[0] + after[1] - before[1])
				b.ReportMetric(seen/took, "offered/s")
				b.ReportMetric(100*float64(after[1]-before[1])/seen, "%queue1")
			}
			cancel()
			senders.Wait()
			b.ReportMetric(0, "ns/op")
		})
	}
}

// dialers are sockets of several ports, so that packets spread over queues.
func dialers(t testing.TB, from *netlab.NS, to string) (ports []net.Conn) {
	must(t, from.Do(func() error {
		for range 8 {
			c, err := net.Dial("udp4", to)
			if err != nil {
				return err
			}
			ports = append(ports, c)
		}
		return nil
	}))
	return ports
}

// offer sends at pps until ctx ends. What it was kept from sending for longer than 20 ms it leaves out.
func offer(ctx context.Context, ports []net.Conn, pps float64, payload []byte) {
	start := time.Now()
	for n := uint64(0); ctx.Err() == nil; time.Sleep(time.Millisecond) {
		due := uint64(pps * time.Since(start).Seconds())
		for n = max(n, due-min(due, uint64(pps/50))); n < due; n++ {
			_, _ = ports[n%uint64(len(ports))].Write(payload) // what does not go is not offered
		}
	}
	for _, c := range ports {
		_ = c.Close()
	}
}

func queueSeen(t testing.TB, g *Gate) (seen [2]uint64) {
	q, err := g.QueueCounters()
	must(t, err)
	for i := range seen {
		seen[i] = q[i].Seen
	}
	return seen
}
