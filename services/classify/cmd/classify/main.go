// Command tidegate-classify labels flows, finds attacks and writes leased rules.
package main

import (
	"context"
	"os"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/config"
	"github.com/tidegate-mesh/tidegate/libs/ledger"
	"github.com/tidegate-mesh/tidegate/libs/lifecycle"
	"github.com/tidegate-mesh/tidegate/libs/pki"
	"github.com/tidegate-mesh/tidegate/libs/rpc"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	statusv1 "github.com/tidegate-mesh/tidegate/proto/status/v1"
	"github.com/tidegate-mesh/tidegate/services/classify"
)

type cli struct {
	Listen    string           `name:"listen" default:"127.0.0.1:50051" help:"Address of the gRPC server."`
	TLS       rpc.TLS          `embed:""`
	Classify  classify.Config  `embed:""`
	NATS      bus.Config       `embed:"" prefix:"nats-"`
	Telemetry telemetry.Config `embed:""`
}

// Validate is called by the parser, so that --check-config finds what the tags cannot express.
func (c *cli) Validate() error { return c.Classify.Validate() }

func main() {
	os.Exit(config.Report(os.Stderr, "tidegate-classify", run(os.Args[1:])))
}

func run(args []string) error {
	var c cli
	if _, err := config.Parse(&c, "tidegate-classify", "Label flows, find attacks and decide what to block.", args); err != nil {
		return err
	}
	var err error
	if c.TLS, err = c.TLS.Resolve(pki.Classify); err != nil {
		return config.Usagef("%w", err)
	}
	c.NATS.TLS = c.NATS.TLS.Or(c.TLS.CA, c.TLS.Cert, c.TLS.Key)
	ctx, stop := lifecycle.SignalContext()
	defer stop()
	c.Telemetry.Service = "classify"
	t, err := telemetry.New(ctx, c.Telemetry)
	if err != nil {
		return err
	}
	srv, health, err := rpc.NewServer(t, c.TLS)
	if err != nil {
		return err
	}
	b := lateBus{bus.NewLate()}
	t.Check("nats", b.Ready)
	if c.Classify.Advertise == "" {
		c.Classify.Advertise = c.Listen
	}
	svc, err := classify.New(c.Classify, classify.Deps{Telemetry: t, Registrar: srv, Bus: b})
	if err != nil {
		return config.Usagef("%w", err)
	}
	t.Registry.MustRegister(ledger.NewCollector(func() []*statusv1.ServiceStatus {
		return []*statusv1.ServiceStatus{{Service: "classify", Ledger: &statusv1.Ledger{Terms: svc.Ledger()}}}
	}))
	var g lifecycle.Group
	g.Add("telemetry", 0, t.Run)
	g.Add("nats", 0, func(ctx context.Context) error {
		if !b.Connect(ctx, t, "tidegate-classify", c.NATS, "NATS cannot be reached, trying again", nil) {
			return nil
		}
		<-ctx.Done()
		return b.Close()
	})
	g.Add("grpc", 0, func(ctx context.Context) error { return rpc.Serve(ctx, srv, health, c.Listen) })
	g.Add("classify", 5*time.Second, svc.Run)
	return g.Run(ctx)
}
