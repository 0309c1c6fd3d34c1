package persist

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	queryv1 "github.com/tidegate-mesh/tidegate/proto/query/v1"
	statusv1 "github.com/tidegate-mesh/tidegate/proto/status/v1"
	"github.com/tidegate-mesh/tidegate/services/persist/internal/sqlstore"
)

const (
	defaultLimit = 100
	maxLimit     = 10_000
	defaultTop   = 10
	staleAfter   = 5 * time.Minute // AttackQuery.Stale: more than a message waits while a database is away for a moment
	// pageBytes ends a page early: a message may have 4 MiB.
	pageBytes = 3 << 20
	// verdictRows bounds what one page of verdicts reads: each carries several KiB of evidence.
	verdictRows = 1000
	auditRows   = 1000 // likewise: each carries the object before and after
	maxText     = 512
	// A count of rows stays good for this many times as long as it took, so that asking for the status
	// often costs a large database no more than a tenth of one reader.
	countsFor = 10
)

// open begins a query: it bounds its time and gives the store.
func (s *Service) open(ctx context.Context) (context.Context, context.CancelFunc, *sqlstore.Store, error) {
	st := s.store.Load()
	if st == nil {
		why := "database: it was not reached yet"
		if p := s.problemList(); len(p) > 0 {
			why = p[0]
		}
		return nil, nil, nil, status.Error(codes.Unavailable, why)
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	return ctx, cancel, st, nil
}

// failed turns the store's error into a status.
func (s *Service) failed(ctx context.Context, err error) error {
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return status.Errorf(codes.DeadlineExceeded, "the query took longer than allowed: narrow its time range (%v)", err)
	case errors.Is(ctx.Err(), context.Canceled):
		return status.Error(codes.Canceled, "the query was cancelled")
	}
	s.t.CountError("query")
	if st := s.store.Load(); st != nil && st.Ping(ctx) == nil {
		return status.Error(codes.Internal, err.Error()) // the database is there: it is the query
	}
	return status.Error(codes.Unavailable, err.Error())
}

func invalid(format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, format, args...)
}

func limitOf(n, standard uint32) (int, error) {
	if n == 0 {
		n = standard
	}
	if n > maxLimit {
		return 0, invalid("limit %d: at most %d rows a page; continue with page_token", n, maxLimit)
	}
	return int(n), nil
}

func rangeOf(r *queryv1.TimeRange) (sqlstore.Range, error) {
	from, to := r.GetFromNs(), r.GetToNs()
	if from < 0 || to < 0 {
		return sqlstore.Range{}, invalid("range: times are Unix nanoseconds and not negative")
	}
	if to != 0 && from >= to {
		return sqlstore.Range{}, invalid("range: from_ns %d is not before to_ns %d", from, to)
	}
	return sqlstore.Range{From: from, To: to}, nil
}

// checkText refuses filters that no row can have and that a database might choke on.
func checkText(fields map[string]string) error {
	for field, v := range fields {
		if len(v) > maxText {
			return invalid("%s is %d bytes long: at most %d", field, len(v), maxText)
		}
		if strings.ContainsRune(v, 0) {
			return invalid("%s contains a NUL character", field)
		}
	}
	return nil
}

func prefixOf(s string) (netip.Prefix, error) {
	if s == "" {
		return netip.Prefix{}, nil
	}
	if p, err := netip.ParsePrefix(s); err == nil {
		return p, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, invalid("prefix %q: use an address or a prefix such as 192.0.2.0/24 or 2001:db8::/32", s)
	}
	a = a.Unmap()
	return netip.PrefixFrom(a, a.BitLen()), nil
}

// paged is a request for one page of a listing.
type paged interface {
	proto.Message
	GetPageToken() string
}

// list answers one page of rows, of which read gets up to one more than limit after a place.
func list[R any, M proto.Message](ctx context.Context, s *Service, kind string, r paged, limit int,
	read func(context.Context, *sqlstore.Store, sqlstore.Cursor) ([]R, error), convert func(*R) (M, error), cursor func(*R) sqlstore.Cursor) ([]M, string, error) {
	tokens := newTokens(kind, r)
	after, err := tokens.read(r.GetPageToken())
	if err != nil {
		return nil, "", err
	}
	ctx, cancel, st, err := s.open(ctx)
	if err != nil {
		return nil, "", err
	}
	defer cancel()
	rows, err := read(ctx, st, after)
	if err != nil {
		return nil, "", s.failed(ctx, err)
	}
	out, next, err := page(rows, limit, convert, cursor, tokens.write)
	if err != nil {
		return nil, "", status.Error(codes.DataLoss, err.Error())
	}
	return out, next, nil
}

