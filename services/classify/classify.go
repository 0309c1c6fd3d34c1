package classify

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/lifecycle"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	statusv1 "github.com/tidegate-mesh/tidegate/proto/status/v1"
)

// Bus is what classify needs of NATS. Publish and put calls return after the server acknowledged.
type Bus interface {
	EnsureStreams(ctx context.Context) error
	PublishFlows(ctx context.Context, f *eventv1.FlowRecords) (already bool, err error)
	PublishAttack(ctx context.Context, a *eventv1.Attack) error
	PublishVerdict(ctx context.Context, v *eventv1.Verdict) error
	PublishWindow(ctx context.Context, sensor string, w *flowv1.Window) error
	PutRule(ctx context.Context, r policy.Rule) error
	Rules(ctx context.Context) (map[string]bus.RuleEntry, error)
	UpdateRule(ctx context.Context, r policy.Rule, revision uint64) (uint64, error)
	WatchRules(ctx context.Context, h func(bus.RuleUpdate)) error
	WatchLists(ctx context.Context, h func(bus.ListUpdate)) error
	ListEntries(ctx context.Context, object string) ([]byte, error)
	ConsumeEventsEphemeral(ctx context.Context, subjects []string, h func(bus.EventMsg)) error
	Heartbeat(ctx context.Context, n *eventv1.NodeHeartbeat) error
	StoreUsual(ctx context.Context, d *eventv1.UsualDay) error
	LoadUsual(ctx context.Context, q *eventv1.UsualQuery) (*eventv1.UsualDay, error)
}

// Config of the service.
type Config struct {
	Engine      EngineConfig `embed:""`
	Advertise   string       `name:"advertise" help:"Address at which other services reach this one, told in heartbeats."`
	MaxInFlight int          `name:"max-in-flight" default:"64" help:"Batches of one stream that may wait for NATS at once; then the stream waits."`

	HostRate  float64       `name:"host-rate" default:"20" help:"Flows a second, after a burst of five times as many, that rules are made for because of the host that they name."`
	HostFlows int           `name:"host-flows" default:"2000" help:"Flows that have such rules at the same time, all classifiers together. Each takes two rules of an enforce node's limit."`
	HostLease time.Duration `name:"host-lease" default:"3m" help:"How long such a rule lives unless it is hit; enforce renews it while it is."`

	usualEvery time.Duration // how often what is usual is stored; 0: usualEvery
}

// DefaultConfig is what the flags default to.
func DefaultConfig() Config {
	return Config{Engine: DefaultEngineConfig(), MaxInFlight: 64, HostRate: 20, HostFlows: 2_000, HostLease: 3 * time.Minute}
}

// Validate reports the first setting that cannot work.
func (c *Config) Validate() error {
	if c.MaxInFlight < 1 {
		return errors.New("max-in-flight must be at least 1")
	}
	if !(c.HostRate > 0) || c.HostFlows < 1 || c.HostLease < time.Second {
		return errors.New("host-rate must be above 0, host-flows at least 1 and host-lease at least 1s")
	}
	return c.Engine.Validate()
}

// Deps are what classify works with. Registrar may be nil: then there is no gRPC service.
type Deps struct {
	Telemetry *telemetry.Telemetry
	Registrar grpc.ServiceRegistrar
	Bus       Bus
}

// Service is the classifier behind gRPC. New registers it; Run keeps it going.
type Service struct {
	classifyv1.UnimplementedClassifyServiceServer
	cfg     Config
	t       *telemetry.Telemetry
	bus     Bus
	engine  *Engine
	metrics *metrics
	started time.Time

	hosts     *hostState
	hostRate  *rate.Limiter
	hostQueue chan *named

	stopping chan struct{} // closed when Run's context ends
	stopOnce sync.Once
	base     context.Context // of what outlives a sensor's connection; ends drain after stopping
	cancel   context.CancelFunc
	traces   sync.Map // attack id → *eventv1.Verdict with the trace of its newest verdict, while it is on
	streams  sync.WaitGroup
	problem  atomic.Pointer[string] // why NATS cannot be used, nil when it can
	ready    atomic.Bool            // streams exist and rules were read

	batches, windows, received, published, already, unpublished, summarised atomic.Uint64
}

const (
	retryMin = 50 * time.Millisecond
	retryMax = 2 * time.Second
)

// New makes the service and registers it. The error says which setting cannot work.
func New(cfg Config, deps Deps) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Telemetry == nil || deps.Bus == nil {
		return nil, errors.New("classify needs telemetry and a bus")
	}
	if cfg.Engine.Now == nil {
		cfg.Engine.Now = func() int64 { return time.Now().UnixNano() }
	}
	if cfg.usualEvery == 0 {
		cfg.usualEvery = usualEvery
	}
	e, err := NewEngine(cfg.Engine)
	if err != nil {
		return nil, err
	}
	m, err := newMetrics(deps.Telemetry.Registry, e)
	if err != nil {
		return nil, err
	}
	s := &Service{cfg: cfg, t: deps.Telemetry, bus: deps.Bus, engine: e, metrics: m, started: time.Now(), stopping: make(chan struct{})}
	s.hosts, s.hostQueue = newHostState(), make(chan *named, hostQueue)
	s.hostRate = rate.NewLimiter(rate.Limit(cfg.HostRate), max(1, int(hostBurst*cfg.HostRate)))
	s.base, s.cancel = context.WithCancel(context.Background())
	s.trouble(errors.New("NATS was not reached yet"))
	deps.Telemetry.Check("classify", func() error {
		if p := s.problem.Load(); p != nil {
			return errors.New(*p)
		}
		return nil
	})
	if deps.Registrar != nil {
		classifyv1.RegisterClassifyServiceServer(deps.Registrar, s)
	}
	return s, nil
}

