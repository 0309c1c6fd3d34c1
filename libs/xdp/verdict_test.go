package xdp

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/policy"
)

var families = []struct {
	name, src, dst string
	srcNet, dstNet netip.Prefix
}{
	{"ipv4", "192.0.2.1", "198.51.100.7", pfx("192.0.2.0/24"), pfx("198.51.100.0/24")},
	{"ipv6", "2001:db8::1", "2001:db8:1::7", pfx("2001:db8::/64"), pfx("2001:db8:1::/64")},
}

func host(s string) netip.Prefix {
	a := netip.MustParseAddr(s)
	return netip.PrefixFrom(a, a.BitLen())
}

// TestModes covers what happens to undecided packets.
func TestModes(t *testing.T) {
	r := newRig(t, 2)
	for _, tt := range []struct {
		name   string
		o      Options
		reader bool
		want   uint32
		count  func(c *Counters) *uint64
	}{
		{"host", Options{Mode: ModeHost}, true, pass, func(c *Counters) *uint64 { return &c.Pass }},
		{"inline", Options{Mode: ModeInline}, true, redirect, func(c *Counters) *uint64 { return &c.Redirect }},
		{"inline without reader", Options{Mode: ModeInline}, false, redirect, func(c *Counters) *uint64 { return &c.Forward }},
		{"inline fail-closed", Options{Mode: ModeInline, FailClosed: true}, true, redirect, func(c *Counters) *uint64 { return &c.Redirect }},
		{"inline fail-closed without reader", Options{Mode: ModeInline, FailClosed: true}, false, drop, func(c *Counters) *uint64 { return &c.NoReader }},
		{"tap", Options{Mode: ModeTap}, true, redirect, func(c *Counters) *uint64 { return &c.Redirect }},
		{"tap that passes", Options{Mode: ModeTap, PassUnread: true}, true, redirect, func(c *Counters) *uint64 { return &c.Redirect }},
		{"tap that passes without reader", Options{Mode: ModeTap, PassUnread: true}, false, pass, func(c *Counters) *uint64 { return &c.Pass }},
		{"tap without reader", Options{Mode: ModeTap}, false, drop, func(c *Counters) *uint64 { return &c.NoReader }},
	} {
		for _, f := range families {
			t.Run(tt.name+" "+f.name, func(t *testing.T) {
				g := r.open(t, tt.o)
				if g.Mode() != tt.o.Mode {
					t.Errorf("mode %s, want %s", g.Mode(), tt.o.Mode)
				}
				if tt.reader {
					must(t, g.SetSocket(1, xskSocket(t)))
				}
				before := counters(t, g)
				if got := r.sendQueue(t, g, program(t, g), 1, udp(f.src, f.dst).frame(t)); got != tt.want {
					t.Errorf("action %d, want %d", got, tt.want)
				}
				after := counters(t, g)
				if d := *tt.count(&after) - *tt.count(&before); d != 1 || after.Seen-before.Seen != 1 {
					t.Errorf("counted %d of %d: %+v", d, after.Seen-before.Seen, after)
				}
				if unread := after.Unread - before.Unread; (unread == 1) != (tt.name == "inline without reader") {
					t.Errorf("unread %d", unread)
				}
				must(t, g.ClearSocket(1))
				must(t, g.ClearSocket(1))
			})
		}
	}
	g := r.open(t, Options{}) // keeps the mode
	if g.Mode() != ModeTap {
		t.Errorf("mode %s after ModeKeep, want tap", g.Mode())
	}
	if g.SetSocket(maxQueues, 0) == nil || g.ClearSocket(-1) == nil {
		t.Error("queues out of range are taken")
	}
	if _, err := r.try(Options{Mode: ModeInline, Peer: "none"}); !errors.Is(err, ErrNoInterface) {
		t.Errorf("missing peer: %v", err)
	}
}

