// Package auth finds out who asks: it verifies tokens (RFC 7519) against a key set that rotates, keeps what was
// verified for a moment, and shuts out addresses that keep trying.
//
// There is no session store. A token is good until it expires or its key leaves the key set, on every gateway alike.
package auth

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/golang-jwt/jwt/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/libs/token"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/caller"
)

// Why a token is refused. ErrExpired and ErrClaims come only after the signature was found good.
var (
	ErrInvalid     = errors.New("the token is not valid here")
	ErrExpired     = errors.New("the token has expired: log in again or issue a new one")
	ErrClaims      = errors.New("the token is signed, but not for this gateway: check its issuer, audience, subject, role and times")
	ErrUnavailable = errors.New("no token can be checked now: the key set was not loaded")
)

// LockedError: the address failed too often.
type LockedError struct {
	RetryAfter time.Duration
}

// Error says how long to wait.
func (e *LockedError) Error() string {
	return fmt.Sprintf("too many invalid tokens from this address: try again in %s", e.RetryAfter.Round(time.Second))
}

// Config says which tokens are good. The tags are for kong; DefaultConfig has the same defaults.
type Config struct {
	JWKSURL   string        `name:"jwks-url" help:"https URL of the key set (JWKS) of an identity provider; plain http only on loopback."`
	JWKSCA    string        `name:"jwks-ca" help:"PEM file of the authority of the key set's server; empty: the system's."`
	JWKSFile  string        `name:"jwks-file" default:"/etc/tidegate/token-jwks.json" help:"File with the public key set, as tidegate token init writes it; used without --jwks-url."`
	Refresh   time.Duration `name:"jwks-refresh" default:"5m" help:"How often the key set's URL is read again; an unknown key id reads it at once."`
	Issuer    string        `name:"token-issuer" default:"tidegate" help:"Issuer (iss) that tokens must name."`
	Audience  string        `name:"token-audience" default:"tidegate-gateway" help:"Audience (aud) that tokens must name."`
	RoleClaim string        `name:"token-role-claim" default:"role" help:"Claim that holds viewer, operator or admin."`
	Skew      time.Duration `name:"token-skew" default:"30s" help:"Difference of clocks that is tolerated, up to 5m."`
}

// DefaultConfig reads the key set of a local key.
func DefaultConfig() Config {
	return Config{JWKSFile: "/etc/tidegate/" + token.JWKSFile, Refresh: 5 * time.Minute, Issuer: token.DefaultIssuer,
		Audience: token.DefaultAudience, RoleClaim: token.RoleClaim, Skew: 30 * time.Second}
}

// Validate reports the first setting that cannot work. It reads no file and no URL.
func (c Config) Validate() error {
	switch {
	case c.JWKSURL == "" && c.JWKSFile == "":
		return errors.New("no key set: give --jwks-url or --jwks-file")
	case c.Issuer == "" || c.Audience == "" || c.RoleClaim == "":
		return errors.New("issuer, audience and role claim of tokens must not be empty")
	case c.Skew < 0 || c.Skew > 5*time.Minute:
		return fmt.Errorf("token skew %s: use 0 to 5m", c.Skew)
	}
	if c.JWKSURL == "" {
		return nil
	}
	if c.Refresh < time.Second {
		return fmt.Errorf("key set refresh %s: use 1s or more", c.Refresh)
	}
	u, err := url.Parse(c.JWKSURL)
	if err != nil {
		return fmt.Errorf("key set URL: %w", err)
	}
	return checkURL(u)
}

// Auditor stores an audit entry.
type Auditor interface {
	PublishAudit(ctx context.Context, entry *eventv1.Audit) error
}

// Identity is what a good token says.
type Identity struct {
	Subject string
	Role    caller.Role
	Expires time.Time
	Token   [sha256.Size]byte // tells tokens apart without keeping them
}

// MaxToken is the largest token in bytes that is looked at.
const MaxToken = 8 << 10

// maxSubject is the longest subject in bytes.
const maxSubject = 256

// Authenticator verifies tokens and counts failures. Its methods may be called from several goroutines.
type Authenticator struct {
	cfg      Config
	t        *telemetry.Telemetry
	auditor  Auditor
	source   *source
	parser   *jwt.Parser
	keys     atomic.Pointer[keys]
	lockout  *lockout
	audits   chan *eventv1.Audit
	now      func() time.Time
	failures *prometheus.CounterVec // reason
	locks    prometheus.Counter
	keyCount prometheus.Gauge
}

