package bench

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
	"github.com/tidegate-mesh/tidegate/libs/pki"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/libs/token"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// front is the other services in one process on a link, and a gateway of its own.
type front struct {
	link        *loadgen.Link
	certs, nats string
	gateway     *rig.Gateway
	process     *rig.Process
}

// startFront starts it; with oneCore the gateway has CPU 0 and one Go thread at a time.
func startFront(t *testing.T, oneCore bool) *front {
	t.Helper()
	data, grpc := t.TempDir(), rig.FreeAddr(t)
	f := &front{link: rig.Link(t, loadgen.LinkOptions{Prefix: "tgben"}), certs: rig.Certs(t), nats: rig.FreeAddr(t)}
	rig.Start(t, rig.Binary(t, "tidegate"), nil, "run", "--mode", "inline", "--iface", f.link.PortA, "--iface", f.link.PortB,
		"--bpffs", f.link.BPFFS, "--data", data, "--listen", grpc, "--nats-listen", f.nats, "--gateway-listen", "",
		"--metrics-listen", "", "--tls-dir", f.certs, "--log-level", "error", "--enforce", "--protected", loadgen.VictimAddr.String())
	f.gateway = rig.NewGateway(t, f.certs, pki.FilesOf(f.certs, pki.Gateway).CA)
	path, args, env := rig.Binary(t, "tidegate-gateway"), []string(nil), []string(nil)
	if oneCore {
		path, args, env = "/usr/bin/taskset", []string{"-c", "0", path}, []string{"GOMAXPROCS=1"}
	}
	f.process = rig.Start(t, path, env, append(args,
		"--listen", f.gateway.Addr, "--metrics-listen", rig.FreeAddr(t), "--tls-dir", f.certs, "--nats-url", "nats://"+f.nats,
		"--ingest", grpc, "--classify", grpc, "--enforce", grpc, "--persist", grpc, "--jwks-file", filepath.Join(f.certs, token.JWKSFile),
		"--rate-viewer-reads", "0", "--rate-operator-writes", "0", "--rate-operator-reads", "0", "--log-level", "error")...)
	f.gateway.WaitReady(t, 4, 60*time.Second)
	return f
}

// gate looks into the maps of the first port.
func (f *front) gate(t *testing.T) *xdp.Gate {
	t.Helper()
	gate, err := xdp.Open(xdp.Options{Iface: f.link.PortA, BPFFS: f.link.BPFFS, Mode: xdp.ModeKeep})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = gate.Close() })
	return gate
}

// TestBenchGatewayReads: reads of live state by 64 connections; the gateway has one CPU, all else the other.
func TestBenchGatewayReads(t *testing.T) {
	needBench(t)
	f := startFront(t, true)
	live := []string{"/api/v1/live", "/api/v1/status", "/api/v1/rules", "/api/v1/ledger", "/api/v1/sensors", "/api/v1/groups", "/api/v1/panic"}
	for _, c := range []struct {
		name      string
		paths     []string
		perSecond int
	}{
		{"status", live[1:2], 0}, {"rules", live[2:3], 0}, {"all of the live state in turn", live, 0}, {"all of it, 8,000 a second asked for", live, 8000},
	} {
		r := load(t, "1", job{Credentials: f.gateway.Credentials(t, "viewer"), Paths: c.paths, PerSecond: c.perSecond, Clients: 64, For: seconds(10)})()
		t.Logf("%s: %.0f requests/s (bar 8,000), p50 %.1f ms, p99 %.1f ms (bar 15), %d failed", c.name, r.rate(), r.at(0.5), r.at(0.99), r.Failed)
		if r.Failed > 0 {
			t.Errorf("%d of %d requests failed: %s", r.Failed, r.Requests, r.First)
		}
	}
}

