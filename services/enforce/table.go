package enforce

import (
	"time"

	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
)

// state of a rule on this node.
type state uint8

const (
	pending state = iota // no interface is open yet
	active
	shadow
	refused
	expired
	elsewhere // its scope has nothing of this node
)

var stateNames = [...]string{"pending", "active", "shadow", "refused", "expired", "elsewhere"}

func (s state) String() string { return stateNames[s] }

// ruleState is one rule of the desired state and what became of it here.
type ruleState struct {
	rule     policy.Rule
	number   uint64 // id in the maps
	revision uint64
	state    state
	refusal  refusal // of state refused
	since    time.Time
	received time.Time // when the watch delivered this version
	applied  time.Time // entry first in the maps; zero = never

	stat      xdp.RuleStat // last read
	told      uint64       // packets in the last hits event
	seen      xdp.RuleStat // when the policies last looked
	turning   time.Time    // since when a rate limit is exceeded, or less than it comes to an escalated one; zero: it is not so
	leaseHits uint64       // packets at the last renewal that earned it; see earned
	leaseAt   time.Time    // of the last renewal
	renewing  bool
	renewFrom time.Time // not before, after a failed renewal
	kept      Reason    // why a change that it had earned was not made, already told
	weighed   uint64    // packets dropped when it was last considered for upstream; the highest number: not known
	revoked   bool      // by panic: its key is being deleted
	// Traceparent of the span that put the entry into the map; empty if an earlier run did.
	appliedSpan string
	// The version that this one replaced, until that is told; prolonged: only deadline or lease differ, and no renewal did it.
	before, prolonged *policy.Rule
	dropTold          bool // first drop was published
	silent            bool // only the deadline changes, or the entry was there already: no event
}

func (r *ruleState) inForce() bool { return r.state == active || r.state == shadow }

// stateName is the state's name, or "held" for a rule that only panic keeps from acting.
func (r *ruleState) stateName() string {
	if r.held() {
		return "held"
	}
	return r.state.String()
}

// unanswered is how many SYNs a second that nobody sends again keep a rule that waits for retries: scanners send a few
// to every busy network, so without a bound such a rule would never end.
const unanswered = 50

// earned are the packets by which a rule earns its renewals: those it matches. One that waits for retries counts good
// clients too, a dropped SYN and a passed one each; what is left are SYNs that nobody sends again.
func (r *ruleState) earned(st *xdp.RuleStat) uint64 {
	if !r.rule.SYNRetry || r.state == shadow {
		return st.Packets
	}
	passed := st.Packets - min(st.Packets, st.Dropped)
	return st.Dropped - min(st.Dropped, passed)
}

// renews reports whether what a rule earned since its last renewal is enough for another.
func (r *ruleState) renews(earned uint64, now time.Time) bool {
	if !r.rule.SYNRetry || r.state == shadow {
		return earned != r.leaseHits
	}
	since := r.leaseAt
	if since.IsZero() {
		since = r.since
	}
	return earned > r.leaseHits && float64(earned-r.leaseHits) >= unanswered*now.Sub(since).Seconds()
}

// keep carries over what belongs to the entry, not to the version of the rule.
func (r *ruleState) keep(old *ruleState) {
	r.applied, r.stat, r.told, r.leaseHits, r.dropTold = old.applied, old.stat, old.told, old.leaseHits, old.dropTold
	r.leaseAt, r.seen, r.kept, r.weighed = old.leaseAt, old.seen, old.kept, old.weighed
	if r.rule.Escalated == old.rule.Escalated {
		r.turning = old.turning
	}
	r.appliedSpan = old.appliedSpan
	same, before := old.rule, old.rule
	same.Expires, same.Lease, same.Repeat, same.Changed = r.rule.Expires, r.rule.Lease, r.rule.Repeat, r.rule.Changed
	if same != r.rule {
		r.before = &before
		return
	}
	if before.Lease != r.rule.Lease || r.rule.Lease == 0 && before != r.rule { // a lease's renewal is told by the node that renews
		r.prolonged = &before
	}
	r.silent = old.inForce()
	if old.state == refused { // a renewal: a refusal for the same reason is no news
		r.state, r.refusal, r.since = old.state, old.refusal, old.since
	}
}

// changes are the entries to delete and to put after a batch.
type changes struct {
	put     map[string]*ruleState
	order   []string
	deletes []uint64
}

func newChanges() *changes { return &changes{put: make(map[string]*ruleState)} }

func (c *changes) add(r *ruleState) {
	if _, ok := c.put[r.rule.ID]; !ok {
		c.order = append(c.order, r.rule.ID)
	}
	c.put[r.rule.ID] = r
}

func (c *changes) remove(r *ruleState) {
	delete(c.put, r.rule.ID)
	c.deletes = append(c.deletes, r.number)
}
