// Package flowtable keeps the flows of one rx queue: one entry for both directions of a flow, found by a
// symmetric hash, with timeouts by a timing wheel and records appended straight into the batch that goes to
// classify. Nothing is allocated per packet; memory for a set number of flows is reserved and used as they come.
//
// A Table belongs to one goroutine. It is deterministic: the same packets with the same times give the same
// records in the same order.
package flowtable

import "time"

// Limits of the payload that is sent of a flow, per direction.
const (
	MaxSegments     = 8
	MaxSegmentBytes = 4096
)

// MaxFlowsLimit is the largest MaxFlows: a flow id has 24 bits for the entry.
const MaxFlowsLimit = 1 << 24

// Config sizes and times a Table. Zero durations and a zero MaxFlows take DefaultConfig's value, except Active
// and Update, where zero means never.
type Config struct {
	MaxFlows     int // entries at most; about 144 bytes each with their index, and 32 more for TCP with a SYN or payload
	InitialFlows int // the index is sized for this many at once and doubles after; 0 = MaxFlows

	IdleTCP, IdleUDP, IdleOther time.Duration
	// IdleSingle is the idle timeout of flows that are one packet without payload sent, so that a flood from
	// random sources does not fill the table.
	IdleSingle time.Duration
	Linger     time.Duration // idle timeout after RST or both FIN
	Active     time.Duration // a part of a flow is exported this often; 0 = never
	Update     time.Duration // running totals are sent this often; 0 = never

	// AnswerTimeout is when an attempt without any answer counts as failed.
	AnswerTimeout time.Duration
	// SummariseAbove is how many one-packet flows whose payload was not sent are exported one by one per
	// 100 ms; more are summed up per destination. 0 = never.
	SummariseAbove int
	// SegmentBudget is how many bytes one-directional flows may take in batches per 100 ms for their payload, with the
	// open and the end of a flow that had none before; flows with packets in both directions may take as much again.
	// A flow whose payload was withheld is told of like one without. 0 = unlimited.
	SegmentBudget int
	// Seed of the hash. Live tables take a random one, so that nobody can craft colliding flows.
	Seed uint64
}

// DefaultConfig returns the defaults for live traffic.
func DefaultConfig() Config {
	return Config{
		MaxFlows:       1 << 20,
		IdleTCP:        120 * time.Second,
		IdleUDP:        60 * time.Second,
		IdleOther:      30 * time.Second,
		IdleSingle:     5 * time.Second,
		Linger:         2 * time.Second,
		Active:         60 * time.Second,
		Update:         10 * time.Second,
		AnswerTimeout:  3 * time.Second,
		SummariseAbove: 2000,
		SegmentBudget:  2 << 20,
	}
}

// normalise fills in defaults.
func (c *Config) normalise() {
	d := DefaultConfig()
	if c.MaxFlows <= 0 {
		c.MaxFlows = d.MaxFlows
	}
	c.MaxFlows = min(c.MaxFlows, MaxFlowsLimit)
	if c.InitialFlows <= 0 || c.InitialFlows > c.MaxFlows {
		c.InitialFlows = c.MaxFlows
	}
	for _, f := range []struct{ v, d *time.Duration }{
		{&c.IdleTCP, &d.IdleTCP}, {&c.IdleUDP, &d.IdleUDP}, {&c.IdleOther, &d.IdleOther},
		{&c.IdleSingle, &d.IdleSingle}, {&c.Linger, &d.Linger}, {&c.AnswerTimeout, &d.AnswerTimeout},
	} {
		if *f.v <= 0 {
			*f.v = *f.d
		}
	}
	c.SummariseAbove = max(c.SummariseAbove, 0)
	c.SegmentBudget = max(c.SegmentBudget, 0)
}
