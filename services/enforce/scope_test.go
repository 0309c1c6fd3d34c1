package enforce

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus/bustest"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
)

// scoped is a user's rule against a source that acts in a scope.
func scoped(t *testing.T, id, scope string, src netip.Addr) policy.Rule {
	t.Helper()
	r := userDrop(id)
	r.Match.Src = netip.PrefixFrom(src, src.BitLen())
	var err error
	if r.Scope, err = policy.ParseScope(scope); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestScopeOfRules: on two nodes with two fake interfaces each, a rule is where its scope has it, and moves with it.
func TestScopeOfRules(t *testing.T) {
	ports := func(c *Config, site string) { c.Ifaces, c.Site = []string{"in0", "out0"}, site }
	r := newRig(t, func(c *Config) { ports(c, "ams") })
	gates := map[string]*fakeGate{"1/in0": newFakeGate(), "1/out0": newFakeGate(), "2/in0": newFakeGate(), "2/out0": newFakeGate()}
	opener := func(node string) Opener {
		return func(iface string) (Gate, error) { return gates[node+"/"+iface], nil }
	}
	r.start(opener("1"))
	waitReady(t, r.svc)
	src := netip.MustParseAddr("198.51.100.7")
	scopes := map[string][]string{
		"all": {"1/in0", "1/out0", "2/in0", "2/out0"}, "site:ams": {"1/in0", "1/out0"}, "site:fra": {"2/in0", "2/out0"}, "node:node-2": {"2/in0", "2/out0"},
		"interface:in0": {"1/in0", "2/in0"}, "interface:node-1/out0": {"1/out0"}, "site:elsewhere": nil,
	}
	for scope := range scopes {
		r.put(scoped(t, "r-"+policy.DerivedID(scope), scope, src))
	}
	other := r.second(func(c *Config) { ports(c, "fra") }, opener("2")) // it joins and converges
	expect := func(id string, where []string) {
		t.Helper()
		bustest.Wait(t, id+" where it belongs", func() bool {
			var has []string
			for name, g := range gates {
				if _, ok := g.get(policy.NumericID(id)); ok {
					has = append(has, name)
				}
			}
			slices.Sort(has)
			return slices.Equal(has, where)
		})
	}
	for scope, where := range scopes {
		expect("r-"+policy.DerivedID(scope), where)
	}
	away := "r-" + policy.DerivedID("site:fra")
	if f := r.svc.find(away); f.state != elsewhere || f.stateName() != "elsewhere" {
		t.Errorf("on the other site it is %s", f.stateName())
	}
	if f := other.find(away); f == nil || f.state != active {
		t.Errorf("on its own site it is %+v", f)
	}
	r.event(away, evApplied)
	if n := r.count(away, evApplied); n != 1 {
		t.Errorf("%d nodes tell that they apply it", n)
	}

	// The same rule moves: its entries go where it leaves.
	for _, scope := range []string{"all", "interface:node-1/in0", "site:fra", "site:ams", "all"} {
		r.put(scoped(t, "mover", scope, netip.MustParseAddr("198.51.100.8")))
		where := scopes[scope]
		if scope == "interface:node-1/in0" {
			where = []string{"1/in0"}
		}
		expect("mover", where)
	}
	e := r.event("mover", evRevoked)
	if e.GetBefore() == nil || e.GetBy() != policy.OriginUser {
		t.Errorf("leaving a node: %v", e)
	}
	if err := r.bus.DeleteRule(context.Background(), "mover"); err != nil {
		t.Fatal(err)
	}
	expect("mover", nil)
	// A restart leaves entries where they belong, and takes out what does not.
	r.stop()
	strayed := policy.NumericID(away)
	if e, ok := gates["2/in0"].get(strayed); ok {
		gates["1/in0"].set(func(g *fakeGate) { g.rules[strayed] = e; g.stats[strayed] = xdp.RuleStat{} })
	}
	r.start(opener("1"))
	waitReady(t, r.svc)
	for scope, where := range scopes {
		expect("r-"+policy.DerivedID(scope), where)
	}
}

// TestScopeOnTwoNodes: two nodes of different sites on one NATS, each with a real interface and program: what each
// drops is what its scope says, counted by who receives.
func TestScopeOnTwoNodes(t *testing.T) {
	a, b := newLink(t, 0), newLink(t, 1)
	r := newRig(t, func(c *Config) { c.Ifaces, c.BPFFS, c.Site = []string{a.iface}, a.bpffs, "ams" })
	r.start(openXDP(a.bpffs, telemetry.Discard("enforce")))
	waitReady(t, r.svc)
	// One rule for both senders: who is hit depends on the scope alone.
	both := netip.PrefixFrom(a.from, 24).Masked()
	put := func(scope string) {
		rule := scoped(t, "both", scope, a.from)
		rule.Match.Src = both
		r.put(rule)
	}
	put("site:fra")
	r.second(func(c *Config) { c.Ifaces, c.BPFFS, c.Site = []string{b.iface}, b.bpffs, "fra" }, openXDP(b.bpffs, telemetry.Discard("enforce")))
	passes := func(l *link) bool { return l.during(200*time.Millisecond) > 0 }
	expect := func(scope string, onA, onB bool) {
		t.Helper()
		bustest.Wait(t, "scope "+scope, func() bool { return passes(a) == onA && passes(b) == onB })
	}
	expect("site:fra", true, false)
	put("node:node-1")
	expect("node:node-1", false, true)
	put("interface:" + b.iface)
	expect("interface of the second", true, false)
	put("all")
	expect("all", false, false)
	put("site:nowhere")
	expect("site:nowhere", true, true)
}
