package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"unicode"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/caller"
)

const (
	problemType    = "application/problem+json"
	bearer         = "token"
	roleExtension  = "x-required-role"
	metaRole       = "role"
	metaHot        = "hot"
	metaIdempotent = "idempotent"
	metaStreams    = "streams"
)

// Problem is api.Problem as huma's error.
type Problem api.Problem

// Error implements error.
func (p *Problem) Error() string { return (*api.Problem)(p).Error() }

// GetStatus implements huma.StatusError.
func (p *Problem) GetStatus() int { return p.Status }

// GetHeaders implements huma.HeadersError: what may work soon says so.
func (p *Problem) GetHeaders() http.Header {
	if p.Status == http.StatusServiceUnavailable || p.Status == http.StatusTooManyRequests {
		return http.Header{"Retry-After": {"1"}}
	}
	return nil
}

// ContentType implements huma.ContentTypeFilter.
func (p *Problem) ContentType(string) string { return problemType }

// huma's errors are made by functions of the package, for the whole process; nothing else in it uses huma.
func init() {
	huma.ValidateStrictCasing = true // the document knows one spelling of a name
	huma.NewError = func(status int, detail string, errs ...error) huma.StatusError {
		p := &Problem{Status: status, Title: http.StatusText(status), Detail: detail}
		if status >= http.StatusInternalServerError {
			p.Detail = "the gateway failed: its log tells more"
			return p // what went wrong inside is not for the client
		}
		for _, err := range errs {
			d := &huma.ErrorDetail{Message: "not valid"}
			if !errors.As(err, &d) && err != nil {
				d = &huma.ErrorDetail{Message: err.Error()}
			}
			p.Errors = append(p.Errors, api.ProblemDetail{Message: d.Message, Location: d.Location, Value: shown(d.Value)})
		}
		if len(p.Errors) > maxErrors {
			p.Errors = p.Errors[:maxErrors]
		}
		if len(p.Errors) > 0 && detail == "validation failed" {
			p.Detail = "the request is not as the document says"
		}
		return p
	}
	huma.NewErrorWithContext = func(ctx huma.Context, status int, detail string, errs ...error) huma.StatusError {
		p := huma.NewError(status, detail, errs...)
		if p, ok := p.(*Problem); ok && ctx != nil {
			p.RequestID = caller.From(ctx.Context()).RequestID
		}
		return p
	}
}

const (
	maxErrors = 32
	maxValue  = 128 // bytes of what a request brought, in an error
)

// shown is a refused value as far as it is worth repeating.
func shown(v any) any {
	switch v := v.(type) {
	case string:
		if len(v) > maxValue {
			return strings.ToValidUTF8(v[:maxValue], "") + "…"
		}
		return v
	case nil, bool, float64, int64, uint64, json.Number:
		return v
	}
	return nil
}

// newHuma has no routes yet.
func newHuma(a *API, version string) huma.API {
	registry := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	registry.RegisterTypeAlias(reflect.TypeFor[api.Nanos](), reflect.TypeFor[nanos]())
	registry.RegisterTypeAlias(reflect.TypeFor[uint16](), reflect.TypeFor[integer16]())
	registry.RegisterTypeAlias(reflect.TypeFor[int32](), reflect.TypeFor[integer32]())
	registry.RegisterTypeAlias(reflect.TypeFor[uint64](), reflect.TypeFor[integer64]())
	asJSON := huma.Format{Marshal: marshal, Unmarshal: unmarshal}
	return huma.NewAPI(huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title: "Tidegate", Version: version,
				Description: "Times are Unix nanoseconds as strings of digits. Errors are problem+json (RFC 9457). Listings go on by the cursor in next, also given in Link.",
				License:     &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"},
			},
			Components: &huma.Components{
				Schemas: registry,
				SecuritySchemes: map[string]*huma.SecurityScheme{bearer: {
					Type: "http", Scheme: "bearer", BearerFormat: "JWT",
					Description: "A token with the role viewer, operator or admin; each operation names the role it needs.",
				}},
			},
		},
		Formats:       map[string]huma.Format{"application/json": asJSON, "json": asJSON},
		DefaultFormat: "application/json",
	}, (*adapter)(a))
}

// nanos is how api.Nanos is described.
type nanos string

// Schema implements huma.SchemaProvider.
func (nanos) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Pattern: `^-?[0-9]{1,19}$`, Examples: []any{"1764064800000000000"}}
}

// What huma does not say about integers is how large they may be.
type (
	integer16 uint16
	integer32 int32
	integer64 uint64
)

// Schema implements huma.SchemaProvider.
func (integer16) Schema(huma.Registry) *huma.Schema { return integer("int32", 0, math.MaxUint16) }

