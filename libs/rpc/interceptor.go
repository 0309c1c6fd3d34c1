package rpc

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/metric/noop"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tidegate-mesh/tidegate/libs/telemetry"
)

// noMeter: the metrics below are the ones we publish; OpenTelemetry's would repeat them.
var noMeter = noop.NewMeterProvider()

// metrics counts what servers handle. The labels are bounded: gRPC answers unknown methods before any interceptor,
// so method is always one of the registered services', and codes are the 17 of gRPC.
type metrics struct {
	service  string
	requests *prometheus.HistogramVec
	streams  *prometheus.GaugeVec
}

// newMetrics registers the collectors, or takes those that an earlier server of the process has registered.
func newMetrics(t *telemetry.Telemetry) (*metrics, error) {
	m := &metrics{service: t.Service()}
	requests := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "tidegate_grpc_requests_seconds",
		Help:    "Time to serve a gRPC call, of a stream from its begin to its end.",
		Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60},
	}, []string{"service", "method", "code"})
	streams := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "tidegate_grpc_streams_active",
		Help: "Streams being served.",
	}, []string{"service", "method"})
	var err error
	if m.requests, err = register(t.Registry, requests); err != nil {
		return nil, err
	}
	if m.streams, err = register(t.Registry, streams); err != nil {
		return nil, err
	}
	return m, nil
}

func register[C prometheus.Collector](registry prometheus.Registerer, c C) (C, error) {
	err := registry.Register(c)
	var known prometheus.AlreadyRegisteredError
	if errors.As(err, &known) {
		if earlier, ok := known.ExistingCollector.(C); ok {
			return earlier, nil
		}
	}
	if err != nil {
		return c, fmt.Errorf("register gRPC metrics: %w", err)
	}
	return c, nil
}

func (m *metrics) observe(method string, begin time.Time, err error) {
	m.requests.WithLabelValues(m.service, method, code(err).String()).Observe(time.Since(begin).Seconds())
}

// code reads the status of a handler's error the way gRPC sends it: context errors have codes of their own.
func code(err error) codes.Code {
	if s, ok := status.FromError(err); ok {
		return s.Code()
	}
	return status.FromContextError(err).Code()
}

func (m *metrics) unaryServer(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	begin := time.Now()
	resp, err := next(ctx, req)
	m.observe(info.FullMethod, begin, err)
	return resp, err
}

func (m *metrics) streamServer(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	begin := time.Now()
	active := m.streams.WithLabelValues(m.service, info.FullMethod)
	active.Inc()
	defer active.Dec()
	err := next(srv, stream)
	m.observe(info.FullMethod, begin, err)
	return err
}

// recoverUnary turns a handler's panic into code Internal: one bad request must not end the sensor. The client
// learns nothing of the cause; log and counter do.
func recoverUnary(t *telemetry.Telemetry) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
		defer func() {
			if cause := recover(); cause != nil {
				resp, err = nil, panicked(ctx, t, info.FullMethod, cause)
			}
		}()
		return next(ctx, req)
	}
}

func recoverStream(t *telemetry.Telemetry) grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
		defer func() {
			if cause := recover(); cause != nil {
				err = panicked(stream.Context(), t, info.FullMethod, cause)
			}
		}()
		return next(srv, stream)
	}
}

func panicked(ctx context.Context, t *telemetry.Telemetry, method string, cause any) error {
	t.CountError("grpc_panic")
	t.Log.ErrorContext(ctx, "gRPC handler panicked", "method", method, "panic", fmt.Sprint(cause), "stack", string(debug.Stack()))
	return status.Error(codes.Internal, "internal error, see the service's log")
}
