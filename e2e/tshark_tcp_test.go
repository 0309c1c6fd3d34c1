package e2e

import (
	"fmt"
	"math"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/api"
)

// connection is what one side finds of TCP between two ends of a capture.
type connection struct {
	streams     map[string]bool // tshark's numbers
	flows       int             // our records
	rttUs       float64         // 0 = none
	retransmits uint64
	answered    bool // tshark saw a SYN-ACK
}

func (c *content) connection(k tuple) *connection {
	if c.tcp[k] == nil {
		c.tcp[k] = &connection{streams: map[string]bool{}}
	}
	return c.tcp[k]
}

func (c *content) replayedTCP(k tuple, f *api.TCPFacts) {
	x := c.connection(k)
	x.flows++
	x.rttUs = float64(f.RTTUs)
	x.retransmits += uint64(f.RetransmitsFwd) + uint64(f.RetransmitsRev)
}

// dissectedTCP takes what tshark's analysis says of a segment.
func (c *content) dissectedTCP(k tuple, next func(field string) string) error {
	stream := next("tcp.stream")
	if stream == "" {
		return nil // a later fragment
	}
	x := c.connection(k)
	x.streams[stream] = true
	const synAck = 0x12
	flags, err := strconv.ParseUint(next("tcp.flags"), 0, 16)
	x.answered = x.answered || err == nil && flags&synAck == synAck // a header that is cut has none
	if rtt := next("tcp.analysis.initial_rtt"); rtt != "" {
		s, err := strconv.ParseFloat(rtt, 64)
		if err != nil {
			return fmt.Errorf("round trip: %w", err)
		}
		x.rttUs = s * 1e6
	}
	if next("tcp.analysis.retransmission")+next("tcp.analysis.fast_retransmission")+next("tcp.analysis.spurious_retransmission") != "" {
		x.retransmits++
	}
	return nil
}

// compareTCP compares the handshake's round trip and the retransmits of each connection with tshark's analysis. All
// captures go through one tshark, so two ends that several captures have are left out, and so are those between which either
// side sees more than one connection: what belongs to which cannot be said.
func compareTCP(t *testing.T, files []string, a, b map[string]*content) {
	t.Helper()
	captures := map[tuple]int{}
	for _, f := range files {
		for k := range b[f].tcp {
			captures[k]++
		}
	}
	var compared, both, same, unanswered, onlyTheirs, onlyOurs int
	var with, equal, near int
	var ourSum, theirSum uint64
	for _, f := range files {
		for k, theirs := range b[f].tcp {
			ours := a[f].tcp[k]
			if ours == nil || captures[k] > 1 || ours.flows != 1 || len(theirs.streams) != 1 {
				continue
			}
			compared++
			switch {
			case ours.rttUs != 0 && theirs.rttUs != 0:
				both++
				// Each of our two parts is of whole microseconds.
				if math.Abs(ours.rttUs-theirs.rttUs) <= 2 {
					same++
				} else {
					t.Logf("%s %v %v: round trip %.0f µs, tshark %.0f", filepath.Base(f), k.a, k.b, ours.rttUs, theirs.rttUs)
				}
			case ours.rttUs != 0:
				onlyOurs++
			case theirs.rttUs != 0 && !theirs.answered:
				unanswered++
			case theirs.rttUs != 0:
				onlyTheirs++
				t.Logf("%s %v %v: no round trip, tshark %.0f", filepath.Base(f), k.a, k.b, theirs.rttUs)
			}
			if ours.retransmits+theirs.retransmits == 0 {
				continue
			}
			with++
			ourSum += ours.retransmits
			theirSum += theirs.retransmits
			if ours.retransmits == theirs.retransmits {
				equal++
				near++
				continue
			}
			if d := int64(ours.retransmits) - int64(theirs.retransmits); d == 1 || d == -1 { //nolint:gosec // small
				near++
			}
			t.Logf("%s %v %v: %d retransmits, tshark %d", filepath.Base(f), k.a, k.b, ours.retransmits, theirs.retransmits)
		}
	}
	t.Logf("%d connections. Round trip of both: %d, the same in %d; only of tshark without a SYN-ACK: %d, with one: %d; only ours: %d. "+
		"With retransmits: %d, as many in %d, one more or less in %d; all together %d, tshark %d",
		compared, both, same, unanswered, onlyTheirs, onlyOurs, with, equal, near, ourSum, theirSum)
	if both < 2000 || 100*same < 99*both || 100*(onlyTheirs+onlyOurs) > both {
		t.Error("round trips: at least 99% of 2,000 or more must be the same, and at most 1% may be missing on a side")
	}
	if with < 500 || 100*equal < 93*with || 100*near < 96*with {
		t.Error("retransmits: of 500 or more connections with some, 93% must have as many and 96% at most one more or less")
	}
}
