package page

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/caller"
)

const hostile = `<script>alert(1)</script>"'><img src=x>`

// operations records what it was asked to do.
type operations struct {
	err   error
	asked []any
	rules []api.Rule
}

func (o *operations) Rules(context.Context) ([]api.Rule, error) { return o.rules, o.err }

func (o *operations) DryRun(_ context.Context, in api.RuleInput) (api.DryRun, error) {
	o.asked = append(o.asked, in)
	return api.DryRun{Accepted: true, Rule: api.RuleSpec{Action: in.Action, MatchText: "udp to 198.51.100.7"}, Matched: &api.Matched{
		Flows: 12, Packets: 34567, Bytes: 8_900_000, Apps: []api.TopRow{{Key: "dns", Flows: 7}, {Key: hostile, Flows: 5}}, Approximate: true,
	}}, o.err
}

func (o *operations) AddRule(_ context.Context, in api.RuleInput) (api.Rule, error) {
	o.asked = append(o.asked, in)
	return api.Rule{State: "active", RuleSpec: api.RuleSpec{ID: "new", Action: in.Action, MatchText: "udp"}}, o.err
}

func (o *operations) Revoke(_ context.Context, id string) error {
	o.asked = append(o.asked, id)
	return o.err
}

func (o *operations) Panic(_ context.Context, on bool, reason string) (api.PanicResult, error) {
	o.asked = append(o.asked, on, reason)
	return api.PanicResult{Panic: api.Panic{On: on}, Held: 3, Nodes: []api.PanicNode{{Node: "e1", Done: true}}}, o.err
}

func (o *operations) Attack(_ context.Context, id string) (api.AttackDetail, error) {
	o.asked = append(o.asked, id)
	return sampleDetail(), o.err
}

func sampleAttack() api.Attack {
	const t0 = 1_790_000_000_000_000_000
	return api.Attack{
		ID: "syn_flood-198.51.100.7-29833333", Type: "syn_flood", Target: "198.51.100.7", State: "updated", Sensor: "edge-1", FirstNs: t0,
		DetectedNs: t0 + 104e6, FirstDropNs: t0 + 109e6, UpdatedNs: t0 + 5e9, Packets: 48_123_456, PPS: 1_240_000, BPS: 595_200_000,
		Sources: 48_211, TopSources: []string{"203.0.113.9"}, TraceID: "4bf92f3577b34da6a3ce929d0e0e4736",
	}
}

func sampleDetail() api.AttackDetail {
	a := sampleAttack()
	return api.AttackDetail{Attack: a, PcapURL: "/api/v1/attacks/x/pcap",
		Timeline: []api.TimelineEntry{
			{TimeNs: a.FirstNs, Kind: "first_packet", Text: "first packet", Node: "edge-1"},
			{TimeNs: a.DetectedNs, Kind: "attack", Text: "detected: " + hostile, Node: "edge-1"},
			{TimeNs: a.FirstDropNs, Kind: "enforcement", Text: "first packet dropped", Node: "edge-1", Packets: 1},
		},
		Verdicts: []api.Verdict{{DecidedNs: a.DetectedNs, Key: "signature", Explanation: "SYN packets of 60 bytes from 48,211 sources.",
			Rules: []api.RuleSpec{{Action: "drop", MatchText: "tcp S/SA length 60 to 198.51.100.7"}},
			Evidence: api.Evidence{Features: map[string]float64{"syn_pps": 48000, "completion": 0.0125}, Thresholds: map[string]float64{"syn_pps": 5000},
				ConfigVersion: "c1", AttackShare: 0.991, Samples: 32}}}}
}

func sampleRules() []api.Rule {
	return []api.Rule{
		{RuleSpec: api.RuleSpec{ID: "d1", Action: "drop", MatchText: "tcp S/SA length 60 to 198.51.100.7", Origin: "detector", AttackID: sampleAttack().ID,
			ExpiresNs: api.Nanos(time.Now().Add(14 * time.Second).UnixNano())}, State: "active", Packets: 48_000_000},
		{RuleSpec: api.RuleSpec{ID: "u1", Action: "rate-limit", MatchText: "udp from 203.0.113.0/24", Origin: "user", RatePPS: 1000, PerSource: true, Comment: hostile}, State: "shadow", Packets: 812},
		{RuleSpec: api.RuleSpec{ID: "u2", Action: "drop", MatchText: "from 192.0.2.1", Origin: "user"}, State: "refused", Reason: "never_block", Detail: "192.0.2.1 is the gateway."},
	}
}

