package flowtable

import "github.com/tidegate-mesh/tidegate/libs/flow"

// Observation is what one packet meant to its flow. It is made for each packet: the fields stand so that none is padded.
type Observation struct {
	ID uint64 // 0 = untracked
	// Failure is set with Failed; valid until the next call to the table.
	Failure *Failure
	Key     flow.Key // in the direction of the flow's first packet

	New     bool // the packet begins the flow
	Reverse bool // the packet goes against Key
	// Solicited: the packet's receiver sent to this peer in this flow before.
	Solicited bool
	Handshake bool // the packet completes the TCP handshake
	// Failed: the packet shows that an attempt failed, this flow's (RST) or the one that an ICMP message quotes.
	Failed bool
	// Attempt: New, and the packet asks for something. Answers (SYN-ACK, RST, FIN with ACK, ICMP errors and
	// replies, UDP from a reflector's port to a high port), later fragments, segments in mid-stream and
	// packets to multicast or broadcast addresses ask for nothing.
	Attempt bool
	// Invalid: New, with a combination of TCP flags that no stack sends.
	Invalid bool
	// OutOfState: New, and TCP without a plain SYN.
	OutOfState bool
	// Spent: with this packet the flow has sent as much payload as is copied of a direction, and nothing has come against it.
	Spent bool
	// Untracked: the table is full of flows that may not be evicted; the packet is in no flow record.
	Untracked bool
}

// FailureReason says how an attempt failed.
type FailureReason uint8

// The reasons of a Failure.
const (
	Refused     FailureReason = iota + 1 // RST
	Unreachable                          // ICMP or ICMPv6 destination unreachable
	Silence                              // no answer within AnswerTimeout
)

// String returns the reason's name.
func (r FailureReason) String() string {
	switch r {
	case Refused:
		return "refused"
	case Unreachable:
		return "unreachable"
	case Silence:
		return "silence"
	}
	return "none"
}

// Failure is an attempt that failed. Each attempt that the table saw is reported at most once.
type Failure struct {
	ID       uint64   // 0 = the attempt was not seen, only the message that it failed
	Key      flow.Key // from the side that tried
	FirstNs  int64    // the attempt's first packet, Unix ns
	AtNs     int64    // when it failed
	TCPFlags uint8    // sent by the side that tried
	Invalid  bool     // the first packet's TCP flags were impossible
	Reason   FailureReason
}

// Stats are counts since New. Created = Ended + Active + Summarised + Evicted at any time between calls.
type Stats struct {
	Created    uint64
	Ended      uint64 // exported one by one: idle, FIN, RST, shutdown
	Active     uint64
	Summarised uint64 // ended within a FlowSummary
	Evicted    uint64 // exported one by one before their time because the table was full
	Untracked  uint64 // packets without a flow because the table was full
	Withheld   uint64 // payload segments not sent because SegmentBudget was spent
}
