package edge

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/auth"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/caller"
)

const bearer = "Authorization"

// TestWho is who gets in where, by what the request brings.
func TestWho(t *testing.T) {
	var seen caller.Caller
	r := newChain(t, nil, func(w http.ResponseWriter, r *http.Request) {
		seen = caller.From(r.Context())
		_, _ = io.WriteString(w, "in")
	})
	cookie := func(v string) []string { return []string{"Cookie", auth.CookieName + "=" + v} }
	with := func(a []string, b ...string) []string { return append(append([]string(nil), a...), b...) }
	for _, c := range []struct {
		name, method, path string
		headers            []string
		status             int
		role               caller.Role
		reason             string
	}{
		{"nobody, API", "GET", "/api/v1/rules", nil, 401, 0, "unauthorized"},
		{"nobody, document", "GET", "/api/v1/openapi.json", nil, 200, caller.Nobody, ""},
		{"nobody, beside the document", "GET", "/api/v1/openapi.json/x", nil, 401, 0, "unauthorized"},
		{"nobody, API write", "POST", "/api/v1/rules", nil, 401, 0, "unauthorized"},
		{"nobody, page", "GET", "/", nil, 200, caller.Nobody, ""},
		{"nobody, login", "GET", "/login", nil, 200, caller.Nobody, ""},
		{"nobody, asset", "GET", "/static/x.css", nil, 200, caller.Nobody, ""},
		{"nobody, login from elsewhere", "POST", "/login", []string{"Sec-Fetch-Site", "cross-site"}, 403, 0, ""},
		{"nobody, login", "POST", "/login", []string{"Sec-Fetch-Site", "same-origin"}, 200, caller.Nobody, ""},
		{"viewer", "GET", "/api/v1/rules", []string{bearer, "Bearer viewer"}, 200, caller.Viewer, ""},
		{"operator writes", "POST", "/api/v1/rules", []string{bearer, "Bearer operator"}, 200, caller.Operator, ""},
		{"admin", "DELETE", "/api/v1/rules/x", []string{bearer, "Bearer admin"}, 200, caller.Admin, ""},
		{"forged", "GET", "/api/v1/rules", []string{bearer, "Bearer forged"}, 401, 0, "unauthorized"},
		{"expired", "GET", "/api/v1/rules", []string{bearer, "Bearer old"}, 401, 0, "unauthorized"},
		{"forged at the document", "GET", "/api/v1/openapi.json", []string{bearer, "Bearer forged"}, 200, caller.Nobody, ""},
		{"forged at the page", "GET", "/", []string{bearer, "Bearer forged"}, 401, 0, ""},
		{"basic", "GET", "/api/v1/rules", []string{bearer, "Basic viewer"}, 401, 0, "unauthorized"},
		{"two headers", "GET", "/api/v1/rules", []string{bearer, "Bearer viewer", bearer, "Bearer admin"}, 401, 0, "unauthorized"},
		{"locked", "GET", "/api/v1/rules", []string{bearer, "Bearer locked"}, 429, 0, "locked"},
		{"no keys", "GET", "/api/v1/rules", []string{bearer, "Bearer nokeys"}, 503, 0, "no_keys"},
		{"cookie reads", "GET", "/api/v1/rules", cookie("viewer"), 200, caller.Viewer, ""},
		{"cookie writes", "POST", "/ui/rules", with(cookie("operator"), "Sec-Fetch-Site", "same-origin"), 200, caller.Operator, ""},
		{"cookie writes, old browser", "POST", "/ui/rules", with(cookie("operator"), "Origin", "https://gate.example"), 200, caller.Operator, ""},
		{"cookie writes from elsewhere", "POST", "/api/v1/rules", with(cookie("operator"), "Sec-Fetch-Site", "cross-site"), 403, 0, "cross_origin"},
		{"cookie writes without proof", "DELETE", "/api/v1/rules/x", cookie("operator"), 403, 0, "cross_origin"},
		{"header wins", "POST", "/api/v1/rules", with(cookie("viewer"), bearer, "Bearer admin"), 200, caller.Admin, ""},
		{"bad header wins", "GET", "/api/v1/rules", with(cookie("viewer"), bearer, "Bearer forged"), 401, 0, "unauthorized"},
		{"bad cookie at the API", "GET", "/api/v1/rules", cookie("forged"), 401, 0, "unauthorized"},
		{"bad cookie at the page", "GET", "/", cookie("forged"), 200, caller.Nobody, ""},
		{"old cookie at login", "GET", "/login", cookie("old"), 200, caller.Nobody, ""},
		{"locked cookie at login", "GET", "/login", cookie("locked"), 200, caller.Nobody, ""},
		{"locked cookie at the page", "GET", "/", cookie("locked"), 429, 0, ""},
	} {
		seen = caller.Caller{Role: 99}
		w := r.ask(c.method, c.path, "", c.headers...)
		if w.Code != c.status {
			t.Errorf("%s: status %d, want %d: %s", c.name, w.Code, c.status, w.Body)
			continue
		}
		switch {
		case c.status == 200 && (seen.Role != c.role || (c.role != caller.Nobody && (seen.Subject != "s-"+c.role.String() || seen.Expires.IsZero())) ||
			seen.Remote.String() != "192.0.2.1" || seen.RequestID != w.Header().Get("X-Request-Id")):
			t.Errorf("%s: the handler saw %+v", c.name, seen)
		case c.status != 200 && seen.Role != 99:
			t.Errorf("%s: the handler was called", c.name)
		case c.status != 200 && strings.HasPrefix(c.path, "/api/"):
			wantProblem(t, c.name, w, c.status, c.reason)
		case c.status != 200 && !strings.HasPrefix(w.Header().Get("Content-Type"), "text/plain"):
			t.Errorf("%s: content type %q", c.name, w.Header().Get("Content-Type"))
		}
		challenge := w.Header().Get("Www-Authenticate")
		if (c.status == 401) != strings.HasPrefix(challenge, "Bearer realm=") {
			t.Errorf("%s: challenge %q", c.name, challenge)
		}
		if (c.status == 429 || c.status == 503) && w.Header().Get("Retry-After") == "" {
			t.Errorf("%s: no Retry-After", c.name)
		}
		bad := strings.Contains(strings.Join(c.headers, " "), auth.CookieName+"=forged") || strings.Contains(strings.Join(c.headers, " "), "=old")
		if cleared := strings.Contains(w.Header().Get("Set-Cookie"), "Max-Age=0"); cleared != bad {
			t.Errorf("%s: cookie cleared: %v, want %v", c.name, cleared, bad)
		}
	}
	if got := r.ask("GET", "/api/v1/x", "", bearer, "Bearer locked").Header().Get("Retry-After"); got != "30" {
		t.Errorf("Retry-After %s, want 30", got)
	}
	if n := r.auth.failures(); n != 8 { // forged ones and those that are no one token
		t.Errorf("%d failures were counted, want 8", n)
	}
	for reason, want := range map[string]float64{"unauthorized": 10, "cross_origin": 3, "no_keys": 1, "locked": 3} {
		if n := metric(t, r.tel.Registry, "tidegate_gateway_refused_total", map[string]string{"reason": reason}); n != want {
			t.Errorf("%v refused as %s, want %v", n, reason, want)
		}
	}
}

