package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
	"time"

	"golang.org/x/term"
	"google.golang.org/grpc"

	"github.com/tidegate-mesh/tidegate/libs/ledger"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
	enforcev1 "github.com/tidegate-mesh/tidegate/proto/enforce/v1"
	ingestv1 "github.com/tidegate-mesh/tidegate/proto/ingest/v1"
)

const (
	viewEvery = 500 * time.Millisecond
	lineEvery = 5 * time.Second
)

// show draws the live view on a terminal, and plain lines elsewhere.
func (d *demo) show(ctx context.Context) {
	if d.cmd.JSON {
		return
	}
	terminal := term.IsTerminal(int(os.Stdout.Fd()))
	every := lineEvery
	if terminal {
		every = viewEvery
		fmt.Print("\x1b[?25l\x1b[2J")
		defer fmt.Print("\x1b[?25h\n")
	}
	before := map[string]uint64{}
	last := time.Now()
	known := 0
	for sleep(ctx, every) {
		now := time.Now()
		counters := d.stack.counters()
		f := frame{rates: rates(before, counters, now.Sub(last))}
		before, last = counters, now
		if terminal {
			d.fill(&f)
			fmt.Print("\x1b[H")
			d.draw(os.Stdout, &f)
			fmt.Print("\x1b[J")
			continue
		}
		fmt.Printf("%6.1fs  %s\n", d.elapsed().Seconds(), f.rateLine())
		known = d.printNew(known)
	}
}

// frame is what one picture of the live view shows.
type frame struct {
	rates        []rate
	destinations []*ingestv1.TopTalker
	sources      []*ingestv1.TopTalker
	rules        []*enforcev1.RuleState
	ledger       ledger.Sheet
}

type rate struct {
	action string
	pps    float64
}

// shown are the actions of the view, by the metric's label.
var shown = []struct{ action, name string }{
	{"seen", "seen"}, {"drop", "drop"}, {"rate_limited", "rate-limited"}, {"redirect", "to user space"},
	{"forward", "forward in kernel"}, {"count", "count"},
}

func rates(a, b map[string]uint64, d time.Duration) []rate {
	var out []rate
	for _, s := range shown {
		out = append(out, rate{s.name, float64(b[s.action]-min(a[s.action], b[s.action])) / d.Seconds()})
	}
	return out
}

func (f *frame) rateLine() string {
	var parts []string
	for _, r := range f.rates {
		parts = append(parts, fmt.Sprintf("%s %s/s", r.action, quantity(r.pps)))
	}
	return strings.Join(parts, "   ")
}

func (d *demo) fill(f *frame) {
	_ = d.stack.call("ingest", func(ctx context.Context, c *grpc.ClientConn) error {
		s, err := ingestv1.NewIngestServiceClient(c).Status(ctx, &ingestv1.StatusRequest{})
		f.destinations, f.sources = s.GetTopDestinations(), s.GetTopSources()
		return err
	})
	_ = d.stack.call("enforce", func(ctx context.Context, c *grpc.ClientConn) error {
		s, err := enforcev1.NewEnforceServiceClient(c).ListRules(ctx, &enforcev1.ListRulesRequest{})
		f.rules = s.GetRules()
		return err
	})
	f.ledger = d.stack.ledger()
	sort.SliceStable(f.rules, func(i, j int) bool { return f.rules[i].Packets > f.rules[j].Packets })
}

func (d *demo) draw(w io.Writer, f *frame) {
	line := func(format string, a ...any) { fmt.Fprintf(w, format+"\x1b[K\n", a...) }
	line("\x1b[1mTidegate demo\x1b[0m  %s   generator → [XDP, AF_XDP] → victim %s   Ctrl-C ends and cleans up", d.elapsed().Round(time.Second), loadgen.VictimAddr)
	line("")
	line("\x1b[1mpackets a second\x1b[0m")
	for _, r := range f.rates {
		colour := ""
		if r.action == "drop" && r.pps > 0 {
			colour = "\x1b[31m"
		}
		line("  %s%-18s %9s %s\x1b[0m", colour, r.action, quantity(r.pps), strings.Repeat("█", min(50, int(r.pps/1500))))
	}
	line("")
	line("\x1b[1m%-38s%s\x1b[0m", "top destinations (user space)", "top sources")
	for i := range 4 {
		line("  %-36s%s", talker(f.destinations, i), talker(f.sources, i))
	}
	line("")
	line("\x1b[1m%-14s%-6s%-12s%-12s%s\x1b[0m", "attack", "seed", "detected", "first drop", "state")
	d.mu.Lock()
	for _, a := range d.attacks[max(0, len(d.attacks)-6):] {
		detected, drop := "-", "-"
		first := xdp.MonotonicToUnix(a.firstNs).UnixNano()
		if a.detectedNs != 0 {
			detected = fmt.Sprintf("%d ms", (a.detectedNs-first)/1e6)
		}
		if a.firstDrop != 0 {
			drop = fmt.Sprintf("%d ms", (a.firstDrop-first)/1e6)
		}
		state := "over"
		if a.ended.IsZero() {
			state = "\x1b[31mnow\x1b[0m"
		}
		line("  %-12s%-6d%-12s%-12s%s", a.kind, a.seed, detected, drop, state)
	}
	d.mu.Unlock()
	st := d.client.Stats()
	line("")
	line("\x1b[1mbenign connections\x1b[0m  %d begun, %d completed", st.Begun, st.Completed)
	line("")
	line("\x1b[1mrules\x1b[0m")
	for _, r := range f.rules[:min(6, len(f.rules))] {
		o := newRuleObject(r)
		line("  %-10s %-8s %9s  %s", o.Action, o.State, quantity(float64(o.Packets)), o.Match)
	}
	line("")
	for _, l := range strings.Split(strings.TrimSuffix(ledgerText(f.ledger), "\n"), "\n") {
		line("%s", l)
	}
}

func talker(t []*ingestv1.TopTalker, i int) string {
	if i >= len(t) {
		return ""
	}
	return fmt.Sprintf("%-24s %s/s", t[i].Addr, quantity(t[i].Pps))
}

// printNew prints attacks that were stopped since the last call and returns how many are known.
func (d *demo) printNew(known int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	for known < len(d.attacks) && d.attacks[known].firstDrop != 0 {
		a := d.attacks[known]
		first := xdp.MonotonicToUnix(a.firstNs).UnixNano()
		fmt.Printf("         %s (seed %d): detected after %d ms, first packet dropped in the driver after %d ms\n",
			a.kind, a.seed, (a.detectedNs-first)/1e6, (a.firstDrop-first)/1e6)
		known++
	}
	return known
}

func (d *demo) elapsed() time.Duration { return time.Since(d.started) }
