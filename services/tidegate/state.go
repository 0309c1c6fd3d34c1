package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/api/client"
	"github.com/tidegate-mesh/tidegate/libs/ledger"
	"github.com/tidegate-mesh/tidegate/libs/pki"
)

type statusCmd struct {
	remote `embed:""`
	output `embed:""`
}

func (c *statusCmd) Run(t *terminal) error {
	return c.ask(func(ctx context.Context, g *client.Client) error {
		s, err := g.Status(ctx)
		if err != nil {
			return err
		}
		if err := one(c.output, t.out, s, statusText); err != nil {
			return err
		}
		if len(s.Services) == 0 {
			return errors.New("no service answers the gateway")
		}
		return nil
	})
}

func statusText(w io.Writer, s api.Status) error {
	var rows [][]string
	for _, x := range s.Services {
		ready := "ready"
		if !x.Ready {
			ready = "not ready"
		}
		rows = append(rows, []string{x.Service, orDash(x.Instance), ready, age(x.StartedNs), day(x.CertificateExpiresNs), orDash(strings.Join(x.Problems, "; "))})
	}
	if err := table(w, "SERVICE INSTANCE STATE UP CERTIFICATE PROBLEMS", rows); err != nil {
		return err
	}
	for _, x := range s.Services {
		if left := time.Until(x.CertificateExpiresNs.Time()); x.CertificateExpiresNs != 0 && left < pki.RenewWithin {
			ends := "has ended"
			if left > 0 {
				ends = fmt.Sprintf("ends in %d days", int(left.Hours()/24))
			}
			_, _ = fmt.Fprintf(w, "! the certificate of %s %s %s: run tidegate certs where it was made\n", x.Service, orDash(x.Instance), ends)
		}
	}
	for _, m := range s.Missing {
		_, _ = fmt.Fprintf(w, "! %s at %s: %s\n", m.Service, orDash(m.Address), plain(m.Problem))
	}
	for _, i := range s.Interfaces {
		_, _ = fmt.Fprintf(w, "%s: %s, %s, %d queues, %s received, %s ring drops\n", i.Name, i.Mode, i.Capture, i.Queues, count(i.Received), count(i.RingDrops))
	}
	for _, c := range s.Streams {
		state := "connected"
		if !c.Connected {
			state = "no stream"
		}
		_, _ = fmt.Fprintf(w, "%s to classify at %s: %s, judges %.0f%% of the networks, %s batches pending\n", c.Sensor, c.Address, state, 100*c.Share, count(c.BatchesPending))
	}
	if !s.Enforcing {
		_, _ = fmt.Fprintln(w, "shadow: rules only count what they would drop")
	}
	if s.Panic.On {
		_, _ = fmt.Fprintln(w, panicLine(s.Panic))
	}
	_, err := fmt.Fprint(w, ledgerText(sheet(s.Ledger)))
	return err
}

// age is how long ago a time is, in whole seconds.
func age(n api.Nanos) string {
	if n == 0 {
		return "-"
	}
	return time.Since(n.Time()).Round(time.Second).String()
}

// day is the date of a time.
func day(n api.Nanos) string {
	if n == 0 {
		return "-"
	}
	return n.Time().UTC().Format(time.DateOnly)
}

type ledgerCmd struct {
	remote `embed:""`
	output `embed:""`
}

func (c *ledgerCmd) Run(t *terminal) error {
	return c.ask(func(ctx context.Context, g *client.Client) error {
		l, err := g.Ledger(ctx)
		if err != nil {
			return err
		}
		return one(c.output, t.out, l, func(w io.Writer, l api.Ledger) error {
			_, err := fmt.Fprintf(w, "%sdifference %d\n", ledgerText(sheet(l)), l.Difference)
			return err
		})
	})
}

func sheet(l api.Ledger) ledger.Sheet {
	s := ledger.Sheet{Difference: l.Difference}
	for _, x := range l.Stages {
		s.Stages = append(s.Stages, ledger.Stage{Stage: x.Stage, In: x.In, Out: x.Out, Difference: x.Difference})
	}
	return s
}

type groupsCmd struct {
	remote `embed:""`
	output `embed:""`
}

func (c *groupsCmd) Run(t *terminal) error {
	return c.ask(func(ctx context.Context, g *client.Client) error {
		groups, err := g.Groups(ctx)
		if c.JSON || err != nil {
			return list(c.output, t.out, whole(groups, err), "", nil)
		}
		return groupsText(t.out, groups)
	})
}

