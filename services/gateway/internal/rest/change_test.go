package rest

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/api"
)

func ruleOf(t testing.TB, body []byte) api.Rule {
	t.Helper()
	var r api.Rule
	if err := json.Unmarshal(body, &r); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	return r
}

// TestConcurrentEdits: of many who change what they have read, one gets through, and the others hear of it.
func TestConcurrentEdits(t *testing.T) {
	r := newRig(t)
	read := r.as(t, "operator", call("GET", "/api/v1/rules/rule2", ""))
	tag := read.Header().Get("Etag")
	if !strings.HasPrefix(tag, `"`+ruleOf(t, read.Body.Bytes()).Revision+".") {
		t.Fatalf("the tag %s of a rule does not begin with its revision", tag)
	}
	const writers = 50
	codes := make(chan int, writers)
	var wg sync.WaitGroup
	for i := range writers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			q := call("PUT", "/api/v1/rules/rule2", `{"action":"count","match":{"src":"192.0.2.`+itoa(i)+`"}}`, "If-Match", tag)
			codes <- r.as(t, "operator", q).Code
		}()
	}
	wg.Wait()
	close(codes)
	count := map[int]int{}
	for c := range codes {
		count[c]++
	}
	if count[200] != 1 || count[412] != writers-1 {
		t.Errorf("statuses %v, want one 200 and %d times 412", count, writers-1)
	}
	now := r.as(t, "operator", call("GET", "/api/v1/rules/rule2", ""))
	rule := ruleOf(t, now.Body.Bytes())
	again := r.as(t, "operator", call("PUT", "/api/v1/rules/rule2", goodRule, "If-Match", `"`+rule.Revision+`"`))
	if again.Code != 200 || again.Header().Get("Etag") != `"`+ruleOf(t, again.Body.Bytes()).Revision+`"` {
		t.Errorf("a change of the newest revision: status %d, tag %s", again.Code, again.Header().Get("Etag"))
	}
}

func TestPreconditions(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		what, method, tag string
		want              int
	}{
		{"no tag", "PUT", "", 428},
		{"an old tag", "PUT", `"77"`, 412},
		{"no number", "PUT", `"x"`, 412},
		{"a weak tag", "PUT", `W/"3"`, 412},
		{"without quotes", "PUT", `3`, 412},
		{"an old tag", "DELETE", `"77"`, 412},
		{"its tag", "PUT", `"3"`, 200},
		{"its tag of before", "DELETE", `"3"`, 412},
		{"any", "DELETE", `*`, 204},
		{"any, when it is gone", "DELETE", `*`, 404},
		{"no tag, when it is gone", "DELETE", ``, 404},
	} {
		body := ""
		if c.method == "PUT" {
			body = goodRule
		}
		q := call(c.method, "/api/v1/rules/rule2", body)
		if c.tag != "" {
			q.header = append(q.header, "If-Match", c.tag)
		}
		if w := r.as(t, "operator", q); w.Code != c.want {
			t.Errorf("%s with %s: status %d, want %d", c.method, c.what, w.Code, c.want)
		}
	}
	q := call("PUT", "/api/v1/rules/rule1", goodRule, "If-Match", `"2"`, "If-Match", `"9"`)
	if w := r.as(t, "operator", q); w.Code != 400 {
		t.Errorf("two tags: status %d, want 400", w.Code)
	}
}

func TestIdempotency(t *testing.T) {
	r := newRig(t)
	q := call("POST", "/api/v1/rules", goodRule, "Idempotency-Key", "key-1")
	first := r.as(t, "operator", q)
	second := r.as(t, "operator", q)
	if first.Code != 201 || second.Code != 201 || first.Body.String() != second.Body.String() || r.mesh.count("add") != 1 {
		t.Errorf("statuses %d and %d, the rule was added %d times\n%s\n%s", first.Code, second.Code, r.mesh.count("add"), first.Body, second.Body)
	}
	if first.Header().Get("Idempotency-Replayed") != "" || second.Header().Get("Idempotency-Replayed") != "true" {
		t.Error("only the second answer is a replay and says so")
	}
	for _, name := range []string{"Location", "Etag", "Content-Type"} {
		if v := first.Header().Get(name); v == "" || second.Header().Get(name) != v {
			t.Errorf("%s: %q, then %q", name, v, second.Header().Get(name))
		}
	}
	other := call("POST", "/api/v1/rules", `{"action":"count","match":{}}`, "Idempotency-Key", "key-1")
	if w := r.as(t, "operator", other); w.Code != 422 || problemOf(t, w).Reason != "idempotency_key_reused" {
		t.Errorf("another request with the key: status %d", w.Code)
	}
	if w := r.as(t, "admin", q); w.Code != 201 || w.Header().Get("Idempotency-Replayed") != "" {
		t.Errorf("the same key of another user: status %d", w.Code)
	}
	// A refusal is given again, as the answer to the request that asks now.
	refused := call("POST", "/api/v1/rules", `{"action":"drop","match":{"dst":"203.0.113.1"}}`, "Idempotency-Key", "key-2")
	a, b := r.as(t, "operator", refused), r.as(t, "operator", refused)
	if a.Code != 422 || b.Code != 422 || problemOf(t, b).Reason != "never_block" || b.Header().Get("Idempotency-Replayed") != "true" || r.mesh.count("add") != 3 {
		t.Errorf("a refusal: status %d, then %d, %s", a.Code, b.Code, b.Body)
	}
	for _, key := range []string{"", "a b", "ä", strings.Repeat("k", 256)} {
		bad := call("DELETE", "/api/v1/panic", "", "Idempotency-Key", key)
		if w := r.as(t, "operator", bad); w.Code/100 != 4 {
			t.Errorf("the key %q: status %d", key, w.Code)
		}
	}
	revoke := call("DELETE", "/api/v1/rules/rule0", "", "Idempotency-Key", "key-3")
	a, b = r.as(t, "operator", revoke), r.as(t, "operator", revoke)
	if a.Code != 204 || b.Code != 204 || b.Header().Get("Idempotency-Replayed") != "true" {
		t.Errorf("revoked twice with one key: %d, then %d", a.Code, b.Code)
	}
}

