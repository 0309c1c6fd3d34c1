package xdp

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/tidegate-mesh/tidegate/libs/netlab"
	"github.com/tidegate-mesh/tidegate/libs/policy"
)

func outOfState(id uint64, dst string, protocol uint8) Rule {
	return Rule{ID: id, Action: policy.Drop, Match: policy.Match{Dst: pfx(dst), HasProtocol: true, Protocol: protocol, OutOfState: true}}
}

// learnt ends the minute in which everything passes.
func learnt(t *testing.T, gates ...*Gate) {
	t.Helper()
	for _, g := range gates {
		must(t, g.setConfig(func(c *config) { c.TrackedSince = 1 }))
		must(t, g.maps.GatePair.Update(uint32(pairSince), uint64(1), ebpf.UpdateAny))
	}
}

// TestOutOfState: what comes in at the left port passes when something went out at the right one before.
func TestOutOfState(t *testing.T) {
	for _, f := range []struct{ name, server, client, other, net string }{
		{"IPv4", "198.51.100.7", "192.0.2.1", "192.0.2.2", "198.51.100.0/24"},
		{"IPv6", "2001:db8:9::7", "2001:db8:1::1", "2001:db8:1::2", "2001:db8:9::/48"},
	} {
		t.Run(f.name, func(t *testing.T) {
			r := newRig(t, 1)
			left := r.open(t, Options{Mode: ModeInline})
			right := r.open(t, Options{Iface: "right", Mode: ModeInline, Peer: "left"})
			in, out := program(t, left), program(t, right)
			rules := []Rule{outOfState(1, f.net, 6), outOfState(2, f.net, 17)}
			must(t, left.PutRules(rules))
			must(t, right.PutRules(rules))
			back := func(p pkt) []byte { // the same, the other way
				p.src, p.dst, p.sport, p.dport = p.dst, p.src, p.dport, p.sport
				return p.frame(t)
			}
			step := func(what string, prog *ebpf.Program, frame []byte, want uint32) {
				t.Helper()
				if got := send(t, prog, frame); got != want {
					t.Errorf("%s: action %d, want %d", what, got, want)
				}
			}
			segment, answer := tcp(f.client, f.server, "A"), udp(f.client, f.server)
			step("in the first minute", in, segment.frame(t), redirect)
			learnt(t, left, right)
			step("a segment of no connection", in, segment.frame(t), drop)
			step("a SYN-ACK that answers no SYN", in, tcp(f.client, f.server, "SA").frame(t), drop)
			step("an answer that nobody asked for", in, answer.frame(t), drop)
			step("a SYN", in, tcp(f.client, f.server, "S").frame(t), redirect)
			step("a segment of a connection that was not accepted", in, segment.frame(t), drop)
			step("a later fragment", in, udp(f.client, f.server).with(func(p *pkt) { p.offset = 100 }).frame(t), redirect)
			step("another protocol", in, udp(f.client, f.server).with(func(p *pkt) { p.proto = 132 }).frame(t), redirect)

			step("the server's SYN-ACK", out, back(tcp(f.client, f.server, "SA")), redirect)
			step("a segment of the connection", in, segment.frame(t), redirect)
			step("of another port", in, segment.with(func(p *pkt) { p.sport++ }).frame(t), drop)
			step("of another host", in, tcp(f.other, f.server, "A").frame(t), drop)
			step("the question", out, back(answer), redirect)
			step("its answer", in, answer.frame(t), redirect)
			step("the answer of another host", in, udp(f.other, f.server).frame(t), drop)
			step("a SYN of the server", out, back(tcp(f.other, f.server, "S")), redirect)
			step("the SYN-ACK that answers it", in, tcp(f.other, f.server, "SA").frame(t), redirect)

			c := counters(t, left)
			s, err := left.RuleStats(nil)
			must(t, err)
			if c.OutOfState != 7 || c.Drop != 7 || s[1].Dropped+s[2].Dropped != 7 || s[1].Packets != s[1].Dropped {
				t.Errorf("%+v, rules %+v", c, s)
			}
			// A line that has forgotten somebody lets everybody pass for a while.
			unknown := tcp(f.client, f.server, "A").with(func(p *pkt) { p.sport = 9999 })
			step("before", in, unknown.frame(t), drop)
			forgetful(t, left)
			step("after the lines had to forget", in, unknown.frame(t), redirect)

			rules[0].WouldDrop = true
			must(t, left.PutRules(rules[:1]))
			must(t, left.DeleteRules([]uint64{2}))
			got, err := left.Rules()
			must(t, err)
			if len(got) != 1 || got[0].Match != rules[0].Match || !got[0].WouldDrop {
				t.Errorf("read back %+v", got)
			}
			must(t, left.DeleteRules([]uint64{1}))
			if cfg, err := left.config(); err != nil || cfg.TrackedUsed != 0 {
				t.Errorf("without a rule packets are still remembered: %+v (%v)", cfg, err)
			}
		})
	}
}

