package rest

import (
	"encoding/json"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// generator makes requests from the document: good ones, and good ones with one thing broken. The same seed makes the
// same requests.
type generator struct {
	*document
	rnd  *rand.Rand
	made int
}

// generated is a request with what is known about its answer.
type generated struct {
	request
	role    string
	broken  string // what is wrong with it; empty: nothing
	refused bool   // the answer must be 4xx
}

func pick[T any](g *generator, from ...T) T { return from[g.rnd.IntN(len(from))] }

func (g *generator) chance(percent int) bool { return g.rnd.IntN(100) < percent }

// parts is a request before it is put together.
type parts struct {
	op     *documented
	method string
	path   string
	query  [][2]string
	raw    string // of the query, as it is
	header []string
	kind   string
	body   string
}

func (p *parts) request() request {
	target := p.path
	var q []string
	for _, kv := range p.query {
		q = append(q, url.QueryEscape(kv[0])+"="+url.QueryEscape(kv[1]))
	}
	if p.raw != "" {
		q = append(q, p.raw)
	}
	if len(q) > 0 {
		target += "?" + strings.Join(q, "&")
	}
	header := p.header
	if p.body != "" && p.kind != "" {
		header = append(slices.Clone(header), "Content-Type", p.kind)
	}
	return request{p.method, target, header, p.body}
}

func (g *generator) next() generated {
	op := pick(g, g.operations...)
	warm := g.made < 10*len(g.operations) // first every operation has its turn, unbroken
	if warm {
		op = g.operations[g.made%len(g.operations)]
	}
	g.made++
	p := g.good(op)
	out := generated{role: "admin"}
	if !warm && g.chance(60) {
		out.broken = pick(g, brokenKinds...)
		did := false
		for !did { // not every operation can be broken in every way
			p = g.good(pick(g, g.operations...))
			out.refused, did = broken[out.broken](g, &p)
		}
	} else if !warm && g.chance(10) {
		out.role = pick(g, ranks...)
		out.broken = "role " + out.role
	}
	out.request = p.request()
	return out
}

// good is a request that the document allows.
func (g *generator) good(op *documented) parts {
	id := pick(g, "none", "a.b_c:d-e", strings.Repeat("x", 128))
	if g.chance(75) { // one that is there
		switch {
		case strings.Contains(op.path, "/attacks/"):
			id = fakeAttack.ID
		case strings.Contains(op.path, "/verdicts/"):
			id = fakeVerdict.ID
		default:
			id = "rule" + itoa(g.rnd.IntN(5))
		}
	}
	name := pick(g, "list0", "list0", "none", "0-_", strings.Repeat("x", 64))
	p := parts{op: op, method: op.method, kind: "application/json", path: strings.NewReplacer("{id}", id, "{name}", name).Replace(op.path)}
	if op.text {
		p.kind, p.body = "text/plain", pick(g, "192.0.2.1\n", "# none\n", "10.0.0.0/8 ; x\r\n2001:db8::/32", strings.Repeat("192.0.2.1\n", 20_000))
	}
	for _, name := range slices.Sorted(maps.Keys(op.query)) {
		if g.chance(40) || op.id == "timeseries" && name == "from" {
			p.query = append(p.query, [2]string{name, g.goodQuery(name, op.query[name])})
		}
	}
	if op.body != nil && (op.id != "panic" || g.chance(80)) {
		body, err := json.Marshal(g.goodBody(op))
		if err != nil {
			panic(err) // plain values
		}
		p.body = string(body)
	}
	for _, name := range op.header {
		switch {
		case name == "If-Match" && (op.method == http.MethodPut || g.chance(30)):
			p.header = append(p.header, name, pick(g, "*", "*", "*", "*", `"1"`, `"3"`, `"4.abc"`, `"999"`))
		case name == "Idempotency-Key" && g.chance(30):
			p.header = append(p.header, name, "key-"+itoa(g.rnd.IntN(1000)))
		case name == "Last-Event-ID" && g.chance(30):
			p.header = append(p.header, name, "17")
		}
	}
	if g.chance(10) {
		p.header = append(p.header, "Accept", pick(g, "*/*", "application/json", "text/html", "image/png;q=0", ","))
	}
	if g.chance(10) {
		p.header = append(p.header, "If-None-Match", pick(g, "*", `"x"`, `W/"live1"`, `"live1"`, ",,"))
	}
	if op.method == http.MethodGet && g.chance(5) {
		p.method = http.MethodHead
	}
	return p
}

// goodQuery is a value that the schema of a parameter allows. Texts with a form of their own have examples here.
func (g *generator) goodQuery(name string, schema map[string]any) string {
	if enum, ok := schema["enum"].([]any); ok {
		s, _ := pick(g, enum...).(string)
		return s
	}
	switch schema["type"] {
	case "integer":
		low, high := bound(schema, "minimum", 0), bound(schema, "maximum", 1<<31)
		return strconv.FormatInt(pick(g, low, high, low+g.rnd.Int64N(high-low+1)), 10)
	case "boolean":
		return pick(g, "true", "false")
	}
	switch name {
	case "from":
		return pick(g, "1", "1764064800000000000", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00.123456789-11:30")
	case "to":
		return pick(g, "9223372036854775807", "2261-01-01T00:00:00Z", "1964064800000000000")
	case "prefix":
		return pick(g, "192.0.2.1", "192.0.2.0/24", "0.0.0.0/0", "2001:db8::/32", "::ffff:192.0.2.1")
	case "step":
		return pick(g, "1s", "90s", "1h30m", "1.5m", "9999h")
	case "types":
		return pick(g, "attack", "attack,verdict,enforcement,window,live,gap")
	case "last_event_id":
		return pick(g, "0", "17", strings.Repeat("9", 18))
	case "type":
		return pick(g, "syn_flood", "amp_dns")
	case "cursor":
		return pick(g, "MTc2NDA2NDgwMDAwMDAwMDAwMA.cnVsZTE", "MA.")
	}
	return pick(g, "tls", "a", "ünï→ç", "%", "a&b=c", "'; DROP TABLE flows; --", strings.Repeat("x", 60))
}

func bound(schema map[string]any, key string, otherwise int64) int64 {
	if n, ok := schema[key].(json.Number); ok {
		if f, err := n.Float64(); err == nil {
			return int64(f)
		}
	}
	return otherwise
}

func (g *generator) goodBody(op *documented) map[string]any {
	if op.id == "panic" {
		return map[string]any{"reason": pick(g, "", "a drill", "ünï→ç", strings.Repeat("x", 200))}
	}
	if op.id == "capture" {
		return map[string]any{"filter": pick(g, "", "tcp port 443", "ünï→ç"), "count": g.rnd.IntN(1000), "for": pick(g, "1s", "1m"), "snaplen": pick(g, 0, 262144)}
	}
	if op.id == "put-list" {
		return map[string]any{"kind": pick(g, "cidr", "domain"), "action": pick(g, "allow", "drop", "rate-limit", "count"), "rate_pps": pick(g, 0, 7), "url": pick(g, "", "https://lists.example/drop.txt"), "every": pick(g, "", "1h"), "comment": pick(g, "", "ünï→ç")}
	}
	action := pick(g, "allow", "drop", "rate-limit", "count")
	match := map[string]any{}
	maybe := func(name string, v any) {
		if g.chance(30) {
			match[name] = v
		}
	}
	maybe("src", pick(g, "198.51.100.0/24", "198.51.100.7"))
	maybe("dst", pick(g, "192.0.2.1", "203.0.113.1"))
	if g.chance(20) {
		return map[string]any{"action": "drop", "match": map[string]any{"host": pick(g, "example.org", "*.Example.org."), "src": "198.51.100.7"}}
	}
	maybe("length", pick(g, "60", "60-100"))
	maybe("ttl", pick(g, "40-64", "1"))
	maybe("fragment", g.chance(50))
	if g.chance(50) {
		match["proto"] = "tcp"
		maybe("dport", g.rnd.IntN(65536))
		maybe("sport", g.rnd.IntN(65536))
		maybe("tcp_flags", pick(g, "S", "S/SA"))
	}
	body := map[string]any{"action": action, "match": match}
	if action == "rate-limit" {
		body["rate_pps"] = 1 + g.rnd.IntN(1000000)
		if g.chance(50) {
			body["per_source"] = g.chance(70)
		}
	}
	if g.chance(30) {
		body["priority"] = g.rnd.IntN(200) - 100
	}
	if g.chance(30) {
		body["comment"] = pick(g, "", "why not", "ünï→ç", `"quoted"`)
	}
	if g.chance(30) {
		body["for"] = pick(g, "10m", "0", "1h30m", "87600h")
	}
	return body
}
