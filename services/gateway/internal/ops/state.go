package ops

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/ledger"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
	enforcev1 "github.com/tidegate-mesh/tidegate/proto/enforce/v1"
	ingestv1 "github.com/tidegate-mesh/tidegate/proto/ingest/v1"
	queryv1 "github.com/tidegate-mesh/tidegate/proto/query/v1"
	statusv1 "github.com/tidegate-mesh/tidegate/proto/status/v1"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/mesh"
)

// overview is what every service says about itself now.
type overview struct {
	status   api.Status
	sensors  []api.Sensor
	enforce  int         // nodes that answered
	silent   *mesh.Error // of the first enforce node that did not
	services []*statusv1.ServiceStatus
}

// look gives the overview; when ctx ends before it is there, everybody is missing in it.
func (o *Operations) look(ctx context.Context) *overview {
	v, err := o.state.get(ctx, o.overview)
	if err == nil {
		return v
	}
	v = newOverview()
	for _, peers := range [][]mesh.Peer{o.mesh.Ingest, o.mesh.Classify, o.mesh.Enforce, o.mesh.Persist} {
		for _, p := range peers {
			v.miss(&mesh.Error{Peer: p, Err: status.FromContextError(err).Err()})
		}
	}
	return v
}

func newOverview() *overview {
	return &overview{status: api.Status{
		Services: []api.Service{}, Missing: []api.Missing{}, Interfaces: []api.Interface{}, Streams: []api.ClassifyStream{}, Ledger: api.Ledger{Stages: []api.Stage{}},
	}, sensors: []api.Sensor{}}
}

// overview asks every instance of every service at once.
func (o *Operations) overview(ctx context.Context) *overview {
	var (
		wg       sync.WaitGroup
		ingest   []mesh.Answer[*ingestv1.StatusResponse]
		classify []mesh.Answer[*classifyv1.StatusResponse]
		enforce  []mesh.Answer[*enforcev1.StatusResponse]
		persist  []mesh.Answer[*queryv1.StatusResponse]
	)
	for _, ask := range []func(){
		func() {
			ingest = mesh.All(ctx, o.mesh.Ingest, askTime, func(ctx context.Context, c grpc.ClientConnInterface) (*ingestv1.StatusResponse, error) {
				return ingestv1.NewIngestServiceClient(c).Status(ctx, &ingestv1.StatusRequest{})
			})
		},
		func() {
			classify = mesh.All(ctx, o.mesh.Classify, askTime, func(ctx context.Context, c grpc.ClientConnInterface) (*classifyv1.StatusResponse, error) {
				return classifyv1.NewClassifyServiceClient(c).Status(ctx, &classifyv1.StatusRequest{})
			})
		},
		func() { enforce = mesh.All(ctx, o.mesh.Enforce, askTime, enforceStatus) },
		func() {
			persist = mesh.All(ctx, o.mesh.Persist, askTime, func(ctx context.Context, c grpc.ClientConnInterface) (*queryv1.StatusResponse, error) {
				return queryv1.NewQueryServiceClient(c).Status(ctx, &queryv1.StatusRequest{})
			})
		},
	} {
		wg.Add(1)
		go func() { defer wg.Done(); ask() }()
	}
	wg.Wait()
	v := newOverview()
	for _, a := range ingest {
		if count(v, a) {
			v.sensor(a.Value)
		}
	}
	for _, a := range classify {
		count(v, a)
	}
	v.status.Enforcing = true
	for _, a := range enforce {
		if count(v, a) {
			o.names.Store(a.Peer.Address, a.Value.GetStatus().GetInstance())
			v.enforcer(a.Value)
		}
	}
	v.status.Enforcing = v.status.Enforcing && v.enforce > 0
	for _, a := range persist { // instances share a database
		if count(v, a) && v.status.Database == "" {
			v.status.Database, v.status.Rows = a.Value.GetDatabase(), a.Value.GetRows()
		}
	}
	v.status.Ledger = v.ledger()
	return v
}

