package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/lifecycle"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	"github.com/tidegate-mesh/tidegate/services/classify"
	"github.com/tidegate-mesh/tidegate/services/ingest"
)

type replayCmd struct {
	Files     []string `arg:"" name:"file" help:"pcap or pcapng captures, gzip or not" type:"path"`
	Detect    bool     `help:"find attacks too"`
	Protected []string `help:"protected prefix; repeat or separate by commas; without it every address is"`
	JSON      bool     `help:"print one JSON object a line"`
}

// replayLedger is the last line of a replay.
type replayLedger struct {
	Kind        string            `json:"kind"`
	Packets     uint64            `json:"packets"`
	Undecodable map[string]uint64 `json:"undecodable"`
	Flows       uint64            `json:"flows"`
	Difference  int64             `json:"difference"`
}

func (c *replayCmd) Run() error {
	ctx, stop := lifecycle.SignalContext()
	defer stop()
	for _, f := range c.Files {
		if err := openFile(f); err != nil {
			return err
		}
	}
	out := bufio.NewWriterSize(os.Stdout, 1<<20)
	ledger := replayLedger{Kind: "ledger", Undecodable: map[string]uint64{}}
	apps, risks := map[string]*appTotal{}, map[string]uint64{}
	var failed []error
	for i, file := range c.Files {
		p := &player{ctx: ctx, cmd: c, name: filepath.Base(file), apps: apps, risks: risks, evidence: map[string]map[string]any{}}
		p.batch.Reuse = true
		if c.JSON {
			p.print = func(v any) error { return printJSON(out, v) }
		} else {
			p.print = func(v any) error { return p.text(out, v) }
		}
		l, err := p.play(file)
		ledger.Packets += l.Packets
		ledger.Flows += l.Flows
		ledger.Difference += l.Difference
		for k, v := range l.Undecodable {
			ledger.Undecodable[k] += v
		}
		if ctx.Err() != nil {
			return errors.Join(out.Flush(), errors.New("interrupted"))
		}
		// A damaged capture ends itself, not the ones after it.
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", file, err))
		}
		if !c.JSON && len(c.Files) > 20 && i%100 == 99 {
			fmt.Fprintf(os.Stderr, "%d of %d captures\n", i+1, len(c.Files))
		}
	}
	if c.JSON {
		if err := printJSON(out, ledger); err != nil {
			return err
		}
	} else if err := summary(out, apps, risks, ledger); err != nil {
		return err
	}
	return errors.Join(append(failed, out.Flush())...)
}

type appTotal struct{ flows, packets, bytes uint64 }

// player replays one capture through ingest's pipeline into a classify engine of its own.
type player struct {
	ctx      context.Context
	cmd      *replayCmd
	name     string
	engine   *classify.Engine
	print    func(any) error
	apps     map[string]*appTotal
	risks    map[string]uint64 // flows by name
	attacks  []*eventv1.Attack
	evidence map[string]map[string]any // by attack id, of its first verdict
	batch    classify.BatchResult
	window   classify.WindowResult
}

func (p *player) play(file string) (ingest.ReplayLedger, error) {
	cfg := classify.DefaultEngineConfig()
	cfg.Protected, cfg.LabelsOnly = p.cmd.Protected, !p.cmd.Detect
	engine, err := classify.NewEngine(cfg)
	if err != nil {
		return ingest.ReplayLedger{}, err
	}
	p.engine = engine
	l, err := ingest.Replay(p.ctx, ingest.ReplayConfig{NoWindows: !p.cmd.Detect}, file, p)
	engine.Flush(&p.batch, &p.window)
	return l, errors.Join(err, p.flows(), p.detections(), p.report())
}

// Batch implements ingest.Sink.
func (p *player) Batch(b *flowv1.FlowBatch) (enough []uint64, err error) {
	if err := p.engine.Batch(b, &p.batch); err != nil {
		return nil, err
	}
	if !p.cmd.Detect { // detectors read on after a label is final
		enough = p.batch.Enough
	}
	return enough, p.flows()
}

// Window implements ingest.Sink.
func (p *player) Window(w *flowv1.Window) error {
	if err := p.engine.Window(w, &p.window); err != nil {
		return err
	}
	return p.detections()
}

func (p *player) flows() error {
	for _, r := range p.batch.Records {
		t := p.apps[r.App]
		if t == nil {
			t = &appTotal{}
			p.apps[r.App] = t
		}
		t.flows++
		t.packets += r.PacketsFwd + r.PacketsRev
		t.bytes += r.BytesFwd + r.BytesRev
		for _, name := range r.Risks {
			p.risks[name]++
		}
		if p.cmd.JSON {
			if err := p.print(newFlowObject(r, p.name)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *player) detections() error {
	if p.cmd.Detect {
		for _, a := range p.window.Attacks {
			if a.State == eventv1.AttackState_ATTACK_STATE_STARTED {
				p.attacks = append(p.attacks, a)
			}
		}
		for _, v := range p.window.Verdicts {
			if _, ok := p.evidence[v.AttackId]; !ok {
				p.evidence[v.AttackId] = evidenceObject(v)
			}
		}
	}
	return nil
}

// report prints the attacks, in the order they began.
func (p *player) report() error {
	for _, a := range p.attacks {
		o := newAttackObject(a)
		o.Pcap, o.State, o.TopSources, o.TraceID = p.name, "", nil, ""
		o.Evidence = p.evidence[a.Id]
		if o.Evidence == nil {
			o.Evidence = map[string]any{}
		}
		if err := p.print(o); err != nil {
			return err
		}
	}
	return nil
}

func (p *player) text(out *bufio.Writer, v any) error {
	a, ok := v.(attackObject)
	if !ok {
		return nil
	}
	_, err := fmt.Fprintf(out, "%s: %s against %s, %d sources, seen after %d ms", p.name, a.Type, a.Target, a.Sources, (a.DetectedNs-a.FirstNs)/1e6)
	if why, ok := a.Evidence["explanation"].(string); ok && err == nil {
		_, err = fmt.Fprintf(out, "\n    %s", why)
	}
	_, _ = fmt.Fprintln(out)
	return err
}

// summary prints the applications, those with the most flows first, then the risks with their reasons.
func summary(out *bufio.Writer, apps map[string]*appTotal, risks map[string]uint64, l replayLedger) error {
	names := make([]string, 0, len(apps))
	for n := range apps {
		names = append(names, n)
	}
	sort.Slice(names, func(i, j int) bool {
		a, b := apps[names[i]], apps[names[j]]
		if a.flows != b.flows {
			return a.flows > b.flows
		}
		return names[i] < names[j]
	})
	var rows [][]string
	for _, n := range names {
		t := apps[n]
		rows = append(rows, []string{n, strconv.FormatUint(t.flows, 10), strconv.FormatUint(t.packets, 10), quantity(float64(t.bytes))})
	}
	if err := table(out, "APP FLOWS PACKETS BYTES", rows); err != nil {
		return err
	}
	rows = nil
	for _, name := range flow.RiskNames() {
		if n := risks[name]; n > 0 {
			rows = append(rows, []string{name, strconv.FormatUint(n, 10), flow.RiskReason(name)})
		}
	}
	if len(rows) > 0 {
		if err := table(out, "RISK FLOWS REASON", rows); err != nil {
			return err
		}
	}
	bad := uint64(0)
	for _, n := range l.Undecodable {
		bad += n
	}
	_, err := fmt.Fprintf(out, "%d packets, %d of them undecodable, %d flows, ledger difference %d\n", l.Packets, bad, l.Flows, l.Difference)
	return err
}
