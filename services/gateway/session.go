package gateway

import (
	"errors"
	"net/http"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/auth"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/caller"
)

// login checks a token that somebody pasted into the page's form and makes the session's cookie. Failures are counted
// as those of requests are; the error is an *api.Problem.
func (s *Service) login(r *http.Request, token string) (*http.Cookie, error) {
	who := caller.From(r.Context())
	id, err := s.auth.Login(r.Context(), token, who.Remote, who.RequestID)
	if err == nil {
		return auth.SessionCookie(token, id.Expires), nil
	}
	p := &api.Problem{Status: http.StatusUnauthorized, Title: "Not logged in", Reason: "unauthorized", Detail: err.Error(), RequestID: who.RequestID}
	var locked *auth.LockedError
	switch {
	case errors.As(err, &locked):
		p.Status, p.Reason = http.StatusTooManyRequests, "locked"
	case errors.Is(err, auth.ErrUnavailable):
		p.Status, p.Reason = http.StatusServiceUnavailable, "no_keys"
	}
	return nil, p
}

// logout makes the cookie that ends the session.
func logout(*http.Request) *http.Cookie { return auth.ClearCookie() }