// TestBenchRule: from the request to the entry in the driver's map.
func TestBenchRule(t *testing.T) {
	needBench(t)
	f := startFront(t, false)
	gate := f.gate(t)
	c := f.gateway.Client(t, "operator")
	var answered, applied []float64
	for n := range 1000 {
		port := uint16(10_000 + n)
		in := api.RuleInput{Action: "drop", Match: api.Match{Src: "203.0.113.7", Proto: "udp", DstPort: &port}, For: "10m"}
		dry, err := c.DryRun(t.Context(), in) // for the id, by which the entry is looked for
		if err != nil {
			t.Fatal(err)
		}
		id := policy.NumericID(dry.Rule.ID)
		began := time.Now()
		seen := make(chan time.Time, 1)
		go func() {
			defer close(seen)
			for time.Since(began) < 5*time.Second {
				stats, err := gate.RuleStats([]uint64{id})
				if _, ok := stats[id]; ok && err == nil {
					seen <- time.Now()
					return
				}
				time.Sleep(time.Millisecond) // looking takes the lock that enforce needs
			}
		}()
		rule, err := c.AddRule(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		answered = append(answered, float64(time.Since(began))/1e6)
		at, ok := <-seen
		if !ok {
			t.Fatalf("rule %d is not in the map", n)
		}
		applied = append(applied, float64(at.Sub(began))/1e6)
		if err := c.RevokeRule(t.Context(), rule.ID, ""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond) // the events and rows of this change are not the next one's
	}
	slices.Sort(answered)
	slices.Sort(applied)
	t.Logf("rule over REST → entry in the BPF map, 1,000 times: p50 %.1f ms, p99 %.1f ms (bar 15); answered after p50 %.1f ms, p99 %.1f ms",
		applied[500], applied[990], answered[500], answered[990])
}

// TestBenchPanic: from the request to the last drop gone, with 1,000 users' rules and an attack that is dropped.
func TestBenchPanic(t *testing.T) {
	needBench(t)
	f := startFront(t, false)
	gate := f.gate(t)
	sender, err := f.link.Sender()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sender.Close() }()
	frames, err := f.link.Attack(loadgen.SYNFlood, 31)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	sent := make(chan struct{})
	go func() { defer close(sent); _, _ = sender.Send(ctx, frames.Next, 20_000, 0) }()
	defer func() { cancel(); <-sent }()
	c := f.gateway.Client(t, "operator")
	for n := range 1000 {
		port := uint16(20_000 + n)
		if _, err := c.AddRule(t.Context(), api.RuleInput{Action: "drop", Match: api.Match{Src: "203.0.113.7", Proto: "udp", DstPort: &port}}); err != nil {
			t.Fatal(err)
		}
	}
	blocking := func() (n int) {
		rules, err := gate.Rules()
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rules {
			if r.Action == policy.Drop || r.Action == policy.RateLimit {
				n++
			}
		}
		return n
	}
	if err := rig.Eventually(10*time.Second, func() error {
		if n := blocking(); n <= 1000 {
			return fmt.Errorf("%d drops", n)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	before := blocking()
	answered := make(chan time.Duration, 1)
	began := time.Now()
	go func() {
		if _, err := c.Panic(t.Context(), "bench"); err != nil {
			t.Error(err)
		}
		answered <- time.Since(began)
	}()
	for blocking() > 0 && time.Since(began) < 10*time.Second {
		time.Sleep(time.Millisecond)
	}
	took := time.Since(began)
	t.Logf("panic over REST with %d drops in the driver: the last was gone after %v (bar 1s), answered after %v", before, took, <-answered)
}

// TestBenchStream: 500 clients of the event stream, ten attacks' events a second, with traffic.
func TestBenchStream(t *testing.T) {
	needBench(t)
	f := startFront(t, false)
	cfg := bus.DefaultConfig()
	cfg.URL = "nats://" + f.nats
	files := pki.FilesOf(f.certs, pki.Tidegate)
	cfg.TLS = cfg.TLS.Or(files.CA, files.Cert, files.Key)
	b, err := bus.Connect(t.Context(), telemetry.Discard("bench"), "bench", cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	client := f.link.Client(60, 7)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = client.Run(ctx) }()
	defer func() { cancel(); <-done }()

	wait := load(t, "", job{Credentials: f.gateway.Credentials(t, "viewer"), Clients: 500, For: 20 * time.Second})
	time.Sleep(5 * time.Second) // all are connected
	const events = 100
	for n := range events {
		now := time.Now().UnixNano()
		err := b.PublishAttack(t.Context(), &eventv1.Attack{
			Id: fmt.Sprintf("bench-%d", n), Revision: 1, Type: "syn_flood", Target: loadgen.VictimAddr.String(), Sensor: "bench",
			State: eventv1.AttackState_ATTACK_STATE_STARTED, FirstNs: now, DetectedNs: now, UpdatedNs: now,
		})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	now, peak := rig.Memory(t, f.process.PID())
	r := wait()
	t.Logf("500 clients of the event stream: %d of %d events delivered, p50 %.1f ms, p99 %.1f ms (bar 250), gateway's memory %.0f MiB, peak %.0f MiB (bar 150)",
		r.Requests, 500*events, r.at(0.5), r.at(0.99), now, peak)
	if r.Failed > 0 || r.Requests < 500*events {
		t.Errorf("%d streams failed: %s", r.Failed, r.First)
	}
}

// TestBenchPage: from the log-in to the live page with an empty cache, five times.
func TestBenchPage(t *testing.T) {
	needBench(t)
	f := startFront(t, false)
	b := rig.NewBrowser(t, pki.FilesOf(f.certs, pki.Gateway).Cert)
	var paints []time.Duration
	var transfer float64
	for range 5 {
		b.Do(chromedp.Navigate(f.gateway.URL()+"/login"), network.ClearBrowserCache(),
			chromedp.SetValue("#token", f.gateway.Token(t, token.Claims{Role: "admin", For: time.Hour}), chromedp.ByQuery))
		b.Transfer()
		b.Click("form.card button.primary")
		b.Until(10*time.Second, `document.querySelector("#pps-now") && document.querySelector("#pps-now").innerText !== "–"`)
		transfer = max(transfer, b.Transfer())
		paints = append(paints, b.FirstPaint())
		b.Click(`form[action="/logout"] button`)
		b.Until(10*time.Second, `location.pathname === "/login"`)
	}
	b.Do(chromedp.SetValue("#token", f.gateway.Token(t, token.Claims{Role: "admin", For: time.Hour}), chromedp.ByQuery))
	b.Click("form.card button.primary")
	b.Until(10*time.Second, `location.pathname === "/"`)
	slices.Sort(paints)
	t.Logf("live page, empty cache: first contentful paint %v, slowest %v (bar 500ms), transfer %.1f KiB (bar 200), console errors %d (bar 0), axe-core violations %d (bar 0)",
		paints[2], paints[4], transfer/1024, len(b.Errors()), len(b.Axe()))
}
