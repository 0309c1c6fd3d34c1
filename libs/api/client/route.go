package client

import (
	"context"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api"
)

const (
	apiPath = "/api/v1/"
	// pageSize is what a listing asks for at once.
	pageSize = 100
)

// Query narrows a read. Zero values are left out; which ones a route knows is the gateway's to say.
type Query struct {
	From, To   time.Time
	Prefix     string // flows with an end inside
	Port       uint16 // either side
	App        string
	Host       string
	JA3        string // of the client, as the next two
	JA4        string
	HASSH      string
	Confidence string // what a label rests on: payload, negotiated, session or port
	Risk       string // flows that carry it
	Type       string // of attacks
	AttackID   string // of verdicts
	Actor      string // of the audit log, as the next two
	Action     string
	Target     string
	State      string // of rules, as the next
	Origin     string
	Active     bool   // attacks that go on
	Limit      int    // items altogether; 0: all, for Top and TimeSeries the gateway's default
	By         string // of Top and TimeSeries
	Step       time.Duration
}

func (q Query) values() url.Values {
	v := url.Values{}
	set := func(name, value string) {
		if value != "" {
			v.Set(name, value)
		}
	}
	nanos := func(name string, t time.Time) {
		if !t.IsZero() {
			v.Set(name, strconv.FormatInt(t.UnixNano(), 10))
		}
	}
	nanos("from", q.From)
	nanos("to", q.To)
	set("prefix", q.Prefix)
	set("app", q.App)
	set("host", q.Host)
	set("ja3", q.JA3)
	set("ja4", q.JA4)
	set("hassh", q.HASSH)
	set("confidence", q.Confidence)
	set("risk", q.Risk)
	set("type", q.Type)
	set("attack_id", q.AttackID)
	set("actor", q.Actor)
	set("action", q.Action)
	set("target", q.Target)
	set("state", q.State)
	set("origin", q.Origin)
	set("by", q.By)
	if q.Port != 0 {
		v.Set("port", strconv.Itoa(int(q.Port)))
	}
	if q.Active {
		v.Set("active", "true")
	}
	if q.Limit > 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	if q.Step > 0 {
		v.Set("step", q.Step.String())
	}
	return v
}

// list follows a listing from page to page. It ends after q.Limit items, at the last page, or with an error.
func list[T any](ctx context.Context, c *Client, path string, q Query) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		v := q.values()
		for left := q.Limit; ; {
			v.Set("limit", strconv.Itoa(pageSize))
			if q.Limit > 0 {
				v.Set("limit", strconv.Itoa(min(left, pageSize)))
			}
			var page api.Page[T]
			if err := c.call(ctx, request{method: http.MethodGet, path: path, query: v}, &page); err != nil {
				yield(none, err)
				return
			}
			for _, item := range page.Items {
				if !yield(item, nil) {
					return
				}
				if left--; left == 0 {
					return
				}
			}
			if page.Next == "" {
				return
			}
			if page.Next == v.Get("cursor") {
				yield(none, fmt.Errorf("the gateway's listing of %s does not move on", path))
				return
			}
			v.Set("cursor", page.Next)
		}
	}
}

// whole reads a listing that is never cut into pages.
func whole[T any](ctx context.Context, c *Client, path string) ([]T, error) {
	var page api.Page[T]
	err := c.get(ctx, path, nil, &page)
	return page.Items, err
}

func (c *Client) get(ctx context.Context, path string, query url.Values, out any) error {
	return c.call(ctx, request{method: http.MethodGet, path: path, query: query}, out)
}

// Flows are the newest first.
func (c *Client) Flows(ctx context.Context, q Query) iter.Seq2[api.Flow, error] {
	return list[api.Flow](ctx, c, "flows", q)
}

// Attacks are the newest first.
func (c *Client) Attacks(ctx context.Context, q Query) iter.Seq2[api.Attack, error] {
	return list[api.Attack](ctx, c, "attacks", q)
}

// Verdicts are the newest first.
func (c *Client) Verdicts(ctx context.Context, q Query) iter.Seq2[api.Verdict, error] {
	return list[api.Verdict](ctx, c, "verdicts", q)
}

// Verdict is one verdict with its evidence.
func (c *Client) Verdict(ctx context.Context, id string) (v api.Verdict, err error) {
	return v, c.get(ctx, "verdicts/"+url.PathEscape(id), nil, &v)
}

// Audit entries are the newest first. It needs the role admin.
func (c *Client) Audit(ctx context.Context, q Query) iter.Seq2[api.AuditEntry, error] {
	return list[api.AuditEntry](ctx, c, "audit", q)
}

// Rules are those that the enforce nodes know, the newest first.
func (c *Client) Rules(ctx context.Context, q Query) iter.Seq2[api.Rule, error] {
	return list[api.Rule](ctx, c, "rules", q)
}

