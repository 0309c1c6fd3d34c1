package enforce

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tidegate-mesh/tidegate/libs/policy"
	enforcev1 "github.com/tidegate-mesh/tidegate/proto/enforce/v1"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
)

const (
	panicWait = time.Second // the whole of a Panic call
	panicText = 1024        // bytes of its by and its reason
)

// panicChange is a state on its way to the loop. shared: it comes from the bus or the bus has it.
type panicChange struct {
	state  *eventv1.Panic // nil: never set
	shared bool
}

// panicState is the mesh's panic state as this node has it. Of two states the one with the later since counts.
type panicState struct {
	on         bool
	since      time.Time // of the last change; zero: never used
	by, reason string
}

func (p *panicState) proto() *eventv1.Panic {
	if p.since.IsZero() {
		return nil
	}
	return &eventv1.Panic{On: p.on, SinceNs: p.since.UnixNano(), By: p.by, Reason: p.reason}
}

func panicFrom(p *eventv1.Panic) panicState {
	if p.GetSinceNs() == 0 {
		return panicState{}
	}
	return panicState{on: p.GetOn(), since: time.Unix(0, p.GetSinceNs()).UTC(), by: p.GetBy(), reason: p.GetReason()}
}

// String says since when, by whom and why panic is on.
func (p *panicState) String() string {
	s := "panic is on since " + p.since.Format(time.RFC3339)
	if p.by != "" {
		s += " by " + p.by
	}
	if p.reason != "" {
		s += " (" + p.reason + ")"
	}
	return s
}

// stops says whether panic forbids the rule. What a user blocks after it began is deliberate.
func (p *panicState) stops(r *policy.Rule) bool {
	return p.on && r.Action.Blocks() && (r.Origin != policy.OriginUser || !r.Created.After(p.since))
}

// held reports whether only panic keeps the rule from acting.
func (r *ruleState) held() bool { return r.state == refused && r.refusal.reason == Panic }

// watchPanic hands each panic state to the loop; known is called when the loop has the first.
func (s *Service) watchPanic(ctx context.Context, known func()) {
	// The error is that of the context.
	_ = s.bus.WatchPanic(ctx, func(p *eventv1.Panic) {
		if s.handPanic(ctx, panicChange{p, true}) == nil {
			known()
		}
	})
}