func TestRequire(t *testing.T) {
	h := Require(caller.Operator, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }))
	r := newChain(t, nil, h.ServeHTTP)
	for token, want := range map[string]int{"": 200, "viewer": 403, "operator": 204, "admin": 204} {
		headers := []string{bearer, "Bearer " + token}
		path := "/api/v1/x"
		if token == "" {
			headers, path, want = nil, "/api/v1/openapi.json", 401 // it lets nobody in, Require does not
		}
		w := r.ask("GET", path, "", headers...)
		if w.Code != want {
			t.Errorf("%q: %d, want %d", token, w.Code, want)
		}
		if want >= 400 {
			wantProblem(t, token, w, want, "")
		}
	}
}

func TestHeaders(t *testing.T) {
	r := newChain(t, nil, nil)
	for path, policy := range map[string]string{"/api/v1/openapi.json": "default-src 'none'; frame-ancestors 'none'", "/login": "script-src 'self'"} {
		h := r.ask("GET", path, "").Header()
		for name, want := range map[string]string{
			"Strict-Transport-Security": "max-age=", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
			"Permissions-Policy": "camera=()", "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
			"X-Frame-Options": "DENY", "Content-Security-Policy": policy,
		} {
			if _, shown := h["Permissions-Policy"]; !shown && path != "/login" && strings.Contains("Permissions-Policy Cross-Origin-Opener-Policy X-Frame-Options", name) {
				continue // nothing that a program reads is shown in a window
			}
			if got := h.Get(name); !strings.Contains(got, want) {
				t.Errorf("%s: %s is %q", path, name, got)
			}
		}
		if strings.Contains(h.Get("Content-Security-Policy"), "unsafe") {
			t.Errorf("%s: policy %q", path, h.Get("Content-Security-Policy"))
		}
		if got := h.Get("Cache-Control"); (got == "no-store") != strings.HasPrefix(path, "/api/") {
			t.Errorf("%s: Cache-Control %q", path, got)
		}
	}
}

