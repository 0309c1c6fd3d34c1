package rest

import (
	"bytes"
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/ops"
)

const goodRule = `{"action":"drop","match":{"src":"198.51.100.0/24","proto":"udp","dport":53},"for":"10m"}`

const goodList = `{"action":"drop","url":"https://lists.example/drop.txt","every":"30m","comment":"a feed"}`

// contractCases drive every operation; the key is its id in the document. want is the status of success.
var contractCases = map[string][]struct {
	request
	want int
}{
	"list-flows": {
		{call("GET", "/api/v1/flows", ""), 200},
		{call("GET", "/api/v1/flows?from=1764064800000000000&to=2026-11-25T10:00:00.5%2B01:00&prefix=2001:db8::/32&port=443&app=tls&host=example.org&limit=7&cursor=x", ""), 200},
		{call("GET", "/api/v1/flows?from=2&to=1", ""), 422},
	},
	"top":             {{call("GET", "/api/v1/top?by=host&limit=1000", ""), 200}, {call("GET", "/api/v1/top?by=colour", ""), 422}},
	"timeseries":      {{call("GET", "/api/v1/timeseries?from=1764064800000000000&step=1m&by=app&limit=100", ""), 200}, {call("GET", "/api/v1/timeseries", ""), 422}},
	"list-attacks":    {{call("GET", "/api/v1/attacks?type=syn_flood&active=true", ""), 200}},
	"get-attack":      {{call("GET", "/api/v1/attacks/attack1", ""), 200}, {call("GET", "/api/v1/attacks/none", ""), 404}},
	"get-attack-pcap": {{call("GET", "/api/v1/attacks/attack1/pcap", ""), 200}, {call("GET", "/api/v1/attacks/none/pcap", ""), 404}},
	"list-verdicts":   {{call("GET", "/api/v1/verdicts?attack_id=attack1", ""), 200}},
	"get-verdict":     {{call("GET", "/api/v1/verdicts/verdict1", ""), 200}, {call("GET", "/api/v1/verdicts/none", ""), 404}},
	"list-audit":      {{call("GET", "/api/v1/audit?actor=ada&action=rule.add&target=x", ""), 200}},
	"list-rules":      {{call("GET", "/api/v1/rules?state=active&origin=user&limit=1", ""), 200}, {call("GET", "/api/v1/rules", ""), 200}, {call("GET", "/api/v1/rules?cursor=%21", ""), 400}},
	"get-rule":        {{call("GET", "/api/v1/rules/rule0", ""), 200}, {call("GET", "/api/v1/rules/none", ""), 404}},
	"explain-rule":    {{call("GET", "/api/v1/rules/rule1/explain", ""), 200}, {call("GET", "/api/v1/rules/none/explain", ""), 404}},
	"dry-run-rule":    {{call("POST", "/api/v1/rules/dry-run", goodRule), 200}, {call("POST", "/api/v1/rules/dry-run", `{"action":"drop","match":{"dport":53}}`), 422}},
	"add-rule":        {{call("POST", "/api/v1/rules", goodRule), 201}, {call("POST", "/api/v1/rules", goodRule), 201}, {call("POST", "/api/v1/rules", `{"action":"drop","match":{"dst":"203.0.113.1"}}`), 422}},
	"replace-rule":    {{call("PUT", "/api/v1/rules/rule2", goodRule, "If-Match", "*"), 200}, {call("PUT", "/api/v1/rules/rule2", goodRule), 428}, {call("PUT", "/api/v1/rules/none", goodRule, "If-Match", `"1"`), 404}},
	"revoke-rule":     {{call("DELETE", "/api/v1/rules/rule3", ""), 204}, {call("DELETE", "/api/v1/rules/rule3", ""), 404}, {call("DELETE", "/api/v1/rules/rule4", "", "If-Match", `"99"`), 412}},
	"list-lists":      {{call("GET", "/api/v1/lists", ""), 200}, {call("GET", "/api/v1/lists?limit=1", ""), 422}},
	"get-list":        {{call("GET", "/api/v1/lists/list0", ""), 200}, {call("GET", "/api/v1/lists/none", ""), 404}, {call("GET", "/api/v1/lists/A", ""), 422}},
	"put-list": {{call("PUT", "/api/v1/lists/list0", goodList), 200}, {call("PUT", "/api/v1/lists/list0", `{"action":"pass"}`), 422}, {call("PUT", "/api/v1/lists/list0", `{"action":"drop","kind":"regex"}`), 422},
		{call("PUT", "/api/v1/lists/list0", `{"action":"rate-limit","kind":"domain","rate_pps":5}`), 200}},
	"put-list-entries": {
		{request{"PUT", "/api/v1/lists/list0/entries", []string{"Content-Type", "text/plain"}, "192.0.2.1\n"}, 200},
		{request{"PUT", "/api/v1/lists/list0/entries", []string{"Content-Type", "text/plain"}, strings.Repeat("192.0.2.1\n", 20_000)}, 200},
		{request{"PUT", "/api/v1/lists/none/entries", []string{"Content-Type", "text/plain; charset=utf-8"}, "192.0.2.1"}, 404},
		{call("PUT", "/api/v1/lists/list0/entries", "[]"), 415},
	},
	"delete-list":  {{call("DELETE", "/api/v1/lists/list0", ""), 204}, {call("DELETE", "/api/v1/lists/none", ""), 404}},
	"get-panic":    {{call("GET", "/api/v1/panic", ""), 200}},
	"panic":        {{call("POST", "/api/v1/panic", `{"reason":"a drill"}`), 200}, {call("POST", "/api/v1/panic", ""), 200}},
	"end-panic":    {{call("DELETE", "/api/v1/panic", ""), 200}},
	"capture":      {{call("POST", "/api/v1/capture", `{"filter":"tcp port 443","count":10,"for":"2s"}`), 200}, {call("POST", "/api/v1/capture", `{"sensor":"none"}`), 404}, {call("POST", "/api/v1/capture", `{"filter":"tcp prot"}`), 422}},
	"list-groups":  {{call("GET", "/api/v1/groups", ""), 200}},
	"list-sensors": {{call("GET", "/api/v1/sensors", ""), 200}},
	"list-nodes":   {{call("GET", "/api/v1/nodes", ""), 200}},
	"get-ledger":   {{call("GET", "/api/v1/ledger", ""), 200}},
	"get-status":   {{call("GET", "/api/v1/status", ""), 200}},
	"get-live":     {{call("GET", "/api/v1/live", ""), 200}},
	"get-me":       {{call("GET", "/api/v1/me", ""), 200}},
	"stream":       {{call("GET", "/api/v1/stream?types=attack,live&heartbeat=1&last_event_id=7", ""), 200}, {call("GET", "/api/v1/stream?heart=1", ""), 422}},
	"get-openapi":  {{call("GET", "/api/v1/openapi.json", ""), 200}},
}

