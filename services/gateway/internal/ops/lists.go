package ops

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
	enforcev1 "github.com/tidegate-mesh/tidegate/proto/enforce/v1"
	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/feed"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/mesh"
)

// Actions of the audit log.
const (
	actionListPut     = "list.put"
	actionListEntries = "list.entries"
	actionListDelete  = "list.delete"
)

const (
	maxLists       = 1024
	maxListEntries = 2 << 20 // as many as a node's maps hold of each kind by default
	maxListName    = 64
	defaultEvery   = time.Hour
	minEvery       = time.Minute
	maxEvery       = 7 * 24 * time.Hour
	listTime       = 30 * time.Second // of what a change of a list asks of NATS
	listTries      = 5                // against others who change the same list
)

// The lists lie in a bucket that gateways write; enforce nodes follow those of addresses, classifiers those of domains; what nodes make of them is asked by gRPC.

// Lists are all lists, by name, without what the nodes say.
func (o *Operations) Lists(ctx context.Context) ([]api.List, error) {
	all, err := o.bus.Lists(ctx)
	if err != nil {
		return nil, o.natsProblem(ctx, "lists", err, "NATS does not answer: the lists cannot be read")
	}
	out := make([]api.List, 0, len(all))
	for _, e := range all {
		out = append(out, newList(e))
	}
	slices.SortFunc(out, func(a, b api.List) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// List is one list with what each node has made of it.
func (o *Operations) List(ctx context.Context, name string) (api.List, error) {
	e, err := o.listEntry(ctx, name)
	if err != nil {
		return api.List{}, err
	}
	out := newList(e)
	if kindOf(e.List) == policy.KindDomain {
		out.Nodes = append(out.Nodes, o.domainNodes(ctx, name, e.List.GetObject())...)
		return out, nil
	}
	answers := mesh.All(ctx, o.mesh.Enforce, askTime, func(ctx context.Context, c grpc.ClientConnInterface) (*enforcev1.AddressListsResponse, error) {
		return enforcev1.NewEnforceServiceClient(c).AddressLists(ctx, &enforcev1.AddressListsRequest{})
	})
	for _, a := range answers {
		if a.Err != nil {
			out.Nodes = append(out.Nodes, api.ListNode{Node: o.knownNode(a.Peer), State: "unknown", Problem: o.problem(ctx, a.Err).Detail})
			continue
		}
		n := api.ListNode{Node: o.node(ctx, a.Peer), State: "loading"}
		for _, s := range a.Value.GetLists() {
			if s.GetName() == name {
				n = newListNode(n.Node, s, e.List.GetObject())
			}
		}
		out.Nodes = append(out.Nodes, n)
	}
	return out, nil
}

func (o *Operations) listEntry(ctx context.Context, name string) (bus.ListEntry, error) {
	all, err := o.bus.Lists(ctx)
	if err != nil {
		return bus.ListEntry{}, o.natsProblem(ctx, "lists", err, "NATS does not answer: the lists cannot be read")
	}
	e, ok := all[name]
	if !ok {
		return e, problem(http.StatusNotFound, "there is no list %q", name)
	}
	return e, nil
}

// PutList makes a list or changes what it does and where it is from; its entries stay. One that names a URL is read at
// once, and then as often as it says.
func (o *Operations) PutList(ctx context.Context, name string, in api.ListInput) (api.List, error) {
	every, err := checkList(name, &in)
	if err != nil {
		return api.List{}, err
	}
	intended := api.List{
		Name: name, Kind: in.Kind, Action: in.Action, RatePPS: in.RatePPS, RateBPS: in.RateBPS, URL: in.URL, Comment: in.Comment, Nodes: []api.ListNode{},
	}
	out, err := o.changeList(ctx, actionListPut, name, intended, true, func(_ context.Context, l *policyv1.AddressList) (*entries, error) {
		action, err := policy.ParseAction(in.Action)
		if err != nil {
			return nil, invalid("body.action", "%v", err)
		}
		if l.GetKind() == "" && l.GetObject() == "" && l.GetAction() == 0 { // a new one
			l.Kind = in.Kind
		}
		switch kind := kindOf(l); {
		case in.Kind != "" && in.Kind != kind:
			return nil, invalid("body.kind", "the list is of kind %s, which stays: delete it first", kind)
		case action == policy.RateLimit && kind != policy.KindDomain:
			return nil, invalid("body.action", "only a list of domains limits the rate")
		}
		if l.GetUrl() != in.URL {
			l.Validator, l.CheckedNs, l.ClaimedNs, l.Problem = "", 0, 0, ""
		}
		l.Action, l.Url, l.Comment, l.EveryNs = policyv1.Action(action), in.URL, in.Comment, int64(every)
		l.RatePps, l.RateBps = in.RatePPS, in.RateBPS
		return nil, nil //nolint:nilnil // its entries stay
	})
	if err == nil && in.URL != "" {
		o.feeds.poke()
	}
	return out, err
}

// checkList says what is wrong with a list, and how often its URL is read.
func checkList(name string, in *api.ListInput) (every time.Duration, err error) {
	if name == "" || len(name) > maxListName || !plainName(name) {
		return 0, invalid("path.name", "a list's name is 1 to 64 of a-z, 0-9, - and _, and begins with a letter or digit")
	}
	if in.Kind != "" && in.Kind != policy.KindCIDR && in.Kind != policy.KindDomain {
		return 0, invalid("body.kind", "the kind is cidr or domain")
	}
	limits := in.Action == policy.RateLimit.String()
	if limits != (in.RatePPS != 0 || in.RateBPS != 0) || in.RatePPS != 0 && in.RateBPS != 0 {
		return 0, invalid("body", "rate-limit needs exactly one of rate_pps and rate_bps, other actions none")
	}
	if in.URL == "" {
		if in.Every != "" {
			return 0, invalid("body.every", "only a list with a url is read again")
		}
		return 0, nil
	}
	if err := feed.CheckURL(in.URL); err != nil {
		return 0, invalid("body.url", "the url: %v", err)
	}
	if in.Every == "" {
		return defaultEvery, nil
	}
	every, err = time.ParseDuration(in.Every)
	if err != nil || every < minEvery || every > maxEvery {
		return 0, invalid("body.every", "give a time of 1m to 168h")
	}
	return every, nil
}

func plainName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && (i == 0 || c != '-' && c != '_') {
			return false
		}
	}
	return true
}