// page converts rows until the page is full, and gives the token of the next one. rows holds up to one more
// than limit.
func page[R any, M proto.Message](rows []R, limit int, convert func(*R) (M, error), cursor func(*R) sqlstore.Cursor, token func(sqlstore.Cursor) string) ([]M, string, error) {
	var out []M
	size := 0
	for i := range rows {
		if i == limit {
			return out, token(cursor(&rows[i-1])), nil
		}
		m, err := convert(&rows[i])
		if err != nil {
			return nil, "", err
		}
		n := proto.Size(m) + 8
		if size+n > pageBytes && i > 0 {
			return out, token(cursor(&rows[i-1])), nil
		}
		size += n
		out = append(out, m)
	}
	return out, "", nil
}

// Status tells how the service and its database are.
func (s *Service) Status(ctx context.Context, _ *queryv1.StatusRequest) (*queryv1.StatusResponse, error) {
	version, _ := telemetry.Build()
	out := &queryv1.StatusResponse{Status: &statusv1.ServiceStatus{
		Service: "persist", Instance: s.t.Instance(), Version: version, StartedNs: s.started.UnixNano(),
		Ledger: &statusv1.Ledger{Terms: map[string]uint64{}}, CertificateExpiresNs: s.t.ExpiryNs(),
	}}
	for _, w := range []*writer{s.flows, s.events} {
		_, _ = w.updatePending(ctx) // else the last known backlog stands
	}
	s.flows.ledger("", out.Status.Ledger.Terms)
	s.events.ledger("events_", out.Status.Ledger.Terms)
	if st := s.store.Load(); st != nil {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if v, err := st.Version(ctx); err == nil {
			out.Database = v
			if rows, err := s.counts(ctx, st.Rows); err == nil && rows != nil {
				out.Rows = map[string]uint64{}
				for t, n := range rows {
					out.Rows[string(t)] = unsigned(n)
				}
			}
			if n, err := st.Size(ctx); err == nil {
				out.SizeBytes = unsigned(n)
			}
		} else {
			out.Status.Problems = append(out.Status.Problems, "the database does not answer: "+err.Error())
		}
	}
	out.Status.Problems = append(out.Status.Problems, s.t.Problems("persist", "certificate")...)
	out.Status.Ready = len(out.Status.Problems) == 0
	out.Status.Problems = append(out.Status.Problems, s.hooks.Problems()...) // a receiver that is down does not stop persist
	return out, nil
}

// counts gives the rows by table; nil without an error while they cannot be had: a count that failed took its time too.
func (s *Service) counts(ctx context.Context, count func(context.Context) (map[sqlstore.Table]int64, error)) (map[sqlstore.Table]int64, error) {
	s.mu.Lock()
	rows, until := s.rows, s.rowsUntil
	s.mu.Unlock()
	if time.Now().Before(until) {
		return rows, nil
	}
	begin := time.Now()
	if end, ok := ctx.Deadline(); ok { // the other half of the caller's time is for the rest of the answer
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, begin.Add(end.Sub(begin)/2))
		defer cancel()
	}
	rows, err := count(ctx)
	s.mu.Lock()
	s.rows, s.rowsUntil = rows, time.Now().Add(countsFor*time.Since(begin))
	s.mu.Unlock()
	return rows, err
}

// ListFlows lists flows by the time of their first packet.
func (s *Service) ListFlows(ctx context.Context, r *queryv1.ListFlowsRequest) (*queryv1.ListFlowsResponse, error) {
	limit, err := limitOf(r.GetLimit(), defaultLimit)
	if err != nil {
		return nil, err
	}
	q := sqlstore.FlowQuery{Limit: limit + 1}
	if q.FlowFilter, err = filterOf(r); err != nil {
		return nil, err
	}
	read := func(ctx context.Context, st *sqlstore.Store, after sqlstore.Cursor) ([]sqlstore.Flow, error) {
		q.After = after
		return st.Flows(ctx, q)
	}
	out := &queryv1.ListFlowsResponse{}
	out.Flows, out.NextPageToken, err = list(ctx, s, "flows", r, limit, read,
		func(f *sqlstore.Flow) (*eventv1.FlowRecord, error) { return flowRecord(f), nil },
		func(f *sqlstore.Flow) sqlstore.Cursor { return sqlstore.Cursor{TS: f.TS, ID: f.ID} })
	return out, err
}

// ListAttacks lists the newest revision of each attack that was under way in the range, the latest begun first; with
// all_revisions the revisions of one attack that were made in the range.
func (s *Service) ListAttacks(ctx context.Context, r *queryv1.ListAttacksRequest) (*queryv1.ListAttacksResponse, error) {
	limit, err := limitOf(r.GetLimit(), defaultLimit)
	if err != nil {
		return nil, err
	}
	if r.GetAllRevisions() && r.GetId() == "" {
		return nil, invalid("all_revisions needs id: revisions are listed of one attack")
	}
	q := sqlstore.AttackQuery{
		Type: r.GetType(), ID: r.GetId(), ActiveOnly: r.GetActiveOnly(), AllRevisions: r.GetAllRevisions(), Limit: limit + 1,
		Stale: time.Now().Add(-staleAfter).UnixNano(),
	}
	if q.Range, err = rangeOf(r.GetRange()); err != nil {
		return nil, err
	}
	if err := checkText(map[string]string{"type": r.GetType(), "id": r.GetId()}); err != nil {
		return nil, err
	}
	read := func(ctx context.Context, st *sqlstore.Store, after sqlstore.Cursor) ([]sqlstore.Attack, error) {
		q.After = after
		return st.Attacks(ctx, q)
	}
	out := &queryv1.ListAttacksResponse{}
	cursor := func(a *sqlstore.Attack) sqlstore.Cursor { return sqlstore.Cursor{TS: a.FirstNs, ID: a.ID} }
	if q.AllRevisions {
		cursor = func(a *sqlstore.Attack) sqlstore.Cursor { return sqlstore.Cursor{TS: a.TS, ID: a.ID, Rev: a.Revision} }
	}
	out.Attacks, out.NextPageToken, err = list(ctx, s, "attacks", r, limit, read, attackEvent, cursor)
	return out, err
}

