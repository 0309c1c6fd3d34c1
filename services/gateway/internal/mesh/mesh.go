// Package mesh is the gateway's side of the gRPC services that it asks.
package mesh

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tidegate-mesh/tidegate/libs/rpc"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
)

// Config names the instances of each service, host:port or a gRPC target.
type Config struct {
	Ingest   []string `name:"ingest" help:"gRPC addresses of the ingest instances" default:"127.0.0.1:50051" env:"TIDEGATE_INGEST_ADDR"`
	Classify []string `name:"classify" help:"gRPC addresses of the classify instances" default:"127.0.0.1:50051" env:"TIDEGATE_CLASSIFY_ADDR"`
	Enforce  []string `name:"enforce" help:"gRPC addresses of the enforce nodes" default:"127.0.0.1:50051" env:"TIDEGATE_ENFORCE_ADDR"`
	Persist  []string `name:"persist" help:"gRPC addresses of the persist instances" default:"127.0.0.1:50051" env:"TIDEGATE_PERSIST_ADDR"`
}

// How long a call may take.
const (
	CallTime   = 5 * time.Second
	StatusTime = 2 * time.Second
)

// Peer is one instance of a service.
type Peer struct {
	Service string
	Address string
	Conn    grpc.ClientConnInterface
}

// inProcess is the address of a service that runs in the gateway's own process.
const inProcess = "in-memory"

// Who names a peer in a sentence: persist at 127.0.0.1:50051.
func (p Peer) Who() string {
	if p.Address == inProcess {
		return p.Service
	}
	return p.Service + " at " + p.Address
}

// Mesh holds a connection to each instance. It may be used by any number of goroutines.
type Mesh struct {
	Ingest, Classify, Enforce, Persist []Peer

	conns []*grpc.ClientConn
}

// Dial prepares the connections; they are established in the background and come back by themselves. With certificates a
// server must be who it is asked as. Close ends them.
func Dial(t *telemetry.Telemetry, cfg Config, files rpc.TLS) (*Mesh, error) {
	m := &Mesh{}
	for _, s := range []struct {
		service   string
		addresses []string
		peers     *[]Peer
	}{{"ingest", cfg.Ingest, &m.Ingest}, {"classify", cfg.Classify, &m.Classify}, {"enforce", cfg.Enforce, &m.Enforce}, {"persist", cfg.Persist, &m.Persist}} {
		for _, a := range s.addresses {
			c, err := rpc.Dial(t, a, files.Expect(s.service))
			if err != nil {
				return nil, errors.Join(fmt.Errorf("gRPC to %s: %w", s.service, err), m.Close())
			}
			m.conns = append(m.conns, c)
			*s.peers = append(*s.peers, Peer{s.service, a, c})
		}
	}
	return m, nil
}

// Over reaches every service over one connection, which stays the caller's: the all-in-one.
func Over(conn grpc.ClientConnInterface) *Mesh {
	one := func(service string) []Peer { return []Peer{{service, inProcess, conn}} }
	return &Mesh{Ingest: one("ingest"), Classify: one("classify"), Enforce: one("enforce"), Persist: one("persist")}
}

// Close ends the connections that Dial made.
func (m *Mesh) Close() error {
	var err error
	for _, c := range m.conns {
		err = errors.Join(err, c.Close())
	}
	return err
}

// Error is a peer's refusal or silence.
type Error struct {
	Peer Peer
	Err  error // a gRPC status
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s: %v", e.Peer.Who(), e.Err)
}

// Unwrap gives the gRPC status.
func (e *Error) Unwrap() error { return e.Err }

// Answer is what one peer said.
type Answer[T any] struct {
	Peer  Peer
	Value T
	Err   *Error // nil when it answered
}

// All asks every peer at once and gives the answers in the order of peers, each within limit.
func All[T any](ctx context.Context, peers []Peer, limit time.Duration, call func(context.Context, grpc.ClientConnInterface) (T, error)) []Answer[T] {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	out := make([]Answer[T], len(peers))
	var wg sync.WaitGroup
	for i, p := range peers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			v, err := call(ctx, p.Conn)
			out[i] = Answer[T]{Peer: p, Value: v}
			if err != nil {
				out[i].Err = &Error{p, err}
			}
		}()
	}
	wg.Wait()
	return out
}

// First asks one peer after the other until one answers; only a peer that cannot be reached is passed over, so that a
// change is never tried twice after it may have been made. The error is an *Error.
func First[T any](ctx context.Context, peers []Peer, limit time.Duration, call func(context.Context, grpc.ClientConnInterface) (T, error)) (v T, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err = errors.New("no instance is configured")
	for _, p := range peers {
		var failed error
		if v, failed = call(ctx, p.Conn); failed == nil {
			return v, nil
		}
		err = &Error{p, failed}
		if status.Code(failed) != codes.Unavailable {
			break
		}
	}
	return v, err
}
