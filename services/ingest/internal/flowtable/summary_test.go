package flowtable

import (
	"testing"
	"time"
)

func TestSummaries(t *testing.T) {
	r := newRig(t, func(c *Config) { c.SummariseAbove = 10 })
	for i := range 500 {
		r.tcp("203.0.113.1", uint16(i+1), "198.51.100.1", 80, flagSYN, 1, "")
	}
	for i := range 20 {
		r.udp("203.0.113.1", uint16(i+1), "198.51.100.2", 80, "")
	}
	r.wait(6 * time.Second)
	s := r.table.Stats()
	if s.Summarised == 0 || s.Active != 0 || s.Ended+s.Summarised != 520 {
		t.Fatalf("%+v", s)
	}
	var flows, n uint64
	for _, m := range r.out.Summaries {
		flows += m.Flows
		n += m.Bytes
		if len(m.DstIp) != 16 || m.Protocol != 6 && m.Protocol != 17 {
			t.Errorf("summary %v", m)
		}
	}
	if flows != s.Summarised || n == 0 {
		t.Errorf("summaries hold %d flows, %d are counted", flows, s.Summarised)
	}
	r.ledger()
}
