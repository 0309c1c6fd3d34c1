package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/api/client"
)

type attacksCmd struct {
	List attacksListCmd `cmd:"" default:"withargs" help:"list attacks, the newest first"`
	Show attacksShowCmd `cmd:"" help:"one attack: what happened when, and what was decided"`
	Pcap attacksPcapCmd `cmd:"" help:"write an attack's sampled packets as a capture"`
}

type attacksListCmd struct {
	remote  `embed:""`
	output  `embed:""`
	Active  bool   `help:"only attacks that go on"`
	Type    string `help:"only this type, for example syn_flood" placeholder:"TYPE"`
	span    `embed:"" set:"since=24h"`
	limited `embed:"" set:"limit=100"`
}

func (c *attacksListCmd) Run(t *terminal) error {
	q, err := c.query()
	if err != nil {
		return err
	}
	q.Active, q.Type, q.Limit = c.Active, c.Type, int(c.Limit)
	return c.ask(func(ctx context.Context, g *client.Client) error {
		return list(c.output, t.out, g.Attacks(ctx, q), "ID TYPE TARGET STATE FIRST DETECTED DROPPED PPS SOURCES", func(a api.Attack) []string {
			return []string{
				a.ID, a.Type, a.Target, a.State, when(a.FirstNs), after(a.FirstNs, a.DetectedNs), after(a.FirstNs, a.FirstDropNs),
				quantity(a.PPS), strconv.FormatUint(a.Sources, 10),
			}
		})
	})
}

type attacksShowCmd struct {
	remote `embed:""`
	output `embed:""`
	ID     string `arg:"" help:"the attack's id (tidegate attacks)"`
}

func (c *attacksShowCmd) Run(t *terminal) error {
	return c.ask(func(ctx context.Context, g *client.Client) error {
		a, err := g.Attack(ctx, c.ID)
		if err != nil {
			return err
		}
		return one(c.output, t.out, a, attackText)
	})
}

func attackText(w io.Writer, a api.AttackDetail) error {
	rows := [][]string{
		{"attack", a.ID}, {"type", a.Type}, {"target", a.Target}, {"state", a.State}, {"sensor", a.Sensor},
		{"first packet", when(a.FirstNs)}, {"detected after", after(a.FirstNs, a.DetectedNs)}, {"first drop after", after(a.FirstNs, a.FirstDropNs)},
		{"ended", when(a.EndedNs)}, {"packets", fmt.Sprintf("%s, %s a second", count(a.Packets), quantity(a.PPS))},
		{"bytes", fmt.Sprintf("%s, %s bits a second", count(a.Bytes), quantity(a.BPS))}, {"sources", strconv.FormatUint(a.Sources, 10)},
	}
	if len(a.TopSources) > 0 {
		rows = append(rows, []string{"top sources", strings.Join(a.TopSources, ", ")})
	}
	if a.TraceID != "" {
		rows = append(rows, []string{"trace", a.TraceID})
	}
	if err := table(w, "", rows); err != nil {
		return err
	}
	rows = nil
	for _, e := range a.Timeline {
		rows = append(rows, []string{when(e.TimeNs), after(a.FirstNs, e.TimeNs), e.Kind, e.State, orDash(e.Node), e.Text})
	}
	_, _ = fmt.Fprintln(w)
	if err := table(w, "TIME AFTER KIND STATE NODE WHAT", rows); err != nil {
		return err
	}
	for i := range a.Verdicts {
		_, _ = fmt.Fprintln(w)
		if err := verdictText(w, a.Verdicts[i]); err != nil {
			return err
		}
	}
	return nil
}

type attacksPcapCmd struct {
	remote `embed:""`
	ID     string `arg:"" help:"the attack's id (tidegate attacks)"`
	Output string `short:"o" required:"" help:"file to write; - is the standard output" placeholder:"FILE" type:"path"`
}

func (c *attacksPcapCmd) Run(t *terminal) error {
	return c.ask(func(ctx context.Context, g *client.Client) error {
		if c.Output == "-" {
			return g.AttackPcap(ctx, c.ID, t.out)
		}
		return writeWhole(c.Output, func(w io.Writer) error { return g.AttackPcap(ctx, c.ID, w) })
	})
}

