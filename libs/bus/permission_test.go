package bus_test

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/bus/bustest"
	"github.com/tidegate-mesh/tidegate/libs/pki"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
)

// secured is a server with mutual TLS and the permissions of the table.
type secured struct {
	dir, url string
	restart  func(t *testing.T)
}

func (s secured) files(identity string) bus.TLS {
	f := pki.FilesOf(s.dir, identity)
	return bus.TLS{}.Or(f.CA, f.Cert, f.Key)
}

// open connects as an identity; EnsureStreams is everybody's right.
func (s secured) open(t *testing.T, identity string) *bus.Bus {
	t.Helper()
	b, _ := s.openCounting(t, identity)
	return b
}

func (s secured) openCounting(t *testing.T, identity string) (*bus.Bus, *prometheus.Registry) {
	t.Helper()
	tel := telemetry.Discard(identity)
	b, err := bus.Connect(context.Background(), tel, t.Name(), bus.Config{URL: s.url, TLS: s.files(identity)})
	if err != nil {
		t.Fatalf("%s: %v", identity, err)
	}
	t.Cleanup(func() { _ = b.Close() })
	if err := b.EnsureStreams(context.Background()); err != nil {
		t.Fatalf("%s sets the streams up: %v", identity, err)
	}
	return b, tel.Registry
}

// client is a bare connection, for what no method of the bus would do.
func (s secured) client(t *testing.T, identity string) *nats.Conn {
	t.Helper()
	f := pki.FilesOf(s.dir, identity)
	c, err := nats.Connect(s.url, nats.ClientCert(f.Cert, f.Key), nats.RootCAs(f.CA), nats.CustomInboxPrefix("_INBOX."+identity))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestPermissionsEmbedded(t *testing.T) {
	permissions(t, func(t *testing.T) secured {
		s := secured{dir: t.TempDir()}
		ensureCerts(t, s.dir, false)
		store, addr := t.TempDir(), "127.0.0.1:0"
		var e *bus.Embedded
		start := func(t *testing.T) {
			var err error
			if e, err = bus.StartEmbedded(context.Background(), store, bus.Listen{Addr: addr, TLS: s.files(pki.NATS)}); err != nil {
				t.Fatal(err)
			}
			addr = e.Addr()
		}
		start(t)
		t.Cleanup(func() { e.Shutdown() })
		s.url = "nats://" + addr
		s.restart = func(t *testing.T) { e.Shutdown(); start(t) }
		inside := bustest.Open(t, bus.Config{Embedded: e})
		if err := inside.PutRule(context.Background(), bustest.Rule("inside")); err != nil {
			t.Errorf("the process itself: %v", err)
		}
		return s
	})
}

func TestPermissionsSeparateServer(t *testing.T) {
	binary := natsServer(t)
	permissions(t, func(t *testing.T) secured {
		s := secured{dir: t.TempDir()}
		ensureCerts(t, s.dir, false)
		conf := filepath.Join(s.dir, "nats.conf")
		if err := os.WriteFile(conf, []byte(bus.ServerConf(s.dir, t.TempDir())), 0o600); err != nil {
			t.Fatal(err)
		}
		addr := freeAddr(t)
		host, port, _ := net.SplitHostPort(addr)
		s.url = "nats://" + addr
		var cmd *exec.Cmd
		start := func(t *testing.T) {
			cmd = exec.Command(binary, "-c", conf, "-a", host, "-p", port) //nolint:gosec // the tester's binary
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			bustest.Wait(t, "nats-server", func() bool {
				c, err := net.Dial("tcp", addr)
				if err == nil {
					_ = c.Close()
				}
				return err == nil
			})
		}
		stop := func() { _ = cmd.Process.Signal(os.Interrupt); _ = cmd.Wait() }
		start(t)
		t.Cleanup(func() { stop() })
		s.restart = func(t *testing.T) { stop(); start(t) }
		return s
	})
}

func ensureCerts(t *testing.T, dir string, renew bool) {
	t.Helper()
	if _, err := pki.Ensure(dir, nil, renew); err != nil {
		t.Fatal(err)
	}
}

// natsServer is the pinned nats-server.
func natsServer(t *testing.T) string {
	t.Helper()
	path := os.Getenv("TIDEGATE_NATS_SERVER")
	if path == "" {
		home, _ := os.UserHomeDir()
		path = filepath.Join(home, ".cache", "tidegate", "tools", "nats-server")
	}
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("TIDEGATE_CI") == "1" {
			t.Fatalf("no nats-server (make tools, TIDEGATE_NATS_SERVER): %v", err)
		}
		t.Skipf("no nats-server (make tools, TIDEGATE_NATS_SERVER): %v", err)
	}
	return path
}

