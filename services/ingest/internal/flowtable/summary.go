package flowtable

import (
	"encoding/binary"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/sketch"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

const (
	// maxSummaries bounds the destinations summed up between two hand-overs.
	maxSummaries = 1024
	summarySlots = 4 * maxSummaries
)

type summary struct {
	dst      [16]byte
	protocol uint8
	flows    uint64
	packets  uint64
	bytes    uint64
}

// summaries add up flows per destination and protocol. When there are too many destinations the rest goes to
// the unspecified address and protocol 0.
type summaries struct {
	slots [summarySlots]uint16 // number of the summary, 0 = empty (number 0 is the rest)
	list  []summary
	seed  uint64   // so that nobody can craft addresses that share a slot
	key   flow.Key // of the one at hand, here so that it is not allocated
}

func (s *summaries) init(seed uint64) {
	s.seed = seed
	s.list = make([]summary, 1, maxSummaries+1)
}

func (s *summaries) add(dst *[16]byte, protocol uint8, packets, bytes uint64) {
	h := sketch.Mix(binary.LittleEndian.Uint64(dst[:8]) ^ s.seed ^ sketch.Mix(binary.LittleEndian.Uint64(dst[8:])+uint64(protocol)))
	n := uint16(0)
	for pos := h % summarySlots; ; pos = (pos + 1) % summarySlots {
		n = s.slots[pos]
		if n == 0 {
			if len(s.list) <= maxSummaries {
				n = uint16(len(s.list)) //nolint:gosec // at most 1,024
				s.slots[pos] = n
				s.list = append(s.list, summary{dst: *dst, protocol: protocol})
			}
			break
		}
		if s.list[n].protocol == protocol && s.list[n].dst == *dst {
			break
		}
	}
	e := &s.list[n]
	e.flows++
	e.packets += packets
	e.bytes += bytes
}

// emit appends the summaries to the batches, whose earlier FlowSummary values it uses again, and starts over.
func (s *summaries) emit(to *Out) {
	if len(s.list) == 1 && s.list[0].flows == 0 {
		return
	}
	for i := range s.list {
		e := &s.list[i]
		if e.flows == 0 {
			continue
		}
		s.key.Dst, s.key.Protocol = e.dst, e.protocol
		out := to.of(&s.key)
		var m *flowv1.FlowSummary
		if n := len(out.Summaries); n < cap(out.Summaries) {
			out.Summaries = out.Summaries[:n+1]
			m = out.Summaries[n]
		} else {
			out.Summaries = append(out.Summaries, nil)
		}
		if m == nil {
			m = &flowv1.FlowSummary{}
			out.Summaries[len(out.Summaries)-1] = m
		}
		m.DstIp = append(m.DstIp[:0], e.dst[:]...)
		m.Protocol, m.Flows, m.Packets, m.Bytes = uint32(e.protocol), e.flows, e.packets, e.bytes
	}
	clear(s.slots[:])
	s.list = s.list[:1]
	s.list[0] = summary{}
}
