// Package live keeps the state of the last second for all viewers and streams events to them.
//
// One poller asks the services, however many look; its answer is encoded once. Events come from the event stream on
// NATS, are encoded once and lie in a ring from which every client reads at its own pace. A client that is further
// back than the ring, after a reconnect or because it came from another gateway, is served from the event stream
// itself until it has caught up: the gateway holds nothing that a restart could lose.
package live

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

// Source is what the poller asks. Calls end with their context; who does not answer is in the missing lists.
type Source interface {
	Sensors(ctx context.Context) ([]api.Sensor, []api.Missing)
	Status(ctx context.Context) api.Status
	ActiveAttacks(ctx context.Context) ([]api.Attack, error)
}

// Events is the part of the bus that the hub reads.
type Events interface {
	State(ctx context.Context, stream string) (bus.StreamState, error)
	FollowEvents(ctx context.Context, after uint64, subjects []string, h func(bus.EventMsg), gap func(bus.Gap)) error
	SubscribeWindows(ctx context.Context, h func(sensor string, w *flowv1.Window)) error
}

// Config is timing and bounds.
type Config struct {
	Interval     time.Duration // of the poller while somebody looks
	IdleInterval time.Duration // while nobody does
	MaxClients   int           // of the stream; more are answered 503
	WriteTimeout time.Duration // a client that takes nothing for so long is disconnected
	RingEvents   int           // stored events kept for clients that are behind
}

// DefaultConfig is for hundreds of clients in 150 MiB.
func DefaultConfig() Config {
	return Config{
		Interval: 250 * time.Millisecond, IdleInterval: 2 * time.Second, MaxClients: 2000,
		WriteTimeout: 10 * time.Second, RingEvents: 4096,
	}
}

// Deps is what a Hub needs.
type Deps struct {
	Telemetry *telemetry.Telemetry
	Source    Source
	Events    Events
	// Attack and Verdict make the objects of REST, so that the stream shows the same.
	Attack  func(*eventv1.Attack) api.Attack
	Verdict func(*eventv1.Verdict) api.Verdict
}

const (
	lookedAt     = 5 * time.Second  // somebody who asked so recently is expected back
	pollTimeout  = 2 * time.Second  // of one round of questions
	readAttacks  = 10 * time.Second // events can be missed while NATS is away; the database has them
	livePeriod   = time.Second
	startRetry   = time.Second
	replaysAtAll = 16 // clients served from the event stream at once; others wait
)

// Hub is the live state of the mesh and the handler of /api/v1/stream. All methods may be called concurrently.
type Hub struct {
	cfg     Config
	d       Deps
	m       *metrics
	meter   meter
	attacks *attacks
	s       *stream
	replays chan struct{} // a slot for each that runs

	snap    atomic.Pointer[snapshot]
	asked   atomic.Int64 // Unix ns of the last Snapshot
	clients atomic.Int64
	wake    chan struct{}
	done    chan struct{} // closed when Run ends: the streams end
}

type snapshot struct {
	live api.Live
	body []byte
	etag string
}

// New makes a hub; Run makes it live.
func New(cfg Config, d Deps) *Hub {
	h := &Hub{
		cfg: cfg, d: d, m: newMetrics(d.Telemetry.Registry), attacks: newAttacks(), s: newStream(cfg.RingEvents),
		replays: make(chan struct{}, replaysAtAll), wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	h.store(api.Live{PPS: map[string]float64{}, BPS: map[string]float64{}})
	return h
}

// Run polls and follows events until ctx ends, then ends all streams and returns nil. It is called once.
func (h *Hub) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, f := range []func(context.Context){h.poll, h.readAttacks, h.follow, h.windows} {
		wg.Add(1)
		go func() { defer wg.Done(); f(ctx) }()
	}
	<-ctx.Done()
	close(h.done)
	wg.Wait()
	return nil
}

// Snapshot is the newest api.Live as JSON, with its entity tag. The bytes are shared: do not change them.
func (h *Hub) Snapshot() (body []byte, etag string) {
	s := h.look()
	return s.body, s.etag
}

// Live is the newest state. Its maps and slices are shared: do not change them.
func (h *Hub) Live() api.Live { return h.look().live }

func (h *Hub) look() *snapshot {
	now := time.Now().UnixNano()
	if before := h.asked.Swap(now); now-before > int64(lookedAt) {
		h.rouse()
	}
	return h.snap.Load()
}

// rouse makes an idle poller ask at once.
func (h *Hub) rouse() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

func (h *Hub) store(l api.Live) *snapshot {
	l.Attacks, l.Missing = notNil(l.Attacks), notNil(l.Missing)
	l.TopDst, l.TopSrc, l.Ledger.Stages = notNil(l.TopDst), notNil(l.TopSrc), notNil(l.Ledger.Stages)
	body, err := json.Marshal(l)
	if err != nil { // a rate that is no number
		h.d.Telemetry.CountError("encode_live")
		return h.snap.Load()
	}
	s := &snapshot{live: l, body: body, etag: `"` + strconv.FormatInt(int64(l.TimeNs), 36) + `"`}
	h.snap.Store(s)
	return s
}

func notNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func (h *Hub) poll(ctx context.Context) {
	var sent time.Time
	for ctx.Err() == nil {
		begin := time.Now()
		s := h.refresh(ctx)
		if h.clients.Load() > 0 && begin.Sub(sent) >= livePeriod-h.cfg.Interval/2 {
			sent = begin
			h.s.push(&h.s.live, frame{kind: kindLive, data: encode("", api.EventLive, s.body)})
		}
		wait := h.cfg.Interval
		if h.clients.Load() == 0 && time.Now().UnixNano()-h.asked.Load() > int64(lookedAt) {
			wait = h.cfg.IdleInterval
		}
		timer := time.NewTimer(max(wait-time.Since(begin), wait/4)) // slow services are asked less often
		select {
		case <-timer.C:
		case <-h.wake:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

func (h *Hub) refresh(ctx context.Context) *snapshot {
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	var status api.Status
	done := make(chan struct{})
	go func() { defer close(done); status = h.d.Source.Status(ctx) }()
	sensors, missing := h.d.Source.Sensors(ctx)
	now := time.Now()
	<-done
	l := api.Live{
		TimeNs: api.Nanos(now.UnixNano()), Attacks: h.attacks.active(), Ledger: status.Ledger, Panic: status.Panic,
		Enforcing: status.Enforcing, Missing: mergeMissing(status.Missing, missing),
	}
	l.PPS, l.BPS = h.meter.rates(now, sensors)
	l.TopDst, l.TopSrc = talkers(sensors)
	return h.store(l)
}

func mergeMissing(lists ...[]api.Missing) []api.Missing {
	var out []api.Missing
	type id struct{ service, address string }
	seen := map[id]bool{}
	for _, l := range lists {
		for _, m := range l {
			if k := (id{m.Service, m.Address}); !seen[k] {
				seen[k] = true
				out = append(out, m)
			}
		}
	}
	return out
}

func (h *Hub) readAttacks(ctx context.Context) {
	for ctx.Err() == nil {
		ask, cancel := context.WithTimeout(ctx, pollTimeout)
		begin := time.Now()
		list, err := h.d.Source.ActiveAttacks(ask)
		cancel()
		if err == nil {
			h.attacks.reconcile(list, begin)
		} else if ctx.Err() == nil {
			h.d.Telemetry.CountError("active_attacks")
		}
		pause(ctx, readAttacks)
	}
}

func (h *Hub) follow(ctx context.Context) {
	for ctx.Err() == nil {
		st, err := h.d.Events.State(ctx, bus.StreamEvents)
		if err != nil {
			if ctx.Err() == nil {
				h.d.Telemetry.CountError("follow_events")
			}
			pause(ctx, startRetry)
			continue
		}
		h.s.begin(st.LastSeq)
		err = h.d.Events.FollowEvents(ctx, st.LastSeq, nil, func(m bus.EventMsg) {
			h.note(&m)
			if f, ok := h.frame(&m); ok {
				h.s.add(f)
			}
		}, func(g bus.Gap) {
			if g.Restarted {
				h.s.restart()
			} else {
				h.s.begin(g.To)
			}
		})
		if err != nil {
			h.d.Telemetry.CountError("follow_events")
			pause(ctx, startRetry)
		}
	}
}

// note keeps the attacks current.
func (h *Hub) note(m *bus.EventMsg) {
	switch {
	case m.Attack != nil:
		h.attacks.event(h.d.Attack(m.Attack), time.Now())
	case m.Enforcement != nil && !m.Enforcement.GetShadow():
		h.attacks.drop(m.Enforcement.GetAttackId(), api.Nanos(m.Enforcement.GetFirstDropNs()))
	}
}

// frame encodes a stored event.
func (h *Hub) frame(m *bus.EventMsg) (frame, bool) {
	var v any
	f := frame{seq: m.StreamSeq}
	switch {
	case m.Attack != nil:
		a := h.d.Attack(m.Attack)
		if a.FirstDropNs == 0 {
			a.FirstDropNs = h.attacks.firstDrop(a.ID)
		}
		v, f.kind = a, kindAttack
	case m.Verdict != nil:
		v, f.kind = h.d.Verdict(m.Verdict), kindVerdict
	case m.Enforcement != nil:
		v, f.kind = enforcement(m.Enforcement), kindEnforcement
	}
	body, err := json.Marshal(v)
	if err != nil { // a rate that is no number
		h.d.Telemetry.CountError("encode_event")
		return f, false
	}
	f.data = encode(strconv.FormatUint(m.StreamSeq, 10), f.kind.String(), body)
	return f, true
}

func (h *Hub) windows(ctx context.Context) {
	for ctx.Err() == nil {
		err := h.d.Events.SubscribeWindows(ctx, func(_ string, w *flowv1.Window) {
			if h.clients.Load() == 0 || w.GetPart() && w.GetTotal() == nil {
				return // another part tells what there is in all
			}
			body, err := json.Marshal(summary(w))
			if err != nil {
				h.d.Telemetry.CountError("encode_window")
				return
			}
			h.s.push(&h.s.window, frame{kind: kindWindow, data: encode("", api.EventWindow, body)})
		})
		if err != nil {
			h.d.Telemetry.CountError("subscribe_windows")
			pause(ctx, startRetry)
		}
	}
}

// encode makes one server-sent event. JSON has no line breaks.
func encode(id, event string, data []byte) []byte {
	if id != "" {
		id = "id: " + id + "\n"
	}
	return fmt.Appendf(make([]byte, 0, len(id)+len(event)+len(data)+20), "%sevent: %s\ndata: %s\n\n", id, event, data)
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
