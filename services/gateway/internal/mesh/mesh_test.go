package mesh

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
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
