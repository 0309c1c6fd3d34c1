package rpc

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	enforcev1 "github.com/tidegate-mesh/tidegate/proto/enforce/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo is a service of the generated kind whose handlers the tests choose.
type echo struct {
	unary  func(ctx context.Context, in *healthv1.HealthCheckRequest) (*healthv1.HealthCheckResponse, error)
	stream func(grpc.ServerStream) error
}

const (
	unaryMethod  = "/tidegate.test.Echo/Unary"
	streamMethod = "/tidegate.test.Echo/Stream"
)

var echoDesc = grpc.ServiceDesc{
	ServiceName: "tidegate.test.Echo",
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{
		MethodName: "Unary",
		Handler: func(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
			in := new(healthv1.HealthCheckRequest)
			if err := decode(in); err != nil {
				return nil, err
			}
			e, _ := srv.(*echo)
			return intercept(ctx, in, &grpc.UnaryServerInfo{Server: srv, FullMethod: unaryMethod},
				func(ctx context.Context, _ any) (any, error) { return e.unary(ctx, in) })
		},
	}},
	Streams: []grpc.StreamDesc{{
		StreamName: "Stream", ServerStreams: true, ClientStreams: true,
		Handler: func(srv any, stream grpc.ServerStream) error {
			e, _ := srv.(*echo)
			return e.stream(stream)
		},
	}},
}

// serveInMemory runs a server with e until the test ends and gives a connection.
func serveInMemory(t *testing.T, tel *telemetry.Telemetry, e *echo) *grpc.ClientConn {
	t.Helper()
	srv, _, err := NewServer(tel, TLS{})
	if err != nil {
		t.Fatal(err)
	}
	srv.RegisterService(&echoDesc, e)
	dial, serve := InMemory(srv)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx) }()
	conn, err := dial(tel)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return conn
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func call(ctx context.Context, conn *grpc.ClientConn, text string, options ...grpc.CallOption) (*healthv1.HealthCheckResponse, error) {
	out := new(healthv1.HealthCheckResponse)
	err := conn.Invoke(ctx, unaryMethod, &healthv1.HealthCheckRequest{Service: text}, out, options...)
	return out, err
}

// observed is the number of calls in tidegate_grpc_requests_seconds with these labels.
func observed(t *testing.T, registry *prometheus.Registry, want map[string]string) uint64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != "tidegate_grpc_requests_seconds" {
			continue
		}
		for _, m := range family.Metric {
			if hasLabels(m, want) {
				return m.GetHistogram().GetSampleCount()
			}
		}
	}
	return 0
}

func hasLabels(m *dto.Metric, want map[string]string) bool {
	if len(m.Label) != len(want) {
		return false
	}
	for _, label := range m.Label {
		if want[label.GetName()] != label.GetValue() {
			return false
		}
	}
	return true
}

func counted(t *testing.T, registry *prometheus.Registry, op string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != "tidegate_errors_total" {
			continue
		}
		for _, m := range family.Metric {
			for _, label := range m.Label {
				if label.GetName() == "op" && label.GetValue() == op {
					return m.GetCounter().GetValue()
				}
			}
		}
	}
	return 0
}

func TestUnary(t *testing.T) {
	tel := telemetry.Discard("enforce")
	conn := serveInMemory(t, tel, &echo{unary: func(ctx context.Context, in *healthv1.HealthCheckRequest) (*healthv1.HealthCheckResponse, error) {
		switch in.Service {
		case "panic":
			panic("boom")
		case "refuse":
			return nil, status.Error(codes.FailedPrecondition, "no")
		case "slow":
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return &healthv1.HealthCheckResponse{Status: healthv1.HealthCheckResponse_SERVING}, nil
	}})
	ctx := within(t)
	for _, c := range []struct {
		text string
		want codes.Code
	}{{"good", codes.OK}, {"refuse", codes.FailedPrecondition}, {"panic", codes.Internal}, {"good", codes.OK}} {
		if _, err := call(ctx, conn, c.text); status.Code(err) != c.want {
			t.Errorf("%s: %v, want %s", c.text, err, c.want)
		} else if c.text == "panic" && strings.Contains(err.Error(), "boom") {
			t.Errorf("the cause of a panic reached the client: %v", err)
		}
	}
	for code, want := range map[string]uint64{"OK": 2, "FailedPrecondition": 1, "Internal": 1} {
		got := observed(t, tel.Registry, map[string]string{"service": "enforce", "method": unaryMethod, "code": code})
		if got != want {
			t.Errorf("%d calls with code %s, want %d", got, code, want)
		}
	}
	if got := counted(t, tel.Registry, "grpc_panic"); got != 1 {
		t.Errorf("%v panics counted, want 1", got)
	}

	// Unknown methods must not become labels.
	err := conn.Invoke(ctx, "/tidegate.test.Echo/Made-Up", &healthv1.HealthCheckRequest{}, &healthv1.HealthCheckResponse{})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("unknown method: %v", err)
	}
	if got := observed(t, tel.Registry, map[string]string{"service": "enforce", "method": "/tidegate.test.Echo/Made-Up", "code": "Unimplemented"}); got != 0 {
		t.Error("an unknown method became a label value")
	}
}

func TestMessageLimit(t *testing.T) {
	conn := serveInMemory(t, telemetry.Discard("x"), &echo{unary: func(context.Context, *healthv1.HealthCheckRequest) (*healthv1.HealthCheckResponse, error) {
		return &healthv1.HealthCheckResponse{}, nil
	}})
	ctx := within(t)
	if _, err := call(ctx, conn, strings.Repeat("a", MaxMessage-64)); err != nil {
		t.Errorf("a message below the limit: %v", err)
	}
	if _, err := call(ctx, conn, strings.Repeat("a", MaxMessage+1)); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a message over the limit: %v", err)
	}
}

