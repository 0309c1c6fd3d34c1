package xdp

import (
	"encoding/binary"
	"hash/fnv"
)

// gateABI changes with the layout or the meaning of any map in bpf/state.h.
const gateABI = 8

// The bounds of bpf/state.h.
const (
	maxMasks  = 32
	maskSets  = 64
	maxQueues = 256
	maxLists  = 1024
	keyWords  = 5

	coveredV6    = 1 << 24
	coveredLines = 1 << 16

	sourceWays = 4
	talkWays   = 7

	pairSeed  = 0
	pairSince = 1
)

const (
	ruleWouldDrop = 1 << iota
	ruleRateBits
	ruleSYNRetry
	rulePerSource
	ruleOutOfState
)

// What becomes of packets that no AF_XDP socket takes; by the mode: inline forwards them, tap drops them.
const (
	unreadByMode = iota
	unreadDrop
	unreadPass
)

const (
	neverSource = 1 << iota
	neverDestination
)

// The types below mirror bpf/state.h field by field; TestLayout compares them with the object's BTF.
// Ports are bytes in network order.

type config struct {
	Mode         uint32
	Unread       uint32
	MaskSet      uint32
	NeverUsed    uint32
	HostsUsed    uint32
	PrefixesUsed uint32
	FlowsUsed    uint32
	NextMask     uint32
	CopiesRead   uint32
	TrackedUsed  uint32
	TrackedSince uint64
	RulesVersion uint64
}

type mask struct {
	SrcMask, DstMask         [16]byte
	Common                   common
	ID                       uint16
	Specificity              uint16
	LenMin, LenMax           uint16
	SrcPortMask, DstPortMask uint16
	ProtocolMask             uint8
	TCPMask                  uint8
	TTLMin, TTLMax           uint8
	Family                   uint8
	Fragment                 uint8
	SrcBits, DstBits         uint8
	Variant                  uint8
	Pad                      [7]uint8
}

// common is what all rules of a mask have in common: where a bit of Care is set, all have Want's.
type common struct {
	SrcCare, SrcWant           [16]byte
	DstCare, DstWant           [16]byte
	SrcPortCare, SrcPortWant   [2]byte
	DstPortCare, DstPortWant   [2]byte
	ProtocolCare, ProtocolWant uint8
	TCPCare, TCPWant           uint8
}

type maskSet struct {
	Count   uint32
	Pad     uint32
	Factors [keyWords]uint64
	Masks   [maxMasks]mask
}

type ruleKey struct {
	Src, Dst         [16]byte
	Mask             uint16
	SrcPort, DstPort [2]byte
	Protocol         uint8
	TCPFlags         uint8
}

type ruleValue struct {
	Key       ruleKey
	ExpiresNs uint64
	Slot      uint32
	Priority  int32
	Action    uint8
	Flags     uint8
	Pad       [6]uint8
	ID        uint64
	Rate      uint64
	BurstNs   uint64
}

type hits struct {
	Packets, Bytes, Dropped, LastNs uint64
}

func (h *hits) add(o *hits) {
	h.Packets += o.Packets
	h.Bytes += o.Bytes
	h.Dropped += o.Dropped
	h.LastNs = max(h.LastNs, o.LastNs)
}

type ruleState struct {
	FirstDropNs uint64
	Due         uint64
	Lock        uint32
	Pad         uint32
}

type synBucket struct {
	Seen [4]uint32
}

type sourceLine struct {
	Of [sourceWays]struct{ Mark, Due uint64 }
}

type talkLine struct {
	Mark, Tick         [talkWays]uint32
	Learns, LearnsFrom uint32
}

type known struct {
	LastNs, Due uint64
}

type prefixKey struct {
	Bits uint32
	Addr [16]byte
}

type neverValue struct {
	Own, Flags uint32
}

type hostKey struct {
	Addr [16]byte
}

type listed struct {
	ExpiresNs uint64
	List      uint32
	Action    uint8
	Pad       [3]uint8
}

type flowKey struct {
	Src, Dst         [16]byte
	SrcPort, DstPort [2]byte
	VLAN             uint16
	Protocol         uint8
	Pad              uint8
}

type flowMeter struct {
	Packets, Bytes, LastNs   uint64
	CPU, Pad                 uint32
	OtherPackets, OtherBytes uint64
}

type meta struct {
	ABI         uint32
	Ifindex     uint32
	NetnsInode  uint64
	NetnsCookie uint64
	Build       uint64
	Rules       uint32
	RuleBuckets uint32
	Hosts       uint32
	Prefixes    uint32
	Flows       uint32
	Never       uint32
	Sources     uint32
	Pad         uint32
	Seed        uint64
}

// Geometry is the size of the maps, in entries. A zero field takes what is pinned already, else the
// default. Processes that share an interface must name the same numbers or none.
type Geometry struct {
	Rules    int // rules in force at a time, 1 to 1,048,576
	Hosts    int // single addresses of all lists
	Prefixes int // prefixes of all lists
	Flows    int // flows forwarded in the kernel
	Never    int // never-block prefixes
	Sources  int // those that rules with a rate of each source hold to it at a time, all rules together; 16 bytes each
}

// DefaultGeometry returns 16,384 rules, 2,097,152 hosts, 2,097,152 prefixes, 131,072 flows, 4,096 never-block
// prefixes and 1,048,576 sources. The maps take about 130 MB of kernel memory and 0.5 MB more for each CPU, and grow
// with what is in the address lists: about 100 bytes a host and 200 bytes a prefix.
func DefaultGeometry() Geometry {
	return Geometry{Rules: 16384, Hosts: 2 << 20, Prefixes: 2 << 20, Flows: 131072, Never: 4096, Sources: 1 << 20}
}

// or fills zero fields from o.
func (g Geometry) or(o Geometry) Geometry {
	pick := func(a, b int) int {
		if a > 0 {
			return a
		}
		return b
	}
	return Geometry{
		Rules: pick(g.Rules, o.Rules), Hosts: pick(g.Hosts, o.Hosts), Prefixes: pick(g.Prefixes, o.Prefixes),
		Flows: pick(g.Flows, o.Flows), Never: pick(g.Never, o.Never), Sources: pick(g.Sources, o.Sources),
	}
}

// ruleBuckets is the size of the rule hash: four times the rules, as half-empty buckets are faster.
func (g Geometry) ruleBuckets() int { return 4 * g.Rules }

// sourceLines is the size of the table of sources.
func (g Geometry) sourceLines() int { return (g.Sources + sourceWays - 1) / sourceWays }

func (m *meta) geometry() Geometry {
	return Geometry{Rules: int(m.Rules), Hosts: int(m.Hosts), Prefixes: int(m.Prefixes), Flows: int(m.Flows), Never: int(m.Never), Sources: int(m.Sources)}
}

// build tells one object from another.
func build() uint64 {
	h := fnv.New64a()
	_, _ = h.Write(_GateBytes)
	return h.Sum64()
}

func portBytes(p uint16) (b [2]byte) {
	binary.BigEndian.PutUint16(b[:], p)
	return b
}

func bytesPort(b [2]byte) uint16 { return binary.BigEndian.Uint16(b[:]) }
