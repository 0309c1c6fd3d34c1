package live

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/bus/bustest"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

func TestMain(m *testing.M) {
	if what := os.Getenv(scaleEnv); what != "" {
		if err := scaleMain(what); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// services is a Source whose counters rise by 100 packets a question.
type services struct {
	mu     sync.Mutex
	asked  int
	active []api.Attack
	err    error
}

func (s *services) Sensors(context.Context) ([]api.Sensor, []api.Missing) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	return []api.Sensor{sensor("a", uint64(100*s.asked), uint64(6400*s.asked))}, []api.Missing{{Service: "ingest", Address: "b"}}
}

func (s *services) Status(context.Context) api.Status {
	return api.Status{Enforcing: true, Missing: []api.Missing{{Service: "persist", Address: "c"}, {Service: "ingest", Address: "b"}}}
}

func (s *services) ActiveAttacks(context.Context) ([]api.Attack, error) { return s.active, s.err }

func (s *services) rounds() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

// nats is an embedded server that can be stopped and started again with its data.
type nats struct {
	t      *testing.T
	dir    string
	listen string
	e      *bus.Embedded
}

func startNATS(t *testing.T) *nats {
	n := &nats{t: t, dir: t.TempDir(), listen: "127.0.0.1:0"}
	n.start()
	t.Cleanup(func() { n.e.Shutdown() })
	return n
}

func (n *nats) start() {
	n.t.Helper()
	var err error
	if n.e, err = bus.StartEmbedded(context.Background(), n.dir, bus.Listen{Addr: n.listen, Insecure: true}); err != nil {
		n.t.Fatal(err)
	}
	n.listen = n.e.Addr()
}

func (n *nats) connect(t *testing.T) *bus.Bus {
	return bustest.Open(t, bus.Config{URL: "nats://" + n.listen})
}

func attackObject(a *eventv1.Attack) api.Attack {
	state := strings.ToLower(strings.TrimPrefix(a.GetState().String(), "ATTACK_STATE_"))
	return api.Attack{ID: a.GetId(), State: state, UpdatedNs: api.Nanos(a.GetUpdatedNs()), Packets: uint64(a.GetRevision())}
}

func verdictObject(v *eventv1.Verdict) api.Verdict { return api.Verdict{ID: v.GetId()} }

// gateway is a hub behind an HTTP server.
type gateway struct {
	*Hub
	srv *httptest.Server
	tel *telemetry.Telemetry
	src *services
}

func startGateway(t testing.TB, b Events, change func(*Config), wrap func(http.Handler) http.Handler) *gateway {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Interval = 20 * time.Millisecond
	if change != nil {
		change(&cfg)
	}
	g := &gateway{tel: telemetry.Discard("gateway"), src: &services{}}
	g.Hub = New(cfg, Deps{Telemetry: g.tel, Source: g.src, Events: b, Attack: attackObject, Verdict: verdictObject})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	var handler http.Handler = g.Hub
	if wrap != nil {
		handler = wrap(handler)
	}
	g.srv = httptest.NewUnstartedServer(handler)
	g.srv.EnableHTTP2 = true
	g.srv.StartTLS()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		g.srv.Close()
	})
	bustest.Wait(t, "the hub to follow", func() bool { _, known := g.s.end(); return known })
	return g
}

// metric is the value of a counter or gauge of the hub.
func (g *gateway) metric(t *testing.T, name, label string) float64 {
	t.Helper()
	families, err := g.tel.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if label == "" || len(m.GetLabel()) > 0 && m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return 0
}

// event is one server-sent event as a browser sees it.
type event struct{ id, name, data string }

// listener is a client that remembers its last id as EventSource does.
type listener struct {
	events chan event
	lastID string
	raw    *strings.Builder
	cancel func()
	done   chan struct{}
}

func (g *gateway) listen(t *testing.T, query, lastID string) *listener {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.srv.URL+"/?"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	if lastID != "" {
		req.Header.Set("Last-Event-ID", lastID)
	}
	resp, err := g.srv.Client().Do(req) //nolint:bodyclose // the reading goroutine does
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%s %s", resp.Status, resp.Header.Get("Content-Type"))
	}
	l := &listener{events: make(chan event, 4096), lastID: lastID, cancel: cancel, done: make(chan struct{}), raw: &strings.Builder{}}
	go func() {
		defer close(l.done)
		defer func() { _ = resp.Body.Close() }()
		defer close(l.events)
		l.read(resp.Body)
	}()
	t.Cleanup(l.close)
	return l
}

func (l *listener) read(body io.Reader) {
	r := bufio.NewReader(io.TeeReader(body, l.raw))
	var e event
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		switch name {
		case "id":
			e.id = value
		case "event":
			e.name = value
		case "data":
			e.data = value
		case "":
			if e.id != "" {
				l.lastID = e.id
			}
			if e.data != "" {
				l.events <- e
			}
			e = event{}
		}
	}
}

// close ends the client; after it lastID and raw may be read.
func (l *listener) close() {
	l.cancel()
	<-l.done
}

// want reads stored events and fails unless their ids are exactly first to last.
func (l *listener) want(t *testing.T, first, last int) {
	t.Helper()
	for i := first; i <= last; {
		e, err := l.next()
		if err != nil {
			t.Fatalf("waiting for id %d: %v", i, err)
		}
		if e.id == "" {
			continue
		}
		if e.id != strconv.Itoa(i) || e.name != api.EventAttack {
			t.Fatalf("got %+v, want attack with id %d", e, i)
		}
		i++
	}
}

// named is the next event of a type.
func (l *listener) named(t *testing.T, name string) event {
	t.Helper()
	for {
		e, err := l.next()
		if err != nil {
			t.Fatalf("waiting for %s: %v", name, err)
		}
		if e.name == name {
			return e
		}
	}
}

func (l *listener) next() (event, error) {
	select {
	case e, ok := <-l.events:
		if !ok {
			return e, errors.New("the stream ended")
		}
		return e, nil
	case <-time.After(10 * time.Second):
		return event{}, errors.New("nothing came")
	}
}

// publish stores attack revisions first to last, which are also their sequences in an empty stream.
func publish(t *testing.T, b *bus.Bus, first, last int) {
	t.Helper()
	for i := first; i <= last; i++ {
		a := &eventv1.Attack{Id: "a", Revision: uint32(i), Sensor: "s", State: eventv1.AttackState_ATTACK_STATE_UPDATED, UpdatedNs: int64(i)}
		if err := b.PublishAttack(context.Background(), a); err != nil {
			t.Fatal(err)
		}
	}
}

// publishNow stores an attack that was updated now.
func publishNow(t *testing.T, b *bus.Bus, revision int) {
	t.Helper()
	a := &eventv1.Attack{Id: "a", Revision: uint32(revision), UpdatedNs: time.Now().UnixNano()}
	if err := b.PublishAttack(context.Background(), a); err != nil {
		t.Fatal(err)
	}
}
