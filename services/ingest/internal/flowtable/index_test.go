package flowtable

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/packet"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

func TestEvictionPrefersSinglePackets(t *testing.T) {
	r := newRig(t, func(c *Config) { c.MaxFlows = 64 })
	for i := range 32 {
		r.udp("192.0.2.1", uint16(i+1), "198.51.100.1", 80, "x")
		r.udp("198.51.100.1", 80, "192.0.2.1", uint16(i+1), "x")
	}
	for i := range 1000 {
		r.tcp("203.0.113.1", uint16(i+1), "198.51.100.1", 80, flagSYN, 1, "")
	}
	for i := range 32 {
		if o := r.udp("192.0.2.1", uint16(i+1), "198.51.100.1", 80, "x"); o.New {
			t.Fatal("a flow with two packets was evicted")
		}
	}
	s := r.table.Stats()
	if s.Active != 64 || s.Evicted+s.Untracked != 1000-32 || s.Evicted == 0 {
		t.Errorf("%+v", s)
	}
	r.ledger()
	r = newRig(t, func(c *Config) { c.MaxFlows = 8 })
	for i := range 9 {
		r.udp("192.0.2.1", uint16(i+1), "198.51.100.1", 80, "x")
		o := r.udp("192.0.2.1", uint16(i+1), "198.51.100.1", 80, "x")
		if i == 8 && (!o.Untracked || o.ID != 0) {
			t.Errorf("the table has room: %+v", o)
		}
	}
}

// TestEvictionOfSilentFlows: in a full table a flow that was silent for long makes room, a connection never.
func TestEvictionOfSilentFlows(t *testing.T) {
	r := newRig(t, func(c *Config) { c.MaxFlows = 8 })
	r.tcp("192.0.2.1", 1, "198.51.100.1", 80, flagSYN, 1, "")
	r.tcp("198.51.100.1", 80, "192.0.2.1", 1, flagSYN|flagACK, 1, "")
	if o := r.tcp("192.0.2.1", 1, "198.51.100.1", 80, flagACK, 2, ""); !o.Handshake {
		t.Fatalf("no handshake: %+v", o)
	}
	for i := range 7 {
		for range 2 {
			r.udp("192.0.2.2", uint16(i+1), "198.51.100.1", 53, "x")
		}
		r.now += int64(time.Second)
	}
	if o := r.udp("192.0.2.3", 1, "198.51.100.1", 53, "x"); !o.New {
		t.Errorf("nothing made room after 7 s: %+v", o)
	}
	for i := 1; i < 7; i++ {
		if o := r.udp("192.0.2.2", uint16(i+1), "198.51.100.1", 53, "x"); o.New || o.Untracked {
			t.Errorf("flow %d was evicted, the oldest is flow 0", i)
		}
	}
	r.now += int64(6 * time.Second)
	for i := range 100 {
		r.udp("192.0.2.4", uint16(i+1), "198.51.100.1", 53, "x")
		r.udp("192.0.2.4", uint16(i+1), "198.51.100.1", 53, "x")
	}
	if o := r.tcp("192.0.2.1", 1, "198.51.100.1", 80, flagACK, 2, "x"); o.New || o.Untracked {
		t.Error("the connection was evicted")
	}
	r.ledger()
}

// TestIndexGrows: while an index moves to a larger one each flow is found in both directions, and can end.
func TestIndexGrows(t *testing.T) {
	r := newRig(t, func(c *Config) { c.InitialFlows = 64 })
	moving, ended := 0, map[int]bool{}
	rng := rand.New(rand.NewPCG(3, 3))
	flowAt := func(i int) flow.Key {
		return flow.Key{Src: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}).As16(), SrcPort: 1, Dst: netip.MustParseAddr("198.51.100.1").As16(), DstPort: 80, Protocol: packet.ProtoUDP}
	}
	for i := range 5000 {
		r.udp(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}).String(), 1, "198.51.100.1", 80, "x")
		if r.table.old.slots != nil {
			moving++
		}
		if gone := rng.IntN(i + 1); i%3 == 0 && !ended[gone] {
			k := flowAt(gone)
			n, e, _, ok := r.table.find(r.table.hash(&k), &k)
			if !ok {
				t.Fatalf("flow %d is lost after %d", gone, i)
			}
			ended[gone] = true
			r.table.finish(n, e, flowv1.EndReason_END_REASON_IDLE, r.to)
		}
		for range 3 {
			at := rng.IntN(i + 1)
			k := flowAt(at)
			if at%2 == 0 {
				k = k.Reverse()
			}
			if _, _, _, ok := r.table.find(r.table.hash(&k), &k); ok == ended[at] {
				t.Fatalf("flow %d after %d: found %v, ended %v", at, i, ok, ended[at])
			}
		}
	}
	if size := len(r.table.index.slots); moving < 500 || size < 2*int(r.table.Stats().Active) {
		t.Errorf("the index has %d slots and moved with %d flows", size, moving)
	}
	r.ledger()
}
