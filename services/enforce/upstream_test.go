package enforce

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/tidegate-mesh/tidegate/libs/bus/bustest"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
	enforcev1 "github.com/tidegate-mesh/tidegate/proto/enforce/v1"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

const (
	evUnchanged = eventv1.EnforcementState_ENFORCEMENT_STATE_UNCHANGED
	evAnnounced = eventv1.EnforcementState_ENFORCEMENT_STATE_ANNOUNCED
	evWithdrawn = eventv1.EnforcementState_ENFORCEMENT_STATE_WITHDRAWN
)

func upstreamRig(t *testing.T, change func(*Config)) (*rig, *speaker) {
	s := newSpeaker(t)
	r := newRig(t, func(c *Config) {
		c.UpstreamExec, c.UpstreamMinPPS, c.NeverBlock = s.path, 100, []string{"192.0.2.1/32"}
		if change != nil {
			change(c)
		}
	})
	r.startReady()
	return r, s
}

// flood puts a detector's rule for UDP to a victim and lets so many packets match it each tenth of a second.
func (r *rig) flood(id, dst string, lease time.Duration, packets uint64) (stop func()) {
	r.t.Helper()
	p := drop(id, lease)
	p.Match = policy.Match{Dst: netip.MustParsePrefix(dst), HasProtocol: true, Protocol: 17}
	r.put(p)
	r.waitEntry(id)
	return r.keepHitting(id, packets)
}

// about are the lines about a victim, in order.
func (s *speaker) about(dst string) (out []string) {
	for _, l := range s.lines("told") {
		if strings.Contains(l, dst) {
			out = append(out, l)
		}
	}
	return out
}

func (r *rig) panicNow(on bool) {
	r.t.Helper()
	if _, err := r.svc.Panic(r.t.Context(), &enforcev1.PanicRequest{On: on}); err != nil {
		r.t.Fatal(err)
	}
}

// TestUpstream: what drops much goes upstream, after what it must spare; less does not; who takes the rule away takes the
// route away, and so does panic.
func TestUpstream(t *testing.T) {
	r, s := upstreamRig(t, nil)
	defer r.flood("big", "203.0.113.7/32", time.Minute, 50)()
	defer r.flood("small", "203.0.113.8/32", time.Minute, 1)()
	e := r.event("big", evAnnounced)
	if e.GetBy() != byNode || e.GetRule().GetId() != "big" || !strings.Contains(e.GetDetail(), "discard proto 17 dst 203.0.113.7/32") {
		t.Errorf("announced: %v", e)
	}
	bustest.Wait(t, "its route", func() bool {
		return slices.ContainsFunc(s.about("203.0.113.7"), func(l string) bool { return strings.Contains(l, "discard") })
	})
	l := s.about("203.0.113.7")
	spare := slices.IndexFunc(l, func(l string) bool {
		return l == "announce flow route { match { destination 203.0.113.7/32; source 192.0.2.1/32; protocol =17; } then { accept; } }"
	})
	if spare < 0 || l[len(l)-1] != "announce "+udpRoute {
		t.Errorf("told %q", l)
	}
	x, err := r.svc.ExplainRule(t.Context(), &enforcev1.ExplainRuleRequest{Id: "big"})
	if err != nil || !strings.Contains(x.GetExplanation(), "Routers upstream were asked") {
		t.Errorf("explained: %v, %v", x, err)
	}
	if n, err := testutil.GatherAndCount(r.tel.Registry, "tidegate_enforce_upstream_routes", "tidegate_enforce_upstream_up"); err != nil || n != 3 {
		t.Errorf("%d metrics, %v", n, err)
	}
	time.Sleep(2 * time.Second)
	if len(s.about("203.0.113.8")) > 0 || r.count("small", evAnnounced) > 0 || r.count("big", evAnnounced) != 1 {
		t.Errorf("told %q", s.lines("told"))
	}

	r.panicNow(true)
	gone := func() bool {
		l := s.about("203.0.113.7")
		told := map[string]bool{}
		for _, l := range l {
			word, route, _ := strings.Cut(l, " ")
			told[route] = word == "announce"
		}
		for _, on := range told {
			if on {
				return false
			}
		}
		return len(l) > 0
	}
	bustest.Wait(t, "that panic takes it back", gone)
	if e := r.event("big", evWithdrawn); !strings.Contains(e.GetDetail(), "panic is on") {
		t.Errorf("withdrawn: %v", e)
	}
	r.panicNow(false)
	bustest.Wait(t, "that it goes upstream again", func() bool { return r.count("big", evAnnounced) == 2 && !gone() })
	if err := r.bus.DeleteRule(t.Context(), "big"); err != nil {
		t.Fatal(err)
	}
	bustest.Wait(t, "that the revoked rule is taken back", func() bool { return r.count("big", evWithdrawn) == 2 && gone() })
	if e := r.event("big", evWithdrawn); e.GetDetail() != "its rule was revoked" {
		t.Errorf("withdrawn: %v", e)
	}
}