func TestNotModified(t *testing.T) {
	r := newRig(t)
	for _, op := range r.operations {
		c := contractCases[op.id][0]
		if op.method != http.MethodGet || op.id == "stream" {
			continue
		}
		tag := r.as(t, "admin", c.request).Header().Get("Etag")
		for _, have := range []string{tag, `"other", W/` + tag, "*"} {
			q := c.request
			q.header = []string{"If-None-Match", have}
			w := r.as(t, "admin", q)
			if w.Code != 304 || w.Body.Len() > 0 || w.Header().Get("Etag") != tag {
				t.Errorf("%s with If-None-Match %s: status %d, tag %s, %d bytes", op.id, have, w.Code, w.Header().Get("Etag"), w.Body.Len())
			}
		}
		q := c.request
		q.header = []string{"If-None-Match", `"other"`}
		if w := r.as(t, "admin", q); w.Code != 200 || w.Header().Get("Cache-Control") != "private, no-cache" {
			t.Errorf("%s when it has changed: status %d, Cache-Control %q", op.id, w.Code, w.Header().Get("Cache-Control"))
		}
	}
	// The counters of a rule change under its revision; who polls must see them.
	tag := r.as(t, "viewer", call("GET", "/api/v1/rules/rule0", "")).Header().Get("Etag")
	r.mesh.mu.Lock()
	r.mesh.rules[0].Packets++
	r.mesh.mu.Unlock()
	if w := r.as(t, "viewer", call("GET", "/api/v1/rules/rule0", "", "If-None-Match", tag)); w.Code != 200 {
		t.Errorf("a rule that was hit meanwhile: status %d, want 200", w.Code)
	}
}

// TestSeenAtOnce: answers about the state now are kept for a moment, but not over a change.
func TestSeenAtOnce(t *testing.T) {
	r := newRig(t)
	for range 20 {
		r.as(t, "viewer", call("GET", "/api/v1/status", ""))
	}
	if n := r.mesh.count("status"); n > 10 {
		t.Errorf("20 reads at once asked for the state %d times", n)
	}
	if w := r.as(t, "viewer", call("GET", "/api/v1/panic", "")); strings.Contains(w.Body.String(), "true") {
		t.Errorf("panic is on: %s", w.Body)
	}
	r.as(t, "operator", call("POST", "/api/v1/panic", `{"reason":"a drill"}`))
	w := r.as(t, "viewer", call("GET", "/api/v1/panic", ""))
	var p api.Panic
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || !p.On || p.By != "the-operator" || p.Reason != "a drill" {
		t.Errorf("panic is not seen: %s", w.Body)
	}
}

// TestRulePages: a walk over pages sees every rule once, also when rules come and go meanwhile.
func TestRulePages(t *testing.T) {
	r := newRig(t)
	var seen []string
	target := "/api/v1/rules?limit=2"
	for n := 0; target != "" && n < 10; n++ {
		w := r.as(t, "viewer", call("GET", target, ""))
		var page api.Page[api.Rule]
		if err := json.Unmarshal(w.Body.Bytes(), &page); err != nil {
			t.Fatal(err)
		}
		for _, rule := range page.Items {
			seen = append(seen, rule.ID)
		}
		link := w.Header().Get("Link")
		if (page.Next == "") != (link == "") {
			t.Errorf("next %q, Link %q", page.Next, link)
		}
		target = ""
		if link != "" {
			target = strings.TrimSuffix(strings.TrimPrefix(link, "<"), `>; rel="next"`)
			if !strings.Contains(target, "limit=2") {
				t.Errorf("the link %s forgets the limit", link)
			}
		}
		if n == 0 { // the last rule of the page goes, and a new one comes
			r.as(t, "operator", call("DELETE", "/api/v1/rules/rule1", ""))
			r.as(t, "operator", call("POST", "/api/v1/rules", goodRule))
		}
	}
	if got := strings.Join(seen, " "); got != "rule0 rule1 rule2 rule3 rule4" {
		t.Errorf("the pages have %s", got)
	}
	w := r.as(t, "viewer", call("GET", "/api/v1/rules?origin=detector&state=shadow", ""))
	if got := w.Body.String(); strings.Count(got, `"origin":"detector"`) != 1 || strings.Contains(got, `"origin":"user"`) {
		t.Errorf("the detectors' rules: %s", got)
	}
}
