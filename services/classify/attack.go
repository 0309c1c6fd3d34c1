package classify

import (
	"net/netip"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/sketch"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/detect"
)

// attackKey: there is one attack of a type and target at a time.
type attackKey struct{ typ, target string }

// attack is one that is on.
type attack struct {
	key                 attackKey
	id                  string
	target              netip.Prefix    // of floods
	flood               *detect.Flood   // nil for scans; the newest kind when a network is bombed
	bombs               map[string]bool // types of floods that bomb a network, else nil
	sensor              string
	firstNs, detectedNs int64
	updatedNs           int64 // last published
	lastOver, lastHit   int64 // newest window over half the threshold; newest drop by a rule
	leaseNs             int64 // of its rules, where enforce has made it longer
	holdNs              int64 // added to the quiet after which it is over
	packets, bytes      uint64
	pps, bps            float64
	hitPackets          uint64 // dropped since the last update
	hitBytes            uint64
	counted             bool // another classifier has counted what its rules dropped so far
	sources             sketch.HLL
	sourceCount         uint64 // of scans; one that came back counts again
	top                 []string
	revision            uint32
	verdicts            int
	verdictNs           int64                // the last verdict's window end
	matches             []policy.Match       // what its rules drop
	scanners            map[netip.Addr]int64 // sources that rules were made for → the newest window in which each was found
	named               int                  // how many since namedNs, for a minute
	namedNs             int64
	fresh               fresh
}

// ruleState is one rule of an attack.
type ruleState struct {
	attack *attack
	drops  bool
	retry  bool                // it waits for retries
	seen   map[string]counters // by node
}

// counters of a rule on a node; unanswered are SYNs that nobody sent again.
type counters struct {
	packets, bytes, unanswered uint64
	timeNs                     int64
}

const (
	bucket       = time.Minute    // attack ids change with it
	updateEvery  = time.Second    // while an attack is on
	adopt        = 24 * time.Hour // how old an attack may be that a restart continues
	maxAttacks   = 1_024          // at once
	adoptNumbers = 4              // attacks of one minute that a restart tells apart
	maxEnded     = 4_096          // ids of ended attacks
	maxVerdicts  = 8              // of one attack
	reviseAfter  = 300 * time.Millisecond
)

// begin makes an attack, or continues the one that an earlier run or another classifier had begun.
func (e *Engine) begin(w *flowv1.Window, typ, target string, startNs int64, out *WindowResult) *attack {
	now := e.now(w)
	a := &attack{
		key: attackKey{typ, target}, sensor: w.GetSensor(), firstNs: startNs, detectedNs: now, updatedNs: now,
		lastOver: w.GetEndNs(), scanners: make(map[netip.Addr]int64),
	}
	if id, k := e.earlier(typ, target, a.firstNs, now); id != "" {
		a.id = id
		k.tell(a)
		// One update a second at most came before, so this revision is new.
		a.revision = max(a.revision, uint32(max(0, (now-a.firstNs)/int64(updateEvery)))+120) //nolint:gosec // a day of seconds
	} else {
		a.id = e.freshID(typ, target, a.firstNs)
	}
	if len(e.attacks) >= maxAttacks {
		e.finish(e.oldest(), now, out)
	}
	e.attacks[a.key] = a
	return a
}

// attackID is the id of the n-th attack, from 0, of a type on a target that began in a minute.
func attackID(typ, target string, firstNs int64, n int) string {
	parts := []string{typ, target, strconv.FormatInt(firstNs/int64(bucket), 10)}
	if n > 0 {
		parts = append(parts, strconv.Itoa(n))
	}
	return policy.DerivedID(parts...)
}

// freshID is an id that no ended attack has: its events and rules would be taken for repetitions.
func (e *Engine) freshID(typ, target string, firstNs int64) string {
	for n := 0; ; n++ {
		id := attackID(typ, target, firstNs, n)
		if _, used := e.ended[id]; !used {
			return id
		}
	}
}

