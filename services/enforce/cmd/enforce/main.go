// Command tidegate-enforce applies the rules of the mesh on this machine's interfaces.
package main

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/capability"
	"github.com/tidegate-mesh/tidegate/libs/config"
	"github.com/tidegate-mesh/tidegate/libs/lifecycle"
	"github.com/tidegate-mesh/tidegate/libs/pki"
	"github.com/tidegate-mesh/tidegate/libs/rpc"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/services/enforce"
)

type cli struct {
	Listen    string           `name:"listen" default:"127.0.0.1:50051" help:"Address of the gRPC server."`
	TLS       rpc.TLS          `embed:""`
	Enforce   enforce.Config   `embed:""`
	NATS      bus.Config       `embed:"" prefix:"nats-"`
	Telemetry telemetry.Config `embed:""`
}

// Validate lets --check-config find what the tags cannot express.
func (c *cli) Validate() error {
	if len(c.Enforce.Ifaces) == 0 {
		return errors.New("enforce: name at least one interface (--iface)")
	}
	return c.Enforce.Validate()
}

func main() {
	err := capability.Raise()
	if err == nil {
		err = run(os.Args[1:])
	}
	os.Exit(config.Report(os.Stderr, "tidegate-enforce", err))
}

func run(args []string) error {
	var c cli
	if _, err := config.Parse(&c, "tidegate-enforce", "Apply the rules of the mesh on this machine's interfaces.", args); err != nil {
		return err
	}
	var err error
	if c.TLS, err = c.TLS.Resolve(pki.Enforce); err != nil {
		return config.Usagef("%w", err)
	}
	c.NATS.TLS = c.NATS.TLS.Or(c.TLS.CA, c.TLS.Cert, c.TLS.Key)
	ctx, stop := lifecycle.SignalContext()
	defer stop()
	c.Telemetry.Service = "enforce"
	t, err := telemetry.New(ctx, c.Telemetry)
	if err != nil {
		return err
	}
	if c.Enforce.Node == "" {
		c.Enforce.Node = t.Instance()
	}
	c.NATS.OnBad = func(subject string, err error) {
		t.Log.Warn("a rule or message cannot be read", "subject", subject, "error", err)
	}
	srv, health, err := rpc.NewServer(t, c.TLS)
	if err != nil {
		return err
	}
	b := lateBus{bus.NewLate()}
	svc, err := enforce.New(c.Enforce, enforce.Deps{Telemetry: t, Registrar: srv, Bus: b})
	if err != nil {
		return config.Usagef("%w", err)
	}
	var g lifecycle.Group
	g.Add("telemetry", 0, t.Run)
	g.Add("nats", 0, func(ctx context.Context) error {
		if !b.Connect(ctx, t, "enforce "+c.Enforce.Node, c.NATS, "waiting for NATS; rules already in the kernel stay in force until they expire",
			func(ctx context.Context, b *bus.Bus) error { return b.EnsureStreams(ctx) }) {
			return nil
		}
		<-ctx.Done()
		_ = b.Close() // everything that matters was acknowledged
		return nil
	})
	g.Add("enforce", 5*time.Second, svc.Run)
	g.Add("grpc", 6*time.Second, func(ctx context.Context) error { return rpc.Serve(ctx, srv, health, c.Listen) })
	return g.Run(ctx)
}