// ListVerdicts lists verdicts by the time of their decision. A page may be shorter than its limit.
func (s *Service) ListVerdicts(ctx context.Context, r *queryv1.ListVerdictsRequest) (*queryv1.ListVerdictsResponse, error) {
	limit, err := limitOf(r.GetLimit(), defaultLimit)
	if err != nil {
		return nil, err
	}
	limit = min(limit, verdictRows)
	q := sqlstore.VerdictQuery{AttackID: r.GetAttackId(), ID: r.GetId(), Limit: limit + 1}
	if q.Range, err = rangeOf(r.GetRange()); err != nil {
		return nil, err
	}
	if err := checkText(map[string]string{"attack_id": r.GetAttackId(), "id": r.GetId()}); err != nil {
		return nil, err
	}
	read := func(ctx context.Context, st *sqlstore.Store, after sqlstore.Cursor) ([]sqlstore.Verdict, error) {
		q.After = after
		return st.Verdicts(ctx, q)
	}
	out := &queryv1.ListVerdictsResponse{}
	out.Verdicts, out.NextPageToken, err = list(ctx, s, "verdicts", r, limit, read, verdictEvent,
		func(v *sqlstore.Verdict) sqlstore.Cursor { return sqlstore.Cursor{TS: v.TS, ID: v.ID} })
	return out, err
}

// ListEnforcements lists what enforce nodes did.
func (s *Service) ListEnforcements(ctx context.Context, r *queryv1.ListEnforcementsRequest) (*queryv1.ListEnforcementsResponse, error) {
	limit, err := limitOf(r.GetLimit(), defaultLimit)
	if err != nil {
		return nil, err
	}
	q := sqlstore.EnforcementQuery{RuleID: r.GetRuleId(), AttackID: r.GetAttackId(), Limit: limit + 1}
	if q.Range, err = rangeOf(r.GetRange()); err != nil {
		return nil, err
	}
	if err := checkText(map[string]string{"rule_id": r.GetRuleId(), "attack_id": r.GetAttackId()}); err != nil {
		return nil, err
	}
	read := func(ctx context.Context, st *sqlstore.Store, after sqlstore.Cursor) ([]sqlstore.Enforcement, error) {
		q.After = after
		return st.Enforcements(ctx, q)
	}
	out := &queryv1.ListEnforcementsResponse{}
	out.Enforcements, out.NextPageToken, err = list(ctx, s, "enforcements", r, limit, read,
		func(e *sqlstore.Enforcement) (*eventv1.Enforcement, error) { return enforcementEvent(e), nil },
		func(e *sqlstore.Enforcement) sqlstore.Cursor { return sqlstore.Cursor{TS: e.TS, ID: e.ID} })
	return out, err
}

// ListAudit lists the newest revision of each change that a user asked for. A page may be shorter than its limit.
func (s *Service) ListAudit(ctx context.Context, r *queryv1.ListAuditRequest) (*queryv1.ListAuditResponse, error) {
	limit, err := limitOf(r.GetLimit(), defaultLimit)
	if err != nil {
		return nil, err
	}
	limit = min(limit, auditRows)
	q := sqlstore.AuditQuery{Actor: r.GetActor(), Action: r.GetAction(), Target: r.GetTarget(), Limit: limit + 1}
	if q.Range, err = rangeOf(r.GetRange()); err != nil {
		return nil, err
	}
	if err := checkText(map[string]string{"actor": r.GetActor(), "action": r.GetAction(), "target": r.GetTarget()}); err != nil {
		return nil, err
	}
	read := func(ctx context.Context, st *sqlstore.Store, after sqlstore.Cursor) ([]sqlstore.Audit, error) {
		q.After = after
		return st.Audits(ctx, q)
	}
	out := &queryv1.ListAuditResponse{}
	out.Entries, out.NextPageToken, err = list(ctx, s, "audit", r, limit, read,
		func(a *sqlstore.Audit) (*eventv1.Audit, error) { return auditEvent(a), nil },
		func(a *sqlstore.Audit) sqlstore.Cursor { return sqlstore.Cursor{TS: a.TS, ID: a.ID} })
	return out, err
}
