package ops

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/bus/bustest"
	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
)

// stored is the text of a list's entries.
func stored(t *testing.T, nats *bus.Bus, name string) string {
	t.Helper()
	all, err := nats.Lists(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	object := all[name].List.GetObject()
	if object == "" {
		return "none"
	}
	text, err := nats.ListEntries(context.Background(), object)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestUploadedList(t *testing.T) {
	a, b, nats := overNATS(t)
	ctx := asOperator(t)
	wantProblem(t, second(a.PutListEntries(ctx, "bad", []byte("192.0.2.1\n"))), 404)
	l, err := a.PutList(ctx, "bad", api.ListInput{Action: "drop", Comment: "ticket 9"})
	if err != nil || l.Action != "drop" || l.Comment != "ticket 9" || l.Hosts != 0 {
		t.Fatalf("%+v, %v", l, err)
	}
	l, err = b.PutListEntries(ctx, "bad", []byte("192.0.2.1\n10.0.0.0/8\nno\n192.0.2.1\n"))
	if err != nil || l.Hosts != 1 || l.Prefixes != 1 || l.Rejected != 1 || len(l.Examples) != 1 || l.Examples[0].Line != 3 || l.UpdatedNs == 0 {
		t.Fatalf("%+v, %v", l, err)
	}
	if got := stored(t, nats, "bad"); got != "10.0.0.0/8\n192.0.2.1\n" {
		t.Errorf("stored %q", got)
	}
	all, _ := nats.Lists(ctx)
	former := all["bad"].List.GetObject()
	p := wantProblem(t, second(a.PutListEntries(ctx, "bad", []byte("<html>\nnot found\n"))), 422)
	if len(p.Errors) != 2 || p.Errors[0].Location != "body line 1" {
		t.Errorf("an error page: %+v", p)
	}
	if _, err := a.PutListEntries(ctx, "bad", []byte("# empty\n")); err != nil {
		t.Errorf("an empty list: %v", err)
	}
	if got := stored(t, nats, "bad"); got != "" {
		t.Errorf("emptied, stored %q", got)
	}
	if _, err := nats.ListEntries(ctx, former); err == nil {
		t.Error("the former entries are still in storage")
	}
	if l, err = b.PutList(ctx, "other", api.ListInput{Action: "allow"}); err != nil {
		t.Fatal(err)
	}
	if all, _ := nats.Lists(ctx); all["bad"].List.GetNumber() == all["other"].List.GetNumber() {
		t.Error("two lists have one number")
	}
	lists, err := a.Lists(ctx)
	if err != nil || len(lists) != 2 || lists[0].Name != "bad" || lists[1].Name != "other" {
		t.Errorf("lists %+v, %v", lists, err)
	}
	if err := a.DeleteList(ctx, "bad"); err != nil {
		t.Fatal(err)
	}
	wantProblem(t, a.DeleteList(ctx, "bad"), 404)
	wantProblem(t, second(a.List(ctx, "bad")), 404)
	for _, bad := range []struct {
		name string
		in   api.ListInput
	}{
		{"", api.ListInput{Action: "drop"}}, {"Bad", api.ListInput{Action: "drop"}}, {"-x", api.ListInput{Action: "drop"}}, {strings.Repeat("x", 65), api.ListInput{Action: "drop"}},
		{"x", api.ListInput{Action: "drop", URL: "http://lists.example/"}}, {"x", api.ListInput{Action: "drop", URL: "https://lists.example/", Every: "1s"}},
		{"x", api.ListInput{Action: "drop", Every: "1h"}}, {"x", api.ListInput{Action: "drop", URL: "https://lists.example/", Every: "often"}},
	} {
		wantProblem(t, second(a.PutList(ctx, bad.name, bad.in)), 422)
	}
}

// TestDomainList: the kind stays, the text is read as domains, and the classifiers tell what they made of it.
func TestDomainList(t *testing.T) {
	a, b, nats := overNATS(t)
	ctx := asOperator(t)
	l, err := a.PutList(ctx, "names", api.ListInput{Kind: "domain", Action: "rate-limit", RatePPS: 7})
	if err != nil || l.Kind != "domain" || l.Action != "rate-limit" || l.RatePPS != 7 {
		t.Fatalf("%+v, %v", l, err)
	}
	l, err = b.PutListEntries(ctx, "names", []byte("*.Example.ORG\n0.0.0.0 ads.example\n192.0.2.1\n"))
	if err != nil || l.Domains != 2 || l.Hosts+l.Prefixes != 0 || l.Rejected != 1 || l.Examples[0].Line != 3 {
		t.Fatalf("%+v, %v", l, err)
	}
	if got := stored(t, nats, "names"); got != "ads.example\nexample.org\n" {
		t.Errorf("stored %q", got)
	}
	if l, err = a.PutList(ctx, "names", api.ListInput{Action: "drop"}); err != nil || l.Kind != "domain" || l.Domains != 2 || l.RatePPS != 0 {
		t.Errorf("without its kind: %+v, %v", l, err)
	}
	if _, err = a.PutList(ctx, "addresses", api.ListInput{Action: "drop"}); err != nil {
		t.Fatal(err)
	}
	for name, in := range map[string]api.ListInput{
		"names":     {Kind: "cidr", Action: "drop"},
		"addresses": {Kind: "domain", Action: "drop"},
		"limited":   {Action: "rate-limit", RatePPS: 1},
		"unlimited": {Kind: "domain", Action: "rate-limit"},
		"both":      {Kind: "domain", Action: "rate-limit", RatePPS: 1, RateBPS: 1},
		"drops":     {Kind: "domain", Action: "drop", RateBPS: 1},
		"regex":     {Kind: "regex", Action: "drop"},
	} {
		wantProblem(t, second(a.PutList(ctx, name, in)), 422)
	}
	p := wantProblem(t, second(a.PutListEntries(ctx, "names", []byte("192.0.2.1\n<html>\n"))), 422)
	if len(p.Errors) != 2 || !strings.Contains(p.Detail, "none of the 2 lines is a domain") {
		t.Errorf("no domain: %+v", p)
	}
	server := &script{text: "0.0.0.0 one.example\n"}
	a.feeds = newFeeds(server)
	feeding, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- a.ReadFeeds(feeding) }()
	if _, err := a.PutList(ctx, "feed", api.ListInput{Kind: "domain", Action: "drop", URL: "https://lists.example/hosts"}); err != nil {
		t.Fatal(err)
	}
	bustest.Wait(t, "the feed", func() bool { all, err := nats.Lists(ctx); return err == nil && all["feed"].List.GetDomains() == 1 })
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func second[T any](_ T, err error) error { return err }

// script is a list server.
type script struct {
	mu    sync.Mutex
	text  string
	err   error
	calls []string
}

func (s *script) Read(_ context.Context, url, validator string) ([]byte, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, url+" "+validator)
	if s.err != nil {
		return nil, "", s.err
	}
	if v := fmt.Sprint("v", len(s.text)); v != validator {
		return []byte(s.text), v, nil
	}
	return nil, "", nil
}

func (s *script) set(text string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text, s.err = text, err
}

func (s *script) asked() []string { s.mu.Lock(); defer s.mu.Unlock(); return slices.Clone(s.calls) }

// TestFeeds: of two gateways one reads a list that is due; failures leave what was there, and say so.
func TestFeeds(t *testing.T) {
	a, b, nats := overNATS(t)
	server := &script{text: "192.0.2.1\nnonsense\n"}
	var mu sync.Mutex
	later := time.Duration(0)
	now := func() time.Time { mu.Lock(); defer mu.Unlock(); return time.Now().Add(later) }
	ctx, cancel := context.WithCancel(asOperator(t))
	var wg sync.WaitGroup
	for _, o := range []*Operations{a, b} {
		o.feeds, o.now = newFeeds(server), now
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := o.ReadFeeds(ctx); err != nil {
				t.Error(err)
			}
		}()
	}
	defer wg.Wait()
	defer cancel()
	pass := func() { // an hour
		mu.Lock()
		later += time.Hour + time.Second
		mu.Unlock()
		a.feeds.poke()
		b.feeds.poke()
	}
	const url = "https://lists.example/x"
	if _, err := a.PutList(ctx, "feed", api.ListInput{Action: "drop", URL: url}); err != nil {
		t.Fatal(err)
	}
	list := func() api.List {
		t.Helper()
		all, err := a.Lists(ctx)
		if err != nil || len(all) != 1 {
			t.Fatalf("%+v, %v", all, err)
		}
		return all[0]
	}
	bustest.Wait(t, "the first reading", func() bool { return list().UpdatedNs != 0 })
	if l := list(); l.Hosts != 1 || l.Rejected != 1 || l.Examples[0].Line != 2 || l.Every != "1h0m0s" || l.CheckedNs == 0 || l.Problem != "" {
		t.Errorf("%+v", l)
	}
	updated := list().UpdatedNs
	wantProblem(t, second(a.PutListEntries(ctx, "feed", []byte("192.0.2.1\n"))), 422)

	pass()
	bustest.Wait(t, "a second reading", func() bool { return len(server.asked()) == 2 })
	if got := server.asked(); got[0] != url+" " || got[1] != url+" v19" {
		t.Errorf("asked %q", got)
	}
	for _, c := range []struct {
		text string
		err  error
		want string
	}{
		{"", errors.New("the server did not answer"), "did not answer"}, {"<html>", nil, "none of the 1 lines"}, {"# all gone\n", nil, "empty list"},
	} {
		server.set(c.text, c.err)
		pass()
		bustest.Wait(t, c.want, func() bool { return strings.Contains(list().Problem, c.want) })
		if got := stored(t, nats, "feed"); got != "192.0.2.1\n" || list().UpdatedNs != updated {
			t.Errorf("%s: stored %q", c.want, got)
		}
	}
	server.set("192.0.2.2\n192.0.2.3\n", nil)
	pass()
	bustest.Wait(t, "the new entries", func() bool { return list().Hosts == 2 })
	if l := list(); l.Problem != "" || l.UpdatedNs == updated || l.Rejected != 0 || len(l.Examples) != 0 {
		t.Errorf("%+v", l)
	}
	if n := len(server.asked()); n != 6 {
		t.Errorf("asked %d times by two gateways, want 6", n)
	}
	if l, err := a.PutList(ctx, "feed", api.ListInput{Action: "drop"}); err != nil || l.URL != "" || l.Hosts != 2 {
		t.Errorf("without its url: %+v, %v", l, err)
	}
	if _, err := a.PutListEntries(ctx, "feed", []byte("192.0.2.9\n")); err != nil {
		t.Error(err)
	}
}