// forgetful makes every line one that has just pushed out a talk.
func forgetful(t *testing.T, g *Gate) {
	t.Helper()
	n := int(g.maps.GateTalks.MaxEntries())
	keys, lines := make([]uint32, n), make([]talkLine, n)
	tick := uint32(MonotonicNow() >> 24) //nolint:gosec // as the program has it
	for i := range keys {
		keys[i], lines[i] = uint32(i), talkLine{Learns: 1, LearnsFrom: tick}
	}
	_, err := g.maps.GateTalks.BatchUpdate(keys, lines, nil)
	must(t, err)
}

// TestTalkLineFull: seven talks in a line, an eighth pushes out the oldest and the line learns; a talk whose time is over
// goes without that.
func TestTalkLineFull(t *testing.T) {
	r := newRig(t, 1)
	left := r.open(t, Options{Mode: ModeInline})
	right := r.open(t, Options{Iface: "right", Mode: ModeInline, Peer: "left"})
	must(t, right.PutRules([]Rule{outOfState(1, "198.51.100.0/24", 17)}))
	p := program(t, right)
	frame := udp("198.51.100.7", "192.0.2.1").frame(t)
	n := int(left.maps.GateTalks.MaxEntries())
	ahead := uint32(0)         // ticks of the first place, as a CPU writes whose coarse clock is before this one's
	fill := func(age uint64) { // with talks of this age, in seconds; at the last place the oldest
		t.Helper()
		keys, lines := make([]uint32, n), make([]talkLine, n)
		now := MonotonicNow()
		for i := range keys {
			keys[i] = uint32(i)
			for w := range talkWays {
				lines[i].Mark[w], lines[i].Tick[w] = 2, uint32((now-age*1e9)>>24)-uint32(w) //nolint:gosec // as the program has it
			}
			if ahead > 0 {
				lines[i].Tick[0] = uint32(now>>24) + ahead //nolint:gosec // as above
			}
		}
		_, err := left.maps.GateTalks.BatchUpdate(keys, lines, nil)
		must(t, err)
	}
	changed := func() (lines []talkLine) {
		t.Helper()
		all := make([]talkLine, n)
		var cursor ebpf.MapBatchCursor
		got, err := left.maps.GateTalks.BatchLookup(&cursor, make([]uint32, n), all, nil)
		if got != n {
			t.Fatalf("%d of %d lines: %v", got, n, err)
		}
		for _, l := range all {
			if l.Mark[talkWays-1] != 2 {
				lines = append(lines, l)
			}
		}
		return lines
	}
	fill(60)
	send(t, p, frame)
	if l := changed(); len(l) != 1 || l[0].Learns != 1 || l[0].Mark[0] != 2 {
		t.Errorf("a live talk is pushed out: %+v", l)
	}
	ahead = 60
	fill(60)
	send(t, p, frame)
	if l := changed(); len(l) != 1 || l[0].Learns != 1 || l[0].Mark[0] != 2 {
		t.Errorf("the newest talk is pushed out: %+v", l)
	}
	ahead = 0
	fill(3 * 3600)
	send(t, p, frame)
	if l := changed(); len(l) != 1 || l[0].Learns != 0 {
		t.Errorf("an old talk goes: %+v", l)
	}
}

