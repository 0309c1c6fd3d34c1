package live

import (
	"sort"
	"sync"

	"github.com/tidegate-mesh/tidegate/libs/api"
)

// kind is a set of event types, or one of them.
type kind uint8

const (
	kindAttack kind = 1 << iota
	kindVerdict
	kindEnforcement
	kindWindow
	kindLive
	kindGap
	kindAll kind = 1<<iota - 1
)

var kindNames = map[string]kind{
	api.EventAttack: kindAttack, api.EventVerdict: kindVerdict, api.EventEnforcement: kindEnforcement,
	api.EventWindow: kindWindow, api.EventLive: kindLive, api.EventGap: kindGap,
}

func (k kind) String() string {
	for name, v := range kindNames {
		if v == k {
			return name
		}
	}
	return ""
}

// frame is one encoded event; its bytes are shared by all clients.
type frame struct {
	seq  uint64 // of stored events and gaps
	kind kind
	data []byte
}

const (
	ringBytes   = 16 << 20
	windowsKept = 64
	livesKept   = 2
	takeAtMost  = 64 // stored events a turn, so that deadlines and heartbeats get theirs
)

// stream is what clients read: stored events in the order of their sequence, and the newest windows and live
// states, which nobody misses.
type stream struct {
	mu       sync.Mutex
	begun    bool
	floor    uint64 // all stored events above floor up to last are in the ring
	last     uint64
	restarts int
	ring     []frame
	max      int
	bytes    int
	window   lane
	live     lane
	changed  chan struct{} // closed and replaced at each change
}

// lane holds the newest frames of one kind.
type lane struct {
	kind   kind
	frames []frame
	next   uint64 // number of the next frame; frame n lies at n modulo len(frames)
}

func newStream(ringEvents int) *stream {
	return &stream{
		max: ringEvents, changed: make(chan struct{}),
		window: lane{kind: kindWindow, frames: make([]frame, windowsKept)},
		live:   lane{kind: kindLive, frames: make([]frame, livesKept)},
	}
}

func (s *stream) wakeAll() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// begin empties the ring: events above seq follow.
func (s *stream) begin(seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.empty(seq)
}

// restart says that sequences begin anew; clients are told of the gap. They see both or neither: who was told of it and
// still read the old events would wait for sequences that are far.
func (s *stream) restart() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.restarts++
	s.empty(0)
}

// empty is called with the lock held.
func (s *stream) empty(seq uint64) {
	s.begun, s.floor, s.last, s.ring, s.bytes = true, seq, seq, nil, 0
	s.wakeAll()
}

func (s *stream) add(f frame) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ring = append(s.ring, f)
	s.last = f.seq
	s.bytes += len(f.data)
	for len(s.ring) > s.max || s.bytes > ringBytes && len(s.ring) > 1 {
		s.floor = s.ring[0].seq
		s.bytes -= len(s.ring[0].data)
		s.ring[0] = frame{} // the array lives on until append moves
		s.ring = s.ring[1:]
	}
	s.wakeAll()
}

func (s *stream) push(l *lane, f frame) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.frames[l.next%uint64(len(l.frames))] = f
	l.next++
	s.wakeAll()
}

// covers says whether a client that has everything up to seq can go on from the ring.
func (s *stream) covers(seq uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.begun && seq >= s.floor
}

// cursor is how far one client has read.
type cursor struct {
	want     kind
	fresh    bool   // wants what comes after now
	after    uint64 // has all stored events up to this sequence
	restarts int
	window   uint64
	live     uint64
	missed   map[kind]uint64 // overwritten before they were read; the owner resets it
}

// join sets where a client begins.
func (s *stream) join(c *cursor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.restarts, c.window, c.live = s.restarts, s.window.next, s.live.next
	if s.live.next > 0 && c.want&kindLive != 0 {
		c.live-- // something to show at once
	}
	s.start(c)
}

// start sets where a cursor without a place begins, as soon as the end of the stored events is known: at join, so that
// what is published after a client's request was answered reaches it.
func (s *stream) start(c *cursor) {
	if s.begun && c.fresh {
		c.after, c.fresh = s.last, false
	}
}

// end is the last stored sequence, if that is known yet.
func (s *stream) end() (seq uint64, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last, s.begun
}

// next appends what the client has not read to out. behind: its events are not in the ring any more. When out stays
// empty, changed is closed as soon as it is worth asking again.
func (s *stream) next(c *cursor, out []frame) (_ []frame, behind bool, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.restarts != s.restarts {
		if !c.fresh {
			out = append(out, restarted)
		}
		c.restarts, c.after = s.restarts, 0
	}
	s.start(c)
	if s.begun && c.after < s.floor {
		return out, true, s.changed
	}
	i := sort.Search(len(s.ring), func(i int) bool { return s.ring[i].seq > c.after })
	for _, f := range s.ring[i:min(len(s.ring), i+takeAtMost)] {
		c.after = f.seq
		if f.kind&c.want != 0 {
			out = append(out, f)
		}
	}
	out = s.window.take(c, &c.window, out)
	return s.live.take(c, &c.live, out), false, s.changed
}

func (l *lane) take(c *cursor, at *uint64, out []frame) []frame {
	if c.want&l.kind == 0 {
		*at = l.next
		return out
	}
	if n := uint64(len(l.frames)); *at+n < l.next {
		c.missed[l.kind] += l.next - n - *at
		*at = l.next - n
	}
	for ; *at < l.next; *at++ {
		out = append(out, l.frames[*at%uint64(len(l.frames))])
	}
	return out
}
