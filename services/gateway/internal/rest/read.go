package rest

import (
	"context"
	"net/http"
	"net/url"
	"reflect"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/caller"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/ops"
)

// located remembers the address of a request, for the link to the next page.
type located struct{ url url.URL }

// Located is located where huma finds it.
type Located struct{ at located }

// Resolve implements huma.Resolver.
func (l *Located) Resolve(ctx huma.Context) []error {
	l.at.url = ctx.URL()
	return nil
}

type flowsInput struct {
	Located
	Traffic
	Paging
}

// Resolve implements huma.Resolver: Located's, which is nearer, would hide that of Times.
func (f *flowsInput) Resolve(ctx huma.Context) []error {
	return append(f.Located.Resolve(ctx), f.Times.Resolve(ctx)...)
}

type topInput struct {
	Traffic
	By    string `query:"by" enum:"src,dst,app,host,port" default:"app" doc:"what is ranked"`
	Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"10" doc:"rows"`
}

type seriesInput struct {
	Traffic
	Step  Span   `query:"step" doc:"length of a bucket; chosen if absent"`
	By    string `query:"by" enum:"app" doc:"one series for each of the heaviest applications"`
	Limit int    `query:"limit" minimum:"1" maximum:"100" default:"10" doc:"series"`
}

// Resolve implements huma.Resolver.
func (s *seriesInput) Resolve(ctx huma.Context) []error {
	errs := s.Times.Resolve(ctx)
	if s.From.IsZero() {
		errs = append(errs, &huma.ErrorDetail{Location: "query.from", Message: "a series needs its first moment"})
	}
	return errs
}

type attacksInput struct {
	Located
	Times
	Paging
	Type   string `query:"type" maxLength:"64" pattern:"^[a-z0-9_]+$" doc:"attack type" example:"syn_flood"`
	Active bool   `query:"active" doc:"those that go on"`
}

type verdictsInput struct {
	Located
	Times
	Paging
	AttackID string `query:"attack_id" maxLength:"128" doc:"of one attack"`
}

type auditInput struct {
	Located
	Times
	Paging
	Actor  string `query:"actor" maxLength:"256" doc:"subject of the token"`
	Action string `query:"action" maxLength:"64" doc:"action" example:"rule.add"`
	Target string `query:"target" maxLength:"128" doc:"id of what was changed"`
}

// captureOutput is a file.
type captureOutput struct {
	ContentType string `header:"Content-Type"`
	Disposition string `header:"Content-Disposition"`
	Body        []byte
}

// reads are the routes of what is stored.
func (a *API) reads() {
	o := a.d.Operations
	get := func(path, id, summary, tag string) huma.Operation {
		return operation(caller.Viewer, http.MethodGet, path, id, summary, tag)
	}
	huma.Register(a.huma, get("/flows", "list-flows", "Flows, the newest first", "traffic"), func(ctx context.Context, in *flowsInput) (*Listing[api.Flow], error) {
		page, err := o.Flows(ctx, ops.FlowQuery{FlowFilter: in.filter(), Paging: in.paging()})
		return listing(ctx, &in.at, page, err)
	})
	huma.Register(a.huma, get("/top", "top", "The heaviest addresses, applications, hosts or ports", "traffic"), func(ctx context.Context, in *topInput) (*Output[api.Top], error) {
		v, err := o.Top(ctx, ops.TopQuery{FlowFilter: in.filter(), By: in.By, Limit: in.Limit})
		return output(ctx, v, err)
	})
	huma.Register(a.huma, get("/timeseries", "timeseries", "Traffic over time", "traffic"), func(ctx context.Context, in *seriesInput) (*Output[api.TimeSeries], error) {
		v, err := o.TimeSeries(ctx, ops.SeriesQuery{FlowFilter: in.filter(), Step: in.Step.Duration, By: in.By, Limit: in.Limit})
		return output(ctx, v, err)
	})
	huma.Register(a.huma, get("/attacks", "list-attacks", "Attacks, the newest first", "attacks"), func(ctx context.Context, in *attacksInput) (*Listing[api.Attack], error) {
		page, err := o.Attacks(ctx, ops.AttackQuery{Range: in.span(), Type: in.Type, Active: in.Active, Paging: in.paging()})
		return listing(ctx, &in.at, page, err)
	})
	one := get("/attacks/{id}", "get-attack", "An attack with its timeline and evidence", "attacks")
	one.Errors = []int{http.StatusNotFound}
	huma.Register(a.huma, one, func(ctx context.Context, in *Identified) (*Output[api.AttackDetail], error) {
		v, err := o.Attack(ctx, in.ID)
		return output(ctx, v, err)
	})
	capture := get("/attacks/{id}/pcap", "get-attack-pcap", "Sampled packets of an attack as a capture", "attacks")
	capture.Errors = []int{http.StatusNotFound}
	capture.Responses = map[string]*huma.Response{"200": {
		Description: "the capture", Content: map[string]*huma.MediaType{api.CaptureType: {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}}},
	}}
	huma.Register(a.huma, capture, func(ctx context.Context, in *Identified) (*captureOutput, error) {
		name, b, err := o.AttackPcap(ctx, in.ID)
		if err != nil {
			return nil, fail(ctx, err)
		}
		return &captureOutput{ContentType: api.CaptureType, Disposition: `attachment; filename="` + name + `"`, Body: b}, nil
	})
	huma.Register(a.huma, get("/verdicts", "list-verdicts", "Verdicts with their evidence, the newest first", "attacks"), func(ctx context.Context, in *verdictsInput) (*Listing[api.Verdict], error) {
		page, err := o.Verdicts(ctx, ops.VerdictQuery{Range: in.span(), AttackID: in.AttackID, Paging: in.paging()})
		return listing(ctx, &in.at, page, err)
	})
	verdict := get("/verdicts/{id}", "get-verdict", "A verdict with its explanation and evidence", "attacks")
	verdict.Errors = []int{http.StatusNotFound}
	huma.Register(a.huma, verdict, func(ctx context.Context, in *Identified) (*Output[api.Verdict], error) {
		v, err := o.Verdict(ctx, in.ID)
		return output(ctx, v, err)
	})
	audit := operation(caller.Admin, http.MethodGet, "/audit", "list-audit", "Changes that users asked for, the newest first", "changes")
	huma.Register(a.huma, audit, func(ctx context.Context, in *auditInput) (*Listing[api.AuditEntry], error) {
		page, err := o.Audit(ctx, ops.AuditQuery{Range: in.span(), Actor: in.Actor, Action: in.Action, Target: in.Target, Paging: in.paging()})
		return listing(ctx, &in.at, page, err)
	})
}

type none struct{}

// liveOutput is the hub's own encoding.
type liveOutput struct {
	ContentType string `header:"Content-Type"`
	ETag        string `header:"ETag"`
	Body        []byte
}

// whole is a listing that is never cut into pages.
func whole[T any](ctx context.Context, items []T, err error) (*Output[api.Page[T]], error) {
	if items == nil {
		items = []T{}
	}
	return output(ctx, api.Page[T]{Items: items}, err)
}

// state are the routes of what is now.
func (a *API) state() {
	o := a.d.Operations
	now := func(path, id, summary string) huma.Operation {
		op := operation(caller.Viewer, http.MethodGet, path, id, summary, "state")
		op.Metadata[metaHot] = true
		return op
	}
	huma.Register(a.huma, now("/groups", "list-groups", "Groups of protected prefixes with their thresholds"), func(ctx context.Context, _ *none) (*Output[api.Page[api.Group]], error) {
		v, err := o.Groups(ctx)
		return whole(ctx, v, err)
	})
	huma.Register(a.huma, now("/sensors", "list-sensors", "Ingest instances that answer; status names those that do not"), func(ctx context.Context, _ *none) (*Output[api.Page[api.Sensor]], error) {
		sensors, missing := o.Sensors(ctx)
		if len(sensors) == 0 && len(missing) > 0 {
			return nil, fail(ctx, &api.Problem{Status: http.StatusServiceUnavailable, Title: http.StatusText(http.StatusServiceUnavailable), Service: missing[0].Service, Detail: missing[0].Problem})
		}
		return whole(ctx, sensors, nil)
	})
	huma.Register(a.huma, now("/nodes", "list-nodes", "Service instances that send heartbeats"), func(ctx context.Context, _ *none) (*Output[api.Page[api.Node]], error) {
		v, err := o.Nodes(ctx)
		return whole(ctx, v, err)
	})
	huma.Register(a.huma, now("/ledger", "get-ledger", "What came in at each stage and what became of it"), func(ctx context.Context, _ *none) (*Output[api.Ledger], error) {
		v, err := o.Ledger(ctx)
		return output(ctx, v, err)
	})
	huma.Register(a.huma, now("/status", "get-status", "The state of everything"), func(ctx context.Context, _ *none) (*Output[api.Status], error) {
		return output(ctx, o.Status(ctx), nil)
	})
	live := now("/live", "get-live", "The last second: rates, attacks, talkers")
	live.Responses = map[string]*huma.Response{"200": {
		Description: "OK", Content: map[string]*huma.MediaType{"application/json": {Schema: a.huma.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[api.Live](), true, "Live")}},
	}}
	huma.Register(a.huma, live, func(context.Context, *none) (*liveOutput, error) {
		body, tag := a.d.Snapshot()
		return &liveOutput{ContentType: "application/json", ETag: tag, Body: body}, nil
	})
	huma.Register(a.huma, operation(caller.Viewer, http.MethodGet, "/me", "get-me", "Who the token belongs to", "state"), func(ctx context.Context, _ *none) (*Output[api.Identity], error) {
		who := caller.From(ctx)
		return &Output[api.Identity]{Body: api.Identity{Subject: who.Subject, Role: who.Role.String(), ExpiresNs: api.Nanos(who.Expires.UnixNano())}}, nil
	})
}