// noteEnd notes the id of an attack that is over. Ids are of a minute, so old ones may be forgotten.
func (e *Engine) noteEnd(a *attack) {
	if len(e.ended) >= maxEnded {
		for id, at := range e.ended {
			if a.updatedNs-at > 2*int64(bucket) || at > a.updatedNs {
				delete(e.ended, id)
			}
		}
		if len(e.ended) >= maxEnded {
			clear(e.ended)
		}
	}
	e.ended[a.id] = a.firstNs
}

// oldest is the attack that was seen longest ago, of several the one that is on for longest. It makes room for another one.
func (e *Engine) oldest() *attack {
	var oldest *attack
	for _, a := range e.attacks {
		if oldest == nil || a.lastOver < oldest.lastOver || a.lastOver == oldest.lastOver && a.detectedNs < oldest.detectedNs {
			oldest = a
		}
	}
	return oldest
}

// remove forgets an attack that is over.
func (e *Engine) remove(a *attack) {
	e.letGo(a)
	e.noteEnd(a)
}

// letGo forgets an attack without an end.
func (e *Engine) letGo(a *attack) {
	delete(e.attacks, a.key)
	for id, r := range e.rules {
		if r.attack == a {
			delete(e.rules, id)
		}
	}
	switch {
	case a.bombs != nil:
		delete(e.bombed, a.target)
	case a.flood != nil:
		if k := a.target.Addr().As16(); e.flooded[k] <= 1 {
			delete(e.flooded, k)
		} else {
			e.flooded[k]--
		}
	}
	for s := range a.scanners {
		e.forgetSource(a, s)
	}
}

// forgetSource: a source whose rule is over has to scan anew to be found.
func (e *Engine) forgetSource(a *attack, s netip.Addr) {
	delete(a.scanners, s)
	delete(e.scanners, s)
	if e.blocked[s] == a {
		delete(e.blocked, s)
	}
}

// account adds packets of the attack that reached the sensor.
func (e *Engine) account(a *attack, packets, bytes uint64) {
	a.packets += packets
	a.bytes += bytes
}

// rate sets the attack's rate from sums of a second, or of less when it is younger.
func (e *Engine) rate(a *attack, w *flowv1.Window, m *detect.Measure) {
	age := min(1, max(0.1, float64(w.GetEndNs()-a.firstNs)/1e9))
	a.pps, a.bps = float64(m.Packets)/age, 8*float64(m.Bytes)/age
}

// ordered returns the attacks by type and target, so that results do not depend on map order.
func (e *Engine) ordered() []*attack {
	list := make([]*attack, 0, len(e.attacks))
	for _, a := range e.attacks {
		list = append(list, a)
	}
	sort.Slice(list, func(i, j int) bool {
		return list[i].key.typ < list[j].key.typ || list[i].key.typ == list[j].key.typ && list[i].key.target < list[j].key.target
	})
	return list
}

// tick publishes updates and ends attacks that are over.
func (e *Engine) tick(w *flowv1.Window, out *WindowResult) {
	if len(e.attacks) == 0 {
		return
	}
	now := e.now(w)
	for _, a := range e.ordered() {
		// While a rule may still live it hides the attack's return from the sensors.
		alive := max(a.lastOver+a.holdNs, a.lastHit+max(0, max(a.leaseNs, int64(e.cfg.Lease))-int64(e.cfg.Quiet)))
		switch {
		case w.GetEndNs()-alive >= int64(e.cfg.Quiet):
			e.finish(a, now, out)
		case now-a.updatedNs >= int64(updateEvery):
			if dt := float64(now-a.updatedNs) / 1e9; a.hitPackets > 0 {
				a.pps, a.bps = a.pps+float64(a.hitPackets)/dt, a.bps+8*float64(a.hitBytes)/dt
			}
			a.hitPackets, a.hitBytes = 0, 0
			e.publish(a, eventv1.AttackState_ATTACK_STATE_UPDATED, now, out)
			a.pps, a.bps = 0, 0 // until the next window says otherwise
		}
	}
}

