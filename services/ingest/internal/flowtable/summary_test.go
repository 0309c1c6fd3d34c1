package flowtable

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/sketch"
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

// TestSummariesOfCraftedAddresses: a flood over a /64 cannot choose hosts that all meet in one place of the summaries' table,
// where each of its flows would search through those before.
func TestSummariesOfCraftedAddresses(t *testing.T) {
	r := newRig(t, func(c *Config) { c.SummariseAbove, c.Seed = 1, 99 })
	hash := func(a *[16]byte) uint64 {
		return sketch.Mix(binary.LittleEndian.Uint64(a[:8]) ^ sketch.Mix(binary.LittleEndian.Uint64(a[8:])+6))
	}
	dst := [16]byte{0x20, 1, 0xD, 0xB8}
	for n, i := 0, uint64(0); n < 512; i++ {
		if binary.LittleEndian.PutUint64(dst[8:], i); hash(&dst)%summarySlots == 0 {
			r.table.sums.add(&dst, 6, 1, 40)
			n++
		}
	}
	run, longest := 0, 0
	for _, slot := range r.table.sums.slots {
		if run++; slot == 0 {
			run = 0
		}
		longest = max(longest, run)
	}
	if longest > 32 {
		t.Errorf("%d places in a row are taken by 512 hosts", longest)
	}
}