func (s *Service) handPanic(ctx context.Context, c panicChange) error {
	select {
	case s.panics <- c:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// takePanic makes a state that is not older than the known one this node's.
func (s *Service) takePanic(c panicChange) {
	first := c.shared && !s.panicRead // which only this goroutine sets
	var found surroundings
	if first {
		// Only now is the NATS server's address known for sure; it must be safe before the first rule.
		found = s.guard.look(s.bus.ServerAddr())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if first {
		s.panicRead = true
		s.learn(found)
	}
	was, now := s.guard.panic, time.Now()
	next := panicFrom(c.state)
	if next.since.Before(was.since) {
		return // this node was told while the bus was away, or the bucket was made again
	}
	known := next == was && (s.panicShared || !c.shared)
	if known && (!next.on || s.cleared) {
		return
	}
	s.guard.panic, s.panicShared = next, c.shared || next == was && s.panicShared
	if next.on != was.on {
		s.revoked = make(map[string]policy.Rule)
		s.t.Log.Warn("panic has changed", "on", next.on, "by", next.by, "reason", next.reason)
	}
	for _, p := range s.gates() {
		s.followPanic(p)
	}
	switch {
	case next.on:
		s.holdAll(now)
		s.clear()
	case was.on:
		s.release(now)
	}
	s.steer(now)
	s.notify()
}

// holdAll takes the rules out that panic forbids. It does not read their counters first, which takes longer than all the
// rest: what they hit since the last look, a second at most, is not told by rule.
func (s *Service) holdAll(now time.Time) {
	c := newChanges()
	for _, r := range s.rules {
		no := s.guard.check(&r.rule, now)
		if no == nil || no.reason != Panic {
			continue
		}
		if r.inForce() {
			c.remove(r)
		}
		s.hold(r, *no)
	}
	s.flush(c)
}

// hold notes that panic keeps a rule from acting. A user's is revoked when the mesh knows of panic: its key is
// deleted, and it leaves the table when the watch tells so.
func (s *Service) hold(r *ruleState, no refusal) {
	s.refuse(r, no)
	r.told, r.leaseHits, r.leaseAt = 0, 0, time.Time{} // a new entry counts from 0
	if r.rule.Origin != policy.OriginUser {
		return
	}
	if len(s.revoked) < s.cfg.RuleLimit {
		s.revoked[r.rule.ID] = r.rule
	}
	if s.panicShared {
		s.revokeHeld(r)
	}
}

func (s *Service) revokeHeld(r *ruleState) {
	r.revoked = true
	if r.revision > 0 { // 0: the bucket was lost, whatever is under the key now is not this rule
		s.later(job{kind: jobDelete, rule: r.rule, revision: r.revision})
	}
}

// clear takes what keeps packets back out of all gates, but for rules that are in force: entries of an earlier run,
// and those that could not be deleted at first.
func (s *Service) clear() {
	s.cleared = true
	for _, p := range s.gates() {
		s.clearGate(p)
	}
}

func (s *Service) clearGate(p *port) {
	there, err := p.gate.Rules()
	err = errors.Join(s.pauseLists(p), err)
	var over []uint64
	if err == nil {
		acting := make(map[uint64]bool, len(s.rules))
		for _, r := range s.rules {
			if r.inForce() {
				acting[r.number] = true
			}
		}
		for i := range there {
			if e := &there[i]; e.Action.Blocks() && !acting[e.ID] {
				over = append(over, e.ID)
				delete(p.there, e.ID)
			}
		}
		if len(over) > 0 {
			err = p.gate.DeleteRules(over)
		}
	}
	if err != nil {
		s.cleared = false // the tick tries again
		s.t.CountError("clear_rules")
		s.t.Log.Error("panic is on and entries could not be removed, trying again", "iface", p.name, "error", err)
		return
	}
	s.kept = max(0, s.kept-len(over))
}

// release lets held rules act again. Those that are revoked go on waiting for the end of their keys.
func (s *Service) release(now time.Time) {
	c := newChanges()
	s.countLive()
	for _, r := range s.rules {
		if r.held() && !r.revoked {
			r.received = now
			s.decide(c, r, r, now)
		}
	}
	s.flush(c)
}

// Panic implements the gRPC method, within 1 s. On is taken here before the bus is asked, so that this node's drops go
// even without NATS; the answer is UNAVAILABLE then and says so. Off is taken after the bus has it. A second on changes
// nothing and answers the same; off is told anew each time, for nodes that were on alone. DEADLINE_EXCEEDED: the mesh
// knows, this node has not finished. ABORTED: somebody else has turned it the other way meanwhile.
func (s *Service) Panic(ctx context.Context, req *enforcev1.PanicRequest) (*enforcev1.PanicResponse, error) {
	if len(req.GetBy()) > panicText || len(req.GetReason()) > panicText {
		return nil, status.Errorf(codes.InvalidArgument, "by and reason are at most %d bytes long", panicText)
	}
	ctx, cancel := context.WithTimeout(ctx, panicWait)
	defer cancel()
	p := s.nextPanic(req, time.Now())
	if p.GetOn() {
		_ = s.handPanic(ctx, panicChange{state: p}) // if the loop is that late, awaitPanic tells
	}
	putErr := s.bus.PutPanic(ctx, p)
	if putErr != nil && !p.GetOn() {
		return nil, status.Errorf(codes.Unavailable, "panic is as it was: %v", putErr)
	}
	if putErr == nil {
		_ = s.handPanic(ctx, panicChange{p, true}) // as the watch does, but now
	}
	out, err := s.awaitPanic(ctx, p)
	switch {
	case putErr != nil && err != nil:
		return nil, status.Errorf(codes.Unavailable, "other nodes were not told, and %v: ask again (%v)", err, putErr)
	case putErr != nil:
		return nil, status.Errorf(codes.Unavailable,
			"drops and rate limits are removed on this node; other nodes were not told: ask again when NATS is back (%v)", putErr)
	case errors.Is(err, errOvertaken):
		return nil, status.Error(codes.Aborted, err.Error())
	case err != nil:
		return nil, status.Error(codes.DeadlineExceeded, err.Error())
	}
	return out, nil
}

// nextPanic is the state that a request asks for. It is later than the known one, whatever this node's clock says.
func (s *Service) nextPanic(req *enforcev1.PanicRequest, now time.Time) *eventv1.Panic {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := s.guard.panic
	if req.GetOn() && known.on {
		return known.proto()
	}
	if !now.After(known.since) {
		now = known.since.Add(1)
	}
	return &eventv1.Panic{On: req.GetOn(), SinceNs: now.UnixNano(), By: req.GetBy(), Reason: req.GetReason()}
}

var errOvertaken = errors.New("somebody else has changed panic meanwhile")

// awaitPanic waits until the loop has done what p asks for.
func (s *Service) awaitPanic(ctx context.Context, p *eventv1.Panic) (*enforcev1.PanicResponse, error) {
	for {
		s.mu.Lock()
		cur, changed := s.guard.panic, s.changed
		taken := !cur.since.IsZero() && cur.since.UnixNano() >= p.GetSinceNs()
		var out *enforcev1.PanicResponse
		if taken && cur.on == p.GetOn() && (!cur.on || s.cleared) {
			out = s.panicResponse()
		}
		s.mu.Unlock()
		switch {
		case out != nil:
			return out, nil
		case taken && cur.on != p.GetOn():
			return nil, errOvertaken
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("this node has not done so within %s", panicWait)
		}
	}
}

func (s *Service) panicResponse() *enforcev1.PanicResponse {
	out := &enforcev1.PanicResponse{Panic: s.guard.panic.proto()}
	if s.guard.panic.on {
		for id := range s.revoked {
			r := s.revoked[id]
			out.Revoked = append(out.Revoked, policy.ToProto(&r))
		}
	}
	for _, r := range s.rules {
		if r.held() && r.rule.Origin != policy.OriginUser {
			out.Held++
		}
	}
	slices.SortFunc(out.Revoked, func(a, b *policyv1.Rule) int { return strings.Compare(a.GetId(), b.GetId()) })
	return out
}
