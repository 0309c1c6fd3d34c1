package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/api/client"
	"github.com/tidegate-mesh/tidegate/libs/config"
)

type rulesCmd struct {
	List    rulesListCmd    `cmd:"" help:"list the rules and what they hit"`
	Add     rulesAddCmd     `cmd:"" help:"add a rule, or renew the one that does the same"`
	DryRun  rulesDryRunCmd  `cmd:"" name:"dry-run" help:"say what a rule would do; nothing changes"`
	Replace rulesReplaceCmd `cmd:"" help:"put another rule in the place of one"`
	Revoke  rulesRevokeCmd  `cmd:"" help:"take a rule away"`
	Explain rulesExplainCmd `cmd:"" help:"say why a rule is there and what it does"`
}

type rulesListCmd struct {
	remote `embed:""`
	output `embed:""`
	State  string `help:"only rules in this state: pending, active, shadow, refused, expired, held or elsewhere" placeholder:"STATE"`
	Origin string `help:"only a user's rules, or only a detector's" placeholder:"user|detector"`
}

func (c *rulesListCmd) Run(t *terminal) error {
	q := client.Query{State: c.State, Origin: c.Origin}
	return c.ask(func(ctx context.Context, g *client.Client) error {
		return list(c.output, t.out, g.Rules(ctx, q), "ID ACTION STATE MATCH PACKETS EXPIRES ORIGIN", func(r api.Rule) []string {
			state := r.State
			if r.Reason != "" {
				state += " (" + r.Reason + ")"
			}
			return []string{r.ID, actionText(&r.RuleSpec), state, r.MatchText, count(r.Packets), expires(&r.RuleSpec), r.Origin}
		})
	})
}

// ruleFlags describe a rule.
type ruleFlags struct {
	Action     string        `help:"allow, drop, rate-limit or count" enum:"allow,drop,rate-limit,count" required:""`
	Host       string        `help:"flows that name this host or one below it, by TLS, QUIC, HTTP and the like" placeholder:"DOMAIN"`
	Src        string        `help:"source prefix" placeholder:"CIDR"`
	Dst        string        `help:"destination prefix" placeholder:"CIDR"`
	Proto      string        `help:"tcp, udp, icmp, icmpv6, sctp, gre or a number" placeholder:"PROTO"`
	Sport      *uint16       `help:"source port" placeholder:"PORT"`
	Dport      *uint16       `help:"destination port" placeholder:"PORT"`
	TCPFlags   string        `name:"tcp-flags" help:"flags that must be set, of FSRPAUEC; with a mask: S/SA" placeholder:"FLAGS"`
	Length     string        `help:"IP length, or a range: 60-100" placeholder:"RANGE"`
	TTL        string        `name:"ttl" help:"TTL, or a range: 40-64" placeholder:"RANGE"`
	Fragment   *bool         `negatable:"" help:"fragments only; --no-fragment: whole packets only"`
	OutOfState bool          `name:"out-of-state" help:"only TCP but first SYNs, and UDP, that nothing was sent for before; needs --dst, --proto and an inline sensor"`
	PPS        uint64        `name:"pps" help:"packets a second, for rate-limit" placeholder:"N"`
	BPS        uint64        `name:"bps" help:"bits a second, for rate-limit" placeholder:"N"`
	PerSource  bool          `name:"per-source" help:"the rate is of each source, not of all together"`
	Scope      string        `help:"where it acts: all, site:NAME, node:NAME, interface:NAME or interface:NODE/NAME" placeholder:"SCOPE"`
	Shadow     bool          `help:"only count what it would drop or limit"`
	Escalate   time.Duration `name:"escalate-after" help:"rate-limit: when it was exceeded for so long, drop all until less comes" placeholder:"TIME"`
	For        time.Duration `help:"how long; 0 = until revoked" default:"1h"`
	Priority   int32         `help:"higher wins among equally specific rules" placeholder:"N"`
	Comment    string        `help:"why" placeholder:"TEXT"`
}

