// Package lifecycle starts the parts of a process together and stops them in order.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// Service is a part of the process. Run blocks until ctx ends and then drains: it returns when its last work is
// done. An error means that the service could not go on.
type Service interface {
	Run(ctx context.Context) error
}

// DefaultDrain is the time a service has for draining when Add is given none.
const DefaultDrain = 5 * time.Second

// Group runs services as one: when any of them ends, all are stopped, the last added first. Add what others depend
// on first (telemetry, the bus), and what takes in work last, so that the intake closes before its consumers.
// The zero Group is ready to use. A Group runs once.
type Group struct {
	members []*member
}

type member struct {
	name  string
	drain time.Duration
	run   func(ctx context.Context) error

	cancel context.CancelFunc
	done   chan struct{} // closed after err is set and the member is queued
	err    error
}

// Add registers a service under a name that error messages use. drain is the time it may take from the end of its
// context to its return; 0 or less means DefaultDrain. Add must not be called after Run.
func (g *Group) Add(name string, drain time.Duration, s func(ctx context.Context) error) {
	if drain <= 0 {
		drain = DefaultDrain
	}
	g.members = append(g.members, &member{name: name, drain: drain, run: s, done: make(chan struct{})})
}

// Run starts all services and blocks until all have ended, or have overrun their drain time. It stops them when ctx
// ends or any one returns, even with nil. Services are stopped one after the other, in reverse order of Add; one that
// overruns its drain time is left behind and the next is stopped.
//
// The result is the first error in time: of a service, or of a drain that overran. context.Canceled from a service
// that was asked to stop is no error. The context's values reach the services.
func (g *Group) Run(ctx context.Context) error {
	if len(g.members) == 0 {
		return nil
	}
	ended := make(chan *member, len(g.members))
	// The services' contexts must not end with ctx all at once, else there would be no order.
	base := context.WithoutCancel(ctx)
	for _, m := range g.members {
		var own context.Context
		own, m.cancel = context.WithCancel(base)
		go func() {
			defer m.cancel()
			m.err = m.run(own)
			if own.Err() != nil && errors.Is(m.err, context.Canceled) {
				m.err = nil
			}
			ended <- m // before done, so that whoever sees done finds the error in the queue
			close(m.done)
		}()
	}

	var first error
	keep := func(m *member) {
		if first == nil && m.err != nil {
			first = fmt.Errorf("%s: %w", m.name, m.err)
		}
	}
	select {
	case <-ctx.Done():
	case m := <-ended:
		keep(m)
	}
	for i := len(g.members) - 1; i >= 0; i-- {
		m := g.members[i]
		m.cancel()
		deadline := time.NewTimer(m.drain)
		for stopped := false; !stopped; {
			select {
			case other := <-ended: // in order of their ends, so that the first error is the first in time
				keep(other)
				stopped = other == m
			case <-m.done:
				drainEnded(ended, keep)
				stopped = true
			case <-deadline.C:
				if first == nil {
					first = fmt.Errorf("%s: did not stop within %s", m.name, m.drain)
				}
				stopped = true
			}
		}
		deadline.Stop()
	}
	return first
}

// drainEnded takes what is queued without waiting.
func drainEnded(ended <-chan *member, keep func(*member)) {
	for {
		select {
		case m := <-ended:
			keep(m)
		default:
			return
		}
	}
}

// SignalContext returns a context that ends at the first SIGINT or SIGTERM. A second signal ends the process at once
// with status 128 + its number. The cancel function restores the default handling and frees the goroutine.
func SignalContext() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	released := make(chan struct{})
	go func() {
		defer signal.Stop(signals)
		for {
			select {
			case s := <-signals:
				if ctx.Err() != nil {
					status := 128
					if n, ok := s.(syscall.Signal); ok {
						status += int(n)
					}
					os.Exit(status)
				}
				cancel()
			case <-released:
				return
			}
		}
	}()
	var once sync.Once
	return ctx, func() {
		cancel()
		once.Do(func() { close(released) })
	}
}

// Retry calls op until it returns nil, then returns nil, or until ctx ends, then returns the last error of op joined with
// ctx's. The wait grows from base to limit by doubling; each is drawn evenly from its upper
// half, so that many instances do not return in step. on, when not nil, is told of each failure and the wait that follows.
func Retry(ctx context.Context, base, limit time.Duration, op func(ctx context.Context) error, on func(err error, next time.Duration)) error {
	if base <= 0 {
		base = 10 * time.Millisecond
	}
	if limit < base {
		limit = base
	}
	var last error
	for wait := base; ; wait = min(wait*2, limit) {
		if err := ctx.Err(); err != nil {
			return errors.Join(err, last)
		}
		if last = op(ctx); last == nil {
			return nil
		}
		next := wait/2 + rand.N(wait/2+1) //nolint:gosec // jitter needs no secrecy
		if on != nil {
			on(last, next)
		}
		timer := time.NewTimer(next)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return errors.Join(ctx.Err(), last)
		}
	}
}
