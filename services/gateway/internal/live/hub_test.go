package live

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/bus/bustest"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/caller"
)

func TestSnapshot(t *testing.T) {
	b := startNATS(t).connect(t)
	g := startGateway(t, b, func(c *Config) { c.IdleInterval = time.Hour }, nil)
	_, before := g.Snapshot() // somebody looks: the poller goes to its fast rhythm
	var l api.Live
	bustest.Wait(t, "rates", func() bool {
		body, etag := g.Snapshot()
		l = api.Live{}
		if err := json.Unmarshal(body, &l); err != nil {
			t.Fatal(err)
		}
		return l.PPS["drop"] > 0 && etag != before
	})
	if l.BPS["drop"] != 8*64*l.PPS["drop"] || !l.Enforcing || len(l.Missing) != 2 {
		t.Errorf("%+v", l)
	}
	if time.Since(l.TimeNs.Time()) > 5*time.Second {
		t.Errorf("the state is of %s", l.TimeNs.Time())
	}
	publish(t, b, 1, 1)
	if err := b.PublishEnforcement(context.Background(), &eventv1.Enforcement{Id: "e", AttackId: "a", FirstDropNs: 7}); err != nil {
		t.Fatal(err)
	}
	bustest.Wait(t, "the attack with its first drop", func() bool {
		a := g.Live().Attacks
		return len(a) == 1 && a[0].ID == "a" && a[0].FirstDropNs == 7
	})
}

func TestIdle(t *testing.T) {
	g := startGateway(t, startNATS(t).connect(t), func(c *Config) { c.IdleInterval = time.Hour }, nil)
	bustest.Wait(t, "the first round", func() bool { return g.src.rounds() > 0 })
	time.Sleep(100 * time.Millisecond)
	if n := g.src.rounds(); n != 1 {
		t.Errorf("%d rounds while nobody looks, want 1", n)
	}
	l := g.listen(t, "types=live", "")
	l.named(t, api.EventLive)
	bustest.Wait(t, "the fast rhythm", func() bool { return g.src.rounds() > 5 })
}

func TestEvents(t *testing.T) {
	b := startNATS(t).connect(t)
	g := startGateway(t, b, nil, nil)
	all, some := g.listen(t, "", ""), g.listen(t, "types=verdict,window&heartbeat=1", "")
	publish(t, b, 1, 1)
	ctx := context.Background()
	if err := b.PublishVerdict(ctx, &eventv1.Verdict{Id: "v"}); err != nil {
		t.Fatal(err)
	}
	e := &eventv1.Enforcement{Id: "e", AttackId: "a", State: eventv1.EnforcementState_ENFORCEMENT_STATE_FIRST_DROP, Action: 3, FirstDropNs: 1 << 60}
	if err := b.PublishEnforcement(ctx, e); err != nil {
		t.Fatal(err)
	}
	all.want(t, 1, 1)
	if v := all.named(t, api.EventVerdict); v.id != "2" {
		t.Errorf("%+v", v)
	}
	got := all.named(t, api.EventEnforcement)
	var o api.EnforcementEvent
	if err := json.Unmarshal([]byte(got.data), &o); err != nil || got.id != "3" {
		t.Fatalf("%v %+v", err, got)
	}
	if o.State != "first_drop" || o.Action != "rate-limit" || o.FirstDropNs != 1<<60 || !strings.Contains(got.data, `"1152921504606846976"`) {
		t.Errorf("%s", got.data)
	}
	all.named(t, api.EventLive)

	if v := some.named(t, api.EventVerdict); v.id != "2" {
		t.Errorf("%+v", v)
	}
	w := &flowv1.Window{Sensor: "s", Total: &flowv1.Counters{Packets: 9}, Targets: []*flowv1.Target{
		{Addr: []byte{15: 1}, PrefixLen: 128, Counters: &flowv1.Counters{Packets: 1}},
		{Addr: []byte{10: 255, 11: 255, 12: 192, 14: 2, 15: 1}, PrefixLen: 128, Counters: &flowv1.Counters{Packets: 8}},
		{Addr: []byte{10: 255, 11: 255, 12: 192, 14: 2, 15: 0}, PrefixLen: 120, Counters: &flowv1.Counters{Packets: 8}},
	}}
	if err := b.PublishWindow(ctx, "s", w); err != nil {
		t.Fatal(err)
	}
	const want = `"top_destinations":[{"addr":"192.0.2.1","packets":8,"bytes":0},{"addr":"::1","packets":1,"bytes":0}]`
	if e := some.named(t, api.EventWindow); e.id != "" || !strings.Contains(e.data, want) {
		t.Errorf("%+v", e)
	}
	if n := g.metric(t, "tidegate_gateway_stream_clients", ""); n != 2 {
		t.Errorf("%v clients, want 2", n)
	}
	// A heartbeat brings the id past what the filter held back.
	time.Sleep(1200 * time.Millisecond)
	some.close()
	if some.lastID != "3" || !strings.HasPrefix(some.raw.String(), "retry: 1000\n\nid: ") || !strings.Contains(some.raw.String(), "\n:\n") {
		t.Errorf("last id %s of %q", some.lastID, some.raw)
	}
	if n := g.metric(t, "tidegate_gateway_stream_events_total", api.EventVerdict); n != 2 {
		t.Errorf("%v verdicts sent, want 2", n)
	}
	bustest.Wait(t, "the end to be counted", func() bool {
		return g.metric(t, "tidegate_gateway_stream_ended_total", "client") == 1 && g.metric(t, "tidegate_gateway_stream_clients", "") == 1
	})
}

func TestBadRequests(t *testing.T) {
	g := startGateway(t, startNATS(t).connect(t), func(c *Config) { c.MaxClients = 0 }, nil)
	for query, want := range map[string]int{
		"types=attack,nonsense": 400, "last_event_id=-1": 400, "last_event_id=99999999999999999999": 400, "last_event_id=x": 400,
		"heartbeat=0": 400, "heartbeat=61": 400, "": 503,
	} {
		w := httptest.NewRecorder()
		g.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/?"+query, nil))
		if w.Code != want || w.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %d %s, want %d", query, w.Code, w.Body, want)
		}
	}
}

func TestExpiry(t *testing.T) {
	g := startGateway(t, startNATS(t).connect(t), nil, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c := caller.Caller{Role: caller.Viewer, Expires: time.Now().Add(300 * time.Millisecond)}
			h.ServeHTTP(w, r.WithContext(caller.With(r.Context(), c)))
		})
	})
	l := g.listen(t, "", "")
	l.named(t, api.EventExpired)
	if e, err := l.next(); err == nil {
		t.Errorf("%+v after the end", e)
	}
	bustest.Wait(t, "the end to be counted", func() bool {
		return g.metric(t, "tidegate_gateway_stream_ended_total", "expired") == 1
	})
}

// A stream on which nothing happens lives on from one heartbeat to the next, which are further apart than the time for
// a write: with HTTP/2 the deadline of a write that is long over would reset the stream.
func TestQuietStream(t *testing.T) {
	b := startNATS(t).connect(t)
	g := startGateway(t, b, func(c *Config) { c.WriteTimeout = 200 * time.Millisecond }, nil)
	l := g.listen(t, "types=attack&heartbeat=1", "")
	select {
	case e, ok := <-l.events:
		t.Fatalf("event %+v, stream lives: %v", e, ok)
	case <-time.After(1500 * time.Millisecond):
	}
	publish(t, b, 1, 1)
	l.want(t, 1, 1)
}
