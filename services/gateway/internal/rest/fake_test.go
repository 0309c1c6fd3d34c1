package rest

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/caller"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/ops"
)

const someTime = api.Nanos(1764064800000000000)

// fakeMesh is a small mesh in memory. Its rules are changed by compare-and-swap, as enforce does it.
type fakeMesh struct {
	mu       sync.Mutex
	rules    []api.Rule
	revision uint64
	panic    api.Panic
	calls    map[string]int
	filter   any // of the newest listing
	answers  map[string]answered
	down     *api.Problem // of what persist is asked for
}

type answered struct {
	print  string
	stored ops.Stored
}

func newFakeMesh() *fakeMesh {
	m := &fakeMesh{}
	m.reset()
	return m
}

// reset makes it as new.
func (m *fakeMesh) reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls, m.answers, m.rules, m.panic, m.revision = map[string]int{}, map[string]answered{}, nil, api.Panic{}, 0
	for i := range 5 {
		m.revision++
		r := api.Rule{RuleSpec: api.RuleSpec{ID: "rule" + strconv.Itoa(i), Action: "drop", Match: api.Match{Src: "192.0.2.0/24"}, MatchText: "src 192.0.2.0/24",
			Origin: policy.OriginUser, CreatedNs: someTime - api.Nanos(i/2)}, State: "active", Packets: 1 << 60, Nodes: []api.RuleNode{{Node: "a", State: "active"}}}
		if i%2 == 1 {
			r.Origin, r.AttackID, r.VerdictID, r.Lease, r.State = policy.OriginDetector, "attack1", "verdict1", "15s", "shadow"
		}
		r.Revision = strconv.FormatUint(m.revision, 10)
		m.rules = append(m.rules, r)
	}
}

// call counts and says whether the database is away.
func (m *fakeMesh) call(name string, filter any) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls[name]++
	m.filter = filter
	if m.down != nil {
		p := *m.down
		return &p
	}
	return nil
}

// fail makes the database be away, or not.
func (m *fakeMesh) fail(away bool, p *api.Problem) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down = nil
	if away {
		m.down = p
	}
}

func (m *fakeMesh) count(name string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.calls[name]
}

func (m *fakeMesh) asked() any {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.filter
}

func missing(what, id string) *api.Problem {
	return &api.Problem{Status: http.StatusNotFound, Title: "Not Found", Detail: "there is no " + what + " " + strconv.Quote(id)}
}

func fakePage[T any](p ops.Paging, v T) api.Page[T] {
	out := api.Page[T]{Items: []T{v}}
	if p.Cursor == "" {
		out.Next = "more-of-it"
	}
	return out
}

func (m *fakeMesh) Flows(_ context.Context, q ops.FlowQuery) (api.Page[api.Flow], error) {
	return fakePage(q.Paging, api.Flow{ID: "flow1", Sensor: "s", SrcIP: "192.0.2.1", DstIP: "2001:db8::1", DstPort: 443, Transport: "tcp", App: "tls",
		Packets: 1 << 62, FirstNs: someTime, LastNs: someTime}), m.call("flows", q)
}

func (m *fakeMesh) Top(_ context.Context, q ops.TopQuery) (api.Top, error) {
	return api.Top{By: q.By, Rows: []api.TopRow{{Key: "tls", Bytes: 1}}}, m.call("top", q)
}

func (m *fakeMesh) TimeSeries(_ context.Context, q ops.SeriesQuery) (api.TimeSeries, error) {
	return api.TimeSeries{StepNs: 1e9, Series: []api.Series{{Key: "tls", Points: []api.Point{{StartNs: someTime}}}}}, m.call("timeseries", q)
}

var fakeAttack = api.Attack{ID: "attack1", Type: "syn_flood", Target: "192.0.2.1", State: "started", FirstNs: someTime, DetectedNs: someTime, UpdatedNs: someTime, TopSources: []string{"198.51.100.1"}}