func sampleLive() api.Live {
	return api.Live{
		TimeNs: api.Nanos(time.Now().UnixNano()), Enforcing: true, Attacks: []api.Attack{sampleAttack()},
		TopDst:  []api.Talker{{Addr: "198.51.100.7", PPS: 1_250_000, BPS: 6e8}, {Addr: "2001:db8::80", PPS: 812, BPS: 6e6}},
		TopSrc:  []api.Talker{{Addr: "203.0.113.9", PPS: 41_000, BPS: 19e6}, {Addr: "203.0.113.77", PPS: 950, BPS: 1e6}},
		Ledger:  api.Ledger{Stages: []api.Stage{{Stage: "xdp", In: 5e9}}, Difference: 812},
		Missing: []api.Missing{{Service: "persist", Address: "127.0.0.1:50054", Problem: "connection refused"}},
	}
}

type rig struct {
	*Page
	ops   *operations
	state api.Live
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{ops: &operations{rules: sampleRules()}, state: sampleLive()}
	p, err := New(Deps{
		Telemetry: telemetry.Discard("gateway"), Operations: r.ops, Live: func() api.Live { return r.state },
		Login: func(_ *http.Request, token string) (*http.Cookie, error) {
			if token != "good" {
				return nil, &api.Problem{Status: http.StatusUnauthorized, Title: "Token not accepted", Detail: "The token is signed with a key that is not known here."}
			}
			return &http.Cookie{Name: "session", Value: token, HttpOnly: true}, nil
		},
		Logout: func(*http.Request) *http.Cookie { return &http.Cookie{Name: "session", MaxAge: -1} },
	})
	if err != nil {
		t.Fatal(err)
	}
	r.Page = p
	return r
}

// ask sends a request as somebody with a role; form makes it a POST.
func (r *rig) ask(role caller.Role, path string, form url.Values) *httptest.ResponseRecorder {
	req := httptest.NewRequest(http.MethodGet, path, nil)
	if form != nil {
		req = httptest.NewRequest(http.MethodPost, path, strings.NewReader(form.Encode()))
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if role != caller.Nobody {
		c := caller.Caller{Subject: "ada", Role: role, Expires: time.Now().Add(time.Hour), RequestID: "r1"}
		req = req.WithContext(caller.With(req.Context(), c))
	}
	w := httptest.NewRecorder()
	r.ServeHTTP(w, req)
	return w
}

func contains(t *testing.T, w *httptest.ResponseRecorder, status int, texts ...string) {
	t.Helper()
	if w.Code != status {
		t.Errorf("status %d, want %d", w.Code, status)
	}
	for _, s := range texts {
		if !strings.Contains(w.Body.String(), s) {
			t.Errorf("no %q in %s", s, w.Body)
		}
	}
}

func TestRoles(t *testing.T) {
	reads := []string{"/ui/live", "/ui/rules"}
	writes := []string{"/ui/rules", "/ui/rules/preview", "/ui/rules/u1/revoke", "/ui/panic"}
	form := url.Values{"action": {"drop"}, "on": {"true"}}
	for role, want := range map[caller.Role][2]int{
		caller.Nobody: {401, 401}, caller.Viewer: {200, 403}, caller.Operator: {200, 200}, caller.Admin: {200, 200},
	} {
		for _, path := range reads {
			if w := newRig(t).ask(role, path, nil); w.Code != want[0] {
				t.Errorf("%s GET %s: %d, want %d", role, path, w.Code, want[0])
			}
		}
		for _, path := range writes {
			r := newRig(t)
			w := r.ask(role, path, form)
			if w.Code != want[1] || (len(r.ops.asked) > 0) != (want[1] == 200) {
				t.Errorf("%s POST %s: %d after %v, want %d", role, path, w.Code, r.ops.asked, want[1])
			}
		}
	}
	for _, path := range []string{"/", "/attacks/x"} {
		if w := newRig(t).ask(caller.Nobody, path, nil); w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/login" {
			t.Errorf("nobody GET %s: %d %s", path, w.Code, w.Header().Get("Location"))
		}
	}
	actions := regexp.MustCompile(`hx-post|data-open|<dialog`)
	if w := newRig(t).ask(caller.Viewer, "/", nil); w.Code != 200 || actions.MatchString(w.Body.String()) {
		t.Errorf("a viewer is offered actions: %d %s", w.Code, w.Body)
	}
	if w := newRig(t).ask(caller.Operator, "/", nil); len(actions.FindAllString(w.Body.String(), -1)) < 8 {
		t.Errorf("an operator is not offered the actions: %s", w.Body)
	}
}

