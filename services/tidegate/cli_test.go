package main

import (
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/api/client"
	"github.com/tidegate-mesh/tidegate/libs/config"
)

var update = flag.Bool("update", false, "write testdata/commands.txt from what the commands print")

func TestMain(m *testing.M) {
	if os.Getenv("TIDEGATE_TEST_MAIN") != "" { // started by a shell of TestCompletionInShells
		main()
		return
	}
	time.Local = time.UTC // what the tables show
	os.Exit(m.Run())
}

// reads are the commands that read, with the objects that --json must print.
var reads = []struct {
	args string
	want []any // nil: text only
}{
	{"whoami", []any{identity}},
	{"status", []any{statusOne}},
	{"ledger", []any{ledgerOne}},
	{"flows", []any{flowOne, flowTwo}},
	{"flows --facts --ja4 t13d1516h2_8daaf6152771_e5627efa2ab1 --risk malformed", []any{flowOne, flowTwo}},
	{"top", []any{topOne}},
	{"timeseries", []any{series}},
	{"attacks", []any{attackOne}},
	{"attacks list --active", []any{attackOne}},
	{"attacks show x", []any{detail}},
	{"verdicts", []any{verdictOne}},
	{"verdicts show v-1", []any{verdictOne}},
	{"rules list", []any{ruleOne, ruleTwo}},
	{"rules explain d-17", []any{explanation}},
	{"rules dry-run --action drop --src 192.0.2.7", []any{dryRun}},
	{"lists", []any{listOne}},
	{"lists show drop", []any{listWhole}},
	{"groups", []any{groupOne, groupTwo}},
	{"sensors", []any{sensorOne}},
	{"nodes", []any{nodeOne}},
	{"audit", []any{auditOne}},
	{"panic status", []any{statusOne.Panic}},
}