// flagOf names the flags by their place in the body that the API takes.
var flagOf = map[string]string{
	"body.action": "--action: ", "body.for": "--for: ", "body.match.host": "--host: ", "body.match.src": "--src: ", "body.match.dst": "--dst: ", "body.match.proto": "--proto: ",
	"body.match.tcp_flags": "--tcp-flags: ", "body.match.length": "--length: ", "body.match.ttl": "--ttl: ",
	"body.scope": "--scope: ", "body.escalate_after": "--escalate-after: ",
}

// input is the rule as the API takes it. What is wrong with it is told by the names of the flags.
func (f *ruleFlags) input() (api.RuleInput, error) {
	in := api.RuleInput{
		Action: f.Action, RatePPS: f.PPS, RateBPS: f.BPS, PerSource: f.PerSource, Scope: f.Scope, Shadow: f.Shadow, Priority: f.Priority, Comment: f.Comment, For: f.For.String(),
		Match: api.Match{
			Host: f.Host, Src: f.Src, Dst: f.Dst, Proto: f.Proto, SrcPort: f.Sport, DstPort: f.Dport, TCPFlags: f.TCPFlags,
			Length: f.Length, TTL: f.TTL, Fragment: f.Fragment, OutOfState: f.OutOfState,
		},
	}
	if f.Escalate != 0 {
		in.Escalate = f.Escalate.String()
	}
	_, err := in.Rule(time.Now())
	var p *api.Problem
	if errors.As(err, &p) {
		var wrong []string
		for _, e := range p.Errors {
			wrong = append(wrong, flagOf[e.Location]+e.Message)
		}
		return in, config.Usagef("%s", strings.Join(wrong, "; "))
	}
	return in, err
}

type rulesAddCmd struct {
	remote    `embed:""`
	output    `embed:""`
	ruleFlags `embed:""`
}

func (c *rulesAddCmd) Run(t *terminal) error {
	in, err := c.input()
	if err != nil {
		return err
	}
	return c.ask(func(ctx context.Context, g *client.Client) error {
		r, err := g.AddRule(ctx, in)
		if err != nil {
			return err
		}
		return one(c.output, t.out, r, ruleText)
	})
}

type rulesDryRunCmd struct {
	remote    `embed:""`
	output    `embed:""`
	ruleFlags `embed:""`
}

func (c *rulesDryRunCmd) Run(t *terminal) error {
	in, err := c.input()
	if err != nil {
		return err
	}
	return c.ask(func(ctx context.Context, g *client.Client) error {
		d, err := g.DryRun(ctx, in)
		if err != nil {
			return err
		}
		return one(c.output, t.out, d, dryRunText)
	})
}

func dryRunText(w io.Writer, d api.DryRun) error {
	verb := "would be added"
	switch {
	case !d.Accepted:
		verb = "would be refused (" + d.Reason + ")"
	case d.Replaces:
		verb = "would be renewed"
	}
	_, _ = fmt.Fprintf(w, "rule %s: %s %s: %s\n", d.Rule.ID, actionText(&d.Rule), plain(d.Rule.MatchText), verb)
	if d.Detail != "" {
		_, _ = fmt.Fprintln(w, plain(d.Detail))
	}
	m := d.Matched
	if m == nil {
		_, err := fmt.Fprintln(w, "what it would have met is not known: the database does not answer")
		return err
	}
	_, _ = fmt.Fprintf(w, "in the last hour it would have met %s flows, %s packets, %s bytes", count(m.Flows), count(m.Packets), count(m.Bytes))
	if m.Approximate {
		_, _ = fmt.Fprint(w, " at most (flags, lengths, TTL and fragments are not stored)")
	}
	_, _ = fmt.Fprintln(w)
	if len(m.Apps) == 0 {
		return nil
	}
	var rows [][]string
	for _, a := range m.Apps {
		rows = append(rows, []string{orDash(a.Key), count(a.Flows), count(a.Packets), count(a.Bytes)})
	}
	return table(w, "APP FLOWS PACKETS BYTES", rows)
}