func permissions(t *testing.T, start func(t *testing.T) secured) {
	for _, c := range []struct {
		name string
		f    func(t *testing.T, s secured)
	}{
		{"everybody's job", jobs}, {"another's job", refusals}, {"strangers", strangers}, {"renewal", renewal},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // most of the time is waiting
			c.f(t, start(t))
		})
	}
}

// jobs: each identity does what its service does, through the same calls.
func jobs(t *testing.T, s secured) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	classify, classifyErrors := s.openCounting(t, pki.Classify)
	enforce, enforceErrors := s.openCounting(t, pki.Enforce)
	persist, persistErrors := s.openCounting(t, pki.Persist)
	gateway, gatewayErrors := s.openCounting(t, pki.Gateway)
	tidegate := s.open(t, pki.Tidegate)

	good := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	run, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 32)
	spawn := func(f func() error) { go func() { ended <- f() }() }
	var sampled, watched, panics, windows, followed, learnt, flows, events, hooked, listed atomic.Int64
	spawn(func() error {
		return enforce.WatchRules(run, func(u bus.RuleUpdate) {
			if u.Rule != nil {
				watched.Add(1)
			}
		})
	})
	spawn(func() error {
		return enforce.SampleFlows(run, 10, func(float64, *eventv1.FlowRecords) { sampled.Add(1) })
	})
	spawn(func() error { return enforce.WatchPanic(run, func(*eventv1.Panic) { panics.Add(1) }) })
	spawn(func() error {
		return gateway.SubscribeWindows(run, func(string, *flowv1.Window) { windows.Add(1) })
	})
	spawn(func() error {
		return gateway.ConsumeEventsEphemeral(run, nil, func(bus.EventMsg) { followed.Add(1) })
	})
	spawn(func() error {
		return classify.ConsumeEventsEphemeral(run, []string{bus.AllEnforcements}, func(bus.EventMsg) { learnt.Add(1) })
	})
	spawn(func() error {
		return persist.ConsumeFlows(run, "persist", func(_ context.Context, m []bus.FlowMsg) error { flows.Add(int64(len(m))); return nil })
	})
	spawn(func() error {
		return persist.DeliverFlows(run, bus.HookDurable+"eve-file", func(context.Context, *bus.FlowMsg, bus.Place) error { hooked.Add(1); return nil })
	})
	for _, name := range bus.HookNames(bus.StreamEvents) {
		spawn(func() error {
			return persist.DeliverEvents(run, name, func(context.Context, *bus.EventMsg, bus.Place) error { hooked.Add(1); return nil })
		})
	}
	good("persist makes the stream of EVE lines", persist.EnsureEVE(ctx))
	good("persist publishes EVE lines", persist.PublishEVE(ctx, []bus.EVELine{{Type: "alert", ID: "1", JSON: []byte("{}")}}))
	spawn(func() error {
		return persist.ConsumeEvents(run, "persist", []string{bus.AllAttacks, bus.AllVerdicts, bus.AllEnforcements},
			func(_ context.Context, m []bus.EventMsg) error { events.Add(int64(len(m))); return nil })
	})
	spawn(func() error {
		return persist.ServeUsual(run, func(context.Context, *eventv1.UsualDay) error { return nil },
			func(_ context.Context, q *eventv1.UsualQuery) (*eventv1.UsualDay, error) {
				return &eventv1.UsualDay{Day: q.GetDay()}, nil
			})
	})
	bustest.Wait(t, "persist to answer", func() bool { return classify.StoreUsual(ctx, &eventv1.UsualDay{Node: "n", Day: 1}) == nil })
	day, err := classify.LoadUsual(ctx, &eventv1.UsualQuery{Day: 2})
	if err != nil || day.GetDay() != 2 {
		t.Errorf("classify reads what is usual: %v, %v", day, err)
	}
	_, err = classify.PublishFlows(ctx, &eventv1.FlowRecords{Sensor: "s", Epoch: 1, Batch: 1})
	good("classify publishes flows", err)
	good("classify publishes an attack", classify.PublishAttack(ctx, &eventv1.Attack{Id: "a", Revision: 1, Sensor: "s"}))
	good("classify publishes a verdict", classify.PublishVerdict(ctx, &eventv1.Verdict{Id: "v", Sensor: "s"}))
	good("classify writes a rule", classify.PutRule(ctx, bustest.Rule("r")))
	rules, err := classify.Rules(ctx)
	good("classify reads rules", err)
	if _, err := enforce.UpdateRule(ctx, rules["r"].Rule, 0); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("enforce makes a rule that is there: %v, want ErrConflict", err)
	}
	_, err = enforce.UpdateRule(ctx, rules["r"].Rule, rules["r"].Revision)
	good("enforce updates a rule", err)
	good("enforce deletes a rule", enforce.DeleteRule(ctx, "r"))
	good("enforce sets the panic state", enforce.PutPanic(ctx, &eventv1.Panic{On: true, SinceNs: 1}))
	p, err := gateway.Panic(ctx)
	if err != nil || !p.GetOn() {
		t.Errorf("gateway reads the panic state %v, %v", p, err)
	}
	good("classify's heartbeat", classify.Heartbeat(ctx, &eventv1.NodeHeartbeat{Service: pki.Classify, Instance: "1"}))
	good("enforce's heartbeat", enforce.Heartbeat(ctx, &eventv1.NodeHeartbeat{Service: pki.Enforce, Instance: "1"}))
	if n, err := gateway.Nodes(ctx); err != nil || len(n) != 2 {
		t.Errorf("gateway sees nodes %v, %v", n, err)
	}
	_, err = gateway.PutRequest(ctx, "k", []byte("1"), 0)
	good("gateway remembers a request", err)
	_, _, err = gateway.GetRequest(ctx, "k")
	good("gateway reads a request", err)
	_, err = gateway.Rules(ctx)
	good("gateway reads rules", err)
	object, err := gateway.PutListEntries(ctx, "l", []byte("192.0.2.1\n"))
	good("gateway stores a list's entries", err)
	revision, err := gateway.UpdateList(ctx, &policyv1.AddressList{Name: "l", Object: object}, 0)
	good("gateway writes a list", err)
	spawn(func() error {
		return enforce.WatchLists(run, func(u bus.ListUpdate) {
			if u.List != nil {
				listed.Add(1)
			}
		})
	})
	spawn(func() error {
		return classify.WatchLists(run, func(u bus.ListUpdate) {
			if u.List != nil {
				listed.Add(1)
			}
		})
	})
	spawn(func() error { return classify.WatchRules(run, func(bus.RuleUpdate) {}) })
	bustest.Wait(t, "the list", func() bool { return listed.Load() > 1 })
	_, err = classify.ListEntries(ctx, object)
	good("classify reads a list's entries", err)
	_, err = enforce.ListEntries(ctx, object)
	good("enforce reads a list's entries", err)
	_, err = gateway.Lists(ctx)
	good("gateway reads lists", err)
	good("gateway deletes a list", gateway.DeleteList(ctx, "l", revision))
	good("gateway deletes entries", gateway.DeleteListEntries(ctx, object))
	good("tidegate writes a rule", tidegate.PutRule(ctx, bustest.Rule("r2")))
	good("tidegate publishes", tidegate.PublishAttack(ctx, &eventv1.Attack{Id: "b", Revision: 1, Sensor: "s"}))

	number := uint32(1)
	bustest.Wait(t, "followers", func() bool { // "from now" begins when their consumers are there
		number++
		good("enforce publishes", enforce.PublishEnforcement(ctx, &eventv1.Enforcement{Id: "e" + strings.Repeat("x", int(number)), Node: "n"}))
		good("classify publishes a window", classify.PublishWindow(ctx, "s", &flowv1.Window{}))
		time.Sleep(20 * time.Millisecond)
		return followed.Load() > 0 && learnt.Load() > 0 && windows.Load() > 0 && flows.Load() == 1 && sampled.Load() == 1 && events.Load() >= 4 && watched.Load() > 0 && panics.Load() > 0
	})
	bustest.Wait(t, "the backlog", func() bool {
		n, err := persist.Backlog(ctx, bus.StreamEvents, "persist")
		return err == nil && n == 0
	})
	_, err = persist.State(ctx, bus.StreamFlows)
	good("persist reads the stream's state", err)
	bustest.Wait(t, "hooks", func() bool { return hooked.Load() >= int64(len(bus.HookNames(bus.StreamEvents))) })
	stop()
	for range 12 + len(bus.HookNames(bus.StreamEvents)) {
		good("a consumer ended", <-ended)
	}
	for name, r := range map[string]*prometheus.Registry{
		pki.Classify: classifyErrors, pki.Enforce: enforceErrors, pki.Persist: persistErrors, pki.Gateway: gatewayErrors,
	} {
		if n := deniedCount(t, r); n != 0 {
			t.Errorf("%s was refused %v times", name, n)
		}
	}
}

