package classify

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/rpc"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

// fakeBus records what is published; fail makes every call fail.
type fakeBus struct {
	mu       sync.Mutex
	fail     error
	flows    []*eventv1.FlowRecords
	attacks  []*eventv1.Attack
	verdicts []*eventv1.Verdict
	rules    map[string]policy.Rule
	order    []string
	windows  int
	beats    int
	usual    map[string]*eventv1.UsualDay // by node and day
	usualErr error
	already  bool // another classifier has published every flow
	conflict bool // rules are always changed by somebody else meanwhile
}

func (b *fakeBus) do(what string, f func()) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail != nil {
		return b.fail
	}
	b.order = append(b.order, what)
	f()
	return nil
}

func (b *fakeBus) setFail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fail = err
}

func (b *fakeBus) EnsureStreams(context.Context) error { return b.do("streams", func() {}) }

func (b *fakeBus) PublishFlows(_ context.Context, f *eventv1.FlowRecords) (bool, error) {
	if len(f.GetRecords()) > 300 {
		return false, bus.ErrTooLarge
	}
	return b.already, b.do("flows", func() { b.flows = append(b.flows, f) })
}

func (b *fakeBus) PublishAttack(_ context.Context, a *eventv1.Attack) error {
	return b.do("attack", func() { b.attacks = append(b.attacks, a) })
}

func (b *fakeBus) PublishVerdict(_ context.Context, v *eventv1.Verdict) error {
	return b.do("verdict", func() { b.verdicts = append(b.verdicts, v) })
}

func (b *fakeBus) PublishWindow(context.Context, string, *flowv1.Window) error {
	return b.do("window", func() { b.windows++ })
}

func (b *fakeBus) PutRule(_ context.Context, r policy.Rule) error {
	return b.do("rule", func() { b.rules[r.ID] = r })
}

func (b *fakeBus) Rules(context.Context) (map[string]bus.RuleEntry, error) { return nil, nil }

func (b *fakeBus) UpdateRule(_ context.Context, r policy.Rule, _ uint64) (uint64, error) {
	if b.conflict {
		return 0, bus.ErrConflict
	}
	return 1, b.do("update rule", func() { b.rules[r.ID] = r })
}

func (b *fakeBus) WatchRules(ctx context.Context, _ func(bus.RuleUpdate)) error {
	<-ctx.Done()
	return nil
}

func (b *fakeBus) WatchLists(ctx context.Context, _ func(bus.ListUpdate)) error {
	<-ctx.Done()
	return nil
}

func (b *fakeBus) ListEntries(context.Context, string) ([]byte, error) { return nil, nil }

func (b *fakeBus) ConsumeEventsEphemeral(ctx context.Context, _ []string, _ func(bus.EventMsg)) error {
	<-ctx.Done()
	return nil
}

func (b *fakeBus) StoreUsual(_ context.Context, d *eventv1.UsualDay) error {
	return b.do("usual", func() {
		if b.usual == nil {
			b.usual = make(map[string]*eventv1.UsualDay)
		}
		b.usual[fmt.Sprint(d.GetNode(), " ", d.GetDay())] = d
	})
}

