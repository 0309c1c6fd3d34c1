package enforce

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus/bustest"
	"github.com/tidegate-mesh/tidegate/libs/netlab"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
)

// link is a veth pair: the node's end is in the test's namespace, the sender's in one of its own.
type link struct {
	iface, bpffs string
	sender       *netlab.NS
	from, to     netip.Addr
	arrived      atomic.Uint64
	port         uint16
}

// newLink makes the process's link of that number.
func newLink(t testing.TB, number int) *link {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("TIDEGATE_CI") == "1" {
			t.Fatal("needs root for network namespaces and BPF")
		}
		t.Skip("needs root for network namespaces and BPF")
	}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	lab, err := netlab.New("tge")
	check(err)
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	// /30s of the benchmark network (RFC 2544), by process, so that two runs do not meet.
	third := byte(os.Getpid() % 250)
	l := &link{
		iface: netlab.Ifname("tge", fmt.Sprint("a", number)), bpffs: filepath.Join(t.TempDir(), "bpf"),
		to: netip.AddrFrom4([4]byte{198, 19, third, byte(4*number + 1)}), from: netip.AddrFrom4([4]byte{198, 19, third, byte(4*number + 2)}),
	}
	unmount, err := netlab.BPFFS(l.bpffs)
	check(err)
	t.Cleanup(func() {
		if err := errors.Join(xdp.Remove(l.bpffs, l.iface), unmount()); err != nil {
			t.Error(err)
		}
	})
	l.sender, err = lab.Namespace(fmt.Sprint("s", number))
	check(err)
	check(lab.Veth(netlab.End{Name: l.iface, Addrs: []netip.Prefix{netip.PrefixFrom(l.to, 30)}},
		netlab.End{NS: l.sender, Name: netlab.Ifname("tge", fmt.Sprint("b", number)), Addrs: []netip.Prefix{netip.PrefixFrom(l.from, 30)}}, 1))

	sock, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(l.to, 0)))
	check(err)
	l.port = sock.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	go func() {
		buf := make([]byte, 64)
		for {
			if _, _, err := sock.ReadFromUDP(buf); err != nil {
				return
			}
			l.arrived.Add(1)
		}
	}()
	var conn *net.UDPConn
	check(l.sender.Do(func() (err error) {
		conn, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(l.to, l.port)))
		return err
	}))
	stop := make(chan struct{})
	go func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				_, _ = conn.Write([]byte("x")) // a full queue or an ICMP error is nothing to the test
			}
		}
	}()
	t.Cleanup(func() { close(stop); _ = conn.Close(); _ = sock.Close() })
	bustest.Wait(t, "packets before any rule", func() bool { return l.arrived.Load() > 10 })
	return l
}

// quiet reports how many packets arrived during d.
func (l *link) during(d time.Duration) uint64 {
	before := l.arrived.Load()
	time.Sleep(d)
	return l.arrived.Load() - before
}

