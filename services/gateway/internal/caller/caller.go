// Package caller is who asks: what the front of the gateway found out about a request before a handler sees it.
package caller

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api"
)

// Role is what a token may do. A higher role may do what a lower one may.
type Role uint8

// The roles.
const (
	Nobody   Role = iota // no token
	Viewer               // reads
	Operator             // changes rules, panic
	Admin                // reads the audit log too
)

var roleNames = [...]string{"", "viewer", "operator", "admin"}

// String is the role's name in tokens, empty for Nobody.
func (r Role) String() string { return roleNames[r] }

// ParseRole reads a name; ok is false for any other text.
func ParseRole(s string) (r Role, ok bool) {
	for i, n := range roleNames[1:] {
		if s == n {
			return Role(i + 1), true //nolint:gosec // three names
		}
	}
	return Nobody, false
}

// Caller is the origin of a request.
type Caller struct {
	Subject   string // of the token; empty: none
	Role      Role
	Expires   time.Time // of the token
	Remote    netip.Addr
	RequestID string
}

type key struct{}

// With adds the caller to a request's context.
func With(ctx context.Context, c Caller) context.Context { return context.WithValue(ctx, key{}, c) }

// From is the caller of a request, the zero Caller when there is none.
func From(ctx context.Context) Caller {
	c, _ := ctx.Value(key{}).(Caller)
	return c
}

// WriteProblem answers with problem+json (RFC 9457). Status must be set; title and request id are filled in.
func WriteProblem(w http.ResponseWriter, r *http.Request, p api.Problem) {
	if p.Title == "" {
		p.Title = http.StatusText(p.Status)
	}
	if p.RequestID == "" {
		p.RequestID = From(r.Context()).RequestID
	}
	body, err := json.Marshal(p)
	if err != nil { // a value that a request brought and JSON cannot carry
		p.Errors = nil
		body = fmt.Appendf(nil, `{"title":%q,"status":%d}`, p.Title, p.Status)
	}
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(p.Status)
	_, _ = w.Write(body) // the client may be gone
}
