// Package gateway is the front door: REST over HTTPS with tokens, a live page, and nothing of its own to lose. It
// asks the other services over gRPC and follows what classify and enforce publish on NATS.
//
// REST and CRUD are in Go in this project only with a reason. The gateway's: it deploys as one static binary with
// its page inside, it shares the protobuf contracts with the services it asks, and it fans out the events of a
// packet mesh to hundreds of clients at the rate at which they are made.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"

	"google.golang.org/grpc"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/auth"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/edge"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/feed"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/live"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/mesh"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/ops"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/page"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/rest"
)

// Config is what the gateway can be told. The tags are for kong; DefaultConfig has the same defaults.
type Config struct {
	Listen    string `name:"listen" default:"127.0.0.1:8080" help:"Address of HTTPS."`
	HTTPSCert string `name:"https-cert" placeholder:"FILE" help:"PEM file of the HTTPS certificate, chain included (default: gateway.pem of the certificates' folder)."`
	HTTPSKey  string `name:"https-key" placeholder:"FILE" help:"PEM file of its private key (default: gateway-key.pem there)."`

	ListCA string `name:"list-ca" placeholder:"FILE" help:"PEM file of authorities of HTTPS servers that address lists are read from, besides the system's."`

	Tokens auth.Config `embed:""`
	Edge   edge.Config `embed:""`
}

// DefaultConfig listens on loopback. HTTPSCert and HTTPSKey have to be set.
func DefaultConfig() Config {
	return Config{Listen: "127.0.0.1:8080", Tokens: auth.DefaultConfig(), Edge: edge.DefaultConfig()}
}

// Validate reports the first setting that cannot work. It opens no file and no connection.
func (c Config) Validate() error {
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		return fmt.Errorf("listen address %q: use host:port (%w)", c.Listen, err)
	}
	if (c.HTTPSCert == "") != (c.HTTPSKey == "") {
		return errors.New("--https-cert and --https-key belong together: give both or none")
	}
	if err := c.Tokens.Validate(); err != nil {
		return err
	}
	return c.Edge.Validate()
}

// Bus is what the gateway needs of the message bus; *bus.Bus has it.
type Bus interface {
	ops.Bus
	live.Events
	Heartbeat(ctx context.Context, n *eventv1.NodeHeartbeat) error
	Ready() error
}

// Deps are what the gateway works with. All are needed; Mesh stays the caller's to close.
type Deps struct {
	Telemetry *telemetry.Telemetry
	Bus       Bus
	Mesh      *mesh.Mesh
}

// InProcess is the mesh whose services are all behind one connection, as in the all-in-one.
func InProcess(conn grpc.ClientConnInterface) *mesh.Mesh { return mesh.Over(conn) }

// Service is one instance of the gateway. Make it with New; Run works once.
type Service struct {
	cfg   Config
	t     *telemetry.Telemetry
	auth  *auth.Authenticator
	chain *edge.Chain
	bound chan net.Addr // the address once, when it is bound

	bus  Bus
	ops  *ops.Operations
	hub  *live.Hub
	api  http.Handler // of /api/
	page http.Handler // of everything else
}

// New checks cfg, loads the HTTPS certificate, registers metrics and readiness, and does not listen. A key set that
// cannot be read yet is no error: requests with a token are answered 503 until it is there.
func New(cfg Config, deps Deps) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Telemetry == nil || deps.Bus == nil || deps.Mesh == nil {
		return nil, errors.New("the gateway needs telemetry, a bus and the services to ask")
	}
	s := &Service{cfg: cfg, t: deps.Telemetry, bus: deps.Bus, bound: make(chan net.Addr, 1)}
	var err error
	if s.auth, err = auth.New(context.Background(), cfg.Tokens, s.t, deps.Bus); err != nil {
		return nil, err
	}
	if err = s.build(deps); err != nil {
		return nil, err
	}
	if s.chain, err = edge.New(cfg.Edge, s.t, s.auth, http.HandlerFunc(s.route)); err != nil {
		return nil, err
	}
	if err := s.chain.UseCertificate(cfg.HTTPSCert, cfg.HTTPSKey); err != nil {
		return nil, err
	}
	s.t.Check("key set", s.auth.Ready)
	s.t.Check("https", s.chain.Ready)
	s.t.Check("bus", deps.Bus.Ready)
	return s, nil
}

// build makes what is behind the chain.
func (s *Service) build(deps Deps) error {
	reader, err := feed.New(s.cfg.ListCA, feed.DefaultTimeout, bus.MaxListBytes)
	if err != nil {
		return err
	}
	o, err := ops.New(ops.Deps{Telemetry: s.t, Mesh: deps.Mesh, Bus: deps.Bus, Reader: reader})
	if err != nil {
		return err
	}
	s.ops = o
	s.hub = live.New(live.DefaultConfig(), live.Deps{Telemetry: s.t, Source: o, Events: deps.Bus, Attack: api.NewAttack, Verdict: api.NewVerdict})
	version, _ := telemetry.Build()
	if s.api, err = rest.New(rest.Deps{Operations: o, Snapshot: s.hub.Snapshot, Stream: s.hub, Version: version}); err != nil {
		return err
	}
	s.page, err = page.New(page.Deps{Telemetry: s.t, Operations: o, Live: s.hub.Live, Login: s.login, Logout: logout})
	return err
}

// route is no http.ServeMux: that one answers some paths by a redirect to another.
func (s *Service) route(w http.ResponseWriter, r *http.Request) {
	h := s.page
	if strings.HasPrefix(r.URL.Path, "/api/") {
		h = s.api
	}
	h.ServeHTTP(w, r)
}

// Run serves until ctx ends, then ends event streams and lets running requests finish, within 10 s.
func (s *Service) Run(ctx context.Context) error {
	ln, err := edge.Listen(ctx, s.cfg.Listen)
	if err != nil {
		return err
	}
	s.bound <- ln.Addr()
	s.t.Log.Info("the gateway serves HTTPS", "address", ln.Addr().String())
	run, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	beat := func(ctx context.Context) error {
		bus.Beat(ctx, s.bus, s.t, &eventv1.NodeHeartbeat{Service: "gateway", Instance: s.t.Instance(), Address: s.cfg.Listen})
		return nil
	}
	for _, f := range []func(context.Context) error{s.auth.Run, s.hub.Run, s.ops.ReadFeeds, beat} {
		wg.Add(1)
		go func() { defer wg.Done(); _ = f(run) }() // it ends with its context only
	}
	err = s.chain.Serve(run, ln)
	cancel()
	wg.Wait()
	return err
}
