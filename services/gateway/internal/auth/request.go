package auth

import (
	"errors"
	"net/http"
	"strings"
	"time"
)

// CookieName is the session cookie of the page. The prefix __Host- makes browsers insist on Secure, on Path=/ and on
// no Domain.
const CookieName = "__Host-tidegate"

// SessionCookie holds a token for the page until it expires.
func SessionCookie(token string, expires time.Time) *http.Cookie {
	return &http.Cookie{Name: CookieName, Value: token, Path: "/", Expires: expires, Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode}
}

// ClearCookie ends the page's session.
func ClearCookie() *http.Cookie {
	c := SessionCookie("", time.Unix(1, 0))
	c.MaxAge = -1
	return c
}

// Origin of a token within a request.
type Carrier uint8

// The carriers.
const (
	None   Carrier = iota
	Header         // Authorization: Bearer
	Cookie
)

// ErrSeveral: a request must name one token.
var ErrSeveral = errors.New("send one token: one Authorization header of the form \"Bearer TOKEN\", or one session cookie")

// FromRequest finds the token of a request. The header wins over the cookie.
func FromRequest(r *http.Request) (raw string, c Carrier, err error) {
	if lines := r.Header["Authorization"]; len(lines) > 0 {
		if len(lines) > 1 {
			return "", Header, ErrSeveral
		}
		scheme, rest, ok := strings.Cut(lines[0], " ")
		rest = strings.Trim(rest, " ")
		if !ok || rest == "" || !strings.EqualFold(scheme, "Bearer") || strings.ContainsAny(rest, " ,") {
			return "", Header, ErrSeveral
		}
		return rest, Header, nil
	}
	if len(r.Header["Cookie"]) == 0 {
		return "", None, nil
	}
	switch cookies := r.CookiesNamed(CookieName); {
	case len(cookies) == 0:
		return "", None, nil
	case len(cookies) > 1:
		return "", Cookie, ErrSeveral
	default:
		return cookies[0].Value, Cookie, nil
	}
}

// SameOrigin tells whether a browser's own page made the request: the Fetch Metadata header when there is one, which
// scripts cannot set, else the Origin (RFC 6454) of older browsers. A program that sends neither is not a page.
func SameOrigin(r *http.Request) bool {
	if site := r.Header.Values("Sec-Fetch-Site"); len(site) > 0 {
		return len(site) == 1 && site[0] == "same-origin"
	}
	origin := r.Header.Values("Origin")
	return len(origin) == 1 && r.Host != "" && strings.EqualFold(origin[0], "https://"+r.Host)
}