var fakeVerdict = api.Verdict{ID: "verdict1", AttackID: "attack1", Type: "syn_flood", DecidedNs: someTime, Rules: []api.RuleSpec{{ID: "rule1", Action: "drop", Origin: "detector"}},
	Evidence: api.Evidence{Features: map[string]float64{"pps": 1}, Thresholds: map[string]float64{}, Windows: []string{"1"}}}

func (m *fakeMesh) Attacks(_ context.Context, q ops.AttackQuery) (api.Page[api.Attack], error) {
	return fakePage(q.Paging, fakeAttack), m.call("attacks", q)
}

func (m *fakeMesh) Attack(_ context.Context, id string) (api.AttackDetail, error) {
	if id != fakeAttack.ID {
		return api.AttackDetail{}, missing("attack", id)
	}
	return api.AttackDetail{Attack: fakeAttack, Timeline: []api.TimelineEntry{{TimeNs: someTime, Kind: "attack", State: "started"}}, Verdicts: []api.Verdict{fakeVerdict}}, m.call("attack", id)
}

func (m *fakeMesh) AttackPcap(_ context.Context, id string) (string, []byte, error) {
	if id != fakeAttack.ID {
		return "", nil, missing("attack", id)
	}
	return id + ".pcap", []byte{0xd4, 0xc3, 0xb2, 0xa1, 0, 0xff}, m.call("pcap", id)
}

func (m *fakeMesh) Verdicts(_ context.Context, q ops.VerdictQuery) (api.Page[api.Verdict], error) {
	return fakePage(q.Paging, fakeVerdict), m.call("verdicts", q)
}

func (m *fakeMesh) Verdict(_ context.Context, id string) (api.Verdict, error) {
	if id != fakeVerdict.ID {
		return api.Verdict{}, missing("verdict", id)
	}
	return fakeVerdict, m.call("verdict", id)
}

func (m *fakeMesh) Audit(_ context.Context, q ops.AuditQuery) (api.Page[api.AuditEntry], error) {
	return fakePage(q.Paging, api.AuditEntry{ID: "1", TimeNs: someTime, Actor: "ada", Action: "rule.add", Outcome: "done", After: map[string]any{"id": "r"}}), m.call("audit", q)
}

func (m *fakeMesh) Rules(context.Context) ([]api.Rule, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls["rules"]++
	return slices.Clone(m.rules), nil
}

// at is the place of a rule; the caller holds the lock.
func (m *fakeMesh) at(id string) int {
	return slices.IndexFunc(m.rules, func(r api.Rule) bool { return r.ID == id })
}

func (m *fakeMesh) Rule(_ context.Context, id string) (api.Rule, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if i := m.at(id); i >= 0 {
		return m.rules[i], nil
	}
	return api.Rule{}, missing("rule", id)
}

func (m *fakeMesh) Explain(ctx context.Context, id string) (api.Explanation, error) {
	r, err := m.Rule(ctx, id)
	v := fakeVerdict
	return api.Explanation{Rule: r, Text: "because", Verdict: &v}, err
}

func (m *fakeMesh) Groups(context.Context) ([]api.Group, error) {
	return []api.Group{{Name: "all", Prefixes: []string{}, Thresholds: map[string]float64{"syn": 1},
		Learned: []api.LearnedHost{{Host: "192.0.2.1", Thresholds: map[string]float64{"syn": 2}}}}}, nil
}

var fakeInterface = api.Interface{Name: "eth0", Mode: "inline", XDPPackets: map[string]uint64{"seen": 1}, XDPBytes: map[string]uint64{}}

func (m *fakeMesh) Sensors(context.Context) ([]api.Sensor, []api.Missing) {
	return []api.Sensor{{Name: "s", Ready: true, Interfaces: []api.Interface{fakeInterface}, TopDst: []api.Talker{}, TopSrc: []api.Talker{{Addr: "192.0.2.1", PPS: 1.5}}}}, nil
}

