// Command tidegate-gateway serves Tidegate to users and their programs: REST over HTTPS and a live page.
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
	"github.com/tidegate-mesh/tidegate/services/gateway"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/mesh"
)

type cli struct {
	Gateway   gateway.Config   `embed:""`
	Mesh      mesh.Config      `embed:""`
	TLS       rpc.TLS          `embed:""`
	NATS      bus.Config       `embed:"" prefix:"nats-"`
	Telemetry telemetry.Config `embed:""`
}

// Validate is called by the parser, so that --check-config finds what does not go together too.
func (c *cli) Validate() error { return c.Gateway.Validate() }

func main() {
	os.Exit(config.Report(os.Stderr, "tidegate-gateway", run(os.Args[1:])))
}

func run(args []string) error {
	var c cli
	if _, err := config.Parse(&c, "tidegate-gateway", "Serve REST over HTTPS and the live page.", args); err != nil {
		return err
	}
	if c.Gateway.HTTPSCert == "" { // HTTPS stays on with --insecure, which is about the other services
		dir := c.TLS.Dir
		if dir == "" {
			dir = pki.DefaultDir
		}
		files := pki.FilesOf(dir, pki.Gateway)
		c.Gateway.HTTPSCert, c.Gateway.HTTPSKey = files.Cert, files.Key
	}
	var err error
	if c.TLS, err = c.TLS.Resolve(pki.Gateway); err != nil {
		return config.Usagef("%w", err)
	}
	c.NATS.TLS = c.NATS.TLS.Or(c.TLS.CA, c.TLS.Cert, c.TLS.Key)
	ctx, stop := lifecycle.SignalContext()
	defer stop()
	c.Telemetry.Service = "gateway"
	t, err := telemetry.New(ctx, c.Telemetry)
	if err != nil {
		return err
	}
	c.NATS.OnBad = func(subject string, err error) {
		t.Log.Warn("a message cannot be read and is skipped", "subject", subject, "error", err)
	}
	b := lateBus{bus.NewLate()}
	services, err := mesh.Dial(t, c.Mesh, c.TLS)
	if err != nil {
		return config.Usagef("%w", err)
	}
	defer func() { _ = services.Close() }()
	svc, err := gateway.New(c.Gateway, gateway.Deps{Telemetry: t, Bus: b, Mesh: services})
	if err != nil {
		return config.Usagef("%w", err)
	}
	var g lifecycle.Group
	g.Add("telemetry", 0, t.Run)
	g.Add("nats", 0, func(ctx context.Context) error {
		if b.Connect(ctx, t, "tidegate-gateway", c.NATS, "NATS cannot be reached, trying again", nil) {
			defer func() { _ = b.Close() }() // an audit entry that was not acknowledged was reported
			<-ctx.Done()
		}
		return nil
	})
	// Reads are answered while NATS is away: the service does not wait for it.
	g.Add("gateway", 10*time.Second, svc.Run)
	return g.Run(ctx)
}
