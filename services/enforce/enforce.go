// Package enforce turns the leased rules of the mesh into entries of the XDP program's maps, within its guardrails,
// and reports what they did.
//
// One goroutine owns the rule table and the gates; whatever waits for the network (events, lease renewals, heartbeats)
// runs beside it, so that a slow bus never delays a rule. The entries stay in the kernel when the service ends: they
// decay by their own deadlines.
package enforce

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
	enforcev1 "github.com/tidegate-mesh/tidegate/proto/enforce/v1"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// Config of one enforce node.
type Config struct {
	Ifaces         []string      `name:"iface" help:"interface to enforce on; repeat or separate by commas" env:"TIDEGATE_ENFORCE_IFACE"`
	BPFFS          string        `name:"bpffs" help:"BPF file system that holds the pinned maps" default:"/sys/fs/bpf" env:"TIDEGATE_ENFORCE_BPFFS"`
	Enforce        bool          `name:"enforce" help:"drop for real; without it rules only count what they would have dropped" env:"TIDEGATE_ENFORCE_ENFORCE"`
	EnforceOn      []string      `name:"enforce-on" help:"drop for real on these of the interfaces; the others only count" env:"TIDEGATE_ENFORCE_ENFORCE_ON"`
	Node           string        `name:"node" help:"name of this node in events; default the host name" env:"TIDEGATE_ENFORCE_NODE"`
	Site           string        `name:"site" help:"name of the place of this node, for rules of one site" env:"TIDEGATE_ENFORCE_SITE"`
	Advertise      string        `name:"advertise" help:"gRPC address that others reach this node at, told in its heartbeats" env:"TIDEGATE_ENFORCE_ADVERTISE"`
	NeverBlock     []string      `name:"never-block" help:"prefix that no rule may ever block" env:"TIDEGATE_ENFORCE_NEVER_BLOCK"`
	Management     []string      `name:"management" help:"address or prefix that this node is managed from, besides those it finds itself" env:"TIDEGATE_ENFORCE_MANAGEMENT"`
	RuleLimit      int           `name:"rule-limit" help:"rules in force at the same time" default:"10000" env:"TIDEGATE_ENFORCE_RULE_LIMIT"`
	MinPrefix4     int           `name:"min-prefix4" help:"a blocking rule names an IPv4 prefix of at least this length" default:"12" env:"TIDEGATE_ENFORCE_MIN_PREFIX4"`
	MinPrefix6     int           `name:"min-prefix6" help:"a blocking rule names an IPv6 prefix of at least this length" default:"28" env:"TIDEGATE_ENFORCE_MIN_PREFIX6"`
	AllowBroadUser bool          `name:"allow-broad-user-rules" help:"let rules of users, not of detectors, exceed the blast radius" env:"TIDEGATE_ENFORCE_ALLOW_BROAD_USER_RULES"`
	GoodLimit      float64       `name:"good-limit" help:"largest share of the last hour's good flows that a dropping rule may hit, 0 to 1; 0 asks for none" default:"0.2" env:"TIDEGATE_ENFORCE_GOOD_LIMIT"`
	RulesPerSecond float64       `name:"rules-per-second" help:"new rules a second" default:"100" env:"TIDEGATE_ENFORCE_RULES_PER_SECOND"`
	RuleBurst      int           `name:"rule-burst" help:"new rules at once" default:"500" env:"TIDEGATE_ENFORCE_RULE_BURST"`
	LeaseMax       time.Duration `name:"lease-max" help:"longest lease of what a detector blocks again and again within a day: each time doubles it; 0 doubles none" default:"1h" env:"TIDEGATE_ENFORCE_LEASE_MAX"`
	PromoteAfter   time.Duration `name:"promote-after" help:"how long a detector's rule in shadow must have counted before it may act; 0 leaves it in shadow" default:"0" env:"TIDEGATE_ENFORCE_PROMOTE_AFTER"`
	UpstreamExec   string        `name:"upstream-exec" help:"program that passes FlowSpec routes on to routers upstream, as lines of ExaBGP on its standard input" env:"TIDEGATE_ENFORCE_UPSTREAM_EXEC"`
	UpstreamMinPPS uint64        `name:"upstream-min-pps" help:"packets a second that a rule must drop before its route goes upstream; 0: every rule that drops" default:"100000" env:"TIDEGATE_ENFORCE_UPSTREAM_MIN_PPS"`
	UpstreamHold   time.Duration `name:"upstream-hold" help:"how long a route stays upstream at least when its rule runs out: nobody here sees whether the attack goes on" default:"10m" env:"TIDEGATE_ENFORCE_UPSTREAM_HOLD"`
	UpstreamLimit  int           `name:"upstream-limit" help:"routes upstream at the same time, with those that except never-block prefixes" default:"100" env:"TIDEGATE_ENFORCE_UPSTREAM_LIMIT"`
	UpstreamKeep   bool          `name:"upstream-keep" help:"leave routes upstream when enforce ends, instead of withdrawing them" env:"TIDEGATE_ENFORCE_UPSTREAM_KEEP"`
	UpstreamState  string        `name:"upstream-state" help:"file that keeps the routes upstream, so that the next start withdraws what a killed process or --upstream-keep left; each process needs its own" env:"TIDEGATE_ENFORCE_UPSTREAM_STATE"`
	PromoteBelow   float64       `name:"promote-below" help:"share of the last hour's good flows below which such a rule may act, 0 to 1" default:"0.01" env:"TIDEGATE_ENFORCE_PROMOTE_BELOW"`
}