// An answer above the limit reaches who asks for it.
func TestListing(t *testing.T) {
	conn := serveInMemory(t, telemetry.Discard("x"), &echo{unary: func(context.Context, *healthv1.HealthCheckRequest) (*healthv1.HealthCheckResponse, error) {
		m := &healthv1.HealthCheckResponse{}
		m.ProtoReflect().SetUnknown(protowire.AppendBytes(protowire.AppendTag(nil, 99, protowire.BytesType), make([]byte, 2*MaxMessage)))
		return m, nil
	}})
	ctx := within(t)
	if _, err := call(ctx, conn, "a"); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("an answer over the limit: %v", err)
	}
	if _, err := call(ctx, conn, "a", AcceptListing()); err != nil {
		t.Errorf("an answer over the limit that is accepted: %v", err)
	}
}

func TestStream(t *testing.T) {
	tel := telemetry.Discard("classify")
	conn := serveInMemory(t, tel, &echo{stream: func(stream grpc.ServerStream) error {
		for {
			in := new(healthv1.HealthCheckRequest)
			if err := stream.RecvMsg(in); err != nil {
				if errors.Is(err, io.EOF) {
					return nil
				}
				return err
			}
			if in.Service == "panic" {
				panic("boom")
			}
			if err := stream.SendMsg(&healthv1.HealthCheckResponse{}); err != nil {
				return err
			}
		}
	}})
	for text, want := range map[string]codes.Code{"good": codes.OK, "panic": codes.Internal} {
		stream, err := conn.NewStream(within(t), &echoDesc.Streams[0], streamMethod)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.SendMsg(&healthv1.HealthCheckRequest{Service: text}); err != nil {
			t.Fatal(err)
		}
		err = stream.RecvMsg(new(healthv1.HealthCheckResponse))
		if want == codes.OK && err == nil {
			if err = stream.CloseSend(); err == nil {
				if err = stream.RecvMsg(new(healthv1.HealthCheckResponse)); errors.Is(err, io.EOF) {
					err = nil
				}
			}
		}
		if status.Code(err) != want {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
		deadline := time.Now().Add(3 * time.Second) // the server observes after the client has the status
		labels := map[string]string{"service": "classify", "method": streamMethod, "code": want.String()}
		for observed(t, tel.Registry, labels) != 1 {
			if time.Now().After(deadline) {
				t.Fatalf("the stream with code %s was not observed", want)
			}
			time.Sleep(time.Millisecond)
		}
	}
}

func TestTraceCrosses(t *testing.T) {
	tel := telemetry.Discard("ingest")
	var seen trace.SpanContext
	conn := serveInMemory(t, tel, &echo{unary: func(ctx context.Context, _ *healthv1.HealthCheckRequest) (*healthv1.HealthCheckResponse, error) {
		seen = trace.SpanContextFromContext(ctx)
		return &healthv1.HealthCheckResponse{}, nil
	}})
	ctx, span := tel.Tracer.Start(telemetry.AlwaysSample(within(t)), "verdict")
	defer span.End()
	if _, err := call(ctx, conn, ""); err != nil {
		t.Fatal(err)
	}
	if seen.TraceID().String() != telemetry.TraceID(ctx) || !seen.IsSampled() {
		t.Errorf("the handler sees trace %s (sampled %v), want %s", seen.TraceID(), seen.IsSampled(), telemetry.TraceID(ctx))
	}
}

func TestServersShareARegistry(t *testing.T) {
	tel := telemetry.Discard("tidegate")
	for _, service := range []string{"ingest", "classify"} {
		srv, _, err := NewServer(tel.For(service), TLS{})
		if err != nil {
			t.Fatalf("%s: %v", service, err)
		}
		srv.Stop()
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func TestServeDrains(t *testing.T) {
	tel := telemetry.Discard("persist")
	srv, state, err := NewServer(tel, TLS{})
	if err != nil {
		t.Fatal(err)
	}
	begun := make(chan struct{})
	srv.RegisterService(&echoDesc, &echo{unary: func(context.Context, *healthv1.HealthCheckRequest) (*healthv1.HealthCheckResponse, error) {
		close(begun)
		time.Sleep(200 * time.Millisecond)
		return &healthv1.HealthCheckResponse{Status: healthv1.HealthCheckResponse_SERVING}, nil
	}})
	addr := freePort(t)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, srv, state, addr) }()
	conn, err := Dial(tel, addr, TLS{})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	reply, err := healthv1.NewHealthClient(conn).Check(within(t), &healthv1.HealthCheckRequest{}, grpc.WaitForReady(true))
	if err != nil || reply.Status != healthv1.HealthCheckResponse_SERVING {
		t.Fatalf("health: %v, %v", reply, err)
	}
	other, otherState, err := NewServer(tel, TLS{})
	if err != nil {
		t.Fatal(err)
	}
	if err := Serve(ctx, other, otherState, addr); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), addr) {
		t.Errorf("second server on the port: %v", err)
	}

	result := make(chan error, 1)
	go func() {
		_, err := call(within(t), conn, "")
		result <- err
	}()
	<-begun
	cancel()
	if err := <-result; err != nil {
		t.Errorf("a running call was cut: %v", err)
	}
	if err := <-ended; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// The generated services register on what NewServer returns.
func TestRegistersGeneratedServices(t *testing.T) {
	srv, _, err := NewServer(telemetry.Discard("x"), TLS{})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Stop()
	enforcev1.RegisterEnforceServiceServer(srv, enforcev1.UnimplementedEnforceServiceServer{})
	if len(srv.GetServiceInfo()) != 2 {
		t.Errorf("services %v", srv.GetServiceInfo())
	}
}