// PutListEntries makes the lines of text the entries of a list that has no URL.
func (o *Operations) PutListEntries(ctx context.Context, name string, text []byte) (api.List, error) {
	kind := policy.KindCIDR
	if e, err := o.listEntry(ctx, name); err == nil { // else changeList says why
		kind = kindOf(e.List)
	}
	read, err := parseEntries(kind, text)
	if err != nil {
		return api.List{}, err
	}
	intended := api.List{Name: name, Kind: kind, Nodes: []api.ListNode{}}
	read.describe(&intended)
	return o.changeList(ctx, actionListEntries, name, intended, false, func(ctx context.Context, l *policyv1.AddressList) (*entries, error) {
		if l.GetUrl() != "" {
			return nil, problem(http.StatusUnprocessableEntity, "the list is read from %s: take its url away before you upload entries", l.GetUrl())
		}
		if kindOf(l) != kind {
			return nil, problem(http.StatusConflict, "the list has become one of another kind: try again")
		}
		return read, o.setEntries(ctx, l, read)
	})
}

// kindOf is what the entries of a list are.
func kindOf(l *policyv1.AddressList) string { return cmp.Or(l.GetKind(), policy.KindCIDR) }

// entries is the text of a list as it is stored, and what was found in it.
type entries struct {
	hosts, prefixes, domains, rejected int
	examples                           []policy.RejectedLine
	canonical                          []byte
}

// parseEntries refuses what is no list at all: that is a mistake or an error page, and must not empty a list.
func parseEntries(kind string, text []byte) (*entries, error) {
	var e entries
	var err error
	what := "an address or a prefix in CIDR notation"
	if kind == policy.KindDomain {
		what = "a domain"
		var read policy.DomainText
		read, err = policy.ParseDomains(text, maxListEntries)
		e = entries{domains: len(read.Entries), rejected: read.Rejected, examples: read.Examples, canonical: policy.FormatDomains(read.Entries)}
	} else {
		var read policy.ListText
		read, err = policy.ParseList(text, maxListEntries)
		e = entries{
			hosts: read.Hosts, prefixes: len(read.Entries) - read.Hosts, rejected: read.Rejected, examples: read.Examples,
			canonical: policy.FormatList(read.Entries),
		}
	}
	switch {
	case errors.Is(err, policy.ErrListLimit):
		return nil, problem(http.StatusUnprocessableEntity, "the list has more than %d entries", maxListEntries)
	case err != nil:
		return nil, err
	case len(e.canonical) > bus.MaxListBytes:
		return nil, problem(http.StatusUnprocessableEntity, "the list's entries have more than %d MiB", bus.MaxListBytes>>20)
	case e.empty() && e.rejected > 0:
		p := problem(http.StatusUnprocessableEntity, "none of the %d lines is %s", e.rejected, what)
		for _, x := range e.examples {
			p.Errors = append(p.Errors, api.ProblemDetail{Location: fmt.Sprintf("body line %d", x.Line), Message: x.Reason, Value: x.Text})
		}
		return nil, p
	}
	return &e, nil
}

func (e *entries) empty() bool { return e.hosts+e.prefixes+e.domains == 0 }

