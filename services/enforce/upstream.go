package enforce

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// What goes upstream: rules that drop much on every interface of this node. Once routers discard those packets, no
// counter here tells whether they still come, so a route has a time of its own: it stays at least --upstream-hold,
// whether its rule ends meanwhile or not, and goes at once when its rule is revoked, changed or stopped.

// route is a rule that has a route upstream.
type route struct {
	state *ruleState // its last version
	since time.Time
	seen  time.Time // when the rule was last in the table
	over  bool      // its deadline has passed since
}

func (c *Config) checkUpstream() error {
	if c.UpstreamExec == "" {
		return nil
	}
	if c.UpstreamHold < 0 || c.UpstreamLimit < 1 {
		return errors.New("enforce: --upstream-hold cannot be negative, and --upstream-limit is 1 or more")
	}
	path := c.UpstreamExec
	if !filepath.IsAbs(path) {
		return fmt.Errorf("enforce: --upstream-exec %s: give an absolute path", path)
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("enforce: --upstream-exec %s does not exist", path)
	case err != nil:
		return fmt.Errorf("enforce: --upstream-exec: %w", err)
	case !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0:
		return fmt.Errorf("enforce: --upstream-exec %s is no program: name a file and chmod +x it", path)
	case info.Mode().Perm()&0o002 != 0:
		return fmt.Errorf("enforce: --upstream-exec %s can be changed by every user of this machine: chmod o-w it", path)
	}
	if c.UpstreamState == "" {
		return nil
	}
	if path = c.UpstreamState; !filepath.IsAbs(path) {
		return fmt.Errorf("enforce: --upstream-state %s: give an absolute path", path)
	}
	switch info, err = os.Stat(filepath.Dir(path)); {
	case err != nil:
		return fmt.Errorf("enforce: the folder of --upstream-state: %w", err)
	case !info.IsDir() || info.Mode().Perm()&0o002 != 0:
		return fmt.Errorf("enforce: --upstream-state %s: name a file in a folder that not every user of this machine can write to", path)
	}
	return nil
}

// steer withdraws what must not be upstream any more. It is asked after every change.
func (s *Service) steer(now time.Time) {
	if len(s.routes) == 0 {
		return
	}
	var gone []*route
	var why []string
	for number, w := range s.routes {
		r := s.rules[w.state.rule.ID]
		if r != nil {
			w.seen, w.over = now, false
		} else {
			w.over = w.over || s.expiredSince(w.state.rule.ID, w.seen)
		}
		reason := s.misled(w, r, now)
		if reason == "" && r != nil {
			w.state = r
		}
		if reason != "" {
			delete(s.routes, number)
			gone, why = append(gone, w), append(why, reason)
		}
	}
	if len(gone) == 0 {
		return
	}
	_ = s.alignUpstream(nil)
	for i, w := range gone {
		s.withdrawn(w, why[i])
	}
}

func (s *Service) withdrawn(w *route, why string) {
	s.report(w.state, eventv1.EnforcementState_ENFORCEMENT_STATE_WITHDRAWN, func(e *eventv1.Enforcement) { e.Detail = why })
}

// misled says why a route must go; r is its rule now, nil: it has ended.
func (s *Service) misled(w *route, r *ruleState, now time.Time) string {
	asked := w.state.rule
	if r != nil {
		asked = r.rule
	}
	asked.Expires = time.Time{}
	if no := s.guard.check(&asked, now); no != nil {
		return no.Error()
	}
	switch {
	case r == nil && !w.over:
		return "its rule was revoked"
	case r == nil && now.Sub(w.since) < s.cfg.UpstreamHold:
		return ""
	case r == nil:
		return fmt.Sprintf("its rule has ended, and it was upstream for %s", now.Sub(w.since).Round(time.Second))
	case r.rule.Match != w.state.rule.Match:
		return "its rule matches something else now"
	case r.state != pending && !r.drops():
		return "its rule does not drop here any more"
	}
	return ""
}

// expiredSince tells a rule whose deadline passed from one that was taken away.
func (s *Service) expiredSince(id string, seen time.Time) bool {
	for _, r := range s.ended {
		if r.rule.ID == id && !r.since.Before(seen) {
			return true
		}
	}
	return false
}

// drops reports whether the rule drops on an interface of this node.
func (r *ruleState) drops() bool {
	return r.state == active && r.rule.InForce() == policy.Drop && r.rule.Match.Host == ""
}

// dropsEverywhere reports whether the rule drops on all interfaces: a router upstream cannot tell them apart.
func (s *Service) dropsEverywhere(r *ruleState) bool {
	if !r.drops() {
		return false
	}
	for _, p := range s.ports {
		if p.gate == nil || p.shadow || !s.covers(p, &r.rule) {
			return false
		}
	}
	return true
}

// escort sends rules upstream that drop enough. It is asked once a second, after the counters were read.
func (s *Service) escort(now time.Time) {
	if s.upstream == nil {
		return
	}
	span := now.Sub(s.escorted).Seconds()
	first := s.escorted.IsZero()
	s.escorted = now
	for _, r := range s.rules {
		dropped := r.stat.Dropped - min(r.stat.Dropped, r.weighed)
		r.weighed = r.stat.Dropped
		if first || s.routes[r.number] != nil || !s.dropsEverywhere(r) || float64(dropped) < float64(s.cfg.UpstreamMinPPS)*span {
			continue
		}
		s.announce(r, now)
	}
	if len(s.routes) > 0 {
		_ = s.alignUpstream(nil) // what must be spared may have changed
	}
}

