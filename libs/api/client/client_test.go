package client

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tidegate-mesh/tidegate/libs/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a gateway over TLS and a client that trusts it.
func rig(t *testing.T, h http.HandlerFunc) (*Client, *httptest.Server) {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = true
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	c, err := New(Options{URL: s.URL, Token: "a.b.c", CA: pool, Timeout: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	c.first = time.Millisecond
	return c, s
}

func answer(t *testing.T, w http.ResponseWriter, v any) {
	t.Helper()
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		t.Error(err)
	}
}

func refuse(w http.ResponseWriter, p api.Problem) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p)
}

func TestListingFollowsCursors(t *testing.T) {
	var asked []string
	c, _ := rig(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer a.b.c" || r.URL.Path != "/api/v1/flows" {
			t.Errorf("asked for %s with %q", r.URL.Path, r.Header.Get("Authorization"))
		}
		asked = append(asked, r.URL.RawQuery)
		page := api.Page[api.Flow]{Next: "p2"}
		n := 100
		if r.URL.Query().Get("cursor") == "p2" {
			page.Next, n = "", 20
		}
		for i := range n {
			page.Items = append(page.Items, api.Flow{ID: fmt.Sprint(i), FirstNs: 1 << 60})
		}
		answer(t, w, page)
	})
	count := func(q Query) (n int) {
		for f, err := range c.Flows(t.Context(), q) {
			if err != nil || f.FirstNs != 1<<60 {
				t.Fatalf("flow %+v, %v", f, err)
			}
			n++
		}
		return n
	}
	q := Query{From: time.Unix(0, 1<<60), Prefix: "192.0.2.0/24", Port: 53}
	if n := count(q); n != 120 {
		t.Errorf("%d flows without a limit, want 120", n)
	}
	want := []string{"from=1152921504606846976&limit=100&port=53&prefix=192.0.2.0%2F24", "cursor=p2&from=1152921504606846976&limit=100&port=53&prefix=192.0.2.0%2F24"}
	if strings.Join(asked, " ") != strings.Join(want, " ") {
		t.Errorf("asked %q\nwant  %q", asked, want)
	}
	asked, q.Limit = nil, 105
	if n := count(q); n != 105 || len(asked) != 2 || !strings.Contains(asked[1], "limit=5&") {
		t.Errorf("%d flows of a limit of 105, asked %q", n, asked)
	}
	asked, q.Limit = nil, 7
	if n := count(q); n != 7 || len(asked) != 1 {
		t.Errorf("%d flows of a limit of 7, asked %q", n, asked)
	}
}

func TestListingThatDoesNotMoveOn(t *testing.T) {
	c, _ := rig(t, func(w http.ResponseWriter, _ *http.Request) {
		answer(t, w, api.Page[api.Attack]{Items: []api.Attack{{ID: "x"}}, Next: "same"})
	})
	n := 0
	var last error
	for _, err := range c.Attacks(t.Context(), Query{}) {
		n++
		last = err
	}
	if n != 3 || last == nil {
		t.Errorf("%d items, then %v", n, last)
	}
}

func TestWriteIsRepeatedWithOneKey(t *testing.T) {
	var keys, bodies []string
	c, _ := rig(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		keys, bodies = append(keys, r.Header.Get("Idempotency-Key")), append(bodies, string(b))
		if len(keys) < 3 {
			refuse(w, api.Problem{Status: 503, Service: "enforce", Detail: "enforce does not answer"})
			return
		}
		w.WriteHeader(http.StatusCreated)
		answer(t, w, api.Rule{RuleSpec: api.RuleSpec{ID: "u-1", Action: "drop"}, Revision: "7", State: "active"})
	})
	r, err := c.AddRule(t.Context(), api.RuleInput{Action: "drop", Match: api.Match{Src: "192.0.2.7"}})
	if err != nil || r.ID != "u-1" || r.Revision != "7" {
		t.Fatalf("rule %+v, %v", r, err)
	}
	if len(keys) != 3 || keys[0] == "" || keys[1] != keys[0] || keys[2] != keys[0] || bodies[2] != `{"action":"drop","match":{"src":"192.0.2.7"}}` {
		t.Errorf("keys %q, bodies %q", keys, bodies)
	}
	if _, err := c.AddRule(t.Context(), api.RuleInput{Action: "count"}); err != nil || keys[3] == keys[0] {
		t.Errorf("another request has the key of the first: %v", err)
	}
}