func TestRequestID(t *testing.T) {
	r := newChain(t, nil, nil)
	for in, keep := range map[string]bool{
		"abc-1.2_X": true, strings.Repeat("a", 64): true, "": false, strings.Repeat("a", 65): false, "a b": false, "a\"b": false, "é": false,
	} {
		got := r.ask("GET", "/login", "", "X-Request-Id", in).Header().Get("X-Request-Id")
		if (got == in) != keep || len(got) == 0 {
			t.Errorf("%q: %q", in, got)
		}
	}
	a, b := r.ask("GET", "/login", "").Header().Get("X-Request-Id"), r.ask("GET", "/login", "").Header().Get("X-Request-Id")
	if a == b || len(a) != 24 {
		t.Errorf("made ids %q and %q", a, b)
	}
	two := r.ask("GET", "/login", "", "X-Request-Id", "a", "X-Request-Id", "b").Header().Get("X-Request-Id")
	if two == "a" || two == "b" {
		t.Errorf("one of two ids was taken: %q", two)
	}
}

// badTargets are paths and queries that no handler may see.
var badTargets = map[string]int{
	"/a/../b": 400, "/..": 400, "/a/.": 400, "/a/./b": 400, "/a/%2e%2e/b": 400, "/%2E%2E/etc/passwd": 400, "//evil.example/x": 400,
	"/a//b": 400, "/a%2fb": 400, "/a%2Fb": 400, "/a%5cb": 400, "/a%5C..%5Cb": 400, `/a\b`: 400, "/a%00b": 400, "/a%0d%0aX:y": 400, "/a%7f": 400,
	"/a%ff": 400, "/a%c0%af": 400, "/a%ed%a0%80": 400, "/a%c2%85": 400,
	"/x?a=%ff": 400, "/x?a=%00": 400, "/x?%00=b": 400, "/x?a=%zz": 400, "/x?a=%": 400, "/x?a=1;b=2": 400, "/x?a=%0a": 400, "/x?a=%c2%85": 400,
	"/" + strings.Repeat("a", maxURL): 414, "/x?" + strings.Repeat("a", maxURL): 414,
}