// DefaultConfig is shadow mode without an interface; the values equal the tags' defaults.
func DefaultConfig() Config {
	return Config{
		BPFFS: "/sys/fs/bpf", RuleLimit: 10_000, MinPrefix4: 12, MinPrefix6: 28, GoodLimit: 0.2, RulesPerSecond: 100, RuleBurst: 500,
		LeaseMax: time.Hour, PromoteBelow: 0.01, UpstreamMinPPS: 100_000, UpstreamHold: 10 * time.Minute, UpstreamLimit: 100,
	}
}

// Validate reports the first setting that makes no sense. Without an interface a node keeps rules and stops nothing.
func (c *Config) Validate() error {
	for i, name := range c.Ifaces {
		if name == "" || slices.Contains(c.Ifaces[:i], name) {
			return fmt.Errorf("enforce: interface %q is empty or named twice", name)
		}
	}
	for _, name := range c.EnforceOn {
		if !slices.Contains(c.Ifaces, name) {
			return fmt.Errorf("enforce: --enforce-on %s is not one of the interfaces (--iface %s)", name, strings.Join(c.Ifaces, ","))
		}
	}
	if c.RuleLimit < 1 || !(c.RulesPerSecond > 0) || c.RuleBurst < 1 {
		return errors.New("enforce: rule limit, rules per second and rule burst must be above 0")
	}
	if c.MinPrefix4 < 0 || c.MinPrefix4 > 32 || c.MinPrefix6 < 0 || c.MinPrefix6 > 128 {
		return errors.New("enforce: the shortest prefix of a blocking rule is 0 to 32 (IPv4), 0 to 128 (IPv6)")
	}
	if !(c.GoodLimit >= 0 && c.GoodLimit <= 1) || !(c.PromoteBelow >= 0 && c.PromoteBelow <= 1) {
		return errors.New("enforce: --good-limit and --promote-below are shares, 0 to 1")
	}
	if c.LeaseMax < 0 || c.PromoteAfter < 0 {
		return errors.New("enforce: --lease-max and --promote-after cannot be negative")
	}
	if _, err := policy.ParseScope("node:" + c.Node); c.Node != "" && err != nil {
		return fmt.Errorf("enforce: --node %s: use letters, digits and -._:@", c.Node)
	}
	if _, err := policy.ParseScope("site:" + c.Site); c.Site != "" && err != nil {
		return fmt.Errorf("enforce: --site %s: use letters, digits and -._:@", c.Site)
	}
	err := c.checkUpstream()
	if err == nil {
		_, err = parsePrefixes("never-block", c.NeverBlock)
	}
	if err == nil {
		_, err = parsePrefixes("management", c.Management)
	}
	return err
}

// drops is whether rules act on the interface, if its mode lets them.
func (c *Config) drops(iface string) bool { return c.Enforce || slices.Contains(c.EnforceOn, iface) }

// anyDrops is whether rules act on any interface.
func (c *Config) anyDrops() bool { return c.Enforce || len(c.EnforceOn) > 0 }

// Bus is what enforce needs of the message bus; *bus.Bus has it.
type Bus interface {
	WatchRules(ctx context.Context, h func(bus.RuleUpdate)) error
	UpdateRule(ctx context.Context, r policy.Rule, revision uint64) (uint64, error)
	DeleteRule(ctx context.Context, id string) error
	DeleteRuleRevision(ctx context.Context, id string, revision uint64) error
	WatchLists(ctx context.Context, h func(bus.ListUpdate)) error
	ListEntries(ctx context.Context, object string) ([]byte, error)
	SampleFlows(ctx context.Context, limit int, h func(stands float64, f *eventv1.FlowRecords)) error
	WatchPanic(ctx context.Context, h func(*eventv1.Panic)) error
	PutPanic(ctx context.Context, p *eventv1.Panic) error
	PublishEnforcement(ctx context.Context, e *eventv1.Enforcement) error
	Heartbeat(ctx context.Context, n *eventv1.NodeHeartbeat) error
	Ready() error
	ServerAddr() string
}

