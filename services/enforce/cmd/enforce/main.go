// Command tidegate-enforce applies the rules of the mesh on this machine's interfaces.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
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
func (c *cli) Validate() error { return c.Enforce.Validate() }

func main() {
	err := capability.Raise()
	if err == nil {
		err = run(os.Args[1:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "tidegate-enforce:", err)
	}
	os.Exit(config.ExitCode(err))
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
	var waiting atomic.Pointer[error] // nil once connected: from then on the service's own check has it
	waits := func(err error) { waiting.Store(&err) }
	waits(errors.New("not connected to NATS yet"))
	t.Check("nats", func() error {
		if err := waiting.Load(); err != nil {
			return *err
		}
		return nil
	})
	var g lifecycle.Group
	g.Add("telemetry", 0, t.Run)
	g.Add("enforce", 10*time.Second, func(ctx context.Context) error {
		var b *bus.Bus
		if err := lifecycle.Retry(ctx, 200*time.Millisecond, 5*time.Second, func(ctx context.Context) error {
			var err error
			if b, err = bus.Connect(ctx, t, "enforce "+c.Enforce.Node, c.NATS); err != nil {
				return err
			}
			if err = b.EnsureStreams(ctx); err != nil {
				_ = b.Close() // the error says more
			}
			return err
		}, func(err error, next time.Duration) {
			waits(err)
			t.Log.Warn("waiting for NATS; rules already in the kernel stay in force until they expire", "error", err, "again_in", next)
		}); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		defer func() { _ = b.Close() }() // everything that matters was acknowledged
		waiting.Store(nil)
		return serve(ctx, &c, t, b)
	})
	return g.Run(ctx)
}

// serve runs the service and its gRPC server until ctx ends.
func serve(ctx context.Context, c *cli, t *telemetry.Telemetry, b *bus.Bus) error {
	srv, health, err := rpc.NewServer(t, c.TLS)
	if err != nil {
		return err
	}
	svc, err := enforce.New(c.Enforce, enforce.Deps{Telemetry: t, Registrar: srv, Bus: b})
	if err != nil {
		return err
	}
	var g lifecycle.Group
	g.Add("service", 5*time.Second, svc.Run)
	g.Add("grpc", 6*time.Second, func(ctx context.Context) error { return rpc.Serve(ctx, srv, health, c.Listen) })
	return g.Run(ctx)
}
