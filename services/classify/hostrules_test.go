package classify

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/bus/bustest"
	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/hostlist"
)

// clientHello is what a real client sends first.
func clientHello(t *testing.T, host string) []byte {
	t.Helper()
	here, there := net.Pipe()
	go func() {
		_ = tls.Client(here, &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}).Handshake() // ends with the pipe
		_ = here.Close()
	}()
	head := make([]byte, 5)
	if _, err := io.ReadFull(there, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, int(head[3])<<8|int(head[4]))
	if _, err := io.ReadFull(there, body); err != nil {
		t.Fatal(err)
	}
	_ = there.Close()
	return append(head, body...)
}

// hello is a flow of the batch that begins with data.
func hello(id uint64, k flow.Key, data []byte) *flowv1.FlowBatch {
	b := &flowv1.FlowBatch{Sensor: "s", Epoch: 1, Batch: id}
	flow.AppendOpen(b, &flow.Open{ID: id, Key: k, FirstNs: labStart})
	flow.AppendSegment(b, id, 0, 0, labStart, data)
	return b
}

func hostKey(port uint16) flow.Key {
	return flow.Key{Src: netip.MustParseAddr("10.20.0.5").As16(), Dst: victim.As16(), SrcPort: port, DstPort: 443, Protocol: 6}
}

// namedBy are the flows of a batch that name a listed host, as host action list entry.
func namedBy(t *testing.T, e *Engine, b *flowv1.FlowBatch) (out []string) {
	t.Helper()
	var res BatchResult
	if err := e.Batch(b, &res); err != nil {
		t.Fatal(err)
	}
	for _, n := range res.Named {
		out = append(out, fmt.Sprint(n.Host, " ", n.Found.Action, " ", n.Found.List, n.Found.RuleID, " ", n.Found.Entry))
	}
	return out
}

// TestNamedFlows: the engine asks the table about names of TLS, QUIC's are the same, and HTTP, once; not about questions to
// resolvers.
func TestNamedFlows(t *testing.T) {
	s := newHostService(t, nil)
	s.set(t, map[string]*watchedList{"bad": list(policy.Drop, "example.org\nexample.net\n")}, nil)
	e := s.engine
	if got := namedBy(t, e, hello(1, hostKey(40001), clientHello(t, "WWW.example.org"))); !slices.Equal(got, []string{"www.example.org drop bad example.org"}) {
		t.Errorf("TLS: %q", got)
	}
	if got := namedBy(t, e, hello(2, hostKey(40002), clientHello(t, "example.com"))); len(got) != 0 {
		t.Errorf("another name: %q", got)
	}
	var b flowv1.FlowBatch
	appendTalks(&b, 100)
	if got := namedBy(t, e, &b); !slices.Equal(got, []string{"shop.example.net drop bad example.net"}) {
		t.Errorf("HTTP and a DNS question: %q", got)
	}
	whole := clientHello(t, "a.b.example.org")
	x := hello(3, hostKey(40003), whole[:100])
	flow.AppendSegment(x, 3, 0, 100, labStart, whole[100:])
	flow.AppendSegment(x, 3, 0, uint32(len(whole)), labStart, []byte("more")) //nolint:gosec // small
	if got := namedBy(t, e, x); !slices.Equal(got, []string{"a.b.example.org drop bad example.org"}) {
		t.Errorf("a hello in two segments: %q", got)
	}
	var res BatchResult
	y := &flowv1.FlowBatch{Sensor: "s", Epoch: 1}
	flow.AppendOpen(y, &flow.Open{ID: 4, Key: hostKey(40004), FirstNs: labStart})
	flow.AppendSegment(y, 4, 1, 0, labStart, clientHello(t, "www.example.org")) // met in its middle: the server sent first
	if err := e.Batch(y, &res); err != nil || len(res.Named) != 1 || res.Named[0].Key != hostKey(40004).Reverse() {
		t.Errorf("a flow met in its middle: %+v, %v", res.Named, err)
	}
}

// hostService is a service that nothing runs.
type hostService struct {
	*Service
	bus *fakeBus
}

