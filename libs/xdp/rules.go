package xdp

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/cilium/ebpf"

	"github.com/tidegate-mesh/tidegate/libs/policy"
)

// Rule is a rule as the program knows it.
//
// Among the rules that match a packet the one with the most specific match decides, and among equally
// specific ones the higher priority. Specific means: header bits fixed by the match. Rules that count, or
// would drop, are counted and do not end the search. A packet within a rate-limit's rate goes on to the
// address lists.
type Rule struct {
	ID               uint64 // not 0
	Match            policy.Match
	Action           policy.Action
	RatePPS, RateBPS uint64 // RateLimit: exactly one; bits are of whole frames
	PerSource        bool   // RateLimit: the rate is of each source (IPv6: each /64) and not of all together
	SYNRetry         bool   // RateLimit: the rate is of each source, and one nobody knows must send its SYN again; see policy.Rule
	Priority         int32
	Expires          time.Time // zero = never; checked by the program against the coarse clock
	WouldDrop        bool      // shadow: count, do not act
}

// burst is how far a rate-limited rule may run ahead of its rate. It covers the coarse clock's ticks of up
// to 10 ms several times.
const burst = 50 * time.Millisecond

// sourceBurst is the same for one source: a host sends a page or a window at once.
const sourceBurst = 250 * time.Millisecond

// synBurst is the same for the SYNs of one source: clients open several connections at once.
const synBurst = time.Second

func (r *Rule) validate() error {
	if r.ID == 0 {
		return errors.New("a rule needs an ID other than 0")
	}
	if r.Action < policy.Allow || r.Action > policy.Count {
		return fmt.Errorf("unknown action %d", r.Action)
	}
	if r.Action == policy.RateLimit && (r.RatePPS == 0) == (r.RateBPS == 0) {
		return errors.New("rate-limit needs exactly one of packets and bits per second")
	}
	if r.SYNRetry && (r.Action != policy.RateLimit || r.RatePPS == 0 || !r.Match.OnlySYN()) {
		return errors.New("waiting for retries needs a rate-limit in packets per second that matches TCP SYNs only")
	}
	if r.PerSource && (r.Action != policy.RateLimit || r.SYNRetry) {
		return errors.New("a limit of each source needs a rate-limit that does not wait for retries, which is one already")
	}
	return nil
}

func (r *Rule) value(key *ruleKey, slot uint32) *ruleValue {
	v := &ruleValue{Key: *key, ID: r.ID, ExpiresNs: expiry(r.Expires), Slot: slot, Priority: r.Priority, Action: uint8(r.Action)}
	if r.Action == policy.RateLimit {
		v.Rate, v.BurstNs = r.RatePPS, uint64(burst)
		if r.RateBPS != 0 {
			v.Rate = r.RateBPS
			v.Flags |= ruleRateBits
		}
		if r.PerSource {
			v.BurstNs = uint64(sourceBurst)
			v.Flags |= rulePerSource
		}
		if r.SYNRetry {
			v.BurstNs = uint64(synBurst)
			v.Flags |= ruleSYNRetry
		}
	}
	if r.Match.OutOfState {
		v.Flags |= ruleOutOfState
	}
	if r.WouldDrop && r.Action != policy.Allow {
		v.Flags |= ruleWouldDrop
	}
	return v
}

// PutRules inserts rules or replaces those of the same ID, whose counters and first drop stay. A rule
// whose match changes is in force under the new match before the old one goes, for which PutRules waits
// some 10 ms; otherwise a rule takes some 10 us. Rules that cannot be taken
// are left out; the error joins a RuleError for each (ErrMaskLimit, ErrRuleLimit among them).
func (g *Gate) PutRules(rules []Rule) error {
	return g.locked(func() error {
		t, err := g.rules()
		if err != nil {
			return err
		}
		var errs []error
		for i := range rules {
			if err := t.put(&rules[i]); err != nil {
				errs = append(errs, &RuleError{ID: rules[i].ID, Err: err})
			}
		}
		return t.commit(errs)
	})
}

// DeleteRules takes rules out; unknown IDs are ignored.
func (g *Gate) DeleteRules(ids []uint64) error {
	return g.locked(func() error {
		t, err := g.rules()
		if err != nil {
			return err
		}
		var errs []error
		for _, id := range ids {
			if err := t.remove(id); err != nil {
				errs = append(errs, &RuleError{ID: id, Err: err})
			}
		}
		return t.commit(errs)
	})
}

// Rules reads the rules back, also expired ones, in no order.
func (g *Gate) Rules() ([]Rule, error) {
	var out []Rule
	err := g.locked(func() error {
		t, err := g.rules()
		if err != nil {
			return err
		}
		out = t.list()
		return nil
	})
	return out, err
}