func TestHome(t *testing.T) {
	r := newRig(t)
	w := r.ask(caller.Operator, "/", nil)
	contains(t, w, 200, "syn flood", "1.24 M", "104 ms", "109 ms", "dropping", "enforcing", "812 in flight", "persist at 127.0.0.1:50054 (connection refused)",
		"rate-limit 1.00 k packets/s a source", "192.0.2.1 is the gateway.", `aria-label="Revoke drop from 192.0.2.1"`)
	// A span, which does not depend on the browser's clock.
	if !regexp.MustCompile(`data-expires-in="(3600000|359\d{4})"`).MatchString(w.Body.String()) {
		t.Errorf("the session's hour is not told: %s", w.Body)
	}
	if h := w.Header(); h.Get("Content-Security-Policy") != Policy || h.Get("Cache-Control") != "no-store" {
		t.Errorf("%v", h)
	}
	r.state.Panic, r.state.Attacks = api.Panic{On: true, By: hostile}, nil
	r.state.Ledger.Difference = -5_000_000_000
	contains(t, r.ask(caller.Operator, "/ui/live", nil), 200, "Panic is on.", "Release panic", "No attack now.", "a service is missing", `hx-swap-oob="true"`)
	r.state.Missing = nil
	contains(t, r.ask(caller.Viewer, "/ui/live", nil), 200, "5.00 G unaccounted, most in xdp")

	r.ops.err = &api.Problem{Status: 503, Title: "Rules are not known", Detail: "enforce does not answer", Service: "enforce"}
	contains(t, r.ask(caller.Viewer, "/ui/rules", nil), 200, "enforce does not answer", "At fault: enforce.")
}

// What users and packets say is text, wherever it is shown, and no script or style is inline.
func TestEscaping(t *testing.T) {
	r := newRig(t)
	r.state.Attacks[0].ID, r.state.Attacks[0].Target, r.state.TopDst[0].Addr = hostile+"/../x", hostile, hostile
	r.state.Missing[0].Problem = hostile
	r.ops.rules[0].MatchText = hostile
	detail := r.ask(caller.Viewer, "/attacks/x", nil)
	r.ops.err = &api.Problem{Status: 422, Title: hostile, Errors: []api.ProblemDetail{{Location: hostile, Message: hostile}}}
	bad := r.ask(caller.Operator, "/ui/rules/preview", url.Values{"action": {"drop"}})
	lost := r.ask(caller.Viewer, "/attacks/x", nil)
	r.ops.err = nil
	inline := regexp.MustCompile(`(?i)<script>|<script[^>]*[^r]>[^<]|<style|\sstyle=|\son[a-z]+=|javascript:|<img src=x`)
	for name, w := range map[string]*httptest.ResponseRecorder{
		"home": r.ask(caller.Operator, "/", nil), "live": r.ask(caller.Operator, "/ui/live", nil), "detail": detail, "problem": bad, "error": lost,
		"preview": r.ask(caller.Operator, "/ui/rules/preview", url.Values{"action": {"drop"}}),
		"login":   r.ask(caller.Nobody, "/login?expired", nil), "token": r.ask(caller.Nobody, "/login", url.Values{"token": {hostile}}),
	} {
		body := w.Body.String()
		if m := inline.FindString(body); m != "" {
			t.Errorf("%s: %q in %s", name, m, body)
		}
		if name != "login" && name != "token" && !strings.Contains(body, "&lt;script&gt;") {
			t.Errorf("%s does not show the text: %s", name, body)
		}
	}
}

