package hook

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"encoding/pem"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/bus/bustest"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
)

const secretLine = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// rig is a bus of its own with hooks on it.
type rig struct {
	t    *testing.T
	bus  *bus.Bus
	cfg  Config
	tel  *telemetry.Telemetry
	set  *Set
	stop func()
}

func newRig(t *testing.T, change func(*Config)) *rig {
	t.Helper()
	e, err := bus.StartEmbedded(context.Background(), t.TempDir(), bus.Listen{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Shutdown)
	r := &rig{t: t, bus: bustest.Open(t, bus.Config{Embedded: e}), cfg: DefaultConfig()}
	change(&r.cfg)
	r.start()
	return r
}

// start runs the hooks, with short pauses between attempts, and returns when they read.
func (r *rig) start() {
	r.t.Helper()
	r.tel = telemetry.Discard("persist")
	var err error
	if r.set, err = New(r.cfg, r.tel, r.bus); err != nil {
		r.t.Fatal(err)
	}
	for _, h := range r.set.hooks {
		h.first, h.max = 20*time.Millisecond, 100*time.Millisecond
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = r.set.Run(ctx) }()
	r.stop = sync.OnceFunc(func() { cancel(); <-done })
	r.t.Cleanup(r.stop)
	bustest.Wait(r.t, "the consumers", func() bool {
		for _, h := range r.set.hooks {
			for _, s := range h.streams {
				if _, err := r.bus.Backlog(ctx, s, bus.HookDurable+h.name); err != nil {
					return false
				}
			}
		}
		return true
	})
}

// attack publishes an attack that starts.
func (r *rig) attack(id string) {
	r.t.Helper()
	if err := r.bus.PublishAttack(context.Background(), startedAttack(id)); err != nil {
		r.t.Fatal(err)
	}
}

func startedAttack(id string) *eventv1.Attack {
	return &eventv1.Attack{
		Id: id, Type: "syn_flood", Target: "198.51.100.10/32", State: eventv1.AttackState_ATTACK_STATE_STARTED, Sensor: "edge1", Revision: 1,
		FirstNs: 1_700_000_000_000_000_000, DetectedNs: 1_700_000_000_100_000_000, Packets: 1000, Bytes: 60000, Pps: 10000, Bps: 4.8e6,
		Sources: 900, TopSources: []string{"192.0.2.7", "192.0.2.8"},
	}
}

// enforcement publishes what a node did with a rule.
func (r *rig) enforcement(e *eventv1.Enforcement) {
	r.t.Helper()
	if err := r.bus.PublishEnforcement(context.Background(), e); err != nil {
		r.t.Fatal(err)
	}
}

func ruleEvent(id string, state eventv1.EnforcementState) *eventv1.Enforcement {
	protocol, port := uint32(17), uint32(53)
	return &eventv1.Enforcement{
		Id: id, Node: "edge1", RuleId: "r1", AttackId: "a1", State: state, TimeNs: 1_700_000_000_200_000_000, By: "detector",
		Packets: 70, Bytes: 4200, Dropped: 60, TimeToFirstDropNs: 48_000_000, Action: policyv1.Action_ACTION_DROP,
		Rule: &policyv1.Rule{
			Id: "r1", Action: policyv1.Action_ACTION_DROP, Origin: "detector", AttackId: "a1", Comment: "amp_dns signature", CreatedNs: 1,
			Match: &policyv1.Match{Dst: "198.51.100.10/32", Protocol: &protocol, SrcPort: &port},
		},
	}
}

// count reads a counter of the hooks.
func (r *rig) count(name string, labels prometheus.Labels) float64 {
	r.t.Helper()
	switch name {
	case "messages":
		return testutil.ToFloat64(r.set.hooks[0].m.results.With(labels))
	case "failures":
		return testutil.ToFloat64(r.set.hooks[0].m.failures.With(labels))
	}
	r.t.Fatalf("no counter %s", name)
	return 0
}

// receiver is a webhook's server.
type receiver struct {
	*httptest.Server
	mu     sync.Mutex
	bodies []envelope
	raw    [][]byte
	heads  []http.Header
	answer func(n int, w http.ResponseWriter, r *http.Request) bool // of the n-th request; true: it was taken
	n      int
}

func newReceiver(t *testing.T, answer func(n int, w http.ResponseWriter, r *http.Request) bool) *receiver {
	t.Helper()
	v := &receiver{answer: answer}
	v.Server = httptest.NewTLSServer(http.HandlerFunc(v.serve))
	t.Cleanup(v.Close)
	return v
}

func (v *receiver) serve(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	defer v.mu.Unlock()
	n := v.n
	v.n++
	body := make([]byte, r.ContentLength)
	if _, err := r.Body.Read(body); err != nil && err.Error() != "EOF" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	if v.answer != nil && !v.answer(n, w, r) {
		return
	}
	var e envelope
	if err := json.Unmarshal(body, &e); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	v.bodies, v.raw, v.heads = append(v.bodies, e), append(v.raw, body), append(v.heads, r.Header.Clone())
}

func (v *receiver) taken() []envelope {
	v.mu.Lock()
	defer v.mu.Unlock()
	return append([]envelope(nil), v.bodies...)
}

// files writes the receiver's authority and a secret.
func (v *receiver) files(t *testing.T) (ca, secret string) {
	t.Helper()
	dir := t.TempDir()
	ca, secret = filepath.Join(dir, "ca.pem"), filepath.Join(dir, "secret")
	write(t, ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: v.Certificate().Raw})), 0o600)
	write(t, secret, secretLine+"\n", 0o600)
	return ca, secret
}

func (v *receiver) configure(t *testing.T) func(*Config) {
	ca, secret := v.files(t)
	return func(c *Config) {
		c.Webhooks, c.Secrets, c.WebhookCA, c.HTTPTimeout = []string{v.URL + "/hook"}, []string{secret}, ca, 300*time.Millisecond
	}
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask is
		t.Fatal(err)
	}
}

func lines(t *testing.T, path string) []string {
	t.Helper()
	b, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

func names(prefix string, n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprintf("%s%03d", prefix, i))
	}
	return out
}

// missing skips the test, or fails it in CI, where everything that a test needs must be there.
func missing(t *testing.T, what string, args ...any) {
	t.Helper()
	if os.Getenv("TIDEGATE_CI") != "" {
		t.Fatalf("in CI nothing may be skipped, and there is not "+what, args...)
	}
	t.Skipf("needs "+what, args...)
}