func newHostService(t *testing.T, edit func(*Config)) hostService {
	t.Helper()
	b := &fakeBus{rules: make(map[string]policy.Rule)}
	now := time.Unix(0, labStart)
	r := newRig(t, b, func(c *Config) {
		c.Engine.Now = func() int64 { return now.UnixNano() }
		if edit != nil {
			edit(c)
		}
	})
	r.stop()
	return hostService{r.svc, b}
}

func list(a policy.Action, text string) *watchedList {
	return &watchedList{
		list: &policyv1.AddressList{Kind: policy.KindDomain, Action: policyv1.Action(a), RatePps: map[policy.Action]uint64{policy.RateLimit: 9}[a], Object: "o"}, text: []byte(text),
		loaded: "o", ready: true, counts: &hostCounts{},
	}
}

func (s hostService) set(t *testing.T, lists map[string]*watchedList, rules map[string]policy.Rule) {
	t.Helper()
	s.hosts.lists, s.hosts.users = lists, rules
	if err := s.updateTable(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// see puts one flow through engine and judgement.
func (s hostService) see(t *testing.T, id uint64, host string) {
	t.Helper()
	var res BatchResult
	if err := s.engine.Batch(hello(id, hostKey(uint16(id)), clientHello(t, host)), &res); err != nil { //nolint:gosec // few
		t.Fatal(err)
	}
	s.judgeNamed("s", res.Named)
}

// store does what the putters would.
func (s hostService) store(t *testing.T) {
	t.Helper()
	for len(s.hostQueue) > 0 {
		s.storeFlow(t.Context(), <-s.hostQueue)
	}
}

func TestFlowRules(t *testing.T) {
	s := newHostService(t, nil)
	s.set(t, map[string]*watchedList{
		"bad": list(policy.Drop, "bad.example\n"), "good": list(policy.Allow, "fine.bad.example\n"), "slow": list(policy.RateLimit, "slow.example\n"),
	}, nil)
	s.see(t, 1, "www.bad.example")
	s.see(t, 2, "fine.bad.example")
	s.see(t, 3, "slow.example")
	s.see(t, 4, "other.example")
	s.store(t)
	var got []string
	for _, r := range s.bus.rules {
		got = append(got, fmt.Sprint(r.Action, " ", r.RatePPS, " ", r.Match.String(), " ", r.Host, " ", r.List))
		if r.Origin != policy.OriginDetector || r.Lease != 3*time.Minute || !r.Expires.Equal(time.Unix(0, labStart).Add(r.Lease)) || r.VerdictID == "" || r.Traceparent == "" || r.AttackID != "" || r.Validate() != nil {
			t.Errorf("rule %+v", r)
		}
	}
	slices.Sort(got)
	if want := []string{
		"drop 0 proto 6 src 10.20.0.5/32 sport 1 dst 10.77.0.2/32 dport 443 www.bad.example bad",
		"drop 0 proto 6 src 10.77.0.2/32 sport 443 dst 10.20.0.5/32 dport 1 www.bad.example bad",
		"rate-limit 9 proto 6 src 10.20.0.5/32 sport 3 dst 10.77.0.2/32 dport 443 slow.example slow",
		"rate-limit 9 proto 6 src 10.77.0.2/32 sport 443 dst 10.20.0.5/32 dport 3 slow.example slow",
	}; !slices.Equal(got, want) {
		t.Errorf("rules\n%s", strings.Join(got, "\n"))
	}
	if len(s.bus.verdicts) != 2 {
		t.Fatalf("%d verdicts", len(s.bus.verdicts))
	}
	v := s.bus.verdicts[0]
	if e := v.GetEvidence(); v.GetType() != "domain_list" || v.GetKey() != "flow" || v.GetTarget() != victim.String() || len(v.GetRules()) != 2 || v.GetTraceId() == "" ||
		e.GetHost() != "www.bad.example" || e.GetList() != "bad" || e.GetEntry() != "bad.example" ||
		v.GetExplanation() != "Stops the flow between 10.20.0.5:1 and 10.77.0.2:443: the flow names www.bad.example, and list bad has bad.example." {
		t.Errorf("verdict %v", v)
	}
	if order := strings.Join(s.bus.order, " "); strings.LastIndex(order, "rule") > strings.LastIndex(order, "verdict") {
		t.Errorf("order %s", order)
	}
	for action, want := range map[string]float64{"drop": 1, "allow": 1, "rate-limit": 1, "count": 0} {
		if n := testutil.ToFloat64(s.metrics.hostFlows.WithLabelValues(action)); n != want {
			t.Errorf("flows that are to %s: %v", action, n)
		}
	}
	lists, err := s.DomainLists(t.Context(), nil)
	if err != nil || len(lists.GetLists()) != 3 {
		t.Fatalf("%v, %v", lists, err)
	}
	if l := lists.GetLists()[0]; l.GetName() != "bad" || l.GetState() != "active" || l.GetEntries() != 1 || l.GetFlows() != 1 || l.GetStopped() != 1 {
		t.Errorf("list %v", l)
	}
	if l := lists.GetLists()[1]; l.GetFlows() != 1 || l.GetStopped() != 0 {
		t.Errorf("allow list %v", l)
	}
	// The flow is met again, as by another sensor: its rules are in force.
	s.judgeNamed("s2", []NamedFlow{{Key: hostKey(1), Host: "www.bad.example", Found: s.find("www.bad.example")}})
	if len(s.hostQueue) != 0 {
		t.Error("rules are made again")
	}
}

// TestBounds: what is beyond a bound makes no rules and is counted.
func TestBounds(t *testing.T) {
	suppressed := func(s hostService) (out []float64) {
		for _, reason := range []string{suppressedRate, suppressedLimit, suppressedQueue} {
			out = append(out, testutil.ToFloat64(s.metrics.hostSuppressed.WithLabelValues(reason)))
		}
		return out
	}
	many := func(s hostService, n int) {
		s.set(t, map[string]*watchedList{"bad": list(policy.Drop, "bad.example\n")}, nil)
		for i := range n {
			s.judgeNamed("s", []NamedFlow{{Key: hostKey(uint16(i + 1)), Host: "bad.example", Found: s.find("bad.example")}}) //nolint:gosec // few
		}
	}
	s := newHostService(t, func(c *Config) { c.HostRate = 10 })
	many(s, 1000)
	if got := suppressed(s); !slices.Equal(got, []float64{950, 0, 0}) || len(s.hostQueue) != 50 {
		t.Errorf("by rate: %v, %d queued", got, len(s.hostQueue))
	}
	s = newHostService(t, func(c *Config) { c.HostFlows = 20 })
	many(s, 90)
	if got := suppressed(s); !slices.Equal(got, []float64{0, 70, 0}) {
		t.Errorf("by rules in force: %v", got)
	}
	s = newHostService(t, func(c *Config) { c.HostRate = 1000 })
	many(s, 300)
	if got := suppressed(s); !slices.Equal(got, []float64{0, 0, 300 - hostQueue}) {
		t.Errorf("by the queue: %v", got)
	}
	if n := len(s.hosts.made); n != flowRules*hostQueue {
		t.Errorf("%d rules noted as made", n)
	}
	// NATS is away: what could not be stored is not taken for being in force.
	s.bus.setFail(bus.ErrUnavailable)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	s.storeFlow(ctx, <-s.hostQueue)
	if n := len(s.hosts.made); n != flowRules*(hostQueue-1) {
		t.Errorf("%d rules noted as made after a failure", n)
	}
}

// TestWithdrawnMeanwhile: a flow whose host goes from the list while its rules wait for NATS, or while a node renews them, does
// not keep them.
func TestWithdrawnMeanwhile(t *testing.T) {
	s := newHostService(t, nil)
	bad, none := map[string]*watchedList{"bad": list(policy.Drop, "bad.example\n")}, map[string]*watchedList{}
	s.set(t, bad, nil)
	s.see(t, 1, "bad.example")
	s.set(t, none, nil)
	s.store(t)
	if len(s.bus.rules) != 0 || len(s.bus.verdicts) != 0 || len(s.hosts.made) != 0 {
		t.Errorf("%d rules, %d verdicts, %d noted", len(s.bus.rules), len(s.bus.verdicts), len(s.hosts.made))
	}
	s.set(t, bad, nil)
	s.see(t, 2, "bad.example")
	s.store(t)
	for _, r := range s.bus.rules {
		s.hosts.takeRule(bus.RuleUpdate{ID: r.ID, Rule: &r, Revision: 7})
	}
	s.bus.conflict = true
	s.hosts.lists = none
	if err := s.updateTable(t.Context()); err != nil {
		t.Error(err)
	}
	select {
	case <-s.hosts.wake:
	case <-time.After(10 * listRetryMin):
		t.Error("a rule that was renewed at the same time is not looked at again")
	}
	s.bus.conflict = false
	if err := s.updateTable(t.Context()); err != nil {
		t.Error(err)
	}
	for _, r := range s.bus.rules {
		if r.Lease != 0 {
			t.Errorf("rule %+v", r)
		}
	}
}

func (s hostService) find(host string) (f hostlist.Found) {
	f, _ = s.engine.hosts.Load().Find(host, &flow.Key{}, 0)
	return f
}

// TestListChanges: an unexpectedly empty bucket and an object that is missing leave what is in force.
func TestListChanges(t *testing.T) {
	h := newHostState()
	l := func(name, kind string) bus.ListUpdate {
		return bus.ListUpdate{Name: name, List: &policyv1.AddressList{Name: name, Kind: kind, Action: policyv1.Action_ACTION_DROP}}
	}
	allow := func(name string) bus.ListUpdate {
		u := l(name, "cidr")
		u.List.Action = policyv1.Action_ACTION_ALLOW
		return u
	}
	names := func() string { return strings.Join(slices.Sorted(maps.Keys(h.lists)), " ") }
	for i, step := range []struct {
		updates []bus.ListUpdate
		want    string
	}{
		{[]bus.ListUpdate{{Restarted: true}, l("a", "domain"), l("b", "domain"), l("c", ""), l("d", "cidr"), {Synced: true}}, "a b"},
		{[]bus.ListUpdate{{Restarted: true}, {Synced: true}}, "a b"},
		{[]bus.ListUpdate{{Restarted: true}, l("d", "cidr"), l("b", "domain"), {Synced: true}}, "b"},
		{[]bus.ListUpdate{{Restarted: true}, {Name: "b", Err: io.ErrUnexpectedEOF}, {Synced: true}}, "b"},
		{[]bus.ListUpdate{{Name: "b"}}, ""},
		{[]bus.ListUpdate{allow("d"), allow("e")}, "d e"},
		{[]bus.ListUpdate{l("d", "cidr")}, "e"}, // it drops now
	} {
		for _, u := range step.updates {
			h.takeList(u)
		}
		if names() != step.want {
			t.Errorf("step %d: lists %q, want %q", i, names(), step.want)
		}
	}
}

// TestDomainListsOverNATS: two classifiers with one real NATS server see the same flow and make one rule a direction; what
// goes from the list loses its rules.
func TestDomainListsOverNATS(t *testing.T) {
	ctx := t.Context()
	embedded, err := bus.StartEmbedded(ctx, t.TempDir(), bus.Listen{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(embedded.Shutdown)
	nats := bustest.Open(t, bus.Config{Embedded: embedded})
	var mu sync.Mutex
	var verdicts []*eventv1.Verdict
	watching, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		_ = nats.FollowEvents(watching, 0, []string{bus.AllVerdicts}, func(m bus.EventMsg) {
			mu.Lock()
			defer mu.Unlock()
			verdicts = append(verdicts, m.Verdict)
		}, func(bus.Gap) {})
	}()
	rigs := []*rig{newRig(t, bustest.Open(t, bus.Config{Embedded: embedded})), newRig(t, bustest.Open(t, bus.Config{Embedded: embedded}))}
	put := func(text string, revision uint64) uint64 {
		t.Helper()
		object, err := nats.PutListEntries(ctx, "bad", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		revision, err = nats.UpdateList(ctx, &policyv1.AddressList{Name: "bad", Kind: policy.KindDomain, Action: policyv1.Action_ACTION_DROP, Object: object, CreatedNs: 1}, revision)
		if err != nil {
			t.Fatal(err)
		}
		bustest.Wait(t, "the list", func() bool {
			for _, r := range rigs {
				resp, err := r.client.DomainLists(ctx, &classifyv1.DomainListsRequest{})
				if err != nil || len(resp.GetLists()) != 1 || resp.GetLists()[0].GetObject() != object || resp.GetLists()[0].GetState() != "active" {
					return false
				}
			}
			return true
		})
		return revision
	}
	revision := put("bad.example\nworse.example\n", 0)
	user := policy.Rule{ID: "user", Action: policy.Count, Origin: policy.OriginUser, Match: policy.Match{Host: "watched.example"}, Created: time.Now().UTC()}
	if err := nats.PutRule(ctx, user); err != nil {
		t.Fatal(err)
	}
	bustest.Wait(t, "the user's rule", func() bool {
		for _, r := range rigs {
			if _, ok := r.svc.engine.hosts.Load().Find("watched.example", &flow.Key{}, 1); !ok {
				return false
			}
		}
		return true
	})
	for i, r := range rigs {
		st, err := r.client.Stream(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for id, host := range []string{"", "www.bad.example", "fine.example", "worse.example", "watched.example"} {
			if host == "" {
				continue
			}
			b := hello(uint64(id), hostKey(uint16(id)), clientHello(t, host)) //nolint:gosec // few
			b.Sensor = fmt.Sprint("sensor", i)
			if err := st.Send(&classifyv1.StreamRequest{Item: &classifyv1.StreamRequest_Batch{Batch: b}}); err != nil {
				t.Fatal(err)
			}
		}
		for range 4 {
			if _, err := st.Recv(); err != nil {
				t.Fatal(err)
			}
		}
	}
	hosts := func() map[string]int {
		t.Helper()
		all, err := nats.Rules(ctx)
		if err != nil {
			t.Fatal(err)
		}
		out := make(map[string]int)
		for _, e := range all {
			if e.Rule.Host != "" && time.Until(e.Rule.Expires) > time.Minute {
				out[fmt.Sprint(e.Rule.Action, " ", e.Rule.Host, " ", e.Rule.List, e.Rule.HostRule)]++
			}
		}
		return out
	}
	want := map[string]int{"drop www.bad.example bad": 2, "drop worse.example bad": 2, "count watched.example user": 2}
	bustest.Wait(t, "the rules", func() bool { return maps.Equal(hosts(), want) })
	bustest.Wait(t, "the verdicts", func() bool { mu.Lock(); defer mu.Unlock(); return len(verdicts) >= 3 })
	mu.Lock()
	for _, v := range verdicts {
		if len(v.GetRules()) != 2 || v.GetEvidence().GetHost() == "" || v.GetEvidence().GetEntry() == "" {
			t.Errorf("verdict %v", v)
		}
	}
	mu.Unlock()
	revision = put("bad.example\n", revision)
	delete(want, "drop worse.example bad")
	bustest.Wait(t, "one domain gone", func() bool { return maps.Equal(hosts(), want) })
	if err := nats.DeleteList(ctx, "bad", revision); err != nil {
		t.Fatal(err)
	}
	delete(want, "drop www.bad.example bad")
	bustest.Wait(t, "the list gone", func() bool { return maps.Equal(hosts(), want) })
	if err := nats.DeleteRule(ctx, "user"); err != nil {
		t.Fatal(err)
	}
	bustest.Wait(t, "the user's rule gone", func() bool { return len(hosts()) == 0 })
}

// TestNamesCostNothing: flows whose names are in no list are compared without an allocation.
func TestNamesCostNothing(t *testing.T) {
	l := newLab(t, func(c *EngineConfig) { c.LabelsOnly = true })
	table, _ := hostlist.New([]hostlist.List{{Name: "bad", Action: policy.Drop, Text: []byte("bad.example\nother.net\n")}}, nil)
	l.e.hosts.Store(table)
	out := BatchResult{Reuse: true}
	id := uint64(0)
	if n := testing.AllocsPerRun(200, func() {
		id += 10
		appendTalks(&l.batch, id)
		if err := l.e.Batch(&l.batch, &out); err != nil || len(out.Named) != 0 {
			t.Fatal(err, out.Named)
		}
	}); n != 0 {
		t.Errorf("%v allocations for %d flows", n, len(talks))
	}
}