// TestPeerGone: with nowhere to forward to, a packet is dropped and counted.
func TestPeerGone(t *testing.T) {
	r := newRig(t, 1)
	g := r.open(t, Options{Mode: ModeInline})
	must(t, g.maps.GatePeer.Delete(uint32(0)))
	if got := send(t, program(t, g), udp("192.0.2.1", "192.0.2.2").frame(t)); got != drop {
		t.Errorf("action %d, want drop", got)
	}
	if c := counters(t, g); c.NoReader != 1 || c.Unread != 1 {
		t.Errorf("%+v", c)
	}
}

// TestPrecedence covers which rule decides, for packets of both families.
func TestPrecedence(t *testing.T) {
	r := newRig(t, 1)
	g := r.open(t, Options{Mode: ModeHost})
	p := program(t, g)
	for _, f := range families {
		wide := policy.Match{Dst: f.dstNet}
		narrow := policy.Match{Dst: host(f.dst)}
		port := policy.Match{Dst: f.dstNet, HasProtocol: true, Protocol: 17, HasDstPort: true, DstPort: 53}
		for _, tt := range []struct {
			name  string
			rules []Rule
			want  uint32
			hits  []uint64 // packets by rule
		}{
			{"drop", []Rule{{Match: wide, Action: policy.Drop}}, drop, []uint64{1}},
			{"allow", []Rule{{Match: wide, Action: policy.Allow}}, pass, []uint64{1}},
			{"count", []Rule{{Match: wide, Action: policy.Count}}, pass, []uint64{1}},
			{"shadow", []Rule{{Match: wide, Action: policy.Drop, WouldDrop: true}}, pass, []uint64{1}},
			{"shadow rate", []Rule{{Match: wide, Action: policy.RateLimit, RatePPS: 1, WouldDrop: true}}, pass, []uint64{1}},
			{"narrow allow over wide drop", []Rule{{Match: wide, Action: policy.Drop}, {Match: narrow, Action: policy.Allow}}, pass, []uint64{0, 1}},
			{"narrow drop over wide allow", []Rule{{Match: wide, Action: policy.Allow, Priority: 9}, {Match: narrow, Action: policy.Drop}}, drop, []uint64{0, 1}},
			{"port over wide", []Rule{{Match: wide, Action: policy.Allow}, {Match: port, Action: policy.Drop}}, drop, []uint64{0, 1}},
			{"count does not shield", []Rule{{Match: wide, Action: policy.Drop}, {Match: narrow, Action: policy.Count}}, drop, []uint64{1, 1}},
			{"shadow does not shield", []Rule{{Match: wide, Action: policy.Drop}, {Match: narrow, Action: policy.Drop, WouldDrop: true}}, drop, []uint64{1, 1}},
			{"same match, priority", []Rule{{Match: wide, Action: policy.Drop, Priority: 1}, {Match: wide, Action: policy.Allow, Priority: 2}}, pass, []uint64{0, 1}},
			{"same match, priority, other order", []Rule{{Match: wide, Action: policy.Drop, Priority: 2}, {Match: wide, Action: policy.Allow, Priority: 1}}, drop, []uint64{1, 0}},
			{"same match, count and drop", []Rule{{Match: wide, Action: policy.Count}, {Match: wide, Action: policy.Drop}}, drop, []uint64{1, 1}},
			{"expired", []Rule{{Match: wide, Action: policy.Drop}, {Match: narrow, Action: policy.Allow, Expires: time.Now().Add(-time.Second)}}, drop, []uint64{1, 0}},
			{"not yet expired", []Rule{{Match: wide, Action: policy.Drop, Expires: time.Now().Add(time.Minute)}}, drop, []uint64{1}},
		} {
			t.Run(tt.name+" "+f.name, func(t *testing.T) {
				var ids []uint64
				for i := range tt.rules {
					tt.rules[i].ID = uint64(i + 1)
					ids = append(ids, tt.rules[i].ID)
				}
				must(t, g.PutRules(tt.rules))
				before := counters(t, g)
				frame := udp(f.src, f.dst).frame(t)
				if got := send(t, p, frame); got != tt.want {
					t.Errorf("action %d, want %d", got, tt.want)
				}
				if c := counters(t, g); c.Seen-before.Seen != 1 || (c.Drop-before.Drop == 1) != (tt.want == drop) {
					t.Errorf("%+v after %+v", c, before)
				}
				stats, err := g.RuleStats(nil)
				must(t, err)
				for i, want := range tt.hits {
					s := stats[ids[i]]
					dropped := want
					if tt.want != drop || tt.rules[i].Action != policy.Drop || tt.rules[i].WouldDrop {
						dropped = 0
					}
					if s.Packets != want || s.Bytes != want*uint64(len(frame)) || s.Dropped != dropped || s.FirstDrop.IsZero() != (dropped == 0) || s.LastHit.IsZero() != (want == 0) {
						t.Errorf("rule %d: %+v, want %d packets, %d dropped", ids[i], s, want, dropped)
					}
				}
				must(t, g.DeleteRules(append(ids, 77)))
				if got := send(t, p, frame); got != pass {
					t.Errorf("after delete: action %d", got)
				}
			})
		}
	}
	if set := g.table.masks; len(set) != 0 {
		t.Errorf("%d masks are left after all rules went", len(set))
	}
}

