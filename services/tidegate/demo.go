package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/config"
	"github.com/tidegate-mesh/tidegate/libs/lifecycle"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
	"github.com/tidegate-mesh/tidegate/libs/netlab"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

type demoCmd struct {
	For     time.Duration `help:"how long; 0 = until Ctrl-C" default:"0"`
	JSON    bool          `help:"print nothing but one JSON object at the end"`
	Seed    uint64        `help:"seed of the traffic; attacks vary by it" default:"1"`
	Attacks []string      `help:"attacks to send, in this order, again and again" default:"syn_flood,amp_dns,port_scan"`
	PPS     int           `help:"packets a second of an attack; the scans send a tenth of the flood's" default:"50000"`
	Rate    float64       `help:"benign connections a second" default:"60"`
	Listen  string        `help:"gRPC address for tidegate status, attacks, rules …; empty = none" default:"127.0.0.1:50051"`
	Metrics string        `help:"address of /metrics; empty = none" default:"127.0.0.1:9090"`
	Data    string        `help:"folder to keep the database and the message store in; default: a temporary one" type:"path"`
}

// labPrefix marks what the demo makes, so that the next start finds what a crash left.
const labPrefix = "tgdemo"

// The demo's addresses are documentation ranges (RFC 5737) and one private prefix for the benign clients.
var (
	victimAddr    = netip.MustParseAddr("198.51.100.10")
	generatorAddr = netip.MustParseAddr("198.51.100.1")
	benignPrefix  = netip.MustParsePrefix("10.20.0.0/16")
	generatorMAC  = net.HardwareAddr{0x02, 0x54, 0x47, 0, 0, 1}
	victimMAC     = net.HardwareAddr{0x02, 0x54, 0x47, 0, 0, 2}
)

const benignClients = 16

// link is generator namespace → Tidegate's two ports → victim namespace.
type testLink struct {
	lab            *netlab.Lab
	gen, victim    *netlab.NS
	portA, portB   string
	bpffs          string
	unmount        func() error
	servers        *loadgen.Servers
	counter        *loadgen.Counter
	sender         *loadgen.Sender
	genIface       string
	clientsAddress []netip.Addr
}

// newTestLink removes what a crashed demo left and builds the link with its servers and counters.
func newTestLink() (_ *testLink, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("the demo builds network namespaces and loads XDP programs: run it as root (sudo tidegate demo)")
	}
	if _, err := netlab.Sweep(labPrefix); err != nil {
		return nil, fmt.Errorf("clean up after an earlier demo: %w", err)
	}
	lab, err := netlab.New(labPrefix)
	if err != nil {
		return nil, err
	}
	l := &testLink{lab: lab, genIface: "gen0", portA: netlab.Ifname(labPrefix, "a"), portB: netlab.Ifname(labPrefix, "b")}
	defer func() {
		if err != nil {
			_ = l.close()
		}
	}()
	l.bpffs = filepath.Join(os.TempDir(), lab.Name("bpf"))
	if l.unmount, err = netlab.BPFFS(l.bpffs); err != nil {
		return nil, err
	}
	if l.gen, err = lab.Namespace("gen"); err != nil {
		return nil, err
	}
	if l.victim, err = lab.Namespace("victim"); err != nil {
		return nil, err
	}
	genAddrs := []netip.Prefix{netip.PrefixFrom(generatorAddr, 24)}
	client := benignPrefix.Addr()
	for range benignClients {
		client = client.Next()
		l.clientsAddress = append(l.clientsAddress, client)
		genAddrs = append(genAddrs, netip.PrefixFrom(client, 32))
	}
	if err := lab.Veth(netlab.End{NS: l.gen, Name: l.genIface, Addrs: genAddrs, MAC: generatorMAC}, netlab.End{Name: l.portA}, 1); err != nil {
		return nil, err
	}
	if err := lab.Veth(netlab.End{Name: l.portB}, netlab.End{NS: l.victim, Name: "victim0", Addrs: []netip.Prefix{netip.PrefixFrom(victimAddr, 24)}, MAC: victimMAC}, 1); err != nil {
		return nil, err
	}
	// Static neighbours: the flood's answers must find their way without ARP for every random source.
	if err := l.gen.Neigh(l.genIface, victimAddr, victimMAC); err != nil {
		return nil, err
	}
	if err := l.victim.Neigh("victim0", generatorAddr, generatorMAC); err != nil {
		return nil, err
	}
	if err := l.victim.DefaultRoute("victim0", generatorAddr); err != nil {
		return nil, err
	}
	if l.servers, err = loadgen.StartServers(l.victim, victimAddr); err != nil {
		return nil, err
	}
	if l.counter, err = loadgen.NewCounter(l.victim, "victim0", benignPrefix, false); err != nil {
		return nil, err
	}
	err = l.gen.Do(func() error {
		l.sender, err = loadgen.NewSender(l.genIface, 0)
		return err
	})
	return l, err
}

