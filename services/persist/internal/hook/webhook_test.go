package hook

import (
	"context"
	"encoding/base64"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidegate-mesh/tidegate/libs/bus/bustest"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// attackIDs are the data's ids in the order of arrival.
func attackIDs(list []envelope) (out []string) {
	for _, e := range list {
		data, _ := e.Data.(map[string]any)
		id, _ := data["id"].(string)
		out = append(out, id)
	}
	return out
}

// TestWebhookOnceInOrder: a server that fails, hangs, is slow and cuts connections gets every event once and in order.
func TestWebhookOnceInOrder(t *testing.T) {
	v := newReceiver(t, func(n int, w http.ResponseWriter, r *http.Request) bool {
		switch n {
		case 1, 2:
			w.WriteHeader(http.StatusInternalServerError)
			return false
		case 4: // hangs
			select {
			case <-time.After(2 * time.Second):
			case <-r.Context().Done():
			}
			return false
		case 6:
			w.WriteHeader(http.StatusForbidden)
			return false
		case 8: // slow, but in time
			time.Sleep(100 * time.Millisecond)
		case 10: // cuts the connection
			panic(http.ErrAbortHandler)
		case 12:
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
			return false
		}
		return true
	})
	r := newRig(t, v.configure(t))
	want := names("a", 12)
	for _, id := range want {
		r.attack(id)
	}
	bustest.Wait(t, "all", func() bool { return len(v.taken()) >= len(want) })
	list := v.taken()
	if got := attackIDs(list); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	seen := map[string]bool{}
	for i, e := range list {
		if e.Type != "attack.started" || e.Source != "edge1" || seen[e.ID] || !strings.HasPrefix(e.ID, "evt_") || e.ID != v.heads[i].Get(headerID) {
			t.Errorf("event %d: %+v", i, e)
		}
		seen[e.ID] = true
		if i > 0 && e.Sequence <= list[i-1].Sequence {
			t.Errorf("sequence %d comes after %d", e.Sequence, list[i-1].Sequence)
		}
	}
	for reason, n := range map[string]float64{"status_5xx": 2, "timeout": 1, "status_4xx": 2, "connect": 1} {
		if got := r.count("failures", prometheus.Labels{"hook": "webhook-1", "reason": reason}); got != n {
			t.Errorf("%v failures with %s, want %v", got, reason, n)
		}
	}
	bustest.Wait(t, "the count", func() bool {
		return r.count("messages", prometheus.Labels{"hook": "webhook-1", "result": delivered}) == 12
	})
	if p := r.set.Problems(); len(p) != 0 {
		t.Errorf("problems %v", p)
	}
}

// TestWebhookKeepsItsPlace: what happens while the receiver is down, and over a restart, comes later, once and in order.
func TestWebhookKeepsItsPlace(t *testing.T) {
	down := true
	v := newReceiver(t, nil)
	v.answer = func(_ int, w http.ResponseWriter, _ *http.Request) bool { // the receiver's lock is held
		if down {
			w.WriteHeader(http.StatusBadGateway)
		}
		return !down
	}
	r := newRig(t, v.configure(t))
	want := names("a", 6)
	for _, id := range want[:4] {
		r.attack(id)
	}
	bustest.Wait(t, "a problem", func() bool {
		p := r.set.Problems()
		return len(p) == 1 && strings.Contains(p[0], "webhook-1") && strings.Contains(p[0], "502")
	})
	if got := r.count("messages", prometheus.Labels{"hook": "webhook-1", "result": delivered}); got != 0 {
		t.Errorf("%v delivered to a server that is down", got)
	}
	bustest.Wait(t, "the lag", func() bool {
		r.set.hooks[0].mu.Lock()
		defer r.set.hooks[0].mu.Unlock()
		return r.set.hooks[0].behind["TG_EVENTS"] == 4
	})
	r.stop()
	r.attack(want[4])
	v.mu.Lock()
	down = false
	v.mu.Unlock()
	r.start()
	r.attack(want[5])
	bustest.Wait(t, "all", func() bool { return len(v.taken()) >= len(want) })
	if got := attackIDs(v.taken()); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestWebhookRefusal: an event that the receiver calls unacceptable is given up and counted, others follow; types that
// nobody asked for are not sent; a redirect is not followed.
func TestWebhookRefusal(t *testing.T) {
	elsewhere := newReceiver(t, nil)
	redirects := 0
	v := newReceiver(t, nil)
	v.answer = func(n int, w http.ResponseWriter, _ *http.Request) bool {
		switch n {
		case 0:
			w.WriteHeader(http.StatusUnprocessableEntity)
			return false
		case 1:
			redirects++
			w.Header().Set("Location", elsewhere.URL)
			w.WriteHeader(http.StatusTemporaryRedirect)
			return false
		}
		return true
	}
	r := newRig(t, v.configure(t))
	r.attack("refused")
	r.enforcement(ruleEvent("e0", eventv1.EnforcementState_ENFORCEMENT_STATE_HITS))
	r.attack("taken")
	r.enforcement(ruleEvent("e1", eventv1.EnforcementState_ENFORCEMENT_STATE_APPLIED))
	bustest.Wait(t, "two", func() bool { return len(v.taken()) == 2 })
	list := v.taken()
	if list[0].Type != "attack.started" || attackIDs(list)[0] != "taken" || list[1].Type != "rule.applied" || redirects != 1 || len(elsewhere.taken()) != 0 {
		t.Errorf("got %+v after %d redirects, %d elsewhere", list, redirects, len(elsewhere.taken()))
	}
	data, _ := list[1].Data.(map[string]any)
	rule, _ := data["rule"].(map[string]any)
	if data["by"] != "detector" || rule["id"] != "r1" || data["action"] != "drop" || data["node"] != "edge1" {
		t.Errorf("a rule's event says %v", data)
	}
	bustest.Wait(t, "the counts", func() bool {
		return r.count("messages", prometheus.Labels{"hook": "webhook-1", "result": refused}) == 1 &&
			r.count("messages", prometheus.Labels{"hook": "webhook-1", "result": skipped}) == 1 &&
			r.count("messages", prometheus.Labels{"hook": "webhook-1", "result": delivered}) == 2 &&
			r.count("failures", prometheus.Labels{"hook": "webhook-1", "reason": "redirect"}) == 1
	})
}

// TestWebhookUnknownAuthority: a server whose certificate nobody vouches for gets nothing.
func TestWebhookUnknownAuthority(t *testing.T) {
	v := newReceiver(t, nil)
	configure := v.configure(t)
	r := newRig(t, func(c *Config) { configure(c); c.WebhookCA = "" })
	r.attack("a")
	bustest.Wait(t, "a failure", func() bool {
		return r.count("failures", prometheus.Labels{"hook": "webhook-1", "reason": "tls"}) > 0
	})
	if len(v.taken()) != 0 {
		t.Error("the event went out")
	}
}

// TestWebhookHidesURL: the path of a webhook is often all that its receiver asks for; viewers of the status do not get it.
func TestWebhookHidesURL(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	write(t, secret, secretLine, 0o600)
	w, err := newWebhook("http://u:s3cret@127.0.0.1:1/hooks/s3cret?token=s3cret", secret, "", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	err = w.send(context.Background(), &event{id: "e"})
	if err == nil || strings.Contains(err.Error(), "s3cret") || !strings.Contains(err.Error(), "http://127.0.0.1:1") {
		t.Errorf("%v", err)
	}
}

// TestSignature compares with the example of the Standard Webhooks libraries.
func TestSignature(t *testing.T) {
	secret, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secretLine, secretPrefix))
	if err != nil {
		t.Fatal(err)
	}
	got := sign([][]byte{secret}, "msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`))
	if want := "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="; got != want {
		t.Errorf("the signature is %s, want %s", got, want)
	}
}

// TestSecretRotation: with two secrets in the file both sign, without a restart.
func TestSecretRotation(t *testing.T) {
	v := newReceiver(t, nil)
	r := newRig(t, v.configure(t))
	r.attack("a")
	bustest.Wait(t, "one", func() bool { return len(v.taken()) == 1 })
	write(t, r.cfg.Secrets[0], "whsec_"+base64.StdEncoding.EncodeToString(make([]byte, 32))+"\n"+secretLine+"\n", 0o600)
	r.attack("b")
	bustest.Wait(t, "two", func() bool { return len(v.taken()) == 2 })
	one, two := v.heads[0].Get(headerSignature), v.heads[1].Get(headerSignature)
	if len(strings.Fields(one)) != 1 || len(strings.Fields(two)) != 2 {
		t.Errorf("signatures %q, then %q", one, two)
	}
}

// TestVerificationExample runs the receiver's example of the manual on a real request, and on changed ones.
func TestVerificationExample(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		missing(t, "python3: %v", err)
	}
	page := strings.Join(lines(t, "../../../../docs/hooks.md"), "\n")
	_, rest, ok := strings.Cut(page, "```python\n")
	example, _, closed := strings.Cut(rest, "```")
	if !ok || !closed {
		t.Fatal("docs/hooks.md has no example in Python")
	}
	v := newReceiver(t, nil)
	r := newRig(t, v.configure(t))
	r.attack("a")
	bustest.Wait(t, "one", func() bool { return len(v.taken()) == 1 })
	body, head := string(v.raw[0]), v.heads[0]
	for _, c := range []struct {
		name, body, id, timestamp string
		good                      bool
	}{
		{"as it came", body, head.Get(headerID), head.Get(headerTimestamp), true},
		{"another body", body + " ", head.Get(headerID), head.Get(headerTimestamp), false},
		{"another id", body, head.Get(headerID) + "0", head.Get(headerTimestamp), false},
		{"an old time", body, head.Get(headerID), "1700000000", false},
	} {
		script := example + "\nimport sys\nverify(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], sys.stdin.buffer.read())\n"
		cmd := exec.Command(python, "-c", script, secretLine, c.id, c.timestamp, head.Get(headerSignature))
		cmd.Stdin = strings.NewReader(c.body)
		out, err := cmd.CombinedOutput()
		if (err == nil) != c.good {
			t.Errorf("%s: %v %s", c.name, err, out)
		}
	}
}
