// Package edge is everything between a socket and a handler: connections and TLS, what a request may look like, who
// it comes from and how often, and what every answer has in common. What reaches a handler has a caller in its
// context, a clean path and query, and a whole body of bounded size.
package edge

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/auth"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/caller"
)

// Config bounds what one client may ask of the gateway. The tags are for kong; DefaultConfig has the same defaults.
type Config struct {
	MaxBody        int64         `name:"max-body" default:"65536" help:"Largest request body in bytes."`
	MaxConns       int           `name:"max-conns" default:"4096" help:"Connections at once."`
	MaxConnsClient int           `name:"max-conns-client" default:"1024" help:"Connections at once of one client address (IPv6: /64)."`
	HeaderTimeout  time.Duration `name:"header-timeout" default:"5s" help:"Longest time of a TLS handshake and of a request's headers."`
	ReadTimeout    time.Duration `name:"read-timeout" default:"10s" help:"Longest time of a whole request; a slower body is answered 408."`
	WriteTimeout   time.Duration `name:"write-timeout" default:"30s" help:"Longest time of an answer; event streams have their own."`
	IdleTimeout    time.Duration `name:"idle-timeout" default:"2m" help:"Longest time of a connection without a request."`
	ViewerReads    float64       `name:"rate-viewer-reads" default:"1000" help:"Reads a second of a viewer's token; the burst is twice that. 0: no limit."`
	OperatorReads  float64       `name:"rate-operator-reads" default:"2000" help:"Reads a second of an operator's or admin's token. 0: no limit."`
	OperatorWrites float64       `name:"rate-operator-writes" default:"100" help:"Writes a second of an operator's or admin's token. 0: no limit."`
	NobodyRequests float64       `name:"rate-nobody" default:"20" help:"Requests a second of an address without a token. 0: no limit."`
}

// DefaultConfig serves hundreds of browsers and programs.
func DefaultConfig() Config {
	return Config{
		MaxBody: 64 << 10, MaxConns: 4096, MaxConnsClient: 1024,
		HeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		ViewerReads: 1000, OperatorReads: 2000, OperatorWrites: 100, NobodyRequests: 20,
	}
}

// Validate reports the first setting that cannot work.
func (c Config) Validate() error {
	if c.MaxBody < 1024 || c.MaxBody > 16<<20 {
		return fmt.Errorf("largest body of %d bytes: use 1024 to 16777216", c.MaxBody)
	}
	if c.MaxConns < 1 || c.MaxConnsClient < 1 {
		return errors.New("limits of connections must be 1 or more")
	}
	for name, d := range map[string]time.Duration{"header": c.HeaderTimeout, "read": c.ReadTimeout, "write": c.WriteTimeout, "idle": c.IdleTimeout} {
		if d <= 0 {
			return fmt.Errorf("%s timeout %s: it must be above 0", name, d)
		}
	}
	for _, r := range []float64{c.ViewerReads, c.OperatorReads, c.OperatorWrites, c.NobodyRequests} {
		if !(r >= 0 && r <= 1e6) {
			return fmt.Errorf("rate limit of %g a second: use 0 (none) to 1000000", r)
		}
	}
	return nil
}

// Paths that matter here. Everything under apiPrefix is for programs and answers in problem+json.
const (
	apiPrefix   = "/api/"
	openAPIPath = "/api/v1/openapi.json"
	listsPath   = "/api/v1/lists/"
	loginPath   = "/login"
	staticPath  = "/static/"
)

// Authenticator verifies the token that an address brought; *auth.Authenticator is it.
type Authenticator interface {
	Login(ctx context.Context, raw string, from netip.Addr, requestID string) (auth.Identity, error)
	Failed(from netip.Addr, requestID string)
}

// Chain is the way of every request to the handler. It may be used by any number of goroutines.
type Chain struct {
	cfg    Config
	t      *telemetry.Telemetry
	auth   Authenticator
	next   http.Handler
	m      *metrics
	limits *limits
	texts  chan struct{} // holds a token for each list text that arrives or is worked on
	tls    *certificate  // nil in tests of the chain alone

	stop   context.Context // ended when event streams must end
	endAll context.CancelFunc
}

// New puts the chain before a handler.
func New(cfg Config, t *telemetry.Telemetry, a Authenticator, next http.Handler) (*Chain, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	m, err := newMetrics(t.Registry)
	if err != nil {
		return nil, err
	}
	t.ErrorCounter("http_panic") // shown as 0 from the start
	c := &Chain{cfg: cfg, t: t, auth: a, next: next, m: m, limits: newLimits(cfg), texts: make(chan struct{}, maxListTexts)}
	c.stop, c.endAll = context.WithCancel(context.Background())
	return c, nil
}

// exchange is one request with its answer.
type exchange struct {
	*response
	r     *http.Request
	begun time.Time
	who   caller.Caller
	route string
	api   bool
	text  bool       // it holds one of the chain's texts
	span  trace.Span // nil until the caller is known
}

