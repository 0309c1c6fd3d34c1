package flowtable

import (
	"github.com/tidegate-mesh/tidegate/libs/flow"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

// Out takes the records: one batch for each classifier.
type Out struct {
	Batches []*flowv1.FlowBatch
	// Choose is the place of a flow's batch; the key is in the direction of the flow's first packet. It is not asked while
	// there is one batch.
	Choose func(k *flow.Key) int
}

// of is the batch of a flow.
func (o *Out) of(k *flow.Key) *flowv1.FlowBatch {
	if len(o.Batches) == 1 {
		return o.Batches[0]
	}
	return o.Batches[o.Choose(k)]
}
