package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/lifecycle"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

type demoCmd struct {
	For     time.Duration `help:"how long; 0 = until Ctrl-C" default:"0"`
	JSON    bool          `help:"print nothing but one JSON object at the end"`
	Traffic scenario      `embed:""`
	Held    int           `name:"held-connections" help:"benign connections that stay open, to the TLS and the HTTP server in turn, with a packet each 20 ms; 0 to 256" default:"8"`
	Listen  string        `help:"gRPC address; empty = none" default:"127.0.0.1:50051"`
	HTTPS   string        `name:"gateway-listen" help:"address of the live page, and of REST for tidegate status, attacks, rules …; empty = none" default:"127.0.0.1:8080"`
	Local   string        `name:"local-credentials" help:"file for the credentials of this machine's command line, removed at the end; empty = none" default:"/run/tidegate/local.json" env:"TIDEGATE_LOCAL_CREDENTIALS"`
	Metrics string        `name:"metrics-listen" aliases:"metrics" help:"address of /metrics; empty = none" default:"127.0.0.1:9090"`
	Data    string        `help:"folder to keep the database and the message store in; default: a temporary one" type:"path"`
}

// labPrefix marks what the demo makes, so that the next start finds what a crash left.
const labPrefix = "tgdemo"

// attackRun is what became known of one attack the demo sent.
type attackRun struct {
	kind                  string
	seed                  uint64
	started, ended        time.Time
	firstNs               uint64 // monotonic, just before the first frame
	sent                  uint64
	id                    string
	detectedNs, firstDrop int64 // Unix ns
	traceID               string
	atDetection, atEnd    loadgen.Counts
	sentAtDetection       uint64
	port                  uint16
	mark                  *loadgen.Mark      // connections begun after the first drop, while the attack went on
	heldAtDrop, heldAtEnd loadgen.HeldCounts // connections that were open before it
}

// demo is the state that the scenario writes and the view reads.
type demo struct {
	cmd    *demoCmd
	link   *loadgen.Link
	sender *loadgen.Sender
	stack  *stack
	client *loadgen.Client
	held   *loadgen.Held

	mu         sync.Mutex
	attacks    []*attackRun
	current    *attackRun
	firstDrops map[string]int64 // by attack id, Unix ns
	attackSent uint64
	started    time.Time
}

// Validate is called by the flag parser.
func (c *demoCmd) Validate() error {
	const most = 256 // more say no more, and their packets would be much of the traffic
	if c.Held < 0 || c.Held > most {
		return fmt.Errorf("--held-connections %d: give 0 to %d", c.Held, most)
	}
	return c.Traffic.check()
}

func (c *demoCmd) Run() (err error) {
	ctx, stop := lifecycle.SignalContext()
	defer stop()
	if !c.JSON {
		fmt.Println("building the test link: generator namespace → Tidegate (inline, XDP) → victim namespace")
	}
	link, err := loadgen.NewLink(loadgen.LinkOptions{Prefix: labPrefix})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, link.Close()) }()
	sender, err := link.Sender()
	if err != nil {
		return err
	}
	defer func() { _ = sender.Close() }()
	sweepData()
	data := c.Data
	if data == "" {
		if data, err = os.MkdirTemp("", labPrefix+strconv.Itoa(os.Getpid())+"-"); err != nil {
			return fmt.Errorf("make the data folder: %w", err)
		}
		defer func() { _ = os.RemoveAll(data) }()
	}
	cfg, err := c.stackConfig([]string{link.PortA, link.PortB}, link.BPFFS, loadgen.VictimAddr.String(), data)
	if err != nil {
		return err
	}
	s, err := newStack(ctx, cfg)
	if err != nil {
		return err
	}
	if l := s.local; !c.JSON && l != nil && l.file != "" {
		fmt.Printf("live page: %s  (log in with the token that this prints: tidegate token show)\n", l.c.URL)
	}
	d := &demo{cmd: c, link: link, sender: sender, stack: s, client: link.Client(c.Traffic.Rate, c.Traffic.Seed), firstDrops: map[string]int64{}, started: time.Now()}

	runCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	if c.For > 0 {
		var over context.CancelFunc
		runCtx, over = context.WithTimeout(runCtx, c.For)
		defer over()
	}
	stackCtx, stopStack := context.WithCancel(context.Background())
	defer stopStack()
	ended := make(chan struct{})
	var stackErr error
	go func() {
		stackErr = s.Run(stackCtx)
		close(ended)
		cancel() // without the services the traffic says nothing
	}()

	err = d.play(runCtx)
	select {
	case <-ended:
		return errors.Join(errors.New("a service ended"), stackErr, err)
	default:
	}
	result, resultErr := d.result()
	stopStack()
	<-ended
	err = errors.Join(err, stackErr, resultErr)
	if c.JSON && err == nil {
		return printJSON(os.Stdout, result)
	}
	if err == nil {
		result.print(os.Stdout)
	}
	return err
}

