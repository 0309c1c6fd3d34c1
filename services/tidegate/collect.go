package main

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"github.com/tidegate-mesh/tidegate/libs/ledger"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
	enforcev1 "github.com/tidegate-mesh/tidegate/proto/enforce/v1"
	ingestv1 "github.com/tidegate-mesh/tidegate/proto/ingest/v1"
	queryv1 "github.com/tidegate-mesh/tidegate/proto/query/v1"
	statusv1 "github.com/tidegate-mesh/tidegate/proto/status/v1"
)

// callTimeout is for one call to a service of this process.
const callTimeout = 10 * time.Second

// collected is what the services of this process say about themselves.
type collected struct {
	Services   []*statusv1.ServiceStatus
	Interfaces []*ingestv1.Interface
	Ledger     ledger.Sheet
}

// caller reaches one service.
type caller func(service string, f func(ctx context.Context, c *grpc.ClientConn) error) error

// collect asks every service; one that does not answer is left out.
func collect(call caller) collected {
	var o collected
	add := func(service string, f func(ctx context.Context, c *grpc.ClientConn) (*statusv1.ServiceStatus, error)) {
		_ = call(service, func(ctx context.Context, c *grpc.ClientConn) error {
			s, err := f(ctx, c)
			if err == nil {
				o.Services = append(o.Services, s)
			}
			return err
		})
	}
	add("ingest", func(ctx context.Context, c *grpc.ClientConn) (*statusv1.ServiceStatus, error) {
		s, err := ingestv1.NewIngestServiceClient(c).Status(ctx, &ingestv1.StatusRequest{})
		o.Interfaces = s.GetInterfaces()
		return s.GetStatus(), err
	})
	add("classify", func(ctx context.Context, c *grpc.ClientConn) (*statusv1.ServiceStatus, error) {
		s, err := classifyv1.NewClassifyServiceClient(c).Status(ctx, &classifyv1.StatusRequest{})
		return s.GetStatus(), err
	})
	add("enforce", func(ctx context.Context, c *grpc.ClientConn) (*statusv1.ServiceStatus, error) {
		s, err := enforcev1.NewEnforceServiceClient(c).Status(ctx, &enforcev1.StatusRequest{})
		return s.GetStatus(), err
	})
	add("persist", func(ctx context.Context, c *grpc.ClientConn) (*statusv1.ServiceStatus, error) {
		s, err := queryv1.NewQueryServiceClient(c).Status(ctx, &queryv1.StatusRequest{})
		return s.GetStatus(), err
	})
	o.Ledger = ledger.Balance(o.Services)
	return o
}
