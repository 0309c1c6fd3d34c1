package ops

import (
	"net/netip"
	"time"
)

// Range is a span of time: From is in it, To is not. A zero From is the beginning, a zero To is now.
type Range struct {
	From, To time.Time
}

// Paging is where a listing goes on and how long a page is.
type Paging struct {
	Limit  int    // items, 1 to 1,000; 0: 100
	Cursor string // Next of the page before; empty: the first
}

// FlowFilter selects flows; zero fields select all.
type FlowFilter struct {
	Range  Range
	Prefix netip.Prefix // either end inside
	Port   uint16       // either end
	App    string
	Host   string

	JA3, JA4, HASSH string
	Confidence      string
	Risk            string // flows that carry it; a name of libs/flow
}

// FlowQuery asks for flows, the newest first.
type FlowQuery struct {
	FlowFilter
	Paging
}

// TopQuery asks for a ranking.
type TopQuery struct {
	FlowFilter
	By    string // src, dst, app, host or port
	Limit int    // rows, 1 to 1,000; 0: 10
}

// SeriesQuery asks for traffic over time. Range.From must be set.
type SeriesQuery struct {
	FlowFilter
	Step  time.Duration // at least 1 s; 0: at most 300 buckets
	By    string        // empty or app
	Limit int           // series, 1 to 100; 0: 10
}

// AttackQuery asks for attacks, the newest first.
type AttackQuery struct {
	Range  Range
	Type   string
	Active bool // those that go on
	Paging
}

// VerdictQuery asks for verdicts, the newest first.
type VerdictQuery struct {
	Range    Range
	AttackID string
	Paging
}

// AuditQuery asks for changes, the newest first.
type AuditQuery struct {
	Range  Range
	Actor  string
	Action string
	Target string
	Paging
}
