package flow

import (
	"encoding/binary"
	"fmt"

	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

// Open announces a flow: its key in the direction of the first packet, and that packet's facts.
type Open struct {
	ID        uint64
	Key       Key
	FirstNs   int64 // Unix ns
	TCPFlags  uint8
	IPLength  uint16
	TTL       uint8
	PortIndex uint8 // which interface of the sensor
}

// Totals are counters of both directions; bytes are IP bytes.
type Totals struct {
	PacketsFwd, PacketsRev uint64
	BytesFwd, BytesRev     uint64
}

// TCP is what the sensor measured of a TCP flow. RTTs are of its handshake, in microseconds, at least 1, and 0 where they
// were not measured: the client's is from the SYN-ACK to the ACK as the sensor sees them, the server's from the SYN to the
// SYN-ACK, and their sum is the round trip. Retransmits are segments of this part.
type TCP struct {
	RTTClientUs, RTTServerUs       uint32
	RetransmitsFwd, RetransmitsRev uint32
}

// End closes a flow, or one active-timeout part of it.
type End struct {
	ID              uint64
	Key             Key
	FirstNs, LastNs int64
	Totals          Totals
	FlagsFwd        uint8
	FlagsRev        uint8
	Reason          flowv1.EndReason
	Part            uint16
	TCP             TCP
	NoTCP           bool // read from a sensor of an older version, which does not measure it; not for writing
}

// Bytes of a record on the wire at most; a segment's payload comes on top.
const (
	OpenBytes    = 66
	SegmentBytes = 24
	UpdateBytes  = 48
	EndBytes     = 120
	SummaryBytes = 60
)

// AppendOpen adds a record to the batch's columns.
func AppendOpen(b *flowv1.FlowBatch, o *Open) {
	if b.Opens == nil {
		b.Opens = &flowv1.FlowOpens{}
	}
	c := b.Opens
	c.Count++
	c.FlowId = le.AppendUint64(c.FlowId, o.ID)
	c.SrcIp = append(c.SrcIp, o.Key.Src[:]...)
	c.DstIp = append(c.DstIp, o.Key.Dst[:]...)
	c.SrcPort = le.AppendUint16(c.SrcPort, o.Key.SrcPort)
	c.DstPort = le.AppendUint16(c.DstPort, o.Key.DstPort)
	c.Protocol = append(c.Protocol, o.Key.Protocol)
	c.Vlan = le.AppendUint16(c.Vlan, o.Key.VLAN)
	c.FirstNs = le.AppendUint64(c.FirstNs, uint64(o.FirstNs)) //nolint:gosec // Unix ns of packets are positive
	c.TcpFlags = append(c.TcpFlags, o.TCPFlags)
	c.IpLength = le.AppendUint16(c.IpLength, o.IPLength)
	c.Ttl = append(c.Ttl, o.TTL)
	c.PortIndex = append(c.PortIndex, o.PortIndex)
	if o.Key.Tunnel != 0 {
		c.Tunnel = appendSparse(c.Tunnel, int(c.Count), o.Key.Tunnel)
	}
}

// appendSparse appends v as value count of a column that ends with its last value other than 0: most sensors see no tunnel,
// and then the column costs nothing.
func appendSparse(column []byte, count int, v uint32) []byte {
	for len(column) < 4*(count-1) {
		column = le.AppendUint32(column, 0)
	}
	return le.AppendUint32(column, v)
}

// AppendSegment copies payload into the batch. direction is 0 from the flow's source, 1 towards it;
// payload is at most 65,535 bytes.
func AppendSegment(b *flowv1.FlowBatch, id uint64, direction uint8, offset uint32, timeNs int64, payload []byte) {
	if b.Segments == nil {
		b.Segments = &flowv1.FlowSegments{}
	}
	c := b.Segments
	c.Count++
	c.FlowId = le.AppendUint64(c.FlowId, id)
	c.Direction = append(c.Direction, direction)
	c.Offset = le.AppendUint32(c.Offset, offset)
	c.Length = le.AppendUint16(c.Length, uint16(len(payload))) //nolint:gosec // an IP payload fits 16 bits
	c.TimeNs = le.AppendUint64(c.TimeNs, uint64(timeNs))       //nolint:gosec // Unix ns of packets are positive
	c.Data = append(c.Data, payload...)
}

// AppendUpdate adds running totals of a flow.
func AppendUpdate(b *flowv1.FlowBatch, id uint64, t Totals, lastNs int64) {
	if b.Updates == nil {
		b.Updates = &flowv1.FlowUpdates{}
	}
	c := b.Updates
	c.Count++
	c.FlowId = le.AppendUint64(c.FlowId, id)
	c.PacketsFwd = le.AppendUint64(c.PacketsFwd, t.PacketsFwd)
	c.PacketsRev = le.AppendUint64(c.PacketsRev, t.PacketsRev)
	c.BytesFwd = le.AppendUint64(c.BytesFwd, t.BytesFwd)
	c.BytesRev = le.AppendUint64(c.BytesRev, t.BytesRev)
	c.LastNs = le.AppendUint64(c.LastNs, uint64(lastNs)) //nolint:gosec // Unix ns of packets are positive
}

// AppendEnd adds the end of a flow.
func AppendEnd(b *flowv1.FlowBatch, e *End) {
	if b.Ends == nil {
		b.Ends = &flowv1.FlowEnds{}
	}
	c := b.Ends
	c.Count++
	c.FlowId = le.AppendUint64(c.FlowId, e.ID)
	c.SrcIp = append(c.SrcIp, e.Key.Src[:]...)
	c.DstIp = append(c.DstIp, e.Key.Dst[:]...)
	c.SrcPort = le.AppendUint16(c.SrcPort, e.Key.SrcPort)
	c.DstPort = le.AppendUint16(c.DstPort, e.Key.DstPort)
	c.Protocol = append(c.Protocol, e.Key.Protocol)
	c.Vlan = le.AppendUint16(c.Vlan, e.Key.VLAN)
	c.FirstNs = le.AppendUint64(c.FirstNs, uint64(e.FirstNs)) //nolint:gosec // Unix ns of packets are positive
	c.LastNs = le.AppendUint64(c.LastNs, uint64(e.LastNs))    //nolint:gosec // Unix ns of packets are positive
	c.PacketsFwd = le.AppendUint64(c.PacketsFwd, e.Totals.PacketsFwd)
	c.PacketsRev = le.AppendUint64(c.PacketsRev, e.Totals.PacketsRev)
	c.BytesFwd = le.AppendUint64(c.BytesFwd, e.Totals.BytesFwd)
	c.BytesRev = le.AppendUint64(c.BytesRev, e.Totals.BytesRev)
	c.TcpFlagsFwd = append(c.TcpFlagsFwd, e.FlagsFwd)
	c.TcpFlagsRev = append(c.TcpFlagsRev, e.FlagsRev)
	c.Reason = append(c.Reason, uint8(e.Reason)) //nolint:gosec // an enum of a few values
	c.Part = le.AppendUint16(c.Part, e.Part)
	c.Tcp = le.AppendUint64(c.Tcp, uint64(e.TCP.RTTClientUs)|uint64(e.TCP.RTTServerUs)<<32)
	c.Tcp = le.AppendUint64(c.Tcp, uint64(e.TCP.RetransmitsFwd)|uint64(e.TCP.RetransmitsRev)<<32)
	if e.Key.Tunnel != 0 {
		c.Tunnel = appendSparse(c.Tunnel, int(c.Count), e.Key.Tunnel)
	}
}

var le = binary.LittleEndian

// OpenAt reads open i; i < Count of a batch that Validate accepted.
func OpenAt(c *flowv1.FlowOpens, i int) Open {
	return Open{
		ID: Column(c.FlowId).U64(i),
		Key: Key{
			Src: Column(c.SrcIp).IP(i), Dst: Column(c.DstIp).IP(i),
			SrcPort: Column(c.SrcPort).U16(i), DstPort: Column(c.DstPort).U16(i),
			VLAN: Column(c.Vlan).U16(i), Protocol: c.Protocol[i], Tunnel: Column(c.Tunnel).U32OrZero(i),
		},
		FirstNs:  int64(Column(c.FirstNs).U64(i)), //nolint:gosec // written from an int64
		TCPFlags: c.TcpFlags[i], IPLength: Column(c.IpLength).U16(i), TTL: c.Ttl[i], PortIndex: c.PortIndex[i],
	}
}

// EndAt reads end i; i < Count of a batch that Validate accepted.
func EndAt(c *flowv1.FlowEnds, i int) End {
	e := End{
		ID: Column(c.FlowId).U64(i),
		Key: Key{
			Src: Column(c.SrcIp).IP(i), Dst: Column(c.DstIp).IP(i),
			SrcPort: Column(c.SrcPort).U16(i), DstPort: Column(c.DstPort).U16(i),
			VLAN: Column(c.Vlan).U16(i), Protocol: c.Protocol[i], Tunnel: Column(c.Tunnel).U32OrZero(i),
		},
		FirstNs: int64(Column(c.FirstNs).U64(i)), //nolint:gosec // written from an int64
		LastNs:  int64(Column(c.LastNs).U64(i)),  //nolint:gosec // written from an int64
		Totals: Totals{
			PacketsFwd: Column(c.PacketsFwd).U64(i), PacketsRev: Column(c.PacketsRev).U64(i),
			BytesFwd: Column(c.BytesFwd).U64(i), BytesRev: Column(c.BytesRev).U64(i),
		},
		FlagsFwd: c.TcpFlagsFwd[i], FlagsRev: c.TcpFlagsRev[i],
		Reason: flowv1.EndReason(c.Reason[i]), Part: Column(c.Part).U16(i), NoTCP: len(c.Tcp) == 0,
	}
	if !e.NoTCP {
		v := Column(c.Tcp)
		e.TCP = TCP{
			RTTClientUs: v.U32(4 * i), RTTServerUs: v.U32(4*i + 1), RetransmitsFwd: v.U32(4*i + 2), RetransmitsRev: v.U32(4*i + 3),
		}
	}
	return e
}

// Records is how many records a batch holds: opens, segments, updates and ends.
func Records(b *flowv1.FlowBatch) int {
	return int(b.GetOpens().GetCount()) + int(b.GetSegments().GetCount()) +
		int(b.GetUpdates().GetCount()) + int(b.GetEnds().GetCount())
}

// Reset empties a batch and keeps its memory for the next.
func Reset(b *flowv1.FlowBatch) {
	b.Traceparent = ""
	b.Summaries = b.Summaries[:0]
	if c := b.Opens; c != nil {
		c.Count = 0
		for _, p := range []*[]byte{&c.FlowId, &c.SrcIp, &c.DstIp, &c.SrcPort, &c.DstPort, &c.Protocol, &c.Vlan,
			&c.FirstNs, &c.TcpFlags, &c.IpLength, &c.Ttl, &c.PortIndex, &c.Tunnel} {
			*p = (*p)[:0]
		}
	}
	if c := b.Segments; c != nil {
		c.Count = 0
		for _, p := range []*[]byte{&c.FlowId, &c.Direction, &c.Offset, &c.Length, &c.TimeNs, &c.Data} {
			*p = (*p)[:0]
		}
	}
	if c := b.Updates; c != nil {
		c.Count = 0
		for _, p := range []*[]byte{&c.FlowId, &c.PacketsFwd, &c.PacketsRev, &c.BytesFwd, &c.BytesRev, &c.LastNs} {
			*p = (*p)[:0]
		}
	}
	if c := b.Ends; c != nil {
		c.Count = 0
		for _, p := range []*[]byte{&c.FlowId, &c.SrcIp, &c.DstIp, &c.SrcPort, &c.DstPort, &c.Protocol, &c.Vlan,
			&c.FirstNs, &c.LastNs, &c.PacketsFwd, &c.PacketsRev, &c.BytesFwd, &c.BytesRev,
			&c.TcpFlagsFwd, &c.TcpFlagsRev, &c.Reason, &c.Part, &c.Tcp, &c.Tunnel} {
			*p = (*p)[:0]
		}
	}
}

// column is one column's name, bytes and value size.
type column struct {
	name string
	b    []byte
	size int
}

// Validate checks that every column has exactly count values, tunnel at most so many, and that the segments' lengths add
// up to their data, so that readers may index without further checks.
func Validate(b *flowv1.FlowBatch) error {
	if c := b.Opens; c != nil {
		if err := check("opens", c.Count, []column{
			{"flow_id", c.FlowId, 8}, {"src_ip", c.SrcIp, 16}, {"dst_ip", c.DstIp, 16}, {"src_port", c.SrcPort, 2},
			{"dst_port", c.DstPort, 2}, {"protocol", c.Protocol, 1}, {"vlan", c.Vlan, 2}, {"first_ns", c.FirstNs, 8},
			{"tcp_flags", c.TcpFlags, 1}, {"ip_length", c.IpLength, 2}, {"ttl", c.Ttl, 1}, {"port_index", c.PortIndex, 1},
		}); err != nil {
			return err
		}
		if err := checkSparse("opens", c.Count, c.Tunnel); err != nil {
			return err
		}
	}
	if c := b.Segments; c != nil {
		if err := check("segments", c.Count, []column{
			{"flow_id", c.FlowId, 8}, {"direction", c.Direction, 1}, {"offset", c.Offset, 4},
			{"length", c.Length, 2}, {"time_ns", c.TimeNs, 8},
		}); err != nil {
			return err
		}
		sum := 0
		for i := range int(c.Count) {
			sum += int(Column(c.Length).U16(i))
		}
		if sum != len(c.Data) {
			return fmt.Errorf("flow batch: segments: lengths add up to %d bytes, data has %d", sum, len(c.Data))
		}
	}
	if c := b.Updates; c != nil {
		if err := check("updates", c.Count, []column{
			{"flow_id", c.FlowId, 8}, {"packets_fwd", c.PacketsFwd, 8}, {"packets_rev", c.PacketsRev, 8},
			{"bytes_fwd", c.BytesFwd, 8}, {"bytes_rev", c.BytesRev, 8}, {"last_ns", c.LastNs, 8},
		}); err != nil {
			return err
		}
	}
	if c := b.Ends; c != nil {
		tcp := column{"tcp", c.Tcp, 16}
		if len(c.Tcp) == 0 { // a sensor of an older version
			tcp.size = 0
		}
		if err := check("ends", c.Count, []column{
			{"flow_id", c.FlowId, 8}, {"src_ip", c.SrcIp, 16}, {"dst_ip", c.DstIp, 16}, {"src_port", c.SrcPort, 2},
			{"dst_port", c.DstPort, 2}, {"protocol", c.Protocol, 1}, {"vlan", c.Vlan, 2}, {"first_ns", c.FirstNs, 8},
			{"last_ns", c.LastNs, 8}, {"packets_fwd", c.PacketsFwd, 8}, {"packets_rev", c.PacketsRev, 8},
			{"bytes_fwd", c.BytesFwd, 8}, {"bytes_rev", c.BytesRev, 8}, {"tcp_flags_fwd", c.TcpFlagsFwd, 1},
			{"tcp_flags_rev", c.TcpFlagsRev, 1}, {"reason", c.Reason, 1}, {"part", c.Part, 2}, tcp,
		}); err != nil {
			return err
		}
		return checkSparse("ends", c.Count, c.Tunnel)
	}
	return nil
}

func check(group string, count uint32, cols []column) error {
	for _, c := range cols {
		if len(c.b) != int(count)*c.size {
			return fmt.Errorf("flow batch: %s.%s has %d bytes, want %d for %d records", group, c.name, len(c.b), int(count)*c.size, count)
		}
	}
	return nil
}

func checkSparse(group string, count uint32, tunnel []byte) error {
	if len(tunnel)%4 != 0 || len(tunnel) > 4*int(count) {
		return fmt.Errorf("flow batch: %s.tunnel has %d bytes, want a multiple of 4 of at most %d for %d records", group, len(tunnel), 4*int(count), count)
	}
	return nil
}
