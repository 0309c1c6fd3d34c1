package auth

import (
	"net/netip"
	"sync"
	"time"
)

// Lock-out of addresses. After lockAfter failures each further one locks for twice the time of the one before.
const (
	lockAfter  = 10
	lockBase   = 30 * time.Second
	lockMost   = 15 * time.Minute
	forgetFor  = time.Hour // failures are forgotten this long after the last one
	lockedSize = 16384     // addresses
)

// lockout counts failures by Origin. It may be used from several goroutines.
type lockout struct {
	now func() time.Time

	mu      sync.Mutex
	entries map[netip.Addr]*failure
}

type failure struct {
	count int
	last  time.Time
	until time.Time // locked
}

func newLockout(now func() time.Time) *lockout {
	return &lockout{now: now, entries: map[netip.Addr]*failure{}}
}

// Origin is what failures and anonymous budgets are counted by: an IPv4 address, or the /64 of an IPv6 one, since one
// host has all of it.
func Origin(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		p, err := a.Prefix(64)
		if err == nil {
			return p.Addr()
		}
	}
	return a
}

// locked is how long the address has to wait, 0: not at all.
func (l *lockout) locked(from netip.Addr) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.entries[Origin(from)]
	if e == nil {
		return 0
	}
	return max(0, e.until.Sub(l.now()))
}

// fail counts a failure and gives the time of the lock that it begins, 0 without one.
func (l *lockout) fail(from netip.Addr) (lock time.Duration, failures int) {
	now := l.now()
	from = Origin(from)
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.entries[from]
	if e == nil {
		if len(l.entries) >= lockedSize {
			l.makeRoom(now)
		}
		e = &failure{}
		l.entries[from] = e
	}
	if now.Sub(e.last) > forgetFor {
		e.count = 0
	}
	e.count++
	e.last = now
	if e.count < lockAfter || now.Before(e.until) { // requests that were under way when the lock began add none
		return 0, e.count
	}
	lock = lockMost
	if n := e.count - lockAfter; n < 6 {
		lock = min(lockBase<<n, lockMost)
	}
	e.until = now.Add(lock)
	return lock, e.count
}

func (l *lockout) forgive(from netip.Addr) {
	l.mu.Lock()
	delete(l.entries, Origin(from))
	l.mu.Unlock()
}

// makeRoom drops what is forgotten, then addresses that are not locked, then any, until an eighth is free.
func (l *lockout) makeRoom(now time.Time) {
	for _, drop := range []func(*failure) bool{
		func(e *failure) bool { return now.Sub(e.last) > forgetFor },
		func(e *failure) bool { return !now.Before(e.until) },
		func(*failure) bool { return true },
	} {
		for a, e := range l.entries {
			if len(l.entries) <= lockedSize*7/8 {
				return
			}
			if drop(e) {
				delete(l.entries, a)
			}
		}
	}
}
