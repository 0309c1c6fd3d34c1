package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/caller"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/edge"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/ops"
)

// adapter puts huma's operations on the API's mux.
type adapter API

// ServeHTTP implements huma.Adapter.
func (a *adapter) ServeHTTP(w http.ResponseWriter, r *http.Request) { (*API)(a).ServeHTTP(w, r) }

// Handle implements huma.Adapter.
func (a *adapter) Handle(op *huma.Operation, handler func(huma.Context)) {
	role, _ := op.Metadata[metaRole].(caller.Role)
	r := &route{api: (*API)(a), pattern: op.Method + " " + op.Path, query: map[string]bool{}}
	for _, p := range op.Parameters {
		if p.In == "query" {
			r.query[p.Name] = true
		}
	}
	r.serve = func(w http.ResponseWriter, req *http.Request) { handler(humago.NewContext(op, req, w)) }
	r.hot = op.Metadata[metaHot] != nil
	r.idempotent = op.Metadata[metaIdempotent] != nil
	r.streams = op.Metadata[metaStreams] != nil
	a.mux.Handle(r.pattern, edge.Require(role, r))
}

// route is one operation.
type route struct {
	api        *API
	pattern    string
	query      map[string]bool // its parameters
	hot        bool            // the answer is kept for a moment
	idempotent bool            // it may be sent again with the same Idempotency-Key
	streams    bool            // the answer comes bit by bit
	kept       atomic.Pointer[kept]
	serve      http.HandlerFunc
}

// kept is an answer that serves all who ask at about the same time.
type kept struct {
	until      time.Time
	generation uint64
	body       []byte
	tag        string
	kind       []string
}

// keepFor is below what users notice; the state itself is asked for four times a second at most.
const keepFor = 100 * time.Millisecond

// generation counts the changes that went through this API: who changed something sees it at once.
type generation struct{ n atomic.Uint64 }

// ServeHTTP implements http.Handler.
func (r *route) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	edge.SetRoute(req.Context(), r.pattern)
	if req.URL.RawQuery != "" || len(r.query) == 0 {
		if p := r.check(req.URL); p != nil {
			caller.WriteProblem(w, req, *p)
			return
		}
	}
	if p := single(req.Header); p != nil {
		caller.WriteProblem(w, req, *p)
		return
	}
	if r.hot && req.URL.RawQuery == "" {
		r.serveKept(w, req)
		return
	}
	if key := req.Header.Values("Idempotency-Key"); r.idempotent && len(key) > 0 {
		r.once(w, req, key)
		return
	}
	if r.streams {
		r.serve(w, req)
		return
	}
	rec := r.record(req)
	rec.write(w, req)
}

// record runs the operation.
func (r *route) record(req *http.Request) *recorder {
	rec := &recorder{header: http.Header{}}
	r.serve(rec, req)
	if rec.status == 0 {
		rec.status = http.StatusOK
	}
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		r.api.changes.n.Add(1)
	}
	return rec
}

// write gives the answer to the client.
func (r *recorder) write(w http.ResponseWriter, req *http.Request) {
	h := w.Header()
	for name, values := range r.header {
		h[name] = values
	}
	respond(w, req, r.status, r.body.Bytes())
}

func (r *route) serveKept(w http.ResponseWriter, req *http.Request) {
	k := r.kept.Load()
	now, generation := time.Now(), r.api.changes.n.Load()
	if k == nil || now.After(k.until) || k.generation != generation {
		rec := r.record(req)
		if rec.status != http.StatusOK {
			rec.write(w, req)
			return
		}
		body := rec.body.Bytes()
		k = &kept{until: now.Add(keepFor), generation: generation, body: body, tag: rec.header.Get("Etag"), kind: rec.header["Content-Type"]}
		if k.tag == "" {
			k.tag = entityTag(body)
		}
		r.kept.Store(k)
	}
	h := w.Header()
	h["Content-Type"] = k.kind
	h["Etag"] = []string{k.tag}
	respond(w, req, http.StatusOK, k.body)
}