// Schema implements huma.SchemaProvider.
func (integer32) Schema(huma.Registry) *huma.Schema {
	return integer("int32", math.MinInt32, math.MaxInt32)
}

// Schema implements huma.SchemaProvider. Its bound is the largest double that fits.
func (integer64) Schema(huma.Registry) *huma.Schema {
	return integer("int64", 0, math.Nextafter(1<<64, 0))
}

func integer(format string, low, high float64) *huma.Schema {
	return &huma.Schema{Type: huma.TypeInteger, Format: format, Minimum: &low, Maximum: &high}
}

func marshal(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// unmarshal refuses what readers of JSON disagree about: names that come twice, and what follows the value. It also
// refuses control characters in text: databases and terminals choke on them.
func unmarshal(data []byte, v any) error {
	if _, ok := v.(*any); ok { // the first of huma's two readings
		if err := strict(data); err != nil {
			return err
		}
	}
	err := json.Unmarshal(data, v)
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) { // its text names Go's types
		return fmt.Errorf("%s: %s does not fit here", wrong.Field, wrong.Value)
	}
	return err
}

func strict(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	if err := value(dec, 0); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is more after the JSON value")
	}
	return nil
}

const maxDepth = 16

func value(dec *json.Decoder, depth int) error {
	t, err := dec.Token()
	if err != nil {
		return err
	}
	switch t := t.(type) {
	case nil:
		return errors.New("null is no value here: leave the name out") // huma would take it for absent, and a match would widen
	case string:
		return plain(t)
	}
	open, ok := t.(json.Delim)
	if !ok {
		return nil
	}
	if depth == maxDepth {
		return fmt.Errorf("the JSON is nested deeper than %d levels", maxDepth)
	}
	names := map[string]bool{}
	for dec.More() {
		if open == '{' {
			name, err := dec.Token()
			if err != nil {
				return err
			}
			key, _ := name.(string)
			if err := plain(key); err != nil {
				return err
			}
			if names[key] {
				return fmt.Errorf("the name %q comes twice in one object", shown(key))
			}
			names[key] = true
		}
		if err := value(dec, depth+1); err != nil {
			return err
		}
	}
	_, err = dec.Token()
	return err
}

func plain(s string) error {
	if strings.ContainsFunc(s, unicode.IsControl) {
		return errors.New("there is a control character in a text")
	}
	return nil
}

// operation declares a route of a role.
func operation(role caller.Role, method, path, id, summary, tag string) huma.Operation {
	return huma.Operation{
		OperationID: id, Method: method, Path: Prefix + path, Summary: summary, Tags: []string{tag},
		Security:   []map[string][]string{{bearer: {}}},
		Extensions: map[string]any{roleExtension: role.String()},
		Metadata:   map[string]any{metaRole: role},
	}
}

// statuses that the chain before the routes answers with, for every operation.
var chainStatuses = []int{
	http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusRequestTimeout,
	http.StatusRequestURITooLong, http.StatusUnprocessableEntity, http.StatusTooManyRequests,
	http.StatusRequestHeaderFieldsTooLarge, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable,
}

// describe adds to each operation the answers that it can give beside its own.
func describe(doc *huma.OpenAPI) {
	schema := doc.Components.Schemas.Schema(reflect.TypeFor[Problem](), true, "Problem")
	for _, item := range doc.Paths {
		for _, op := range []*huma.Operation{item.Get, item.Post, item.Put, item.Delete} {
			if op == nil {
				continue
			}
			codes := slices.Clone(chainStatuses)
			if op.RequestBody != nil {
				codes = append(codes, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType)
			}
			if op.Metadata[metaIdempotent] != nil {
				codes = append(codes, http.StatusConflict)
			}
			if op.Method == http.MethodGet && op.Responses["200"] != nil && op.Responses["200"].Content["text/event-stream"] == nil {
				op.Responses["304"] = &huma.Response{Description: "the client has this already (If-None-Match)"}
			}
			codes = append(codes, op.Errors...)
			delete(op.Responses, "default")
			for _, code := range codes {
				op.Responses[fmt.Sprint(code)] = &huma.Response{
					Description: http.StatusText(code), Content: map[string]*huma.MediaType{problemType: {Schema: schema}},
				}
			}
		}
	}
}

// fail is an error of Operations as huma's, with the request's id.
func fail(ctx context.Context, err error) error {
	var p *api.Problem
	if !errors.As(err, &p) {
		return err // huma makes it a 500
	}
	out := Problem(*p)
	if out.RequestID == "" {
		out.RequestID = caller.From(ctx).RequestID
	}
	return &out
}
