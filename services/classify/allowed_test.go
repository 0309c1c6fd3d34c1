package classify

import (
	"net/netip"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/packet"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/sketch"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
)

// TestAllowed: whatever a source on an allow list does is no attack; that of others is, also when both come together.
func TestAllowed(t *testing.T) {
	scanner, attacker := netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("203.0.113.9")
	scan := func(l *lab, src netip.Addr) *WindowResult {
		var ports sketch.HLL
		for i := range uint64(100) {
			ports.Add(sketch.Mix(i))
		}
		addr, top := src.As16(), victim.As16()
		return l.close(&flowv1.Source{Addr: addr[:], TopHost: top[:], Attempts: 100, TopHostAttempts: 100, AttemptPorts: ports[:], TopHostPorts: ports[:], FirstNs: l.now})
	}
	syns := func(l *lab, src netip.Addr) *WindowResult {
		for i := range 300 {
			h := packet.Header{Src: src, Dst: victim, TTL: 64}
			l.frame(h.AppendTCP(nil, &packet.TCP{SrcPort: uint16(1024 + i), DstPort: 443, Flags: packet.FlagSYN}, nil), int64(i)*1e5, false) //nolint:gosec // few
		}
		return l.close()
	}
	pings := func(l *lab, src netip.Addr) *WindowResult {
		for i := range uint32(600) {
			h := packet.Header{Src: src, Dst: victim, TTL: 64}
			l.frame(h.AppendICMP(nil, 8, 0, i, nil), int64(i)*1e5, false)
		}
		return l.close()
	}
	logins := func(l *lab, src netip.Addr) *WindowResult {
		var b flowv1.FlowBatch
		b.Sensor, b.Epoch = "lab", 1
		for i := range uint64(12) {
			k := flow.Key{Src: src.As16(), Dst: victim.As16(), SrcPort: uint16(4000 + i), DstPort: 22, Protocol: 6} //nolint:gosec // few
			flow.AppendOpen(&b, &flow.Open{ID: i, Key: k, FirstNs: l.now})
			flow.AppendSegment(&b, i, 0, 0, l.now, []byte("SSH-2.0-libssh2_1.10\r\n"))
			flow.AppendSegment(&b, i, 1, 0, l.now, []byte("SSH-2.0-OpenSSH_9.2\r\n"))
			flow.AppendEnd(&b, &flow.End{ID: i, Key: k, FirstNs: l.now, LastNs: l.now + 2e9, Totals: flow.Totals{PacketsFwd: 20, PacketsRev: 20, BytesFwd: 2000, BytesRev: 2000}})
		}
		var out BatchResult
		if err := l.e.Batch(&b, &out); err != nil {
			l.t.Fatal(err)
		}
		return l.close()
	}
	for name, attack := range map[string]func(l *lab, src netip.Addr) *WindowResult{"port_scan": scan, "syn_flood": syns, "icmp_flood": pings, "brute_force": logins} {
		t.Run(name, func(t *testing.T) {
			for _, tt := range []struct {
				allowed string
				from    netip.Addr
				want    int
			}{{"192.0.2.7/32", scanner, 0}, {"192.0.2.0/24", scanner, 0}, {"192.0.2.0/24", attacker, 1}, {"203.0.113.0/24", scanner, 1}} {
				l := newLab(t)
				l.e.Allow(policy.NewCover([]netip.Prefix{netip.MustParsePrefix(tt.allowed)}))
				out := attack(l, tt.from)
				if len(out.Attacks) != tt.want || len(out.Verdicts) != tt.want {
					t.Errorf("%s allowed, from %s: %d attacks and %d verdicts, want %d", tt.allowed, tt.from, len(out.Attacks), len(out.Verdicts), tt.want)
				}
				for _, a := range out.Attacks {
					if a.GetType() != name {
						t.Errorf("found %s", a.GetType())
					}
				}
				l.e.Allow(policy.Cover{})
				if tt.want == 0 && len(attack(l, tt.from).Attacks) == 0 {
					t.Error("what was allowed still is, off the list")
				}
			}
		})
	}
	l := newLab(t)
	l.e.Allow(policy.NewCover([]netip.Prefix{netip.MustParsePrefix("192.0.2.7/32")}))
	for i := range 400 {
		h := packet.Header{Src: []netip.Addr{scanner, attacker}[i%2], Dst: victim, TTL: 64}
		l.frame(h.AppendTCP(nil, &packet.TCP{SrcPort: 1024, DstPort: 443, Flags: packet.FlagSYN}, nil), int64(i)*1e5, false)
	}
	l.close()
	rules := rulesOf(t, &l.out)
	if len(rules) != 1 || rules[0].Match.Src != netip.PrefixFrom(attacker, 32) {
		t.Errorf("rules %v, want one for %s", rules, attacker)
	}
}

// TestAllowLists: lists of addresses that allow are in force at once, all of them together, and no other ones; they are not
// among the lists of domains.
func TestAllowLists(t *testing.T) {
	s := newHostService(t, nil)
	cidr := func(text string) *watchedList {
		return &watchedList{list: &policyv1.AddressList{Kind: policy.KindCIDR, Action: policyv1.Action_ACTION_ALLOW}, text: []byte(text), ready: true, counts: &hostCounts{}}
	}
	allows := func() (out [3]bool) {
		for i, a := range []string{"192.0.2.7", "198.51.100.200", "2001:db8::7"} {
			out[i] = s.engine.allows(netip.MustParseAddr(a))
		}
		return out
	}
	for _, tt := range []struct {
		lists map[string]*watchedList
		want  [3]bool
	}{
		{map[string]*watchedList{"a": cidr("192.0.2.7\n"), "b": cidr("198.51.100.0/24\n# ours\n2001:db8::/32\n"), "c": list(policy.Allow, "example.org\n")}, [3]bool{true, true, true}},
		{map[string]*watchedList{"b": cidr("198.51.100.0/24\nno address\n")}, [3]bool{false, true, false}},
		{map[string]*watchedList{}, [3]bool{}},
	} {
		s.set(t, tt.lists, nil)
		if got := allows(); got != tt.want {
			t.Errorf("%d lists: allowed %v, want %v", len(tt.lists), got, tt.want)
		}
		resp, err := s.DomainLists(t.Context(), &classifyv1.DomainListsRequest{})
		if n := len(resp.GetLists()); err != nil || n > 0 && tt.lists["c"] == nil || n > 1 {
			t.Errorf("%d lists of domains, %v", n, err)
		}
	}
	if s.engine.allows(netip.Addr{}) {
		t.Error("no address is allowed")
	}
}