// TestTap: nothing is stopped there.
func TestTap(t *testing.T) {
	r := newRig(t, 1)
	g := r.open(t, Options{Mode: ModeTap})
	p := program(t, g)
	must(t, g.SetSocket(0, xskSocket(t)))
	for _, f := range families {
		must(t, g.PutRules([]Rule{{ID: 1, Action: policy.Drop, Match: policy.Match{Src: f.srcNet}}, {ID: 2, Action: policy.RateLimit, RatePPS: 1}}))
		must(t, g.PutHosts(3, policy.Drop, time.Time{}, []netip.Addr{netip.MustParseAddr(f.src)}))
		for range 3 {
			if got := r.sendQueue(t, g, p, 0, udp(f.src, f.dst).frame(t)); got != redirect {
				t.Errorf("%s: action %d, want redirect", f.name, got)
			}
		}
		stats, err := g.RuleStats([]uint64{1, 2})
		must(t, err)
		if stats[1].Packets == 0 || stats[2].Packets == 0 || stats[1].Dropped+stats[2].Dropped != 0 {
			t.Errorf("%+v", stats)
		}
	}
	if c := counters(t, g); c.Redirect != 6 || c.Count != 6 || c.Drop != 0 {
		t.Errorf("%+v", c)
	}
	s, err := g.ListStats(3)
	must(t, err)
	if s.Packets != 6 || s.Dropped != 0 {
		t.Errorf("list: %+v", s)
	}
}

