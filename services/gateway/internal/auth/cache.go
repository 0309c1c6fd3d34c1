package auth

import (
	"crypto/sha256"
	"sync"
	"time"
)

const (
	cacheFor  = time.Minute
	cacheSize = 8192 // tokens
)

// cache keeps verified tokens by their hash: a signature costs more than the rest of a request. It may be used from
// several goroutines.
type cache struct {
	mu      sync.RWMutex
	entries map[[sha256.Size]byte]cacheEntry
}

type cacheEntry struct {
	id    Identity
	until time.Time
}

func newCache() *cache { return &cache{entries: map[[sha256.Size]byte]cacheEntry{}} }

func (c *cache) get(sum [sha256.Size]byte, now time.Time) (Identity, bool) {
	c.mu.RLock()
	e, ok := c.entries[sum]
	c.mu.RUnlock()
	return e.id, ok && now.Before(e.until)
}

func (c *cache) put(sum [sha256.Size]byte, id Identity, now time.Time) {
	until := now.Add(cacheFor)
	if id.Expires.Before(until) {
		until = id.Expires
	}
	if !now.Before(until) { // within the tolerated skew only
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.entries[sum]; !known && len(c.entries) >= cacheSize {
		c.makeRoom(now)
	}
	c.entries[sum] = cacheEntry{id, until}
}

// makeRoom drops what has ended, else an arbitrary eighth: those tokens are verified again.
func (c *cache) makeRoom(now time.Time) {
	for sum, e := range c.entries {
		if !now.Before(e.until) {
			delete(c.entries, sum)
		}
	}
	for sum := range c.entries {
		if len(c.entries) <= cacheSize*7/8 {
			return
		}
		delete(c.entries, sum)
	}
}
