// Package rest is /api/v1: routes, their OpenAPI document, and what HTTP asks of both.
//
// A route is declared once, as a huma operation with Go types for its parameters and bodies. Validation, encoding, the
// role that it needs and the document all come from that declaration.
package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/caller"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/edge"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/ops"
)

// Prefix is the path of everything here.
const Prefix = "/api/v1"

// Operations is what users can ask and change; *ops.Operations has it. Errors are *api.Problem.
type Operations interface {
	Flows(ctx context.Context, q ops.FlowQuery) (api.Page[api.Flow], error)
	Top(ctx context.Context, q ops.TopQuery) (api.Top, error)
	TimeSeries(ctx context.Context, q ops.SeriesQuery) (api.TimeSeries, error)
	Attacks(ctx context.Context, q ops.AttackQuery) (api.Page[api.Attack], error)
	Attack(ctx context.Context, id string) (api.AttackDetail, error)
	AttackPcap(ctx context.Context, id string) (name string, capture []byte, err error)
	Verdicts(ctx context.Context, q ops.VerdictQuery) (api.Page[api.Verdict], error)
	Verdict(ctx context.Context, id string) (api.Verdict, error)
	Rules(ctx context.Context) ([]api.Rule, error)
	Rule(ctx context.Context, id string) (api.Rule, error)
	Explain(ctx context.Context, id string) (api.Explanation, error)
	Groups(ctx context.Context) ([]api.Group, error)
	Sensors(ctx context.Context) ([]api.Sensor, []api.Missing)
	Nodes(ctx context.Context) ([]api.Node, error)
	Ledger(ctx context.Context) (api.Ledger, error)
	Status(ctx context.Context) api.Status
	Audit(ctx context.Context, q ops.AuditQuery) (api.Page[api.AuditEntry], error)
	PanicState(ctx context.Context) (api.Panic, error)
	DryRun(ctx context.Context, in api.RuleInput) (api.DryRun, error)
	AddRule(ctx context.Context, in api.RuleInput) (api.Rule, error)
	ReplaceRule(ctx context.Context, id, revision string, in api.RuleInput) (api.Rule, error)
	RevokeRule(ctx context.Context, id, revision string) error
	Lists(ctx context.Context) ([]api.List, error)
	List(ctx context.Context, name string) (api.List, error)
	PutList(ctx context.Context, name string, in api.ListInput) (api.List, error)
	PutListEntries(ctx context.Context, name string, text []byte) (api.List, error)
	DeleteList(ctx context.Context, name string) error
	Panic(ctx context.Context, on bool, reason string) (api.PanicResult, error)
	Capture(ctx context.Context, in api.CaptureInput, write func(pcap []byte) error) (api.CaptureSummary, error)
	Once(ctx context.Context, key string, fingerprint []byte, do func(context.Context) ops.Stored) (s ops.Stored, replayed bool, err error)
}

// Deps is what the API works with.
type Deps struct {
	Operations Operations
	// Snapshot is the newest api.Live as JSON, with its entity tag. The bytes are not changed.
	Snapshot func() (body []byte, etag string)
	Stream   http.Handler // of /api/v1/stream
	Version  string       // in the document
}

// API is the handler of everything under /api/. It may be used by any number of goroutines.
type API struct {
	d        Deps
	mux      *http.ServeMux
	huma     huma.API
	document []byte
	changes  generation
}

// New declares the routes; it fails only when a declaration is broken.
func New(d Deps) (*API, error) {
	a := &API{d: d, mux: http.NewServeMux()}
	a.huma = newHuma(a, d.Version)
	a.reads()
	a.state()
	a.rules()
	a.lists()
	a.emergency()
	a.capture()
	a.stream()
	self := huma.Operation{
		OperationID: "get-openapi", Method: http.MethodGet, Path: openAPIPath, Summary: "This document; it needs no token", Tags: []string{"state"},
		Responses: map[string]*huma.Response{"200": {Description: "OK", Content: map[string]*huma.MediaType{"application/json": {Schema: &huma.Schema{Type: huma.TypeObject}}}}},
	}
	a.huma.OpenAPI().AddOperation(&self)
	describe(a.huma.OpenAPI())
	var err error
	if a.document, err = json.Marshal(a.huma.OpenAPI()); err != nil {
		return nil, fmt.Errorf("encode the OpenAPI document: %w", err)
	}
	a.mux.HandleFunc("GET "+openAPIPath, a.openAPI)
	return a, nil
}

// Document is the OpenAPI document, without serving anything.
func Document(version string) ([]byte, error) {
	a, err := New(Deps{Version: version})
	if err != nil {
		return nil, err
	}
	return a.document, nil
}

const openAPIPath = Prefix + "/openapi.json"

func (a *API) openAPI(w http.ResponseWriter, r *http.Request) {
	edge.SetRoute(r.Context(), "GET "+openAPIPath)
	if p := (&route{}).check(r.URL); p != nil {
		caller.WriteProblem(w, r, *p)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	respond(w, r, http.StatusOK, a.document)
}

// ServeHTTP answers with a problem where no route is.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, pattern := a.mux.Handler(r); pattern != "" {
		a.mux.ServeHTTP(w, r)
		return
	}
	if allow := a.methods(r); allow != "" {
		w.Header().Set("Allow", allow)
		caller.WriteProblem(w, r, api.Problem{Status: http.StatusMethodNotAllowed, Detail: "this path takes " + allow})
		return
	}
	caller.WriteProblem(w, r, api.Problem{Status: http.StatusNotFound, Detail: "there is nothing at this path; " + openAPIPath + " lists what there is"})
}

// methods are those that the path of a request takes.
func (a *API) methods(r *http.Request) string {
	var out []string
	probe := *r
	for _, m := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete} {
		probe.Method = m
		if _, pattern := a.mux.Handler(&probe); pattern != "" {
			out = append(out, m)
		}
	}
	return strings.Join(out, ", ")
}

// respond writes a whole answer. Those to GET that are good carry an entity tag, and are empty when the client has them.
func respond(w http.ResponseWriter, r *http.Request, status int, body []byte) {
	h := w.Header()
	if status == http.StatusOK && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		tag := h.Get("Etag")
		if tag == "" {
			tag = entityTag(body)
			h.Set("Etag", tag)
		}
		if h.Get("Cache-Control") == "" || h.Get("Cache-Control") == "no-store" {
			h.Set("Cache-Control", "private, no-cache")
		}
		if matches(r.Header.Get("If-None-Match"), tag) {
			h.Del("Content-Type")
			w.WriteHeader(http.StatusNotModified)
			return
		}
	}
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client may be gone
}

// recorder takes in an answer.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (r *recorder) Header() http.Header { return r.header }

// WriteHeader implements http.ResponseWriter.
func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
}

// Write implements http.ResponseWriter.
func (r *recorder) Write(b []byte) (int, error) {
	r.WriteHeader(http.StatusOK)
	return r.body.Write(b)
}