// Deps of the service.
type Deps struct {
	Telemetry *telemetry.Telemetry
	Registrar grpc.ServiceRegistrar // nil: no gRPC service
	Bus       Bus
	Open      Opener // nil: the XDP program of the interface, libs/xdp
}

// Service is one enforce node.
type Service struct {
	enforcev1.UnimplementedEnforceServiceServer

	cfg     Config
	t       *telemetry.Telemetry
	bus     Bus
	open    Opener
	m       *metrics
	started time.Time

	mu          sync.Mutex // table, ports, guard
	rules       map[string]*ruleState
	ended       []*ruleState // expired lately, for people who ask; oldest first
	ports       []*port
	guard       guard
	syncing     bool
	synced      bool
	seen        map[string]bool        // ids of the repetition going on
	told        bool                   // the repetition told of at least one rule or deletion
	live        int                    // rules in the maps, as counted for the rule limit
	kept        int                    // entries without a rule that an empty bucket left in force
	panicRead   bool                   // the panic state of the bus is known
	panicShared bool                   // the bus has this node's panic state
	cleared     bool                   // while panic is on: all gates are free of what it forbids
	revoked     map[string]policy.Rule // users' rules that this panic has taken away, at most as many as the rule limit
	changed     chan struct{}          // closed and replaced after each batch

	offenders offenders

	upstream *announcer        // nil: nothing goes upstream
	routes   map[uint64]*route // what is upstream, by the rule's number
	escorted time.Time         // when rules were last looked at for it

	lists     addressLists
	listNames map[xdp.ListID]string // whose the counters are; of the goroutine of keepLists

	looked  chan surroundings
	updates chan delivery
	panics  chan panicChange
	opened  chan opening
	jobs    chan job
	done    chan jobResult
	events  [publishers]chan event
	lost    atomic.Uint64 // events that did not fit the queue
}

// delivery is an update and the time the watch handed it over.
type delivery struct {
	bus.RuleUpdate
	at time.Time
}

const (
	publishers   = 4 // events of one rule stay in order: they take the same one
	workers      = 4 // renewals and deletions
	eventQueue   = 16_384
	updateQueue  = 4_096
	batchRules   = 1_024 // most updates of one batch
	drainEvents  = 2 * time.Second
	keepEnded    = 5 * time.Minute
	keepEndedMax = 1_000
)

// New checks the configuration and registers metrics, readiness and the gRPC service. Interfaces are opened by Run.
func New(cfg Config, deps Deps) (*Service, error) {
	if cfg.Node == "" {
		name, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("enforce: no node name configured and no host name: %w", err)
		}
		cfg.Node = name
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	never, err := parsePrefixes("never-block", cfg.NeverBlock)
	if err != nil {
		return nil, err
	}
	management, err := parsePrefixes("management", cfg.Management)
	if err != nil {
		return nil, err
	}
	s := &Service{
		cfg: cfg, t: deps.Telemetry, bus: deps.Bus, open: deps.Open, started: time.Now(),
		rules: make(map[string]*ruleState), changed: make(chan struct{}), lists: newAddressLists(), offenders: make(offenders),
		routes: make(map[uint64]*route),
		guard: guard{
			never: never, configured: management, sshClient: sshClient(), limit: cfg.RuleLimit, min4: cfg.MinPrefix4, min6: cfg.MinPrefix6,
			allowBroadUser: cfg.AllowBroadUser, goodLimit: cfg.GoodLimit, rate: rate.NewLimiter(rate.Limit(cfg.RulesPerSecond), cfg.RuleBurst),
		},
		looked:  make(chan surroundings),
		updates: make(chan delivery, updateQueue),
		panics:  make(chan panicChange),
		opened:  make(chan opening),
		jobs:    make(chan job, cfg.RuleLimit+1),
		done:    make(chan jobResult, workers),
	}
	if cfg.UpstreamExec != "" {
		s.upstream = newAnnouncer(cfg.UpstreamExec, cfg.UpstreamLimit, cfg.UpstreamKeep, s.t)
		s.upstream.file = cfg.UpstreamState
	}
	if s.open == nil {
		s.open = openXDP(cfg.BPFFS, s.t)
	}
	for i := range s.events {
		s.events[i] = make(chan event, eventQueue)
	}
	for _, name := range cfg.Ifaces {
		s.ports = append(s.ports, &port{name: name, err: errors.New("not opened yet")})
	}
	if s.m, err = newMetrics(s); err != nil {
		return nil, err
	}
	s.t.Check("enforce", s.ready)
	if deps.Registrar != nil {
		enforcev1.RegisterEnforceServiceServer(deps.Registrar, s)
	}
	return s, nil
}

