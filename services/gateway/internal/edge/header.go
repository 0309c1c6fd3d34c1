package edge

import (
	"net/http"

	"github.com/tidegate-mesh/tidegate/services/gateway/internal/page"
)

// What every answer says. The slices are shared: handlers replace them, they do not change them.
var (
	pageHeaders = [...]struct {
		name  string
		value []string
	}{
		{"Strict-Transport-Security", []string{"max-age=31536000"}},
		{"X-Content-Type-Options", []string{"nosniff"}},
		{"X-Frame-Options", []string{"DENY"}},
		{"Referrer-Policy", []string{"no-referrer"}},
		{"Permissions-Policy", []string{"accelerometer=(), camera=(), geolocation=(), gyroscope=(), microphone=(), payment=(), usb=()"}},
		{"Cross-Origin-Opener-Policy", []string{"same-origin"}},
		{"Cross-Origin-Resource-Policy", []string{"same-origin"}},
	}
	pagePolicy = []string{page.Policy}
	apiPolicy  = []string{"default-src 'none'; frame-ancestors 'none'"}
	noStore    = []string{"no-store"}
)

func setHeaders(h http.Header, api bool) {
	for i := range pageHeaders {
		h[pageHeaders[i].name] = pageHeaders[i].value
	}
	if !api {
		h["Content-Security-Policy"] = pagePolicy
		return
	}
	h["Content-Security-Policy"] = apiPolicy
	h["Cache-Control"] = noStore
}