func enforceStatus(ctx context.Context, c grpc.ClientConnInterface) (*enforcev1.StatusResponse, error) {
	return enforcev1.NewEnforceServiceClient(c).Status(ctx, &enforcev1.StatusRequest{})
}

// knownNode is the name of an enforce node; its address while it has not told.
func (o *Operations) knownNode(p mesh.Peer) string {
	if name, ok := o.names.Load(p.Address); ok {
		return name.(string) //nolint:forcetypeassert // only strings are stored
	}
	return p.Address
}

// node asks an enforce node for its name, once; its address when it does not tell.
func (o *Operations) node(ctx context.Context, p mesh.Peer) string {
	if name := o.knownNode(p); name != p.Address {
		return name
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	s, err := enforceStatus(ctx, p.Conn)
	name := s.GetStatus().GetInstance()
	if err != nil || name == "" {
		return p.Address
	}
	o.names.Store(p.Address, name)
	return name
}

// count adds an instance to those that answered or to those that did not.
func count[T interface {
	GetStatus() *statusv1.ServiceStatus
}](v *overview, a mesh.Answer[T]) bool {
	if a.Err != nil {
		v.miss(a.Err)
		return false
	}
	s := a.Value.GetStatus()
	v.services = append(v.services, s)
	v.status.Services = append(v.status.Services, newService(s))
	return true
}

func (v *overview) miss(err *mesh.Error) {
	if err.Peer.Service == serviceEnforce && v.silent == nil {
		v.silent = err
	}
	v.status.Missing = append(v.status.Missing, api.Missing{
		Service: err.Peer.Service, Address: err.Peer.Address, Problem: translate(err).Detail,
	})
}

func (v *overview) sensor(s *ingestv1.StatusResponse) {
	in := api.Sensor{
		Name: s.GetStatus().GetInstance(), Ready: s.GetStatus().GetReady(), Interfaces: each(s.GetInterfaces(), newInterface),
		TopDst: each(s.GetTopDestinations(), newTalker), TopSrc: each(s.GetTopSources(), newTalker),
	}
	v.sensors = append(v.sensors, in)
	v.status.Interfaces = append(v.status.Interfaces, in.Interfaces...)
	for _, c := range s.GetClassifiers() {
		v.status.Streams = append(v.status.Streams, api.ClassifyStream{
			Sensor: in.Name, Address: c.GetAddress(), Connected: c.GetConnected(), Share: c.GetShare(), BatchesPending: c.GetBatchesPending(), Problem: c.GetProblem(),
		})
	}
}

// enforcer adds a node: the mesh enforces if all nodes that answer do, and its panic state is the newest.
func (v *overview) enforcer(s *enforcev1.StatusResponse) {
	v.enforce++
	v.status.Enforcing = v.status.Enforcing && s.GetEnforcing()
	if p := newPanic(s.GetPanic()); p.SinceNs > v.status.Panic.SinceNs {
		v.status.Panic = p
	}
}

// ledger balances what is known. The terms of a service of which an instance is missing are not: the equations that
// need them are left out.
func (v *overview) ledger() api.Ledger {
	var whole []*statusv1.ServiceStatus
	for _, s := range v.services {
		if !slices.ContainsFunc(v.status.Missing, func(m api.Missing) bool { return m.Service == s.GetService() }) {
			whole = append(whole, s)
		}
	}
	sheet := ledger.Balance(whole)
	out := api.Ledger{Stages: make([]api.Stage, 0, len(sheet.Stages)), Difference: sheet.Difference}
	for _, s := range sheet.Stages {
		i := slices.IndexFunc(ledger.Equations, func(e ledger.Equation) bool { return e.Stage == s.Stage })
		out.Stages = append(out.Stages, api.Stage{
			Stage: s.Stage, In: s.In, InName: ledger.Short(ledger.Equations[i].In), Out: s.Out, Difference: s.Difference,
		})
	}
	return out
}

// Status is the state of everything. It does not fail: who does not answer is in Missing, and the ledger has the
// equations of which every term is known.
func (o *Operations) Status(ctx context.Context) api.Status { return o.look(ctx).status }

// Sensors lists the ingest instances in the order of configuration, and those that do not answer.
func (o *Operations) Sensors(ctx context.Context) ([]api.Sensor, []api.Missing) {
	v := o.look(ctx)
	missing := []api.Missing{}
	for _, m := range v.status.Missing {
		if m.Service == serviceIngest {
			missing = append(missing, m)
		}
	}
	return v.sensors, missing
}

// Ledger is the account of all stages; a 503 names the service without which it cannot be made.
func (o *Operations) Ledger(ctx context.Context) (api.Ledger, error) {
	v := o.look(ctx)
	if len(v.status.Missing) > 0 {
		m := v.status.Missing[0]
		p := problem(http.StatusServiceUnavailable, "the ledger needs every service: %s", m.Problem)
		p.Service = m.Service
		return api.Ledger{}, p
	}
	return v.status.Ledger, nil
}

// PanicState is the mesh's panic state as the enforce nodes have it.
func (o *Operations) PanicState(ctx context.Context) (api.Panic, error) {
	v := o.look(ctx)
	switch {
	case v.enforce > 0:
		return v.status.Panic, nil
	case v.silent != nil:
		return api.Panic{}, o.problem(ctx, v.silent)
	}
	return api.Panic{}, o.problem(ctx, errNoPeer)
}

// Groups lists the groups of protected prefixes by name. Classifiers have the same groups; what each learned about hosts is put
// together, of two thresholds of one host the higher.
func (o *Operations) Groups(ctx context.Context) ([]api.Group, error) {
	r, err := o.groups.get(ctx, func(ctx context.Context) result[[]api.Group] {
		answers := mesh.All(ctx, o.mesh.Classify, askTime, func(ctx context.Context, c grpc.ClientConnInterface) (*classifyv1.ListGroupsResponse, error) {
			return classifyv1.NewClassifyServiceClient(c).ListGroups(ctx, &classifyv1.ListGroupsRequest{})
		})
		var groups []api.Group
		answered, err := false, errNoPeer
		for _, a := range answers {
			if a.Err != nil {
				err = a.Err
				continue
			}
			answered, groups = true, mergeGroups(groups, each(a.Value.GetGroups(), newGroup))
		}
		if !answered {
			return result[[]api.Group]{problem: o.problem(ctx, err)}
		}
		slices.SortFunc(groups, func(a, b api.Group) int { return cmp.Compare(a.Name, b.Name) })
		return result[[]api.Group]{value: groups}
	})
	if err != nil {
		return nil, o.problem(ctx, err)
	}
	return r.get()
}

// mergeGroups adds what another classifier says of its groups.
func mergeGroups(groups, more []api.Group) []api.Group {
	for _, m := range more {
		i := slices.IndexFunc(groups, func(g api.Group) bool { return g.Name == m.Name })
		if i < 0 {
			groups = append(groups, m)
			continue
		}
		g := &groups[i]
		for _, h := range m.Learned {
			k := slices.IndexFunc(g.Learned, func(x api.LearnedHost) bool { return x.Host == h.Host })
			if k < 0 {
				g.Learned = append(g.Learned, h)
				continue
			}
			for name, v := range h.Thresholds {
				g.Learned[k].Thresholds[name] = max(g.Learned[k].Thresholds[name], v)
			}
		}
	}
	return groups
}

// Nodes lists the service instances whose heartbeats NATS has, by service and instance.
func (o *Operations) Nodes(ctx context.Context) ([]api.Node, error) {
	r, err := o.nodes.get(ctx, func(ctx context.Context) result[[]api.Node] {
		nodes, err := o.bus.Nodes(ctx)
		if err != nil {
			return result[[]api.Node]{problem: o.natsProblem(ctx, "nodes", err, "NATS does not answer: it has the heartbeats of the nodes")}
		}
		return result[[]api.Node]{value: each(nodes, newNode)}
	})
	if err != nil {
		return nil, o.problem(ctx, err)
	}
	return r.get()
}
