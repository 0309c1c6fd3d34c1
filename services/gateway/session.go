package gateway

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/auth"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/caller"
)

// maxCookie is what browsers keep of a cookie's name and value, in bytes (RFC 6265, section 6.1): a larger one they drop.
const maxCookie = 4096

// login checks a token that somebody pasted into the page's form and makes the session's cookie. Failures are counted
// as those of requests are; the error is an *api.Problem.
func (s *Service) login(r *http.Request, token string) (*http.Cookie, error) {
	who := caller.From(r.Context())
	id, err := s.auth.Login(r.Context(), token, who.Remote, who.RequestID)
	if err == nil && len(auth.CookieName)+1+len(token) <= maxCookie {
		return auth.SessionCookie(token, id.Expires), nil
	}
	if err == nil {
		return nil, &api.Problem{
			Status: http.StatusUnprocessableEntity, Title: "Not logged in", Reason: "token_size", RequestID: who.RequestID,
			Detail: fmt.Sprintf("the token is good, but its %d bytes are more than browsers keep in a cookie: have its issuer leave claims out, such as groups", len(token)),
		}
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