// TestTables compares what the commands print with testdata/commands.txt.
func TestTables(t *testing.T) {
	newGateway(t, allRoutes()).loggedIn(t)
	var got strings.Builder
	for _, c := range reads {
		out, _, err := command(t, "", strings.Fields(c.args)...)
		if err != nil {
			t.Errorf("%s: %v", c.args, err)
		}
		out = strings.ReplaceAll(out, os.Getenv("TIDEGATE_CREDENTIALS"), "FILE")
		got.WriteString("$ tidegate " + c.args + "\n" + out + "\n")
	}
	text := got.String()
	if i := strings.Index(text, " at https://127.0.0.1:"); i >= 0 { // the server's port
		text = text[:i] + " at GATEWAY" + text[i+strings.Index(text[i:], " until"):]
	}
	file := filepath.Join("testdata", "commands.txt")
	if *update {
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if text == string(want) {
		return
	}
	a, b := strings.Split(text, "\n"), strings.Split(string(want), "\n")
	for i := range a {
		if i >= len(b) || a[i] != b[i] {
			t.Fatalf("line %d of %s (write it anew with -update):\n got %q\nwant %q", i+1, file, a[i], b[min(i, len(b)-1)])
		}
	}
	t.Fatalf("%s has %d lines more", file, len(b)-len(a))
}

func TestJSONIsWhatTheAPISays(t *testing.T) {
	newGateway(t, allRoutes()).loggedIn(t)
	for _, c := range reads {
		out, _, err := command(t, "", append(strings.Fields(c.args), "--json")...)
		if err != nil {
			t.Errorf("%s: %v", c.args, err)
			continue
		}
		lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
		if len(lines) != len(c.want) {
			t.Errorf("%s: %d lines, want %d: %s", c.args, len(lines), len(c.want), out)
			continue
		}
		for i, want := range c.want {
			b, err := json.Marshal(want)
			if err != nil {
				t.Fatal(err)
			}
			var x, y any
			if err := errors.Join(json.Unmarshal(b, &x), json.Unmarshal([]byte(lines[i]), &y)); err != nil || !reflect.DeepEqual(x, y) {
				t.Errorf("%s: %v\n got %s\nwant %s", c.args, err, lines[i], b)
			}
		}
	}
}

// TestRequests looks at what the commands ask for.
func TestRequests(t *testing.T) {
	g := newGateway(t, allRoutes())
	g.loggedIn(t)
	for _, c := range []struct{ args, want string }{
		{"flows --from 2026-01-01T00:00:00Z --to 2026-01-01T01:00:00Z --prefix 192.0.2.0/24 --app tls --host example.org --port 443 --limit 7",
			"GET flows?app=tls&from=1767225600000000000&host=example.org&limit=7&port=443&prefix=192.0.2.0%2F24&to=1767229200000000000"},
		{"top --by host --from 2026-01-01T00:00:00Z --limit 3", "GET top?by=host&from=1767225600000000000&limit=3"},
		{"timeseries --by app --step 1m --from 2026-01-01T00:00:00Z", "GET timeseries?by=app&from=1767225600000000000&limit=10&step=1m0s"},
		{"timeseries --from 2026-01-01T00:00:00Z", "GET timeseries?from=1767225600000000000&limit=10"},
		{"attacks --active --type syn_flood --from 2026-01-01T00:00:00Z", "GET attacks?active=true&from=1767225600000000000&limit=100&type=syn_flood"},
		{"attacks show a/../b", "GET attacks/a%2F..%2Fb"},
		{"verdicts --attack x --from 2026-01-01T00:00:00Z", "GET verdicts?attack_id=x&from=1767225600000000000&limit=100"},
		{"audit --actor ada --action rule.add --target u-2 --from 2026-01-01T00:00:00Z", "GET audit?action=rule.add&actor=ada&from=1767225600000000000&limit=100&target=u-2"},
		{"rules add --action rate-limit --src 192.0.2.9 --dst 198.51.100.0/24 --proto tcp --sport 0 --dport 443 --tcp-flags S/SA --length 40-60 --ttl 64 --no-fragment --pps 100 --for 1m --priority 5 --comment why",
			`POST rules {"action":"rate-limit","match":{"src":"192.0.2.9","dst":"198.51.100.0/24","proto":"tcp","sport":0,"dport":443,"tcp_flags":"S/SA","length":"40-60","ttl":"64","fragment":false},"rate_pps":100,"priority":5,"comment":"why","for":"1m0s"}`},
		{"rules add --action drop --host *.example.org --proto tcp", `POST rules {"action":"drop","match":{"host":"*.example.org","proto":"tcp"},"for":"1h0m0s"}`},
		{"lists put names --kind domain --action rate-limit --pps 5 --wait 0", `PUT lists/names {"kind":"domain","action":"rate-limit","rate_pps":5}`},
		{"rules add --action rate-limit --dst 198.51.100.7 --bps 1000000 --per-source",
			`POST rules {"action":"rate-limit","match":{"dst":"198.51.100.7"},"rate_bps":1000000,"per_source":true,"for":"1h0m0s"}`},
		{"rules add --action drop --dst 198.51.100.0/24 --proto udp --sport 53 --out-of-state",
			`POST rules {"action":"drop","match":{"dst":"198.51.100.0/24","proto":"udp","sport":53,"out_of_state":true},"for":"1h0m0s"}`},
		{"rules add --action rate-limit --dst 198.51.100.7 --pps 100 --scope interface:edge-1/eth0 --shadow --escalate-after 30s",
			`POST rules {"action":"rate-limit","match":{"dst":"198.51.100.7"},"rate_pps":100,"scope":"interface:edge-1/eth0","shadow":true,"escalate_after":"30s","for":"1h0m0s"}`},
		{"rules add --action drop --src 192.0.2.9 --for 0", `POST rules {"action":"drop","match":{"src":"192.0.2.9"},"for":"0s"}`},
		{"rules dry-run --action drop --src 192.0.2.9", `POST rules/dry-run {"action":"drop","match":{"src":"192.0.2.9"},"for":"1h0m0s"}`},
		{"rules list --state refused --origin user", "GET rules?cursor=p2&limit=100&origin=user&state=refused"},
		{"rules revoke d-17", "DELETE rules/d-17"},
		{"lists remove drop", "DELETE lists/drop"},
		{"lists put drop --action drop --url https://lists.example/drop.txt --every 30m --comment why --wait 0",
			`PUT lists/drop {"action":"drop","url":"https://lists.example/drop.txt","every":"30m0s","comment":"why"}`},
		{"panic off", "DELETE panic"},
	} {
		if _, _, err := command(t, "", strings.Fields(c.args)...); err != nil && !strings.HasPrefix(c.args, "attacks show a/") {
			t.Errorf("%s: %v", c.args, err)
		}
		got, header := g.last()
		if got != c.want {
			t.Errorf("%s asks\n     %s\nwant %s", c.args, got, c.want)
		}
		if write := !strings.HasPrefix(c.want, "GET"); write != (header.Get("Idempotency-Key") != "") {
			t.Errorf("%s: Idempotency-Key %q", c.args, header.Get("Idempotency-Key"))
		}
	}
	// Without --from the span ends now and begins --since earlier.
	if _, _, err := command(t, "", "attacks"); err != nil {
		t.Fatal(err)
	}
	got, _ := g.last()
	var from api.Nanos
	if err := from.UnmarshalText([]byte(strings.TrimSuffix(strings.TrimPrefix(got, "GET attacks?from="), "&limit=100"))); err != nil {
		t.Fatal(err)
	}
	if ago := time.Since(from.Time()); ago < 24*time.Hour || ago > 24*time.Hour+time.Minute {
		t.Errorf("attacks begin %s ago, want 24h", ago)
	}
}

func TestReplaceNamesARevision(t *testing.T) {
	g := newGateway(t, allRoutes())
	g.loggedIn(t)
	rule := []string{"rules", "replace", "d-17", "--action", "count", "--dst", "198.51.100.7", "--for", "5m"}
	out, _, err := command(t, "", rule...)
	if err != nil || !strings.HasPrefix(out, "rule d-17: drop proto 6 dst 198.51.100.7/32 dport 443: active, expires 2026-01-01") {
		t.Errorf("printed %q, %v", out, err)
	}
	if got, h := g.last(); got != `PUT rules/d-17 {"action":"count","match":{"dst":"198.51.100.7"},"for":"5m0s"}` || h.Get("If-Match") != `"7"` {
		t.Errorf("asked %s with If-Match %s", got, h.Get("If-Match"))
	}
	if _, _, err := command(t, "", append(rule, "--revision", "6")...); err != nil {
		t.Error(err)
	}
	if _, h := g.last(); h.Get("If-Match") != `"6"` || len(g.asked) != 3 {
		t.Errorf("If-Match %s after %q", h.Get("If-Match"), g.asked)
	}
	if _, _, err := command(t, "", "rules", "revoke", "d-17", "--revision", "6"); err != nil {
		t.Error(err)
	}
	if _, h := g.last(); h.Get("If-Match") != `"6"` {
		t.Errorf("If-Match %s", h.Get("If-Match"))
	}
}

func TestPanic(t *testing.T) {
	g := newGateway(t, allRoutes())
	g.loggedIn(t)
	out, _, err := command(t, "", "panic", "on", "--reason", "wrong rules")
	if err == nil || !strings.Contains(err.Error(), "1 of 2 nodes") || config.ExitCode(err) != 1 {
		t.Errorf("a node that has not followed: %v", err)
	}
	for _, want := range []string{"PANIC is on", "by ada: wrong rules", "1 users' rules revoked, 3 detectors' rules held", "u-2", "edge2  not yet  does not answer"} {
		if !strings.Contains(out, want) {
			t.Errorf("does not say %q: %s", want, out)
		}
	}
	if got, _ := g.last(); got != `POST panic {"reason":"wrong rules"}` {
		t.Errorf("asked %s", got)
	}
	if out, _, err := command(t, "", "panic", "off"); err != nil || !strings.HasPrefix(out, "panic is off\n") {
		t.Errorf("printed %q, %v", out, err)
	}
}

func TestPcap(t *testing.T) {
	newGateway(t, allRoutes()).loggedIn(t)
	file := filepath.Join(t.TempDir(), "x.pcap")
	if err := os.WriteFile(file, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := command(t, "", "attacks", "pcap", "y", "-o", file); err == nil || err.Error() != "there is no such attack" {
		t.Errorf("error %v", err)
	}
	if b, _ := os.ReadFile(file); string(b) != "old" {
		t.Errorf("a failure left %q", b)
	}
	if _, _, err := command(t, "", "attacks", "pcap", attackOne.ID, "-o", file); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(file); string(b) != "\xd4\xc3\xb2\xa1 packets" {
		t.Errorf("wrote %q", b)
	}
	if left, _ := os.ReadDir(filepath.Dir(file)); len(left) != 1 {
		t.Errorf("files left: %v", left)
	}
	if out, _, err := command(t, "", "attacks", "pcap", attackOne.ID, "-o", "-"); err != nil || out != "\xd4\xc3\xb2\xa1 packets" {
		t.Errorf("wrote %q, %v", out, err)
	}
}

func TestLogin(t *testing.T) {
	g := newGateway(t, allRoutes())
	home := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", home)
	file := filepath.Join(home, "tidegate", "credentials.json")

	// Nothing is kept of what the gateway does not accept.
	_, _, err := command(t, goodToken+"\n", "login", "--gateway", g.URL)
	if err == nil || config.ExitCode(err) != 1 || !strings.Contains(err.Error(), "--ca") || !strings.Contains(err.Error(), "/etc/tidegate/certs") {
		t.Errorf("an unknown authority: %v", err)
	}
	_, _, err = command(t, "bad\n", "login", "--gateway", g.URL, "--ca", g.ca)
	if err == nil || config.ExitCode(err) != 1 || !strings.Contains(err.Error(), "the token is not good") || !strings.Contains(err.Error(), "req-401") {
		t.Errorf("a bad token: %v", err)
	}
	for _, args := range [][]string{{"login"}, {"login", "--gateway", "http://127.0.0.1", "--token", "x"}, {"login", "--ca", file, "--token", "x"}} {
		if _, _, err := command(t, " \n", args...); config.ExitCode(err) != 2 {
			t.Errorf("%v: %v", args, err)
		}
	}
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("credentials of a failed log-in: %v", err)
	}

	out, _, err := command(t, goodToken+"\n", "login", "--gateway", g.URL+"/", "--ca", g.ca, "--token", "-")
	if want := "logged in at " + g.URL + " as ada (operator) until 2026-01-01 01:00:00\n"; err != nil || out != want {
		t.Fatalf("printed %q, %v; want %q", out, err, want)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if st, err := os.Stat(filepath.Dir(file)); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("mode of the folder %v, %v", st.Mode(), err)
	}
	if out, _, err := command(t, "", "whoami"); err != nil || !strings.HasPrefix(out, "ada (operator) at "+g.URL) {
		t.Errorf("printed %q, %v", out, err)
	}
	// A new token needs neither address nor authority.
	if _, _, err := command(t, goodToken, "login"); err != nil {
		t.Error(err)
	}
	if _, _, err := command(t, "", "whoami"); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"removed " + file + "\n", "not logged in\n"} {
		if out, _, err := command(t, "", "logout"); err != nil || out != want {
			t.Errorf("printed %q, %v; want %q", out, err, want)
		}
	}
}