func (e *entries) describe(l *api.List) {
	l.Hosts, l.Prefixes, l.Domains, l.Rejected = uint64(e.hosts), uint64(e.prefixes), uint64(e.domains), uint64(e.rejected) //nolint:gosec // positive
	for _, x := range e.examples {
		l.Examples = append(l.Examples, api.RejectedLine{Line: uint64(x.Line), Text: x.Text, Reason: x.Reason}) //nolint:gosec // positive
	}
}

// setEntries stores entries and makes a list point to them.
func (o *Operations) setEntries(ctx context.Context, l *policyv1.AddressList, e *entries) error {
	object, err := o.bus.PutListEntries(ctx, l.GetName(), e.canonical)
	if err != nil {
		return o.natsProblem(ctx, "list_entries", err, "NATS does not take the entries: nothing was changed")
	}
	if object != l.GetObject() {
		l.Object, l.UpdatedNs = object, o.now().UnixNano()
	}
	var d api.List
	e.describe(&d)
	l.Hosts, l.Prefixes, l.Domains, l.Rejected, l.Examples = d.Hosts, d.Prefixes, d.Domains, d.Rejected, nil
	for _, x := range d.Examples {
		l.Examples = append(l.Examples, &policyv1.RejectedLine{Line: x.Line, Text: x.Text, Reason: x.Reason})
	}
	return nil
}

// listChange changes a list and gives the entries that it stored for it, nil when those that were there stay.
type listChange func(context.Context, *policyv1.AddressList) (*entries, error)

// changeList puts a change of a list on record and makes it.
func (o *Operations) changeList(ctx context.Context, action, name string, intended api.List, create bool, set listChange) (api.List, error) {
	c := change{action: action, target: name, intended: intended}
	if old, err := o.listEntry(ctx, name); err == nil {
		c.before = newList(old)
	} else if p := o.problem(ctx, err); p.Status != http.StatusNotFound || !create {
		c.blocked = p
	}
	var out api.List
	err := o.carryOut(ctx, c, func(ctx context.Context) (any, error) {
		ctx, cancel := context.WithTimeout(ctx, listTime)
		defer cancel()
		e, err := o.updateList(ctx, name, create, set)
		if err != nil {
			return nil, err
		}
		out = newList(e)
		return out, nil
	})
	return out, err
}

// updateList changes a list as it is now, again when somebody else was faster. The object that it leaves is deleted.
func (o *Operations) updateList(ctx context.Context, name string, create bool, set listChange) (bus.ListEntry, error) {
	for range listTries {
		all, err := o.bus.Lists(ctx)
		if err != nil {
			return bus.ListEntry{}, o.natsProblem(ctx, "lists", err, "NATS does not answer: nothing was changed")
		}
		e, ok := all[name]
		switch {
		case ok:
			e.List = proto.CloneOf(e.List)
		case !create:
			return e, problem(http.StatusNotFound, "there is no list %q", name)
		case len(all) >= maxLists:
			return e, problem(http.StatusUnprocessableEntity, "there are %d lists, the limit: delete one", maxLists)
		default:
			e.List = &policyv1.AddressList{Name: name, Number: freeNumber(all), CreatedNs: o.now().UnixNano()}
		}
		before := e.List.GetObject()
		put, err := set(ctx, e.List)
		if err != nil {
			return e, err
		}
		e.Revision, err = o.bus.UpdateList(ctx, e.List, e.Revision)
		if errors.Is(err, bus.ErrConflict) {
			continue
		}
		if err != nil {
			return e, o.natsProblem(ctx, "lists", err, "NATS does not answer: it is not known whether the change was made; see /api/v1/lists/"+name)
		}
		if before != "" && before != e.List.GetObject() {
			o.dropEntries(ctx, name, before)
		}
		if put != nil { // who had put others in their place may have deleted them after they were found stored
			if _, err := o.bus.PutListEntries(ctx, name, put.canonical); err != nil {
				return e, o.natsProblem(ctx, "list_entries", err, "NATS does not answer: it is not known whether the entries are stored; send them again")
			}
		}
		return e, nil
	}
	return bus.ListEntry{}, problem(http.StatusConflict, "the list %q is being changed by others: try again", name)
}

// freeNumber is the number after the highest: one that was free for long, so that counters do not mix.
func freeNumber(all map[string]bus.ListEntry) uint32 {
	taken, highest := make(map[uint32]bool, len(all)), uint32(0)
	for _, e := range all {
		taken[e.List.GetNumber()] = true
		highest = max(highest, e.List.GetNumber())
	}
	n := (highest + 1) % maxLists
	for taken[n] && len(taken) < maxLists {
		n = (n + 1) % maxLists
	}
	return n
}