// An attempt whose answer was lost may still run at the gateway: the next one waits for what it comes to.
func TestWriteThatStillRuns(t *testing.T) {
	var asked atomic.Int32
	c, _ := rig(t, func(w http.ResponseWriter, r *http.Request) {
		switch asked.Add(1) {
		case 1:
			<-r.Context().Done()
		case 2:
			refuse(w, api.Problem{Status: 409, Reason: api.ReasonRunning, Detail: "it still runs"})
		default:
			answer(t, w, api.Rule{RuleSpec: api.RuleSpec{ID: "u-1"}})
		}
	})
	c.timeout = 200 * time.Millisecond
	if r, err := c.AddRule(t.Context(), api.RuleInput{Action: "drop"}); err != nil || r.ID != "u-1" {
		t.Errorf("rule %+v, %v", r, err)
	}
}

func TestRetriesEnd(t *testing.T) {
	var asked int
	problem, after := api.Problem{}, ""
	c, _ := rig(t, func(w http.ResponseWriter, _ *http.Request) {
		asked++
		if after != "" {
			w.Header().Set("Retry-After", after)
		}
		refuse(w, problem)
	})
	add := func() error { _, err := c.AddRule(t.Context(), api.RuleInput{Action: "drop"}); return err }
	read := func() error { _, err := c.Status(t.Context()); return err }
	for _, tt := range []struct {
		name    string
		problem api.Problem
		after   string
		do      func() error
		asked   int
	}{
		{"a write gives up", api.Problem{Status: 503, Service: "enforce", Detail: "down"}, "", add, attempts},
		{"a long Retry-After is the caller's", api.Problem{Status: 503, Detail: "down"}, "60", add, 1},
		{"a read says at once what is down", api.Problem{Status: 503, Detail: "down"}, "", read, 1},
		{"a refusal is final", api.Problem{Status: 422, Reason: "never_block", Detail: "refused"}, "", add, 1},
		{"a lock-out is not argued with", api.Problem{Status: 429, Reason: "locked", Detail: "locked"}, "1", add, 1},
	} {
		asked, problem, after = 0, tt.problem, tt.after
		err := tt.do()
		var p *api.Problem
		if !errors.As(err, &p) || p.Status != tt.problem.Status || p.Detail != tt.problem.Detail || p.Service != tt.problem.Service {
			t.Errorf("%s: error %v", tt.name, err)
		}
		if asked != tt.asked {
			t.Errorf("%s: asked %d times, want %d", tt.name, asked, tt.asked)
		}
	}
	problem, after, asked = api.Problem{Status: 429, Reason: "rate_limited"}, "1", 0
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := c.Status(ctx); err == nil || asked != 1 {
		t.Errorf("asked %d times within a Retry-After of 1 s, %v", asked, err)
	}
}

func TestChangesNameTheRevision(t *testing.T) {
	c, _ := rig(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.EscapedPath() != "/api/v1/rules/a%2F..%2Fb" {
			t.Errorf("path %s", r.URL.EscapedPath())
		}
		if got := r.Header.Get("If-Match"); got != `"7"` {
			refuse(w, api.Problem{Status: 412, Detail: "the rule has changed: its revision is 7 now"})
			return
		}
		if r.Method == http.MethodDelete {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		answer(t, w, api.Rule{Revision: "8"})
	})
	if r, err := c.ReplaceRule(t.Context(), "a/../b", "7", api.RuleInput{Action: "count"}); err != nil || r.Revision != "8" {
		t.Errorf("rule %+v, %v", r, err)
	}
	if err := c.RevokeRule(t.Context(), "a/../b", "7"); err != nil {
		t.Error(err)
	}
	var p *api.Problem
	if err := c.RevokeRule(t.Context(), "a/../b", "6"); !errors.As(err, &p) || p.Status != 412 {
		t.Errorf("error %v", err)
	}
}