// close removes the link; pinned programs of its ports go with the BPF file system.
func (l *testLink) close() error {
	var errs []error
	if l.sender != nil {
		errs = append(errs, l.sender.Close())
	}
	if l.counter != nil {
		errs = append(errs, l.counter.Close())
	}
	if l.servers != nil {
		errs = append(errs, l.servers.Close())
	}
	errs = append(errs, l.lab.Close())
	if l.unmount != nil {
		errs = append(errs, l.unmount())
	}
	return errors.Join(errs...)
}

// txPackets is how many packets left the generator's interface, of every kind.
func (l *testLink) txPackets() (n uint64, err error) {
	err = l.gen.Do(func() error {
		link, err := netlink.LinkByName(l.genIface)
		if err != nil {
			return fmt.Errorf("read the generator's counters: %w", err)
		}
		n = link.Attrs().Statistics.TxPackets
		return nil
	})
	return n, err
}

// attackRun is what became known of one attack the demo sent.
type attackRun struct {
	kind                   string
	seed                   uint64
	started, ended         time.Time
	firstNs                uint64 // monotonic, just before the first frame
	sent                   uint64
	id                     string
	detectedNs, firstDrop  int64 // Unix ns
	traceID                string
	atDetection, atEnd     loadgen.Counts
	sentAtDetection        uint64
	mark                   *loadgen.Mark // connections begun after the first drop, while the attack went on
}

// demo is the state that the scenario writes and the view reads.
type demo struct {
	cmd    *demoCmd
	link   *testLink
	stack  *stack
	client *loadgen.Client

	mu         sync.Mutex
	attacks    []*attackRun
	current    *attackRun
	attackSent uint64
	started    time.Time
}

func (c *demoCmd) Run() (err error) {
	for _, k := range c.Attacks {
		if _, err := loadgen.NewFrames(loadgen.Attack{Kind: k, Target: victimAddr}); err != nil {
			return config.Usagef("--attacks: %w", err)
		}
	}
	ctx, stop := lifecycle.SignalContext()
	defer stop()
	if !c.JSON {
		fmt.Println("building the test link: generator namespace → Tidegate (inline, XDP) → victim namespace")
	}
	link, err := newTestLink()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, link.close()) }()
	data := c.Data
	if data == "" {
		if data, err = os.MkdirTemp("", labPrefix+strconv.Itoa(os.Getpid())+"-"); err != nil {
			return fmt.Errorf("make the data folder: %w", err)
		}
		defer os.RemoveAll(data)
	}
	s, err := newStack(ctx, c.stackConfig(link, data))
	if err != nil {
		return err
	}
	d := &demo{cmd: c, link: link, stack: s, started: time.Now()}
	d.client = loadgen.NewClient(link.gen, link.servers, link.clientsAddress, victimAddr, c.Rate, c.Seed)

	runCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	if c.For > 0 {
		runCtx, cancel = context.WithTimeout(ctx, c.For)
		defer cancel()
	}
	stackCtx, stopStack := context.WithCancel(context.Background())
	defer stopStack()
	stackDone := make(chan error, 1)
	go func() { stackDone <- s.Run(stackCtx) }()

	err = d.play(runCtx, stackDone)
	result, resultErr := d.result()
	stopStack()
	err = errors.Join(err, <-stackDone, resultErr)
	if c.JSON && err == nil {
		return printJSON(os.Stdout, result)
	}
	if err == nil {
		result.print(os.Stdout)
	}
	return err
}