type exchangeKey struct{}

// SetRoute names the route of a request in metrics and traces, for handlers that do not route by http.ServeMux.
// route must be one of few constants.
func SetRoute(ctx context.Context, route string) {
	if x, ok := ctx.Value(exchangeKey{}).(*exchange); ok {
		x.route = route
	}
}

// ServeHTTP runs the request through the chain.
func (c *Chain) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := &exchange{response: newResponse(w, r), begun: time.Now(), api: strings.HasPrefix(r.URL.Path, apiPrefix)}
	x.who = caller.Caller{Remote: remote(r), RequestID: requestID(r)}
	header := w.Header()
	header["X-Request-Id"] = []string{x.who.RequestID}
	setHeaders(header, x.api)
	x.r = r
	defer c.finish(x)
	if r.ContentLength != 0 { // also what is left of a refused request's body is read in time, or not at all
		if err := x.setReadDeadline(x.begun.Add(c.cfg.ReadTimeout)); err != nil {
			c.t.CountError("body_deadline")
		}
	}
	if p := check(r); p != nil {
		c.refuse(x, "malformed", *p)
		return
	}
	if !c.authenticate(x) || !c.limit(x) || !c.readBody(x) {
		return
	}
	// Who has no token cannot have its traces sampled.
	ctx := r.Context()
	if x.who.Role != caller.Nobody {
		ctx = telemetry.Extract(ctx, r.Header.Get("Traceparent"))
	}
	ctx, x.span = c.t.Tracer.Start(ctx, r.Method, trace.WithSpanKind(trace.SpanKindServer))
	ctx = context.WithValue(caller.With(ctx, x.who), exchangeKey{}, x)
	if accept := r.Header.Get("Accept"); strings.Contains(accept, eventStream) || strings.Contains(accept, api.CaptureType) { // answers without an end of their own
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(c.stop, cancel)()
	}
	x.r = r.WithContext(ctx)
	c.next.ServeHTTP(x.response, x.r)
}

// finish ends the exchange, also when the handler panicked.
func (c *Chain) finish(x *exchange) {
	cause := recover()
	if x.text {
		<-c.texts
	}
	aborted := cause == http.ErrAbortHandler //nolint:errorlint // the value itself is the signal
	if cause != nil && !aborted {
		c.t.CountError("http_panic")
		c.t.Log.ErrorContext(x.r.Context(), "a request's handler panicked", "method", x.r.Method, "path", x.r.URL.Path,
			"request_id", x.who.RequestID, "panic", fmt.Sprint(cause), "stack", string(debug.Stack()))
		if x.reset() {
			c.answer(x, api.Problem{Status: http.StatusInternalServerError,
				Detail: "the gateway failed at this request; its log has more under the request's id"})
		} else {
			aborted = true // half an answer must not look whole
		}
	}
	if !aborted {
		x.close()
	}
	if x.route == "" {
		x.route = x.r.Pattern
	}
	if x.route == "" {
		x.route = "none"
	}
	code := x.sent()
	took := time.Since(x.begun)
	c.m.requests.WithLabelValues(x.route, strconv.Itoa(code)).Observe(took.Seconds())
	if x.span != nil {
		if x.span.IsRecording() {
			x.span.SetName(x.route)
			x.span.SetAttributes(attribute.String("http.request.method", x.r.Method), attribute.String("http.route", x.route),
				attribute.Int("http.response.status_code", code), attribute.String("client.address", x.who.Remote.String()),
				attribute.String("enduser.id", x.who.Subject))
			if code >= 500 {
				x.span.SetStatus(codes.Error, http.StatusText(code))
			}
		}
		x.span.End()
	}
	if ctx := x.r.Context(); c.t.Log.Enabled(ctx, -4) {
		c.t.Log.DebugContext(ctx, "request", "method", x.r.Method, "path", x.r.URL.Path, "route", x.route, "code", code, "took", took,
			"bytes", x.bytes, "remote", x.who.Remote, "subject", x.who.Subject, "role", x.who.Role.String(), "request_id", x.who.RequestID)
	}
	if aborted {
		panic(http.ErrAbortHandler)
	}
}