// TestUpstreamHold: nothing arrives any more, so the rule's lease ends; its route stays for its own time.
func TestUpstreamHold(t *testing.T) {
	r, s := upstreamRig(t, func(c *Config) { c.UpstreamHold = 5 * time.Second })
	stop := r.flood("big", "203.0.113.7/32", 2*time.Second, 50)
	at := r.event("big", evAnnounced).GetTimeNs()
	stop() // the routers discard it
	r.event("big", evExpired)
	if r.count("big", evWithdrawn) > 0 {
		t.Error("the route goes with the rule")
	}
	e := r.event("big", evWithdrawn)
	if after := time.Duration(e.GetTimeNs() - at); after < 5*time.Second || !strings.Contains(e.GetDetail(), "its rule has ended") {
		t.Errorf("withdrawn %s after it was announced: %v", after, e)
	}
	bustest.Wait(t, "that it is told", func() bool { return slices.Contains(s.about("203.0.113.7"), "withdraw "+udpRoute) })
}

// TestUpstreamRefused: what cannot be said upstream, what an allow rule would be overruled by, what only counts, and what acts on
// a part of the node, acts here alone. The refusal is told once.
func TestUpstreamRefused(t *testing.T) {
	r, s := upstreamRig(t, func(c *Config) { c.UpstreamMinPPS, c.UpstreamLimit = 0, 5 })
	put := func(id string, change func(*policy.Rule)) {
		t.Helper()
		p := drop(id, time.Minute)
		change(&p)
		r.put(p)
		r.waitEntry(id)
	}
	put("ttl", func(p *policy.Rule) { p.Match.TTLMax = 9 })
	put("allow", func(p *policy.Rule) {
		p.Action, p.Match = policy.Allow, policy.Match{Src: netip.MustParsePrefix("198.51.100.16/28"), Dst: netip.MustParsePrefix("203.0.113.0/24")}
	})
	put("contested", func(p *policy.Rule) { p.Match.Src = netip.MustParsePrefix("198.51.100.0/27") })
	put("shadow", func(p *policy.Rule) { p.Shadow, p.Match.Src = true, netip.MustParsePrefix("198.51.100.99/32") })
	put("limit", func(p *policy.Rule) {
		p.Action, p.RatePPS, p.Match.Src = policy.RateLimit, 5, netip.MustParsePrefix("198.51.100.98/32")
	})
	for id, why := range map[string]string{"ttl": "TTL", "contested": "rule allow allows some of it"} {
		if e := r.event(id, evUnchanged); e.GetReason() != "upstream" || e.GetBy() != byNode || e.GetRule().GetId() != id || !strings.Contains(e.GetDetail(), why) {
			t.Errorf("%s: %v", id, e)
		}
	}
	put("fits", func(p *policy.Rule) { p.Match.Src = netip.MustParsePrefix("198.51.100.97/32") })
	r.event("fits", evAnnounced)
	time.Sleep(2500 * time.Millisecond)
	for id, want := range map[string]int{"ttl": 1, "contested": 1, "shadow": 0, "limit": 0, "fits": 0} {
		if n := r.count(id, evUnchanged); n != want {
			t.Errorf("%s: refused %d times", id, n)
		}
	}
	for _, src := range []string{"198.51.100.0", "198.51.100.7", "198.51.100.98", "198.51.100.99"} {
		if l := s.about(src + "/"); len(l) > 0 {
			t.Errorf("told %q", l)
		}
	}
	if told, _, _ := r.svc.upstream.state(); told > 5 {
		t.Errorf("%d routes, the limit is 5", told)
	}
}

// TestUpstreamRestart: what a rule dropped before this node began is not what it drops now.
func TestUpstreamRestart(t *testing.T) {
	s := newSpeaker(t)
	r := newRig(t, func(c *Config) { c.UpstreamExec, c.UpstreamMinPPS = s.path, 100 })
	old := userDrop("old")
	number := policy.NumericID(old.ID)
	mustPut(t, r.gate, xdp.Rule{ID: number, Match: old.Match, Action: policy.Drop})
	r.gate.hit(number, 1_000_000)
	r.put(old)
	r.start(func(string) (Gate, error) {
		time.Sleep(1500 * time.Millisecond) // the first look at what rules drop is before
		return r.gate, nil
	})
	bustest.Wait(t, "readiness", func() bool { return r.svc.ready() == nil })
	time.Sleep(2500 * time.Millisecond)
	if r.count("old", evAnnounced) > 0 {
		t.Errorf("announced: %v", r.event("old", evAnnounced))
	}
	stop := r.keepHitting("old", 50)
	defer stop()
	r.event("old", evAnnounced)
}