func (e *Engine) finish(a *attack, now int64, out *WindowResult) {
	a.pps, a.bps = 0, 0
	e.publish(a, eventv1.AttackState_ATTACK_STATE_ENDED, now, out)
	e.remove(a)
}

func (e *Engine) publish(a *attack, state eventv1.AttackState, now int64, out *WindowResult) {
	a.revision++
	a.updatedNs = now
	m := &eventv1.Attack{
		Id: a.id, Type: a.key.typ, Target: a.key.target, State: state, Sensor: a.sensor, FirstNs: a.firstNs,
		DetectedNs: a.detectedNs, UpdatedNs: now, SeenNs: a.lastOver, Packets: a.packets, Bytes: a.bytes, Pps: a.pps, Bps: a.bps,
		Sources: a.sourceEstimate(), TopSources: slices.Clone(a.top), Revision: a.revision,
	}
	if state == eventv1.AttackState_ATTACK_STATE_ENDED {
		m.EndedNs = max(a.lastOver, a.lastHit)
	}
	out.Attacks = append(out.Attacks, m)
}

func (a *attack) sourceEstimate() uint64 {
	if a.flood == nil {
		return a.sourceCount
	}
	return uint64(a.sources.Estimate() + 0.5)
}

// Enforcement takes in what enforce nodes did: drops keep an attack alive whose packets no sensor sees.
func (e *Engine) Enforcement(x *eventv1.Enforcement) {
	e.mu.Lock()
	defer e.mu.Unlock()
	r := e.rules[x.GetRuleId()]
	if r == nil || !r.drops {
		return
	}
	r.attack.leaseNs = max(r.attack.leaseNs, x.GetRule().GetLeaseNs())
	switch x.GetState() {
	case eventv1.EnforcementState_ENFORCEMENT_STATE_HITS, eventv1.EnforcementState_ENFORCEMENT_STATE_FIRST_DROP:
	default:
		return
	}
	seen := counters{x.GetPackets(), x.GetBytes(), unanswered(x), x.GetTimeNs()}
	last, met := r.seen[x.GetNode()]
	switch {
	case !met && r.attack.counted:
		last = seen
	case x.GetPackets() < last.packets || x.GetBytes() < last.bytes: // the node began anew
		last = counters{}
	}
	r.seen[x.GetNode()] = seen
	packets, bytes := seen.packets-last.packets, seen.bytes-last.bytes
	if r.retry {
		if x.GetShadow() {
			return // good clients hit it too; sensors see how the attack goes on
		}
		n := seen.unanswered - min(seen.unanswered, last.unanswered)
		if last.timeNs > 0 && float64(n) < 0.5*e.synLimit(r.attack)*float64(seen.timeNs-last.timeNs)/1e9 {
			return
		}
		if packets > 0 {
			bytes = uint64(float64(bytes) * float64(n) / float64(packets))
		}
		packets = n
	}
	r.attack.lastHit = max(r.attack.lastHit, x.GetTimeNs())
	if x.GetShadow() {
		return // sensors have counted these already
	}
	e.account(r.attack, packets, bytes)
	r.attack.hitPackets += packets
	r.attack.hitBytes += bytes
}

// unanswered are SYNs dropped by a rule that waits for retries, less those that came again and passed.
func unanswered(x *eventv1.Enforcement) uint64 {
	passed := x.GetPackets() - min(x.GetPackets(), x.GetDropped())
	return x.GetDropped() - min(x.GetDropped(), passed)
}

// synLimit is the syn_flood threshold that the attack's target has.
func (e *Engine) synLimit(a *attack) float64 {
	if g, _ := e.groups.network(a.target); g != nil {
		if a.bombs != nil {
			return g.thresholds.SYN * detect.CarpetTimes(isRegion(a.target), &g.thresholds)
		}
		return e.limits(a.target.Addr(), g).SYN
	}
	return 0
}

// matchIDs writes matches as one string.
func matchIDs(matches []policy.Match) string {
	var b strings.Builder
	for i := range matches {
		b.WriteString(matches[i].String())
		b.WriteByte('\n')
	}
	return b.String()
}