// Top ranks stored traffic.
func (c *Client) Top(ctx context.Context, q Query) (t api.Top, err error) {
	return t, c.get(ctx, "top", q.values(), &t)
}

// TimeSeries is stored traffic over time; q.From is required.
func (c *Client) TimeSeries(ctx context.Context, q Query) (t api.TimeSeries, err error) {
	return t, c.get(ctx, "timeseries", q.values(), &t)
}

// Attack is one attack with timeline and evidence.
func (c *Client) Attack(ctx context.Context, id string) (a api.AttackDetail, err error) {
	return a, c.get(ctx, "attacks/"+url.PathEscape(id), nil, &a)
}

// AttackPcap copies the attack's sampled packets to w, as a capture.
func (c *Client) AttackPcap(ctx context.Context, id string, w io.Writer) error {
	ctx, watch := c.watched(ctx)
	defer watch.stop()
	resp, err := c.send(ctx, request{method: http.MethodGet, path: "attacks/" + url.PathEscape(id) + "/pcap"}, nil, "")
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return c.problem(resp)
	}
	if _, err := io.Copy(w, watch.reader(resp.Body)); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("copy the capture of %s: %w", id, err)
	}
	return nil
}

// Rule is one rule; its Revision is what changes are made against.
func (c *Client) Rule(ctx context.Context, id string) (r api.Rule, err error) {
	return r, c.get(ctx, "rules/"+url.PathEscape(id), nil, &r)
}

// Explain says why a rule is there.
func (c *Client) Explain(ctx context.Context, id string) (e api.Explanation, err error) {
	return e, c.get(ctx, "rules/"+url.PathEscape(id)+"/explain", nil, &e)
}

// AddRule adds a rule, or renews the one that does the same.
func (c *Client) AddRule(ctx context.Context, in api.RuleInput) (r api.Rule, err error) {
	return r, c.call(ctx, request{method: http.MethodPost, path: "rules", body: in}, &r)
}

// DryRun says what a rule would do; nothing changes.
func (c *Client) DryRun(ctx context.Context, in api.RuleInput) (d api.DryRun, err error) {
	return d, c.call(ctx, request{method: http.MethodPost, path: "rules/dry-run", body: in}, &d)
}

// ReplaceRule changes a rule that still has that revision; a Problem with status 412 says that it has not.
func (c *Client) ReplaceRule(ctx context.Context, id, revision string, in api.RuleInput) (r api.Rule, err error) {
	return r, c.call(ctx, request{method: http.MethodPut, path: "rules/" + url.PathEscape(id), body: in, revision: revision}, &r)
}

// RevokeRule takes away a rule that still has that revision; an empty one stands for any.
func (c *Client) RevokeRule(ctx context.Context, id, revision string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: "rules/" + url.PathEscape(id), revision: revision}, nil)
}

// Groups are the sets of protected prefixes.
func (c *Client) Groups(ctx context.Context) ([]api.Group, error) {
	return whole[api.Group](ctx, c, "groups")
}

// Sensors are the ingest instances.
func (c *Client) Sensors(ctx context.Context) ([]api.Sensor, error) {
	return whole[api.Sensor](ctx, c, "sensors")
}

// Nodes are the instances that send heartbeats.
func (c *Client) Nodes(ctx context.Context) ([]api.Node, error) {
	return whole[api.Node](ctx, c, "nodes")
}

// Ledger is what came in and what became of it.
func (c *Client) Ledger(ctx context.Context) (l api.Ledger, err error) {
	return l, c.get(ctx, "ledger", nil, &l)
}

// Status is the state of everything; a service that does not answer is in its Missing.
func (c *Client) Status(ctx context.Context) (s api.Status, err error) {
	return s, c.get(ctx, "status", nil, &s)
}

// Live is the state of the last second.
func (c *Client) Live(ctx context.Context) (l api.Live, err error) {
	return l, c.get(ctx, "live", nil, &l)
}

// Me is who the token belongs to.
func (c *Client) Me(ctx context.Context) (i api.Identity, err error) {
	return i, c.get(ctx, "me", nil, &i)
}

// PanicState tells whether panic is on.
func (c *Client) PanicState(ctx context.Context) (p api.Panic, err error) {
	return p, c.get(ctx, "panic", nil, &p)
}

// Panic removes every drop on every node and holds the automatic ones.
func (c *Client) Panic(ctx context.Context, reason string) (p api.PanicResult, err error) {
	body := struct {
		Reason string `json:"reason,omitempty"`
	}{reason}
	return p, c.call(ctx, request{method: http.MethodPost, path: "panic", body: body}, &p)
}

// EndPanic lets the held rules act again.
func (c *Client) EndPanic(ctx context.Context) (p api.PanicResult, err error) {
	return p, c.call(ctx, request{method: http.MethodDelete, path: "panic"}, &p)
}