// TestNever: never-block entries win over rules and lists, also inside and around each other.
func TestNever(t *testing.T) {
	r := newRig(t, 1)
	g := r.open(t, Options{Mode: ModeHost})
	p := program(t, g)
	must(t, g.PutRules([]Rule{{ID: 1, Action: policy.Drop}}))
	for _, f := range families {
		frame, back := udp(f.src, f.dst).frame(t), udp(f.dst, f.src).frame(t)
		other := f.dstNet.Addr().Next().String()
		check := func(what string, there, from, elsewhere uint32) {
			t.Helper()
			for i, x := range []struct {
				frame []byte
				want  uint32
			}{{frame, there}, {back, from}, {udp(f.src, other).frame(t), elsewhere}} {
				if got := send(t, p, x.frame); got != x.want {
					t.Errorf("%s %s, frame %d: action %d, want %d", f.name, what, i, got, x.want)
				}
			}
		}
		check("none", drop, drop, drop)
		must(t, g.PutNever([]Never{{Prefix: host(f.dst), Destination: true}}))
		check("destination", pass, drop, drop)
		must(t, g.PutNever([]Never{{Prefix: f.dstNet, Source: true}}))
		check("inside a source net", pass, pass, drop)
		must(t, g.PutNever([]Never{{Prefix: f.dstNet, Source: true, Destination: true}, {Prefix: host(f.dst), Source: true}}))
		check("both", pass, pass, pass)
		list, err := g.NeverList()
		must(t, err)
		if len(list) != 2 {
			t.Errorf("%s: %v", f.name, list)
		}
		for _, n := range list {
			if n.Prefix != f.dstNet && (n.Prefix != host(f.dst) || n.Destination || !n.Source) {
				t.Errorf("%s: read back %+v", f.name, n)
			}
		}
		must(t, g.DeleteNever([]netip.Prefix{f.dstNet}))
		check("source only", drop, pass, drop)
		must(t, g.DeleteNever([]netip.Prefix{host(f.dst), f.dstNet}))
		check("none again", drop, drop, drop)
	}
	if c, err := g.config(); err != nil || c.NeverUsed != 0 {
		t.Errorf("never used %d, %v", c.NeverUsed, err)
	}
	if g.PutNever([]Never{{Prefix: pfx("10.0.0.0/8")}}) == nil || g.PutNever([]Never{{Source: true}}) == nil {
		t.Error("meaningless entries are taken")
	}
	if c := counters(t, g); c.Never != 14 {
		t.Errorf("%d packets met a never-block entry, want 14", c.Never)
	}
}

// TestNeverAllOfIPv6: the map has IPv4 inside IPv6, but a prefix of IPv6 is none of IPv4's.
func TestNeverAllOfIPv6(t *testing.T) {
	r := newRig(t, 1)
	g := r.open(t, Options{Mode: ModeHost})
	p := program(t, g)
	must(t, g.PutRules([]Rule{{ID: 1, Action: policy.Drop}}))
	v4, v6 := udp("192.0.2.1", "198.51.100.7").frame(t), udp("2001:db8::1", "2001:db8::2").frame(t)
	check := func(what string, want4, want6 uint32, never ...string) {
		t.Helper()
		if got4, got6 := send(t, p, v4), send(t, p, v6); got4 != want4 || got6 != want6 {
			t.Errorf("%s: IPv4 %d, IPv6 %d, want %d, %d", what, got4, got6, want4, want6)
		}
		list, err := g.NeverList()
		must(t, err)
		var there []string
		for _, n := range list {
			there = append(there, n.Prefix.String())
		}
		slices.Sort(there)
		if !slices.Equal(there, never) {
			t.Errorf("%s: read back %q, want %q", what, there, never)
		}
	}
	must(t, g.PutNever([]Never{{Prefix: pfx("::/0"), Source: true, Destination: true}}))
	check("all of IPv6", drop, pass, "::/0")
	must(t, g.PutNever([]Never{{Prefix: pfx("203.0.113.0/24"), Source: true}, {Prefix: pfx("2001:db8::/32"), Source: true}}))
	check("and another of IPv4", drop, pass, "2001:db8::/32", "203.0.113.0/24", "::/0")
	must(t, g.PutNever([]Never{{Prefix: pfx("0.0.0.0/0"), Source: true}}))
	check("and all of IPv4", pass, pass, "0.0.0.0/0", "2001:db8::/32", "203.0.113.0/24", "::/0")
	must(t, g.DeleteNever([]netip.Prefix{pfx("0.0.0.0/0"), pfx("2001:db8::/32")}))
	check("without it", drop, pass, "203.0.113.0/24", "::/0")
	must(t, g.DeleteNever([]netip.Prefix{pfx("::/0")}))
	check("without IPv6", drop, drop, "203.0.113.0/24")
	must(t, g.DeleteNever([]netip.Prefix{pfx("203.0.113.0/24")}))
	check("nothing", drop, drop)
	if c, err := g.config(); err != nil || c.NeverUsed != 0 {
		t.Errorf("never used %d, %v", c.NeverUsed, err)
	}
}

