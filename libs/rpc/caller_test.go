package rpc

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/tidegate-mesh/tidegate/libs/pki"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
	enforcev1 "github.com/tidegate-mesh/tidegate/proto/enforce/v1"
	queryv1 "github.com/tidegate-mesh/tidegate/proto/query/v1"
)

// TestCallersComplete: every method of the contracts is in the table, and the table holds nothing else.
func TestCallersComplete(t *testing.T) {
	methods := map[string]bool{}
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			if !strings.HasPrefix(string(s.FullName()), "tidegate.") && s.FullName() != "grpc.health.v1.Health" {
				continue
			}
			for j := range s.Methods().Len() {
				methods["/"+string(s.FullName())+"/"+string(s.Methods().Get(j).Name())] = true
			}
		}
		return true
	})
	if len(methods) < 15 {
		t.Fatalf("only %d methods are registered", len(methods))
	}
	for m := range methods {
		if len(callers[m]) == 0 {
			t.Errorf("nobody may call %s: say who may", m)
		}
	}
	for m := range callers {
		if !methods[m] {
			t.Errorf("%s is in the table but no service has it", m)
		}
	}
}

// meshServer serves the contracts' services, unimplemented behind the check, as persist's certificate.
func meshServer(t *testing.T, dir string) (tel *telemetry.Telemetry, addr string) {
	t.Helper()
	if _, err := pki.Ensure(dir, nil, false); err != nil {
		t.Fatal(err)
	}
	tel = telemetry.Discard("persist")
	srv, state, err := NewServer(tel, identityFiles(t, dir, pki.Persist))
	if err != nil {
		t.Fatal(err)
	}
	classifyv1.RegisterClassifyServiceServer(srv, classifyv1.UnimplementedClassifyServiceServer{})
	enforcev1.RegisterEnforceServiceServer(srv, enforcev1.UnimplementedEnforceServiceServer{})
	queryv1.RegisterQueryServiceServer(srv, queryv1.UnimplementedQueryServiceServer{})
	srv.RegisterService(&echoDesc, &echo{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- ServeListener(ctx, srv, state, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return tel, ln.Addr().String()
}

func identityFiles(t *testing.T, dir, name string) TLS {
	t.Helper()
	files, err := TLS{Dir: dir}.Resolve(name)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestCallers(t *testing.T) {
	dir := t.TempDir()
	tel, addr := meshServer(t, dir)
	stream := func(ctx context.Context, c *grpc.ClientConn) error {
		s, err := classifyv1.NewClassifyServiceClient(c).Stream(ctx)
		if err == nil {
			_, err = s.Recv()
		}
		return err
	}
	panicCall := func(ctx context.Context, c *grpc.ClientConn) error {
		_, err := enforcev1.NewEnforceServiceClient(c).Panic(ctx, &enforcev1.PanicRequest{})
		return err
	}
	flows := func(ctx context.Context, c *grpc.ClientConn) error {
		_, err := queryv1.NewQueryServiceClient(c).ListFlows(ctx, &queryv1.ListFlowsRequest{})
		return err
	}
	statusCall := func(ctx context.Context, c *grpc.ClientConn) error {
		_, err := queryv1.NewQueryServiceClient(c).Status(ctx, &queryv1.StatusRequest{})
		return err
	}
	healthCall := func(ctx context.Context, c *grpc.ClientConn) error {
		_, err := healthv1.NewHealthClient(c).Check(ctx, &healthv1.HealthCheckRequest{})
		return err
	}
	unlisted := func(ctx context.Context, c *grpc.ClientConn) error {
		_, err := call(ctx, c, "good")
		return err
	}
	refused := 0
	for _, c := range []struct {
		identity, name string
		call           func(context.Context, *grpc.ClientConn) error
		want           codes.Code // Unimplemented: let through
	}{
		{pki.Ingest, "Stream", stream, codes.Unimplemented},
		{pki.Persist, "Stream", stream, codes.PermissionDenied},
		{pki.Tidegate, "Stream", stream, codes.PermissionDenied},
		{pki.Gateway, "Panic", panicCall, codes.Unimplemented},
		{pki.Tidegate, "Panic", panicCall, codes.Unimplemented},
		{pki.Classify, "Panic", panicCall, codes.PermissionDenied},
		{pki.Gateway, "ListFlows", flows, codes.Unimplemented},
		{pki.Ingest, "ListFlows", flows, codes.PermissionDenied},
		{pki.NATS, "Status", statusCall, codes.Unimplemented},
		{pki.NATS, "Check", healthCall, codes.OK},
		{pki.Tidegate, "Unary", unlisted, codes.PermissionDenied},
	} {
		conn, err := Dial(telemetry.Discard(c.identity), addr, identityFiles(t, dir, c.identity).Expect(pki.Persist))
		if err != nil {
			t.Fatal(err)
		}
		err = c.call(within(t), conn)
		_ = conn.Close()
		if got := status.Code(err); got != c.want {
			t.Errorf("%s calls %s: %v, want %v", c.identity, c.name, err, c.want)
		}
		if c.want == codes.PermissionDenied {
			refused++
			if text := status.Convert(err).Message(); !strings.Contains(text, c.identity) || !strings.Contains(text, c.name) {
				t.Errorf("%s calls %s: the refusal %q does not name both", c.identity, c.name, text)
			}
		}
	}
	if got := counted(t, tel.Registry, denied); got != float64(refused) {
		t.Errorf("%v refusals counted, want %d", got, refused)
	}
}

func TestExpectedServer(t *testing.T) {
	dir := t.TempDir()
	_, addr := meshServer(t, dir)
	conn, err := Dial(telemetry.Discard("ingest"), addr, identityFiles(t, dir, pki.Ingest).Expect(pki.Classify))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = healthv1.NewHealthClient(conn).Check(within(t), &healthv1.HealthCheckRequest{})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "expected classify") {
		t.Errorf("persist's server passed for classify's: %v", err)
	}
}

func TestResolve(t *testing.T) {
	dir := t.TempDir()
	if _, err := (TLS{Dir: dir}).Resolve(pki.Persist); err == nil || !strings.Contains(err.Error(), "tidegate certs --dir "+dir) || !strings.Contains(err.Error(), "--insecure") {
		t.Errorf("an empty folder: %v", err)
	}
	if _, err := pki.Ensure(dir, nil, false); err != nil {
		t.Fatal(err)
	}
	got, err := TLS{Dir: dir}.Resolve(pki.Persist)
	if want := (TLS{CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "persist.pem"), Key: filepath.Join(dir, "persist-key.pem")}); err != nil || got != want {
		t.Errorf("resolved to %+v, %v", got, err)
	}
	other := filepath.Join(t.TempDir(), "other.pem")
	if ca, err := os.ReadFile(filepath.Join(dir, "ca.pem")); err != nil {
		t.Fatal(err)
	} else if err := os.WriteFile(other, ca, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err = (TLS{Dir: dir, CA: other}).Resolve(pki.Persist); err != nil || got.CA != other || got.Cert != filepath.Join(dir, "persist.pem") {
		t.Errorf("with another authority: %+v, %v", got, err)
	}
	if got, err = (TLS{Dir: dir, Insecure: true}).Resolve(pki.Persist); err != nil || got != (TLS{Insecure: true}) {
		t.Errorf("insecure: %+v, %v", got, err)
	}
	ingest := identityFiles(t, dir, pki.Ingest)
	if _, err = ingest.Resolve(pki.Persist); err == nil || !strings.Contains(err.Error(), `ingest.pem is of "ingest" and this is persist`) {
		t.Errorf("the files of another service: %v", err)
	}
	for _, bad := range []TLS{{Insecure: true, CA: other}, {Dir: dir, Cert: other}, {Dir: dir, Cert: ingest.Cert, Key: got.Key}} {
		if _, err := bad.Resolve(pki.Persist); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
	if _, _, err := NewServer(telemetry.Discard("persist"), TLS{Dir: dir}); err == nil {
		t.Error("a folder that was not resolved became plain text")
	}
}