func TestTargets(t *testing.T) {
	called := 0
	r := serve(t, nil, func(w http.ResponseWriter, _ *http.Request) { called++ })
	for target, want := range badTargets {
		for prefix, kind := range map[string]string{"/api": "application/problem+json", "": "text/plain; charset=utf-8"} {
			answer, body := r.exchangeRaw(t, "GET "+prefix+target+" HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
			if prefix == "/api" && len(target) > maxURL-4 {
				want = 414
			}
			// Some cannot even be parsed: the library's own 400.
			if answer.StatusCode != want || answer.Header.Get("Location") != "" || (answer.Header.Get("Content-Type") != kind && !strings.HasPrefix(body, "400 Bad Request")) {
				t.Errorf("%.40s%.40s: %d %q %q", prefix, target, answer.StatusCode, answer.Header.Get("Content-Type"), body)
			}
		}
	}
	if called != 0 {
		t.Errorf("the handler was called %d times", called)
	}
	for _, target := range []string{"/", "/login", "/a/b/", "/attacks/a..b", "/x.y", "/caf%c3%a9", "/a%20b", "/x?a=%2F..%2F&b=%E2%82%AC&c=a+b", "/x?", "/%25"} {
		answer, _ := r.exchangeRaw(t, "GET "+target+" HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
		if answer.StatusCode != 200 {
			t.Errorf("%s: %d", target, answer.StatusCode)
		}
	}
}

func TestMethodsAndBodies(t *testing.T) {
	var got string
	r := newChain(t, func(c *Config) { c.MaxBody = 2048 }, func(_ http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		got = string(b)
	})
	op := []string{bearer, "Bearer operator"}
	js := append([]string{"Content-Type", "application/json"}, op...)
	kind := func(k string) []string { return append([]string{"Content-Type", k}, op...) }
	for _, c := range []struct {
		name, method, path, body string
		headers                  []string
		status                   int
		reason                   string
	}{
		{"JSON", "POST", "/api/v1/x", `{"a":1}`, js, 200, ""},
		{"JSON with charset", "PUT", "/api/v1/x", `{"a":1}`, kind(`Application/JSON; charset="utf-8"`), 200, ""},
		{"no body", "POST", "/api/v1/x", "", op, 200, ""},
		{"largest", "POST", "/api/v1/x", strings.Repeat(" ", 2048), js, 200, ""},
		{"too large", "POST", "/api/v1/x", strings.Repeat(" ", 2049), js, 413, "body_too_large"},
		{"text", "POST", "/api/v1/x", "a", kind("text/plain"), 415, "content_type"},
		{"no type", "POST", "/api/v1/x", "a", op, 415, "content_type"},
		{"two types", "POST", "/api/v1/x", "a", append(kind("application/json"), "Content-Type", "text/plain"), 415, "content_type"},
		{"latin", "POST", "/api/v1/x", "a", kind("application/json; charset=latin1"), 415, "content_type"},
		{"compressed", "POST", "/api/v1/x", "a", append([]string{"Content-Encoding", "gzip"}, js...), 415, "content_type"},
		{"form at the API", "POST", "/api/v1/x", "a=b", kind("application/x-www-form-urlencoded"), 415, "content_type"},
		{"form at the page", "POST", "/ui/rules", "a=b", kind("application/x-www-form-urlencoded"), 200, ""},
		{"invalid UTF-8", "POST", "/api/v1/x", "{\"a\":\"\xff\"}", js, 400, "body"},
		{"GET with a body", "GET", "/api/v1/x", "{}", js, 400, "body"},
		{"TRACE", "TRACE", "/api/v1/x", "", op, 405, ""},
		{"made-up method", "BREW", "/api/v1/x", "", op, 405, ""},
		{"CONNECT", "CONNECT", "/api/v1/x", "", op, 405, ""},
	} {
		got = ""
		w := r.ask(c.method, c.path, c.body, c.headers...)
		if w.Code != c.status || (c.status == 200 && got != c.body) {
			t.Errorf("%s: %d, want %d; body %.40q: %s", c.name, w.Code, c.status, got, w.Body)
		} else if c.status != 200 {
			wantProblem(t, c.name, w, c.status, c.reason)
		}
	}
	wantProblem(t, "headers", r.ask("GET", "/api/v1/x", "", append(op, "X-Long", strings.Repeat("a", maxHeader))...), 431, "")
}

func TestRateLimit(t *testing.T) {
	r := newChain(t, func(c *Config) { c.ViewerReads, c.OperatorReads, c.OperatorWrites, c.NobodyRequests = 1, 50, 2, 1 }, nil)
	ask := func(method, token string) (int, http.Header) {
		if token == "" {
			w := r.ask(method, "/login", "")
			return w.Code, w.Header()
		}
		w := r.ask(method, "/api/v1/x", "", bearer, "Bearer "+token)
		return w.Code, w.Header()
	}
	code, h := ask("GET", "viewer")
	for name, want := range map[string]string{
		"RateLimit-Policy": `"reads";q=2;w=2`, "RateLimit": `"reads";r=1;t=1`,
		"X-RateLimit-Limit": "2", "X-RateLimit-Remaining": "1", "X-RateLimit-Reset": "1", "Retry-After": "",
	} {
		if got := h.Get(name); got != want || code != 200 {
			t.Errorf("%d: %s is %q, want %q", code, name, got, want)
		}
	}
	if code, _ = ask("GET", "viewer"); code != 200 {
		t.Errorf("the second of two: %d", code)
	}
	w := r.ask("GET", "/api/v1/x", "", bearer, "Bearer viewer")
	wantProblem(t, "third", w, 429, "rate_limited")
	if got := w.Header().Get("Retry-After"); got != "1" || w.Header().Get("X-RateLimit-Remaining") != "0" {
		t.Errorf("Retry-After %q, remaining %q", got, w.Header().Get("X-RateLimit-Remaining"))
	}
	// Other tokens, other kinds of request and nobody have budgets of their own.
	for range 4 {
		if code, h = ask("POST", "operator"); code != 200 || !strings.HasPrefix(h.Get("RateLimit"), `"writes"`) {
			t.Errorf("a write: %d, %q", code, h.Get("RateLimit"))
		}
	}
	if code, _ = ask("POST", "operator"); code != 429 {
		t.Errorf("the fifth write of four: %d", code)
	}
	if code, _ = ask("POST", "admin"); code != 200 {
		t.Errorf("another token's write: %d", code)
	}
	if code, _ = ask("GET", "operator"); code != 200 {
		t.Errorf("a read after the writes: %d", code)
	}
	var last int
	for range 3 {
		last, _ = ask("GET", "")
	}
	if last != 429 {
		t.Errorf("the third of nobody: %d", last)
	}
	if n := metric(t, r.tel.Registry, "tidegate_gateway_refused_total", map[string]string{"reason": "rate_limited"}); n != 3 {
		t.Errorf("%v refusals counted, want 3", n)
	}
}

func TestBucketsAreBounded(t *testing.T) {
	l := newLimits(DefaultConfig())
	for i := range 2 * maxBudgets {
		k := bucketKey{budget: l.nobody}
		copy(k.who[:], strconv.Itoa(i))
		l.take(k, timeZero)
	}
	if n := len(l.buckets); n > maxBudgets {
		t.Errorf("%d buckets, the bound is %d", n, maxBudgets)
	}
}

func TestPanic(t *testing.T) {
	r := serve(t, nil, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/api/v1/early":
			w.Header().Set("Etag", `"x"`)
			w.Header().Set("Set-Cookie", "a=b")
			panic("secret cause")
		case "/api/v1/held":
			_, _ = io.WriteString(w, "half")
			panic("secret cause")
		case "/api/v1/late":
			w.Header().Set("Content-Type", "application/octet-stream")
			_, _ = io.WriteString(w, "half")
			_ = http.NewResponseController(w).Flush()
			panic("secret cause")
		case "/api/v1/abort":
			panic(http.ErrAbortHandler)
		}
	})
	for _, h2 := range []bool{false, true} {
		client := r.client(t, h2)
		get := func(path string) (reply, []byte, error) {
			req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "https://"+r.addr+path, http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Accept-Encoding", "gzip")
			req.Header.Set(bearer, "Bearer viewer")
			answer, err := client.Do(req)
			if err != nil {
				return reply{}, nil, err
			}
			defer answer.Body.Close()
			body, err := io.ReadAll(answer.Body)
			return reply{answer.StatusCode, answer.Header, answer.Close}, body, err
		}
		for _, path := range []string{"/api/v1/early", "/api/v1/held"} {
			answer, body, err := get(path)
			if err != nil {
				t.Fatal(err)
			}
			p := problem(t, answer.Header.Get("Content-Type"), body)
			if answer.StatusCode != 500 || p.RequestID == "" || bytes.Contains(body, []byte("secret")) || bytes.Contains(body, []byte("half")) ||
				answer.Header.Get("Etag") != "" || answer.Header.Get("Set-Cookie") != "" {
				t.Errorf("h2 %v, %s: %d %s %v", h2, path, answer.StatusCode, body, answer.Header)
			}
		}
		for _, path := range []string{"/api/v1/late", "/api/v1/abort"} {
			if _, body, err := get(path); err == nil {
				t.Errorf("h2 %v, %s: half an answer looks whole: %q", h2, path, body)
			}
		}
	}
	if n := metric(t, r.tel.Registry, "tidegate_errors_total", map[string]string{"op": "http_panic"}); n != 6 {
		t.Errorf("%v panics counted, want 6", n)
	}
	if n := metric(t, r.tel.Registry, "tidegate_gateway_requests_seconds", map[string]string{"code": "500"}); n != 4 {
		t.Errorf("%v requests with 500, want 4", n)
	}
}

