package edge

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/caller"
)

const (
	maxURL    = 4 << 10  // bytes of the request target
	maxHeader = 16 << 10 // bytes of all header fields
)

// check refuses requests whose path, query or headers are not plain. What passes is read by every handler in the same
// way, and is never redirected to a cleaned form of itself.
func check(r *http.Request) *api.Problem {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
	default:
		return &api.Problem{Status: http.StatusMethodNotAllowed, Detail: "the method is not used here"}
	}
	if len(r.RequestURI) > maxURL {
		return &api.Problem{Status: http.StatusRequestURITooLong, Detail: "the address is longer than 4096 bytes"}
	}
	size := len(r.RequestURI)
	for name, values := range r.Header {
		for _, v := range values {
			size += len(name) + len(v) + 4
		}
	}
	if size > maxHeader {
		return &api.Problem{Status: http.StatusRequestHeaderFieldsTooLarge, Detail: "the headers are larger than 16384 bytes"}
	}
	if !cleanPath(r.URL) {
		return &api.Problem{Status: http.StatusBadRequest, Reason: "bad_path",
			Detail: "the path must be UTF-8 without empty and dot segments, backslashes, control characters and encoded slashes"}
	}
	if !cleanQuery(r.URL.RawQuery) {
		return &api.Problem{Status: http.StatusBadRequest, Reason: "bad_query",
			Detail: "the query must be percent-encoded UTF-8 without control characters and semicolons"}
	}
	return nil
}

func cleanPath(u *url.URL) bool {
	if u.Path == "" || u.Path[0] != '/' || u.Opaque != "" {
		return false
	}
	// RawPath is set when the decoded path could have been written otherwise; there slashes can hide.
	raw := u.RawPath
	for i := 0; i+2 < len(raw); i++ {
		if raw[i] == '%' && (raw[i+1] == '2' && (raw[i+2]|0x20) == 'f' || raw[i+1] == '5' && (raw[i+2]|0x20) == 'c') {
			return false
		}
	}
	path := u.Path
	if !cleanText(path) {
		return false
	}
	begin := 1
	for i := 1; i <= len(path); i++ {
		if i < len(path) && path[i] != '/' {
			if path[i] == '\\' {
				return false
			}
			continue
		}
		segment := path[begin:i]
		if segment == "." || segment == ".." || (segment == "" && i < len(path)) {
			return false
		}
		begin = i + 1
	}
	return true
}

func cleanQuery(q string) bool {
	plain := true
	for i := range len(q) {
		switch b := q[i]; {
		case b == ';' || b <= ' ' || b == 0x7f:
			return false
		case b == '%' || b >= 0x80:
			plain = false
		}
	}
	if plain {
		return true
	}
	text, err := url.QueryUnescape(q)
	return err == nil && cleanText(text)
}

// cleanText: UTF-8 without control characters.
func cleanText(s string) bool {
	ascii := true
	for i := range len(s) {
		if s[i] < 0x20 || s[i] == 0x7f {
			return false
		}
		ascii = ascii && s[i] < 0x80
	}
	if ascii {
		return true
	}
	if !utf8.ValidString(s) {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool { return r >= 0x80 && r < 0xa0 })
}

const (
	jsonType = "application/json"
	formType = "application/x-www-form-urlencoded"
)

// readBody takes in the whole body, so that its size, time and form are judged in one place. It is false when the
// request was answered.
func (c *Chain) readBody(x *exchange) bool {
	r := x.r
	if r.ContentLength == 0 || r.Body == nil || r.Body == http.NoBody {
		return true
	}
	limit, list := c.cfg.MaxBody, isListText(x)
	large := list && x.who.Role >= caller.Operator // nobody else is let through, which the route says
	if large {
		limit = api.MaxList
		until := x.begun.Add(listTextTime)
		// The server's time for an answer begins with the headers: here it begins with the end of the body.
		if errors.Join(x.setReadDeadline(until), http.NewResponseController(x.w).SetWriteDeadline(until.Add(c.cfg.WriteTimeout))) != nil {
			c.t.CountError("body_deadline")
		}
	}
	if r.ContentLength > limit {
		return c.badBody(x, http.StatusRequestEntityTooLarge, "body_too_large", "the body is larger than this gateway takes")
	}
	if safe(r.Method) {
		return c.badBody(x, http.StatusBadRequest, "body", "a request of this method has no body")
	}
	if r.Header.Get("Content-Encoding") != "" {
		return c.badBody(x, http.StatusUnsupportedMediaType, "content_type", "send the body without Content-Encoding")
	}
	kind, parameters, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	kind = strings.ToLower(strings.TrimSpace(kind))
	parameters = strings.ToLower(strings.TrimSpace(parameters))
	known, wanted := kind == jsonType || (kind == formType && !x.api), jsonType
	if list {
		known, wanted = kind == api.ListType, api.ListType
	}
	if !known || len(r.Header["Content-Type"]) != 1 || (parameters != "" && parameters != "charset=utf-8" && parameters != `charset="utf-8"`) {
		return c.badBody(x, http.StatusUnsupportedMediaType, "content_type", "send the body as "+wanted+" in UTF-8")
	}
	if large {
		select {
		case c.texts <- struct{}{}:
			x.text = true
		default:
			x.Header().Set("Retry-After", "5")
			return c.badBody(x, http.StatusServiceUnavailable, "busy", "the gateway is taking in other lists: try again")
		}
	}
	data, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return c.badBody(x, http.StatusRequestTimeout, "slow_body", "the body did not arrive in time")
	case err != nil:
		return c.badBody(x, http.StatusBadRequest, "body", "the body is not whole")
	case int64(len(data)) > limit:
		return c.badBody(x, http.StatusRequestEntityTooLarge, "body_too_large", "the body is larger than this gateway takes")
	case kind == jsonType && !utf8.Valid(data):
		return c.badBody(x, http.StatusBadRequest, "body", "the body is not UTF-8")
	}
	if err := x.setReadDeadline(time.Time{}); err != nil {
		c.t.CountError("body_deadline")
	}
	r.Body = io.NopCloser(bytes.NewReader(data))
	r.ContentLength = int64(len(data))
	return true
}

const (
	listTextTime = 2 * time.Minute // how long the entries of a list may take: longer than other bodies, which are small
	maxListTexts = 4               // at once: each takes several times its size in memory
)

// isListText reports a request that brings the entries of a list.
func isListText(x *exchange) bool {
	return x.r.Method == http.MethodPut && strings.HasPrefix(x.r.URL.Path, listsPath) && strings.HasSuffix(x.r.URL.Path, "/entries")
}

// badBody refuses and closes the connection: what is left of the body is not read.
func (c *Chain) badBody(x *exchange, status int, reason, detail string) bool {
	if x.r.ProtoMajor == 1 {
		x.Header().Set("Connection", "close")
	}
	c.refuse(x, reason, api.Problem{Status: status, Reason: reason, Detail: detail})
	return false
}
