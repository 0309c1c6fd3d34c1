package rest

import (
	"errors"
	"net/http"
	"net/url"
	"reflect"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/caller"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/edge"
)

// stream documents the event stream, which is no answer that huma could encode.
func (a *API) stream() {
	op := operation(caller.Viewer, http.MethodGet, "/stream", "stream", "Attacks, verdicts, enforcement, windows and the live state as they happen", "state")
	op.Description = "Server-sent events. The event's name is its type: attack (Attack), verdict (Verdict), enforcement (EnforcementEvent), " +
		"window (WindowSummary), live (Live), gap (StreamGap: events were lost, read the state again), expired (the token's time is over). " +
		"Attack, verdict, enforcement and gap carry an id: a client that comes back with it gets what it missed."
	registry := a.huma.OpenAPI().Components.Schemas
	for _, t := range []reflect.Type{
		reflect.TypeFor[api.Attack](), reflect.TypeFor[api.Verdict](), reflect.TypeFor[api.EnforcementEvent](),
		reflect.TypeFor[api.WindowSummary](), reflect.TypeFor[api.StreamGap](),
	} {
		registry.Schema(t, true, t.Name())
	}
	text, whole := &huma.Schema{Type: huma.TypeString}, &huma.Schema{Type: huma.TypeInteger}
	limit := 200
	list := &huma.Schema{Type: huma.TypeString, MaxLength: &limit, Pattern: `^(attack|verdict|enforcement|window|live|gap)(,(attack|verdict|enforcement|window|live|gap))*$`}
	id := &huma.Schema{Type: huma.TypeString, Pattern: `^[0-9]{1,18}$`}
	low, high := 1.0, 60.0
	whole.Minimum, whole.Maximum = &low, &high
	for _, s := range []*huma.Schema{whole, list, id} {
		s.PrecomputeMessages() // for validate
	}
	op.Parameters = []*huma.Param{
		{Name: "types", In: "query", Schema: list, Description: "event types, separated by commas; absent: all"},
		{Name: "last_event_id", In: "query", Schema: id, Description: "go on after this event"},
		{Name: "heartbeat", In: "query", Schema: whole, Description: "seconds between comments that keep the connection alive; 15 if absent"},
		{Name: "Last-Event-ID", In: "header", Schema: id, Description: "as browsers send it; wins over last_event_id"},
	}
	op.Responses = map[string]*huma.Response{"200": {Description: "the stream", Content: map[string]*huma.MediaType{"text/event-stream": {Schema: text}}}}
	a.huma.OpenAPI().AddOperation(&op)
	r := &route{api: a, pattern: op.Method + " " + op.Path, query: map[string]bool{"types": true, "last_event_id": true, "heartbeat": true}}
	a.mux.Handle(r.pattern, edge.Require(caller.Viewer, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		edge.SetRoute(req.Context(), r.pattern)
		p := r.check(req.URL)
		if p == nil {
			p = single(req.Header)
		}
		if p == nil {
			p = validate(registry, op.Parameters, req)
		}
		if p != nil {
			caller.WriteProblem(w, req, *p)
			return
		}
		if req.Method == http.MethodHead {
			w.Header().Set("Content-Type", "text/event-stream")
			w.WriteHeader(http.StatusOK)
			return
		}
		a.d.Stream.ServeHTTP(w, req)
	})))
}

// validate holds the parameters of a request against the document, as huma does it for the other routes.
func validate(registry huma.Registry, parameters []*huma.Param, r *http.Request) *api.Problem {
	query, _ := url.ParseQuery(r.URL.RawQuery) // checked before
	path, result := huma.NewPathBuffer(nil, 0), &huma.ValidateResult{}
	for _, p := range parameters {
		text := query.Get(p.Name)
		if p.In == "header" {
			text = r.Header.Get(p.Name)
		}
		if text == "" {
			continue
		}
		path.Reset()
		path.Push(p.In)
		path.Push(p.Name)
		var v any = text
		if p.Schema.Type == huma.TypeInteger {
			n, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				result.Add(path, text, "invalid integer")
				continue
			}
			v = n
		}
		huma.Validate(registry, p.Schema, path, huma.ModeWriteToServer, v, result)
	}
	if len(result.Errors) == 0 {
		return nil
	}
	var out *Problem
	if !errors.As(huma.NewError(http.StatusUnprocessableEntity, "validation failed", result.Errors...), &out) {
		return &api.Problem{Status: http.StatusUnprocessableEntity}
	}
	return (*api.Problem)(out)
}
