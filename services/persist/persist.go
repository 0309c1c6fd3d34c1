// Package persist stores what the mesh publishes, flow records, attacks, verdicts, enforcement events and the
// audit of changes, in an SQL database, answers queries about them, and tells hooks (internal/hook).
//
// REST and CRUD are in Go in this project only with a reason. Persist's: it deploys as one static binary with
// every database driver inside, it shares the protobuf contracts and the bus with the packet path instead of
// a copy of them, and it takes in streams at the rate at which a packet mesh makes them.
//
// A message is acknowledged after the transaction that holds its rows is committed, and rows are unique by
// (id, ts), so that a message that comes twice is stored once. While the database cannot be used, messages
// stay in JetStream and readiness says why.
package persist

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/lifecycle"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	queryv1 "github.com/tidegate-mesh/tidegate/proto/query/v1"
	"github.com/tidegate-mesh/tidegate/services/persist/internal/hook"
	"github.com/tidegate-mesh/tidegate/services/persist/internal/sqlstore"
)

// Config is what persist can be told. The tags are for kong; DefaultConfig has the same defaults.
type Config struct {
	DBType         string        `name:"db-type" env:"DB_TYPE" help:"Database: postgresql, mysql, mariadb, galera or sqlite; empty: what the URL says, without a URL sqlite."`
	DatabaseURL    string        `name:"database-url" env:"DATABASE_URL" help:"postgres://, mysql:// or mariadb:// URL, or path or file: URL of an SQLite file (default persist.db in the data directory)."`
	PasswordFile   string        `name:"database-password-file" env:"DATABASE_PASSWORD_FILE" help:"File with the password of the URL's user; read again for every new connection."`
	DataDir        string        `name:"data-dir" env:"TIDEGATE_PERSIST_DATA_DIR" default:"/var/lib/tidegate" help:"Directory of the SQLite file."`
	FlowRetention  time.Duration `name:"flow-retention" env:"TIDEGATE_PERSIST_FLOW_RETENTION" default:"168h" help:"How long flows are kept; negative: for ever."`
	EventRetention time.Duration `name:"event-retention" env:"TIDEGATE_PERSIST_EVENT_RETENTION" default:"2160h" help:"How long attacks, verdicts, enforcement events and audits are kept; negative: for ever."`
	MaxBytes       int64         `name:"max-bytes" env:"TIDEGATE_PERSIST_MAX_BYTES" default:"0" help:"Size cap of the tables in bytes, oldest flows go first; 0: 2 GiB (SQLite) or 50 GiB (others), negative: none."`
	QueryTimeout   time.Duration `name:"query-timeout" env:"TIDEGATE_PERSIST_QUERY_TIMEOUT" default:"30s" help:"Longest time of one query."`
	Advertise      string        `name:"advertise" env:"TIDEGATE_PERSIST_ADVERTISE" help:"Address at which other services reach this one, told in heartbeats."`

	Hooks hook.Config `embed:"" prefix:"hook-"`
}

// DefaultConfig is an SQLite file under /var/lib/tidegate.
func DefaultConfig() Config {
	return Config{
		DataDir:        "/var/lib/tidegate",
		FlowRetention:  7 * 24 * time.Hour,
		EventRetention: 90 * 24 * time.Hour,
		QueryTimeout:   30 * time.Second,
		Hooks:          hook.DefaultConfig(),
	}
}

// Validate reports the first setting that cannot work. It does not connect.
func (c Config) Validate() error {
	if c.QueryTimeout <= 0 {
		return fmt.Errorf("query timeout %s: it must be above 0", c.QueryTimeout)
	}
	for what, d := range map[string]time.Duration{"flow": c.FlowRetention, "event": c.EventRetention} {
		if d == 0 { // the store would take it for its default
			return fmt.Errorf("%s retention of 0: give a time such as 168h, or a negative one to keep everything", what)
		}
	}
	if c.MaxBytes > 0 && c.MaxBytes < 1<<20 {
		return fmt.Errorf("size cap of %d bytes: it must be at least 1 MiB (1048576)", c.MaxBytes)
	}
	if err := c.Hooks.Validate(); err != nil {
		return err
	}
	return sqlstore.Check(c.store(nil))
}

func (c Config) store(onPrune func(sqlstore.Table, int64, string)) sqlstore.Config {
	return sqlstore.Config{
		Type: c.DBType, URL: c.DatabaseURL, PasswordFile: c.PasswordFile, DataDir: c.DataDir, FlowRetention: c.FlowRetention,
		EventRetention: c.EventRetention, MaxBytes: c.MaxBytes, OnPrune: onPrune,
	}
}

