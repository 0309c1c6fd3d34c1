package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/api/client"
)

// problemOf is the gateway's answer to what failed.
func problemOf(t *testing.T, err error) *api.Problem {
	t.Helper()
	var p *api.Problem
	if !errors.As(err, &p) {
		t.Fatalf("%v is no answer of the gateway", err)
	}
	return p
}

// rule drops one source that nobody is.
func rule(src string) api.RuleInput {
	return api.RuleInput{Action: "drop", Match: api.Match{Src: src}, For: "10m", Comment: "e2e"}
}

// TestFullGateway: changes over REST on all services, on record in SQL; then one service after the other is away.
func TestFullGateway(t *testing.T) {
	m := newMesh(t)
	db := m.open(t)
	operator, admin := m.gateway.Client(t, "operator"), m.gateway.Client(t, "admin")
	testChanges(t, m, operator)
	testRecord(t, admin)
	if n := count(t, db, "SELECT count(*) FROM audit WHERE actor = 'e2e-operator' AND action = 'rule.update'"); n < 8 {
		t.Errorf("%d rows of the eight attempts to change a rule", n)
	}
	testCommands(t, m)
	testAway(t, m, operator)
}

// testChanges adds, changes and revokes a rule; of those who change the same revision one wins.
func testChanges(t *testing.T, m *mesh, c *client.Client) {
	added, err := c.AddRule(t.Context(), rule("203.0.113.9"))
	if err != nil {
		t.Fatal(err)
	}
	const writers = 8
	var wg sync.WaitGroup
	results := make([]error, writers)
	for i := range writers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			in := rule("203.0.113.9")
			in.Comment = "by writer " + string(rune('a'+i))
			_, results[i] = c.ReplaceRule(t.Context(), added.ID, added.Revision, in)
		}()
	}
	wg.Wait()
	won := 0
	for _, err := range results {
		if err == nil {
			won++
		} else if p := problemOf(t, err); p.Status != http.StatusPreconditionFailed || p.RequestID == "" {
			t.Errorf("a writer who came too late: %+v", p)
		}
	}
	if won != 1 {
		t.Errorf("%d of %d writers of one revision won", won, writers)
	}
	_, err = c.AddRule(t.Context(), rule("127.0.0.1"))
	if err != nil { // a refusal names its reason; a rule that nothing protects is added
		if p := problemOf(t, err); p.Status != http.StatusUnprocessableEntity || p.Reason == "" {
			t.Errorf("a refused rule: %+v", p)
		}
	}
	if err := c.RevokeRule(t.Context(), added.ID, "1"); problemOf(t, err).Status != http.StatusPreconditionFailed {
		t.Errorf("revoke of an old revision: %v", err)
	}
	if err := c.RevokeRule(t.Context(), added.ID, ""); err != nil {
		t.Error(err)
	}
	if _, err := c.Rule(t.Context(), added.ID); problemOf(t, err).Status != http.StatusNotFound {
		t.Errorf("a rule that was revoked: %v", err)
	}
}

// testRecord reads the audit log of testChanges.
func testRecord(t *testing.T, c *client.Client) {
	var have []string
	err := rig.Eventually(10*time.Second, func() error {
		have = nil
		for e, err := range c.Audit(t.Context(), client.Query{}) {
			if err != nil {
				return err
			}
			have = append(have, e.Action+" "+e.Outcome)
			if e.Actor != "e2e-operator" || e.Role != "operator" || e.Remote != "127.0.0.1" || e.RequestID == "" {
				t.Errorf("entry %+v", e)
			}
			if e.Action == "rule.update" && e.Outcome == "done" && (e.Before == nil || e.After == nil) {
				t.Errorf("a change without before and after: %+v", e)
			}
		}
		for _, want := range []string{"rule.add done", "rule.update done", "rule.update refused", "rule.revoke refused", "rule.revoke done"} {
			if !slices.Contains(have, want) {
				return errors.New("no entry: " + want)
			}
		}
		return nil
	})
	if err != nil {
		t.Errorf("%v in %v", err, have)
	}
}