// deniedCount is how often the server refused this connection a right.
func deniedCount(t *testing.T, r *prometheus.Registry) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.Metric {
			for _, l := range m.Label {
				if f.GetName() == "tidegate_errors_total" && l.GetValue() == "nats_denied" {
					return m.GetCounter().GetValue()
				}
			}
		}
	}
	return 0
}

// refusals: the server tells each client which subject it refused.
func refusals(t *testing.T, s secured) {
	s.open(t, pki.Tidegate) // makes the streams
	for _, c := range []struct {
		identity           string
		publish, subscribe []string
	}{
		{pki.Persist,
			[]string{
				"tg.v1.verdict.s", "tg.v1.attack.s", "tg.v1.flows.s", "tg.v1.enforcement.n", "tg.v1.audit.g", "$KV.tg_rules.r", "$KV.tg_nodes.classify.1",
				"$JS.API.STREAM.DELETE.TG_EVENTS", "$JS.API.STREAM.UPDATE.TG_EVENTS", "$JS.API.STREAM.PURGE.TG_EVENTS", "$JS.API.CONSUMER.CREATE.TG_EVENTS.other",
				"$JS.API.STREAM.CREATE.OTHER", "tg.v1.usual.store", "_INBOX.classify.x", // which it was not asked from
			},
			[]string{"tg.v1.>", "_INBOX.gateway.>", "_INBOX.>", "$KV.tg_rules.>", ">"}},
		{pki.Enforce,
			[]string{"tg.v1.attack.s", "tg.v1.verdict.s", "tg.v1.flows.s", "tg.v1.audit.g", "tg.v1.usual.load", "$JS.API.STREAM.DELETE.KV_tg_rules", "$JS.API.CONSUMER.MSG.NEXT.TG_EVENTS.persist"},
			[]string{"tg.v1.>", "_INBOX.classify.>"}},
		{pki.Classify,
			[]string{
				"tg.v1.enforcement.n", "tg.v1.audit.g", "$KV.tg_control.enforcing", "$KV.tg_nodes.enforce.1",
				"$JS.API.CONSUMER.DELETE.TG_EVENTS.persist", "$JS.API.CONSUMER.CREATE.TG_EVENTS.persist", "$JS.API.CONSUMER.MSG.NEXT.TG_EVENTS.persist",
				"$JS.API.CONSUMER.MSG.NEXT.TG_EVENTS.hook-webhook-1", "$JS.API.CONSUMER.DELETE.TG_EVENTS.hook-script-4", "tg.v1.eve.alert",
			},
			[]string{"tg.v1.window.>", "tg.v1.usual.>", "_INBOX.persist.>"}},
		{pki.Gateway,
			[]string{"$KV.tg_rules.r", "$KV.tg_control.enforcing", "tg.v1.verdict.s", "tg.v1.attack.s", "tg.v1.enforcement.n", "tg.v1.usual.store", "$JS.API.STREAM.UPDATE.TG_EVENTS"},
			[]string{"tg.v1.verdict.>", "_INBOX.persist.>"}},
	} {
		nc := s.client(t, c.identity)
		refused := make(chan string, 64)
		nc.SetErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused <- err.Error() })
		expect := func(what, subject string) {
			t.Helper()
			select {
			case text := <-refused:
				if !strings.Contains(strings.ToLower(text), strings.ToLower(subject)) {
					t.Errorf("%s may not %s %s, but the refusal is %s", c.identity, what, subject, text)
				}
			case <-time.After(5 * time.Second):
				t.Errorf("%s may %s %s", c.identity, what, subject)
			}
		}
		for _, subject := range c.publish {
			if err := nc.Publish(subject, nil); err != nil {
				t.Fatal(err)
			}
			expect("publish", subject)
		}
		for _, subject := range c.subscribe {
			if _, err := nc.SubscribeSync(subject); err != nil {
				t.Fatal(err)
			}
			expect("subscribe to", subject)
		}
	}
	// Through the bus a refusal is an error, counted and named in the log; nothing is stored.
	persist, registry := s.openCounting(t, pki.Persist)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := persist.PublishVerdict(ctx, &eventv1.Verdict{Id: "v", Sensor: "s"}); err == nil {
		t.Error("persist published a verdict")
	}
	if n := deniedCount(t, registry); n == 0 {
		t.Error("the refusal was not counted")
	}
	if st, err := persist.State(context.Background(), bus.StreamEvents); err != nil || st.Messages != 0 {
		t.Errorf("the stream holds %d messages (%v), want none", st.Messages, err)
	}
}

