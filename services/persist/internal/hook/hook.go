// Package hook tells others of events: webhooks, scripts, and EVE lines in a file or on NATS.
//
// Each hook reads the streams through a durable consumer of its own, one message at a time, so it gets every event in
// the order of the stream and goes on after a restart where it was. A delivery that fails is tried again, with growing
// pauses, before anything later; what must not be told twice carries an id that stays the same.
package hook

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
)

const (
	retryMin  = time.Second
	retryMax  = time.Minute
	stopGrace = 5 * time.Second // how long an attempt may go on after the service was told to stop
	lagEvery  = 2 * time.Second
)

// Bus is what hooks need of the message bus; *bus.Bus has it.
type Bus interface {
	DeliverEvents(ctx context.Context, durable string, h func(context.Context, *bus.EventMsg, bus.Place) error) error
	DeliverFlows(ctx context.Context, durable string, h func(context.Context, *bus.FlowMsg, bus.Place) error) error
	Backlog(ctx context.Context, stream, durable string) (uint64, error)
	EnsureEVE(ctx context.Context) error
	PublishEVE(ctx context.Context, lines []bus.EVELine) error
}

// refusedError is a receiver's word that it never wants this event.
type refusedError struct{ error }

// failure is an attempt that failed, with a reason of a short list.
type failure struct {
	reason string
	err    error
	after  time.Duration // the receiver asks to wait so long
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// Set is all hooks of a configuration. Make it with New; Run works once.
type Set struct {
	hooks []*hook
	bus   Bus
	eve   *eveFile // nil: none
}

// hook is one receiver.
type hook struct {
	name       string
	t          *telemetry.Telemetry
	m          *metrics
	streams    []string // that it reads
	run        func(ctx context.Context, stream string) error
	first, max time.Duration // pauses between attempts

	mu      sync.Mutex
	problem map[string]string    // by stream, empty while deliveries succeed
	since   map[string]time.Time // of the problem
	hand    map[string]time.Time // when the message in hand was stored, by stream
	behind  map[string]uint64    // messages that wait, at the last look
}

// New checks cfg and registers the metrics; nil when it names no hook.
func New(cfg Config, t *telemetry.Telemetry, b Bus) (*Set, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if len(cfg.Webhooks)+len(cfg.Scripts) == 0 && cfg.EVEFile == "" && !cfg.EVENATS {
		return nil, nil //nolint:nilnil // no hooks is an answer
	}
	m, err := newMetrics(t.Registry)
	if err != nil {
		return nil, err
	}
	s := &Set{bus: b}
	add := func(name string) *hook {
		h := &hook{name: name, t: t, m: m, first: retryMin, max: retryMax, problem: map[string]string{},
			since: map[string]time.Time{}, hand: map[string]time.Time{}, behind: map[string]uint64{}}
		s.hooks = append(s.hooks, h)
		m.prepare(name)
		return h
	}
	types, err := wanted(cfg.Events)
	if err != nil && len(cfg.Webhooks)+len(cfg.Scripts) > 0 {
		return nil, err
	}
	for i, url := range cfg.Webhooks {
		w, err := newWebhook(url, cfg.Secrets[i], cfg.WebhookCA, cfg.HTTPTimeout)
		if err != nil {
			return nil, err
		}
		h := add(place("webhook", i))
		h.events(b, types, w.send)
	}
	for i, path := range cfg.Scripts {
		h := add(place("script", i))
		h.events(b, types, (&script{path: path, limit: cfg.ScriptTimeout}).run)
	}
	if cfg.EVEFile == "" && !cfg.EVENATS {
		return s, nil
	}
	lines, err := eveWanted(cfg.EVETypes)
	if err != nil {
		return nil, err
	}
	if cfg.EVEFile != "" {
		h := add("eve-file")
		s.eve = &eveFile{path: cfg.EVEFile, duplicates: m.results.WithLabelValues(h.name, duplicate), t: t}
		h.lines(b, lines, s.eve.write)
	}
	if cfg.EVENATS {
		h := add("eve-nats")
		h.lines(b, lines, (&eveNATS{bus: b}).publish)
	}
	return s, nil
}

// Run delivers until ctx ends; a delivery under way may go on for 5 s.
func (s *Set) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	spawn := func(f func()) {
		wg.Add(1)
		go func() { defer wg.Done(); f() }()
	}
	if s.eve != nil {
		spawn(func() { s.eve.watch(ctx) })
	}
	for _, h := range s.hooks {
		for _, stream := range h.streams {
			// The bus may not be reached yet.
			spawn(func() {
				for ctx.Err() == nil {
					if err := h.run(ctx, stream); err != nil && ctx.Err() == nil {
						h.failed(stream, &failure{reason: "bus", err: err})
						pause(ctx, h.first)
					}
				}
			})
		}
	}
	spawn(func() { s.watchLag(ctx) })
	wg.Wait()
	return nil
}

// Problems are sentences about hooks whose receiver does not take events now.
func (s *Set) Problems() []string {
	if s == nil {
		return nil
	}
	var out []string
	for _, h := range s.hooks {
		h.mu.Lock()
		for _, stream := range h.streams {
			if p := h.problem[stream]; p != "" {
				out = append(out, fmt.Sprintf("hook %s has failed since %s, %d messages of %s wait: %s", h.name,
					h.since[stream].UTC().Format(time.RFC3339), h.behind[stream], stream, p))
			}
		}
		h.mu.Unlock()
	}
	return out
}

