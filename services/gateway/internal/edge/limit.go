package edge

import (
	"crypto/sha256"
	"math"
	"net/http"
	"strconv"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/auth"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/caller"
)

// maxBudgets bounds the table of token buckets.
const maxBudgets = 16384

// budget is one allowance: perSecond on average, and twice that at once.
type budget struct {
	name      string
	perSecond float64
	burst     int
	policy    []string // the value of RateLimit-Policy
	prefix    string   // of the value of RateLimit
	limit     []string // that of X-RateLimit-Limit
}

func newBudget(name string, perSecond float64) *budget {
	if perSecond == 0 {
		return nil
	}
	b := &budget{name: name, perSecond: perSecond, burst: int(max(1, math.Ceil(2*perSecond)))}
	window := int(math.Ceil(float64(b.burst) / perSecond))
	b.policy = []string{strconv.Quote(name) + ";q=" + strconv.Itoa(b.burst) + ";w=" + strconv.Itoa(window)}
	b.prefix = strconv.Quote(name) + ";r="
	b.limit = []string{strconv.Itoa(b.burst)}
	return b
}

// limits hold the buckets by token or, without one, by address.
type limits struct {
	viewerReads, operatorReads, operatorWrites, nobody *budget

	mu      sync.Mutex
	buckets map[bucketKey]*rate.Limiter
}

type bucketKey struct {
	who    [sha256.Size]byte // of the token, or the address
	budget *budget
}

func newLimits(c Config) *limits {
	return &limits{
		viewerReads:    newBudget("reads", c.ViewerReads),
		operatorReads:  newBudget("reads", c.OperatorReads),
		operatorWrites: newBudget("writes", c.OperatorWrites),
		nobody:         newBudget("anonymous", c.NobodyRequests),
		buckets:        map[bucketKey]*rate.Limiter{},
	}
}

// of is the budget that a request draws on, nil for no limit. A viewer's writes are refused by their role; they draw
// on its reads.
func (l *limits) of(role caller.Role, method string) *budget {
	switch {
	case role == caller.Nobody:
		return l.nobody
	case role == caller.Viewer:
		return l.viewerReads
	case safe(method):
		return l.operatorReads
	default:
		return l.operatorWrites
	}
}

// take draws one request and tells what is left, in requests.
func (l *limits) take(k bucketKey, now time.Time) (ok bool, left float64) {
	l.mu.Lock()
	b := l.buckets[k]
	if b == nil {
		if len(l.buckets) >= maxBudgets {
			l.makeRoom(now)
		}
		b = rate.NewLimiter(rate.Limit(k.budget.perSecond), k.budget.burst)
		l.buckets[k] = b
	}
	l.mu.Unlock()
	ok = b.AllowN(now, 1)
	return ok, max(0, b.TokensAt(now))
}

// makeRoom drops buckets that are full, which loses nothing, then arbitrary ones until an eighth is free.
func (l *limits) makeRoom(now time.Time) {
	for k, b := range l.buckets {
		if b.TokensAt(now) >= float64(k.budget.burst) {
			delete(l.buckets, k)
		}
	}
	for k := range l.buckets {
		if len(l.buckets) <= maxBudgets*7/8 {
			return
		}
		delete(l.buckets, k)
	}
}

// limit counts the request and says in headers what is left: RateLimit and RateLimit-Policy of
// draft-ietf-httpapi-ratelimit-headers, and the X- names that older clients read (reset in seconds from now). It is
// false when the request was answered.
func (c *Chain) limit(x *exchange) bool {
	b := c.limits.of(x.who.Role, x.r.Method)
	if b == nil {
		return true
	}
	k := bucketKey{who: x.tokenID, budget: b}
	if x.who.Role == caller.Nobody {
		address := auth.Origin(x.who.Remote).As16()
		copy(k.who[:], address[:])
	}
	ok, left := c.limits.take(k, x.begun)
	remaining := strconv.Itoa(int(left))
	reset := strconv.Itoa(int(math.Ceil((float64(b.burst) - left) / b.perSecond)))
	values := [...]string{b.prefix + remaining + ";t=" + reset, remaining, reset} // one allocation for three fields
	h := x.Header()
	h["Ratelimit-Policy"] = b.policy
	h["Ratelimit"] = values[0:1:1]
	h["X-Ratelimit-Limit"] = b.limit
	h["X-Ratelimit-Remaining"] = values[1:2:2]
	h["X-Ratelimit-Reset"] = values[2:3:3]
	if ok {
		return true
	}
	wait := time.Duration((1 - left) / b.perSecond * float64(time.Second))
	h.Set("Retry-After", seconds(wait))
	c.refuse(x, "rate_limited", api.Problem{Status: http.StatusTooManyRequests, Reason: "rate_limited",
		Detail: "more requests than the budget \"" + b.name + "\" allows: see RateLimit-Policy"})
	return false
}