// Run enforces until ctx ends. The entries stay in force after it; queued events are sent for up to 2 s.
func (s *Service) Run(ctx context.Context) error {
	if !s.cfg.anyDrops() {
		s.t.Log.Warn("shadow mode: rules count what they would have dropped and drop nothing; start with --enforce to drop")
	}
	found := s.guard.look(s.bus.ServerAddr())
	s.mu.Lock()
	s.guard.learn(found)
	s.mu.Unlock()

	var beside, publishing sync.WaitGroup
	run := func(wg *sync.WaitGroup, f func()) {
		wg.Add(1)
		go func() { defer wg.Done(); f() }()
	}
	own, stop := context.WithCancel(ctx)
	defer stop()
	sending, stopSending := context.WithCancel(context.WithoutCancel(ctx))
	defer stopSending()
	for i := range s.events {
		run(&publishing, func() { s.publish(sending, s.events[i]) })
	}
	for range workers {
		run(&beside, func() { s.work(own) })
	}
	for i := range s.ports {
		run(&beside, func() { s.keepOpen(own, i) })
	}
	run(&beside, func() {
		bus.Beat(own, s.bus, s.t, &eventv1.NodeHeartbeat{Service: "enforce", Instance: s.cfg.Node, Address: s.cfg.Advertise})
	})
	run(&beside, func() { s.watchSurroundings(own) })
	run(&beside, func() { s.watchFlows(own) })
	if s.upstream != nil {
		run(&beside, func() { s.upstream.run(own) })
	}
	run(&beside, func() { s.watchLists(own) })
	run(&beside, func() { s.keepLists(own) })
	known := make(chan struct{})
	run(&beside, func() { s.watchPanic(own, sync.OnceFunc(func() { close(known) })) })
	run(&beside, func() {
		select {
		case <-known: // before it, rules might act that panic forbids
		case <-own.Done():
		}
		// The error is that of the context.
		_ = s.bus.WatchRules(own, func(u bus.RuleUpdate) {
			select {
			case s.updates <- delivery{u, time.Now()}:
			case <-own.Done():
			}
		})
	})

	s.loop(own)
	stop()
	beside.Wait()
	for i := range s.events {
		close(s.events[i])
	}
	timer := time.AfterFunc(drainEvents, stopSending)
	publishing.Wait()
	timer.Stop()
	return s.closeGates()
}

// loop is the goroutine that owns the table and the gates.
func (s *Service) loop(ctx context.Context) {
	tick := time.NewTimer(slowTick)
	defer tick.Stop()
	var clock clocks
	for {
		select {
		case <-ctx.Done():
			return
		case u := <-s.updates:
			s.apply(s.drain(u))
		case c := <-s.panics:
			s.takePanic(c)
		case o := <-s.opened:
			s.takeGate(o)
		case r := <-s.done:
			s.settle(r)
		case found := <-s.looked:
			s.mu.Lock()
			s.learn(found)
			s.mu.Unlock()
		case <-tick.C:
			tick.Reset(s.tick(&clock, time.Now()))
		}
	}
}

// drain takes what is waiting, so that one system call serves a burst.
func (s *Service) drain(first delivery) []delivery {
	batch := []delivery{first}
	for len(batch) < batchRules {
		select {
		case u := <-s.updates:
			batch = append(batch, u)
		default:
			return batch
		}
	}
	return batch
}

// problems says what is not well, one sentence each.
func (s *Service) problems() []string {
	var out []string
	if err := s.bus.Ready(); err != nil {
		out = append(out, err.Error())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.panicRead:
		out = append(out, "the panic state of tg_control has not been read yet, and no rules before it")
	case !s.synced:
		out = append(out, "the rules of tg_rules have not been read yet")
	}
	for _, p := range s.ports {
		if p.gate == nil {
			out = append(out, fmt.Sprintf("interface %s is not enforced on: %v", p.name, p.err))
		}
	}
	return out
}

func (s *Service) ready() error {
	if p := s.problems(); len(p) > 0 {
		return errors.New(strings.Join(p, "\n"))
	}
	return nil
}

func parsePrefixes(option string, list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, v := range list {
		p, err := policy.ParsePrefix(v)
		if err != nil {
			return nil, fmt.Errorf("enforce: %s: %w", option, err)
		}
		out = append(out, p)
	}
	return out, nil
}
