package e2e

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// hookEvent is what the tests look at of an event.
type hookEvent struct {
	ID       string `json:"id"`
	Type     string `json:"type"`
	Sequence uint64 `json:"sequence"`
	Data     struct {
		ID   string          `json:"id"`
		By   string          `json:"by"`
		Rule json.RawMessage `json:"rule"`
	} `json:"data"`
}

// hookReceiver takes events as a receiver is told to: it ignores the id it has had last.
type hookReceiver struct {
	mu     sync.Mutex
	events []hookEvent
	again  int // the last one came again
	n      int
}

func (r *hookReceiver) take(body []byte) error {
	var e hookEvent
	if err := json.Unmarshal(body, &e); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.events) > 0 && r.events[len(r.events)-1].ID == e.ID {
		r.again++
		return nil
	}
	r.events = append(r.events, e)
	return nil
}

// ServeHTTP fails at every seventh request and is slow at every fifth.
func (r *hookReceiver) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	body, err := io.ReadAll(q.Body)
	r.mu.Lock()
	r.n++
	n := r.n
	r.mu.Unlock()
	switch {
	case n%5 == 0:
		time.Sleep(20 * time.Millisecond)
	case n%7 == 0:
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	if err == nil {
		err = r.take(body)
	}
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
	}
}

func (r *hookReceiver) taken() []hookEvent {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// hookFlags make a receiver and a script that keeps what it gets, and give persist's flags for both and for an EVE file.
func hookFlags(t *testing.T, prefix string) (r *hookReceiver, scriptOut, eve string, flags []string) {
	t.Helper()
	dir := t.TempDir()
	put := func(name, text string, mode os.FileMode) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return p
	}
	r = &hookReceiver{}
	srv := httptest.NewTLSServer(r)
	t.Cleanup(srv.Close)
	scriptOut, eve = filepath.Join(dir, "script.out"), filepath.Join(dir, "eve.json")
	ca := put("ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})), 0o600)
	secret := put("secret", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n", 0o600)
	script := put("on-event", "#!/bin/sh\nread -r event; echo \"$event\" >> "+scriptOut+"; sleep 0.03\n", 0o700)
	return r, scriptOut, eve, []string{
		prefix + "hook-webhook", srv.URL + "/events", prefix + "hook-webhook-secret-file", secret, prefix + "hook-webhook-ca", ca,
		prefix + "hook-script", script, prefix + "hook-eve-file", eve,
	}
}

func fileLines(t *testing.T, path string) []string {
	t.Helper()
	b, err := os.ReadFile(path) //nolint:gosec // the test's own file
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

// TestHooksOverKills: persist is killed in the middle three times; webhook, script and EVE file have every event once, in order.
func TestHooksOverKills(t *testing.T) {
	nats, err := bus.StartEmbedded(t.Context(), t.TempDir(), bus.Listen{Addr: "127.0.0.1:0", Insecure: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nats.Shutdown)
	b, err := bus.Connect(t.Context(), telemetry.Discard("e2e"), "e2e", bus.Config{Embedded: nats})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	if err := b.EnsureStreams(t.Context()); err != nil {
		t.Fatal(err)
	}
	receiver, scriptOut, eve, flags := hookFlags(t, "--")
	persist := rig.Start(t, rig.Binary(t, "tidegate-persist"), nil, append(flags, "--insecure", "--nats-url", "nats://"+nats.Addr(),
		"--db-type", "sqlite", "--data-dir", t.TempDir(), "--listen", rig.FreeAddr(t), "--metrics-listen", rig.FreeAddr(t))...)
	for _, name := range []string{"webhook-1", "script-1", "eve-file"} {
		if err := rig.Eventually(10*time.Second, func() error {
			_, err := b.Backlog(t.Context(), bus.StreamEvents, bus.HookDurable+name)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	var want []string
	const events = 120
	for n := range events {
		id := fmt.Sprintf("attack%03d", n)
		want = append(want, id)
		if err := b.PublishAttack(t.Context(), &eventv1.Attack{
			Id: id, Revision: 1, Sensor: "e2e", Type: "syn_flood", Target: "198.51.100.10/32", State: eventv1.AttackState_ATTACK_STATE_STARTED, DetectedNs: time.Now().UnixNano(),
		}); err != nil {
			t.Fatal(err)
		}
		if n == 30 || n == 60 || n == 90 {
			persist.Kill()
			persist.Restart()
		}
		time.Sleep(5 * time.Millisecond)
	}
	err = rig.Eventually(90*time.Second, func() error {
		if n, s, e := len(receiver.taken()), len(fileLines(t, scriptOut)), len(fileLines(t, eve)); n < events || s < events || e < events {
			return fmt.Errorf("webhook %d, script %d, EVE file %d of %d events", n, s, e, events)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	check := func(name string, got []string) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("%s: %d events, in order and once wanted %d: %v", name, len(got), len(want), got)
		}
	}
	var ids []string
	for i, e := range receiver.taken() {
		ids = append(ids, e.Data.ID)
		if e.Sequence != uint64(i+1) { //nolint:gosec // small
			t.Errorf("event %d has sequence %d", i, e.Sequence)
		}
	}
	check("webhook", ids)
	script := &hookReceiver{}
	for _, l := range fileLines(t, scriptOut) {
		if err := script.take([]byte(l)); err != nil {
			t.Error(err)
		}
	}
	ids = nil
	for _, e := range script.taken() {
		ids = append(ids, e.Data.ID)
	}
	check("script", ids)
	ids = nil
	for _, l := range fileLines(t, eve) {
		var line struct {
			Tidegate struct {
				AttackID string `json:"attack_id"`
			} `json:"tidegate"`
		}
		if err := json.Unmarshal([]byte(l), &line); err != nil {
			t.Error(err)
		}
		ids = append(ids, line.Tidegate.AttackID)
	}
	check("EVE file", ids)
	t.Logf("over three kills the webhook got %d events again, the script %d, the EVE file none", receiver.again, script.again)
}

// TestHooksOfAllInOne: an attack through the driver, and what the all-in-one tells of it.
func TestHooksOfAllInOne(t *testing.T) {
	rig.NeedRoot(t)
	link := rig.Link(t, loadgen.LinkOptions{Prefix: "tghook"})
	receiver, scriptOut, eve, flags := hookFlags(t, "--persist-")
	p := rig.Start(t, rig.Binary(t, "tidegate"), nil, append([]string{
		"run", "--iface", link.PortA, "--iface", link.PortB, "--mode", "inline", "--bpffs", link.BPFFS, "--enforce",
		"--protected", loadgen.VictimAddr.String(), "--data", t.TempDir(), "--listen", "", "--local-credentials", "", "--gateway-listen", "",
		"--metrics-listen", rig.FreeAddr(t), "--ingest-sensor", "e2e", "--enforce-node", "e2e",
	}, flags...)...)
	if err := rig.Eventually(30*time.Second, func() error {
		if !strings.Contains(p.Log(), "tidegate runs") {
			return fmt.Errorf("it does not run: %s", p.Log())
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	defer background(link.Client(20, 7))() // flows that end
	time.Sleep(2 * time.Second)
	sender, err := link.Sender()
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	frames, err := link.Attack(loadgen.AmpDNS, 11)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := sender.Send(ctx, frames.Next, 20_000, 60_000); err != nil {
		t.Fatal(err)
	}
	has := func(list []string, parts ...string) bool {
		return slices.ContainsFunc(list, func(l string) bool {
			return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(l, p) })
		})
	}
	err = rig.Eventually(20*time.Second, func() error {
		var types []string
		for _, e := range receiver.taken() {
			types = append(types, e.Type)
		}
		lines := fileLines(t, eve)
		switch {
		case !slices.Contains(types, "attack.started") || !slices.Contains(types, "rule.applied"):
			return fmt.Errorf("the webhook got %v", types)
		case !has(fileLines(t, scriptOut), `"type":"rule.applied"`, `"by":"detector"`, `"match_text"`):
			return fmt.Errorf("the script got %v", fileLines(t, scriptOut))
		case !has(lines, `"event_type":"alert"`, `"signature":"TIDEGATE amp_dns"`, `"dest_ip":"`+loadgen.VictimAddr.String()) ||
			!has(lines, `"event_type":"drop"`, `"signature":"TIDEGATE amp_dns`, `"src_port":53`) || !has(lines, `"event_type":"flow"`, `"community_id"`):
			return fmt.Errorf("the EVE file has %v", lines)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	list := receiver.taken()
	for i := 1; i < len(list); i++ {
		if list[i].Sequence <= list[i-1].Sequence {
			t.Errorf("event %d came after event %d", list[i-1].Sequence, list[i].Sequence)
		}
	}
}
