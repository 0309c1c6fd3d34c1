package classify

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/lifecycle"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/detect"
)

// limits are the thresholds by which floods toward a host are measured: its group's, raised where more is usual.
func (e *Engine) limits(host netip.Addr, g *group) *detect.Thresholds {
	if t := e.usual.Thresholds(host); t != nil {
		return t
	}
	return &g.thresholds
}

// learns: captures teach nothing, because each is judged by itself.
func (e *Engine) learns() bool { return e.cfg.Now != nil && e.cfg.UsualDays > 0 }

// settleMinute leaves out of what is learned a minute in which the host was under an attack.
func (e *Engine) settleMinute(host netip.Addr, t *target) {
	if e.flooded[host.As16()] > 0 || len(e.bombing(netip.PrefixFrom(host, host.BitLen()))) > 0 {
		t.minute.Spoil()
	}
}

// inForce names the thresholds of a verdict. Where what is usual raised one, the configured one stands beside it as
// configured_NAME, and a sentence says so.
func (e *Engine) inForce(a *attack, limits map[string]float64) (named map[string]float64, sentence string) {
	if a.flood == nil || a.bombs != nil || e.usual.Thresholds(a.target.Addr()) == nil {
		return limits, ""
	}
	g := e.groups.of(a.target.Addr())
	if g == nil {
		return limits, ""
	}
	named = make(map[string]float64, len(limits)+1)
	own := g.thresholds.Named()
	for _, name := range slices.Sorted(maps.Keys(limits)) {
		v := limits[name]
		named[name] = v
		if c, ok := own[name]; ok && c != v {
			named["configured_"+name] = c
			sentence += fmt.Sprintf(" The threshold of %s is %.0f instead of %.0f, because much is usual for this host.", name, v, c)
		}
	}
	return named, sentence
}

// learned lists the hosts of each group, by its place, whose thresholds are raised.
func (e *Engine) learned() map[*group][]*classifyv1.LearnedHost {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make(map[*group][]*classifyv1.LearnedHost)
	hosts, thresholds := e.usual.Raised()
	for i, h := range hosts {
		if g := e.groups.of(h); g != nil {
			out[g] = append(out[g], &classifyv1.LearnedHost{Host: h.String(), Thresholds: thresholds[i]})
		}
	}
	return out
}

// usualChanged are the days of which something was learned since the last call, newest first.
func (e *Engine) usualChanged() []*eventv1.UsualDay {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.usual.Changed()
}

// usualAgain asks usualChanged to return a day again, because it was not stored.
func (e *Engine) usualAgain(day uint32) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.usual.Again(day)
}

// restoreUsual takes in what classifiers learned before, and returns how many hosts are known now. It may be called at any
// time; what was learned meanwhile stays.
func (e *Engine) restoreUsual(days []*eventv1.UsualDay) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.learns() {
		return 0
	}
	return e.usual.Import(days, e.cfg.Now())
}

const (
	usualEvery  = time.Minute     // how often what was learned is stored
	usualRetry  = 5 * time.Second // between attempts to restore it, at most
	usualRest   = 2 * time.Second // for the last time, when the service stops
	usualAnswer = 5 * time.Second
	maxNodes    = 1_024 // whose days are read
)

// keepUsual restores what was learned before, then stores what changed, once a minute and when ctx ends. Nothing is stored
// before it was restored: a day is stored as a whole.
func (s *Service) keepUsual(ctx context.Context) {
	if !s.engine.learns() {
		return
	}
	why := ""
	err := lifecycle.Retry(ctx, retryMin, usualRetry, s.restoreUsual, func(err error, _ time.Duration) {
		s.t.CountError("restore_usual")
		if why != err.Error() {
			why = err.Error()
			s.t.Log.Warn("what is usual for the hosts is not restored yet: the configured thresholds hold, trying again", "error", err)
		}
	})
	if err != nil {
		return // only ctx's end stops the attempts
	}
	tick := time.NewTicker(s.cfg.usualEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), usualRest)
			defer cancel()
			s.storeUsual(last)
			return
		case <-tick.C:
			s.storeUsual(ctx)
		}
	}
}

// restoreUsual asks persist for the last days of all classifiers: hosts move between them, and their names may change.
func (s *Service) restoreUsual(ctx context.Context) error {
	today := uint32(s.cfg.Engine.Now() / int64(24*time.Hour)) //nolint:gosec // days since 1970
	var days []*eventv1.UsualDay
	for back := range uint32(s.cfg.Engine.UsualDays) + 1 { //nolint:gosec // a few
		for after, n := "", 0; n < maxNodes; n++ {
			ask, cancel := context.WithTimeout(ctx, usualAnswer)
			d, err := s.bus.LoadUsual(ask, &eventv1.UsualQuery{Day: today - back, After: after})
			cancel()
			if err != nil {
				return err
			}
			if d == nil {
				break
			}
			days, after = append(days, d), d.GetNode()
		}
	}
	hosts := s.engine.restoreUsual(days)
	s.t.Log.Info("what is usual for the hosts is restored", "hosts", hosts, "raised", s.engine.Stats().UsualRaised)
	return nil
}

// storeUsual hands what changed to persist. What fails is tried again with the next.
func (s *Service) storeUsual(ctx context.Context) {
	for _, d := range s.engine.usualChanged() {
		d.Node, d.UpdatedNs = s.t.Instance(), s.cfg.Engine.Now()
		store, cancel := context.WithTimeout(ctx, usualAnswer)
		err := s.bus.StoreUsual(store, d)
		cancel()
		if err == nil {
			continue
		}
		s.engine.usualAgain(d.GetDay())
		s.t.CountError("store_usual")
		if !errors.Is(err, bus.ErrUnavailable) { // that is told by others
			s.t.Log.Warn("what is usual for the hosts is not stored, trying again in a minute", "error", err)
		}
	}
}
