package enforce

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus/bustest"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// TestEveryChangeIsAnEvent: each kind of change tells who made it, why, what the rule is and what it was.
func TestEveryChangeIsAnEvent(t *testing.T) {
	r := newRig(t, nil)
	r.startReady()
	check := func(e *eventv1.Enforcement, by, why string, action policy.Action, before policy.Action) {
		t.Helper()
		if e.GetBy() != by || !strings.Contains(e.GetReason()+" "+e.GetDetail(), why) {
			t.Errorf("%s of %s: by %q, why %q %q, want %q, %q", e.GetState(), e.GetRuleId(), e.GetBy(), e.GetReason(), e.GetDetail(), by, why)
		}
		if e.GetRule().GetId() != e.GetRuleId() || policy.Action(e.GetRule().GetAction()) != action || policy.Action(e.GetBefore().GetAction()) != before {
			t.Errorf("%s of %s: rule %v, before %v", e.GetState(), e.GetRuleId(), e.GetRule(), e.GetBefore())
		}
	}
	wait := func(id string, state eventv1.EnforcementState, n int) *eventv1.Enforcement {
		t.Helper()
		bustest.Wait(t, id+" "+state.String(), func() bool { return r.count(id, state) == n })
		return r.event(id, state) // the last one
	}

	// A user makes a rule, changes it, prolongs it, takes it back.
	mine := userDrop("mine")
	mine.Expires = time.Now().Add(time.Minute).UTC()
	r.put(mine)
	check(wait("mine", evApplied, 1), policy.OriginUser, "", policy.Drop, 0)
	mine.Action = policy.Count
	r.put(mine)
	check(wait("mine", evApplied, 2), policy.OriginUser, "", policy.Count, policy.Drop)
	was := mine.Expires
	mine.Expires = was.Add(time.Minute)
	r.put(mine)
	e := wait("mine", evRenewed, 1)
	check(e, policy.OriginUser, "another deadline", policy.Count, policy.Count)
	if e.GetBefore().GetExpiresNs() != was.UnixNano() || e.GetRule().GetExpiresNs() != mine.Expires.UnixNano() {
		t.Errorf("prolonged from %v to %v", e.GetBefore(), e.GetRule())
	}
	if err := r.bus.DeleteRule(context.Background(), "mine"); err != nil {
		t.Fatal(err)
	}
	check(wait("mine", evRevoked, 1), policy.OriginUser, "key was deleted", policy.Count, 0)

	// A detector's rule is renewed while it is hit, then runs out.
	r.put(drop("auto", 2*time.Second))
	check(wait("auto", evApplied, 1), policy.OriginDetector, "", policy.Drop, 0)
	r.gate.hit(policy.NumericID("auto"), 3)
	bustest.Wait(t, "a renewal", func() bool { return r.count("auto", evRenewed) > 0 })
	e = r.event("auto", evRenewed)
	check(e, "enforce", "was hit", policy.Drop, policy.Drop)
	if e.GetBefore().GetExpiresNs() >= e.GetRule().GetExpiresNs() {
		t.Errorf("renewed from %d to %d", e.GetBefore().GetExpiresNs(), e.GetRule().GetExpiresNs())
	}
	check(r.event("auto", evExpired), "enforce", "deadline passed", policy.Drop, 0)

	// A refusal says which rule, and which one it would have replaced.
	bad := drop("bad", time.Minute)
	r.put(bad)
	wait("bad", evApplied, 1)
	bad.Match.Src = netip.MustParsePrefix("0.0.0.0/0")
	r.put(bad)
	e = wait("bad", evRefused, 1)
	check(e, "enforce", string(BlastRadius), policy.Drop, policy.Drop)
	if e.GetRule().GetMatch().GetSrc() == e.GetBefore().GetMatch().GetSrc() {
		t.Errorf("refused %v instead of %v", e.GetRule(), e.GetBefore())
	}

	// Panic holds a detector's rule, revokes a user's, and lets go.
	r.put(drop("held", time.Minute))
	r.put(userDrop("stopped"))
	wait("held", evApplied, 1)
	wait("stopped", evApplied, 1)
	setPanic(t, r.svc, true, "ada")
	check(wait("held", evRefused, 1), "panic", "by ada (tests)", policy.Drop, 0)
	check(wait("stopped", evRevoked, 1), "panic", "by ada (tests)", policy.Drop, 0)
	setPanic(t, r.svc, false, "ada")
	check(wait("held", evApplied, 2), "panic", "", policy.Drop, 0)
	if err := r.bus.DeleteRule(context.Background(), "held"); err != nil {
		t.Fatal(err)
	}
	check(wait("held", evRevoked, 1), policy.OriginUser, "key was deleted", policy.Drop, 0)
}
