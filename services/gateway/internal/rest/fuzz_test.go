package rest

import (
	"net/http"
	"net/url"
	"testing"
)

// FuzzQuery: whatever a query holds, the answer is one of the document and no failure of the gateway.
func FuzzQuery(f *testing.F) {
	for _, seed := range []string{
		"", "limit=1&cursor=MA.", "from=1&to=2026-01-01T00:00:00Z&prefix=::/0&port=65535&app=%C3%BC&host=a", "from=2&to=1", "limit=0", "limit=1&limit=2",
		"prefix=1.2.3.4/33", "a=%00", "a=%ff", "%", ";", "limit=99999999999999999999", "step=1s", "colour=red", "=&=", "from=2026-01-01T00:00:00%2B24:00",
		"state=active&origin=user", "types=attack,live&heartbeat=60&last_event_id=1",
	} {
		for i := range 5 {
			f.Add(uint8(i), seed)
		}
	}
	r := newRig(f)
	paths := []string{"flows", "timeseries", "rules", "audit", "stream"}
	f.Fuzz(func(t *testing.T, which uint8, query string) {
		target := Prefix + "/" + paths[int(which)%len(paths)] + "?" + query
		if _, err := url.ParseRequestURI(target); err != nil {
			return
		}
		q := request{method: http.MethodGet, target: target}
		w, ok := r.send(r.tokens["admin"], q)
		if !ok {
			return
		}
		if err := r.check(q, w); err != nil || w.Code >= 500 {
			t.Errorf("status %d: %v: %s", w.Code, err, w.Body)
		}
	})
}

// FuzzBody: the same for bodies.
func FuzzBody(f *testing.F) {
	for _, seed := range []string{
		goodRule, `{}`, `null`, `[]`, `{"action":"drop","match":{}}`, `{"action":"drop","action":"count","match":{}}`, `{"action":"drop","match":{"dport":65536}}`,
		`{"action":"drop","match":{"src":null}}`, `{"action":"rate-limit","rate_pps":1e3,"match":{"length":"60-"}}`, `{"action":"drop","match":{},"comment":"\u0000"}`,
		`{"action":"count","match":{},"priority":-2147483649}`, `{"ACTION":"drop","match":{}}`, `{"reason":"x"} `, `{"reason":"\ud800"}`, `{"for":"1e9h","action":"drop","match":{}}`,
	} {
		for i := range 4 {
			f.Add(uint8(i), seed)
		}
	}
	r := newRig(f)
	routes := []request{
		{method: http.MethodPost, target: Prefix + "/rules"}, {method: http.MethodPost, target: Prefix + "/rules/dry-run"},
		{method: http.MethodPut, target: Prefix + "/rules/rule0", header: []string{"If-Match", "*"}}, {method: http.MethodPost, target: Prefix + "/panic"},
	}
	f.Fuzz(func(t *testing.T, which uint8, body string) {
		to := routes[int(which)%len(routes)]
		q := call(to.method, to.target, body, to.header...)
		w, ok := r.send(r.tokens["admin"], q)
		if !ok {
			return
		}
		if err := r.check(q, w); err != nil || w.Code >= 500 {
			t.Errorf("status %d: %v: %s", w.Code, err, w.Body)
		}
	})
}