// testCommands uses the command line as somebody elsewhere does.
func testCommands(t *testing.T, m *mesh) {
	bin := rig.Binary(t, "tidegate")
	as := m.gateway.Flags(t, "operator")
	run := func(args ...string) (string, error) {
		out, err := rig.Output(t.Context(), bin, append(args, as...)...)
		return string(out), err
	}
	out, err := run("rules", "add", "--action", "drop", "--src", "203.0.113.77", "--for", "5m", "--json")
	if err != nil {
		t.Fatal(err)
	}
	_, id, _ := strings.Cut(out, `"id":"`)
	id, _, _ = strings.Cut(id, `"`)
	if out, err := run("rules", "list"); err != nil || !strings.Contains(out, "203.0.113.77") {
		t.Errorf("rules list: %v: %s", err, out)
	}
	if out, err := run("rules", "explain", id); err != nil || !strings.Contains(out, "203.0.113.77") {
		t.Errorf("rules explain: %v: %s", err, out)
	}
	if _, err := run("rules", "revoke", id); err != nil {
		t.Error(err)
	}
	for _, read := range []string{"status", "ledger", "sensors", "nodes", "groups", "flows", "top", "attacks", "verdicts", "whoami"} {
		if out, err := run(read); err != nil || out == "" {
			t.Errorf("%s: %v: %q", read, err, out)
		}
	}
	as = m.gateway.Flags(t, "viewer")
	if _, err := run("rules", "add", "--action", "drop", "--src", "203.0.113.78"); err == nil || !strings.Contains(err.Error(), "operator") {
		t.Errorf("a viewer adds a rule: %v", err)
	}
}

// testAway: the answer says which service is away; the rest works.
func testAway(t *testing.T, m *mesh, c *client.Client) {
	flows := func() error {
		for _, err := range c.Flows(t.Context(), client.Query{Limit: 1}) {
			return err
		}
		return nil
	}
	kept, err := c.AddRule(t.Context(), rule("203.0.113.10"))
	if err != nil {
		t.Fatal(err)
	}
	m.persist.Kill()
	if p := problemOf(t, flows()); p.Status != http.StatusServiceUnavailable || p.Service != "persist" {
		t.Errorf("flows without persist: %+v", p)
	}
	if r, err := c.Rule(t.Context(), kept.ID); err != nil || r.ID != kept.ID {
		t.Errorf("a rule without persist: %+v, %v", r, err)
	}
	dry, err := c.DryRun(t.Context(), rule("203.0.113.11"))
	if err != nil || !dry.Accepted || dry.Matched != nil {
		t.Errorf("a dry run without persist: %+v, %v", dry, err)
	}
	err = rig.Eventually(5*time.Second, func() error { // an answer of before may serve for a moment
		s, err := c.Status(t.Context())
		if err == nil && (len(s.Missing) != 1 || s.Missing[0].Service != "persist" || len(s.Services) != 3) {
			err = fmt.Errorf("services %+v, missing %+v", s.Services, s.Missing)
		}
		return err
	})
	if err != nil {
		t.Errorf("status without persist: %v", err)
	}
	m.persist.Restart()
	if err := rig.Eventually(20*time.Second, flows); err != nil {
		t.Errorf("persist is back: %v", err)
	}

	m.enforce.Kill()
	if _, err := c.AddRule(t.Context(), rule("203.0.113.12")); problemOf(t, err).Service != "enforce" {
		t.Errorf("a rule without enforce: %v", err)
	}
	if err := flows(); err != nil {
		t.Errorf("flows without enforce: %v", err)
	}
	m.enforce.Restart()
	if err := rig.Eventually(20*time.Second, func() error { _, err := c.Rule(t.Context(), kept.ID); return err }); err != nil {
		t.Errorf("enforce is back: %v", err)
	}

	m.nats.Kill()
	_, err = c.AddRule(t.Context(), rule("203.0.113.13"))
	if p := problemOf(t, err); p.Status != http.StatusServiceUnavailable || p.Service != "nats" {
		t.Errorf("a rule without NATS: %+v", p)
	}
	if _, err := c.Rule(t.Context(), kept.ID); err != nil {
		t.Errorf("a rule's state without NATS: %v", err)
	}
	m.nats.Restart()
	err = rig.Eventually(30*time.Second, func() error { _, err := c.AddRule(t.Context(), rule("203.0.113.13")); return err })
	if err != nil {
		t.Errorf("NATS is back: %v", err)
	}
}
