// Command tidegate-persist stores flow records and events in SQL and answers queries about them.
package main

import (
	"context"
	"os"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/config"
	"github.com/tidegate-mesh/tidegate/libs/lifecycle"
	"github.com/tidegate-mesh/tidegate/libs/pki"
	"github.com/tidegate-mesh/tidegate/libs/rpc"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/services/persist"
)

type cli struct {
	Listen    string           `name:"listen" default:"127.0.0.1:50051" help:"Address of the gRPC server."`
	TLS       rpc.TLS          `embed:""`
	Persist   persist.Config   `embed:""`
	NATS      bus.Config       `embed:"" prefix:"nats-"`
	Telemetry telemetry.Config `embed:""`
}

// Validate is called by the parser, so that --check-config finds a wrong database setting too.
func (c *cli) Validate() error { return c.Persist.Validate() }

func main() {
	os.Exit(config.Report(os.Stderr, "tidegate-persist", run(os.Args[1:])))
}

func run(args []string) error {
	var c cli
	if _, err := config.Parse(&c, "tidegate-persist", "Store flow records and events in SQL and answer queries about them.", args); err != nil {
		return err
	}
	var err error
	if c.TLS, err = c.TLS.Resolve(pki.Persist); err != nil {
		return config.Usagef("%w", err)
	}
	c.NATS.TLS = c.NATS.TLS.Or(c.TLS.CA, c.TLS.Cert, c.TLS.Key)
	ctx, stop := lifecycle.SignalContext()
	defer stop()
	c.Telemetry.Service = "persist"
	t, err := telemetry.New(ctx, c.Telemetry)
	if err != nil {
		return err
	}
	srv, health, err := rpc.NewServer(t, c.TLS)
	if err != nil {
		return err
	}
	c.NATS.OnBad = func(subject string, err error) {
		t.Log.Warn("a message cannot be read and is skipped", "subject", subject, "error", err)
	}
	b := lateBus{bus.NewLate()}
	t.Check("nats", b.Ready)
	svc, err := persist.New(c.Persist, persist.Deps{Telemetry: t, Registrar: srv, Bus: b})
	if err != nil {
		return config.Usagef("%w", err)
	}
	var g lifecycle.Group
	g.Add("telemetry", 0, t.Run)
	g.Add("grpc", 0, func(ctx context.Context) error { return rpc.Serve(ctx, srv, health, c.Listen) })
	g.Add("nats", 0, func(ctx context.Context) error {
		if b.Connect(ctx, t, "tidegate-persist", c.NATS, "NATS cannot be reached, trying again", nil) {
			defer func() { _ = b.Close() }() // what failed to flush is not acknowledged and comes again
			<-ctx.Done()
		}
		return nil
	})
	// Queries are answered while NATS is away: the service does not wait for it.
	g.Add("persist", 10*time.Second, svc.Run)
	return g.Run(ctx)
}