// check refuses query parameters that the operation does not know, that come twice or that are empty: a mistyped
// filter must not widen the answer.
func (r *route) check(u *url.URL) *api.Problem {
	if u.RawQuery == "" {
		return nil
	}
	values, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return &api.Problem{Status: http.StatusBadRequest, Reason: "bad_query", Detail: "the query is not well encoded"}
	}
	p := &api.Problem{Status: http.StatusUnprocessableEntity, Detail: "the query is not as the document says"}
	for name, v := range values {
		text := ""
		switch {
		case !r.query[name]:
			text = "there is no such parameter here"
		case len(v) > 1:
			text = "the parameter comes more than once"
		case v[0] == "":
			text = "the parameter is empty: leave it out"
		default:
			continue
		}
		if len(p.Errors) < maxErrors {
			p.Errors = append(p.Errors, api.ProblemDetail{Location: "query." + text64(name), Message: text})
		}
	}
	if len(p.Errors) == 0 {
		return nil
	}
	return p
}

// text64 is a name that a request brought, bounded.
func text64(s string) string {
	if len(s) > 64 {
		s = s[:64] + "…"
	}
	return strings.ToValidUTF8(s, "")
}

const maxKey = 255

// once answers a request that was made before in the way it was answered then.
func (r *route) once(w http.ResponseWriter, req *http.Request, keys []string) {
	key := keys[0]
	if len(keys) > 1 || key == "" || len(key) > maxKey || strings.ContainsFunc(key, func(c rune) bool { return c <= ' ' || c > '~' }) {
		caller.WriteProblem(w, req, api.Problem{
			Status: http.StatusBadRequest, Detail: "an Idempotency-Key is one value of 1 to 255 visible ASCII characters",
			Errors: []api.ProblemDetail{{Location: "header.Idempotency-Key", Message: "not valid"}},
		})
		return
	}
	body, err := takeBody(req)
	if err != nil {
		caller.WriteProblem(w, req, api.Problem{Status: http.StatusBadRequest, Detail: "the body is not whole"})
		return
	}
	fingerprint := []byte(req.Method + " " + req.URL.Path + "\n" + req.Header.Get("If-Match") + "\n")
	s, replayed, err := r.api.d.Operations.Once(req.Context(), key, append(fingerprint, body...), func(ctx context.Context) ops.Stored {
		rec := r.record(req.WithContext(ctx))
		s := ops.Stored{Status: rec.status, Header: map[string]string{}, Body: rec.body.Bytes()}
		for name := range rec.header {
			s.Header[name] = rec.header.Get(name)
		}
		return s
	})
	if err != nil {
		writeFailure(w, req, err)
		return
	}
	for name, v := range s.Header {
		w.Header().Set(name, v)
	}
	if replayed {
		w.Header().Set("Idempotency-Replayed", "true")
		s.Body = reissue(req.Context(), &s)
	}
	respond(w, req, s.Status, s.Body)
}

// reissue is the body of an answer that is given again: a problem names the request that it answers now.
func reissue(ctx context.Context, s *ops.Stored) []byte {
	if s.Status < http.StatusBadRequest {
		return s.Body
	}
	var p api.Problem
	if json.Unmarshal(s.Body, &p) != nil {
		return s.Body
	}
	p.RequestID = caller.From(ctx).RequestID
	var b bytes.Buffer
	if marshal(&b, p) != nil {
		return s.Body
	}
	return b.Bytes()
}

// single refuses headers that come twice: each names one thing that the request depends on.
func single(h http.Header) *api.Problem {
	for _, name := range [...]string{"If-Match", "Idempotency-Key", "Last-Event-Id"} {
		if len(h[name]) > 1 {
			return &api.Problem{Status: http.StatusBadRequest, Detail: "the header " + name + " comes more than once",
				Errors: []api.ProblemDetail{{Location: "header." + name, Message: "give it once"}}}
		}
	}
	return nil
}

// entityTag is a strong tag of an answer's bytes.
func entityTag(body []byte) string { return `"` + strconv.FormatUint(xxhash.Sum64(body), 36) + `"` }

// matches is the weak comparison of If-None-Match (RFC 9110, section 13.1.2).
func matches(header, tag string) bool {
	if header == "" {
		return false
	}
	for _, t := range strings.Split(header, ",") {
		t = strings.TrimSpace(t)
		if t == "*" || strings.TrimPrefix(t, "W/") == tag {
			return true
		}
	}
	return false
}
