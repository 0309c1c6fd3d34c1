package main

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/api/client"
	"github.com/tidegate-mesh/tidegate/libs/config"
)

// selection narrows stored traffic.
type selection struct {
	Prefix string `help:"only flows with an end inside this prefix or address" placeholder:"CIDR"`
	App    string `help:"only this application" placeholder:"NAME"`
	Host   string `help:"only this host name" placeholder:"NAME"`
	Port   uint16 `help:"only this port, either side" placeholder:"PORT"`
}

func (s selection) narrow(q *client.Query) {
	q.Prefix, q.App, q.Host, q.Port = s.Prefix, s.App, s.Host, s.Port
}

type flowsCmd struct {
	remote    `embed:""`
	output    `embed:""`
	selection `embed:""`
	span      `embed:"" set:"since=1h"`
	limited   `embed:"" set:"limit=100"`
}

func (c *flowsCmd) Run(t *terminal) error {
	q, err := c.query()
	if err != nil {
		return err
	}
	c.narrow(&q)
	q.Limit = int(c.Limit)
	return c.ask(func(ctx context.Context, g *client.Client) error {
		return list(c.output, t.out, g.Flows(ctx, q), "FIRST SOURCE DESTINATION PROTO APP HOST PACKETS BYTES", func(f api.Flow) []string {
			return []string{when(f.FirstNs), addrPort(f.SrcIP, f.SrcPort), addrPort(f.DstIP, f.DstPort), f.Transport, f.App, orDash(f.Host), count(f.Packets), count(f.Bytes)}
		})
	})
}

type topCmd struct {
	remote    `embed:""`
	output    `embed:""`
	By        string `help:"src, dst, app, host or port" enum:"src,dst,app,host,port" default:"app"`
	selection `embed:""`
	span      `embed:"" set:"since=1h"`
	Limit     uint32 `help:"at most so many" default:"10"`
}

func (c *topCmd) Run(t *terminal) error {
	q, err := c.query()
	if err != nil {
		return err
	}
	c.narrow(&q)
	q.By, q.Limit = c.By, int(c.Limit)
	return c.ask(func(ctx context.Context, g *client.Client) error {
		top, err := g.Top(ctx, q)
		if err != nil {
			return err
		}
		return one(c.output, t.out, top, func(w io.Writer, top api.Top) error {
			var rows [][]string
			for _, r := range top.Rows {
				rows = append(rows, []string{orDash(r.Key), count(r.Flows), count(r.Packets), count(r.Bytes)})
			}
			return table(w, strings.ToUpper(c.By)+" FLOWS PACKETS BYTES", rows)
		})
	})
}

type timeseriesCmd struct {
	remote    `embed:""`
	output    `embed:""`
	By        string        `help:"app: a line for each application, the heaviest; none: everything together" enum:"none,app" default:"none"`
	Step      time.Duration `help:"length of a bucket, 1s or more (default: so that there are at most 300)" placeholder:"TIME"`
	selection `embed:""`
	span      `embed:"" set:"since=1h"`
	Limit     uint32 `help:"at most so many applications" default:"10"`
}

func (c *timeseriesCmd) Run(t *terminal) error {
	q, err := c.query()
	if err != nil {
		return err
	}
	if c.Step != 0 && c.Step < time.Second {
		return config.Usagef("--step %s: give 1s or more", c.Step)
	}
	c.narrow(&q)
	q.Step, q.Limit = c.Step, int(c.Limit)
	if c.By != "none" {
		q.By = c.By
	}
	return c.ask(func(ctx context.Context, g *client.Client) error {
		series, err := g.TimeSeries(ctx, q)
		if err != nil {
			return err
		}
		return one(c.output, t.out, series, func(w io.Writer, all api.TimeSeries) error {
			var rows [][]string
			for _, s := range all.Series {
				for _, p := range s.Points {
					rows = append(rows, []string{when(p.StartNs), orDash(s.Key), count(p.Flows), count(p.Packets), count(p.Bytes)})
				}
			}
			return table(w, "START APP FLOWS PACKETS BYTES", rows)
		})
	})
}