func TestCredentialsInOrder(t *testing.T) {
	dir := t.TempDir()
	first, second, broken := filepath.Join(dir, "1"), filepath.Join(dir, "2"), filepath.Join(dir, "3")
	for file, c := range map[string]client.Credentials{first: {URL: "https://one:8080", Token: "t1"}, second: {URL: "https://two:8080", Token: "t2"}} {
		if err := client.SaveCredentials(file, c); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(broken, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	none := filepath.Join(dir, "none")
	for name, c := range map[string]struct {
		flags      remote
		files      []string
		url, token string // empty: refused
	}{
		"the first file":                  {remote{}, []string{none, first, second}, "https://one:8080", "t1"},
		"another after a broken one":      {remote{}, []string{broken, second}, "https://two:8080", "t2"},
		"the file of the named gateway":   {remote{Gateway: "https://TWO:8080/"}, []string{first, second}, "https://TWO:8080/", "t2"},
		"no token for another gateway":    {remote{Gateway: "https://three:8080"}, []string{first, second}, "", ""},
		"another token at the same place": {remote{Token: "t9"}, []string{first}, "https://one:8080", "t9"},
		"flags alone":                     {remote{Gateway: "https://three:8080", Token: "t3"}, []string{first}, "https://three:8080", "t3"},
		"a token without a gateway":       {remote{Token: "t9"}, []string{none}, "", ""},
		"nothing":                         {remote{}, []string{none}, "", ""},
	} {
		o, err := c.flags.find(c.files)
		if c.url == "" {
			if config.ExitCode(err) != 2 || !strings.Contains(err.Error(), "tidegate login") {
				t.Errorf("%s: %+v, %v", name, o, err)
			}
			continue
		}
		if err != nil || o.URL != c.url || o.Token != c.token {
			t.Errorf("%s: %s with %s, %v", name, o.URL, o.Token, err)
		}
	}
	if o, err := (&remote{CA: "ca.pem"}).find([]string{first}); err != nil || o.CAFile != "ca.pem" || o.Token != "t1" {
		t.Errorf("--ca with stored credentials: %+v, %v", o, err)
	}
	t.Setenv("XDG_CONFIG_HOME", dir)
	if got, want := (&remote{}).files(), []string{filepath.Join(dir, "tidegate", "credentials.json"), "/run/tidegate/local.json"}; !reflect.DeepEqual(got, want) {
		t.Errorf("files %q, want %q", got, want)
	}
	if got := (&remote{Credentials: first}).files(); !reflect.DeepEqual(got, []string{first}) {
		t.Errorf("with --credentials: files %q", got)
	}
}

func TestExitStatus(t *testing.T) {
	routes := allRoutes()
	routes["POST /api/v1/rules"] = func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, api.Problem{
			Status: 422, Detail: "the rule cannot be applied as it is", RequestID: "req-9", Reason: "never_block",
			Errors: []api.ProblemDetail{{Location: "body.match.src", Message: "is inside 192.0.2.0/24"}},
		})
	}
	routes["GET /api/v1/top"] = func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, api.Problem{Status: 503, Service: "persist", Detail: "persist does not answer"})
	}
	routes["GET /api/v1/flows"] = func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, api.Problem{Status: 400, Detail: "give a prefix in CIDR notation"})
	}
	newGateway(t, routes).loggedIn(t)
	for _, c := range []struct {
		args string
		exit int
		says []string
	}{
		{"rules add --action drop --src 192.0.2.7", 2, []string{"the rule cannot be applied as it is", "body.match.src: is inside 192.0.2.0/24", "(request req-9)"}},
		{"flows --prefix x", 2, []string{"CIDR"}},
		{"flows --since=-5m", 2, []string{"--since"}},
		{"flows --from 2026-01-02T00:00:00Z --to 2026-01-01T00:00:00Z", 2, []string{"--to must be later"}},
		{"timeseries --step 10ms", 2, []string{"--step", "1s"}},
		{"top", 1, []string{"persist does not answer"}},
		{"rules explain x", 1, []string{"there is no such rule", "req-404"}},
		{"rules add --action drop --dport 80", 2, []string{"a port needs protocol"}},
		{"rules add --action drop --src 192.0.2.9 --scope ams", 2, []string{"--scope", "site:NAME"}},
		{"rules add --action drop --src 192.0.2.9 --escalate-after 30s", 2, []string{"only a rate-limit"}},
		{"rules add --action rate-limit --pps 1 --src 192.0.2.9 --escalate-after 1ms", 2, []string{"--escalate-after", "at least 1s"}},
		{"rules add --action count --src 192.0.2.9 --shadow", 2, []string{"drops or limits"}},
		{"rules add --action drop --host com", 2, []string{"--host", "top-level"}},
		{"rules add --action drop --host a.example --ttl 5", 2, []string{"ttl, fragments and state are of packets"}},
		{"lists put names --kind domain --action rate-limit", 2, []string{"--pps"}},
		{"rules add --action drop --src 1.2.3", 2, []string{"--src", "1.2.3", "CIDR"}},
		{"rules add --action drop --length 90-60", 2, []string{"--length", "LOW-HIGH"}},
		{"rules add --action drop --ttl low --proto quicc", 2, []string{"--ttl", "--proto", "quicc"}},
		{"rules add --action rate-limit", 2, []string{"rate"}},
		{"rules add --action drop --src 192.0.2.7 --for=-1m", 2, []string{"--for"}},
		{"rules add --action ban --src 192.0.2.7", 2, []string{"--action"}},
		{"lists put drop --action drop --file /nonexistent", 2, []string{"/nonexistent"}},
		{"lists put drop --action drop --file x --url https://y", 2, []string{"--url"}},
		{"lists put drop --action drop --every 1h", 2, []string{"--every"}},
		{"lists put drop --action rate-limit", 2, []string{"--action"}},
		{"lists remove nosuch", 1, []string{"nosuch"}},
		{"rules revoke nosuch", 1, []string{"nosuch"}},
		{"attacks pcap x", 2, []string{"--output"}},
		{"watch --types flood", 2, []string{"--types"}},
		{"flows --gateway https://127.0.0.1:1 --token t", 1, []string{"127.0.0.1:1", "start it"}},
		{"flows --gateway https://127.0.0.1:1", 2, []string{"tidegate login"}},
		{"token issue --subject ada --role root", 2, []string{"--role"}},
		{"token issue --subject ada --role viewer --for 9000h", 2, []string{"--for"}},
		{"token issue --subject ada --role viewer --dir /nosuch", 2, []string{"tidegate token init"}},
	} {
		_, _, err := command(t, "", strings.Fields(c.args)...)
		if got := config.ExitCode(err); got != c.exit {
			t.Errorf("%s: exit status %d, want %d: %v", c.args, got, c.exit, err)
		}
		for _, want := range c.says {
			if err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%s: does not say %q: %v", c.args, want, err)
			}
		}
	}
	if _, _, err := command(t, "", "status"); err != nil {
		t.Errorf("status with a service missing: %v", err)
	}
}