// writeWhole makes or replaces a file when all of it has come: an error leaves what was there. Pipes, devices and links, as
// /dev/stdout is one, are written to.
func writeWhole(file string, fill func(io.Writer) error) (err error) {
	if info, err := os.Lstat(file); err == nil && !info.Mode().IsRegular() {
		f, err := os.OpenFile(file, os.O_WRONLY|os.O_TRUNC, 0) //nolint:gosec // the user's file
		if err != nil {
			return fmt.Errorf("write %s: %w", file, err)
		}
		return errors.Join(fill(f), f.Close())
	}
	f, err := os.CreateTemp(filepath.Dir(file), ".tidegate-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if err := errors.Join(fill(f), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), file); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return nil
}

type verdictsCmd struct {
	List verdictsListCmd `cmd:"" default:"withargs" help:"list verdicts, the newest first"`
	Show verdictsShowCmd `cmd:"" help:"one verdict with its evidence"`
}

type verdictsListCmd struct {
	remote  `embed:""`
	output  `embed:""`
	Attack  string `help:"only verdicts about this attack" placeholder:"ID"`
	span    `embed:"" set:"since=24h"`
	limited `embed:"" set:"limit=100"`
}

func (c *verdictsListCmd) Run(t *terminal) error {
	q, err := c.query()
	if err != nil {
		return err
	}
	q.AttackID, q.Limit = c.Attack, int(c.Limit)
	return c.ask(func(ctx context.Context, g *client.Client) error {
		return list(c.output, t.out, g.Verdicts(ctx, q), "ID DECIDED TYPE TARGET KEY RULES EXPLANATION", func(v api.Verdict) []string {
			return []string{v.ID, when(v.DecidedNs), v.Type, v.Target, orDash(v.Key), strconv.Itoa(len(v.Rules)), v.Explanation}
		})
	})
}

type verdictsShowCmd struct {
	remote `embed:""`
	output `embed:""`
	ID     string `arg:"" help:"the verdict's id (tidegate verdicts)"`
}

func (c *verdictsShowCmd) Run(t *terminal) error {
	return c.ask(func(ctx context.Context, g *client.Client) error {
		v, err := g.Verdict(ctx, c.ID)
		if err != nil {
			return err
		}
		return one(c.output, t.out, v, verdictText)
	})
}

func verdictText(w io.Writer, v api.Verdict) error {
	rows := [][]string{
		{"verdict", v.ID}, {"decided", when(v.DecidedNs)}, {"about", v.Type + " against " + v.Target}, {"attack", v.AttackID},
		{"because", v.Explanation}, {"selects by", orDash(v.Key)},
	}
	for _, r := range v.Rules {
		rows = append(rows, []string{"rule", r.ID + ": " + r.Action + " " + r.MatchText})
	}
	e := v.Evidence
	if len(v.Rules) > 0 {
		rows = append(rows, []string{"rules hit", fmt.Sprintf("%.1f%% of the attack's samples, %.1f%% of the usual traffic's", 100*e.AttackShare, 100*e.GoodShare)})
	}
	for _, name := range sortedKeys(e.Features) {
		value := number(e.Features[name])
		if limit, ok := e.Thresholds[name]; ok {
			value += " (threshold " + number(limit) + ")"
		}
		rows = append(rows, []string{name, value})
	}
	for _, name := range sortedKeys(e.Thresholds) {
		if _, both := e.Features[name]; !both {
			rows = append(rows, []string{"threshold " + name, number(e.Thresholds[name])})
		}
	}
	rows = append(rows, []string{"evidence", fmt.Sprintf("%d windows, %d sampled packets, configuration %s", len(e.Windows), e.Samples, orDash(e.ConfigVersion))})
	return table(w, "", rows)
}

// number writes a feature or threshold: exact, however small.
func number(v float64) string { return strconv.FormatFloat(v, 'g', 6, 64) }

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
