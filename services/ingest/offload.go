package ingest

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
)

// meterInterval is how often the kernel's meters are read.
const meterInterval = 100 * time.Millisecond

// offloadIdle is how long a flow may carry nothing before the kernel forgets it; user space then sees its
// next packet.
const offloadIdle = 30 * time.Second

// flowGate is the part of xdp.Gate that forwards flows in the kernel.
type flowGate interface {
	AllowFlow(keys []xdp.FlowKey) error
	ForgetFlow(keys []xdp.FlowKey) error
	AllowedFlows(dst []xdp.FlowMeter) ([]xdp.FlowMeter, error)
}

// meterReading is what the kernel forwarded of a flow in one direction since the last reading.
type meterReading struct {
	key            flow.Key
	packets, bytes uint64 // IP bytes
	lastNs         int64  // Unix ns
}

// offload forwards flows in the kernel once their label is final, and meters them there. Workers add and end
// flows under a short lock; the map system calls are made by run's goroutine.
//
// Both directions are allowed on both ports: each port only ever sees one of them, and which one depends on
// the wiring.
type offload struct {
	tel     *telemetry.Telemetry
	limit   int
	deliver func(queue int, m mail) bool // false: the worker is busy, ask again later

	metered  atomic.Uint64 // packets
	refused  atomic.Uint64 // times that a flow was beyond the limit
	forwards atomic.Int64  // flows now

	mu    sync.Mutex
	added []offloadFlow
	ended []uint64

	gates     []flowGate
	forgotten []uint64 // flows that their workers are to know of
	flows     map[uint64]*offloadFlow
	byKey     map[xdp.FlowKey]direction
	last      []map[xdp.FlowKey]counted // a gate
	buf       []xdp.FlowMeter
}

type offloadFlow struct {
	id   uint64
	key  flow.Key
	used time.Time // when it last carried something
}

type direction struct {
	flow *offloadFlow
	key  flow.Key
}

type counted struct{ packets, bytes uint64 }

func newOffload(tel *telemetry.Telemetry, limit int, deliver func(int, mail) bool) *offload {
	return &offload{tel: tel, limit: limit, deliver: deliver}
}

// add asks for a flow to be forwarded in the kernel; false when there are too many already.
func (o *offload) add(id uint64, key flow.Key) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.added)+int(o.forwards.Load()) >= o.limit {
		o.refused.Add(1)
		return false
	}
	o.added = append(o.added, offloadFlow{id: id, key: key})
	return true
}

// end says that a flow is over. It may come before the flow's addition was done.
func (o *offload) end(id uint64) {
	o.mu.Lock()
	o.ended = append(o.ended, id)
	o.mu.Unlock()
}

// start takes the gates of a newly opened data plane.
func (o *offload) start(gates []flowGate) {
	o.gates = gates
	o.flows = make(map[uint64]*offloadFlow)
	o.byKey = make(map[xdp.FlowKey]direction)
	o.last = make([]map[xdp.FlowKey]counted, len(gates))
	for i := range o.last {
		o.last[i] = make(map[xdp.FlowKey]counted)
	}
	o.mu.Lock()
	o.added, o.ended, o.forgotten = nil, nil, nil
	o.mu.Unlock()
	o.forwards.Store(0)
}

// forgetAll removes the flows that a dead predecessor left in a gate: nobody would meter them.
func forgetAll(g flowGate) error {
	left, err := g.AllowedFlows(nil)
	if err != nil {
		return err
	}
	keys := make([]xdp.FlowKey, len(left))
	for i := range left {
		keys[i] = left[i].Key
	}
	return g.ForgetFlow(keys)
}

// stop reads the meters a last time and gives every flow back to user space, or to the gate's fallback.
func (o *offload) stop(now time.Time) {
	o.read(now)
	var keys []xdp.FlowKey
	for id := range o.flows {
		keys = o.remove(keys, id)
	}
	o.forget(keys)
}

// step is one round: meters, ends, additions. Only one goroutine calls it.
func (o *offload) step(now time.Time) {
	o.read(now)
	o.mu.Lock()
	added, ended := o.added, o.ended
	o.added, o.ended = nil, nil
	o.mu.Unlock()
	var over []xdp.FlowKey
	for _, id := range ended {
		over = o.remove(over, id)
	}
	for id, f := range o.flows {
		if now.Sub(f.used) > offloadIdle {
			over = o.remove(over, id)
			o.forgotten = append(o.forgotten, id)
		}
	}
	o.forget(over)
	o.allow(added, now)
	// A flow may have ended before it was added.
	over = over[:0]
	for _, id := range ended {
		over = o.remove(over, id)
	}
	o.forget(over)
	o.tell()
}

