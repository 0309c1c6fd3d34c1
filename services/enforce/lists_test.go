package enforce

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/bus/bustest"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	enforcev1 "github.com/tidegate-mesh/tidegate/proto/enforce/v1"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
)

// putList stores a list as a gateway does; it returns the key's new revision.
func (r *rig) putList(name string, number uint32, action policyv1.Action, text string) uint64 {
	r.t.Helper()
	ctx := context.Background()
	object, err := r.bus.PutListEntries(ctx, name, []byte(text))
	if err != nil {
		r.t.Fatal(err)
	}
	all, err := r.bus.Lists(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	revision, err := r.bus.UpdateList(ctx, &policyv1.AddressList{Name: name, Number: number, Action: action, Object: object, CreatedNs: int64(number)}, all[name].Revision)
	if err != nil {
		r.t.Fatal(err)
	}
	return revision
}

// list is what the node says about a list; nil: nothing.
func (r *rig) list(name string) *enforcev1.AddressListState {
	r.t.Helper()
	resp, err := r.svc.AddressLists(context.Background(), nil)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, l := range resp.GetLists() {
		if l.GetName() == name {
			return l
		}
	}
	return nil
}

func (r *rig) waitList(name, state string) *enforcev1.AddressListState {
	r.t.Helper()
	bustest.Wait(r.t, "list "+name+" "+state, func() bool { return r.list(name).GetState() == state })
	return r.list(name)
}

// inMaps are the fake gate's entries.
func (r *rig) inMaps() []string {
	r.gate.mu.Lock()
	defer r.gate.mu.Unlock()
	out := []string{}
	for _, e := range r.gate.lists {
		out = append(out, fmt.Sprint(e.Action, " ", e.Prefix, " ", e.List))
	}
	slices.Sort(out)
	return out
}

func (r *rig) expectMaps(want ...string) {
	r.t.Helper()
	slices.Sort(want)
	end := time.Now().Add(5 * time.Second)
	for !slices.Equal(r.inMaps(), want) {
		if time.Now().After(end) {
			r.t.Fatalf("in the maps: %q, want %q", r.inMaps(), want)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestListsGuardedByEntry(t *testing.T) {
	r := newRig(t, func(c *Config) { c.NeverBlock = []string{"203.0.113.0/28", "2001:db8:1::/48"} })
	r.putList("bad", 1, policyv1.Action_ACTION_DROP, strings.Join([]string{
		"203.0.113.1", "203.0.113.0/24", "0.0.0.0/0", "10.0.0.0/8", "::/0", "2001:db8:1::5", "192.0.2.101", "198.51.100.0/24", "198.51.100.7", "not a line", "",
	}, "\n"))
	r.putList("good", 1, policyv1.Action_ACTION_ALLOW, "198.51.100.0/28\n") // two keys with one number
	r.putList("watched", 3, policyv1.Action_ACTION_COUNT, "192.0.2.101\n192.0.2.102\n198.51.100.9\n0.0.0.0/1\n")
	r.startReady()
	r.expectMaps("drop 203.0.113.0/24 1", "drop 192.0.2.101/32 1", "drop 198.51.100.0/24 1", "allow 198.51.100.0/28 2", "count 192.0.2.102/32 3", "count 0.0.0.0/1 3")
	l := r.waitList("bad", "active")
	want := map[string]uint64{"never_block": 2, "blast_radius": 3, "allow_list": 1}
	if l.GetEntries() != 3 || len(l.GetRefused()) != len(want) || len(l.GetExamples()) != 6 {
		t.Errorf("bad: %v", l)
	}
	for reason, n := range want {
		if l.GetRefused()[reason] != n {
			t.Errorf("refused as %s: %d, want %d", reason, l.GetRefused()[reason], n)
		}
	}
	if l := r.list("watched"); l.GetRefused()["drop_list"] != 1 || l.GetRefused()["allow_list"] != 1 {
		t.Errorf("watched: %v", l)
	}
	r.metric(`# HELP tidegate_enforce_list_entries Entries of address lists on this node: taken into the maps or refused.
# TYPE tidegate_enforce_list_entries gauge
tidegate_enforce_list_entries{action="allow",state="taken"} 1
tidegate_enforce_list_entries{action="count",state="refused"} 2
tidegate_enforce_list_entries{action="count",state="taken"} 2
tidegate_enforce_list_entries{action="drop",state="refused"} 6
tidegate_enforce_list_entries{action="drop",state="taken"} 3
`, "tidegate_enforce_list_entries")

	// A list that goes takes its entries along; what it shielded acts.
	all, err := r.bus.Lists(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.bus.DeleteList(context.Background(), "good", all["good"].Revision); err != nil {
		t.Fatal(err)
	}
	r.expectMaps("drop 203.0.113.0/24 1", "drop 192.0.2.101/32 1", "drop 198.51.100.0/24 1", "drop 198.51.100.7/32 1", "count 192.0.2.102/32 3", "count 0.0.0.0/1 3")
}

func TestListsInShadowAndPanic(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Enforce = false })
	r.putList("bad", 1, policyv1.Action_ACTION_DROP, "192.0.2.101\n")
	r.startReady()
	r.expectMaps("count 192.0.2.101/32 1")
	r.waitList("bad", "shadow")
	r.stop()

	r.cfg.Enforce = true
	r.startReady()
	r.expectMaps("drop 192.0.2.101/32 1")
	paused := func(want bool) {
		t.Helper()
		bustest.Wait(t, fmt.Sprint("paused ", want), func() bool { r.gate.mu.Lock(); defer r.gate.mu.Unlock(); return r.gate.paused == want })
	}
	paused(false)
	if err := r.bus.PutPanic(context.Background(), &eventv1.Panic{On: true, SinceNs: time.Now().UnixNano()}); err != nil {
		t.Fatal(err)
	}
	paused(true)
	r.waitList("bad", "paused")
	r.stop()
	r.gate.set(func(g *fakeGate) { g.paused = false })
	r.startReady() // panic goes on
	paused(true)
	if err := r.bus.PutPanic(context.Background(), &eventv1.Panic{SinceNs: time.Now().UnixNano()}); err != nil {
		t.Fatal(err)
	}
	paused(false)
	r.waitList("bad", "active")
}

// TestListWithoutObject: a list whose entries cannot be had fails alone, and is in force when they come.
func TestListWithoutObject(t *testing.T) {
	r := newRig(t, nil)
	ctx := context.Background()
	text := "192.0.2.101\n"
	object, err := r.bus.PutListEntries(ctx, "late", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.bus.DeleteListEntries(ctx, object); err != nil {
		t.Fatal(err)
	}
	if _, err := r.bus.UpdateList(ctx, &policyv1.AddressList{Name: "late", Number: 7, Action: policyv1.Action_ACTION_DROP, Object: object}, 0); err != nil {
		t.Fatal(err)
	}
	r.putList("other", 8, policyv1.Action_ACTION_DROP, "192.0.2.102\n")
	r.startReady()
	r.expectMaps("drop 192.0.2.102/32 8")
	if l := r.waitList("late", "failed"); l.GetProblem() == "" {
		t.Errorf("failed without a problem: %v", l)
	}
	if _, err := r.bus.PutListEntries(ctx, "late", []byte(text)); err != nil {
		t.Fatal(err)
	}
	r.expectMaps("drop 192.0.2.101/32 7", "drop 192.0.2.102/32 8")
	r.waitList("late", "active")
}

// TestAllowListWithoutObject: while it is not known whom an allow list exempts, no list begins to drop.
func TestAllowListWithoutObject(t *testing.T) {
	r := newRig(t, nil)
	r.putList("bad", 1, policyv1.Action_ACTION_DROP, "192.0.2.101\n192.0.2.102\n")
	r.putList("watched", 2, policyv1.Action_ACTION_COUNT, "192.0.2.103\n")
	object := "good.0000000000000000000000000000000000000000000000000000000000000000"
	revision, err := r.bus.UpdateList(t.Context(), &policyv1.AddressList{Name: "good", Number: 3, Action: policyv1.Action_ACTION_ALLOW, Object: object}, 0)
	if err != nil {
		t.Fatal(err)
	}
	r.startReady()
	r.expectMaps("count 192.0.2.103/32 2")
	if l := r.waitList("good", "failed"); l.GetProblem() == "" || r.list("bad").GetState() != "loading" {
		t.Errorf("good: %v, bad: %v", l, r.list("bad"))
	}
	if err := r.bus.DeleteList(t.Context(), "good", revision); err != nil {
		t.Fatal(err)
	}
	r.putList("good", 3, policyv1.Action_ACTION_ALLOW, "192.0.2.101\n")
	r.expectMaps("allow 192.0.2.101/32 3", "count 192.0.2.103/32 2", "drop 192.0.2.102/32 1")
	r.waitList("bad", "active")
}

// TestListReadableAgain: what was wrong with a version of a list is not said of the next one.
func TestListReadableAgain(t *testing.T) {
	l := newAddressLists()
	list := &policyv1.AddressList{Name: "bad", Action: policyv1.Action_ACTION_DROP, Object: "bad.1"}
	l.take(bus.ListUpdate{Name: "bad", List: list, Revision: 1})
	l.known["bad"].loaded, l.known["bad"].entries = "bad.1", []netip.Prefix{}
	l.take(bus.ListUpdate{Name: "bad", Revision: 2, Err: errors.New("no JSON")})
	if l.known["bad"].err == nil {
		t.Error("an unreadable version is not told")
	}
	l.take(bus.ListUpdate{Name: "bad", List: list, Revision: 3})
	if err := l.known["bad"].err; err != nil {
		t.Errorf("a good version with the entries of before: %v", err)
	}
}

// TestListOnRealLink: the source of a list is dropped, also while the service is away, until the list goes.
func TestListOnRealLink(t *testing.T) {
	l := newLink(t, 0)
	r := newRig(t, func(c *Config) { c.Ifaces, c.BPFFS = []string{l.iface}, l.bpffs })
	start := func() {
		t.Helper()
		r.start(openXDP(l.bpffs, telemetry.Discard("enforce")))
		waitReady(t, r.svc)
	}
	start()
	r.putList("bad", 5, policyv1.Action_ACTION_DROP, netip.PrefixFrom(l.from, 31).Masked().String()+"\n")
	r.waitList("bad", "active")
	quiet := func(when string) {
		t.Helper()
		if n := l.during(200 * time.Millisecond); n != 0 {
			t.Errorf("%s: %d packets of a listed source arrived", when, n)
		}
	}
	time.Sleep(20 * time.Millisecond) // what was on its way
	quiet("in force")
	if st := r.list("bad"); st.GetDropped() == 0 || st.GetPackets() != st.GetDropped() || st.GetBytes() == 0 {
		t.Errorf("counters %v", st)
	}
	before := l.arrived.Load()
	r.stop()
	quiet("stopped")
	start()
	r.waitList("bad", "active")
	if n := l.arrived.Load() - before; n != 0 {
		t.Errorf("%d packets arrived during the restart", n)
	}

	r.putList("bad", 5, policyv1.Action_ACTION_DROP, l.from.String()+"\n") // a host in place of its prefix
	bustest.Wait(t, "the new entries", func() bool { s := r.list("bad"); return s.GetState() == "active" && s.GetEntries() == 1 })
	quiet("changed")
	r.putList("good", 6, policyv1.Action_ACTION_ALLOW, l.from.String()+"\n")
	bustest.Wait(t, "packets of an allowed source", func() bool { return l.during(20*time.Millisecond) > 0 })
	all, err := r.bus.Lists(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.bus.DeleteList(context.Background(), "good", all["good"].Revision); err != nil {
		t.Fatal(err)
	}
	bustest.Wait(t, "quiet again", func() bool { return l.during(20*time.Millisecond) == 0 })
	if err := r.bus.PutPanic(context.Background(), &eventv1.Panic{On: true, SinceNs: time.Now().UnixNano()}); err != nil {
		t.Fatal(err)
	}
	bustest.Wait(t, "packets in panic", func() bool { return l.during(20*time.Millisecond) > 0 })
	if err := r.bus.PutPanic(context.Background(), &eventv1.Panic{SinceNs: time.Now().UnixNano()}); err != nil {
		t.Fatal(err)
	}
	bustest.Wait(t, "quiet after panic", func() bool { return l.during(20*time.Millisecond) == 0 })
	if err := r.bus.DeleteList(context.Background(), "bad", all["bad"].Revision); err != nil {
		t.Fatal(err)
	}
	bustest.Wait(t, "packets without a list", func() bool { return l.during(20*time.Millisecond) > 0 })
}

// millionHosts is the text of a list of n hosts, without those of the link.
func millionHosts(n int) string {
	var b strings.Builder
	for i := range n {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], 0x14000000+uint32(i)*1664525%0x60000000) //nolint:gosec // spread over 20.0.0.0 to 115.255.255.255
		b.WriteString(netip.AddrFrom4(a).String())
		b.WriteByte('\n')
	}
	return b.String()
}

// TestMillionHosts measures a long list from its store to the map, a restart with it, and what rules wait meanwhile.
func TestMillionHosts(t *testing.T) {
	const n = 1_000_000
	l := newLink(t, 0)
	r := newRig(t, func(c *Config) { c.Ifaces, c.BPFFS = []string{l.iface}, l.bpffs })
	start := func() {
		t.Helper()
		r.start(openXDP(l.bpffs, telemetry.Discard("enforce")))
		waitReady(t, r.svc)
	}
	start()
	text := millionHosts(n-1) + l.from.String() + "\n"
	if p, err := policy.ParseList([]byte(text), n); err != nil || len(p.Entries) != n {
		t.Fatalf("the test's list has %d entries, %v", len(p.Entries), err)
	}
	begin := time.Now()
	r.putList("long", 1, policyv1.Action_ACTION_DROP, text)
	var slowest time.Duration
	for i := 0; r.list("long").GetState() != "active"; i++ {
		rule := drop(fmt.Sprint("meanwhile", i), time.Minute)
		rule.Match.Src = netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), 32)
		put := time.Now()
		r.put(rule)
		for r.svc.find(rule.ID) == nil || !r.svc.find(rule.ID).inForce() {
			time.Sleep(200 * time.Microsecond)
		}
		slowest = max(slowest, time.Since(put))
		time.Sleep(20 * time.Millisecond)
	}
	took := time.Since(begin)
	if n := l.during(200 * time.Millisecond); n != 0 {
		t.Errorf("%d packets of a listed source arrived", n)
	}
	before := l.arrived.Load()
	r.stop()
	begin = time.Now()
	start()
	for r.list("long").GetState() != "active" {
		time.Sleep(5 * time.Millisecond)
	}
	restart := time.Since(begin)
	if n := l.arrived.Load() - before; n != 0 {
		t.Errorf("%d packets arrived during the restart", n)
	}
	t.Logf("%d hosts: store to map %s, restart %s, slowest rule meanwhile %s", n, took.Round(time.Millisecond), restart.Round(time.Millisecond), slowest.Round(10*time.Microsecond))
}

// TestDomains: lists of domains and rules by host are classify's. No entry of either is in a driver, and no other list
// suffers.
func TestDomains(t *testing.T) {
	r := newRig(t, nil)
	ctx := context.Background()
	object, err := r.bus.PutListEntries(ctx, "names", []byte("example.org\n"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.bus.UpdateList(ctx, &policyv1.AddressList{Name: "names", Kind: policy.KindDomain, Action: policyv1.Action_ACTION_DROP, Object: object}, 0); err != nil {
		t.Fatal(err)
	}
	r.putList("bad", 1, policyv1.Action_ACTION_DROP, "192.0.2.101\n")
	r.startReady()
	r.expectMaps("drop 192.0.2.101/32 1")
	if l := r.list("names"); l != nil {
		t.Errorf("a list of domains: %v", l)
	}
	added, err := r.svc.AddRule(ctx, &enforcev1.AddRuleRequest{Rule: &policyv1.Rule{
		Action: policyv1.Action_ACTION_DROP, Match: &policyv1.Match{Host: "example.org"}, Host: "forged", List: "forged",
	}})
	if err != nil {
		t.Fatal(err)
	}
	id := added.GetRule().GetId()
	if added.GetRule().GetHost() != "" || added.GetRule().GetList() != "" {
		t.Errorf("added %v", added.GetRule())
	}
	if n := r.gate.written(); n != 0 {
		t.Errorf("%d rules in the maps", n)
	}
	x, err := r.svc.ExplainRule(ctx, &enforcev1.ExplainRuleRequest{Id: id})
	if err != nil || x.GetState().GetState() != "active" ||
		!strings.HasPrefix(x.GetExplanation(), "Drops flows that name the host or one below it: host example.org. Classify makes a rule for each such flow. A user made it. It is in force.") {
		t.Errorf("%v, %v", x, err)
	}
	flow := policy.Rule{
		ID: "flow", Action: policy.Drop, Origin: policy.OriginDetector, Host: "www.example.org", List: "names", Lease: time.Minute,
		Created: time.Now().UTC(), Expires: time.Now().Add(time.Minute).UTC(),
		Match: policy.Match{
			Src: netip.MustParsePrefix("10.0.0.1/32"), Dst: netip.MustParsePrefix("198.51.100.1/32"), Protocol: 6, HasProtocol: true,
			SrcPort: 4000, HasSrcPort: true, DstPort: 443, HasDstPort: true,
		},
	}
	if err := r.bus.PutRule(ctx, flow); err != nil {
		t.Fatal(err)
	}
	bustest.Wait(t, "the flow's rule", func() bool { _, ok := r.gate.get(policy.NumericID("flow")); return ok })
	if x, err = r.svc.ExplainRule(ctx, &enforcev1.ExplainRuleRequest{Id: "flow"}); err != nil ||
		!strings.Contains(x.GetExplanation(), "Classify made it for one flow, which names www.example.org, because of the list names.") {
		t.Errorf("%v, %v", x, err)
	}
	if _, err := r.svc.RevokeRule(ctx, &enforcev1.RevokeRuleRequest{Id: id}); err != nil {
		t.Error(err)
	}
}
