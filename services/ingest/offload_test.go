package ingest

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
)

// fakeGate is a flow map.
type fakeGate struct {
	flows map[xdp.FlowKey]xdp.FlowMeter
	full  bool
}

func newFakeGate() *fakeGate { return &fakeGate{flows: map[xdp.FlowKey]xdp.FlowMeter{}} }

func (g *fakeGate) AllowFlow(keys []xdp.FlowKey) error {
	if g.full && len(keys) > 0 {
		return errors.New("full")
	}
	for _, k := range keys {
		g.flows[k] = xdp.FlowMeter{Key: k}
	}
	return nil
}

func (g *fakeGate) ForgetFlow(keys []xdp.FlowKey) error {
	for _, k := range keys {
		delete(g.flows, k)
	}
	return nil
}

func (g *fakeGate) AllowedFlows(dst []xdp.FlowMeter) ([]xdp.FlowMeter, error) {
	for _, m := range g.flows {
		dst = append(dst, m)
	}
	return dst, nil
}

// carry lets the gate forward packets of 114 bytes.
func (g *fakeGate) carry(k xdp.FlowKey, packets uint64) {
	m := g.flows[k]
	m.Packets += packets
	m.Bytes += 114 * packets
	m.LastNs = xdp.MonotonicNow()
	g.flows[k] = m
}

func testKey(port uint16) flow.Key {
	return flow.Key{Src: [16]byte{15: 1}, Dst: [16]byte{15: 2}, SrcPort: port, DstPort: 443, Protocol: 6}
}

func TestOffload(t *testing.T) {
	a, b := newFakeGate(), newFakeGate()
	busy := false
	var got []meterReading
	var forgotten []uint64
	o := newOffload(telemetry.Discard("ingest"), 2, func(queue int, m mail) bool {
		if queue != 3 {
			t.Errorf("readings for queue %d, want 3", queue)
		}
		if busy {
			return false
		}
		got, forgotten = append(got, m.meters...), append(forgotten, m.forgotten...)
		return true
	})
	_ = a.AllowFlow([]xdp.FlowKey{gateKey(testKey(9))}) // of a predecessor
	if err := forgetAll(a); err != nil || len(a.flows) != 0 {
		t.Fatalf("%d flows are left, %v", len(a.flows), err)
	}
	o.start([]flowGate{a, b})
	const id1, id2, id3 = 3<<56 | 1, 3<<56 | 2, 3<<56 | 3
	if !o.add(id1, testKey(1)) || !o.add(id2, testKey(2)) || o.add(id3, testKey(3)) {
		t.Error("two flows fit, not three")
	}
	now := t0
	o.step(now)
	if len(a.flows) != 4 || len(b.flows) != 4 || o.forwards.Load() != 2 || o.refused.Load() != 1 {
		t.Fatalf("%d and %d keys, %d flows, %d refused", len(a.flows), len(b.flows), o.forwards.Load(), o.refused.Load())
	}

	// Deltas, in IP bytes, of the direction that carried them; what a busy worker refuses comes later.
	fwd, rev := testKey(1), testKey(1).Reverse()
	a.carry(gateKey(fwd), 10)
	o.step(now)
	busy = true
	a.carry(gateKey(fwd), 5)
	o.step(now)
	busy = false
	a.carry(gateKey(fwd), 1)
	o.step(now)
	b.carry(gateKey(rev), 7)
	o.step(now)
	want := []meterReading{{key: fwd, packets: 10, bytes: 1000}, {key: fwd, packets: 6, bytes: 600}, {key: rev, packets: 7, bytes: 700}}
	if len(got) != len(want) {
		t.Fatalf("readings %+v", got)
	}
	for i := range want {
		if age := time.Since(time.Unix(0, got[i].lastNs)); age < 0 || age > time.Minute {
			t.Errorf("reading %d is from %v ago", i, age)
		}
		got[i].lastNs = 0
		if got[i] != want[i] {
			t.Errorf("reading %d is %+v, want %+v", i, got[i], want[i])
		}
	}
	if o.metered.Load() != 23 {
		t.Errorf("metered %d packets", o.metered.Load())
	}

	// An ended flow makes room; what it carried last is read before.
	a.carry(gateKey(fwd), 2)
	o.end(id1)
	o.step(now)
	if len(a.flows) != 2 || len(b.flows) != 2 || o.metered.Load() != 25 || !o.add(id3, testKey(3)) {
		t.Errorf("after the end: %d keys, %d metered", len(a.flows), o.metered.Load())
	}
	// Ended before it was added.
	o.end(id3)
	o.step(now)
	if o.forwards.Load() != 1 || len(a.flows) != 2 {
		t.Errorf("%d flows, %d keys", o.forwards.Load(), len(a.flows))
	}
	// A flow that carries nothing goes back to user space.
	o.step(now.Add(offloadIdle + time.Second))
	if o.forwards.Load() != 0 || len(a.flows) != 0 || len(b.flows) != 0 {
		t.Errorf("%d flows, %d and %d keys", o.forwards.Load(), len(a.flows), len(b.flows))
	}
	if !slices.Equal(forgotten, []uint64{id2}) {
		t.Errorf("the worker was told of %v, want %d", forgotten, uint64(id2))
	}
	// A gate that takes nothing leaves no half flow.
	b.full = true
	o.add(id1, testKey(1))
	o.step(now)
	if o.forwards.Load() != 0 || len(a.flows) != 0 || len(forgotten) != 2 {
		t.Errorf("%d flows, %d keys in the other gate", o.forwards.Load(), len(a.flows))
	}
	b.full = false
	o.add(id1, testKey(1))
	o.step(now)
	o.stop(now)
	if o.forwards.Load() != 0 || len(a.flows)+len(b.flows) != 0 {
		t.Errorf("after stop: %d flows, %d and %d keys", o.forwards.Load(), len(a.flows), len(b.flows))
	}
}

func TestNetworkBytes(t *testing.T) {
	for _, c := range []struct {
		frames, packets uint64
		tagged          bool
		want            uint64
	}{{0, 0, false, 0}, {64, 1, false, 50}, {64, 1, true, 46}, {10, 1, false, 0}} {
		if got := networkBytes(c.frames, c.packets, c.tagged); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}