// authenticate finds the caller. It is false when the request was answered.
func (c *Chain) authenticate(x *exchange) bool {
	raw, carrier, err := auth.FromRequest(x.r)
	public := isPublic(x.r.URL.Path)
	if carrier != auth.Header && !safe(x.r.Method) && !auth.SameOrigin(x.r) && (carrier == auth.Cookie || !x.api) {
		c.refuse(x, "cross_origin", api.Problem{Status: http.StatusForbidden, Reason: "cross_origin",
			Detail: "a change with a session cookie must come from the gateway's own page; programs send an Authorization header"})
		return false
	}
	if err != nil {
		c.auth.Failed(x.who.Remote, x.who.RequestID)
	} else if carrier != auth.None {
		var id auth.Identity
		if id, err = c.auth.Login(x.r.Context(), raw, x.who.Remote, x.who.RequestID); err == nil {
			x.who.Subject, x.who.Role, x.who.Expires = id.Subject, id.Role, id.Expires
			x.tokenID = id.Token
			return true
		}
	}
	var locked *auth.LockedError
	switch {
	case err == nil:
	case errors.As(err, &locked):
		if carrier == auth.Cookie && public {
			return true // the log-in form says it in its own words
		}
		x.Header().Set("Retry-After", seconds(locked.RetryAfter))
		c.refuse(x, "locked", api.Problem{Status: http.StatusTooManyRequests, Reason: "locked", Detail: locked.Error()})
		return false
	case errors.Is(err, auth.ErrUnavailable):
		x.Header().Set("Retry-After", "5")
		c.refuse(x, "no_keys", api.Problem{Status: http.StatusServiceUnavailable, Reason: "no_keys", Detail: auth.ErrUnavailable.Error()})
		return false
	case carrier == auth.Cookie:
		// The browser forgets a session that is over, else each refresh of the page would count as a failure.
		http.SetCookie(x, auth.ClearCookie())
	}
	// A page sends who is nobody to the log-in form by itself.
	if public || (!x.api && carrier != auth.Header) {
		return true
	}
	challenge := `Bearer realm="tidegate"`
	detail := "this needs a token: send an Authorization header of the form \"Bearer TOKEN\""
	if err != nil {
		challenge += `, error="invalid_token"`
		detail = err.Error()
	}
	x.Header().Set("WWW-Authenticate", challenge)
	c.refuse(x, "unauthorized", api.Problem{Status: http.StatusUnauthorized, Reason: "unauthorized", Detail: detail})
	return false
}

// isPublic: what may be seen without a token.
func isPublic(path string) bool {
	return path == openAPIPath || path == loginPath || strings.HasPrefix(path, staticPath)
}

// Require lets callers of a role and above through to h; others get 401 or 403.
func Require(role caller.Role, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch has := caller.From(r.Context()).Role; {
		case has >= role:
			h.ServeHTTP(w, r)
		case has == caller.Nobody:
			w.Header().Set("WWW-Authenticate", `Bearer realm="tidegate"`)
			caller.WriteProblem(w, r, api.Problem{Status: http.StatusUnauthorized, Reason: "unauthorized", Detail: "this needs a token"})
		default:
			caller.WriteProblem(w, r, api.Problem{Status: http.StatusForbidden, Reason: "forbidden",
				Detail: fmt.Sprintf("this needs the role %s, the token has %s", role, has)})
		}
	})
}

// refuse answers a request that does not reach a handler.
func (c *Chain) refuse(x *exchange, reason string, p api.Problem) {
	c.m.refused.WithLabelValues(reason).Inc()
	if x.route == "" {
		x.route = "refused"
	}
	c.answer(x, p)
}

// answer is a problem for programs and a line of text for people.
func (c *Chain) answer(x *exchange, p api.Problem) {
	if p.RequestID == "" {
		p.RequestID = x.who.RequestID
	}
	if x.api {
		caller.WriteProblem(x.response, x.r, p)
		return
	}
	text := p.Detail
	if text == "" {
		text = http.StatusText(p.Status)
	}
	h := x.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	x.WriteHeader(p.Status)
	_, _ = fmt.Fprintf(x.response, "%d %s\n%s\nrequest %s\n", p.Status, http.StatusText(p.Status), text, p.RequestID)
}

func remote(r *http.Request) netip.Addr {
	a, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return a.Addr().Unmap().WithZone("")
}

// requestID takes the client's id when it is short and plain, so that it can be logged and put into headers.
func requestID(r *http.Request) string {
	if ids := r.Header["X-Request-Id"]; len(ids) == 1 && len(ids[0]) >= 1 && len(ids[0]) <= 64 {
		plain := true
		for i := range len(ids[0]) {
			b := ids[0][i]
			plain = plain && (b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b == '-' || b == '_' || b == '.')
		}
		if plain {
			return ids[0]
		}
	}
	const digits = "0123456789abcdef"
	var id [24]byte
	for i := 0; i < len(id); i += 12 { // an id, no secret
		v := rand.Uint64()
		for j := range 12 {
			id[i+j] = digits[v&15]
			v >>= 4
		}
	}
	return string(id[:])
}

// safe methods (RFC 9110, section 9.2.1) change nothing.
func safe(method string) bool {
	return method == http.MethodGet || method == http.MethodHead || method == http.MethodOptions
}

// seconds is for Retry-After: at least 1.
func seconds(d time.Duration) string {
	return strconv.FormatInt(max(1, int64((d+time.Second-1)/time.Second)), 10)
}