func (m *fakeMesh) Nodes(context.Context) ([]api.Node, error) {
	return []api.Node{{Service: "enforce", Instance: "a", StartedNs: someTime, SeenNs: someTime}}, nil
}

var fakeLedger = api.Ledger{Stages: []api.Stage{{Stage: "wire", In: 1, InName: "seen", Out: map[string]uint64{"passed": 1}}}, Difference: -1}

func (m *fakeMesh) Ledger(context.Context) (api.Ledger, error) { return fakeLedger, nil }

func (m *fakeMesh) Status(context.Context) api.Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls["status"]++
	return api.Status{Services: []api.Service{{Service: "ingest", Problems: []string{}}}, Missing: []api.Missing{{Service: "persist", Address: "x", Problem: "is away"}},
		Interfaces: []api.Interface{fakeInterface}, Streams: []api.ClassifyStream{{Sensor: "s", Address: "x", Problem: "is away"}}, Panic: m.panic, Ledger: fakeLedger}
}

func (m *fakeMesh) PanicState(context.Context) (api.Panic, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.panic, nil
}

func (m *fakeMesh) DryRun(_ context.Context, in api.RuleInput) (api.DryRun, error) {
	r, err := in.Rule(someTime.Time())
	if err != nil {
		return api.DryRun{}, err
	}
	r.ID = "dry"
	return api.DryRun{Rule: api.NewRuleSpec(&r), Accepted: true, Matched: &api.Matched{Apps: []api.TopRow{}}}, nil
}

// put stores a rule; the caller holds the lock.
func (m *fakeMesh) put(i int, id string, in api.RuleInput) (api.Rule, error) {
	r, err := in.Rule(someTime.Time())
	if err != nil {
		return api.Rule{}, err
	}
	r.ID = id
	m.revision++
	out := api.Rule{RuleSpec: api.NewRuleSpec(&r), Revision: strconv.FormatUint(m.revision, 10), State: "pending", Nodes: []api.RuleNode{}}
	if i < 0 {
		m.rules = append([]api.Rule{out}, m.rules[:min(len(m.rules), 100)]...)
	} else {
		m.rules[i] = out
	}
	return out, nil
}

func (m *fakeMesh) AddRule(_ context.Context, in api.RuleInput) (api.Rule, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls["add"]++
	if in.Match.Dst == "203.0.113.1" {
		return api.Rule{}, &api.Problem{Status: http.StatusUnprocessableEntity, Title: "Unprocessable Entity", Reason: "never_block", Detail: "it is never blocked"}
	}
	id := policy.DerivedID(in.Action, in.Match.Src, in.Match.Dst)
	return m.put(m.at(id), id, in)
}

// change finds the rule that still has a revision; the caller holds the lock.
func (m *fakeMesh) change(id, revision string) (int, error) {
	i := m.at(id)
	switch {
	case i < 0:
		return i, missing("rule", id)
	case revision != "" && revision != m.rules[i].Revision:
		return i, &api.Problem{Status: http.StatusPreconditionFailed, Title: "Precondition Failed", Detail: "somebody else has changed it meanwhile"}
	}
	return i, nil
}

func (m *fakeMesh) ReplaceRule(_ context.Context, id, revision string, in api.RuleInput) (api.Rule, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i, err := m.change(id, revision)
	if err != nil {
		return api.Rule{}, err
	}
	return m.put(i, id, in)
}

func (m *fakeMesh) RevokeRule(_ context.Context, id, revision string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	i, err := m.change(id, revision)
	if err == nil {
		m.rules = slices.Delete(m.rules, i, i+1)
	}
	return err
}

