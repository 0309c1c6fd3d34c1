package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/api/client"
)

type watchCmd struct {
	remote `embed:""`
	output `embed:""`
	Types  []string `help:"attack, verdict, enforcement, window, live" enum:"attack,verdict,enforcement,window,live" default:"attack,verdict"`
	After  string   `help:"begin after the event with this id, as --json shows it (default: now)" placeholder:"ID"`
}

// watched is an event as --json prints it; Data is REST's object.
type watched struct {
	ID    string          `json:"id,omitempty"`
	Event string          `json:"event"`
	Data  json.RawMessage `json:"data"`
}

// Run goes on over breaks: a gateway that restarts is met again, and what happened meanwhile is read. A signal is the
// ordinary end.
func (c *watchCmd) Run(t *terminal) error {
	return c.ask(func(ctx context.Context, g *client.Client) error {
		err := g.Stream(ctx, c.Types, c.After, func(e client.Event) error {
			if c.JSON {
				return printJSON(t.out, watched{ID: e.ID, Event: e.Type, Data: e.Data})
			}
			return eventText(t.out, e)
		})
		if errors.Is(err, context.Canceled) && ctx.Err() != nil {
			return nil
		}
		return err
	})
}

// eventText writes an event as a line. One of a kind that this version does not know is passed over.
func eventText(w io.Writer, e client.Event) error {
	var line string
	read := func(v any) bool {
		if err := json.Unmarshal(e.Data, v); err != nil {
			line = fmt.Sprintf("an event of the kind %s cannot be read: %v", e.Type, err)
			return false
		}
		return true
	}
	switch e.Type {
	case api.EventAttack:
		var a api.Attack
		if read(&a) {
			line = fmt.Sprintf("%s  attack %s %s: %s against %s, %s packets/s, %s bits/s, %d sources", when(a.UpdatedNs), a.ID, a.State, a.Type, a.Target, quantity(a.PPS), quantity(a.BPS), a.Sources)
			if a.FirstDropNs != 0 {
				line += ", first drop after " + after(a.FirstNs, a.FirstDropNs)
			}
		}
	case api.EventVerdict:
		var v api.Verdict
		if read(&v) {
			line = fmt.Sprintf("%s  verdict on %s against %s: %s (%d rules)", when(v.DecidedNs), v.Type, v.Target, v.Explanation, len(v.Rules))
		}
	case api.EventEnforcement:
		var f api.EnforcementEvent
		if read(&f) {
			line = fmt.Sprintf("%s  rule %s %s on %s", when(f.TimeNs), f.RuleID, f.State, f.Node)
			if f.Reason != "" {
				line += ": " + f.Reason + " " + f.Detail
			}
		}
	case api.EventWindow:
		var x api.WindowSummary
		if read(&x) {
			line = fmt.Sprintf("%s  %s: %d packets, %d bytes, %d SYN, %d flows", when(x.EndNs), x.Sensor, x.Packets, x.Bytes, x.SYN, x.FlowsActive)
		}
	case api.EventLive:
		var l api.Live
		if read(&l) {
			line = when(l.TimeNs) + " "
			for _, action := range sortedKeys(l.PPS) {
				line += fmt.Sprintf(" %s %s/s", action, quantity(l.PPS[action]))
			}
			line += fmt.Sprintf(", %d attacks, difference %d", len(l.Attacks), l.Ledger.Difference)
		}
	case api.EventGap:
		var gap api.StreamGap
		if read(&gap) {
			line = fmt.Sprintf("! events %d to %d are lost to this listener: read tidegate attacks", gap.From, gap.To)
			if gap.Restarted {
				line = "! the events were made anew; some may be lost: read tidegate attacks"
			}
		}
	default:
		return nil
	}
	_, err := fmt.Fprintln(w, plain(line))
	return err
}
