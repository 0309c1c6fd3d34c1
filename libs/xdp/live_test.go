package xdp

import (
	"errors"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/tidegate-mesh/tidegate/libs/policy"
)

// sender sends frames out of an interface of the namespace outer, by a raw socket on one CPU.
func (r *rig) sender(t *testing.T, iface string, cpu int, frames [][]byte, pause time.Duration, stop *atomic.Bool) (sent uint64) {
	t.Helper()
	err := r.outer.Do(func() error {
		var set unix.CPUSet
		var old unix.CPUSet
		if err := unix.SchedGetaffinity(0, &old); err != nil {
			return err
		}
		set.Set(cpu % runtime.NumCPU())
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return err
		}
		defer func() { _ = unix.SchedSetaffinity(0, &old) }()
		dev, err := net.InterfaceByName(iface)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		to := &unix.SockaddrLinklayer{Ifindex: dev.Index}
		for i := 0; !stop.Load(); i++ {
			err := unix.Sendto(fd, frames[i%len(frames)], 0, to)
			if errors.Is(err, unix.ENOBUFS) {
				continue
			}
			if err != nil {
				return err
			}
			sent++
			if i%16 == 15 {
				time.Sleep(pause)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return sent
}

// settle waits until the gate has seen n packets, for at most 2 s.
func settle(t *testing.T, g *Gate, n uint64) Counters {
	t.Helper()
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if c := counters(t, g); c.Seen >= n || time.Now().After(end) {
			return c
		}
	}
}

// TestUpgrade exchanges the program under traffic: every packet that was sent is seen and accounted, the
// counters rise on, and the rules hold throughout.
func TestUpgrade(t *testing.T) {
	r := newRig(t, 1)
	g := r.open(t, Options{Mode: ModeInline})
	must(t, g.PutRules([]Rule{{ID: 1, Action: policy.Drop, Match: policy.Match{Dst: pfx("198.51.100.0/24")}}}))
	frames := [][]byte{udp("192.0.2.1", "198.51.100.7").frame(t), udp("192.0.2.1", "203.0.113.7").frame(t), udp("2001:db8::1", "2001:db8::2").frame(t)}
	var stop atomic.Bool
	var sent uint64
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		sent = r.sender(t, "leftx", 0, frames, 200*time.Microsecond, &stop)
	}()
	programs := map[ebpf.ProgramID]bool{}
	var last uint64
	for range 10 {
		var m meta
		must(t, g.maps.GateMeta.Lookup(uint32(0), &m))
		m.Build++ // as if another build had pinned
		must(t, g.maps.GateMeta.Update(uint32(0), &m, ebpf.UpdateAny))
		next := r.open(t, Options{})
		if next.Reattached() != "" {
			t.Errorf("re-attached instead of upgraded: %s", next.Reattached())
		}
		_, id, err := linkTarget(g.link)
		must(t, err)
		programs[id] = true
		must(t, g.Alive())
		time.Sleep(50 * time.Millisecond)
		if c := counters(t, g); c.Seen <= last {
			t.Errorf("seen stays at %d", c.Seen)
		} else {
			last = c.Seen
		}
	}
	stop.Store(true)
	wg.Wait()
	if len(programs) != 10 {
		t.Errorf("%d programs in 10 upgrades", len(programs))
	}
	c := settle(t, g, sent)
	if c.Seen != sent {
		t.Errorf("seen %d of %d", c.Seen, sent)
	}
	if want := (sent + 2) / 3; c.Drop != want || c.Forward != sent-want {
		t.Errorf("sent %d, dropped %d, forwarded %d", sent, c.Drop, c.Forward)
	}
	t.Logf("%d packets through %d upgrades", sent, len(programs))
}

// TestQueues: four rx queues, two senders; every queue counts, and they add up.
func TestQueues(t *testing.T) {
	r := newRig(t, 4)
	g := r.open(t, Options{Mode: ModeInline})
	if n := g.queuesIn(t, r); n != 4 {
		t.Fatalf("%d queues, want 4", n)
	}
	var frames [][]byte
	for i := range 256 {
		frames = append(frames, udp("192.0.2.1", "198.51.100.7").with(func(p *pkt) { p.sport = uint16(i) }).frame(t),
			udp("2001:db8::1", "2001:db8::7").with(func(p *pkt) { p.sport = uint16(i) }).frame(t))
	}
	var stop atomic.Bool
	var sent [2]uint64
	var wg sync.WaitGroup
	for i := range sent {
		wg.Add(1)
		go func() {
			defer wg.Done()
			sent[i] = r.sender(t, "leftx", i, frames, 200*time.Microsecond, &stop)
		}()
	}
	for range 20 { // the ledger holds at every moment
		counters(t, g)
		time.Sleep(20 * time.Millisecond)
	}
	stop.Store(true)
	wg.Wait()
	c := settle(t, g, sent[0]+sent[1])
	if c.Seen != sent[0]+sent[1] || c.Forward != c.Seen {
		t.Errorf("sent %d and %d, %+v", sent[0], sent[1], c)
	}
	queues, err := g.QueueCounters()
	must(t, err)
	if len(queues) != 4 {
		t.Fatalf("%d queues have counted, want 4", len(queues))
	}
	for i := range queues {
		if queues[i].Seen == 0 {
			t.Errorf("queue %d has seen nothing", i)
		}
	}
	t.Logf("%+v", queues)
}

// TestNoGap changes a rule's match back and forth under traffic that both matches select: nothing gets by.
func TestNoGap(t *testing.T) {
	r := newRig(t, 1)
	g := r.open(t, Options{Mode: ModeHost})
	p := program(t, g)
	frame := udp("192.0.2.1", "198.51.100.7").frame(t)
	matches := []policy.Match{{Dst: pfx("198.51.100.7/32")}, {Src: pfx("192.0.2.0/24")}, {}, {HasProtocol: true, Protocol: 17}}
	must(t, g.PutRules([]Rule{{ID: 1, Action: policy.Drop, Match: matches[0]}}))
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for !stop.Load() {
			if _, err := p.Run(&ebpf.RunOptions{Data: frame, Repeat: 1000}); err != nil && !errors.Is(err, unix.EINTR) {
				t.Error(err)
				return
			}
		}
	}()
	for i := range 60 {
		must(t, g.PutRules([]Rule{{ID: 1, Action: policy.Drop, Match: matches[i%len(matches)]}}))
	}
	stop.Store(true)
	wg.Wait()
	s, err := g.RuleStats(nil)
	must(t, err)
	if c := counters(t, g); c.Pass != 0 || c.Drop != c.Seen || s[1].Packets != c.Seen {
		t.Errorf("%+v, rule %+v", c, s[1])
	}
}

