package rest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/caller"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/ops"
)

// Moment is a time in a query: Unix nanoseconds, or RFC 3339.
type Moment struct{ time.Time }

// Schema implements huma.SchemaProvider.
func (Moment) Schema(huma.Registry) *huma.Schema {
	limit := 40
	return &huma.Schema{
		Type: huma.TypeString, MaxLength: &limit, Description: "Unix nanoseconds, or RFC 3339",
		Pattern:  `^([0-9]{1,19}|[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{8,18}(Z|[+-][0-9]{2}:[0-9]{2}))$`,
		Examples: []any{"1764064800000000000", "2026-11-25T10:00:00Z"},
	}
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *Moment) UnmarshalText(b []byte) error {
	s := string(b)
	if ns, err := strconv.ParseInt(s, 10, 64); err == nil && ns >= 0 {
		m.Time = time.Unix(0, ns).UTC()
		return nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	// Outside of these years nanoseconds do not fit 64 bits.
	if err != nil || t.Year() < 1970 || t.Year() > 2261 {
		return errors.New("give Unix nanoseconds, or a time as 2026-11-25T10:00:00Z, from 1970 to 2261")
	}
	m.Time = t
	return nil
}

// Network is a prefix in a query; an address stands for itself alone.
type Network struct{ netip.Prefix }

// Schema implements huma.SchemaProvider.
func (Network) Schema(huma.Registry) *huma.Schema {
	limit := 64
	return &huma.Schema{Type: huma.TypeString, MaxLength: &limit, Description: "prefix or address", Pattern: `^[0-9A-Fa-f:.]{2,45}(/[0-9]{1,3})?$`, Examples: []any{"192.0.2.0/24"}}
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (n *Network) UnmarshalText(b []byte) error {
	s := string(b)
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		n.Prefix = netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen())
		return nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return errors.New("give a prefix or an address, as 192.0.2.0/24")
	}
	n.Prefix = p.Masked()
	return nil
}

// Span is a duration in a query.
type Span struct{ time.Duration }

// Schema implements huma.SchemaProvider.
func (Span) Schema(huma.Registry) *huma.Schema {
	limit := 32
	return &huma.Schema{Type: huma.TypeString, MaxLength: &limit, Description: "duration, at least 1s", Pattern: `^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$`, Examples: []any{"1m", "1h30m"}}
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Span) UnmarshalText(b []byte) error {
	d, err := time.ParseDuration(string(b))
	if err != nil || d < time.Second {
		return errors.New("give a duration of at least 1s, as 1m or 1h30m")
	}
	s.Duration = d
	return nil
}

// Times is the range of time of a listing.
type Times struct {
	From Moment `query:"from" doc:"first moment"`
	To   Moment `query:"to" doc:"first moment after; now if absent"`
}

// Resolve implements huma.Resolver.
func (t *Times) Resolve(huma.Context) []error {
	if !t.From.IsZero() && !t.To.IsZero() && !t.From.Before(t.To.Time) {
		return []error{&huma.ErrorDetail{Location: "query.to", Message: "the range is empty: from must be before to"}}
	}
	return nil
}

func (t *Times) span() ops.Range { return ops.Range{From: t.From.Time, To: t.To.Time} }

// Paging is where a listing goes on.
type Paging struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"items of a page"`
	Cursor string `query:"cursor" maxLength:"512" doc:"next of the page before, with the same filters"`
}

func (p *Paging) paging() ops.Paging { return ops.Paging{Limit: p.Limit, Cursor: p.Cursor} }

// Traffic selects flows.
type Traffic struct {
	Times
	Network Network `query:"prefix" doc:"either end inside"`
	Port    uint16  `query:"port" minimum:"1" maximum:"65535" doc:"either end"`
	App     string  `query:"app" maxLength:"64" doc:"application" example:"tls"`
	Host    string  `query:"host" maxLength:"253" doc:"host name" example:"example.org"`
	JA3     string  `query:"ja3" maxLength:"32" pattern:"^[0-9a-f]{32}$" doc:"fingerprint of the TLS client"`
	JA4     string  `query:"ja4" maxLength:"64" pattern:"^[0-9A-Za-z_]{1,64}$" doc:"fingerprint of the TLS or QUIC client" example:"t13d1516h2_8daaf6152771_e5627efa2ab1"`
	HASSH   string  `query:"hassh" maxLength:"32" pattern:"^[0-9a-f]{32}$" doc:"fingerprint of the SSH client"`

	Confidence string `query:"confidence" enum:"payload,negotiated,session,port" doc:"what the application's name rests on"`
	Risk       string `query:"risk" enum:"obsolete_tls,clear_credentials,dns_tunnel,unexpected_port,executable,malformed" doc:"flows that carry this risk"`
}

func (t *Traffic) filter() ops.FlowFilter {
	return ops.FlowFilter{Range: t.span(), Prefix: t.Network.Prefix, Port: t.Port, App: t.App, Host: t.Host,
		JA3: t.JA3, JA4: t.JA4, HASSH: t.HASSH, Confidence: t.Confidence, Risk: t.Risk}
}

// Identified is a path with an id.
type Identified struct {
	ID string `path:"id" minLength:"1" maxLength:"128" pattern:"^[A-Za-z0-9._:-]+$" doc:"id"`
}

// Output is a whole answer.
type Output[T any] struct {
	Body T
}

// Listing is a page with the address of the next.
type Listing[T any] struct {
	Link string `header:"Link" doc:"the next page (rel=next), absent on the last"`
	Body api.Page[T]
}

// listing adds the link to a page. The query is the request's.
func listing[T any](ctx context.Context, in *located, page api.Page[T], err error) (*Listing[T], error) {
	if err != nil {
		return nil, fail(ctx, err)
	}
	if page.Items == nil {
		page.Items = []T{}
	}
	out := &Listing[T]{Body: page}
	if page.Next != "" {
		q := in.url.Query()
		q.Set("cursor", page.Next)
		out.Link = fmt.Sprintf("<%s?%s>; rel=%q", in.url.Path, q.Encode(), "next")
	}
	return out, nil
}

// output is what an operation answers, or its error.
func output[T any](ctx context.Context, v T, err error) (*Output[T], error) {
	if err != nil {
		return nil, fail(ctx, err)
	}
	return &Output[T]{Body: v}, nil
}

// takeBody reads the body, which the chain has bounded, and puts it back.
func takeBody(r *http.Request) ([]byte, error) {
	if r.Body == nil {
		return nil, nil
	}
	b, err := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(b))
	return b, err
}

// writeFailure answers with an error of Operations.
func writeFailure(w http.ResponseWriter, r *http.Request, err error) {
	var p *api.Problem
	if !errors.As(err, &p) {
		p = &api.Problem{Status: http.StatusInternalServerError, Detail: "the gateway failed: its log tells more"}
	}
	if p.Status == http.StatusServiceUnavailable || p.Status == http.StatusTooManyRequests || p.Reason == api.ReasonRunning {
		w.Header().Set("Retry-After", "1")
	}
	caller.WriteProblem(w, r, *p)
}