func TestRealLink(t *testing.T) {
	l := newLink(t, 0)
	r := newRig(t, func(c *Config) { c.Ifaces, c.BPFFS = []string{l.iface}, l.bpffs })
	open := func() Opener { return openXDP(l.bpffs, telemetry.Discard("enforce")) }
	r.start(open())
	waitReady(t, r.svc)

	const lease = 2 * time.Second
	rule := drop("r1", lease)
	rule.Match = policy.Match{
		Src: netip.PrefixFrom(l.from, 32), Dst: netip.PrefixFrom(l.to, 32), Protocol: 17, HasProtocol: true, DstPort: l.port, HasDstPort: true,
	}
	begin := time.Now()
	rule.AttackFirstNs = begin.UnixNano()
	r.put(rule)
	f := r.event("r1", evFirstDrop)
	ttfd := time.Duration(f.GetTimeToFirstDropNs())
	if ttfd <= 0 || ttfd > time.Second {
		t.Errorf("first drop after %s", ttfd)
	}
	t.Logf("put to first drop, kernel time: %s; watch to map: %s", ttfd, time.Duration(r.event("r1", evApplied).GetApplyNs()))
	if n := l.during(lease + lease/2); n != 0 {
		t.Errorf("%d packets passed a rule in force that is hit", n)
	}
	r.event("r1", evRenewed)
	if e := r.event("r1", evHits); e.GetPackets() == 0 || e.GetBytes() == 0 {
		t.Errorf("hits %v", e)
	}

	before := l.arrived.Load()
	r.stop()
	r.start(open())
	waitReady(t, r.svc)
	if n := l.arrived.Load() - before; n != 0 {
		t.Errorf("%d packets passed during the restart", n)
	}
	if n := r.count("r1", evApplied); n != 1 {
		t.Errorf("applied %d times: the restart did not keep the entry", n)
	}
	families, err := r.tel.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	dropped := 0.0
	for _, f := range families {
		if f.GetName() != "tidegate_xdp_packets_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == "drop" {
				dropped = m.GetCounter().GetValue()
			}
		}
	}
	if dropped == 0 {
		t.Error("tidegate_xdp_packets_total{action=drop} is 0")
	}

	// Nobody renews any more: the kernel lets the rule decay at its deadline.
	r.stop()
	stopped := time.Now()
	bustest.Wait(t, "the decay", func() bool { return l.during(20*time.Millisecond) > 0 })
	if d := time.Since(stopped); d > lease+200*time.Millisecond {
		t.Errorf("decayed %s after the service's end, lease %s", d, lease)
	}
	if l.during(50*time.Millisecond) == 0 {
		t.Error("the rule still drops after its deadline")
	}
}

func TestShadowOnRealLink(t *testing.T) {
	l := newLink(t, 0)
	r := newRig(t, func(c *Config) { c.Ifaces, c.BPFFS, c.Enforce = []string{l.iface}, l.bpffs, false })
	r.start(openXDP(l.bpffs, telemetry.Discard("enforce")))
	waitReady(t, r.svc)
	rule := drop("r1", time.Minute)
	rule.Match = policy.Match{Src: netip.PrefixFrom(l.from, 32)}
	r.put(rule)
	if e := r.event("r1", evHits); e.GetPackets() == 0 || !e.GetShadow() {
		t.Errorf("hits %v", e)
	}
	if l.during(100*time.Millisecond) == 0 {
		t.Error("shadow mode dropped")
	}
}

// TestApplyLatency measures a burst of rules from the put to the map, on a real gate.
func TestApplyLatency(t *testing.T) {
	l := newLink(t, 0)
	r := newRig(t, func(c *Config) { c.Ifaces, c.BPFFS = []string{l.iface}, l.bpffs })
	r.start(openXDP(l.bpffs, telemetry.Discard("enforce")))
	waitReady(t, r.svc)
	ctx := context.Background()
	put := make(map[string]time.Time)
	add := func(i int) string {
		rule := drop(fmt.Sprint("r", i), time.Minute)
		rule.Match = policy.Match{
			Src: netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), 32),
			Dst: netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, 0, byte(i / 256)}), 32),
		}
		put[rule.ID] = time.Now()
		r.put(rule)
		return rule.ID
	}
	measure := func(what string, ids []string) {
		t.Helper()
		var all []time.Duration
		bustest.Wait(t, "all applied", func() bool {
			all = all[:0]
			list, err := r.svc.ListRules(ctx, nil)
			for _, s := range list.GetRules() {
				if id := s.GetRule().GetId(); s.GetState() == "active" && slices.Contains(ids, id) {
					all = append(all, time.Unix(0, s.GetAppliedNs()).Sub(put[id]))
				}
			}
			return err == nil && len(all) == len(ids)
		})
		slices.Sort(all)
		n := len(all)
		t.Logf("put to map, %d rules %s: p50 %s, p99 %s, max %s", n, what, all[n/2], all[n*99/100], all[n-1])
		if all[n/2] > 100*time.Millisecond {
			t.Errorf("%s: median %s", what, all[n/2])
		}
	}
	var single, burst []string
	for i := range 50 {
		single = append(single, add(i))
		time.Sleep(10 * time.Millisecond)
	}
	measure("one every 10 ms", single)
	for i := range 400 { // below the burst of the rate guardrail
		burst = append(burst, add(50+i))
	}
	measure("back to back", burst)
}
