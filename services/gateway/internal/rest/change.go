package rest

import (
	"bytes"
	"context"
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/caller"
)

type rulesInput struct {
	Located
	Paging
	State  string `query:"state" enum:"pending,active,shadow,refused,expired,held,elsewhere" doc:"state"`
	Origin string `query:"origin" enum:"user,detector" doc:"who made them"`
}

type ruleOutput struct {
	ETag string `header:"ETag" doc:"for If-Match: the revision, in a GET followed by a dot and a mark of the counters"`
	Body api.Rule
}

type addedOutput struct {
	ETag     string `header:"ETag" doc:"the revision, for If-Match"`
	Location string `header:"Location"`
	Body     api.Rule
}

// Key is documented here; route.once reads it.
type Key struct {
	Key string `header:"Idempotency-Key" maxLength:"255" doc:"a value of the client's own for this change: sent again with it, the change is not made twice and the first answer is repeated, for 24 h"`
}

type addInput struct {
	Key
	Body api.RuleInput
}

type dryRunInput struct {
	Body api.RuleInput
}

type replaceInput struct {
	Identified
	Key
	IfMatch string `header:"If-Match" maxLength:"64" doc:"ETag of the rule that is meant; required"`
	Body    api.RuleInput
}

type revokeInput struct {
	Identified
	Key
	IfMatch string `header:"If-Match" maxLength:"64" doc:"ETag of the rule that is meant; absent: any"`
}

// ruleTag is the entity tag of a revision.
func ruleTag(revision string) string { return `"` + revision + `"` }

// ruleStateTag is the entity tag of a rule with its counters, which change under one revision: the tag changes with
// them (RFC 9110, section 8.8.1), and If-Match looks at the revision in it alone.
func ruleStateTag(r *api.Rule) (string, error) {
	var b bytes.Buffer
	if err := marshal(&b, r); err != nil {
		return "", err
	}
	return `"` + r.Revision + "." + strings.Trim(entityTag(b.Bytes()), `"`) + `"`, nil
}

// revision is what If-Match names, "" for any.
func revision(header string) (string, error) {
	if header == "*" {
		return "", nil
	}
	text, ok := strings.CutPrefix(header, `"`)
	text, end := strings.CutSuffix(text, `"`)
	text, _, _ = strings.Cut(text, ".")
	if _, err := strconv.ParseUint(text, 10, 64); err != nil || !ok || !end {
		return "", &api.Problem{
			Status: http.StatusPreconditionFailed, Title: http.StatusText(http.StatusPreconditionFailed),
			Detail: "If-Match names no revision of a rule: send the ETag of GET, or *", Errors: []api.ProblemDetail{{Location: "header.If-Match", Message: "no such revision"}},
		}
	}
	return text, nil
}

// rules are the routes of rules.
func (a *API) rules() {
	o := a.d.Operations
	list := operation(caller.Viewer, http.MethodGet, "/rules", "list-rules", "Rules on the enforce nodes, the newest first", "rules")
	list.Metadata[metaHot] = true
	huma.Register(a.huma, list, func(ctx context.Context, in *rulesInput) (*Listing[api.Rule], error) {
		all, err := o.Rules(ctx)
		if err != nil {
			return nil, fail(ctx, err)
		}
		page, err := in.page(all)
		return listing(ctx, &in.at, page, err)
	})
	one := operation(caller.Viewer, http.MethodGet, "/rules/{id}", "get-rule", "A rule and what each node did with it", "rules")
	one.Errors = []int{http.StatusNotFound}
	huma.Register(a.huma, one, func(ctx context.Context, in *Identified) (*ruleOutput, error) {
		r, err := o.Rule(ctx, in.ID)
		if err != nil {
			return nil, fail(ctx, err)
		}
		tag, err := ruleStateTag(&r)
		if err != nil {
			return nil, err
		}
		return &ruleOutput{ETag: tag, Body: r}, nil
	})
	explain := operation(caller.Viewer, http.MethodGet, "/rules/{id}/explain", "explain-rule", "Why a rule is there and what it does", "rules")
	explain.Errors = []int{http.StatusNotFound}
	huma.Register(a.huma, explain, func(ctx context.Context, in *Identified) (*Output[api.Explanation], error) {
		v, err := o.Explain(ctx, in.ID)
		return output(ctx, v, err)
	})
	dry := operation(caller.Operator, http.MethodPost, "/rules/dry-run", "dry-run-rule", "What a rule would do; nothing changes", "rules")
	huma.Register(a.huma, dry, func(ctx context.Context, in *dryRunInput) (*Output[api.DryRun], error) {
		v, err := o.DryRun(ctx, in.Body)
		return output(ctx, v, err)
	})
	add := operation(caller.Operator, http.MethodPost, "/rules", "add-rule", "Add a rule, or renew the one that does the same", "rules")
	add.Metadata[metaIdempotent], add.DefaultStatus = true, http.StatusCreated
	huma.Register(a.huma, add, func(ctx context.Context, in *addInput) (*addedOutput, error) {
		r, err := o.AddRule(ctx, in.Body)
		if err != nil {
			return nil, fail(ctx, err)
		}
		return &addedOutput{ETag: ruleTag(r.Revision), Location: Prefix + "/rules/" + r.ID, Body: r}, nil
	})
	replace := operation(caller.Operator, http.MethodPut, "/rules/{id}", "replace-rule", "Change a rule that still has the revision in If-Match", "rules")
	replace.Metadata[metaIdempotent] = true
	replace.Errors = []int{http.StatusNotFound, http.StatusPreconditionFailed, http.StatusPreconditionRequired}
	huma.Register(a.huma, replace, func(ctx context.Context, in *replaceInput) (*ruleOutput, error) {
		if in.IfMatch == "" {
			return nil, fail(ctx, &api.Problem{
				Status: http.StatusPreconditionRequired, Title: http.StatusText(http.StatusPreconditionRequired),
				Detail: "name the rule's revision in If-Match, so that nobody's change is lost: it is the field revision in quotes",
			})
		}
		rev, err := revision(in.IfMatch)
		if err != nil {
			return nil, fail(ctx, err)
		}
		r, err := o.ReplaceRule(ctx, in.ID, rev, in.Body)
		if err != nil {
			return nil, fail(ctx, err)
		}
		return &ruleOutput{ETag: ruleTag(r.Revision), Body: r}, nil
	})
	revoke := operation(caller.Operator, http.MethodDelete, "/rules/{id}", "revoke-rule", "Take a rule away", "rules")
	revoke.Metadata[metaIdempotent], revoke.DefaultStatus = true, http.StatusNoContent
	revoke.Errors = []int{http.StatusNotFound, http.StatusPreconditionFailed}
	huma.Register(a.huma, revoke, func(ctx context.Context, in *revokeInput) (*none, error) {
		rev := ""
		if in.IfMatch != "" {
			var err error
			if rev, err = revision(in.IfMatch); err != nil {
				return nil, fail(ctx, err)
			}
		}
		if err := o.RevokeRule(ctx, in.ID, rev); err != nil {
			return nil, fail(ctx, err)
		}
		return nil, nil //nolint:nilnil // 204
	})
}

