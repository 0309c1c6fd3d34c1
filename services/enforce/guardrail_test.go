package enforce

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/time/rate"

	"github.com/tidegate-mesh/tidegate/libs/netlab"
	"github.com/tidegate-mesh/tidegate/libs/policy"
)

func TestGuardrails(t *testing.T) {
	p := netip.MustParsePrefix
	now := time.Now()
	g := guard{
		never: []netip.Prefix{p("203.0.113.0/24"), p("2001:db8:1::/48")}, management: []netip.Prefix{p("198.51.100.5/32")},
		infrastructure: []netip.Prefix{p("192.0.2.53/32")}, limit: 2, min4: 12, min6: 28, rate: rate.NewLimiter(1, 1),
	}
	rule := func(a policy.Action, src, dst string) policy.Rule {
		r := policy.Rule{ID: "r", Action: a, Origin: policy.OriginDetector}
		if a == policy.RateLimit {
			r.RatePPS = 10
		}
		if src != "" {
			r.Match.Src = p(src)
		}
		if dst != "" {
			r.Match.Dst = p(dst)
		}
		return r
	}
	for _, c := range []struct {
		name string
		rule policy.Rule
		want Reason
	}{
		{"ordinary source", rule(policy.Drop, "192.0.2.1/32", ""), ""},
		{"ordinary signature", rule(policy.Drop, "", "192.0.2.1/32"), ""},
		{"never-block source", rule(policy.Drop, "203.0.113.77/32", ""), NeverBlock},
		{"never-block, the prefix itself", rule(policy.Drop, "203.0.113.0/24", ""), NeverBlock},
		{"never-block destination", rule(policy.RateLimit, "", "203.0.113.77/32"), NeverBlock},
		{"never-block v6", rule(policy.Drop, "2001:db8:1:2::/64", ""), NeverBlock},
		{"broader than never-block: the program passes the inner one", rule(policy.Drop, "203.0.112.0/20", ""), ""},
		{"never-block is not of concern to allow", rule(policy.Allow, "203.0.113.77/32", ""), ""},
		{"never-block is not of concern to count", rule(policy.Count, "203.0.113.77/32", ""), ""},
		{"management", rule(policy.Drop, "198.51.100.5/32", ""), Management},
		{"management as destination", rule(policy.Drop, "192.0.2.1/32", "198.51.100.5/32"), Management},
		{"resolver", rule(policy.Drop, "192.0.2.53/32", ""), Infrastructure},
		{"everything", rule(policy.Drop, "", ""), BlastRadius},
		{"limit everything", rule(policy.RateLimit, "", ""), BlastRadius},
		{"count everything", rule(policy.Count, "", ""), ""},
		{"/8 source", rule(policy.Drop, "10.0.0.0/8", ""), BlastRadius},
		{"/8 source to one host", rule(policy.Drop, "10.0.0.0/8", "192.0.2.1/32"), ""},
		{"all sources written out", rule(policy.Drop, "0.0.0.0/0", "0.0.0.0/0"), BlastRadius},
		{"/12 source", rule(policy.Drop, "172.16.0.0/12", ""), ""},
		{"v6 /24", rule(policy.Drop, "2001:d00::/24", ""), BlastRadius},
		{"v6 /32", rule(policy.Drop, "2001:db8::/32", ""), ""},
		{"by host", policy.Rule{ID: "r", Action: policy.Drop, Match: policy.Match{Host: "example.org"}}, ""},
		{"by host, of a never-block source", policy.Rule{ID: "r", Action: policy.Drop, Match: policy.Match{Host: "example.org", Src: p("203.0.113.7/32")}}, NeverBlock},
		{"no action", rule(0, "192.0.2.1/32", ""), Invalid},
		{"rate without a rate", policy.Rule{ID: "r", Action: policy.RateLimit, Match: policy.Match{Src: p("192.0.2.1/32")}}, Invalid},
		{"expired", policy.Rule{ID: "r", Action: policy.Count, Expires: now.Add(-time.Second)}, Expired},
		{"not yet expired", policy.Rule{ID: "r", Action: policy.Count, Expires: now.Add(time.Second)}, ""},
	} {
		no := g.check(&c.rule, now)
		if got := reasonOf(no); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	if no := g.full(1); no != nil {
		t.Errorf("below the limit: %v", no)
	}
	if got := reasonOf(g.full(2)); got != RuleLimit {
		t.Errorf("at the limit: %q", got)
	}
	if g.peek(now) != nil || g.take(now) != nil || reasonOf(g.peek(now)) != RateOfRules || reasonOf(g.take(now)) != RateOfRules {
		t.Error("the rate lets one rule through, then none")
	}
	if no := g.take(now.Add(1100 * time.Millisecond)); no != nil {
		t.Errorf("a second later: %v", no)
	}

	g.allowBroadUser = true
	broad := rule(policy.Drop, "10.0.0.0/8", "")
	if reasonOf(g.check(&broad, now)) != BlastRadius {
		t.Error("a detector's broad rule must stay refused")
	}
	broad.Origin = policy.OriginUser
	if no := g.check(&broad, now); no != nil {
		t.Errorf("a user's broad rule was allowed by configuration: %v", no)
	}
}

func reasonOf(no *refusal) Reason {
	if no == nil {
		return ""
	}
	return no.reason
}

func TestResolvers(t *testing.T) {
	got := resolvers([]byte("# comment\nnameserver 192.0.2.53\nsearch example.org\n  nameserver 2001:db8::53%eth0 # x\nnameserver\n"))
	if !slices.Equal(got, []string{"192.0.2.53", "2001:db8::53%eth0"}) {
		t.Errorf("%q", got)
	}
	var list []netip.Prefix
	for _, s := range append(got, "127.0.0.53", "::1", "<nil>", "::ffff:192.0.2.53") {
		list = appendHost(list, s)
	}
	if len(list) != 2 || list[1].String() != "2001:db8::53/128" {
		t.Errorf("%v", list)
	}
}

func TestDiscover(t *testing.T) {
	t.Setenv("SSH_CONNECTION", "198.51.100.9 50000 192.0.2.1 22")
	g := guard{configured: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/28")}, sshClient: sshClient()}
	if !g.learn(g.look("198.51.100.10:4222")) {
		t.Error("nothing was found")
	}
	for _, want := range []string{"192.0.2.0/28", "198.51.100.9/32", "198.51.100.10/32"} {
		if !slices.Contains(g.management, netip.MustParsePrefix(want)) {
			t.Errorf("%s is missing in %v", want, g.management)
		}
	}
	if g.learn(g.look("198.51.100.10:4222")) {
		t.Error("changed without a change")
	}
	gone := netip.MustParsePrefix("192.0.2.254/32")
	g.infrastructure = append(g.infrastructure, gone)
	found := g.look("198.51.100.10:4222")
	if found.partial = true; g.learn(found) || !slices.Contains(g.infrastructure, gone) {
		t.Error("what a part of the table does not have was forgotten")
	}
}

// TestSSHClientBehindSudo: sudo gives the variable to none of its processes, and they come from a shell that has it.
func TestSSHClientBehindSudo(t *testing.T) {
	const child = "TIDEGATE_TEST_SSH_CHILD"
	if os.Getenv(child) != "" {
		fmt.Println("client", sshClient())
		return
	}
	// Each shell waits for what it has started, so that it stays its parent.
	cmd := exec.Command("sh", "-c", `env -u SSH_CONNECTION sh -c '"$0" -test.run ^TestSSHClientBehindSudo$; exit $?' "$0"; exit $?`, os.Args[0]) //nolint:gosec // this test
	cmd.Env = append(os.Environ(), child+"=1", "SSH_CONNECTION=198.51.100.9 50000 192.0.2.1 22")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "client 198.51.100.9\n") {
		t.Errorf("%v: %s", err, out)
	}
}

// TestGateways: next hops of default routes, also in another table and of the other family (RFC 8950).
func TestGateways(t *testing.T) {
	l := newLink(t, 0)
	err := l.sender.Do(func() error {
		dev, err := netlink.LinkByName(netlab.Ifname("tge", "b0"))
		if err != nil {
			return err
		}
		all := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
		other := &net.IPNet{IP: net.IPv4(203, 0, 113, 0).To4(), Mask: net.CIDRMask(24, 32)}
		for _, r := range []netlink.Route{
			{LinkIndex: dev.Attrs().Index, Dst: all, Via: &netlink.Via{AddrFamily: netlink.FAMILY_V6, Addr: net.ParseIP("fe80::1")}},
			{LinkIndex: dev.Attrs().Index, Dst: all, Table: 100, Gw: l.to.AsSlice()},
			{LinkIndex: dev.Attrs().Index, Dst: other, Scope: netlink.SCOPE_LINK}, // no default
		} {
			if err := netlink.RouteAdd(&r); err != nil {
				return fmt.Errorf("%v: %w", r, err)
			}
		}
		got, partial := gateways()
		want := []netip.Prefix{netip.MustParsePrefix("fe80::1/128"), netip.PrefixFrom(l.to, 32)}
		for _, p := range want {
			if !slices.Contains(got, p) {
				t.Errorf("%s is missing in %v", p, got)
			}
		}
		if len(got) != len(want) || partial {
			t.Errorf("%v, want %v", got, want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