// New checks cfg and reads the key set once; one that cannot be had yet is no error, Ready tells. auditor may be nil.
func New(ctx context.Context, cfg Config, t *telemetry.Telemetry, auditor Auditor) (*Authenticator, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	a := &Authenticator{
		cfg: cfg, t: t, auditor: auditor, now: time.Now,
		audits: make(chan *eventv1.Audit, 64),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidegate_gateway_token_failures_total", Help: "Tokens refused, by reason.",
		}, []string{"reason"}),
		locks: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tidegate_gateway_lockouts_total", Help: "Times that an address was locked out.",
		}),
		keyCount: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "tidegate_gateway_token_keys", Help: "Public keys that tokens may be signed with.",
		}),
	}
	for _, c := range []prometheus.Collector{a.failures, a.locks, a.keyCount} {
		if err := t.Registry.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics of tokens: %w", err)
		}
	}
	a.lockout = newLockout(func() time.Time { return a.now() })
	a.parser = jwt.NewParser(
		jwt.WithValidMethods([]string{"ES256", "EdDSA", "RS256"}),
		jwt.WithIssuer(cfg.Issuer), jwt.WithAudience(cfg.Audience),
		jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(cfg.Skew),
		jwt.WithStrictDecoding(), jwt.WithTimeFunc(func() time.Time { return a.now() }),
	)
	var err error
	if a.source, err = newSource(cfg); err != nil {
		return nil, err
	}
	a.refresh(ctx)
	return a, nil
}

// Ready is nil when tokens can be checked.
func (a *Authenticator) Ready() error {
	if a.keys.Load() != nil {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, a.source.problem())
}

// Verify checks a token and gives what it says. The error wraps one of this package's. It does not count failures;
// Login does.
func (a *Authenticator) Verify(ctx context.Context, raw string) (Identity, error) {
	id, _, err := a.verify(ctx, raw)
	return id, err
}

// cached is Verify for tokens that were verified a moment ago.
func (a *Authenticator) cached(raw string) (Identity, bool) {
	set := a.keys.Load()
	if set == nil || raw == "" || len(raw) > MaxToken {
		return Identity{}, false
	}
	return set.cache.get(sha256.Sum256([]byte(raw)), a.now())
}

func (a *Authenticator) verify(ctx context.Context, raw string) (id Identity, reason string, err error) {
	if len(raw) > MaxToken || raw == "" {
		return id, "malformed", ErrInvalid
	}
	set := a.keys.Load()
	if set == nil {
		return id, "unavailable", ErrUnavailable
	}
	sum := sha256.Sum256([]byte(raw))
	if id, ok := set.cache.get(sum, a.now()); ok {
		return id, "", nil
	}
	id, err = a.parse(raw, set)
	if errors.Is(err, errUnknownKey) {
		if a.keys.Load() == set {
			a.source.demand(ctx)
		}
		// Also a read that another token asked for may have ended meanwhile.
		if next := a.keys.Load(); next != set {
			set = next
			id, err = a.parse(raw, set)
		}
	}
	if err != nil {
		reason, err = classify(err)
		return Identity{}, reason, err
	}
	id.Token = sum
	// The cache belongs to the key set that verified the token: a change of keys leaves it behind.
	set.cache.put(sum, id, a.now())
	return id, "", nil
}

var errRole = errors.New("the role is unknown")

func (a *Authenticator) parse(raw string, set *keys) (id Identity, err error) {
	claims := jwt.MapClaims{}
	t, err := a.parser.ParseWithClaims(raw, claims, func(t *jwt.Token) (any, error) {
		// RFC 7515, section 4.1.11: an extension that is critical and not understood makes a token invalid.
		if _, critical := t.Header["crit"]; critical {
			return nil, errors.New("critical header parameters are not supported")
		}
		kid, named := t.Header["kid"]
		text, isText := kid.(string)
		if named && !isText {
			return nil, errors.New("the key id is no text")
		}
		return set.find(text, named, t.Method.Alg())
	})
	if err != nil {
		return id, err
	}
	if !t.Valid {
		return id, jwt.ErrTokenSignatureInvalid
	}
	id.Subject, _ = claims["sub"].(string)
	if id.Subject == "" || len(id.Subject) > maxSubject || !printable(id.Subject) {
		return id, jwt.ErrTokenInvalidSubject
	}
	name, _ := claims[a.cfg.RoleClaim].(string)
	role, ok := caller.ParseRole(name)
	if !ok {
		return id, errRole
	}
	exp, err := claims.GetExpirationTime()
	if err != nil || exp == nil {
		return id, jwt.ErrTokenRequiredClaimMissing
	}
	id.Role, id.Expires = role, exp.Time
	return id, nil
}

