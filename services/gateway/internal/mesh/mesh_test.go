package mesh

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/tidegate-mesh/tidegate/libs/pki"
	"github.com/tidegate-mesh/tidegate/libs/rpc"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
)

func peers(addresses ...string) []Peer {
	out := make([]Peer, 0, len(addresses))
	for _, a := range addresses {
		out = append(out, Peer{"persist", a, (*grpc.ClientConn)(nil)})
	}
	return out
}

func TestFirstPassesOverThoseThatAreAway(t *testing.T) {
	for name, c := range map[string]struct {
		codes []codes.Code // of each call
		calls int
		want  codes.Code
	}{
		"first answers":      {[]codes.Code{codes.OK}, 1, codes.OK},
		"second answers":     {[]codes.Code{codes.Unavailable, codes.OK}, 2, codes.OK},
		"a refusal is final": {[]codes.Code{codes.FailedPrecondition, codes.OK}, 1, codes.FailedPrecondition},
		"a timeout is final": {[]codes.Code{codes.DeadlineExceeded, codes.OK}, 1, codes.DeadlineExceeded},
		"both away":          {[]codes.Code{codes.Unavailable, codes.Unavailable}, 2, codes.Unavailable},
	} {
		calls := 0
		_, err := First(context.Background(), peers("a", "b"), time.Second, func(context.Context, grpc.ClientConnInterface) (int, error) {
			calls++
			return 1, status.Error(c.codes[calls-1], "x")
		})
		if calls != c.calls || status.Code(errors.Unwrap(err)) != c.want && c.want != codes.OK || (err == nil) != (c.want == codes.OK) {
			t.Errorf("%s: %d calls, %v", name, calls, err)
		}
	}
}

func TestAllBoundsEachPeer(t *testing.T) {
	out := All(context.Background(), peers("a", "b"), 20*time.Millisecond, func(ctx context.Context, _ grpc.ClientConnInterface) (int, error) {
		<-ctx.Done()
		return 0, status.FromContextError(ctx.Err()).Err()
	})
	for i, a := range out {
		if a.Peer.Address != []string{"a", "b"}[i] || a.Err == nil || status.Code(a.Err.Err) != codes.DeadlineExceeded {
			t.Errorf("answer %d: %+v", i, a)
		}
	}
}

// TestPeersAreWhoTheyShouldBe: who has another service's certificate cannot answer in the place of an enforce node.
func TestPeersAreWhoTheyShouldBe(t *testing.T) {
	dir := t.TempDir()
	if _, err := pki.Ensure(dir, nil, false); err != nil {
		t.Fatal(err)
	}
	tel := telemetry.Discard("gateway")
	files := func(identity string) rpc.TLS {
		f, err := rpc.TLS{Dir: dir}.Resolve(identity)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	for identity, want := range map[string]codes.Code{pki.Ingest: codes.Unavailable, pki.Enforce: codes.OK, pki.Tidegate: codes.OK} {
		srv, _, err := rpc.NewServer(telemetry.Discard(identity), files(identity))
		if err != nil {
			t.Fatal(err)
		}
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = srv.Serve(ln) }()
		m, err := Dial(tel, Config{Enforce: []string{ln.Addr().String()}}, files(pki.Gateway))
		if err != nil {
			t.Fatal(err)
		}
		_, err = First(t.Context(), m.Enforce, CallTime, func(ctx context.Context, c grpc.ClientConnInterface) (*healthv1.HealthCheckResponse, error) {
			return healthv1.NewHealthClient(c).Check(ctx, &healthv1.HealthCheckRequest{})
		})
		if got := status.Code(errors.Unwrap(err)); err != nil && got != want || (err == nil) != (want == codes.OK) {
			t.Errorf("a server with the certificate of %s: %v, want %s", identity, err, want)
		}
		_ = m.Close()
		srv.Stop()
	}
}