// play runs traffic and view until ctx ends or the stack fails, then lets what is under way come to rest.
func (d *demo) play(ctx context.Context, stackDone <-chan error) error {
	if err := d.stack.waitReady(ctx, 20*time.Second); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	var trafficErr error
	wg.Add(3)
	go func() { defer wg.Done(); _ = d.client.Run(ctx) }()
	go func() { defer wg.Done(); d.watch(ctx) }()
	go func() { defer wg.Done(); d.show(ctx) }()
	traffic := make(chan struct{})
	go func() { defer close(traffic); trafficErr = d.scenario(ctx) }()
	select {
	case <-traffic:
	case err := <-stackDone:
		cancel()
		<-traffic
		return errors.Join(errors.New("a service ended"), err)
	}
	cancel()
	wg.Wait()
	// The ledger is read once what was under way has arrived.
	d.stack.settle(3 * time.Second)
	return trafficErr
}

// Pauses of the scenario: benign traffic alone first, so that there is something to compare with.
const (
	warmUp    = 4 * time.Second
	attackFor = 8 * time.Second
	restFor   = 4 * time.Second
)

// scenario sends the attacks one after the other, each time around with another seed.
func (d *demo) scenario(ctx context.Context) error {
	if !sleep(ctx, warmUp) {
		return nil
	}
	for i := 0; ; i++ {
		kind := d.cmd.Attacks[i%len(d.cmd.Attacks)]
		if err := d.attack(ctx, kind, d.cmd.Seed+uint64(i/len(d.cmd.Attacks))); err != nil {
			return err
		}
		if !sleep(ctx, restFor) {
			return nil
		}
	}
}

func (d *demo) attack(ctx context.Context, kind string, seed uint64) error {
	frames, err := loadgen.NewFrames(loadgen.Attack{
		Kind: kind, Seed: seed, Target: victimAddr, Avoid: []netip.Prefix{benignPrefix, netip.PrefixFrom(generatorAddr, 24).Masked()},
		SrcMAC: [6]byte(generatorMAC), DstMAC: [6]byte(victimMAC),
	})
	if err != nil {
		return err
	}
	pps := d.cmd.PPS
	if kind == loadgen.PortScan || kind == loadgen.HostSweep {
		pps = max(1, pps/10)
	}
	run := &attackRun{kind: kind, seed: seed, started: time.Now()}
	d.mu.Lock()
	d.attacks = append(d.attacks, run)
	d.current = run
	d.mu.Unlock()
	attackCtx, cancel := context.WithTimeout(ctx, attackFor)
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
	_, err = d.link.sender.Send(attackCtx, sentSoFar, pps, 0)
	if err != nil {
		return err
	}
	counts, err := d.link.counter.Counts()
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	run.ended = time.Now()
	run.atEnd = counts
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
	counts, _ := d.link.counter.Counts()
	d.mu.Lock()
	defer d.mu.Unlock()
	run := d.current
	if run == nil || run.id != "" || detectorOf(run.kind) != a.Type {
		return
	}
	run.id, run.detectedNs, run.traceID = a.Id, a.DetectedNs, a.TraceId
	run.atDetection, run.sentAtDetection = counts, run.sent
}

func (d *demo) dropped(e *eventv1.Enforcement) {
	counts, _ := d.link.counter.Counts()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, run := range d.attacks {
		if run.id == e.AttackId && run.id != "" && run.firstDrop == 0 {
			run.firstDrop = e.FirstDropNs
			run.atDetection, run.sentAtDetection = counts, run.sent
			if run == d.current {
				run.mark = d.client.SetMark()
			}
		}
	}
}

// detectorOf is the attack type that a generated kind must be reported as.
func detectorOf(kind string) string {
	if kind == loadgen.SYNFloodLookalike {
		return loadgen.SYNFlood
	}
	return kind
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
