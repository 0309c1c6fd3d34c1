package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
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
	JA3    string `name:"ja3" help:"only clients with this TLS fingerprint" placeholder:"MD5"`
	JA4    string `name:"ja4" help:"only clients with this TLS or QUIC fingerprint" placeholder:"JA4"`
	HASSH  string `name:"hassh" help:"only clients with this SSH fingerprint" placeholder:"MD5"`

	Confidence string `help:"only labels that rest on this: payload, negotiated, session or port" enum:",payload,negotiated,session,port" default:"" placeholder:"KIND"`
	Risk       string `help:"only flows that carry this risk: obsolete_tls, clear_credentials, dns_tunnel, unexpected_port, executable or malformed" enum:",obsolete_tls,clear_credentials,dns_tunnel,unexpected_port,executable,malformed" default:"" placeholder:"NAME"`
}

func (s selection) narrow(q *client.Query) {
	q.Prefix, q.App, q.Host, q.Port = s.Prefix, s.App, s.Host, s.Port
	q.JA3, q.JA4, q.HASSH, q.Confidence, q.Risk = s.JA3, s.JA4, s.HASSH, s.Confidence, s.Risk
}

type flowsCmd struct {
	remote    `embed:""`
	output    `embed:""`
	selection `embed:""`
	span      `embed:"" set:"since=1h"`
	limited   `embed:"" set:"limit=100"`
	Facts     bool `help:"show fingerprints, versions and DNS answers instead of counters"`
}

func (c *flowsCmd) Run(t *terminal) error {
	q, err := c.query()
	if err != nil {
		return err
	}
	c.narrow(&q)
	q.Limit = int(c.Limit)
	seen := map[string]string{} // reason by name
	head := "FIRST SOURCE DESTINATION PROTO APP CONFIDENCE HOST PACKETS BYTES RTT RETRANSMITS RISKS"
	if c.Facts {
		head = "FIRST SOURCE DESTINATION PROTO APP CONFIDENCE HOST FACTS RISKS"
	}
	return c.ask(func(ctx context.Context, g *client.Client) error {
		err := list(c.output, t.out, g.Flows(ctx, q), head, func(f api.Flow) []string {
			names := make([]string, len(f.Risks))
			for i, r := range f.Risks {
				names[i], seen[r.Name] = r.Name, r.Reason
			}
			row := []string{when(f.FirstNs), addrPort(f.SrcIP, f.SrcPort), addrPort(f.DstIP, f.DstPort), f.Transport, f.App, orDash(f.Confidence), orDash(f.Host)}
			if c.Facts {
				row = append(row, orDash(facts(&f)))
			} else {
				row = append(row, count(f.Packets), count(f.Bytes), roundTrip(f.TCP), retransmits(f.TCP))
			}
			return append(row, orDash(strings.Join(names, ",")))
		})
		if err != nil || c.JSON {
			return err
		}
		return reasons(t.out, seen)
	})
}

// facts is what a flow said in clear, in one line.
func facts(f *api.Flow) string {
	var out []string
	add := func(name, value string) {
		if value != "" {
			out = append(out, name+"="+value)
		}
	}
	if f.VLAN != 0 {
		add("vlan", strconv.Itoa(int(f.VLAN)))
	}
	if f.Tunnel != 0 {
		add("tunnel", strconv.FormatUint(uint64(f.Tunnel), 10))
	}
	add("host_source", f.HostSource)
	add("tls", f.TLSVersion)
	add("alpn", f.ALPN)
	add("ja4", f.JA4)
	add("ja3", f.JA3)
	add("hassh", f.HASSH)
	add("method", f.HTTPMethod)
	add("user_agent", f.UserAgent)
	add("dns", f.DNSType)
	add("rcode", f.DNSRcode)
	add("answers", strings.Join(f.DNSAnswers, ","))
	if f.TCP != nil {
		add("rtt_client", micros(f.TCP.RTTClientUs))
		add("rtt_server", micros(f.TCP.RTTServerUs))
		add("retransmits", fmt.Sprintf("%d/%d", f.TCP.RetransmitsFwd, f.TCP.RetransmitsRev))
	}
	return strings.Join(out, " ")
}

// micros is a time as people read it; empty for none.
func micros(us uint32) string {
	if us == 0 {
		return ""
	}
	return (time.Duration(us) * time.Microsecond).String()
}

func roundTrip(f *api.TCPFacts) string {
	if f == nil {
		return "-"
	}
	return orDash(micros(f.RTTUs))
}

// retransmits are those of both directions.
func retransmits(f *api.TCPFacts) string {
	if f == nil {
		return "-"
	}
	return count(uint64(f.RetransmitsFwd) + uint64(f.RetransmitsRev))
}

// reasons prints what each risk means, in the order of their names.
func reasons(w io.Writer, seen map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(seen)) {
		if _, err := fmt.Fprintf(w, "%s: %s\n", plain(name), plain(seen[name])); err != nil {
			return err
		}
	}
	return nil
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