// announce gives the target a rule and what it must spare, or tells once why it cannot.
func (s *Service) announce(r *ruleState, now time.Time) {
	if no := s.contested(&r.rule); no != nil {
		s.stays(r, *no)
		return
	}
	w := &route{state: r, since: now, seen: now}
	s.routes[r.number] = w
	if err := s.alignUpstream(w); err != nil {
		s.stays(r, refusal{Upstream, err.Error()})
		return
	}
	r.kept = ""
	s.report(r, eventv1.EnforcementState_ENFORCEMENT_STATE_ANNOUNCED, func(e *eventv1.Enforcement) {
		e.Detail = fmt.Sprintf("routers upstream are asked to discard %s, with %d exceptions", r.rule.Match.String(), len(s.upstreamEntries(r))-1)
	})
}

// contested refuses what an allow rule may exempt from the rule here: upstream nothing would.
func (s *Service) contested(rule *policy.Rule) *refusal {
	for _, r := range s.rules {
		if a := &r.rule; a.Action == policy.Allow && r.inForce() && a.Match.Host == "" && meets(a.Match.Src, rule.Match.Src) && meets(a.Match.Dst, rule.Match.Dst) {
			return &refusal{Upstream, fmt.Sprintf("rule %s allows some of it", a.ID)}
		}
	}
	return nil
}

// meets reports whether two prefixes have addresses in common; an unset one has all.
func meets(a, b netip.Prefix) bool { return !a.IsValid() || !b.IsValid() || a.Overlaps(b) }

// upstreamEntries are what the target is given for a rule: the rule, and first what it must spare.
func (s *Service) upstreamEntries(r *ruleState) []xdp.Rule {
	out := []xdp.Rule{{ID: r.number, Match: r.rule.Match, Action: policy.Drop}}
	for _, m := range spared(&r.rule.Match, s.guard.safe()) {
		out = append(out, xdp.Rule{ID: policy.NumericID(r.rule.ID + " but " + m.String()), Match: m, Action: policy.Allow})
	}
	return out
}

// alignUpstream makes the target's routes those of the rules that are upstream. A rule goes with all that it must spare or
// not at all: one for which there is no room any more is withdrawn, the newest first. Why fresh cannot go is returned.
func (s *Service) alignUpstream(fresh *route) (no error) {
	leave := func(w *route, why error) {
		delete(s.routes, w.state.number)
		if w == fresh {
			no = why
			return
		}
		w.state.kept = Upstream // it is told now, and not again each second
		s.withdrawn(w, why.Error())
	}
	for again := true; again; {
		again = false
		want, of := make(map[uint64]xdp.Rule), make(map[uint64]*route)
		byAge := slices.SortedFunc(maps.Values(s.routes), func(a, b *route) int {
			return cmp.Or(a.since.Compare(b.since), cmp.Compare(a.state.number, b.state.number))
		})
		for _, w := range byAge {
			entries := s.upstreamEntries(w.state)
			if err := s.upstream.takes(entries, len(want)); err != nil {
				leave(w, err)
				continue
			}
			for _, e := range entries {
				want[e.ID], of[e.ID] = e, w
			}
		}
		failed, err := align(s.upstream, want)
		if err != nil {
			s.t.CountError("upstream")
			s.t.Log.Error("routes upstream could not be changed", "error", err)
		}
		for id, why := range failed {
			if w := of[id]; s.routes[w.state.number] == w {
				leave(w, why)
				again = true
			}
		}
	}
	return no
}

// spared are the packets of a match from and to the safe prefixes, which the program here passes before it looks at rules.
// A route with such a prefix in addition is looked at before the one without (RFC 8955 5.1).
func spared(m *policy.Match, safe []netip.Prefix) []policy.Match {
	var out []policy.Match
	of := m.Src
	if !of.IsValid() {
		of = m.Dst
	}
	narrow := func(mine, p netip.Prefix) (netip.Prefix, bool) {
		switch {
		case p.Addr().Is4() != of.Addr().Is4() || p.Addr().IsLoopback() || p.Addr().IsLinkLocalUnicast() || !meets(mine, p):
			return p, false
		case mine.IsValid() && mine.Bits() > p.Bits():
			return mine, true
		}
		return p, true
	}
	for _, p := range safe {
		if q, ok := narrow(m.Src, p); ok {
			e := *m
			e.Src = q
			out = append(out, e)
		}
		if q, ok := narrow(m.Dst, p); ok {
			e := *m
			e.Dst = q
			out = append(out, e)
		}
	}
	return out
}

// upstreamText says in a sentence what of a rule is upstream; empty: nothing.
func (s *Service) upstreamText(number uint64, now time.Time) string {
	w := s.routes[number]
	if w == nil {
		return ""
	}
	text := fmt.Sprintf(" Routers upstream were asked %s ago to discard it", now.Sub(w.since).Round(time.Second))
	if _, _, problem := s.upstream.state(); problem != nil {
		return text + ", but no program passes that on: " + problem.Error() + "."
	}
	return text + ": what they discard is not counted here."
}
