package edge

import (
	"net/http"

	"github.com/tidegate-mesh/tidegate/services/gateway/internal/page"
)

type field struct {
	name  string
	value []string
}

// What every answer says, and what only those that a browser shows need to. The slices are shared: handlers replace
// them, they do not change them.
var (
	everyHeader = [...]field{
		{"Strict-Transport-Security", []string{"max-age=31536000"}},
		{"X-Content-Type-Options", []string{"nosniff"}},
		{"Referrer-Policy", []string{"no-referrer"}},
		{"Cross-Origin-Resource-Policy", []string{"same-origin"}},
	}
	pageHeader = [...]field{
		{"Content-Security-Policy", []string{page.Policy}},
		{"Cross-Origin-Opener-Policy", []string{"same-origin"}},
		{"Permissions-Policy", []string{"accelerometer=(), camera=(), geolocation=(), gyroscope=(), microphone=(), payment=(), usb=()"}},
		{"X-Frame-Options", []string{"DENY"}},
	}
	apiHeader = [...]field{
		{"Content-Security-Policy", []string{"default-src 'none'; frame-ancestors 'none'"}},
		{"Cache-Control", []string{"no-store"}},
	}
)

func setHeaders(h http.Header, api bool) {
	for i := range everyHeader {
		h[everyHeader[i].name] = everyHeader[i].value
	}
	own := pageHeader[:]
	if api {
		own = apiHeader[:]
	}
	for i := range own {
		h[own[i].name] = own[i].value
	}
}