func TestLogin(t *testing.T) {
	r := newRig(t)
	contains(t, r.ask(caller.Nobody, "/login?expired", nil), 200, "Your session is over", `name="token"`)
	w := r.ask(caller.Nobody, "/login", url.Values{"token": {"bad"}})
	contains(t, w, 401, "Token not accepted", "a key that is not known here", `name="token"`)
	if strings.Contains(w.Body.String(), ">bad<") || w.Header().Get("Set-Cookie") != "" {
		t.Errorf("the token is shown again, or taken: %v %s", w.Header(), w.Body)
	}
	w = r.ask(caller.Nobody, "/login", url.Values{"token": {"good"}})
	if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/" || !strings.Contains(w.Header().Get("Set-Cookie"), "session=good") {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	// What a terminal adds when a long line is copied out of it is no part of a token.
	if w = r.ask(caller.Nobody, "/login", url.Values{"token": {" go\r\nod\r\n"}}); w.Code != http.StatusSeeOther || !strings.Contains(w.Header().Get("Set-Cookie"), "session=good") {
		t.Errorf("with line ends: %d %v", w.Code, w.Header())
	}
	if w := r.ask(caller.Viewer, "/login", nil); w.Code != http.StatusSeeOther {
		t.Errorf("%d for who is logged in", w.Code)
	}
	w = r.ask(caller.Viewer, "/logout", url.Values{})
	if w.Code != http.StatusSeeOther || !strings.Contains(w.Header().Get("Set-Cookie"), "Max-Age=0") {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	if w := r.ask(caller.Nobody, "/login", url.Values{"token": {strings.Repeat("x", maxForm)}}); w.Code != http.StatusRequestEntityTooLarge {
		t.Errorf("%d for a large form", w.Code)
	}
}

func TestActions(t *testing.T) {
	port, whole := uint16(53), false
	form := url.Values{
		"action": {"rate-limit"}, "rate": {"1000"}, "rate_unit": {"bps"}, "per_source": {"true"}, "src": {" 203.0.113.0/24 "}, "dst": {"198.51.100.7"}, "proto": {"udp"},
		"sport": {"53"}, "dport": {""}, "tcp_flags": {""}, "length": {"60-100"}, "ttl": {"64"}, "fragment": {"false"}, "out_of_state": {"true"}, "priority": {"-3"}, "comment": {"c"}, "for": {"10m"},
	}
	want := api.RuleInput{Action: "rate-limit", RateBPS: 1000, PerSource: true, Priority: -3, Comment: "c", For: "10m", Match: api.Match{
		Src: "203.0.113.0/24", Dst: "198.51.100.7", Proto: "udp", SrcPort: &port, Length: "60-100", TTL: "64", Fragment: &whole, OutOfState: true}}
	r := newRig(t)
	contains(t, r.ask(caller.Operator, "/ui/rules/preview", form), 200, "Would be accepted", "12 flows, 34.6 k packets, 8.90 MB", "dns 7", "were not looked at")
	w := r.ask(caller.Operator, "/ui/rules", form)
	contains(t, w, 200, "Added:")
	if d := cmp.Diff([]any{want, want}, r.ops.asked); d != "" {
		t.Error(d)
	}
	if !strings.Contains(w.Header().Get("HX-Trigger"), "tg-rules") {
		t.Errorf("%v", w.Header())
	}
	r = newRig(t)
	contains(t, r.ask(caller.Operator, "/ui/rules/a%2Fb/revoke", url.Values{}), 200, "Rule a/b is revoked.")
	contains(t, r.ask(caller.Operator, "/ui/panic", url.Values{"on": {"true"}, "reason": {" wrong rule "}}), 200, "Panic is on.", "3 detectors", "e1: done")
	contains(t, r.ask(caller.Operator, "/ui/panic", url.Values{"on": {"perhaps"}}), 400, "Unclear request")
	if d := cmp.Diff([]any{"a/b", true, "wrong rule"}, r.ops.asked); d != "" {
		t.Error(d)
	}
	r = newRig(t)
	contains(t, r.ask(caller.Operator, "/ui/rules", url.Values{"action": {"rate-limit"}, "sport": {"70000"}, "priority": {"high"}}), 422,
		"<b>rate</b>: give a whole number from 1 on", "<b>sport</b>: give a port", "<b>priority</b>: give a whole number")
	if len(r.ops.asked) > 0 {
		t.Errorf("%v was asked for", r.ops.asked)
	}
	r.ops.err = errors.New("secret detail")
	w = r.ask(caller.Operator, "/ui/rules", url.Values{"action": {"drop"}})
	contains(t, w, 500, "Something went wrong", "Request r1")
	if strings.Contains(w.Body.String(), "secret") {
		t.Errorf("an inner error is shown: %s", w.Body)
	}
}

func TestAttackDetail(t *testing.T) {
	r := newRig(t)
	contains(t, r.ask(caller.Viewer, "/attacks/a%2Fb", nil), 200, "first packet dropped", "109 ms", "syn pps was 48.0 k, the threshold is 5.00 k (9.6 times).",
		"completion was 0.0125.", "99.1%", `href="/api/v1/attacks/x/pcap" download`, "length 60 to 198.51.100.7")
	if r.ops.asked[0] != "a/b" {
		t.Errorf("asked for %v", r.ops.asked)
	}
	r.ops.err = &api.Problem{Status: 404, Detail: "no attack has this id"}
	contains(t, r.ask(caller.Viewer, "/attacks/x", nil), 404, "Not Found", "no attack has this id", "Back to the live page")
}

// The whole page must come over a thin line: 200 KiB compressed.
func TestTransfer(t *testing.T) {
	r := newRig(t)
	home := r.ask(caller.Operator, "/", nil).Body.String()
	total := len(home) // edge compresses it; here it counts as it is
	links := regexp.MustCompile(`(?:src|href)="(/static/[^"]+)"`).FindAllStringSubmatch(home, -1)
	if len(links) < 6 {
		t.Fatalf("%v", links)
	}
	seen := map[string]bool{}
	for _, l := range links {
		if seen[l[1]] {
			continue
		}
		seen[l[1]] = true
		req := httptest.NewRequest(http.MethodGet, l[1], nil)
		plain := httptest.NewRecorder()
		r.ServeHTTP(plain, req)
		req.Header.Set("Accept-Encoding", "br;q=1, gzip")
		packed := httptest.NewRecorder()
		r.ServeHTTP(packed, req)
		h := packed.Header()
		if packed.Code != 200 || h.Get("Content-Encoding") != "gzip" || !strings.Contains(h.Get("Cache-Control"), "immutable") || h.Get("Vary") == "" || h.Get("Content-Type") == "" {
			t.Errorf("%s: %d %v", l[1], packed.Code, h)
		}
		if plain.Header().Get("Content-Encoding") != "" || plain.Body.Len() == 0 {
			t.Errorf("%s: %v", l[1], plain.Header())
		}
		total += packed.Body.Len()
	}
	t.Logf("%d bytes", total)
	if total > 200<<10 {
		t.Errorf("%d bytes", total)
	}
	w := r.ask(caller.Nobody, "/static/page.css", nil)
	if w.Code != 404 {
		t.Errorf("%d for a name without hash", w.Code)
	}
	for header, want := range map[string]bool{"": false, "gzip": true, "br, gzip;q=0.5": true, "gzip;q=0": false, "xgzip": false} {
		if acceptsGzip(header) != want {
			t.Errorf("%q: not %v", header, want)
		}
	}
}

// Vendored files are those that VENDOR.md names.
func TestVendor(t *testing.T) {
	doc, err := os.ReadFile("VENDOR.md")
	if err != nil {
		t.Fatal(err)
	}
	files, err := staticFiles.ReadDir("static/vendor")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasSuffix(f.Name(), ".LICENSE") {
			continue
		}
		h, err := staticFiles.Open("static/vendor/" + f.Name())
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.New()
		if _, err := io.Copy(sum, h); err != nil {
			t.Fatal(err)
		}
		if want := "| " + f.Name() + " |"; !strings.Contains(string(doc), want) || !strings.Contains(string(doc), "sha256-"+base64.StdEncoding.EncodeToString(sum.Sum(nil))) {
			t.Errorf("VENDOR.md does not have %s as it is", f.Name())
		}
	}
}

func TestWords(t *testing.T) {
	for in, want := range map[float64]string{0: "0", 7: "7", 999: "999", 999.6: "1.00 k", 1234: "1.23 k", 48_211: "48.2 k", 999_600: "1.00 M", 595.2e6: "595 M", 2e15: "2.00 P"} {
		if got := si(in); got != want {
			t.Errorf("si(%v) = %q, want %q", in, got, want)
		}
	}
	now := time.Unix(100, 0)
	for in, want := range map[api.Nanos]string{0: "never", 99e9: "expired", 130e9: "30 s", 1000e9: "15 min", 8000e9: "2 h 11 min", 1e15: "11 d"} {
		if got := left(in, now); got != want {
			t.Errorf("left(%d) = %q, want %q", in, got, want)
		}
	}
	if got := since(5e9, 17e9+4e8); got != "12s" || since(0, 1) != "–" || since(2, 1) != "0 ms" {
		t.Errorf("since: %q", got)
	}
}