// TestJoin: whoever opens in whatever order, the gates of a pair share what they remember; a gate that is alone, not
// inline or attached anew drops nothing for being out of state.
func TestJoin(t *testing.T) {
	r := newRig(t, 1)
	first := r.open(t, Options{}) // enforce comes before ingest, and its gate has no mode
	must(t, first.PutRules([]Rule{outOfState(1, "198.51.100.0/24", 6)}))
	frame := tcp("192.0.2.1", "198.51.100.7", "A").frame(t)
	stays := func(what string, g *Gate, want uint32) {
		t.Helper()
		learntOnly(t, g)
		if got := send(t, program(t, g), frame); got != want {
			t.Errorf("%s: action %d, want %d", what, got, want)
		}
	}
	stays("not inline", first, pass)
	left := r.open(t, Options{Mode: ModeInline})
	stays("alone", left, redirect)
	right := r.open(t, Options{Iface: "right", Mode: ModeInline, Peer: "left"})
	shared := func(what string, want bool, a, b *Gate) {
		t.Helper()
		same, err := sameMap(a.maps.GateTalks, b.maps.GateTalks)
		must(t, err)
		if same != want {
			t.Errorf("%s: shared %t, want %t", what, same, want)
		}
	}
	shared("both inline", true, left, right)
	stays("joined, in the first minute", left, redirect)
	learnt(t, left)
	stays("joined", left, drop)
	must(t, left.Close())
	left = r.open(t, Options{Mode: ModeInline})
	shared("opened again", true, left, right)
	stays("opened again", left, drop)
	anew := r.open(t, Options{Iface: "right", Geometry: Geometry{Rules: 32}})
	if anew.Reattached() == "" {
		t.Error("the right gate is not attached anew")
	}
	shared("attached anew", false, left, anew)
	stays("its partner is attached anew", left, redirect)
	again := r.open(t, Options{Iface: "right", Mode: ModeInline, Peer: "left"})
	shared("inline again", true, left, again)
	learnt(t, left)
	stays("joined again", left, drop)
}

// learntOnly ends the rule's own minute, not that of the pair.
func learntOnly(t *testing.T, g *Gate) {
	t.Helper()
	must(t, g.setConfig(func(c *config) { c.TrackedSince = 1 }))
}

// TestOutOfStateConnects: through a real bridge of two gates a kernel's connections, begun before and after the rule, and
// its questions work both ways; what belongs to none of them does not arrive.
func TestOutOfStateConnects(t *testing.T) {
	r := newRig(t, 1)
	inner, err := r.lab.Namespace(netlab.Ifname("i", "a"))
	must(t, err)
	client, server := netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("192.0.2.2/24")
	must(t, r.lab.Veth(netlab.End{NS: r.gate, Name: "wan"}, netlab.End{NS: r.outer, Name: "wanx", Addrs: []netip.Prefix{client}}, 1))
	must(t, r.lab.Veth(netlab.End{NS: r.gate, Name: "lan"}, netlab.End{NS: inner, Name: "lanx", Addrs: []netip.Prefix{server}}, 1))
	wan := r.open(t, Options{Iface: "wan", Mode: ModeInline, Peer: "lan"})
	lan := r.open(t, Options{Iface: "lan", Mode: ModeInline, Peer: "wan"})
	var l net.Listener
	must(t, inner.Do(func() (err error) {
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
			go func() { // echoes
				defer func() { _ = c.Close() }()
				buf := make([]byte, 64)
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					if _, err := c.Write(buf[:n]); err != nil {
						return
					}
				}
			}()
		}
	}()
	dial := func() (c net.Conn) {
		t.Helper()
		must(t, r.outer.Do(func() (err error) {
			c, err = net.DialTimeout("tcp", netip.AddrPortFrom(server.Addr(), 80).String(), 5*time.Second)
			return err
		}))
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	echo := func(what string, c net.Conn) {
		t.Helper()
		must(t, c.SetDeadline(time.Now().Add(5*time.Second)))
		if _, err := c.Write([]byte(what)); err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		if _, err := c.Read(make([]byte, 64)); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	before := dial()
	echo("without a rule", before)
	rule := outOfState(1, "192.0.2.2/32", 6)
	must(t, wan.PutRules([]Rule{rule}))
	must(t, lan.PutRules([]Rule{rule}))
	echo("while it learns", before)
	learnt(t, wan, lan)
	echo("a connection from before", before)
	for range 3 {
		echo("a new connection", dial())
	}
	c := counters(t, wan)
	if c.Drop != 0 || c.OutOfState != 0 || c.Forward == 0 {
		t.Errorf("good packets are dropped: %+v", c)
	}
	var fd int
	must(t, r.outer.Do(func() (err error) {
		dev, err := net.InterfaceByName("wanx")
		if err != nil {
			return err
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: dev.Index})
	}))
	defer func() { _ = unix.Close(fd) }()
	for _, flags := range []string{"A", "SA", "R", "FPA"} {
		for i := range 50 {
			_, err := unix.Write(fd, tcp("198.51.100.9", "192.0.2.2", flags).with(func(p *pkt) { p.sport = uint16(i) }).frame(t))
			must(t, err)
		}
	}
	if c = settle(t, wan, c.Seen+200); c.OutOfState != 200 || c.Drop != 200 {
		t.Errorf("of 200 packets of no connection: %+v", c)
	}
	echo("the oldest connection", before)
}