func printable(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if unicode.IsControl(r) {
			return false
		}
	}
	return true
}

// classify gives a failure its label and what the client may know. Nothing of an unsigned token is echoed.
func classify(err error) (reason string, public error) {
	for _, c := range []struct {
		is     error
		reason string
		public error
	}{
		{errUnknownKey, "unknown_key", ErrInvalid},
		{jwt.ErrTokenSignatureInvalid, "signature", ErrInvalid},
		{jwt.ErrTokenMalformed, "malformed", ErrInvalid},
		{jwt.ErrTokenUnverifiable, "malformed", ErrInvalid},
		{jwt.ErrTokenInvalidIssuer, "issuer", ErrClaims},
		{jwt.ErrTokenInvalidAudience, "audience", ErrClaims},
		{jwt.ErrTokenInvalidSubject, "subject", ErrClaims},
		{errRole, "role", ErrClaims},
		{jwt.ErrTokenExpired, "expired", ErrExpired},
		{jwt.ErrTokenNotValidYet, "not_yet", ErrClaims},
		{jwt.ErrTokenUsedBeforeIssued, "not_yet", ErrClaims},
	} {
		if errors.Is(err, c.is) {
			return c.reason, c.public
		}
	}
	return "claims", ErrClaims
}

// Login is Verify for a token that an address brought: failures are counted and lock the address out, success
// forgives. A token that was verified a moment ago passes a lock, so that a neighbour behind the same address
// cannot shut out those who are in. The error may be a *LockedError.
func (a *Authenticator) Login(ctx context.Context, raw string, from netip.Addr, requestID string) (Identity, error) {
	if id, ok := a.cached(raw); ok {
		return id, nil
	}
	if wait := a.lockout.locked(from); wait > 0 {
		a.failures.WithLabelValues("locked").Inc()
		return Identity{}, &LockedError{wait}
	}
	id, reason, err := a.verify(ctx, raw)
	if err == nil {
		a.lockout.forgive(from)
		return id, nil
	}
	a.failures.WithLabelValues(reason).Inc()
	a.t.Log.DebugContext(ctx, "token refused", "reason", reason, "remote", from, "request_id", requestID)
	// An expired token was good once: its owner is no guesser. Without keys nobody can be right.
	if !errors.Is(err, ErrExpired) && !errors.Is(err, ErrUnavailable) {
		a.Failed(from, requestID)
	}
	return Identity{}, err
}

// Failed counts a failure of an address that did not even bring a token that can be looked at.
func (a *Authenticator) Failed(from netip.Addr, requestID string) {
	wait, failures := a.lockout.fail(from)
	if wait == 0 {
		return
	}
	a.locks.Inc()
	a.t.Log.Warn("an address is locked out after invalid tokens", "remote", from, "failures", failures, "for", wait)
	a.audit(from, requestID, fmt.Sprintf("%d invalid tokens, locked for %s", failures, wait))
}

// Run keeps the key set current and writes audit entries until ctx ends.
func (a *Authenticator) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		a.writeAudits(ctx)
	}()
	a.source.run(ctx, a.refresh)
	wg.Wait()
	return nil
}

// refresh reads the key set; while it cannot be read the former one stays.
func (a *Authenticator) refresh(ctx context.Context) {
	set, changed, err := a.source.read(ctx)
	switch {
	case err != nil && ctx.Err() == nil:
		a.t.CountError("key_set")
		if a.source.note(err) {
			a.t.Log.Warn("the key set cannot be read, the former one stays", "error", err)
		}
	case err == nil:
		a.source.note(nil)
		if changed {
			a.keys.Store(set)
			a.keyCount.Set(float64(len(set.all)))
			a.t.Log.Info("key set loaded", "keys", len(set.all))
		}
	}
}