// TestLists covers address lists of both kinds and families.
func TestLists(t *testing.T) {
	r := newRig(t, 1)
	g := r.open(t, Options{Mode: ModeHost, Geometry: Geometry{Hosts: 8, Prefixes: 8}})
	p := program(t, g)
	soon := time.Now().Add(time.Minute)
	over := time.Now().Add(-time.Minute)
	for fi, f := range families {
		addr := []netip.Addr{netip.MustParseAddr(f.src)}
		nets := []netip.Prefix{f.srcNet}
		frame := udp(f.src, f.dst).frame(t)
		for i, tt := range []struct {
			name    string
			action  policy.Action
			expires time.Time
			want    uint32
			packets uint64
		}{
			{"drop", policy.Drop, time.Time{}, drop, 1},
			{"drop until", policy.Drop, soon, drop, 1},
			{"expired", policy.Drop, over, pass, 0},
			{"allow", policy.Allow, time.Time{}, pass, 1},
			{"count", policy.Count, time.Time{}, pass, 1},
		} {
			for kind, put := range map[string]func(ListID) (clear func() error, err error){
				"hosts": func(l ListID) (func() error, error) {
					return func() error { return g.DeleteHosts(addr) }, g.PutHosts(l, tt.action, tt.expires, addr)
				},
				"prefixes": func(l ListID) (func() error, error) {
					return func() error { return g.DeletePrefixes(nets) }, g.PutPrefixes(l, tt.action, tt.expires, nets)
				},
			} {
				t.Run(fmt.Sprint(kind, " ", tt.name, " ", f.name), func(t *testing.T) {
					list := ListID(10*fi + i)
					must(t, g.ResetList(list))
					clear, err := put(list)
					must(t, err)
					if got := send(t, p, frame); got != tt.want {
						t.Errorf("action %d, want %d", got, tt.want)
					}
					if got := send(t, p, udp(f.dst, f.src).frame(t)); got != pass {
						t.Errorf("as destination: action %d, want pass", got)
					}
					s, err := g.ListStats(list)
					must(t, err)
					dropped := uint64(0)
					if tt.want == drop {
						dropped = 1
					}
					if s.Packets != tt.packets || s.Dropped != dropped {
						t.Errorf("%+v", s)
					}
					must(t, clear())
					if got := send(t, p, frame); got != pass {
						t.Errorf("deleted: action %d, want pass", got)
					}
				})
			}
		}
		// A rule that allows comes first; a host before a prefix.
		must(t, g.PutHosts(1, policy.Allow, time.Time{}, addr))
		must(t, g.PutPrefixes(2, policy.Drop, time.Time{}, nets))
		if got := send(t, p, frame); got != pass {
			t.Errorf("%s: allowed host in a dropped prefix: action %d", f.name, got)
		}
		must(t, g.PutHosts(1, policy.Drop, time.Time{}, addr))
		must(t, g.PutRules([]Rule{{ID: 1, Action: policy.Allow, Match: policy.Match{Src: f.srcNet}}}))
		if got := send(t, p, frame); got != pass {
			t.Errorf("%s: rule that allows over a list that drops: action %d", f.name, got)
		}
		must(t, g.DeleteRules([]uint64{1}))
	}
	if g.PutHosts(1, policy.RateLimit, time.Time{}, []netip.Addr{netip.IPv6Loopback()}) == nil || g.PutHosts(maxLists, policy.Drop, time.Time{}, nil) == nil {
		t.Error("a list of another action or number is taken")
	}
	many := make([]netip.Addr, 1000)
	for i := range many {
		many[i] = netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
	}
	if err := g.PutHosts(1, policy.Drop, time.Time{}, many); !errors.Is(err, ErrListLimit) {
		t.Errorf("1000 hosts into a map of 8: %v", err)
	}
}

