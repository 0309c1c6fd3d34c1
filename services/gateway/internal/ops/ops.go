package ops

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/mesh"
)

// errNoPeer: the configuration names no instance of a service.
var errNoPeer = errors.New("no instance of the service is configured")

// The services' names, as mesh.Peer has them.
const (
	serviceIngest  = "ingest"
	serviceEnforce = "enforce"
	servicePersist = "persist"
)

// Bus is the part of the bus that operations need.
type Bus interface {
	PublishAudit(ctx context.Context, a *eventv1.Audit) error
	GetRequest(ctx context.Context, key string) (e bus.RequestEntry, ok bool, err error)
	PutRequest(ctx context.Context, key string, value []byte, revision uint64) (uint64, error)
	Lists(ctx context.Context) (map[string]bus.ListEntry, error)
	UpdateList(ctx context.Context, l *policyv1.AddressList, revision uint64) (uint64, error)
	DeleteList(ctx context.Context, name string, revision uint64) error
	PutListEntries(ctx context.Context, list string, text []byte) (object string, err error)
	DeleteListEntries(ctx context.Context, object string) error
	Nodes(ctx context.Context) ([]*eventv1.NodeHeartbeat, error)
}

// Deps is what operations need.
type Deps struct {
	Telemetry *telemetry.Telemetry
	Mesh      *mesh.Mesh
	Bus       Bus
	Reader    Reader // of lists with a URL; nil: they are not read
}

const (
	// keep is how long an answer about the state now serves all callers.
	keep = 250 * time.Millisecond
	// askTime bounds a question about the state now. It is below the two seconds of the live page's rounds, so that a
	// service that hangs is named as missing in the round.
	askTime = 1500 * time.Millisecond
)

// Operations answers and changes. All methods may be called concurrently. Every error is an *api.Problem whose text may
// be shown to users. What the reads return may be shared between callers: do not change it.
type Operations struct {
	t    *telemetry.Telemetry
	mesh *mesh.Mesh
	bus  Bus
	now  func() time.Time
	logs *rate.Limiter // of failures that a shared read may meet four times a second

	names   sync.Map      // of enforce nodes, by address
	askFrom atomic.Uint64 // the persist instance that is asked first, modulo their number

	feeds feeds

	state  cell[*overview]
	rules  cell[rulebook]
	active cell[result[[]api.Attack]]
	groups cell[result[[]api.Group]]
	nodes  cell[result[[]api.Node]]
}

// New checks that nothing is missing.
func New(d Deps) (*Operations, error) {
	if d.Telemetry == nil || d.Mesh == nil || d.Bus == nil {
		return nil, errors.New("operations need telemetry, the mesh and the bus")
	}
	return &Operations{t: d.Telemetry, mesh: d.Mesh, bus: d.Bus, now: time.Now, logs: rate.NewLimiter(1, 10), feeds: newFeeds(d.Reader)}, nil
}

// result is an answer that is shared also when it is an error.
type result[T any] struct {
	value   T
	problem *api.Problem
}

func (r result[T]) get() (T, error) { return r.value, own(r.problem) }

// own is the caller's copy of a problem that others see too, nil for nil.
func own(p *api.Problem) error {
	if p == nil {
		return nil
	}
	c := *p
	return &c
}
