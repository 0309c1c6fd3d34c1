package main

import (
	"context"
	"fmt"
	"io"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/api/client"
)

type panicCmd struct {
	On     panicOnCmd     `cmd:"" help:"take every drop and rate limit off every node now, revoke users' rules, hold detectors'"`
	Off    panicOffCmd    `cmd:"" help:"let the held rules act again"`
	Status panicStatusCmd `cmd:"" help:"say whether panic is on"`
}

// panicOnCmd asks nothing back: it is for emergencies.
type panicOnCmd struct {
	remote `embed:""`
	output `embed:""`
	Reason string `help:"why, for the audit log" placeholder:"TEXT"`
}

func (c *panicOnCmd) Run(t *terminal) error {
	return c.ask(func(ctx context.Context, g *client.Client) error {
		p, err := g.Panic(ctx, c.Reason)
		return panicked(c.output, t.out, p, err)
	})
}

type panicOffCmd struct {
	remote `embed:""`
	output `embed:""`
}

func (c *panicOffCmd) Run(t *terminal) error {
	return c.ask(func(ctx context.Context, g *client.Client) error {
		p, err := g.EndPanic(ctx)
		return panicked(c.output, t.out, p, err)
	})
}

// panicked prints what a change did; a node that has not followed is an error.
func panicked(o output, w io.Writer, p api.PanicResult, err error) error {
	if err != nil {
		return err
	}
	if err := one(o, w, p, panicText); err != nil {
		return err
	}
	late := 0
	for _, n := range p.Nodes {
		if !n.Done {
			late++
		}
	}
	if late > 0 {
		return fmt.Errorf("%d of %d nodes have not followed yet: look again with tidegate panic status and tidegate rules list", late, len(p.Nodes))
	}
	return nil
}

func panicText(w io.Writer, p api.PanicResult) error {
	_, _ = fmt.Fprintln(w, panicLine(p.Panic))
	if p.On {
		_, _ = fmt.Fprintf(w, "%d users' rules revoked, %d detectors' rules held\n", len(p.Revoked), p.Held)
	}
	for i := range p.Revoked {
		r := &p.Revoked[i]
		_, _ = fmt.Fprintf(w, "revoked %s: %s %s\n", r.ID, r.Action, plain(r.MatchText))
	}
	if len(p.Nodes) == 0 {
		return nil
	}
	var rows [][]string
	for _, n := range p.Nodes {
		done := "done"
		if !n.Done {
			done = "not yet"
		}
		rows = append(rows, []string{n.Node, done, orDash(n.Problem)})
	}
	return table(w, "NODE STATE PROBLEM", rows)
}

type panicStatusCmd struct {
	remote `embed:""`
	output `embed:""`
}

func (c *panicStatusCmd) Run(t *terminal) error {
	return c.ask(func(ctx context.Context, g *client.Client) error {
		p, err := g.PanicState(ctx)
		if err != nil {
			return err
		}
		return one(c.output, t.out, p, func(w io.Writer, p api.Panic) error {
			_, err := fmt.Fprintln(w, panicLine(p))
			return err
		})
	})
}

func panicLine(p api.Panic) string {
	s := "panic is off"
	if p.On {
		s = "PANIC is on: nothing is dropped"
	}
	if p.SinceNs != 0 {
		s += ", since " + when(p.SinceNs)
	}
	if p.By != "" {
		s += ", by " + p.By
	}
	if p.Reason != "" {
		s += ": " + p.Reason
	}
	return plain(s)
}
