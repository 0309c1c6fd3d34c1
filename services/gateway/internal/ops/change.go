package ops

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/caller"
)

const (
	auditTime      = 3 * time.Second
	auditTimePanic = time.Second
)

// change is what somebody asks for.
type change struct {
	action           string // as eventv1.Audit has it
	target           string // a rule's id, or empty
	before, intended any    // JSON objects; nil: none
	blocked          error  // why it is not tried: recorded as refused
	urgent           bool   // it is made also when it cannot be recorded
}

// carryOut makes a change and puts it on record: first that it was asked for, then what came of it. What cannot be
// recorded is not done, unless it is urgent. do gives the object after the change, nil when there is none. It runs to
// its end also when the caller goes away, so that the record is true; do therefore bounds its own time.
func (o *Operations) carryOut(ctx context.Context, c change, do func(context.Context) (after any, err error)) error {
	ctx = context.WithoutCancel(ctx)
	who := caller.From(ctx)
	entry := &eventv1.Audit{
		Id: rand.Text(), Revision: 1, TimeNs: o.now().UnixNano(), Actor: who.Subject, Role: who.Role.String(), Action: c.action, Target: c.target,
		Outcome: eventv1.AuditOutcome_AUDIT_OUTCOME_REQUESTED, Before: o.document(ctx, c.before), After: o.document(ctx, c.intended),
		RequestId: who.RequestID, TraceId: telemetry.TraceID(ctx), Gateway: o.t.Instance(),
	}
	if who.Remote.IsValid() {
		entry.Remote = who.Remote.String()
	}
	if err := o.record(ctx, entry, c.urgent); err != nil && !c.urgent {
		p := problem(http.StatusServiceUnavailable, "the audit log cannot be written; nothing was changed")
		p.Service = serviceNATS
		return p
	}
	after, err := any(nil), c.blocked
	if err == nil {
		after, err = do(ctx)
	}
	entry.Revision, entry.TimeNs = 2, o.now().UnixNano()
	switch {
	case err == nil:
		entry.Outcome, entry.After = eventv1.AuditOutcome_AUDIT_OUTCOME_DONE, o.document(ctx, after)
	case c.blocked != nil || refused(err):
		entry.Outcome, entry.After, entry.Detail = eventv1.AuditOutcome_AUDIT_OUTCOME_REFUSED, entry.GetBefore(), err.Error()
	default:
		entry.Outcome, entry.After, entry.Detail = eventv1.AuditOutcome_AUDIT_OUTCOME_FAILED, "", err.Error()
	}
	_ = o.record(ctx, entry, c.urgent) // logged; the change itself is made
	return err
}

// refused reports an error after which nothing has changed.
func refused(err error) bool {
	var p *api.Problem
	return errors.As(err, &p) && p.Status < http.StatusInternalServerError
}

func (o *Operations) record(ctx context.Context, e *eventv1.Audit, urgent bool) error {
	limit := auditTime
	if urgent {
		limit = auditTimePanic
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := o.bus.PublishAudit(ctx, e)
	if err != nil {
		o.t.CountError("audit")
		o.t.Log.ErrorContext(ctx, "an audit entry was not stored", "id", e.GetId(), "revision", e.GetRevision(), "action", e.GetAction(),
			"target", e.GetTarget(), "actor", e.GetActor(), "remote", e.GetRemote(), "outcome", e.GetOutcome().String(), "detail", e.GetDetail(),
			"after", e.GetAfter(), "request_id", e.GetRequestId(), "error", err)
	}
	return err
}

// document is an object as JSON, empty for none.
func (o *Operations) document(ctx context.Context, v any) string {
	if v == nil {
		return ""
	}
	b, err := json.Marshal(v)
	if err != nil { // a rate that is no number
		o.t.CountError("audit_document")
		o.t.Log.ErrorContext(ctx, "an object cannot be recorded", "error", err)
		return ""
	}
	return string(b)
}