// BenchmarkDrop is the program's time a packet by BPF_PROG_TEST_RUN, without driver and sender.
func BenchmarkDrop(b *testing.B) {
	r := newRig(b, 1)
	g := r.open(b, Options{Mode: ModeHost})
	p := program(b, g)
	frame := udp("192.0.2.1", "198.51.100.7").frame(b)
	many := func(n int) (rules []Rule) {
		for i := range n {
			rules = append(rules, Rule{ID: uint64(i + 1), Action: policy.Drop, Match: policy.Match{Src: pfx("192.0.2.1/32"), HasProtocol: true, Protocol: 17,
				HasSrcPort: true, SrcPort: uint16(1000 + i)}})
		}
		return rules
	}
	var masks []Rule
	for i := range 8 {
		masks = append(masks, Rule{ID: uint64(i + 1), Action: policy.Drop, Match: policy.Match{Dst: pfx("203.0.113.0/24"), LengthMin: uint16(i)}})
	}
	masks[7].Match.Dst = pfx("198.51.0.0/16")
	for _, bb := range []struct {
		name  string
		rules []Rule
	}{
		{"no rule, pass", nil}, {"1 rule", many(1)}, {"1000 rules", many(1000)}, {"8 masks", masks},
		{"rate limit", []Rule{{ID: 1, Action: policy.RateLimit, RatePPS: 1000}}},
	} {
		b.Run(bb.name, func(b *testing.B) {
			must(b, g.PutRules(bb.rules))
			defer func() {
				for i := range bb.rules {
					must(b, g.DeleteRules([]uint64{bb.rules[i].ID}))
				}
			}()
			_, per, err := p.Benchmark(frame, b.N, nil)
			must(b, err)
			b.ReportMetric(float64(per.Nanoseconds()), "ns/packet")
		})
	}
}

// BenchmarkPutRules is the time to put and delete 1,000 rules, and a single rule beside them.
func BenchmarkPutRules(b *testing.B) {
	r := newRig(b, 1)
	g := r.open(b, Options{Mode: ModeHost})
	var rules []Rule
	var ids []uint64
	for i := range 1000 {
		rules = append(rules, Rule{ID: uint64(i + 1), Action: policy.Drop, Match: policy.Match{HasProtocol: true, Protocol: 17, HasDstPort: true, DstPort: uint16(i)}})
		ids = append(ids, uint64(i+1))
	}
	b.Run("1000", func(b *testing.B) {
		for range b.N {
			must(b, g.PutRules(rules))
			must(b, g.DeleteRules(ids))
		}
	})
	must(b, g.PutRules(rules[1:]))
	b.Run("1", func(b *testing.B) {
		for range b.N {
			must(b, g.PutRules(rules[:1]))
			must(b, g.DeleteRules(ids[:1]))
		}
	})
	b.Run("1 renewed", func(b *testing.B) {
		for range b.N {
			must(b, g.PutRules(rules[1:2]))
		}
	})
	b.Run("1000 stats", func(b *testing.B) {
		for range b.N {
			_, err := g.RuleStats(nil)
			must(b, err)
		}
	})
}