// Bus is what persist needs of the message bus; *bus.Bus has it.
type Bus interface {
	hook.Bus
	EnsureStreams(ctx context.Context) error
	ConsumeFlows(ctx context.Context, durable string, h func(context.Context, []bus.FlowMsg) error) error
	ConsumeEvents(ctx context.Context, durable string, subjects []string, h func(context.Context, []bus.EventMsg) error) error
	State(ctx context.Context, stream string) (bus.StreamState, error)
	ServeUsual(ctx context.Context, store func(context.Context, *eventv1.UsualDay) error, load func(context.Context, *eventv1.UsualQuery) (*eventv1.UsualDay, error)) error
	Heartbeat(ctx context.Context, n *eventv1.NodeHeartbeat) error
}

// Deps are what persist works with. Registrar may be nil: then there is no QueryService.
type Deps struct {
	Telemetry *telemetry.Telemetry
	Registrar grpc.ServiceRegistrar
	Bus       Bus
}

// durable is the name of persist's consumers. Instances that share it share the work.
const durable = "persist"

const (
	maintainEvery = time.Minute
	backlogEvery  = 2 * time.Second
	retryMin      = 100 * time.Millisecond
	retryMax      = 5 * time.Second
)

// Service is one instance of persist. Make it with New; Run works once.
type Service struct {
	queryv1.UnimplementedQueryServiceServer

	cfg     Config
	t       *telemetry.Telemetry
	bus     Bus
	metrics *metrics
	started time.Time

	store  atomic.Pointer[sqlstore.Store] // nil until the database was reached
	flows  *writer
	events *writer
	hooks  *hook.Set // nil: none

	mu        sync.Mutex
	problems  map[string]string // what is not well, by operation
	rows      map[sqlstore.Table]int64
	rowsUntil time.Time
}

// New checks cfg, registers the metrics and the QueryService, and does not connect.
func New(cfg Config, deps Deps) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Telemetry == nil || deps.Bus == nil {
		return nil, errors.New("persist needs telemetry and a bus")
	}
	m, err := newMetrics(deps.Telemetry.Registry)
	if err != nil {
		return nil, err
	}
	s := &Service{cfg: cfg, t: deps.Telemetry, bus: deps.Bus, metrics: m, started: time.Now(),
		problems: map[string]string{"database": "database: it was not reached yet"}}
	if s.hooks, err = hook.New(cfg.Hooks, s.t, deps.Bus); err != nil {
		return nil, err
	}
	s.flows = newWriter(s, bus.StreamFlows, "flows")
	s.events = newWriter(s, bus.StreamEvents, "events")
	s.t.Check("persist", func() error {
		if p := s.problemList(); len(p) > 0 {
			return errors.New(strings.Join(p, "\n"))
		}
		return nil
	})
	if deps.Registrar != nil {
		queryv1.RegisterQueryServiceServer(deps.Registrar, s)
	}
	return s, nil
}

