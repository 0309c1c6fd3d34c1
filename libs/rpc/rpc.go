// Package rpc sets up gRPC servers and clients the one way that all services use: mutual TLS with certificates that
// reload, metrics, traces, recovery from panics, keepalive, health checks and a message limit.
package rpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/test/bufconn"

	"github.com/tidegate-mesh/tidegate/libs/telemetry"
)

// MaxMessage is the largest message in bytes that servers and clients accept, but for the answers of AcceptListing.
const MaxMessage = 4 << 20

// maxListing is the largest answer that lists all there is: 200,000 rules or so.
const maxListing = 64 << 20

// AcceptListing is for a call whose answer grows with what a service has, such as its rules.
func AcceptListing() grpc.CallOption { return grpc.MaxCallRecvMsgSize(maxListing) }

// drainTime bounds the graceful end of a server; calls that still run then are cut.
const drainTime = 5 * time.Second

// NewServer makes a server with the health service registered and, when the TLS files are set, TLS. With an authority
// each call is checked against the table of callers. The health service answers SERVING for "" at once; services set
// their own status on it. Errors tell which TLS file is at fault.
func NewServer(t *telemetry.Telemetry, files TLS) (*grpc.Server, *health.Server, error) {
	t.ErrorCounter("grpc_panic") // shown as 0 from the start, so that an alert has something to compare with
	m, err := newMetrics(t)
	if err != nil {
		return nil, nil, err
	}
	unary := []grpc.UnaryServerInterceptor{m.unaryServer}
	streams := []grpc.StreamServerInterceptor{m.streamServer}
	if files.CA != "" {
		t.ErrorCounter(denied)
		unary, streams = append(unary, authorizeUnary(t)), append(streams, authorizeStream(t))
	}
	options := []grpc.ServerOption{
		grpc.StatsHandler(otelgrpc.NewServerHandler(tracing(t)...)),
		grpc.ForceServerCodecV2(newCodec()),
		grpc.ChainUnaryInterceptor(append(unary, recoverUnary(t))...),
		grpc.ChainStreamInterceptor(append(streams, recoverStream(t))...),
		grpc.MaxRecvMsgSize(MaxMessage),
		grpc.MaxSendMsgSize(maxListing), // what a client accepts is its own affair
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	}
	plain, err := files.plain()
	if err != nil {
		return nil, nil, err
	}
	if files.Insecure {
		t.Log.Warn("--insecure: everything this service says and hears crosses the network in plain text, and anybody may call it")
	}
	if !plain {
		creds, err := serverCredentials(t, files)
		if err != nil {
			return nil, nil, err
		}
		options = append(options, grpc.Creds(creds))
	}
	srv := grpc.NewServer(options...)
	status := health.NewServer()
	healthv1.RegisterHealthServer(srv, status)
	return srv, status, nil
}

// Serve listens on a TCP address and serves until ctx ends. Then health turns NOT_SERVING, running calls get 5 s, and
// Serve returns nil.
func Serve(ctx context.Context, srv *grpc.Server, status *health.Server, listen string) error {
	if listen == "" { // the system would take any port of all addresses
		return errors.New("no address to listen on for gRPC: use --listen HOST:PORT")
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", listen)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("gRPC address %s is in use by another process: choose another with --listen (%w)", listen, syscall.EADDRINUSE)
	case err != nil:
		return fmt.Errorf("listen for gRPC on %s: %w", listen, err)
	}
	return ServeListener(ctx, srv, status, ln)
}

// ServeListener is Serve on a listener that exists; it closes ln. status may be nil.
func ServeListener(ctx context.Context, srv *grpc.Server, status *health.Server, ln net.Listener) error {
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(ln) }()
	select {
	case err := <-failed:
		if err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			return fmt.Errorf("serve gRPC on %s: %w", ln.Addr(), err)
		}
		return nil
	case <-ctx.Done():
	}
	if status != nil {
		status.Shutdown()
	}
	drained := make(chan struct{})
	go func() {
		srv.GracefulStop()
		close(drained)
	}()
	deadline := time.NewTimer(drainTime)
	defer deadline.Stop()
	select {
	case <-drained:
	case <-deadline.C:
		srv.Stop()
		<-drained
	}
	<-failed
	return nil
}

// Dial prepares a connection; it is established, and established again, in the background. addr is host:port or a
// gRPC target. With TLS files the server's certificate must be valid for host and signed by CA, or by the system's
// roots when CA is empty; with a Server name it must also be that identity's. The caller closes the connection.
func Dial(t *telemetry.Telemetry, addr string, files TLS) (*grpc.ClientConn, error) {
	creds := insecure.NewCredentials()
	plain, err := files.plain()
	if err != nil {
		return nil, err
	}
	if !plain {
		if creds, err = clientCredentials(t, files); err != nil {
			return nil, err
		}
	}
	return dial(t, addr, grpc.WithTransportCredentials(creds))
}

func dial(t *telemetry.Telemetry, target string, extra ...grpc.DialOption) (*grpc.ClientConn, error) {
	options := append([]grpc.DialOption{
		grpc.WithStatsHandler(otelgrpc.NewClientHandler(tracing(t)...)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}),
	}, extra...)
	conn, err := grpc.NewClient(target, options...)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", target, err)
	}
	return conn, nil
}

// InMemory connects clients to a server within the process, without a socket, with the same messages crossing.
// srv must have been made without TLS. serve blocks like Serve; connections dialled earlier wait for it. A server may
// be served in memory and on TCP at the same time.
func InMemory(srv *grpc.Server) (dialer func(t *telemetry.Telemetry) (*grpc.ClientConn, error), serve func(ctx context.Context) error) {
	ln := bufconn.Listen(1 << 20)
	dialer = func(t *telemetry.Telemetry) (*grpc.ClientConn, error) {
		return dial(t, "passthrough:///in-memory",
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return ln.DialContext(ctx) }))
	}
	serve = func(ctx context.Context) error { return ServeListener(ctx, srv, nil, ln) }
	return dialer, serve
}

// tracing keeps health checks out of the traces: orchestrators call them every few seconds.
func tracing(t *telemetry.Telemetry) []otelgrpc.Option {
	return []otelgrpc.Option{
		otelgrpc.WithTracerProvider(t.TracerProvider()),
		otelgrpc.WithPropagators(telemetry.Propagator()),
		otelgrpc.WithMeterProvider(noMeter),
		otelgrpc.WithFilter(func(info *stats.RPCTagInfo) bool {
			return info.FullMethodName != healthv1.Health_Check_FullMethodName &&
				info.FullMethodName != healthv1.Health_Watch_FullMethodName
		}),
	}
}