// strangers: nobody without a certificate of the authority and a place in the table.
func strangers(t *testing.T, s secured) {
	other := secured{dir: t.TempDir()}
	ensureCerts(t, other.dir, false)
	ca := pki.FilesOf(s.dir, pki.Persist).CA
	foreign := other.files(pki.Persist)
	foreign.CA = ca
	for name, files := range map[string]bus.TLS{
		"without a certificate":            {CA: ca},
		"certificate of another authority": foreign,
		"plain text":                       {},
		"ingest, which needs no NATS":      s.files(pki.Ingest),
		"the server's own certificate":     s.files(pki.NATS),
	} {
		b, err := bus.Connect(context.Background(), telemetry.Discard("t"), "t", bus.Config{URL: s.url, TLS: files})
		if err == nil {
			_ = b.Close()
			t.Errorf("%s: was let in", name)
		}
	}
	// A guess at the password of in-process connections.
	f := pki.FilesOf(s.dir, pki.Ingest)
	if nc, err := nats.Connect(s.url, nats.ClientCert(f.Cert, f.Key), nats.RootCAs(f.CA), nats.UserInfo("in-process", "x")); err == nil {
		nc.Close()
		t.Error("a password was taken for a certificate")
	}
}

// renewal: a connection that comes back uses the renewed certificate.
func renewal(t *testing.T, s secured) {
	persist := s.open(t, pki.Persist)
	before, err := os.ReadFile(pki.FilesOf(s.dir, pki.Persist).Cert)
	if err != nil {
		t.Fatal(err)
	}
	// Of another authority altogether: only one who reads the files again gets in.
	if err := os.Remove(filepath.Join(s.dir, "ca.pem")); err != nil {
		t.Fatal(err)
	}
	ensureCerts(t, s.dir, true)
	after, err := os.ReadFile(pki.FilesOf(s.dir, pki.Persist).Cert)
	if err != nil || slices.Equal(before, after) {
		t.Fatalf("the certificate is not new (%v)", err)
	}
	s.restart(t)
	bustest.Wait(t, "the connection with the new certificate", func() bool {
		return persist.Ready() == nil && persist.EnsureStreams(context.Background()) == nil
	})
}
