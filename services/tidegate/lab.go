package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/lifecycle"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
)

// labCmd is the demo's link and traffic without the demo's services, for those that run elsewhere on this machine.
type labCmd struct {
	For     time.Duration `help:"how long; 0 = until Ctrl-C" default:"0"`
	Ports   []string      `help:"names of the two interfaces to bridge, which are made" default:"tgdemo0,tgdemo1"`
	Traffic scenario      `embed:""`
}

// lab is a running labCmd.
type lab struct {
	cmd    *labCmd
	link   *loadgen.Link
	sender *loadgen.Sender
	out    io.Writer

	mu   sync.Mutex
	kind string // of the attack under way, or ""
	sent uint64 // attack frames
}

// Validate is called by the flag parser.
func (c *labCmd) Validate() error {
	if len(c.Ports) != 2 {
		return fmt.Errorf("--ports: name two interfaces, not %d", len(c.Ports))
	}
	return c.Traffic.check()
}

func (c *labCmd) Run(t *terminal) (err error) {
	ctx, stop := lifecycle.SignalContext()
	defer stop()
	link, err := loadgen.NewLink(loadgen.LinkOptions{Prefix: labPrefix, Ports: [2]string{c.Ports[0], c.Ports[1]}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, link.Close()) }()
	sender, err := link.Sender()
	if err != nil {
		return err
	}
	defer func() { _ = sender.Close() }()
	if _, err := fmt.Fprintf(t.out, "test link: generator → %s | %s → victim %s; bridge the two with ingest, mode inline\n", link.PortA, link.PortB, loadgen.VictimAddr); err != nil {
		return err
	}
	if c.For > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.For)
		defer cancel()
	}
	l := &lab{cmd: c, link: link, sender: sender, out: t.out}
	client := link.Client(c.Traffic.Rate, c.Traffic.Seed)
	var g lifecycle.Group
	g.Add("benign traffic", 0, client.Run)
	g.Add("attacks", 0, func(ctx context.Context) error { return c.Traffic.run(ctx, l.attack) })
	g.Add("counts", 0, func(ctx context.Context) error { return l.show(ctx, client) })
	return g.Run(ctx)
}

// attack sends one attack.
func (l *lab) attack(ctx context.Context, kind string, seed uint64) error {
	frames, err := l.link.Attack(kind, seed)
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.kind = kind
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		l.kind = ""
		l.mu.Unlock()
	}()
	ctx, cancel := context.WithTimeout(ctx, l.cmd.Traffic.Attack)
	defer cancel()
	_, err = l.sender.Send(ctx, func(b []byte) []byte {
		l.mu.Lock()
		l.sent++
		l.mu.Unlock()
		return frames.Next(b)
	}, l.cmd.Traffic.rate(kind), 0)
	return err
}

// show prints each second what was sent and what arrived at the victim, which counts before its own stack.
func (l *lab) show(ctx context.Context, client *loadgen.Client) error {
	var sent, arrived uint64
	var benign loadgen.ClientStats
	for sleep(ctx, time.Second) {
		counts, err := l.link.Counter.Counts()
		if err != nil {
			return err
		}
		now := client.Stats()
		l.mu.Lock()
		kind, total := l.kind, l.sent
		l.mu.Unlock()
		if kind == "" {
			kind = "no attack"
		}
		_, err = fmt.Fprintf(l.out, "%-12s  attack packets: %6d sent, %6d arrived  benign connections: %3d begun, %3d completed\n",
			kind, total-sent, counts.Attack-arrived, now.Begun-benign.Begun, now.Completed-benign.Completed)
		if err != nil {
			return fmt.Errorf("print the counts: %w", err)
		}
		sent, arrived, benign = total, counts.Attack, now
	}
	return nil
}