// sweepData removes the data folders of demos that were killed.
func sweepData() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), labPrefix+"[0-9]*-*")) // the pattern is sound
	for _, dir := range dirs {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), labPrefix), "-")
		if _, err := os.Stat("/proc/" + pid); errors.Is(err, os.ErrNotExist) {
			_ = os.RemoveAll(dir) // what stays is tried again by the next start
		}
	}
}

// play runs traffic and view until ctx ends, then lets what is under way come to rest.
func (d *demo) play(ctx context.Context) error {
	if err := d.stack.waitReady(ctx, 20*time.Second); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	var err error
	if d.held, err = d.client.Hold(d.cmd.Held); err != nil {
		return err
	}
	defer func() { _ = d.held.Close() }()
	shown, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Add(4)
	go func() { defer wg.Done(); _ = d.held.Run(shown) }()
	go func() { defer wg.Done(); _ = d.client.Run(shown) }()
	go func() { defer wg.Done(); d.watch(shown) }()
	go func() { defer wg.Done(); d.show(shown) }()
	return d.cmd.Traffic.run(ctx, d.attack)
}

func (d *demo) attack(ctx context.Context, kind string, seed uint64) error {
	frames, err := d.link.Attack(kind, seed)
	if err != nil {
		return err
	}
	run := &attackRun{kind: kind, seed: seed, port: frames.Port(), started: time.Now()}
	d.mu.Lock()
	d.attacks = append(d.attacks, run)
	d.current = run
	d.mu.Unlock()
	attackCtx, cancel := context.WithTimeout(ctx, d.cmd.Traffic.Attack)
	defer cancel()
	sentSoFar := func(b []byte) []byte {
		d.mu.Lock()
		if run.firstNs == 0 {
			run.firstNs = xdp.MonotonicNow()
		}
		run.sent++
		d.attackSent++
		d.mu.Unlock()
		return frames.Next(b)
	}
	_, err = d.sender.Send(attackCtx, sentSoFar, d.cmd.Traffic.rate(kind), 0)
	if err != nil {
		return err
	}
	counts, err := d.link.Counter.Counts()
	if err != nil {
		return err
	}
	held, err := d.held.Counts(run.port)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	run.ended = time.Now()
	run.atEnd, run.heldAtEnd = counts, held
	d.client.ClearMark()
	d.current = nil
	return nil
}

// watch follows the bus for what the services say about the attacks.
func (d *demo) watch(ctx context.Context) {
	_ = d.stack.bus.ConsumeEventsEphemeral(ctx, []string{bus.AllAttacks, bus.AllEnforcements}, func(m bus.EventMsg) {
		switch {
		case m.Attack != nil && m.Attack.State == eventv1.AttackState_ATTACK_STATE_STARTED:
			d.detected(m.Attack)
		case m.Enforcement != nil && m.Enforcement.State == eventv1.EnforcementState_ENFORCEMENT_STATE_FIRST_DROP:
			d.dropped(m.Enforcement)
		}
	})
}

func (d *demo) detected(a *eventv1.Attack) {
	counts, _ := d.link.Counter.Counts()
	d.mu.Lock()
	defer d.mu.Unlock()
	run := d.current
	if run == nil || run.id != "" || detectorOf(run.kind) != a.Type {
		return
	}
	run.id, run.detectedNs, run.traceID = a.Id, a.DetectedNs, a.TraceId
	run.atDetection, run.sentAtDetection = counts, run.sent
	// Rules are stored before the attack is announced, so its first drop may have been told already.
	d.stopped(run, counts)
}

func (d *demo) dropped(e *eventv1.Enforcement) {
	counts, _ := d.link.Counter.Counts()
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.firstDrops[e.AttackId]; !ok {
		d.firstDrops[e.AttackId] = e.FirstDropNs
	}
	for _, run := range d.attacks {
		d.stopped(run, counts)
	}
}

// stopped notes the first drop of an attack, once both its id and the drop are known.
func (d *demo) stopped(run *attackRun, counts loadgen.Counts) {
	drop, ok := d.firstDrops[run.id]
	if run.id == "" || !ok || run.firstDrop != 0 {
		return
	}
	run.firstDrop = drop
	run.atDetection, run.sentAtDetection = counts, run.sent
	if run == d.current {
		run.mark = d.client.SetMark()
		run.heldAtDrop, _ = d.held.Counts(run.port) // what cannot be read now cannot at the end either
	}
}

// detectorOf is the attack type that a generated kind must be reported as.
func detectorOf(kind string) string {
	if kind == loadgen.SYNFloodLookalike {
		return loadgen.SYNFlood
	}
	return kind
}