// TestUpstreamRoom: a route goes with all that it must spare, or not at all.
func TestUpstreamRoom(t *testing.T) {
	r, s := upstreamRig(t, func(c *Config) {
		c.UpstreamLimit = 30
		for i := range 20 {
			c.NeverBlock = append(c.NeverBlock, fmt.Sprintf("192.0.2.%d/32", 10+i))
		}
	})
	defer r.flood("first", "203.0.113.7/32", time.Minute, 50)()
	r.event("first", evAnnounced)
	defer r.flood("second", "203.0.113.8/32", time.Minute, 50)()
	if e := r.event("second", evUnchanged); e.GetReason() != "upstream" || !strings.Contains(e.GetDetail(), "--upstream-limit") {
		t.Errorf("refused: %v", e)
	}
	time.Sleep(2500 * time.Millisecond)
	if l := s.about("203.0.113.8"); len(l) > 0 {
		t.Errorf("told %q", l)
	}
	r.svc.mu.Lock() // more is to be spared than there is room for
	for i := range 20 {
		r.svc.guard.never = append(r.svc.guard.never, netip.MustParsePrefix(fmt.Sprintf("192.0.2.%d/32", 100+i)))
	}
	r.svc.mu.Unlock()
	if e := r.event("first", evWithdrawn); !strings.Contains(e.GetDetail(), "--upstream-limit") {
		t.Errorf("withdrawn: %v", e)
	}
	bustest.Wait(t, "that it is told", func() bool { return slices.Contains(s.about("203.0.113.7"), "withdraw "+udpRoute) })
	time.Sleep(1500 * time.Millisecond)
	if n := r.count("first", evAnnounced); n != 1 {
		t.Errorf("announced %d times", n)
	}
}

// TestUpstreamOnRealLink: real packets that the program drops make a route; drops go on while the program that takes it hangs
// and is replaced.
func TestUpstreamOnRealLink(t *testing.T) {
	l, s := newLink(t, 0), newSpeaker(t)
	hang := filepath.Join(s.dir, "hang")
	if err := os.WriteFile(hang, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, func(c *Config) {
		c.Ifaces, c.BPFFS, c.UpstreamExec, c.UpstreamMinPPS = []string{l.iface}, l.bpffs, s.path, 100
	})
	r.start(openXDP(l.bpffs, telemetry.Discard("enforce")))
	waitReady(t, r.svc)
	rule := drop("r1", 0)
	rule.Match = policy.Match{Src: netip.PrefixFrom(l.from, 32), Dst: netip.PrefixFrom(l.to, 32), Protocol: 17, HasProtocol: true, DstPort: l.port, HasDstPort: true}
	r.put(rule)
	r.event("r1", evAnnounced)
	before := l.arrived.Load()
	bustest.Wait(t, "that the program is missed", func() bool {
		out, err := r.svc.Status(t.Context(), nil)
		return err == nil && slices.ContainsFunc(out.GetStatus().GetProblems(), func(p string) bool { return strings.Contains(p, "has read nothing of its input") })
	})
	other := userDrop("other") // not one rule waits for it
	r.put(other)
	r.event("other", evApplied)
	if err := os.Remove(hang); err != nil {
		t.Fatal(err)
	}
	route := fmt.Sprintf("flow route { match { destination %s/32; source %s/32; protocol =17; destination-port =%d; } then { discard; } }", l.to, l.from, l.port)
	bustest.Wait(t, "its route", func() bool { return slices.Contains(s.lines("told"), "announce "+route) })
	if n := l.arrived.Load() - before; n != 0 {
		t.Errorf("%d packets passed meanwhile", n)
	}
	if err := r.bus.DeleteRule(t.Context(), "r1"); err != nil {
		t.Fatal(err)
	}
	bustest.Wait(t, "that it is taken back", func() bool { return slices.Contains(s.lines("told"), "withdraw "+route) })
	if l.during(100*time.Millisecond) == 0 {
		t.Error("nothing arrives after the rule was revoked")
	}
}

// TestUpstreamConfig: what cannot work is told before anything begins.
func TestUpstreamConfig(t *testing.T) {
	open := filepath.Join(t.TempDir(), "open")
	if err := os.WriteFile(open, nil, 0o700); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o707); err != nil { //nolint:gosec // that is the mistake
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"": "", "/bin/sh": "", "sh": "absolute path", "/nonexistent/sh": "does not exist", "/etc/passwd": "chmod +x", "/tmp": "no program", open: "chmod o-w",
	} {
		c := DefaultConfig()
		c.Ifaces, c.UpstreamExec = []string{"test0"}, path
		err := c.Validate()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", path, err, want)
		}
	}
	for name, change := range map[string]func(*Config){
		"limit": func(c *Config) { c.UpstreamLimit = 0 }, "hold": func(c *Config) { c.UpstreamHold = -1 },
		"relative state": func(c *Config) { c.UpstreamState = "routes" }, "state in no folder": func(c *Config) { c.UpstreamState = "/nonexistent/routes" },
		"state for everybody": func(c *Config) { c.UpstreamState = "/tmp/routes" },
	} {
		c := DefaultConfig()
		c.Ifaces, c.UpstreamExec = []string{"test0"}, "/bin/sh"
		change(&c)
		if c.Validate() == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