func TestErrorsAreSentences(t *testing.T) {
	c, s := rig(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/api/v1/me":
			refuse(w, api.Problem{Status: 401, Reason: "unauthorized", Detail: "the token has expired"})
		case "/api/v1/live":
			http.Error(w, "<h1>bad gateway</h1>", http.StatusBadGateway)
		case "/api/v1/status":
			_, _ = io.WriteString(w, "<html>")
		case "/api/v1/panic":
			http.Redirect(w, r, "https://192.0.2.1/", http.StatusFound)
		default:
			<-r.Context().Done()
		}
	})
	says := func(err error, words ...string) {
		t.Helper()
		for _, w := range words {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("does not say %q: %v", w, err)
			}
		}
		if err != nil && strings.Contains(err.Error(), "a.b.c") {
			t.Errorf("shows the token: %v", err)
		}
	}
	_, err := c.Me(t.Context())
	says(err, "the token has expired", "tidegate login --gateway "+s.URL)
	_, err = c.Live(t.Context())
	says(err, "502", "proxy")
	_, err = c.Status(t.Context())
	says(err, "no Tidegate gateway")
	_, err = c.PanicState(t.Context())
	says(err, "302")
	c.timeout = 50 * time.Millisecond
	_, err = c.Ledger(t.Context())
	says(err, "did not answer in time")

	stranger, err := New(Options{URL: s.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	_, err = stranger.Status(t.Context())
	says(err, s.URL, "not trusted", "--ca", "/etc/tidegate/certs")
	var untrusted *UntrustedError
	if !errors.As(err, &untrusted) {
		t.Errorf("error %T", err)
	}

	// The test server's certificate is for 127.0.0.1 and example.com.
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	other, err := New(Options{URL: strings.Replace(s.URL, "127.0.0.1", "localhost", 1), CA: pool})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	_, err = other.Status(t.Context())
	says(err, "for other names", "--host")

	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	for url, words := range map[string][]string{
		"https://127.0.0.1:1":                            {"not running at https://127.0.0.1:1", "start it", "--gateway"},
		strings.Replace(plain.URL, "http:", "https:", 1): {"does not speak HTTPS"},
	} {
		c, err := New(Options{URL: url, Token: "a.b.c"})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Status(t.Context())
		says(err, words...)
		c.Close()
	}
}

func TestOptionsRefused(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, []byte("none"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]Options{
		"no address":    {},
		"plain text":    {URL: "http://127.0.0.1:8080"},
		"with a path":   {URL: "https://127.0.0.1:8080/api"},
		"with a user":   {URL: "https://me:pw@127.0.0.1:8080"},
		"broken token":  {URL: "https://127.0.0.1", Token: "a\r\nX: y"},
		"no such CA":    {URL: "https://127.0.0.1", CAFile: empty + "x"},
		"CA without it": {URL: "https://127.0.0.1", CAFile: empty},
	} {
		if _, err := New(o); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestPcapIsCopied(t *testing.T) {
	want := bytes.Repeat([]byte{0xd4, 0xc3}, 1<<19)
	c, _ := rig(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api/v1/attacks/x/pcap" {
			refuse(w, api.Problem{Status: 404, Detail: "there is no such attack"})
			return
		}
		_, _ = w.Write(want)
	})
	var got bytes.Buffer
	if err := c.AttackPcap(t.Context(), "x", &got); err != nil || !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%d bytes, %v", got.Len(), err)
	}
	if err := c.AttackPcap(t.Context(), "y", &got); err == nil || err.Error() != "there is no such attack" {
		t.Errorf("error %v", err)
	}
}

