package classify

import (
	"cmp"
	"maps"
	"math"
	"slices"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// known is an attack that is on and that another classifier, or an earlier run of this one, has begun. When it shows here,
// because a sensor has moved its networks, it goes on under its id.
type known struct {
	firstNs, detectedNs int64
	untilNs             int64 // when its rules end, unless they are renewed
	packets, bytes      uint64
	revision            uint32
}

const (
	maxKnown = 4_096
	// seenBefore is how much later another classifier must have seen an attack's packets to take it over: two that see it at
	// the same time, from different sensors, go on both.
	seenBefore = int64(1e9)
)

// tell gives an attack what is known of it.
func (k *known) tell(a *attack) {
	if k.firstNs > 0 {
		a.firstNs = k.firstNs
	}
	if k.detectedNs > 0 {
		a.detectedNs = k.detectedNs
	}
	a.packets, a.bytes, a.revision, a.counted = k.packets, k.bytes, k.revision, k.packets > 0
}

// earlier finds the attack that was begun elsewhere and forgets it there. An id is a hash, so only minutes in which one began are
// tried.
func (e *Engine) earlier(typ, target string, firstNs, now int64) (string, *known) {
	minutes := make(map[int64]bool)
	for _, k := range e.known {
		if back := firstNs/int64(bucket) - k.firstNs/int64(bucket); back >= 0 && back <= int64(adopt/bucket) {
			minutes[k.firstNs/int64(bucket)] = true
		}
	}
	for _, minute := range slices.SortedFunc(maps.Keys(minutes), func(a, b int64) int { return cmp.Compare(b, a) }) {
		for n := range adoptNumbers {
			id := attackID(typ, target, minute*int64(bucket), n)
			if k := e.known[id]; k != nil && k.untilNs > now {
				delete(e.known, id)
				return id, k
			}
		}
	}
	return "", nil
}

// Adopt tells the engine of rules that are in force when it starts: an attack that one of them names is
// continued under its id when it shows again.
func (e *Engine) Adopt(rules []policy.Rule) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range rules {
		e.adopt(&rules[i], math.MaxInt64)
	}
}

// Rule tells the engine of a rule that has changed. Those of other classifiers name their attacks.
func (e *Engine) Rule(u bus.RuleUpdate) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if u.Rule == nil {
		delete(e.changed, u.ID)
		return
	}
	until := int64(math.MaxInt64)
	if !u.Rule.Expires.IsZero() {
		until = u.Rule.Expires.UnixNano()
	}
	e.adopt(u.Rule, until)
}

func (e *Engine) adopt(r *policy.Rule, untilNs int64) {
	e.noteChange(r)
	if r.Origin != policy.OriginDetector || r.AttackID == "" {
		return
	}
	if k := e.know(r.AttackID, untilNs); k != nil {
		k.firstNs = r.AttackFirstNs
	}
}

// noteChange notes what enforce has made of a detector's rule (promoted, escalated, a longer lease), or a user.
func (e *Engine) noteChange(r *policy.Rule) {
	switch _, noted := e.changed[r.ID]; {
	case r.Changed == "" && (r.Origin == policy.OriginDetector || e.rules[r.ID] == nil):
		delete(e.changed, r.ID)
	case noted || len(e.changed) < maxKnown:
		e.changed[r.ID] = *r
	}
}

// asChanged is a rule of a verdict as it is in force already, should others have changed it; the lease begins anew.
func (e *Engine) asChanged(r *policy.Rule) policy.Rule {
	x, ok := e.changed[r.ID]
	switch {
	case !ok:
		return *r
	case x.Expires.IsZero():
	case !x.Expires.After(r.Created):
		delete(e.changed, r.ID) // it is over
		return *r
	case x.Expires.Before(r.Expires):
		x.Expires = r.Expires
	}
	return x
}

// know returns what is known of an attack that is none of this engine's, made if need be.
func (e *Engine) know(id string, untilNs int64) *known {
	if e.byID(id) != nil {
		return nil
	}
	if _, over := e.ended[id]; over {
		return nil
	}
	k := e.known[id]
	if k == nil {
		if len(e.known) >= maxKnown {
			e.forgetKnown()
		}
		k = &known{}
		e.known[id] = k
	}
	k.untilNs = untilNs
	return k
}

// forgetKnown makes room: what is over first, else everything; its attacks then have new ids.
func (e *Engine) forgetKnown() {
	for id, k := range e.known {
		if e.cfg.Now != nil && k.untilNs < e.cfg.Now() {
			delete(e.known, id)
		}
	}
	if len(e.known) >= maxKnown {
		clear(e.known)
	}
}

func (e *Engine) byID(id string) *attack {
	for _, a := range e.attacks {
		if a.id == id {
			return a
		}
	}
	return nil
}

// Elsewhere tells the engine, whose name is own, what another classifier has said of an attack. It reports whether the attack
// was this engine's until now and is the other's from now on: the one goes on with it that has seen its packets last.
func (e *Engine) Elsewhere(x *eventv1.Attack, own string) (gone bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	a := e.byID(x.GetId())
	if x.GetState() == eventv1.AttackState_ATTACK_STATE_ENDED {
		if a != nil { // it goes on here
			a.revision = max(a.revision, x.GetRevision())
			return false
		}
		delete(e.known, x.GetId())
		e.noteEnd(&attack{id: x.GetId(), firstNs: x.GetFirstNs(), updatedNs: x.GetUpdatedNs()})
		return false
	}
	if a != nil {
		a.revision = max(a.revision, x.GetRevision())
		later := x.GetSeenNs() - a.lastOver
		stale := x.GetUpdatedNs()-max(x.GetSeenNs(), a.lastOver) > 2*seenBefore
		if later <= seenBefore && (later < -seenBefore || !stale || x.GetClassifier() <= own) {
			return false
		}
		e.letGo(a)
	}
	// It ends elsewhere: an event will tell. Until then its rules may live.
	if k := e.know(x.GetId(), x.GetUpdatedNs()+int64(e.cfg.Lease)); k != nil {
		*k = known{
			firstNs: x.GetFirstNs(), detectedNs: x.GetDetectedNs(), untilNs: k.untilNs, packets: x.GetPackets(), bytes: x.GetBytes(), revision: x.GetRevision(),
		}
	}
	return a != nil
}
