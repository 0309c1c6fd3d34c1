// Command tidegate-ingest is the sensor: it reads every packet of its interfaces, passes them on in inline mode
// and streams flows and windows to classify.
package main

import (
	"context"
	"os"
	"runtime/debug"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/capability"
	"github.com/tidegate-mesh/tidegate/libs/config"
	"github.com/tidegate-mesh/tidegate/libs/ledger"
	"github.com/tidegate-mesh/tidegate/libs/lifecycle"
	"github.com/tidegate-mesh/tidegate/libs/pki"
	"github.com/tidegate-mesh/tidegate/libs/rpc"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
	statusv1 "github.com/tidegate-mesh/tidegate/proto/status/v1"
	"github.com/tidegate-mesh/tidegate/services/ingest"
)

type cli struct {
	Listen    string           `name:"listen" default:"127.0.0.1:50051" help:"Address of the gRPC server."`
	TLS       rpc.TLS          `embed:""`
	Ingest    ingest.Config    `embed:""`
	Telemetry telemetry.Config `embed:""`
}

// Validate lets --check-config find what the tags cannot express.
func (c *cli) Validate() error { return c.Ingest.Validate() }

func main() {
	if os.Getenv("GOGC") == "" {
		// What ingest keeps is fixed and packets allocate nothing, so that the collector has little to do: memory that it
		// would let garbage stand in, as much again by default, costs more than collecting it more often.
		debug.SetGCPercent(10)
	}
	err := capability.Raise()
	if err == nil {
		err = run(os.Args[1:])
	}
	os.Exit(config.Report(os.Stderr, "tidegate-ingest", err))
}

func run(args []string) error {
	var c cli
	if _, err := config.Parse(&c, "tidegate-ingest", "Read every packet of the interfaces and stream flows and windows to classify.", args); err != nil {
		return err
	}
	var err error
	if c.TLS, err = c.TLS.Resolve(pki.Ingest); err != nil {
		return config.Usagef("%w", err)
	}
	ctx, stop := lifecycle.SignalContext()
	defer stop()
	c.Telemetry.Service = "ingest"
	t, err := telemetry.New(ctx, c.Telemetry)
	if err != nil {
		return err
	}
	srv, health, err := rpc.NewServer(t, c.TLS)
	if err != nil {
		return err
	}
	var classify []classifyv1.ClassifyServiceClient
	for _, addr := range c.Ingest.Classify {
		conn, err := rpc.Dial(t, addr, c.TLS.Expect(pki.Classify))
		if err != nil {
			return err
		}
		defer conn.Close() //nolint:errcheck // nothing is left to send
		classify = append(classify, classifyv1.NewClassifyServiceClient(conn))
	}
	svc, err := ingest.New(c.Ingest, ingest.Deps{Telemetry: t, Registrar: srv, Classify: classify})
	if err != nil {
		return config.Usagef("%w", err)
	}
	t.Registry.MustRegister(ledger.NewCollector(func() []*statusv1.ServiceStatus {
		return []*statusv1.ServiceStatus{{Service: "ingest", Ledger: &statusv1.Ledger{Terms: svc.Ledger()}}}
	}))
	var g lifecycle.Group
	g.Add("telemetry", 0, t.Run)
	g.Add("grpc", 0, func(ctx context.Context) error { return rpc.Serve(ctx, srv, health, c.Listen) })
	g.Add("ingest", 10*time.Second, svc.Run)
	return g.Run(ctx)
}
