package bus

import (
	"context"
	"strconv"

	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// PublishAudit stores a step of a change that a user asked for; the message id is the change's id and the step's
// revision. It retries until it is acknowledged or ctx ends: who must not change what is not on record publishes
// revision 1 first and gives ctx a deadline.
func (b *Bus) PublishAudit(ctx context.Context, a *eventv1.Audit) error {
	id := "audit/" + a.GetId() + "/" + strconv.FormatUint(uint64(a.GetRevision()), 10)
	return b.publishEvent(ctx, SubjectAudit+Token(a.GetGateway()), id, telemetry.Inject(ctx), a)
}
