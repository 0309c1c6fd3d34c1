package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/api/client"
	"github.com/tidegate-mesh/tidegate/libs/config"
	"github.com/tidegate-mesh/tidegate/libs/policy"
)

type listsCmd struct {
	List   listsListCmd   `cmd:"" default:"withargs" help:"list the lists"`
	Show   listsShowCmd   `cmd:"" help:"show a list and what each node has made of it"`
	Put    listsPutCmd    `cmd:"" help:"make a list of a file or a URL, or change one"`
	Remove listsRemoveCmd `cmd:"" help:"take a list away, and with it what it does"`
}

type listsListCmd struct {
	remote `embed:""`
	output `embed:""`
}

func (c *listsListCmd) Run(t *terminal) error {
	return c.ask(func(ctx context.Context, g *client.Client) error {
		return list(c.output, t.out, whole(g.Lists(ctx)), "NAME KIND ACTION ENTRIES REJECTED UPDATED FROM PROBLEM", func(l api.List) []string {
			from := "upload"
			if l.URL != "" {
				from = l.URL
			}
			return []string{l.Name, l.Kind, l.Action, count(l.Hosts + l.Prefixes + l.Domains), count(l.Rejected), when(l.UpdatedNs), from, orDash(l.Problem)}
		})
	})
}

type listsShowCmd struct {
	remote `embed:""`
	output `embed:""`
	Name   string `arg:"" help:"the list's name (tidegate lists)"`
}

func (c *listsShowCmd) Run(t *terminal) error {
	return c.ask(func(ctx context.Context, g *client.Client) error {
		l, err := g.List(ctx, c.Name)
		if err != nil {
			return err
		}
		return one(c.output, t.out, l, listText)
	})
}

type listsPutCmd struct {
	remote  `embed:""`
	output  `embed:""`
	Name    string        `arg:"" help:"the list's name: a-z, 0-9, - and _"`
	Kind    string        `help:"what the entries are: cidr (addresses and prefixes of sources; the default for a new list) or domain (names that flows have)" placeholder:"cidr|domain" enum:"cidr,domain," default:""`
	Action  string        `help:"allow, drop or count, of domains also rate-limit; an allow list exempts from the other lists of its kind" enum:"allow,drop,rate-limit,count" required:""`
	PPS     uint64        `name:"pps" help:"packets a second, for rate-limit, of each direction of a flow" placeholder:"N"`
	BPS     uint64        `name:"bps" help:"bits a second, for rate-limit, of each direction of a flow" placeholder:"N"`
	File    string        `help:"file with an entry a line, or a hosts file; - is standard input. Put it again when the file has changed" placeholder:"FILE" xor:"from"`
	URL     string        `name:"url" help:"HTTPS address that a gateway reads the list from, again and again" placeholder:"URL" xor:"from"`
	Every   time.Duration `help:"how often the URL is read (default 1h)" placeholder:"TIME"`
	Comment string        `help:"why" placeholder:"TEXT"`
	Wait    time.Duration `help:"how long to wait until the nodes have the list; 0 = not at all" default:"30s"`
}

func (c *listsPutCmd) Run(t *terminal) error {
	in := api.ListInput{Kind: c.Kind, Action: c.Action, RatePPS: c.PPS, RateBPS: c.BPS, URL: c.URL, Comment: c.Comment}
	if (c.Action == "rate-limit") != (c.PPS != 0 || c.BPS != 0) || c.PPS != 0 && c.BPS != 0 {
		return config.Usagef("--action rate-limit needs one of --pps and --bps, other actions none")
	}
	if c.Every != 0 {
		if c.URL == "" {
			return config.Usagef("--every belongs to --url")
		}
		in.Every = c.Every.String()
	}
	var text []byte
	if c.File != "" {
		var err error
		if text, err = readList(c.File, t.in); err != nil {
			return config.Usagef("%w", err)
		}
	}
	return c.ask(func(ctx context.Context, g *client.Client) error {
		l, err := g.PutList(ctx, c.Name, in)
		if err == nil && c.File != "" {
			l, err = g.PutListEntries(ctx, c.Name, text)
		}
		if err != nil {
			return err
		}
		if c.Wait > 0 {
			if l, err = waitList(ctx, g, l, c.Wait); err != nil {
				return err
			}
		}
		if err := one(c.output, t.out, l, listText); err != nil {
			return err
		}
		if l.Problem != "" {
			return errors.New("the list cannot be read from its URL")
		}
		return nil
	})
}

