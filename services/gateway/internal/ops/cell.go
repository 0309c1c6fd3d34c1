package ops

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// cell holds an answer for all callers: one question at a time is under way, and its answer serves for keep. The zero
// cell is empty.
type cell[T any] struct {
	fresh  atomic.Pointer[kept[T]]
	mu     sync.Mutex
	flight *flight[T]
}

type kept[T any] struct {
	value T
	until time.Time
}

type flight[T any] struct {
	done  chan struct{}
	value T
}

// get gives the answer that is kept, or joins the question that is under way, or asks. load runs apart from the
// caller's cancellation, within askTime; an error means that ctx ended before the answer came.
func (c *cell[T]) get(ctx context.Context, load func(context.Context) T) (T, error) {
	if k := c.fresh.Load(); k != nil && time.Now().Before(k.until) {
		return k.value, nil
	}
	c.mu.Lock()
	if k := c.fresh.Load(); k != nil && time.Now().Before(k.until) {
		c.mu.Unlock()
		return k.value, nil
	}
	f := c.flight
	if f == nil {
		f = &flight[T]{done: make(chan struct{})}
		c.flight = f
		go c.fly(context.WithoutCancel(ctx), f, load)
	}
	c.mu.Unlock()
	select {
	case <-f.done:
		return f.value, nil
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

func (c *cell[T]) fly(ctx context.Context, f *flight[T], load func(context.Context) T) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	f.value = load(ctx)
	c.mu.Lock()
	if c.flight == f { // else it was dropped meanwhile: the answer may be older than the change
		c.flight = nil
		c.fresh.Store(&kept[T]{f.value, time.Now().Add(keep)})
	}
	c.mu.Unlock()
	close(f.done)
}

// drop forgets the answer, also that of a question under way, for those who ask from now on.
func (c *cell[T]) drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flight = nil
	c.fresh.Store(nil)
}