func TestCredentials(t *testing.T) {
	c, s := rig(t, func(w http.ResponseWriter, _ *http.Request) {
		answer(t, w, api.Identity{Subject: "ada", Role: "admin"})
	})
	path := filepath.Join(t.TempDir(), "new", "credentials.json")
	if _, err := LoadCredentials(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	for range 2 { // the second replaces the first
		if err := SaveCredentials(path, Credentials{URL: c.URL(), CA: ca, Token: "t"}); err != nil {
			t.Fatal(err)
		}
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
		t.Errorf("files left: %v", left)
	}
	saved, err := LoadCredentials(path)
	if err != nil {
		t.Fatal(err)
	}
	o, err := saved.Options()
	if err != nil {
		t.Fatal(err)
	}
	again, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if me, err := again.Me(t.Context()); err != nil || me.Subject != "ada" {
		t.Errorf("identity %+v, %v", me, err)
	}
}

func TestStreamResumes(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	c, _ := rig(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, r.URL.RawQuery)
		n := len(asked)
		mu.Unlock()
		w.Header().Set("Content-Type", "text/event-stream")
		switch n {
		case 1:
			_, _ = io.WriteString(w, "retry: 1\n\n:\n\nid: 5\nevent: attack\ndata: {\"id\":\"a\"}\n\nevent: live\ndata: {}\n\nid: 6\nevent: attack\ndata: {\"id\"")
		case 2: // a restart
			refuse(w, api.Problem{Status: 503, Detail: "not ready"})
		case 3: // told where it is, without an event
			_, _ = io.WriteString(w, "id: 9\n\n")
		case 4: // silence
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
		default:
			_, _ = io.WriteString(w, "id: 10\nevent: gap\ndata: {\"from\":10,\ndata: \"to\":10}\n\nevent: expired\ndata: {}\n\n")
		}
	})
	c.idle = 200 * time.Millisecond
	var got []string
	err := c.Stream(t.Context(), []string{"attack", "live"}, "", func(e Event) error {
		got = append(got, e.ID+" "+e.Type+" "+string(e.Data))
		return nil
	})
	if !errors.Is(err, ErrExpired) {
		t.Errorf("ended with %v", err)
	}
	want := []string{`5 attack {"id":"a"}`, `5 live {}`, "10 gap {\"from\":10,\n\"to\":10}"}
	if strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("events %q\nwant   %q", got, want)
	}
	types := "types=attack%2Clive"
	wantAsked := []string{types, "last_event_id=5&" + types, "last_event_id=5&" + types, "last_event_id=9&" + types, "last_event_id=9&" + types}
	if strings.Join(asked, " ") != strings.Join(wantAsked, " ") {
		t.Errorf("asked %q\nwant  %q", asked, wantAsked)
	}
}

func TestStreamEnds(t *testing.T) {
	c, _ := rig(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("types") == "nonsense" {
			refuse(w, api.Problem{Status: 400, Detail: "give types that exist"})
			return
		}
		for i := 1; r.Context().Err() == nil; i++ {
			_, _ = fmt.Fprintf(w, "id: %d\nevent: attack\ndata: {}\n\n", i)
			_ = http.NewResponseController(w).Flush()
			time.Sleep(time.Millisecond)
		}
	})
	if err := c.Stream(t.Context(), []string{"nonsense"}, "", nil); err == nil || err.Error() != "give types that exist" {
		t.Errorf("a refused stream ended with %v", err)
	}
	enough := errors.New("enough")
	n := 0
	err := c.Stream(t.Context(), nil, "", func(Event) error {
		if n++; n == 3 {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) || n != 3 {
		t.Errorf("%d events, ended with %v", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = c.Stream(ctx, nil, "", func(Event) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
	down, err := New(Options{URL: "https://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := down.Stream(t.Context(), nil, "", nil); err == nil || !strings.Contains(err.Error(), "not running") {
		t.Errorf("without a gateway: %v", err)
	}
}

func FuzzStream(f *testing.F) {
	f.Add([]byte("id: 5\nevent: attack\ndata: {}\n\n"))
	f.Add([]byte("data\ndata:\n\nretry: x\n:\r\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &stream{h: func(Event) error { return nil }}
		if err := s.read(bytes.NewReader(b)); err == nil {
			t.Fatal("a stream that ended has no error")
		}
	})
}