// Engine is the service's engine, for the process that embeds it.
func (s *Service) Engine() *Engine { return s.engine }

// trouble notes why NATS cannot be used; nil clears it.
func (s *Service) trouble(err error) {
	if err == nil {
		s.problem.Store(nil)
		return
	}
	text := fmt.Sprintf("classify cannot publish: %v; batches wait and are not acknowledged", err)
	s.problem.Store(&text)
}

// Run prepares streams and rules, follows enforcement events and sends heartbeats until ctx ends. Then gRPC
// streams are ended after what they hold was published, at most for a few seconds.
func (s *Service) Run(ctx context.Context) error {
	defer s.stop()
	err := lifecycle.Retry(ctx, retryMin, retryMax, s.prepare, func(err error, _ time.Duration) {
		s.t.CountError("prepare")
		s.trouble(err)
	})
	if err != nil {
		return nil //nolint:nilerr // only ctx's end stops the attempts
	}
	s.trouble(nil)
	s.ready.Store(true)
	var wg sync.WaitGroup
	wg.Add(7)
	// The errors of the watches are that of the context.
	go func() { defer wg.Done(); _ = s.bus.WatchLists(ctx, s.hosts.takeList) }()
	go func() {
		defer wg.Done()
		_ = s.bus.WatchRules(ctx, func(u bus.RuleUpdate) {
			s.engine.Rule(u)
			s.hosts.takeRule(u)
		})
	}()
	go func() { defer wg.Done(); s.keepLists(ctx) }()
	go func() { defer wg.Done(); s.storeNamed(ctx) }()
	go func() {
		defer wg.Done()
		s.keepUsual(ctx)
	}()
	go func() {
		defer wg.Done()
		err := s.bus.ConsumeEventsEphemeral(ctx, []string{bus.AllEnforcements, bus.AllAttacks}, func(m bus.EventMsg) {
			switch {
			case m.Enforcement != nil:
				s.engine.Enforcement(m.Enforcement)
			case m.Attack != nil:
				s.elsewhere(m.Attack)
			}
		})
		if err != nil && ctx.Err() == nil {
			s.t.CountError("consume_enforcement")
			s.t.Log.Error("events are not followed any more: attacks that are dropped will look ended", "error", err)
		}
	}()
	go func() {
		defer wg.Done()
		bus.Beat(ctx, s.bus, s.t, &eventv1.NodeHeartbeat{Service: "classify", Instance: s.t.Instance(), Address: s.cfg.Advertise})
	}()
	<-ctx.Done()
	s.stop() // while the last of what was learned is stored
	wg.Wait()
	return nil
}

// elsewhere takes in what another classifier says of an attack: there is one that tells of it, whatever the sensors moved.
func (s *Service) elsewhere(a *eventv1.Attack) {
	own := s.t.Instance()
	if a.GetClassifier() == "" || a.GetClassifier() == own {
		return
	}
	if s.engine.Elsewhere(a, own) {
		s.traces.Delete(a.GetId())
		s.t.Log.Info("an attack is another classifier's from now on", "attack", a.GetId(), "target", a.GetTarget(), "classifier", a.GetClassifier())
	}
}

// stop ends the streams; what they hold has drain to be published.
func (s *Service) stop() {
	s.stopOnce.Do(func() { close(s.stopping) })
	late := time.AfterFunc(drain, s.cancel)
	s.streams.Wait()
	late.Stop()
	s.cancel()
}

// prepare makes what must exist and learns of attacks that an earlier run left.
func (s *Service) prepare(ctx context.Context) error {
	if err := s.bus.EnsureStreams(ctx); err != nil {
		return err
	}
	entries, err := s.bus.Rules(ctx)
	if err != nil {
		return err
	}
	rules := make([]policy.Rule, 0, len(entries))
	for _, e := range entries {
		if e.Rule.Expires.IsZero() || time.Until(e.Rule.Expires) > 0 {
			rules = append(rules, e.Rule)
		}
	}
	s.engine.Adopt(rules)
	return nil
}

// Ledger returns this run's terms; once traffic has stopped records_received = published + already_published +
// unpublished. Another classifier had published the second, before the sensor moved the batch here.
func (s *Service) Ledger() map[string]uint64 {
	published, unpublished := s.published.Load(), s.unpublished.Load()
	return map[string]uint64{
		"batches_received": s.batches.Load(), "windows_received": s.windows.Load(), "records_received": s.received.Load(),
		"published": published, "already_published": s.already.Load(), "unpublished": unpublished, "flows_summarised": s.summarised.Load(),
	}
}

// Status implements ClassifyService.
func (s *Service) Status(context.Context, *classifyv1.StatusRequest) (*classifyv1.StatusResponse, error) {
	version, _ := telemetry.Build()
	st := &statusv1.ServiceStatus{
		Service: "classify", Instance: s.t.Instance(), Version: version, StartedNs: s.started.UnixNano(), Ready: true,
		Ledger: &statusv1.Ledger{Terms: s.Ledger()}, CertificateExpiresNs: s.t.ExpiryNs(),
	}
	st.Problems = s.t.Problems("classify", "certificate")
	st.Ready = len(st.Problems) == 0
	return &classifyv1.StatusResponse{Status: st}, nil
}
