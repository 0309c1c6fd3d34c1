package rest

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// broken are the ways in which a request is made a bad one. refused says that the answer must be 4xx, did that the
// request could be broken in this way.
var broken = map[string]func(g *generator, p *parts) (refused, did bool){
	"unknown parameter": func(g *generator, p *parts) (bool, bool) {
		p.query = append(p.query, [2]string{pick(g, "colour", "LIMIT", "limit[]", "ünï", strings.Repeat("n", 300)), "1"})
		return true, true
	},
	"parameter twice": func(_ *generator, p *parts) (bool, bool) {
		if len(p.query) == 0 {
			return false, false
		}
		p.query = append(p.query, p.query[0])
		return true, true
	},
	"empty parameter": func(g *generator, p *parts) (bool, bool) { return g.setQuery(p, "") },
	"parameter of control characters": func(g *generator, p *parts) (bool, bool) {
		return g.rawQuery(p, pick(g, "%00", "a%00b", "%1b[2J", "%0d%0aSet-Cookie:x", "%7f", "%c2%80"))
	},
	"parameter that is no UTF-8": func(g *generator, p *parts) (bool, bool) {
		return g.rawQuery(p, pick(g, "%ff", "%c0%af", "%ed%a0%80", "a%fe"))
	},
	"query that is not encoded": func(g *generator, p *parts) (bool, bool) {
		return g.rawQuery(p, pick(g, "%", "%zz", "%1", ";x=1"))
	},
	"overlong parameter": func(g *generator, p *parts) (bool, bool) {
		return g.setQuery(p, strings.Repeat("9", pick(g, 1100, 5000)))
	},
	"parameter of another type": func(g *generator, p *parts) (bool, bool) {
		name, ok := g.typed(p.op)
		if !ok {
			return false, false
		}
		p.set(name, pick(g, "x", "-1", "1e3", "0x10", "1.5", "99999999999999999999999", "-9223372036854775809", "NaN", " 1", "١", "null", "[]"))
		return true, true
	},
	"time that is none": func(g *generator, p *parts) (bool, bool) {
		if p.op.query["from"] == nil {
			return false, false
		}
		p.set(pick(g, "from", "to"), pick(g, "-15m", "yesterday", "2026-13-01T00:00:00Z", "9999-01-01T00:00:00Z", "0000-01-01T00:00:00Z", "9223372036854775808", "1e18", "2026-01-01", "2026-01-01T00:00:00"))
		return true, true
	},
	"range that ends before it begins": func(g *generator, p *parts) (bool, bool) {
		if p.op.query["from"] == nil {
			return false, false
		}
		p.set("from", pick(g, "2000000000000000000", "2026-01-01T00:00:00Z"))
		p.set("to", pick(g, "1", "2026-01-01T00:00:00Z", "1000000000000000000"))
		return true, true
	},
	"prefix that is none": func(g *generator, p *parts) (bool, bool) {
		if p.op.query["prefix"] == nil {
			return false, false
		}
		p.set("prefix", pick(g, "192.0.2.0/33", "example.org", "1.2.3", "::/129", "fe80::1%eth0", "/24", "1.2.3.4/-1", "1.2.3.4/24/24", "01.2.3.4"))
		return true, true
	},
	"step that is none": func(g *generator, p *parts) (bool, bool) {
		if p.op.query["step"] == nil {
			return false, false
		}
		p.set("step", pick(g, "0", "-1m", "1ns", "999ms", "9999999999h", "1y", "60", "5", "NaNs"))
		return true, true
	},
	"body that is no JSON": func(g *generator, p *parts) (bool, bool) {
		return p.spoil(pick(g, "x", "{", `{"action":`, "{]", "'a'", "NaN", "{\"action\":\"drop\",}", "\x00", "\xff\xfe", "<a/>", "action=drop"))
	},
	"body of another shape": func(g *generator, p *parts) (bool, bool) {
		return p.spoil(pick(g, "[]", `"text"`, "17", "true", `[{"action":"drop"}]`, strings.Repeat("[", 5000), strings.Repeat(`{"a":`, 200)+"1"+strings.Repeat("}", 200)))
	},
	"body that is null": func(_ *generator, p *parts) (bool, bool) {
		if p.body == "" || p.op.text {
			return false, false
		}
		p.body = "null"
		return true, true
	},
	"body with more after it": func(g *generator, p *parts) (bool, bool) {
		return p.spoil(p.body + pick(g, "x", "{}", "\x00", ",", " 1"))
	},
	"body with a name twice": func(g *generator, p *parts) (bool, bool) {
		name := pick(g, "action", "reason", "match")
		return p.spoil(`{"` + name + `":"drop","` + name + `":"count"}`)
	},
	"body with an unknown name": func(g *generator, p *parts) (bool, bool) {
		return g.setBody(p, func(body map[string]any) bool {
			body[pick(g, "colour", "Action", "id", "", "__proto__", "ünï")] = 1
			return true
		})
	},
	"body without a field": func(_ *generator, p *parts) (bool, bool) {
		did := p.body != "" && p.op.id != "panic" && p.op.id != "capture" && p.drop("action")
		return did, did
	},
	"body with a value of another type": func(g *generator, p *parts) (bool, bool) {
		return g.setBody(p, func(body map[string]any) bool {
			into := body
			names := slices.Sorted(maps.Keys(body))
			if m := object(body["match"]); len(m) > 0 && g.chance(50) {
				into, names = m, slices.Sorted(maps.Keys(m))
			}
			if len(names) == 0 {
				return false
			}
			into[pick(g, names...)] = pick[any](g, []any{}, nil, map[string]any{"a": 1}, -1.5, 1e300, []int{1})
			return true
		})
	},
	"body with a huge number": func(g *generator, p *parts) (bool, bool) {
		return g.setBody(p, func(body map[string]any) bool {
			body[pick(g, "priority", "rate_pps", "rate_bps")] = json.RawMessage(pick(g, "18446744073709551616", "1e400", "-1e400", "123456789012345678901234567890", "1e30"))
			return true
		})
	},
	"body with a port that is none": func(g *generator, p *parts) (bool, bool) {
		return g.setBody(p, func(body map[string]any) bool {
			m := object(body["match"])
			if m != nil {
				m["proto"], m["dport"] = "udp", pick[any](g, 65536, -1, 1.5, "53")
			}
			return m != nil
		})
	},
	"body with control characters": func(g *generator, p *parts) (bool, bool) {
		return g.setBody(p, func(body map[string]any) bool {
			name := "comment"
			if p.op.id == "panic" {
				name = "reason"
			}
			body[name] = pick(g, "\x00", "a\x00b", "\x1b[2J", "\u0085", "line\nbreak")
			return true
		})
	},
	"body with an overlong text": func(g *generator, p *parts) (bool, bool) {
		return g.setBody(p, func(body map[string]any) bool {
			name := pick(g, "comment", "for", "action")
			if p.op.id == "panic" {
				name = "reason"
			}
			body[name] = strings.Repeat("y", 600)
			return true
		})
	},
	"body that is too large": func(_ *generator, p *parts) (bool, bool) {
		return p.spoil(`{"comment":"` + strings.Repeat("z", 70000) + `"}`)
	},
	"body that is no UTF-8": func(g *generator, p *parts) (bool, bool) {
		return p.spoil(`{"action":"drop","match":{},"comment":"` + pick(g, "\xff", "\xc0\xaf", "\xed\xa0\x80") + `"}`)
	},
	"body of another media type": func(g *generator, p *parts) (bool, bool) {
		p.kind = pick(g, "", "text/plain", "application/xml", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/json; charset=latin1", "application/merge-patch+json", "json")
		return true, p.body != "" && !p.op.text
	},
	"body where none is": func(g *generator, p *parts) (bool, bool) {
		if p.op.method != http.MethodGet {
			return false, false
		}
		p.body = pick(g, "{}", "x")
		return true, true
	},
	"compressed body": func(_ *generator, p *parts) (bool, bool) {
		p.header = append(p.header, "Content-Encoding", "gzip")
		return true, p.body != ""
	},
	"bad header": func(g *generator, p *parts) (bool, bool) {
		name := pick(g, "If-Match", "Idempotency-Key", "Last-Event-ID", "If-None-Match", "Accept", "X-Request-Id", "Accept-Encoding", "Traceparent", "Origin")
		p.header = append(p.header, name, pick(g, "", " ", "ä", `"`, strings.Repeat("h", 300), strings.Repeat("k,", 2000), "-1", "\xff", `""`))
		return false, true
	},
	"headers that are too large": func(_ *generator, p *parts) (bool, bool) {
		p.header = append(p.header, "X-Large", strings.Repeat("l", 17000))
		return true, true
	},
	"another method": func(g *generator, p *parts) (bool, bool) {
		p.method = pick(g, "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "get")
		return g.find(p.method, p.path) == nil, true
	},
	"path with tricks": func(g *generator, p *parts) (bool, bool) {
		p.path = pick(g, "/api/v1/%2e%2e/v1/status", "/api/v1/../v1/status", "/api//v1/status", "//api/v1/status", "/api/v1/rules/%2e", "/api/v1/rules/a%2fb",
			"/api/v1/rules/a%00", "/api/v1/rules/%ff", "/api/v1/rules/a%5cb", `/api/v1/rules/a\b`, "/api/v1/rules/.%2e/", "/api/v1/./status", "/api/v1/rules/%0d%0a",
			"/api/v1/status/", "/api/v1/Status", "/api/v1", "/api/v1/", "/api/", "/api/v2/status", "/api/v1/rules//explain", "/api/v1/rules/a/explain/b",
			"/api/v1/rules/"+strings.Repeat("x", 129), "/api/v1/rules/"+strings.Repeat("x", 5000), "/api/v1/rules/a%20b", "/api/v1/rules/%E2%80%AE", "/api/v1/openapi.json/..")
		p.query, p.raw = nil, ""
		return true, true
	},
}

var brokenKinds = slices.Sorted(maps.Keys(broken))

// set gives a parameter a value in place of the one that it has.
func (p *parts) set(name, value string) {
	p.query = append(slices.DeleteFunc(p.query, func(kv [2]string) bool { return kv[0] == name }), [2]string{name, value})
}

func (g *generator) anyQuery(op *documented) (string, bool) {
	names := slices.Sorted(maps.Keys(op.query))
	if len(names) == 0 {
		return "", false
	}
	return pick(g, names...), true
}

func (g *generator) setQuery(p *parts, value string) (refused, did bool) {
	name, ok := g.anyQuery(p.op)
	if ok {
		p.set(name, value)
	}
	return ok, ok
}

func (g *generator) rawQuery(p *parts, value string) (refused, did bool) {
	name, ok := g.anyQuery(p.op)
	if ok {
		p.query = slices.DeleteFunc(p.query, func(kv [2]string) bool { return kv[0] == name })
		p.raw = url.QueryEscape(name) + "=" + value
	}
	return ok, ok
}

// typed is a parameter that is no text.
func (g *generator) typed(op *documented) (string, bool) {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(op.query)) {
		if s := op.query[name]; s["type"] != "string" || s["enum"] != nil {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return "", false
	}
	return pick(g, names...), true
}

// spoil exchanges the body where one is.
func (p *parts) spoil(body string) (refused, did bool) {
	if p.body == "" || p.op.text {
		return false, false
	}
	p.body = body
	return true, true
}

func (p *parts) drop(name string) bool {
	var body map[string]any
	if json.Unmarshal([]byte(p.body), &body) != nil {
		return false
	}
	delete(body, name)
	b, err := json.Marshal(body)
	p.body = string(b)
	return err == nil
}

// setBody changes the body's object.
func (g *generator) setBody(p *parts, change func(map[string]any) bool) (refused, did bool) {
	var body map[string]any
	if p.body == "" || json.Unmarshal([]byte(p.body), &body) != nil || !change(body) {
		return false, false
	}
	b, err := json.Marshal(body)
	if err != nil {
		return false, false
	}
	p.body = string(b)
	return true, true
}