// hanging is a list server that never answers.
type hanging struct{ asked chan struct{} }

func (h *hanging) Read(ctx context.Context, _, _ string) ([]byte, string, error) {
	close(h.asked)
	<-ctx.Done()
	return nil, "", ctx.Err()
}

// TestFeedAtTheEnd: a gateway that ends while it reads a list leaves it to the next one, which does not wait an hour.
func TestFeedAtTheEnd(t *testing.T) {
	a, _, nats := overNATS(t)
	server := &hanging{asked: make(chan struct{})}
	a.feeds = newFeeds(server)
	ctx, stop := context.WithCancel(asOperator(t))
	done := make(chan error, 1)
	go func() { done <- a.ReadFeeds(ctx) }()
	if _, err := a.PutList(ctx, "feed", api.ListInput{Action: "drop", URL: "https://lists.example/x"}); err != nil {
		t.Fatal(err)
	}
	<-server.asked
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if all, err := nats.Lists(t.Context()); err != nil || !a.due(all["feed"].List) {
		t.Errorf("not due: %+v, %v", all["feed"].List, err)
	}
}

// TestDueAfterTheClockWasSetBack: a list that was read while the clock was ahead is not left alone until it has caught up.
func TestDueAfterTheClockWasSetBack(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	o := &Operations{now: func() time.Time { return now }}
	every := time.Hour
	for _, c := range []struct {
		checked time.Duration // from now
		due     bool
	}{{-every, true}, {-every + 1, false}, {0, false}, {every - 1, false}, {every, true}, {365 * 24 * time.Hour, true}} {
		l := &policyv1.AddressList{Url: "https://lists.example/x", EveryNs: int64(every), UpdatedNs: 1, CheckedNs: now.Add(c.checked).UnixNano()}
		if o.due(l) != c.due {
			t.Errorf("read %s from now: due %v", c.checked, !c.due)
		}
	}
}

// TestDueAfterAKilledReading: a gateway that was killed while it read a list leaves the list claimed.
func TestDueAfterAKilledReading(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	o := &Operations{now: func() time.Time { return now }}
	for name, checked := range map[string]int64{"new": 0, "read a week ago": now.Add(-maxEvery).UnixNano()} {
		l := &policyv1.AddressList{Url: "https://lists.example/x", EveryNs: int64(maxEvery), CheckedNs: checked}
		if !o.due(l) {
			t.Errorf("%s: not due", name)
		}
		if l.ClaimedNs = now.Add(-time.Minute).UnixNano(); o.due(l) {
			t.Errorf("%s: read twice at the same time", name)
		}
		if l.ClaimedNs = now.Add(-feedTime).UnixNano(); !o.due(l) {
			t.Errorf("%s: a reading that came to no end is not done again", name)
		}
	}
}