var fakeList = api.List{Name: "list0", Kind: "cidr", Action: "drop", URL: "https://lists.example/drop.txt", Every: "1h0m0s", Hosts: 1, Prefixes: 1 << 40, Rejected: 1,
	Examples:  []api.RejectedLine{{Line: 3, Text: "nonsense", Reason: "neither an address nor a prefix"}},
	CreatedNs: someTime, UpdatedNs: someTime, CheckedNs: someTime, Problem: "the server answered 404", Revision: "7", Nodes: []api.ListNode{{Node: "a", State: "active",
		Entries: 1, Refused: map[string]uint64{"never_block": 1}, Examples: []string{"203.0.113.1/32: never_block: it is inside"}, Packets: 1, Bytes: 60, Dropped: 1, AppliedNs: someTime}}}

func (m *fakeMesh) Lists(context.Context) ([]api.List, error) {
	l := fakeList
	l.Nodes = []api.ListNode{}
	return []api.List{l}, m.call("lists", nil)
}

func (m *fakeMesh) List(_ context.Context, name string) (api.List, error) {
	if name != fakeList.Name {
		return api.List{}, missing("list", name)
	}
	return fakeList, m.call("list", nil)
}

func (m *fakeMesh) PutList(_ context.Context, name string, in api.ListInput) (api.List, error) {
	l := fakeList
	l.Name, l.Action, l.URL, l.Every, l.Comment = name, in.Action, in.URL, in.Every, in.Comment
	return l, m.call("put list", in)
}

func (m *fakeMesh) PutListEntries(_ context.Context, name string, text []byte) (api.List, error) {
	if name != fakeList.Name {
		return api.List{}, missing("list", name)
	}
	return fakeList, m.call("entries", string(text))
}

func (m *fakeMesh) DeleteList(_ context.Context, name string) error {
	if name != fakeList.Name {
		return missing("list", name)
	}
	return m.call("delete list", nil)
}

func (m *fakeMesh) Panic(ctx context.Context, on bool, reason string) (api.PanicResult, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls["panic"]++
	if strings.Contains(reason, "fail") {
		return api.PanicResult{}, context.DeadlineExceeded // an error that is no problem
	}
	m.panic = api.Panic{On: on, SinceNs: someTime, By: caller.From(ctx).Subject, Reason: reason}
	return api.PanicResult{Panic: m.panic, Revoked: []api.RuleSpec{}, Nodes: []api.PanicNode{{Node: "a", Done: true}}}, nil
}

func (m *fakeMesh) Capture(_ context.Context, in api.CaptureInput, write func([]byte) error) (api.CaptureSummary, error) {
	switch {
	case in.Sensor == "none":
		return api.CaptureSummary{}, missing("sensor", in.Sensor)
	case strings.Contains(in.Filter, "prot"):
		return api.CaptureSummary{}, &api.Problem{Status: http.StatusUnprocessableEntity, Title: "Unprocessable Entity", Detail: "filter: column 5"}
	}
	if err := m.call("capture", in); err != nil {
		return api.CaptureSummary{}, err
	}
	for _, part := range []string{"one ", "two"} {
		if err := write([]byte(part)); err != nil {
			return api.CaptureSummary{}, err
		}
	}
	return api.CaptureSummary{Sensor: "s", Reason: "count", Frames: 10}, nil
}

func (m *fakeMesh) Once(ctx context.Context, key string, fingerprint []byte, do func(context.Context) ops.Stored) (ops.Stored, bool, error) {
	key = caller.From(ctx).Subject + " " + key
	m.mu.Lock()
	a, ok := m.answers[key]
	m.mu.Unlock()
	if ok {
		if a.print != string(fingerprint) {
			return ops.Stored{}, false, &api.Problem{Status: http.StatusUnprocessableEntity, Title: "Unprocessable Entity", Reason: "idempotency_key_reused"}
		}
		return a.stored, true, nil
	}
	s := do(ctx)
	m.mu.Lock()
	m.answers[key] = answered{string(fingerprint), s}
	m.mu.Unlock()
	return s, false, nil
}