// Run opens the database, which is retried until it answers, and stores what comes until ctx ends; then it
// finishes the batches in hand and closes the database. Hooks do not wait for the database.
func (s *Service) Run(ctx context.Context) error {
	if s.hooks != nil {
		run, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = s.hooks.Run(run) // it ends with its context only
		}()
		defer func() { cancel(); <-done }()
	}
	// A start that ends because ctx ended is a clean stop.
	err := lifecycle.Retry(ctx, retryMin, retryMax, func(ctx context.Context) error {
		st, err := sqlstore.Open(ctx, s.cfg.store(func(t sqlstore.Table, n int64, reason string) {
			s.metrics.pruned.WithLabelValues(string(t), reason).Add(float64(n))
		}))
		if err == nil {
			err = s.resume(ctx, st)
		}
		if err != nil {
			if st != nil {
				_ = st.Close()
			}
			return err
		}
		s.store.Store(st)
		return nil
	}, func(err error, _ time.Duration) { s.problem("database", err) })
	if err != nil {
		return nil //nolint:nilerr // only the end of ctx ends Retry without success
	}
	s.well("database")
	st := s.store.Load()
	defer func() {
		if err := st.Close(); err != nil {
			s.t.Log.Error("close the database", "error", err)
		}
	}()
	if err := lifecycle.Retry(ctx, retryMin, retryMax, s.openStreams,
		func(err error, _ time.Duration) { s.problem("streams", err) }); err != nil {
		return nil //nolint:nilerr // as above
	}
	s.well("streams")
	if v, err := st.Version(ctx); err == nil {
		s.t.Log.Info("database open", "database", v)
	}

	run, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var first error
	var once sync.Once
	start := func(what string, f func(context.Context) error) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer cancel() // one that ends stops all
			if err := f(run); err != nil && run.Err() == nil {
				once.Do(func() { first = fmt.Errorf("%s: %w", what, err) })
			}
		}()
	}
	start("store flows", func(ctx context.Context) error { return s.bus.ConsumeFlows(ctx, durable, s.storeFlows) })
	start("store events", func(ctx context.Context) error {
		return s.bus.ConsumeEvents(ctx, durable, []string{bus.AllAttacks, bus.AllVerdicts, bus.AllEnforcements, bus.AllAudits}, s.storeEvents)
	})
	start("answer classifiers", func(ctx context.Context) error { return s.bus.ServeUsual(ctx, s.storeUsual, s.loadUsual) })
	start("maintain", s.maintain)
	start("watch the backlog", s.watchBacklog)
	start("heartbeat", func(ctx context.Context) error {
		bus.Beat(ctx, s.bus, s.t, &eventv1.NodeHeartbeat{Service: "persist", Instance: s.t.Instance(), Address: s.cfg.Advertise})
		return nil
	})
	wg.Wait()
	return first
}

// resume tells the writers how far the streams were stored before.
func (s *Service) resume(ctx context.Context, st *sqlstore.Store) error {
	pos, err := st.Positions(ctx)
	if err != nil {
		return err
	}
	s.flows.resume(pos[bus.StreamFlows])
	s.events.resume(pos[bus.StreamEvents])
	return nil
}

// openStreams makes what is missing of the streams and tells the writers when they are others than those stored before.
func (s *Service) openStreams(ctx context.Context) error {
	if err := s.bus.EnsureStreams(ctx); err != nil {
		return err
	}
	for _, w := range []*writer{s.flows, s.events} {
		if err := w.sameStream(ctx); err != nil {
			return err
		}
	}
	return nil
}

// maintain prunes and makes partitions, at once, then every minute, soon after a failure, and when the size should be
// looked at.
func (s *Service) maintain(ctx context.Context) error {
	timer := time.NewTimer(maintainEvery)
	defer timer.Stop()
	for {
		st := s.store.Load()
		if err := st.Maintain(ctx); err != nil && ctx.Err() == nil {
			s.problem("maintenance", err)
			timer.Reset(retryMax) // not ready until it succeeds
		} else {
			s.well("maintenance")
			timer.Reset(maintainEvery)
		}
		if n, err := st.Size(ctx); err == nil {
			s.metrics.size.Set(float64(n))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-st.Full():
		}
	}
}

func (s *Service) watchBacklog(ctx context.Context) error {
	tick := time.NewTicker(backlogEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		total := uint64(0)
		ok := true
		for _, w := range []*writer{s.flows, s.events} {
			n, err := w.updatePending(ctx)
			ok = ok && err == nil
			total += n
		}
		if ok {
			s.metrics.backlog.Set(float64(total))
		}
	}
}

// problem notes what is not well, with what to do about it; it is logged when it is new.
func (s *Service) problem(op string, err error) {
	s.t.CountError(op)
	err = sqlstore.Explain(err)
	text := op + ": " + err.Error()
	about := text // what is new about it
	var explained *sqlstore.Explained
	if errors.As(err, &explained) {
		about = op + ": " + explained.Sentence // the rest may differ each time, by a port for instance
	}
	s.mu.Lock()
	known := strings.HasPrefix(s.problems[op], about)
	s.problems[op] = text
	s.mu.Unlock()
	if !known {
		s.t.Log.Warn("persist is not ready, retrying", "op", op, "error", err)
	}
}

// well ends a problem.
func (s *Service) well(op string) {
	s.mu.Lock()
	was := s.problems[op]
	delete(s.problems, op)
	s.mu.Unlock()
	if was != "" {
		s.t.Log.Info("persist works again", "op", op)
	}
}

// problemList is in the order of importance.
func (s *Service) problemList() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, op := range []string{"database", "streams", "insert_flows", "insert_events", "maintenance"} {
		if p := s.problems[op]; p != "" {
			out = append(out, p)
		}
	}
	return out
}