// page cuts a page out of all rules, which are sorted. The cursor names the last rule of the page before by its place in
// the order, so that rules may come and go meanwhile.
func (in *rulesInput) page(all []api.Rule) (api.Page[api.Rule], error) {
	var out api.Page[api.Rule]
	after, err := parsePlace(in.Cursor)
	if err != nil {
		return out, err
	}
	limit := in.Limit
	if limit == 0 {
		limit = defaultLimit
	}
	for i := range all {
		r := &all[i]
		if in.State != "" && r.State != in.State || in.Origin != "" && r.Origin != in.Origin || in.Cursor != "" && !after.before(r) {
			continue
		}
		if len(out.Items) == limit {
			last := &out.Items[limit-1]
			out.Next = place{last.CreatedNs, last.ID}.String()
			break
		}
		out.Items = append(out.Items, *r)
	}
	return out, nil
}

const defaultLimit = 100

// place is where a rule is in the order of ops.Rules: the newest first, then by id.
type place struct {
	created api.Nanos
	id      string
}

func (p place) before(r *api.Rule) bool {
	return r.CreatedNs < p.created || r.CreatedNs == p.created && r.ID > p.id
}

// String is the cursor.
func (p place) String() string {
	return base64.RawURLEncoding.EncodeToString(strconv.AppendInt(nil, int64(p.created), 10)) + "." + base64.RawURLEncoding.EncodeToString([]byte(p.id))
}

func parsePlace(s string) (p place, err error) {
	if s == "" {
		return p, nil
	}
	var parts [][]byte
	for _, t := range strings.Split(s, ".") {
		b, err := base64.RawURLEncoding.DecodeString(t)
		if err != nil {
			return p, badCursor()
		}
		parts = append(parts, b)
	}
	if len(parts) != 2 {
		return p, badCursor()
	}
	created, err := strconv.ParseInt(string(parts[0]), 10, 64)
	if err != nil {
		return p, badCursor()
	}
	return place{api.Nanos(created), string(parts[1])}, nil
}

func badCursor() error {
	text := "the cursor is damaged or of another listing: use next of the page before"
	return &api.Problem{Status: http.StatusBadRequest, Title: http.StatusText(http.StatusBadRequest), Detail: text, Errors: []api.ProblemDetail{{Location: "query.cursor", Message: text}}}
}

type panicBody struct {
	Reason string `json:"reason,omitempty" maxLength:"200" doc:"for the audit log"`
}

type panicOnInput struct {
	Key
	Body *panicBody
}

type panicOffInput struct {
	Key
}

// emergency are the routes of panic.
func (a *API) emergency() {
	o := a.d.Operations
	state := operation(caller.Viewer, http.MethodGet, "/panic", "get-panic", "Whether panic is on", "panic")
	state.Metadata[metaHot] = true
	huma.Register(a.huma, state, func(ctx context.Context, _ *none) (*Output[api.Panic], error) {
		v, err := o.PanicState(ctx)
		return output(ctx, v, err)
	})
	on := operation(caller.Operator, http.MethodPost, "/panic", "panic", "Take every drop and rate limit out of every node; users' rules are revoked, detectors' held", "panic")
	off := operation(caller.Operator, http.MethodDelete, "/panic", "end-panic", "End panic: detectors' rules that are held act again", "panic")
	on.Metadata[metaIdempotent], off.Metadata[metaIdempotent] = true, true
	huma.Register(a.huma, on, func(ctx context.Context, in *panicOnInput) (*Output[api.PanicResult], error) {
		reason := ""
		if in.Body != nil {
			reason = in.Body.Reason
		}
		v, err := o.Panic(ctx, true, reason)
		return output(ctx, v, err)
	})
	huma.Register(a.huma, off, func(ctx context.Context, _ *panicOffInput) (*Output[api.PanicResult], error) {
		v, err := o.Panic(ctx, false, "")
		return output(ctx, v, err)
	})
}
