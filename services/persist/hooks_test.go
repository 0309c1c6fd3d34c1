package persist

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/bus/bustest"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// TestHookProblems: a receiver that is down is told in the status, does not make persist unready, and gets its events
// when it is back; without a database too.
func TestHookProblems(t *testing.T) {
	up := make(chan struct{})
	got := make(chan string, 1)
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-up:
			b, _ := io.ReadAll(r.Body)
			got <- string(b)
		default:
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(receiver.Close)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.DataDir = t.TempDir()
	cfg.Hooks.Webhooks, cfg.Hooks.Secrets = []string{receiver.URL}, []string{secret}
	r := newRig(t, cfg)
	bustest.Wait(t, "the database and the hook", func() bool {
		_, err := r.bus.Backlog(context.Background(), bus.StreamEvents, bus.HookDurable+"webhook-1")
		return err == nil && r.status().GetStatus().GetReady()
	})
	if err := r.bus.PublishAttack(context.Background(), &eventv1.Attack{
		Id: "a", Revision: 1, Sensor: "s", State: eventv1.AttackState_ATTACK_STATE_STARTED,
	}); err != nil {
		t.Fatal(err)
	}
	bustest.Wait(t, "the problem", func() bool {
		st := r.status().GetStatus()
		return st.GetReady() && len(st.GetProblems()) == 1 && strings.Contains(st.GetProblems()[0], "webhook-1") && strings.Contains(st.GetProblems()[0], "503")
	})
	if err := r.tel.Ready(); len(err) != 0 {
		t.Errorf("not ready: %v", err)
	}
	close(up)
	select {
	case body := <-got:
		if !strings.Contains(body, `"type":"attack.started"`) {
			t.Errorf("the receiver got %s", body)
		}
	case <-time.After(15 * time.Second):
		t.Fatal("the receiver got nothing")
	}
	bustest.Wait(t, "the problem's end", func() bool { return len(r.status().GetStatus().GetProblems()) == 0 })
}