type rulesReplaceCmd struct {
	remote    `embed:""`
	output    `embed:""`
	ID        string `arg:"" help:"the rule's id (tidegate rules list)"`
	ruleFlags `embed:""`
	Revision  string `help:"only if the rule still has this revision (default: the one it has now)" placeholder:"N"`
}

func (c *rulesReplaceCmd) Run(t *terminal) error {
	in, err := c.input()
	if err != nil {
		return err
	}
	return c.ask(func(ctx context.Context, g *client.Client) error {
		revision := c.Revision
		if revision == "" {
			now, err := g.Rule(ctx, c.ID)
			if err != nil {
				return err
			}
			revision = now.Revision
		}
		r, err := g.ReplaceRule(ctx, c.ID, revision, in)
		if err != nil {
			return err
		}
		return one(c.output, t.out, r, ruleText)
	})
}

func ruleText(w io.Writer, r api.Rule) error {
	_, _ = fmt.Fprintf(w, "rule %s: %s %s: %s, expires %s\n", r.ID, actionText(&r.RuleSpec), plain(r.MatchText), r.State, expires(&r.RuleSpec))
	if r.Detail != "" {
		_, _ = fmt.Fprintln(w, plain(r.Detail))
	}
	return nil
}

// actionText is what the rule does, at which rate, for whom and where.
func actionText(r *api.RuleSpec) string {
	s := r.Action + limitText(r.RatePPS, r.RateBPS)
	if r.PerSource || r.SYNRetry {
		s += " of each source"
	}
	switch {
	case r.Escalated:
		s += ", drops all now"
	case r.Escalate != "":
		s += ", drops all after " + r.Escalate
	}
	if r.Shadow {
		s += ", in shadow"
	}
	if r.Scope != "" {
		s += ", on " + plain(r.Scope)
	}
	return s
}

func expires(r *api.RuleSpec) string {
	if r.ExpiresNs == 0 {
		return "never"
	}
	return when(r.ExpiresNs)
}

type rulesRevokeCmd struct {
	remote   `embed:""`
	ID       string `arg:"" help:"the rule's id (tidegate rules list)"`
	Revision string `help:"only if the rule still has this revision" placeholder:"N"`
}

func (c *rulesRevokeCmd) Run(t *terminal) error {
	return c.ask(func(ctx context.Context, g *client.Client) error {
		if err := g.RevokeRule(ctx, c.ID, c.Revision); err != nil {
			return err
		}
		_, err := fmt.Fprintln(t.out, "revoked", c.ID)
		return err
	})
}

type rulesExplainCmd struct {
	remote `embed:""`
	output `embed:""`
	ID     string `arg:"" help:"the rule's id (tidegate rules list)"`
}

func (c *rulesExplainCmd) Run(t *terminal) error {
	return c.ask(func(ctx context.Context, g *client.Client) error {
		e, err := g.Explain(ctx, c.ID)
		if err != nil {
			return err
		}
		return one(c.output, t.out, e, explanationText)
	})
}

func explanationText(w io.Writer, e api.Explanation) error {
	_, _ = fmt.Fprintln(w, plain(e.Text))
	if err := ruleText(w, e.Rule); err != nil {
		return err
	}
	var rows [][]string
	for _, n := range e.Rule.Nodes {
		rows = append(rows, []string{n.Node, n.State, orDash(n.Reason), count(n.Packets), count(n.Bytes)})
	}
	if len(rows) > 0 {
		if err := table(w, "NODE STATE REASON PACKETS BYTES", rows); err != nil {
			return err
		}
	}
	if e.Verdict == nil {
		return nil
	}
	_, _ = fmt.Fprintln(w)
	return verdictText(w, *e.Verdict)
}
