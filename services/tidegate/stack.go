package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/ledger"
	"github.com/tidegate-mesh/tidegate/libs/lifecycle"
	"github.com/tidegate-mesh/tidegate/libs/rpc"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
	statusv1 "github.com/tidegate-mesh/tidegate/proto/status/v1"
	"github.com/tidegate-mesh/tidegate/services/classify"
	"github.com/tidegate-mesh/tidegate/services/enforce"
	"github.com/tidegate-mesh/tidegate/services/gateway"
	"github.com/tidegate-mesh/tidegate/services/ingest"
	"github.com/tidegate-mesh/tidegate/services/persist"
)

// stackConfig describes the services of one process.
type stackConfig struct {
	data       string
	listen     string // gRPC; empty: in memory only
	natsListen string
	bus        bus.Config // URL empty: an embedded server
	tls        rpc.TLS
	telemetry  telemetry.Config
	ingest     ingest.Config
	classify   classify.Config
	enforce    enforce.Config
	persist    persist.Config
	gateway    gateway.Config
	local      string // file with the credentials of this machine's administrator; empty: none
}

// stack is all services in one process. They talk over gRPC in memory and over NATS as they do apart.
type stack struct {
	tel   *telemetry.Telemetry
	bus   *bus.Bus
	conn  *grpc.ClientConn
	local *localAccess // nil without a gateway
	group lifecycle.Group
}

func newStack(ctx context.Context, c stackConfig) (_ *stack, err error) {
	if err := ensureDir(c.data); err != nil {
		return nil, err
	}
	tel, err := telemetry.New(ctx, c.telemetry)
	if err != nil {
		return nil, err
	}
	s := &stack{tel: tel}
	// What was opened is closed again when a later part cannot start.
	var opened []func()
	defer func() {
		if err != nil {
			for i := range opened {
				opened[len(opened)-1-i]()
			}
		}
	}()
	if c.bus.URL == "" {
		server, err := bus.StartEmbedded(ctx, filepath.Join(c.data, "nats"), bus.Listen{
			Addr: c.natsListen, TLS: bus.TLS{}.Or(c.tls.CA, c.tls.Cert, c.tls.Key), Insecure: c.tls.Insecure,
		})
		if err != nil {
			return nil, err
		}
		opened = append(opened, server.Shutdown)
		c.bus.Embedded = server
		s.group.Add("nats", drain, func(ctx context.Context) error {
			<-ctx.Done()
			server.Shutdown()
			return nil
		})
	}
	if s.bus, err = bus.Connect(ctx, tel, "tidegate", c.bus); err != nil {
		return nil, err
	}
	opened = append(opened, func() { _ = s.bus.Close() })
	if err := s.bus.EnsureStreams(ctx); err != nil {
		return nil, err
	}
	s.group.Add("bus", drain, func(ctx context.Context) error {
		<-ctx.Done()
		return s.bus.Close()
	})

	public, status, err := rpc.NewServer(tel, c.tls)
	if err != nil {
		return nil, err
	}
	inside, _, err := rpc.NewServer(tel, rpc.TLS{})
	if err != nil {
		return nil, err
	}
	dial, serve := rpc.InMemory(inside)
	if s.conn, err = dial(tel); err != nil {
		return nil, err
	}
	opened = append(opened, func() { _ = s.conn.Close() })
	both := registrars{public, inside}

	p, err := persist.New(c.persist, persist.Deps{Telemetry: tel.For("persist"), Registrar: both, Bus: s.bus})
	if err != nil {
		return nil, err
	}
	e, err := enforce.New(c.enforce, enforce.Deps{Telemetry: tel.For("enforce"), Registrar: both, Bus: s.bus})
	if err != nil {
		return nil, err
	}
	cl, err := classify.New(c.classify, classify.Deps{Telemetry: tel.For("classify"), Registrar: both, Bus: s.bus})
	if err != nil {
		return nil, err
	}
	c.ingest.Classify = []string{"this process"}
	in, err := ingest.New(c.ingest, ingest.Deps{
		Telemetry: tel.For("ingest"), Registrar: both, Classify: []classifyv1.ClassifyServiceClient{classifyv1.NewClassifyServiceClient(s.conn)},
	})
	if err != nil {
		return nil, err
	}
	tel.Registry.MustRegister(ledger.NewCollector(func() []*statusv1.ServiceStatus { return collect(s.call).Services }))
	// The last started is the first to stop: capture ends before those it feeds.
	s.group.Add("telemetry", drain, tel.Run)
	s.group.Add("persist", drain, p.Run)
	s.group.Add("enforce", drain, e.Run)
	s.group.Add("classify", drain, cl.Run)
	s.group.Add("grpc in memory", drain, serve)
	if c.listen != "" {
		s.group.Add("grpc", drain, func(ctx context.Context) error { return rpc.Serve(ctx, public, status, c.listen) })
	}
	s.group.Add("ingest", drain, in.Run)
	if c.gateway.Listen == "" {
		return s, nil
	}
	gw, err := gateway.New(c.gateway, gateway.Deps{Telemetry: tel.For("gateway"), Bus: s.bus, Mesh: gateway.InProcess(s.conn)})
	if err != nil {
		return nil, err
	}
	s.group.Add("gateway", drain, gw.Run)
	if s.local, err = newLocalAccess(tel, c); err != nil {
		return nil, err
	}
	s.group.Add("local access", drain, s.local.Run)
	return s, nil
}

// registrars registers a service on several servers.
type registrars []grpc.ServiceRegistrar

// RegisterService implements grpc.ServiceRegistrar.
func (r registrars) RegisterService(d *grpc.ServiceDesc, impl any) {
	for _, s := range r {
		s.RegisterService(d, impl)
	}
}

// Run runs all services until ctx ends or one of them fails.
func (s *stack) Run(ctx context.Context) error {
	return errors.Join(s.group.Run(ctx), s.conn.Close())
}

// waitReady waits until every readiness check passes.
func (s *stack) waitReady(ctx context.Context, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		problems := s.tel.Ready()
		if len(problems) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not ready after %v: %s", limit, strings.Join(problems, "; "))
		}
		if !sleep(ctx, 50*time.Millisecond) {
			return ctx.Err()
		}
	}
}

// call reaches a service of this process.
func (s *stack) call(_ string, f func(ctx context.Context, c *grpc.ClientConn) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	return f(ctx, s.conn)
}

func (s *stack) ledger() ledger.Sheet { return collect(s.call).Ledger }

// settle waits until the ledger balances, at most for limit, and returns it as it was then: flows go on ending by
// their timeouts, so a later look may find some of them under way again.
func (s *stack) settle(limit time.Duration) ledger.Sheet {
	deadline := time.Now().Add(limit)
	for {
		sheet := s.ledger()
		if sheet.Difference == 0 || time.Now().After(deadline) {
			return sheet
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// counters adds up the packets by action of all interfaces.
func (s *stack) counters() map[string]uint64 {
	sum := map[string]uint64{}
	for _, i := range collect(s.call).Interfaces {
		for action, n := range i.XdpPackets {
			sum[action] += n
		}
	}
	return sum
}