// TestContract drives every operation of the document and holds each answer against it.
func TestContract(t *testing.T) {
	r := newRig(t)
	if len(r.operations) != len(contractCases) {
		t.Errorf("the document has %d operations, this test knows %d", len(r.operations), len(contractCases))
	}
	for _, op := range r.operations {
		cases := contractCases[op.id]
		if len(cases) == 0 {
			t.Errorf("no case for the operation %s", op.id)
		}
		for _, c := range cases {
			if got := r.find(c.method, c.target); got != op {
				t.Fatalf("%s %s is a case of %s, the document says %v", c.method, c.target, op.id, got)
			}
			if w := r.as(t, "admin", c.request); w.Code != c.want {
				t.Errorf("%s %s: status %d, want %d: %s", c.method, c.target, w.Code, c.want, w.Body)
			}
			if c.method != http.MethodGet || c.want != http.StatusOK {
				continue
			}
			head := c.request
			head.method = http.MethodHead
			if w := r.as(t, "admin", head); w.Code != http.StatusOK || w.Body.Len() > 0 {
				t.Errorf("HEAD %s: status %d, %d bytes", c.target, w.Code, w.Body.Len())
			}
		}
	}
}

// TestDocument: the document has what a reader needs to know beside schemas.
func TestDocument(t *testing.T) {
	r := newRig(t)
	if r.root["openapi"] != "3.1.0" {
		t.Errorf("the document is of version %v", r.root["openapi"])
	}
	again, err := Document("test")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again, r.api.document) {
		t.Error("the document is not the same twice")
	}
	for _, name := range []string{"Attack", "Verdict", "EnforcementEvent", "WindowSummary", "Live", "StreamGap", "PageFlow", "Problem"} {
		if object(object(r.root["components"])["schemas"])[name] == nil {
			t.Errorf("the document has no schema %s", name)
		}
	}
}

// TestFilters: what a query says reaches the operations.
func TestFilters(t *testing.T) {
	r := newRig(t)
	r.as(t, "viewer", call("GET", "/api/v1/flows?from=1764064800000000001&to=2026-11-25T10:00:00Z&prefix=192.0.2.77/24&port=53&app=dns&host=h.example&limit=9&cursor=abc", ""))
	q, _ := r.mesh.asked().(ops.FlowQuery)
	if q.Range.From.UnixNano() != 1764064800000000001 || !q.Range.To.Equal(time.Date(2026, 11, 25, 10, 0, 0, 0, time.UTC)) ||
		q.Prefix.String() != "192.0.2.0/24" || q.Port != 53 || q.App != "dns" || q.Host != "h.example" || q.Limit != 9 || q.Cursor != "abc" {
		t.Errorf("flows were asked for with %+v", q)
	}
	r.as(t, "viewer", call("GET", "/api/v1/timeseries?from=1764064800000000000&step=90s&by=app", ""))
	if q, _ := r.mesh.asked().(ops.SeriesQuery); q.Step != 90*time.Second || q.By != "app" || q.Limit != 10 {
		t.Errorf("the series was asked for with %+v", q)
	}
	r.as(t, "viewer", call("GET", "/api/v1/attacks?active=true&type=dns", ""))
	if q, _ := r.mesh.asked().(ops.AttackQuery); !q.Active || q.Type != "dns" || q.Limit != 100 {
		t.Errorf("attacks were asked for with %+v", q)
	}
}