// tell has workers know of flows that they may ask for again.
func (o *offload) tell() {
	queues := make(map[int][]uint64)
	for _, id := range o.forgotten {
		queues[queueOf(id)] = append(queues[queueOf(id)], id)
	}
	o.forgotten = o.forgotten[:0]
	for q, ids := range queues {
		if !o.deliver(q, mail{forgotten: ids}) {
			o.forgotten = append(o.forgotten, ids...)
		}
	}
}

func (o *offload) allow(added []offloadFlow, now time.Time) {
	var keys []xdp.FlowKey
	var ids []uint64
	for i := range added {
		f := &added[i]
		fwd, rev := gateKey(f.key), gateKey(f.key.Reverse())
		_, known := o.byKey[fwd]
		if _, ok := o.flows[f.id]; ok {
			continue
		}
		if known || len(o.flows) >= o.limit {
			o.forgotten = append(o.forgotten, f.id)
			continue
		}
		f.used = now
		o.flows[f.id] = f
		o.byKey[fwd] = direction{f, f.key}
		o.byKey[rev] = direction{f, f.key.Reverse()}
		keys = append(keys, fwd, rev)
		ids = append(ids, f.id)
	}
	o.forwards.Store(int64(len(o.flows)))
	for _, g := range o.gates {
		if err := g.AllowFlow(keys); err != nil {
			o.tel.CountError("allow_flow")
			var undo []xdp.FlowKey
			for _, id := range ids {
				undo = o.remove(undo, id)
			}
			o.forgotten = append(o.forgotten, ids...)
			o.forget(undo)
			return
		}
	}
}

// remove takes a flow out of the tables and appends its keys, which forget then takes out of the gates.
func (o *offload) remove(keys []xdp.FlowKey, id uint64) []xdp.FlowKey {
	f, ok := o.flows[id]
	if !ok {
		return keys
	}
	for _, k := range []xdp.FlowKey{gateKey(f.key), gateKey(f.key.Reverse())} {
		delete(o.byKey, k)
		for _, last := range o.last {
			delete(last, k)
		}
		keys = append(keys, k)
	}
	delete(o.flows, id)
	o.forwards.Store(int64(len(o.flows)))
	return keys
}

func (o *offload) forget(keys []xdp.FlowKey) {
	for _, g := range o.gates {
		if err := g.ForgetFlow(keys); err != nil {
			o.tel.CountError("forget_flow")
		}
	}
}

// update is a reading that becomes the last one when its worker has taken it.
type update struct {
	gate int
	key  xdp.FlowKey
	now  counted
}

// read hands what the kernel forwarded since the last round to the flows' workers. What a busy worker does
// not take is part of the next reading.
func (o *offload) read(now time.Time) {
	if len(o.flows) == 0 {
		return
	}
	readings := make(map[int][]meterReading)
	updates := make(map[int][]update)
	for i, g := range o.gates {
		list, err := g.AllowedFlows(o.buf[:0])
		if err != nil {
			o.tel.CountError("read_meters")
			continue
		}
		o.buf = list
		for j := range list {
			m := &list[j]
			d, ok := o.byKey[m.Key]
			if !ok {
				continue // forgotten meanwhile
			}
			last := o.last[i][m.Key]
			if m.Packets <= last.packets {
				continue
			}
			d.flow.used = now
			q := queueOf(d.flow.id)
			readings[q] = append(readings[q], meterReading{
				key: d.key, packets: m.Packets - last.packets,
				bytes:  networkBytes(m.Bytes-last.bytes, m.Packets-last.packets, m.Key.VLAN != 0),
				lastNs: xdp.MonotonicToUnix(m.LastNs).UnixNano(),
			})
			updates[q] = append(updates[q], update{i, m.Key, counted{m.Packets, m.Bytes}})
		}
	}
	for q, r := range readings {
		if !o.deliver(q, mail{meters: r}) {
			continue
		}
		for _, u := range updates[q] {
			o.last[u.gate][u.key] = u.now
		}
		for i := range r {
			o.metered.Add(r[i].packets)
		}
	}
}

// networkBytes takes the link headers off: the kernel meters frames, flows count IP bytes.
func networkBytes(frames, packets uint64, tagged bool) uint64 {
	header := uint64(14)
	if tagged {
		header = 18
	}
	return frames - min(frames, header*packets)
}

func gateKey(k flow.Key) xdp.FlowKey {
	return xdp.FlowKey{
		Src: k.Src, Dst: k.Dst, SrcPort: k.SrcPort, DstPort: k.DstPort, Proto: k.Protocol, VLAN: k.VLAN,
	}
}

// queueOf is the queue whose table made a flow id.
func queueOf(id uint64) int { return int(id >> 56) } //nolint:gosec // one byte
