package ingest

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	ingestv1 "github.com/tidegate-mesh/tidegate/proto/ingest/v1"
	"github.com/tidegate-mesh/tidegate/services/ingest/internal/window"
)

// mergePatience is how long the first queue's window waits for the others'. Workers hand over within a nap of
// the boundary.
const mergePatience = 15 * time.Millisecond

// builderPool bounds the empty builders kept for reuse.
const builderPool = 64

// windows merges the queues' windows, encodes them and hands them on. Queues call take; run is one
// goroutine.
type windows struct {
	tel    *telemetry.Telemetry
	put    func(*flowv1.Window, time.Time)
	in     chan *window.Builder
	spare  chan *window.Builder
	queues func() int // that hand over windows now
	recent recentWindows
}

func newWindows(tel *telemetry.Telemetry, put func(*flowv1.Window, time.Time), queues func() int) *windows {
	return &windows{
		tel: tel, put: put, queues: queues,
		in: make(chan *window.Builder, builderPool), spare: make(chan *window.Builder, builderPool),
	}
}

func newBuilder() *window.Builder { return window.New(windowConfig()) }

// windowConfig is that of a live sensor's builder. With a seed of its own nobody can choose addresses that meet in its tables,
// and so drive a scanner or a victim out of them.
func windowConfig() window.Config {
	c := window.DefaultConfig()
	c.Seed = rand.Uint64() //nolint:gosec // seeded by the system at start; an attacker sees no output of it
	return c
}

// provide makes the builder that a queue changes with: one is merged while the other is filled. Made by take it would stop
// the queue for milliseconds; so does a third, once, should merging ever take as long as a window.
func (w *windows) provide() { w.giveBack(newBuilder()) }

// take is a queue's OnWindow: it never blocks, and takes nothing when the merging falls behind.
func (w *windows) take(b *window.Builder) *window.Builder {
	var fresh *window.Builder
	select {
	case fresh = <-w.spare:
	default:
		fresh = newBuilder()
	}
	select {
	case w.in <- b:
		return fresh
	default:
		w.giveBack(fresh)
		return nil
	}
}

// room reports whether the merging keeps up.
func (w *windows) room() bool { return len(w.in) <= builderPool/2 }

func (w *windows) giveBack(b *window.Builder) {
	select {
	case w.spare <- b:
	default:
	}
}

// run merges until ctx ends and then what has been handed over by then.
func (w *windows) run(ctx context.Context) {
	var waiting []*window.Builder
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	emit := func() {
		if len(waiting) > 0 {
			w.emit(waiting)
			waiting = waiting[:0]
		}
	}
	join := func(b *window.Builder) {
		if len(waiting) > 0 && b.StartNs != waiting[0].StartNs {
			emit()
		}
		waiting = append(waiting, b)
	}
	for {
		select {
		case b := <-w.in:
			join(b)
			if len(waiting) >= w.queues() {
				timer.Stop()
				emit()
			} else if len(waiting) == 1 {
				timer.Reset(mergePatience)
			}
		case <-timer.C:
			emit()
		case <-ctx.Done():
			for {
				select {
				case b := <-w.in:
					join(b)
				default:
					emit()
					return
				}
			}
		}
	}
}

// emit encodes builders of one interval as one window.
func (w *windows) emit(builders []*window.Builder) {
	sum := builders[0]
	for _, b := range builders[1:] {
		sum.Merge(b)
	}
	m := &flowv1.Window{}
	sum.Encode(m)
	for _, b := range builders {
		b.Reset()
		w.giveBack(b)
	}
	w.recent.add(m)
	w.put(m, time.Now())
}

// talkerSpan is how much of the past the top talkers cover.
const talkerSpan = time.Second

// topTalkers is how many of each kind are listed.
const topTalkers = 10

// recentWindows keeps the last second's windows, which are not changed any more.
type recentWindows struct {
	mu   sync.Mutex
	list []*flowv1.Window
}

func (r *recentWindows) add(m *flowv1.Window) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, m)
	r.list = slices.DeleteFunc(r.list, func(o *flowv1.Window) bool { // those ahead are from before the clock was set back
		age := m.EndNs - o.EndNs
		return age >= int64(talkerSpan) || age <= -int64(talkerSpan)
	})
}

// talkers are the heaviest hosts of the last second, by packets.
func (r *recentWindows) talkers(now time.Time) (destinations, sources []*ingestv1.TopTalker) {
	r.mu.Lock()
	list := slices.Clone(r.list)
	r.mu.Unlock()
	type load struct{ packets, bytes uint64 }
	dst, src := map[netip.Addr]load{}, map[netip.Addr]load{}
	var span time.Duration
	for _, m := range list {
		if now.UnixNano()-m.EndNs > 2*int64(talkerSpan) {
			continue
		}
		span += time.Duration(m.EndNs - m.StartNs)
		for _, t := range m.Targets {
			if t.PrefixLen != 128 {
				continue
			}
			a := flow.AddrBytes(t.Addr)
			l := dst[a]
			dst[a] = load{l.packets + t.Counters.GetPackets(), l.bytes + t.Counters.GetBytes()}
			for _, s := range t.TopSources {
				a := flow.AddrBytes(s.Addr)
				l := src[a]
				src[a] = load{l.packets + s.Packets, l.bytes + s.Bytes}
			}
		}
	}
	top := func(loads map[netip.Addr]load) []*ingestv1.TopTalker {
		out := make([]*ingestv1.TopTalker, 0, len(loads))
		for a, l := range loads {
			out = append(out, &ingestv1.TopTalker{
				Addr: a.String(), Pps: float64(l.packets) / span.Seconds(), Bps: 8 * float64(l.bytes) / span.Seconds(),
			})
		}
		slices.SortFunc(out, func(a, b *ingestv1.TopTalker) int {
			switch {
			case a.Pps > b.Pps:
				return -1
			case a.Pps < b.Pps:
				return 1
			case a.Addr < b.Addr:
				return -1
			}
			return 1
		})
		return out[:min(len(out), topTalkers)]
	}
	if span == 0 {
		return nil, nil
	}
	return top(dst), top(src)
}