func (t *ruleTable) list() []Rule {
	out := make([]Rule, 0, len(t.byID))
	for _, v := range t.byID {
		r := Rule{
			ID: v.ID, Action: policy.Action(v.Action), Priority: v.Priority,
			Expires: MonotonicToUnix(v.ExpiresNs), WouldDrop: v.Flags&ruleWouldDrop != 0,
			Match: match(&t.masks[t.find(v.Key.Mask)].mask, &v.Key), PerSource: v.Flags&rulePerSource != 0,
		}
		r.Match.OutOfState = v.Flags&ruleOutOfState != 0
		switch {
		case r.Action != policy.RateLimit:
		case v.Flags&ruleRateBits != 0:
			r.RateBPS = v.Rate
		default:
			r.RatePPS, r.SYNRetry = v.Rate, v.Flags&ruleSYNRetry != 0
		}
		out = append(out, r)
	}
	return out
}

// RuleStats reads what rules have done; nil means all rules. Unknown IDs are left out.
func (g *Gate) RuleStats(ids []uint64) (map[uint64]RuleStat, error) {
	out := map[uint64]RuleStat{}
	err := g.locked(func() error {
		t, err := g.rules()
		if err != nil {
			return err
		}
		if ids == nil {
			for id := range t.byID {
				ids = append(ids, id)
			}
		}
		perCPU := make([]hits, ebpf.MustPossibleCPU())
		for _, id := range ids {
			v := t.byID[id]
			if v == nil {
				continue
			}
			var state ruleState
			if err := g.maps.GateHits.Lookup(v.Slot, &perCPU); err != nil {
				return fmt.Errorf("%s: rule %#x: read its counters: %w", g.iface, id, err)
			}
			if err := g.maps.GateState.Lookup(v.Slot, &state); err != nil {
				return fmt.Errorf("%s: rule %#x: read its first drop: %w", g.iface, id, err)
			}
			var sum hits
			for i := range perCPU {
				sum.add(&perCPU[i])
			}
			out[id] = RuleStat{
				Packets: sum.Packets, Bytes: sum.Bytes, Dropped: sum.Dropped, LastHit: MonotonicToUnix(sum.LastNs),
				FirstDrop: MonotonicToUnix(state.FirstDropNs), FirstDropNs: state.FirstDropNs,
			}
		}
		return nil
	})
	return out, err
}

// errKeyTaken cannot happen: variants make keys free.
var errKeyTaken = errors.New("too many rules with one and the same match")

// put writes one rule; its mask comes into force with commit.
func (t *ruleTable) put(r *Rule) error {
	if err := r.validate(); err != nil {
		return err
	}
	m, key, err := shape(&r.Match)
	if err != nil {
		return err
	}
	at, err := t.place(m, &key, r.ID)
	if err != nil {
		return err
	}
	old := t.byID[r.ID]
	var slot uint32
	if old != nil {
		slot = old.Slot
	} else if slot, err = t.takeSlot(); err != nil {
		return err
	}
	v := r.value(&key, slot)
	sum := t.digest(&key)
	if err := t.g.maps.GateRules.Update(sum, v, ebpf.UpdateAny); err != nil {
		if old == nil {
			t.free = append(t.free, slot)
		}
		return fmt.Errorf("write the rule: %w", err)
	}
	t.dirty = true
	t.byDigest[sum] = r.ID
	t.join(at, &key)
	if old == nil || old.Key != key {
		t.masks[at].rules++
		if old != nil {
			t.stale = append(t.stale, old.Key)
		}
	}
	t.byID[r.ID] = v
	return nil
}

// place finds or makes a mask of m's shape under which the key's digest is free or the key is the rule's own, and writes the
// mask's id into the key.
func (t *ruleTable) place(m mask, key *ruleKey, id uint64) (int, error) {
	for v := range math.MaxUint8 {
		m.Variant = uint8(v) //nolint:gosec // below 255
		at := -1
		for i := range t.masks {
			if sameShape(&t.masks[i].mask, &m) {
				at = i
				break
			}
		}
		if at < 0 {
			at = len(t.masks)
			if at == maxMasks {
				return 0, ErrMaskLimit
			}
			m.ID = t.newMaskID()
			t.masks = append(t.masks, maskUse{mask: m})
			t.reshaped = true
		}
		key.Mask = t.masks[at].ID
		if owner, taken := t.byDigest[t.digest(key)]; !taken || owner == id && t.byID[id].Key == *key {
			return at, nil
		}
	}
	return 0, errKeyTaken
}

// remove takes one rule out at once.
func (t *ruleTable) remove(id uint64) error {
	v := t.byID[id]
	if v == nil {
		return nil
	}
	t.dirty = true
	if err := t.dropKey(&v.Key); err != nil {
		return err
	}
	delete(t.byID, id)
	t.free = append(t.free, v.Slot)
	return nil
}

func (t *ruleTable) dropKey(k *ruleKey) error {
	sum := t.digest(k)
	if err := t.g.maps.GateRules.Delete(sum); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete the rule: %w", err)
	}
	delete(t.byDigest, sum)
	if i := t.find(k.Mask); i >= 0 {
		t.masks[i].rules--
	}
	return nil
}
