package live

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api"
)

const (
	maxAttacks   = 200              // that are shown as going on; beyond, those longest without news make room
	rememberEnd  = time.Minute      // the database may still call an attack active that an event has ended
	believeEvent = 30 * time.Second // an attack that the database does not know (yet)
	stateEnded   = "ended"
)

// attacks is what goes on now: events as they come, and what the database says once in a while.
type attacks struct {
	mu    sync.Mutex
	byID  map[string]*ongoing
	drops map[string]api.Nanos // first drops of attacks that are not known yet
	order []string             // of drops, oldest first
}

type ongoing struct {
	api.Attack
	heard time.Time // last event or answer of the database
}

func newAttacks() *attacks {
	return &attacks{byID: map[string]*ongoing{}, drops: map[string]api.Nanos{}}
}

func (t *attacks) event(a api.Attack, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.put(a, now)
}

func (t *attacks) put(a api.Attack, now time.Time) {
	o := t.byID[a.ID]
	if o == nil {
		if a.FirstDropNs == 0 {
			a.FirstDropNs = t.drops[a.ID]
		}
		t.byID[a.ID] = &ongoing{Attack: a, heard: now}
		if len(t.byID) > 2*maxAttacks {
			t.evict()
		}
		return
	}
	o.heard = now
	if a.UpdatedNs < o.UpdatedNs {
		return
	}
	if a.FirstDropNs == 0 {
		a.FirstDropNs = o.FirstDropNs
	}
	o.Attack = a
}

func (t *attacks) evict() {
	var oldest string
	for id, o := range t.byID {
		if oldest == "" || o.heard.Before(t.byID[oldest].heard) {
			oldest = id
		}
	}
	delete(t.byID, oldest)
}

// drop notes a first drop; the earliest of several rules counts.
func (t *attacks) drop(id string, at api.Nanos) {
	if id == "" || at == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if o := t.byID[id]; o != nil {
		o.lowerDrop(at)
		return
	}
	before, known := t.drops[id]
	if !known {
		t.order = append(t.order, id)
		if len(t.order) > maxAttacks {
			delete(t.drops, t.order[0])
			t.order = t.order[1:]
		}
	}
	if !known || at < before {
		t.drops[id] = at
	}
}

func (t *attacks) firstDrop(id string) api.Nanos {
	t.mu.Lock()
	defer t.mu.Unlock()
	if o := t.byID[id]; o != nil {
		return o.FirstDropNs
	}
	return t.drops[id]
}

// reconcile takes the database's list, which was asked for at now: it knows attacks of before this process, and it
// no longer has those whose end was missed.
func (t *attacks) reconcile(list []api.Attack, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	listed := make(map[string]bool, len(list))
	for _, a := range list {
		listed[a.ID] = true
		if o := t.byID[a.ID]; o != nil && o.State == stateEnded {
			continue
		}
		t.put(a, now)
		if o := t.byID[a.ID]; o != nil { // else: too many
			o.lowerDrop(a.FirstDropNs)
		}
	}
	for id, o := range t.byID {
		silent := now.Sub(o.heard)
		if o.State == stateEnded && silent > rememberEnd || o.State != stateEnded && !listed[id] && silent > believeEvent {
			delete(t.byID, id)
		}
	}
}

func (o *ongoing) lowerDrop(at api.Nanos) {
	if at != 0 && (o.FirstDropNs == 0 || at < o.FirstDropNs) {
		o.FirstDropNs = at
	}
}

// active are the attacks that go on, the newest first.
func (t *attacks) active() []api.Attack {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]api.Attack, 0, len(t.byID))
	for _, o := range t.byID {
		if o.State != stateEnded {
			out = append(out, o.Attack)
		}
	}
	slices.SortFunc(out, func(a, b api.Attack) int {
		return cmp.Or(cmp.Compare(b.FirstNs, a.FirstNs), cmp.Compare(a.ID, b.ID))
	})
	return out[:min(len(out), maxAttacks)]
}