// TestOverTLS: the chain behind a real socket, as HTTP/2.
func TestOverTLS(t *testing.T) {
	r := newRig(t)
	server := httptest.NewUnstartedServer(r.chain)
	server.EnableHTTP2 = true
	server.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	server.StartTLS()
	defer server.Close()
	client := server.Client()
	defer client.CloseIdleConnections()
	for _, op := range r.operations {
		c := contractCases[op.id][0]
		req, err := http.NewRequestWithContext(t.Context(), c.method, server.URL+c.target, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+r.tokens["admin"])
		req.Header.Set("Accept-Encoding", "identity")
		for i := 0; i < len(c.header); i += 2 {
			req.Header.Set(c.header[i], c.header[i+1])
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		w := &httptest.ResponseRecorder{Code: resp.StatusCode, HeaderMap: resp.Header, Body: bytes.NewBuffer(body)}
		if err == nil {
			err = r.check(c.request, w)
		}
		if err != nil || resp.StatusCode/100 != 2 || resp.ProtoMajor != 2 {
			t.Errorf("%s: status %d over %s: %v", op.id, resp.StatusCode, resp.Proto, err)
		}
	}
}

// TestNothingLeaks: what goes wrong inside is in the log, not in the answer.
func TestNothingLeaks(t *testing.T) {
	r := newRig(t)
	w := r.as(t, "operator", call("POST", "/api/v1/panic", `{"reason":"fail"}`))
	if w.Code != 500 || strings.Contains(w.Body.String(), "deadline") {
		t.Errorf("status %d: %s", w.Code, w.Body)
	}
	r.mesh.fail(true, &api.Problem{Status: 503, Title: "Service Unavailable", Service: "persist", Detail: "persist does not answer"})
	w = r.as(t, "viewer", call("GET", "/api/v1/flows", ""))
	if p := problemOf(t, w); w.Code != 503 || p.Service != "persist" || w.Header().Get("Retry-After") != "1" {
		t.Errorf("without a database: status %d, Retry-After %q, %+v", w.Code, w.Header().Get("Retry-After"), p)
	}
	if w := r.as(t, "viewer", call("GET", "/api/v1/status", "")); w.Code != 200 {
		t.Errorf("what needs no database: status %d", w.Code)
	}
}

func TestNoSuchRoute(t *testing.T) {
	r := newRig(t)
	if w := r.as(t, "viewer", call("GET", "/api/v1/nothing", "")); w.Code != 404 || !strings.Contains(problemOf(t, w).Detail, "openapi.json") {
		t.Errorf("status %d: %s", w.Code, w.Body)
	}
	for _, c := range []struct{ method, target, allow string }{
		{"POST", "/api/v1/status", "GET, HEAD"}, {"PUT", "/api/v1/panic", "GET, HEAD, POST, DELETE"},
		{"PATCH", "/api/v1/rules/rule0", "GET, HEAD, PUT, DELETE"}, {"OPTIONS", "/api/v1/flows", "GET, HEAD"}, {"DELETE", "/api/v1/openapi.json", "GET, HEAD"},
	} {
		if w := r.as(t, "admin", call(c.method, c.target, "")); w.Code != 405 || w.Header().Get("Allow") != c.allow {
			t.Errorf("%s %s: status %d, Allow %q, want %q", c.method, c.target, w.Code, w.Header().Get("Allow"), c.allow)
		}
	}
}

// TestRouteMetric: requests are counted by route, not by what the path holds.
func TestRouteMetric(t *testing.T) {
	r := newRig(t)
	r.as(t, "viewer", call("GET", "/api/v1/rules/rule0", ""))
	r.as(t, "viewer", call("GET", "/api/v1/rules/none", ""))
	r.as(t, "viewer", call("GET", "/api/v1/status", ""))
	families, err := r.tel.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]uint64{}
	for _, f := range families {
		if f.GetName() != "tidegate_gateway_requests_seconds" {
			continue
		}
		for _, m := range f.Metric {
			key := ""
			for _, l := range m.Label {
				key += l.GetName() + "=" + l.GetValue() + " "
			}
			got[key] += m.GetHistogram().GetSampleCount()
		}
	}
	for _, want := range []string{"code=200 route=GET /api/v1/rules/{id} ", "code=404 route=GET /api/v1/rules/{id} ", "code=200 route=GET /api/v1/status "} {
		if got[want] != 1 {
			t.Errorf("%s was counted %d times: %v", want, got[want], got)
		}
	}
}