func TestRouteInMetrics(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/rules/{id}", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /api/v1/named", func(_ http.ResponseWriter, r *http.Request) { SetRoute(r.Context(), "/api/v1/{name}") })
	r := newChain(t, nil, mux.ServeHTTP)
	for i := range 50 {
		r.ask("GET", "/api/v1/rules/"+strconv.Itoa(i), "", bearer, "Bearer viewer")
	}
	r.ask("GET", "/api/v1/named", "", bearer, "Bearer viewer")
	r.ask("GET", "/api/v1/unknown", "", bearer, "Bearer viewer")
	r.ask("GET", "/api/v1/unknown", "")
	for _, c := range []struct {
		route, code string
		want        float64
	}{{"GET /api/v1/rules/{id}", "200", 50}, {"/api/v1/{name}", "200", 1}, {"none", "404", 1}, {"refused", "401", 1}} {
		if n := metric(t, r.tel.Registry, "tidegate_gateway_requests_seconds", map[string]string{"route": c.route, "code": c.code}); n != c.want {
			t.Errorf("%s %s: %v requests, want %v", c.route, c.code, n, c.want)
		}
	}
}

// A client's trace goes on, if it may come in.
func TestTrace(t *testing.T) {
	var id string
	r := newChain(t, nil, func(_ http.ResponseWriter, r *http.Request) { id = telemetry.TraceID(r.Context()) })
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	r.ask("GET", "/api/v1/x", "", bearer, "Bearer viewer", "Traceparent", parent)
	if id != "0af7651916cd43dd8448eb211c80319c" {
		t.Errorf("trace %q", id)
	}
	r.ask("GET", "/login", "", "Traceparent", parent)
	if id == "0af7651916cd43dd8448eb211c80319c" || id == "" {
		t.Errorf("trace of nobody %q", id)
	}
}