func (s *Set) watchLag(ctx context.Context) {
	tick := time.NewTicker(lagEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, h := range s.hooks {
			for _, stream := range h.streams {
				if n, err := s.bus.Backlog(ctx, stream, bus.HookDurable+h.name); err == nil {
					h.mu.Lock()
					h.behind[stream] = n
					h.mu.Unlock()
					h.m.lag.WithLabelValues(h.name, stream).Set(float64(n))
				}
				h.mu.Lock()
				age := 0.0
				if at := h.hand[stream]; !at.IsZero() {
					age = time.Since(at).Seconds()
				}
				h.mu.Unlock()
				h.m.age.WithLabelValues(h.name, stream).Set(age)
			}
		}
	}
}

// events makes the hook one that gets single events of these types.
func (h *hook) events(b Bus, types map[string]bool, send func(context.Context, *event) error) {
	h.streams = []string{bus.StreamEvents}
	h.run = func(ctx context.Context, stream string) error {
		return b.DeliverEvents(ctx, bus.HookDurable+h.name, func(ctx context.Context, m *bus.EventMsg, at bus.Place) error {
			h.lost(stream, at.Lost)
			if !types[typeOf(m)] {
				h.m.results.WithLabelValues(h.name, skipped).Inc()
				return nil
			}
			e, err := newEvent(m, at)
			if err != nil { // a receiver could not read it either
				h.refused(at.ID, err)
				return nil
			}
			return h.deliver(ctx, stream, at, func(ctx context.Context) error { return send(ctx, e) })
		})
	}
}

// lines makes the hook one that gets EVE lines of these types.
func (h *hook) lines(b Bus, types map[string]bool, write func(ctx context.Context, l []bus.EVELine, again bool) error) {
	take := func(ctx context.Context, stream string, at bus.Place, l []bus.EVELine) error {
		h.lost(stream, at.Lost)
		if len(l) == 0 {
			h.m.results.WithLabelValues(h.name, skipped).Inc()
			return nil
		}
		return h.deliver(ctx, stream, at, func(ctx context.Context) error { return write(ctx, l, at.Redelivered) })
	}
	if types[typeAlert] || types[typeDrop] {
		h.streams = append(h.streams, bus.StreamEvents)
	}
	if types[typeFlow] {
		h.streams = append(h.streams, bus.StreamFlows)
	}
	h.run = func(ctx context.Context, stream string) error {
		if stream == bus.StreamFlows {
			return b.DeliverFlows(ctx, bus.HookDurable+h.name, func(ctx context.Context, m *bus.FlowMsg, at bus.Place) error {
				return take(ctx, stream, at, flowLines(m, at))
			})
		}
		return b.DeliverEvents(ctx, bus.HookDurable+h.name, func(ctx context.Context, m *bus.EventMsg, at bus.Place) error {
			return take(ctx, stream, at, eventLines(m, at, types))
		})
	}
}

// deliver tries until it succeeds, the receiver refuses, or ctx ends: then it fails and the bus keeps the message.
func (h *hook) deliver(ctx context.Context, stream string, at bus.Place, send func(context.Context) error) error {
	h.inHand(stream, at.Stored)
	defer h.inHand(stream, time.Time{})
	wait := h.first
	for {
		begin := time.Now()
		err := send(ctx)
		h.m.seconds.WithLabelValues(h.name).Observe(time.Since(begin).Seconds())
		var no *refusedError
		switch {
		case err == nil:
			h.well(stream)
			h.m.results.WithLabelValues(h.name, delivered).Inc()
			return nil
		case errors.As(err, &no):
			h.well(stream)
			h.refused(at.ID, err)
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		}
		h.failed(stream, err)
		next := wait/2 + rand.N(wait/2) // #nosec G404 -- needs no secrecy
		var f *failure
		if errors.As(err, &f) {
			next = max(next, f.after)
		}
		if !pause(ctx, next) {
			return ctx.Err()
		}
		wait = min(2*wait, h.max)
	}
}

func (h *hook) inHand(stream string, stored time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hand[stream] = stored
}

// lost counts what the stream removed before this hook had it.
func (h *hook) lost(stream string, n uint64) {
	if n == 0 {
		return
	}
	h.m.results.WithLabelValues(h.name, lost).Add(float64(n))
	h.t.Log.Error("a hook was too far behind: messages were removed from the stream before it had them", "hook", h.name, "stream", stream, "messages", n)
}

func (h *hook) refused(id string, err error) {
	h.m.results.WithLabelValues(h.name, refused).Inc()
	h.t.Log.Warn("a hook's receiver refuses an event for good; it is not sent again", "hook", h.name, "event", id, "error", err)
}

// failed notes a failure; a new reason is logged.
func (h *hook) failed(stream string, err error) {
	reason := "other"
	var f *failure
	if errors.As(err, &f) {
		reason = f.reason
	}
	h.m.failures.WithLabelValues(h.name, reason).Inc()
	h.mu.Lock()
	known := h.problem[stream] == err.Error()
	if h.problem[stream] == "" {
		h.since[stream] = time.Now()
	}
	h.problem[stream] = err.Error()
	h.mu.Unlock()
	if !known {
		h.t.Log.Warn("a hook failed, trying again", "hook", h.name, "reason", reason, "error", err)
	}
}

func (h *hook) well(stream string) {
	h.mu.Lock()
	was := h.problem[stream]
	delete(h.problem, stream)
	h.mu.Unlock()
	if was != "" {
		h.t.Log.Info("a hook works again", "hook", h.name)
	}
}

// attempt bounds one attempt. It outlives ctx by stopGrace, so that a clean stop does not cut off what is nearly done.
func attempt(ctx context.Context, limit time.Duration) (context.Context, func()) {
	run, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	stop := context.AfterFunc(ctx, func() {
		t := time.AfterFunc(stopGrace, cancel)
		context.AfterFunc(run, func() { t.Stop() })
	})
	return run, func() { stop(); cancel() }
}

// pause waits and reports false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