// TestAllowedFlows: forwarded and metered in the kernel, after rules and lists, with the exceptions.
func TestAllowedFlows(t *testing.T) {
	r := newRig(t, 1)
	g := r.open(t, Options{Mode: ModeInline})
	p := program(t, g)
	must(t, g.SetSocket(0, xskSocket(t)))
	for _, f := range families {
		key := FlowKey{Src: netip.MustParseAddr(f.src).As16(), Dst: netip.MustParseAddr(f.dst).As16(), SrcPort: 1000, DstPort: 80, Proto: 6}
		vlan := key
		vlan.VLAN = 7
		must(t, g.AllowFlow([]FlowKey{key, vlan}))
		frame := tcp(f.src, f.dst, "A").frame(t)
		outcome := func(frame []byte) (forwarded bool) {
			t.Helper()
			before := counters(t, g)
			if got := r.sendQueue(t, g, p, 0, frame); got != redirect {
				return false
			}
			after := counters(t, g)
			return after.Forward-before.Forward == 1 && after.Metered-before.Metered == 1 && after.Redirect == before.Redirect
		}
		for _, flags := range []string{"A", "PA"} {
			if !outcome(tcp(f.src, f.dst, flags).frame(t)) {
				t.Errorf("%s: flags %s: not forwarded", f.name, flags)
			}
		}
		for name, k := range map[string]pkt{
			"SYN": tcp(f.src, f.dst, "SA"), "FIN": tcp(f.src, f.dst, "FA"), "RST": tcp(f.src, f.dst, "R"),
			"first fragment": tcp(f.src, f.dst, "A").with(func(p *pkt) { p.more = true }),
			"later fragment": tcp(f.src, f.dst, "A").with(func(p *pkt) { p.offset = 9; p.payload = 64 }),
			"other flow":     tcp(f.src, f.dst, "A").with(func(p *pkt) { p.dport = 81 }),
			"other way":      tcp(f.dst, f.src, "A").with(func(p *pkt) { p.sport, p.dport = 80, 1000 }),
			"other vlan":     tcp(f.src, f.dst, "A").with(func(p *pkt) { p.vlans = []uint16{8} }),
			"udp":            udp(f.src, f.dst).with(func(p *pkt) { p.dport = 80 }),
		} {
			if outcome(k.frame(t)) {
				t.Errorf("%s: %s was forwarded in the kernel", f.name, name)
			}
		}
		if !outcome(tcp(f.src, f.dst, "A").with(func(p *pkt) { p.vlans = []uint16{7, 8} }).frame(t)) {
			t.Errorf("%s: vlan 7 was not forwarded", f.name)
		}
		must(t, g.AllowFlow([]FlowKey{key})) // keeps the meter
		meters, err := g.AllowedFlows(nil)
		must(t, err)
		for _, m := range meters {
			switch m.Key {
			case key:
				if m.Packets != 2 || m.Bytes != 2*uint64(len(frame)) || m.LastNs == 0 || m.LastNs > MonotonicNow() {
					t.Errorf("%s: %+v", f.name, m)
				}
			case vlan:
				if m.Packets != 1 {
					t.Errorf("%s: %+v", f.name, m)
				}
			default:
				t.Errorf("%s: unknown flow %+v", f.name, m)
			}
		}
		must(t, g.PutRules([]Rule{{ID: 1, Action: policy.Drop, Match: policy.Match{Dst: f.dstNet}}}))
		if got := send(t, p, frame); got != drop {
			t.Errorf("%s: a rule does not stop an allowed flow: action %d", f.name, got)
		}
		must(t, g.DeleteRules([]uint64{1}))
		must(t, g.ForgetFlow([]FlowKey{key, vlan, key}))
		if outcome(frame) {
			t.Errorf("%s: a forgotten flow was forwarded in the kernel", f.name)
		}
	}
	if c, err := g.config(); err != nil || c.FlowsUsed != 0 {
		t.Errorf("flows used %d, %v", c.FlowsUsed, err)
	}
}
