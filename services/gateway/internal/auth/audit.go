package auth

import (
	"context"
	"crypto/rand"
	"net/netip"
	"time"

	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

const auditTimeout = 5 * time.Second

// audit hands the entry of a lock to Run; a request must not wait for the bus.
func (a *Authenticator) audit(from netip.Addr, requestID, detail string) {
	if a.auditor == nil {
		return
	}
	entry := &eventv1.Audit{
		Id: rand.Text(), Revision: 1, TimeNs: a.now().UnixNano(), Remote: from.String(), Action: "login.locked",
		Outcome: eventv1.AuditOutcome_AUDIT_OUTCOME_DONE, Detail: detail, RequestId: requestID, Gateway: a.t.Instance(),
	}
	select {
	case a.audits <- entry:
	default:
		a.t.CountError("audit_full")
	}
}

// writeAudits publishes entries until ctx ends, then what waits, within auditTimeout.
func (a *Authenticator) writeAudits(ctx context.Context) {
	publish := func(parent context.Context, e *eventv1.Audit) {
		ctx, cancel := context.WithTimeout(parent, auditTimeout)
		defer cancel()
		if err := a.auditor.PublishAudit(ctx, e); err != nil {
			a.t.CountError("audit")
			a.t.Log.Error("an audit entry was not stored", "action", e.Action, "remote", e.Remote, "detail", e.Detail, "error", err)
		}
	}
	last := context.WithoutCancel(ctx)
	for {
		select {
		case e := <-a.audits:
			publish(last, e)
		case <-ctx.Done():
			last, cancel := context.WithTimeout(last, auditTimeout)
			defer cancel()
			for {
				select {
				case e := <-a.audits:
					publish(last, e)
				default:
					return
				}
			}
		}
	}
}