func (b *fakeBus) LoadUsual(_ context.Context, q *eventv1.UsualQuery) (d *eventv1.UsualDay, err error) {
	err = b.do("ask", func() {
		for _, x := range b.usual {
			if x.GetDay() == q.GetDay() && x.GetNode() > q.GetAfter() && (d == nil || x.GetNode() < d.GetNode()) {
				d = x
			}
		}
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil {
		err = b.usualErr
	}
	return d, err
}

func (b *fakeBus) Heartbeat(context.Context, *eventv1.NodeHeartbeat) error {
	return b.do("beat", func() { b.beats++ })
}

// rig is a service behind in-memory gRPC.
type rig struct {
	t      *testing.T
	tel    *telemetry.Telemetry
	svc    *Service
	client classifyv1.ClassifyServiceClient
	stop   func()
}

func newRig(t *testing.T, b Bus, change ...func(*Config)) *rig {
	t.Helper()
	tel := telemetry.Discard("classify")
	srv, _, err := rpc.NewServer(tel, rpc.TLS{})
	if err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.MaxInFlight = 2
	for _, f := range change {
		f(&cfg)
	}
	svc, err := New(cfg, Deps{Telemetry: tel, Registrar: srv, Bus: b})
	if err != nil {
		t.Fatal(err)
	}
	dial, serve := rpc.InMemory(srv)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Add(2)
	go func() {
		defer wg.Done()
		if err := serve(ctx); err != nil {
			t.Errorf("serve: %v", err)
		}
	}()
	running, stopRun := context.WithCancel(context.Background())
	go func() {
		defer wg.Done()
		if err := svc.Run(running); err != nil {
			t.Errorf("run: %v", err)
		}
	}()
	conn, err := dial(tel)
	if err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	stop := func() {
		once.Do(func() {
			stopRun()
			_ = conn.Close()
			cancel()
			wg.Wait()
		})
	}
	t.Cleanup(stop)
	return &rig{t: t, tel: tel, svc: svc, client: classifyv1.NewClassifyServiceClient(conn), stop: stop}
}

// ends is a batch of n flows that ended.
func ends(batch uint64, n int) *classifyv1.StreamRequest {
	b := &flowv1.FlowBatch{Sensor: "s", Epoch: 1, Batch: batch}
	for i := range n {
		flow.AppendEnd(b, &flow.End{ID: batch<<20 | uint64(i), Key: flow.Key{Protocol: 1}, FirstNs: labStart, LastNs: labStart}) //nolint:gosec // few
	}
	return &classifyv1.StreamRequest{Item: &classifyv1.StreamRequest_Batch{Batch: b}}
}

// flood is a window with a SYN flood.
func flood(t *testing.T) *classifyv1.StreamRequest {
	t.Helper()
	l := newLab(t)
	f, err := loadgen.NewFrames(loadgen.Attack{Kind: loadgen.SYNFlood, Seed: 1, Target: victim})
	if err != nil {
		t.Fatal(err)
	}
	l.attack(f, 1000)
	w := &flowv1.Window{Sensor: "s", Epoch: 1, Sequence: 1, StartNs: l.now, EndNs: l.now + labSlot}
	for a, x := range l.target {
		x.SourceRegisters = l.hll[a][:]
		w.Targets = append(w.Targets, x)
	}
	return &classifyv1.StreamRequest{Item: &classifyv1.StreamRequest_Window{Window: w}}
}

func TestStream(t *testing.T) {
	b := &fakeBus{rules: make(map[string]policy.Rule)}
	r := newRig(t, b)
	st, err := r.client.Stream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []*classifyv1.StreamRequest{ends(1, 1100), flood(t), ends(2, 3)} {
		if err := st.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	var published uint64
	batches, windows := 0, 0
	for batches < 2 || windows < 1 {
		a, err := st.Recv()
		if err != nil {
			t.Fatal(err)
		}
		published += a.GetPublished()
		if a.GetBatch() > 0 {
			batches++
		}
		if a.GetWindow() > 0 {
			windows++
		}
	}
	if err := st.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if published != 1103 {
		t.Errorf("%d records acknowledged as published, want 1103", published)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	n, parts := 0, map[uint32]bool{}
	for _, f := range b.flows {
		n += len(f.GetRecords())
		if f.GetBatch() == 1 {
			parts[f.GetPart()] = true
		}
	}
	if n != 1103 || len(parts) < 4 {
		t.Errorf("%d records in %d parts of the first batch", n, len(parts))
	}
	if len(b.verdicts) != 1 || len(b.attacks) != 1 || len(b.rules) == 0 || b.windows != 1 {
		t.Fatalf("%d verdicts, %d attacks, %d rules, %d windows", len(b.verdicts), len(b.attacks), len(b.rules), b.windows)
	}
	v := b.verdicts[0]
	if v.GetTraceId() == "" || b.attacks[0].GetTraceId() != v.GetTraceId() {
		t.Errorf("trace of the verdict %q, of the attack %q", v.GetTraceId(), b.attacks[0].GetTraceId())
	}
	for _, x := range b.rules {
		if x.Traceparent != v.GetTraceparent() || !strings.Contains(x.Traceparent, v.GetTraceId()) || x.Lease != 15*time.Second ||
			time.Until(x.Expires) < 10*time.Second || x.AttackFirstNs < labStart {
			t.Errorf("rule %+v", x)
		}
	}
	order := strings.Join(b.order, " ")
	if strings.Index(order, "rule") > strings.Index(order, "verdict") || strings.Index(order, "verdict") > strings.Index(order, "attack") {
		t.Errorf("order %s", order)
	}
	if got := testutil.ToFloat64(r.svc.metrics.verdicts.WithLabelValues("syn_flood", "rate-limit")); got != 1 {
		t.Errorf("verdict metric is %v", got)
	}
	if got := testutil.ToFloat64(r.svc.metrics.app("icmp")); got != 1103 {
		t.Errorf("flow metric is %v", got)
	}
	s, err := r.client.Status(t.Context(), &classifyv1.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	terms := s.GetStatus().GetLedger().GetTerms()
	if terms["records_received"] != 1103 || terms["published"] != 1103 || terms["already_published"] != 0 || terms["unpublished"] != 0 {
		t.Errorf("ledger %v", terms)
	}
}

// TestStreamWaits: without NATS nothing is acknowledged, readiness says why, and all goes out once it is back.
func TestStreamWaits(t *testing.T) {
	b := &fakeBus{rules: make(map[string]policy.Rule)}
	r := newRig(t, b)
	deadline := time.Now().Add(5 * time.Second)
	for r.svc.problem.Load() != nil && time.Now().Before(deadline) {
		time.Sleep(5 * time.Millisecond)
	}
	b.setFail(errors.New("no servers available"))
	st, err := r.client.Stream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(3) {
		if err := st.Send(ends(i+1, 5)); err != nil {
			t.Fatal(err)
		}
	}
	for r.svc.problem.Load() == nil && time.Now().Before(deadline) {
		time.Sleep(5 * time.Millisecond)
	}
	rec := httptest.NewRecorder()
	r.tel.Handler().ServeHTTP(rec, httptest.NewRequest("GET", "/readyz", nil))
	if rec.Code != 503 || !strings.Contains(rec.Body.String(), "no servers available") {
		t.Errorf("readiness %d %s", rec.Code, rec.Body)
	}
	if got := r.svc.published.Load(); got != 0 {
		t.Errorf("%d published", got)
	}
	b.setFail(nil)
	for range 3 {
		if _, err := st.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	if r.svc.problem.Load() != nil {
		t.Error("still not ready")
	}
	r.stop() // with an open stream it must end
}

// TestRealBus publishes through an embedded JetStream and reads it back.
func TestRealBus(t *testing.T) {
	ctx := t.Context()
	embedded, err := bus.StartEmbedded(ctx, t.TempDir(), bus.Listen{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(embedded.Shutdown)
	cfg := bus.DefaultConfig()
	cfg.URL, cfg.Embedded = "", embedded
	nc, err := bus.Connect(ctx, telemetry.Discard("test"), "test", cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	r := newRig(t, nc)
	st, err := r.client.Stream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for r.svc.problem.Load() != nil {
		time.Sleep(5 * time.Millisecond)
	}
	begin := time.Now()
	if err := st.Send(flood(t)); err != nil {
		t.Fatal(err)
	}
	if err := st.Send(ends(1, 700)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := st.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("window and batch acknowledged after %v", time.Since(begin))
	rules, err := nc.Rules(ctx)
	if err != nil || len(rules) == 0 {
		t.Fatalf("%d rules, %v", len(rules), err)
	}
	got := make(chan string, 16)
	consume, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	go func() {
		_ = nc.ConsumeEvents(consume, "test", nil, func(_ context.Context, list []bus.EventMsg) error {
			for _, m := range list {
				switch {
				case m.Attack != nil:
					got <- "attack " + m.Attack.GetType()
				case m.Verdict != nil:
					got <- "verdict " + m.Verdict.GetType()
				}
			}
			return nil
		})
	}()
	seen := map[string]bool{}
	for len(seen) < 2 {
		select {
		case s := <-got:
			seen[s] = true
		case <-consume.Done():
			t.Fatalf("events read back: %v", seen)
		}
	}
	if !seen["attack syn_flood"] || !seen["verdict syn_flood"] {
		t.Errorf("events read back: %v", seen)
	}
}

// TestConfig: tags and DefaultConfig agree, and mistakes are named.
func TestConfig(t *testing.T) {
	var c Config
	p, err := kong.New(&c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Parse(nil); err != nil {
		t.Fatal(err)
	}
	if want := DefaultConfig(); !reflect.DeepEqual(c, want) {
		t.Errorf("tags give %+v, DefaultConfig %+v", c, want)
	}
	if _, err := p.Parse([]string{"--protected=10.0.0.0/8", "--group=web;192.0.2.0/24,2001:db8::/32;syn=300;udp=5000"}); err != nil {
		t.Fatal(err)
	}
	if len(c.Engine.Groups) != 1 || len(c.Engine.Groups[0].Prefixes) != 2 || c.Engine.Groups[0].Thresholds["syn"] != 300 {
		t.Errorf("groups %+v", c.Engine.Groups)
	}
	for _, text := range []string{"x", ";10.0.0.0/8", "a;10.0.0.0/99", "a;10.0.0.0/8;nope=1", "a;10.0.0.0/8;syn=0", "a;10.0.0.0/8;syn=x", "a;10.0.0.0/8;syn=inf",
		"a;10.0.0.0/8;logins=65", "a;10.0.0.0/8;unfinished=513"} {
		var g Group
		if err := g.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("group %q is taken", text)
		}
	}
	for _, edit := range []func(*Config){
		func(c *Config) { c.Engine.Protected = []string{"nonsense"} },
		func(c *Config) { c.Engine.SYN = 0 },
		func(c *Config) { c.Engine.Lease = 0 },
		func(c *Config) { c.MaxInFlight = 0 },
		func(c *Config) { c.Engine.UDPBits = math.Inf(1) },
		func(c *Config) {
			p := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
			c.Engine.Groups = []Group{{Name: "a", Prefixes: p}, {Name: "b", Prefixes: p}}
		},
		func(c *Config) { c.Engine.Shadow = []string{"port_scan", "syn-flood"} },
	} {
		c := DefaultConfig()
		edit(&c)
		if err := c.Validate(); err == nil {
			t.Errorf("%+v is taken", c)
		}
	}
}
