package ledger

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	statusv1 "github.com/tidegate-mesh/tidegate/proto/status/v1"
)

func status(service string, terms map[string]uint64) *statusv1.ServiceStatus {
	return &statusv1.ServiceStatus{Service: service, Ledger: &statusv1.Ledger{Terms: terms}}
}

func capture(received uint64) []*statusv1.ServiceStatus {
	return []*statusv1.ServiceStatus{
		status("ingest", map[string]uint64{"raised": 10, "received": received, "ring_drops": 2, "lost_at_restart": 0, "accounted": 7, "undecodable": 1}),
		status("classify", map[string]uint64{"records_received": 5, "published": 6, "already_published": 0, "unpublished": 0}),
	}
}

func TestBalance(t *testing.T) {
	s := Balance(capture(8))
	if len(s.Stages) != 3 {
		t.Fatalf("%d stages, want capture, decode and publish: %+v", len(s.Stages), s.Stages)
	}
	for i, want := range []struct {
		stage string
		diff  int64
	}{{"capture", 0}, {"decode", 0}, {"publish", -1}} {
		if s.Stages[i].Stage != want.stage || s.Stages[i].Difference != want.diff {
			t.Errorf("stage %d is %+v, want %+v", i, s.Stages[i], want)
		}
	}
	if s.Difference != 1 {
		t.Errorf("difference %d, want 1: a negative one counts too", s.Difference)
	}
	if d := Balance(capture(7)).Difference; d != 3 {
		t.Errorf("difference %d, want 1 + 1 + 1", d)
	}
}

func TestCollector(t *testing.T) {
	c := NewCollector(func() []*statusv1.ServiceStatus { return capture(8) })
	err := testutil.CollectAndCompare(c, strings.NewReader(`
# HELP tidegate_ledger What went into a stage of the ledger, packets, flows, batches or records.
# TYPE tidegate_ledger gauge
tidegate_ledger{stage="capture"} 10
tidegate_ledger{stage="decode"} 8
tidegate_ledger{stage="publish"} 5
# HELP tidegate_ledger_difference What is unaccounted for in all stages: in flight, or lost.
# TYPE tidegate_ledger_difference gauge
tidegate_ledger_difference 1
`))
	if err != nil {
		t.Error(err)
	}
}

func TestInstancesAddUp(t *testing.T) {
	one := func(received, accounted uint64) *statusv1.ServiceStatus {
		return &statusv1.ServiceStatus{Service: "ingest", Ledger: &statusv1.Ledger{Terms: map[string]uint64{
			"received": received, "accounted": accounted, "undecodable": 1,
		}}}
	}
	s := Balance([]*statusv1.ServiceStatus{one(10, 9), one(20, 18)})
	if len(s.Stages) != 1 || s.Stages[0].In != 30 || s.Stages[0].Out["accounted"] != 27 || s.Difference != 1 {
		t.Errorf("two sensors give %+v", s)
	}
}