// dropEntries deletes an object that a list has pointed to, unless somebody has put the same entries back meanwhile. What is
// left over costs storage only.
func (o *Operations) dropEntries(ctx context.Context, name, object string) {
	all, err := o.bus.Lists(ctx)
	if err == nil && all[name].List.GetObject() == object {
		return
	}
	if err == nil {
		err = o.bus.DeleteListEntries(ctx, object)
	}
	if err != nil {
		o.t.CountError("delete_list_entries")
		o.t.Log.WarnContext(ctx, "the former entries of a list stay in storage", "object", object, "error", err)
	}
}

// DeleteList takes a list away, and with it what it does.
func (o *Operations) DeleteList(ctx context.Context, name string) error {
	c := change{action: actionListDelete, target: name}
	old, err := o.listEntry(ctx, name)
	if err != nil {
		c.blocked = err
	} else {
		c.before = newList(old)
	}
	return o.carryOut(ctx, c, func(ctx context.Context) (any, error) {
		ctx, cancel := context.WithTimeout(ctx, listTime)
		defer cancel()
		for range listTries {
			e, err := o.listEntry(ctx, name)
			if err != nil {
				return nil, err
			}
			err = o.bus.DeleteList(ctx, name, e.Revision)
			if errors.Is(err, bus.ErrConflict) {
				continue
			}
			if err != nil {
				return nil, o.natsProblem(ctx, "lists", err, "NATS does not answer: it is not known whether the list is gone; see /api/v1/lists")
			}
			if object := e.List.GetObject(); object != "" {
				o.dropEntries(ctx, name, object)
			}
			return nil, nil
		}
		return nil, problem(http.StatusConflict, "the list %q is being changed by others: try again", name)
	})
}

func newList(e bus.ListEntry) api.List {
	l := e.List
	out := api.List{
		Name: l.GetName(), Kind: kindOf(l), Action: policy.Action(l.GetAction()).String(), URL: l.GetUrl(), Comment: l.GetComment(), //nolint:gosec // an enumeration of five
		RatePPS: l.GetRatePps(), RateBPS: l.GetRateBps(),
		Hosts: l.GetHosts(), Prefixes: l.GetPrefixes(), Domains: l.GetDomains(), Rejected: l.GetRejected(), CreatedNs: api.Nanos(l.GetCreatedNs()),
		UpdatedNs: api.Nanos(l.GetUpdatedNs()), CheckedNs: api.Nanos(l.GetCheckedNs()), Problem: l.GetProblem(),
		Revision: strconv.FormatUint(e.Revision, 10), Nodes: []api.ListNode{},
	}
	if l.GetUrl() != "" {
		out.Every = time.Duration(l.GetEveryNs()).String()
	}
	for _, x := range l.GetExamples() {
		out.Examples = append(out.Examples, api.RejectedLine{Line: x.GetLine(), Text: x.GetText(), Reason: x.GetReason()})
	}
	return out
}

// domainNodes are what the classifiers have made of a list of domains.
func (o *Operations) domainNodes(ctx context.Context, name, object string) []api.ListNode {
	answers := mesh.All(ctx, o.mesh.Classify, askTime, func(ctx context.Context, c grpc.ClientConnInterface) (*classifyv1.DomainListsResponse, error) {
		return classifyv1.NewClassifyServiceClient(c).DomainLists(ctx, &classifyv1.DomainListsRequest{})
	})
	var out []api.ListNode
	for _, a := range answers {
		n := api.ListNode{Node: a.Peer.Who(), State: "loading"}
		if a.Err != nil {
			n.State, n.Problem = "unknown", o.problem(ctx, a.Err).Detail
		}
		for _, s := range a.Value.GetLists() {
			if s.GetName() != name {
				continue
			}
			n.State, n.Entries, n.Refused, n.Flows, n.Ruled = s.GetState(), s.GetEntries(), s.GetRefused(), s.GetFlows(), s.GetStopped()
			n.Problem, n.AppliedNs = sentence(s.GetProblem()), api.Nanos(s.GetAppliedNs())
			if s.GetObject() != object && n.State != "failed" {
				n.State = "loading"
			}
		}
		out = append(out, n)
	}
	return out
}

// newListNode is what a node says; it is loading while its entries are not those that the list has now.
func newListNode(node string, s *enforcev1.AddressListState, object string) api.ListNode {
	n := api.ListNode{
		Node: node, State: s.GetState(), Entries: s.GetEntries(), Refused: s.GetRefused(), Examples: s.GetExamples(), Packets: s.GetPackets(),
		Bytes: s.GetBytes(), Dropped: s.GetDropped(), Problem: sentence(s.GetProblem()), AppliedNs: api.Nanos(s.GetAppliedNs()),
	}
	if s.GetObject() != object && n.State != "failed" {
		n.State = "loading"
	}
	return n
}