func readList(file string, stdin io.Reader) ([]byte, error) {
	in := stdin
	if file != "-" {
		f, err := os.Open(file) //nolint:gosec // the user's file
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }() // it was only read
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, api.MaxList+1))
	if err != nil {
		return nil, fmt.Errorf("read the list: %w", err)
	}
	if len(text) > api.MaxList {
		return nil, fmt.Errorf("the list is larger than %d MiB", api.MaxList>>20)
	}
	if len(text) == 0 {
		text = []byte("#\n") // an empty list, but not an empty body
	}
	return text, nil
}

// waitList asks until every node has the list in force, or it cannot be had, or time is up: the list as it is then.
func waitList(ctx context.Context, g *client.Client, l api.List, limit time.Duration) (api.List, error) {
	name, begin := l.Name, time.Now()
	for {
		l, err := g.List(ctx, name)
		if err != nil {
			return l, err
		}
		waits := slices.ContainsFunc(l.Nodes, func(n api.ListNode) bool { return n.State == "loading" }) || l.URL != "" && l.UpdatedNs == 0
		if !waits || l.Problem != "" || time.Since(begin) > limit {
			return l, nil
		}
		select {
		case <-ctx.Done():
			return l, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func listText(w io.Writer, l api.List) error {
	what := fmt.Sprintf("%s hosts, %s prefixes", count(l.Hosts), count(l.Prefixes))
	if l.Kind == policy.KindDomain {
		what = count(l.Domains) + " domains"
	}
	_, _ = fmt.Fprintf(w, "list %s: %s%s, %s, changed %s\n", l.Name, l.Action, limitText(l.RatePPS, l.RateBPS), what, when(l.UpdatedNs))
	if l.Comment != "" {
		_, _ = fmt.Fprintln(w, plain(l.Comment))
	}
	if l.URL != "" {
		_, _ = fmt.Fprintf(w, "read every %s from %s, last %s\n", l.Every, plain(l.URL), when(l.CheckedNs))
	}
	if l.Problem != "" {
		_, _ = fmt.Fprintf(w, "the last reading failed: %s\n", plain(l.Problem))
	}
	if l.Rejected > 0 {
		_, _ = fmt.Fprintf(w, "%d lines are no entries and were left out, such as\n", l.Rejected)
	}
	for _, e := range l.Examples {
		_, _ = fmt.Fprintf(w, "  line %d: %s: %s\n", e.Line, plain(e.Text), plain(e.Reason))
	}
	if len(l.Nodes) == 0 {
		return nil
	}
	if l.Kind == policy.KindDomain {
		return domainNodes(w, l.Nodes)
	}
	var rows [][]string
	var refused []string
	for _, n := range l.Nodes {
		total := uint64(0)
		for _, k := range n.Refused {
			total += k
		}
		rows = append(rows, []string{n.Node, n.State, count(n.Entries), count(total), count(n.Packets), count(n.Dropped), orDash(n.Problem)})
		for _, e := range n.Examples {
			refused = append(refused, n.Node+" refuses "+e)
		}
	}
	if err := table(w, "NODE STATE ENTRIES REFUSED PACKETS DROPPED PROBLEM", rows); err != nil || len(refused) == 0 {
		return err
	}
	for _, line := range refused {
		_, _ = fmt.Fprintln(w, plain(line))
	}
	return nil
}

func domainNodes(w io.Writer, nodes []api.ListNode) error {
	var rows [][]string
	for _, n := range nodes {
		rows = append(rows, []string{n.Node, n.State, count(n.Entries), count(n.Refused["list_limit"]), count(n.Flows), count(n.Ruled), orDash(n.Problem)})
	}
	return table(w, "NODE STATE ENTRIES REFUSED FLOWS RULED PROBLEM", rows)
}

// limitText is what follows an action that limits.
func limitText(pps, bps uint64) string {
	switch {
	case pps != 0:
		return fmt.Sprintf(" %s packets/s", count(pps))
	case bps != 0:
		return fmt.Sprintf(" %s bits/s", count(bps))
	}
	return ""
}

type listsRemoveCmd struct {
	remote `embed:""`
	Name   string `arg:"" help:"the list's name (tidegate lists)"`
}

func (c *listsRemoveCmd) Run(t *terminal) error {
	return c.ask(func(ctx context.Context, g *client.Client) error {
		if err := g.DeleteList(ctx, c.Name); err != nil {
			return err
		}
		_, err := fmt.Fprintln(t.out, "removed", c.Name)
		return err
	})
}