func TestStatusWithoutServices(t *testing.T) {
	newGateway(t, map[string]http.HandlerFunc{"GET /api/v1/status": answer(api.Status{Missing: statusOne.Missing})}).loggedIn(t)
	out, _, err := command(t, "", "status")
	if config.ExitCode(err) != 1 || !strings.Contains(out, "! persist at 127.0.0.1:50054: connection refused") {
		t.Errorf("printed %q, %v", out, err)
	}
}

func TestToken(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	for range 2 {
		out, _, err := command(t, "", "token", "init", "--dir", dir)
		if err != nil || !strings.Contains(out, filepath.Join(dir, "token-jwks.json")) {
			t.Fatalf("printed %q, %v", out, err)
		}
	}
	out, _, err := command(t, "", "token", "issue", "--dir", dir, "--subject", "ada", "--role", "viewer")
	if err != nil || strings.Count(out, ".") != 2 || strings.Count(out, "\n") != 1 {
		t.Errorf("printed %q, %v", out, err)
	}
	newGateway(t, nil).loggedIn(t)
	if out, _, err := command(t, "", "token", "show"); err != nil || out != goodToken+"\n" {
		t.Errorf("printed %q, %v", out, err)
	}
	if got := keyDir(filepath.Dir(dir), dir); got != dir {
		t.Errorf("key found in %s", got)
	}
	if got := keyDir("/nosuch", "/nosuch2"); got != "/nosuch" {
		t.Errorf("without a key: %s", got)
	}
}

// TestListPut: a file is uploaded as it is, and the command fails when a URL cannot be read.
func TestListPut(t *testing.T) {
	g := newGateway(t, allRoutes())
	g.loggedIn(t)
	out, _, err := command(t, "192.0.2.1\n<html>\n", "lists", "put", "drop", "--action", "drop", "--file", "-", "--wait", "0")
	got, header := g.last()
	if got != "PUT lists/drop/entries 192.0.2.1\n<html>" || header.Get("Content-Type") != "text/plain" {
		t.Errorf("asked %q as %q", got, header.Get("Content-Type"))
	}
	if err == nil || !strings.Contains(out, "line 3: <html>") { // the fixed answer has a problem
		t.Errorf("printed %q, %v", out, err)
	}
	if _, _, err := command(t, "", "lists", "put", "drop", "--action", "drop", "--file", "-", "--wait", "0"); err == nil {
		t.Error("a list with a problem is no error")
	}
	if got, _ := g.last(); got != "PUT lists/drop/entries #" {
		t.Errorf("an empty file asks %q", got)
	}
}
