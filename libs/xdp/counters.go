package xdp

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// Counters are packets and their bytes since the maps were made.
// Seen = Drop + RateLimited + Pass + Forward + Redirect + NoReader, and so for bytes.
type Counters struct {
	Seen        uint64
	Drop        uint64 // by a rule or a list
	RateLimited uint64 // in excess of a rule's rate
	Pass        uint64 // to the machine's stack
	Forward     uint64 // to the peer port, in the kernel
	Redirect    uint64 // to an AF_XDP socket; the socket counts what its full ring loses
	NoReader    uint64 // dropped: nobody reads (tap, fail-closed inline), or the peer is gone

	// The rest stands beside the ledger: such packets are also in one of the above.
	Count   uint64 // matched a rule or list that only counts
	Allow   uint64 // matched a rule or list that allows
	Unread  uint64 // part of Forward (and of NoReader if the peer is gone): nobody read the queue
	Never   uint64 // matched a never-block entry
	Metered uint64 // belonged to an allowed flow
	// OutOfState is part of Drop: by rules for packets that belong to nothing their destination has sent.
	OutOfState uint64
	// Forgotten: its source took another's place in the table of sources, who was held to its rate and begins anew.
	Forgotten uint64

	// Copied are parts of Pass in host mode: what came up to user space as a copy, and what the full ring had no room for.
	Copied, Uncopied uint64

	Bytes Bytes
}

// Bytes are those of the frames behind the Counters of the same name, from the Ethernet header on and without
// the check sequence, as the interface counts them. Hits of rules and metered flows are in IP bytes instead.
// Read under traffic, they may be a frame per CPU away from the packets.
type Bytes struct {
	Seen, Drop, RateLimited, Pass, Forward, Redirect, NoReader uint64

	Count uint64 // also in one of the above
}

// Add adds o.
func (b *Bytes) Add(o *Bytes) {
	b.Seen += o.Seen
	b.Drop += o.Drop
	b.RateLimited += o.RateLimited
	b.Pass += o.Pass
	b.Forward += o.Forward
	b.Redirect += o.Redirect
	b.NoReader += o.NoReader
	b.Count += o.Count
}

// Subtract takes off an earlier reading.
func (b *Bytes) Subtract(o *Bytes) {
	b.Seen -= o.Seen
	b.Drop -= o.Drop
	b.RateLimited -= o.RateLimited
	b.Pass -= o.Pass
	b.Forward -= o.Forward
	b.Redirect -= o.Redirect
	b.NoReader -= o.NoReader
	b.Count -= o.Count
}

func (c *Counters) sum() uint64 {
	return c.Drop + c.RateLimited + c.Pass + c.Forward + c.Redirect + c.NoReader
}

func (c *Counters) add(o *Counters) {
	c.Seen += o.Seen
	c.Drop += o.Drop
	c.RateLimited += o.RateLimited
	c.Pass += o.Pass
	c.Forward += o.Forward
	c.Redirect += o.Redirect
	c.NoReader += o.NoReader
	c.Count += o.Count
	c.Allow += o.Allow
	c.Unread += o.Unread
	c.Never += o.Never
	c.Metered += o.Metered
	c.OutOfState += o.OutOfState
	c.Forgotten += o.Forgotten
	c.Copied += o.Copied
	c.Uncopied += o.Uncopied
	c.Bytes.Add(&o.Bytes)
}

// kernelCounters has the order of bpf/state.h.
type kernelCounters struct {
	Seen, Drop, RateLimited, Pass, Forward, Redirect, NoReader, Count, Allow, Unread, Never, Metered, OutOfState, Forgotten, Copied, Uncopied uint64

	DropBytes, RateLimitedBytes, PassBytes, ForwardBytes, RedirectBytes, NoReaderBytes, CountBytes uint64
	ClockTick, ClockNs                                                                             uint64
}

// Counters sums all queues.
func (g *Gate) Counters() (Counters, error) {
	var sum Counters
	queues, err := g.QueueCounters()
	for i := range queues {
		sum.add(&queues[i])
	}
	return sum, err
}

// QueueCounters returns the counters of every rx queue up to the last one that has seen a packet.
func (g *Gate) QueueCounters() ([]Counters, error) {
	var out []Counters
	cpus := ebpf.MustPossibleCPU()
	perCPU := make([]kernelCounters, cpus)
	settled := make([]bool, cpus)
	queues := make([]Counters, maxQueues)
	for q := range queues {
		clear(settled)
		// The CPUs count on while they are read: a CPU caught within a packet is read again, and a CPU that
		// is caught each time has that one packet left for the next call.
		for try, left := 0, cpus; left > 0; try++ {
			if err := g.maps.GateCounters.Lookup(uint32(q), &perCPU); err != nil { //nolint:gosec // below maxQueues
				return nil, fmt.Errorf("%s: read the counters: %w", g.iface, err)
			}
			for cpu := range perCPU {
				c := perCPU[cpu].ordered()
				if settled[cpu] || c.sum() != c.Seen && try < 200 {
					continue
				}
				c.Seen = c.sum()
				settled[cpu] = true
				left--
				queues[q].add(&c)
			}
		}
		if queues[q].Seen > 0 {
			out = queues[:q+1]
		}
	}
	return out, nil
}

func (k *kernelCounters) ordered() Counters {
	return Counters{
		Seen: k.Seen, Drop: k.Drop, RateLimited: k.RateLimited, Pass: k.Pass, Forward: k.Forward,
		Redirect: k.Redirect, NoReader: k.NoReader, Count: k.Count, Allow: k.Allow, Unread: k.Unread,
		Never: k.Never, Metered: k.Metered, OutOfState: k.OutOfState, Forgotten: k.Forgotten, Copied: k.Copied, Uncopied: k.Uncopied,
		Bytes: Bytes{
			Seen: k.DropBytes + k.RateLimitedBytes + k.PassBytes + k.ForwardBytes + k.RedirectBytes + k.NoReaderBytes,
			Drop: k.DropBytes, RateLimited: k.RateLimitedBytes, Pass: k.PassBytes, Forward: k.ForwardBytes,
			Redirect: k.RedirectBytes, NoReader: k.NoReaderBytes, Count: k.CountBytes,
		},
	}
}