// groupsText prints what the groups have, then their thresholds side by side, then the hosts with thresholds of their own.
func groupsText(w io.Writer, groups []api.Group) error {
	var rows, learned [][]string
	thresholds := make(map[string][]string)
	head := "THRESHOLD"
	for i, g := range groups {
		prefixes := "every address"
		if len(g.Prefixes) > 0 {
			prefixes = strings.Join(g.Prefixes, ", ")
		}
		rows = append(rows, []string{g.Name, prefixes})
		head += " " + strings.Join(strings.Fields(g.Name), "_")
		for name, v := range g.Thresholds {
			if thresholds[name] == nil {
				thresholds[name] = slices.Repeat([]string{"-"}, len(groups))
			}
			thresholds[name][i] = number(v)
		}
		for _, h := range g.Learned {
			for _, name := range sortedKeys(h.Thresholds) {
				learned = append(learned, []string{h.Host, g.Name, name, number(h.Thresholds[name])})
			}
		}
	}
	err := table(w, "NAME PREFIXES", rows)
	rows = nil
	for _, name := range sortedKeys(thresholds) {
		rows = append(rows, append([]string{name}, thresholds[name]...))
	}
	for _, t := range []struct {
		head string
		rows [][]string
	}{{head, rows}, {"HOST GROUP LEARNED THRESHOLD", learned}} {
		if err == nil && len(t.rows) > 0 {
			_, _ = fmt.Fprintln(w)
			err = table(w, t.head, t.rows)
		}
	}
	return err
}

type sensorsCmd struct {
	remote `embed:""`
	output `embed:""`
}

func (c *sensorsCmd) Run(t *terminal) error {
	return c.ask(func(ctx context.Context, g *client.Client) error {
		return list(c.output, t.out, whole(g.Sensors(ctx)), "SENSOR READY INTERFACES DESTINATION SOURCE", func(s api.Sensor) []string {
			var ifaces []string
			for _, i := range s.Interfaces {
				ifaces = append(ifaces, fmt.Sprintf("%s %s (%s, %d queues)", i.Name, i.Mode, i.Capture, i.Queues))
			}
			return []string{s.Name, strconv.FormatBool(s.Ready), orDash(strings.Join(ifaces, ", ")), heaviest(s.TopDst), heaviest(s.TopSrc)}
		})
	})
}

func heaviest(t []api.Talker) string {
	if len(t) == 0 {
		return "-"
	}
	return fmt.Sprintf("%s (%s/s)", t[0].Addr, quantity(t[0].PPS))
}

type nodesCmd struct {
	remote `embed:""`
	output `embed:""`
}

func (c *nodesCmd) Run(t *terminal) error {
	return c.ask(func(ctx context.Context, g *client.Client) error {
		return list(c.output, t.out, whole(g.Nodes(ctx)), "SERVICE INSTANCE VERSION ADDRESS STARTED SEEN", func(n api.Node) []string {
			return []string{n.Service, n.Instance, n.Version, orDash(n.Address), when(n.StartedNs), when(n.SeenNs)}
		})
	})
}

type auditCmd struct {
	remote  `embed:""`
	output  `embed:""`
	Actor   string `help:"only changes by this subject" placeholder:"NAME"`
	Action  string `help:"only this action, for example rule.add" placeholder:"ACTION"`
	Target  string `help:"only changes of this, for example a rule's id" placeholder:"ID"`
	span    `embed:"" set:"since=24h"`
	limited `embed:"" set:"limit=100"`
}

func (c *auditCmd) Run(t *terminal) error {
	q, err := c.query()
	if err != nil {
		return err
	}
	q.Actor, q.Action, q.Target, q.Limit = c.Actor, c.Action, c.Target, int(c.Limit)
	return c.ask(func(ctx context.Context, g *client.Client) error {
		return list(c.output, t.out, g.Audit(ctx, q), "TIME ACTOR ROLE ACTION TARGET OUTCOME REMOTE DETAIL", func(a api.AuditEntry) []string {
			return []string{when(a.TimeNs), orDash(a.Actor), orDash(a.Role), a.Action, orDash(a.Target), a.Outcome, orDash(a.Remote), orDash(a.Detail)}
		})
	})
}
