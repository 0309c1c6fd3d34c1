// Package window sums up 100 ms of one queue's traffic in fixed memory: light counters for many destinations,
// details (histograms, distinct sources, heavy hitters, header samples) for those that carry traffic, and who
// begins flows, for scans. Builders of several queues merge, and one is encoded into a flowv1.Window.
//
// A Builder belongs to one goroutine at a time. It is deterministic for a given Config.Seed.
package window

import (
	"encoding/binary"
	"math/bits"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/packet"
	"github.com/tidegate-mesh/tidegate/libs/sketch"
	"github.com/tidegate-mesh/tidegate/services/ingest/internal/flowtable"
)

// Sizes of a Builder; about 9 MB in all.
const (
	hostEntries   = 4096 // light counters: hosts, /24 or /64, /16 or /48
	netEntries    = 1024
	regionEntries = 512
	maxDetails    = 256
	maxSources    = 1024

	// Details are given to any host at its first packet while there are plenty, then to hosts of
	// promoteHost packets; some are kept back for amplification answers and some for prefixes.
	plentyHosts    = 128
	hostDetails    = 176
	markedDetails  = 208
	prefixDetails  = 48
	promoteHost    = 16
	promotePrefix  = 32
	sampleBytes    = 128
	hostSamples    = 64
	sourceSamples  = 8
	sourceTurnover = 4096 // sources that may take another's place per window
)

// Sizes of an encoded window, so that it stays below 1 MiB.
const (
	MaxHosts    = 64
	MaxNets     = 16 // /24 or /64
	MaxRegions  = 16 // /16 or /48
	MaxSources  = 128
	maxPorts    = 16
	maxTop      = 16
	fullSamples = 16 // so many hosts carry all their samples, the others someSamples
	someSamples = 16
	netSamples  = 16
)

// Config of a Builder.
type Config struct {
	// Seed of sampling and of the tables' hashes. Live sensors take a random one.
	Seed uint64
	// Touch makes New write all of the memory, about 8 MiB, so that the first packets of a flood do not wait for it.
	Touch bool
}

// DefaultConfig returns what live traffic takes, with the zero seed.
func DefaultConfig() Config { return Config{Touch: true} }

// Flows are the window's counts of flows, set by who runs the flow table and added up by Merge.
type Flows struct{ Opened, Active, Summarised uint64 }

// Builder collects one window.
type Builder struct {
	// StartNs and EndNs are the window's bounds, Unix ns; Merge widens them.
	StartNs, EndNs int64
	Flows          Flows

	k          [2]uint64
	random     uint64
	total      counters
	hosts      light
	nets       light
	regions    light
	details    []detail
	used       int
	prefixUsed int
	sources    sources
	bindings   bindings
	scratch    []detail // for prefixes, made at the first Encode
}

// New returns an empty builder.
func New(cfg Config) *Builder {
	b := &Builder{
		hosts: newLight(hostEntries), nets: newLight(netEntries), regions: newLight(regionEntries),
		details: make([]detail, maxDetails),
	}
	b.k = [2]uint64{sketch.Mix(cfg.Seed+1) | 1, sketch.Mix(cfg.Seed+2) | 1}
	b.random = sketch.Mix(cfg.Seed+3) | 1
	b.sources.init()
	if cfg.Touch {
		clear(b.details)
		clear(b.sources.list)
		b.Reset()
	}
	return b
}

// Reset empties the builder for the next window.
func (b *Builder) Reset() {
	b.StartNs, b.EndNs, b.Flows = 0, 0, Flows{}
	b.total = counters{}
	b.hosts.reset()
	b.nets.reset()
	b.regions.reset()
	b.used, b.prefixUsed = 0, 0
	b.sources.reset()
	b.bindings.reset()
}

// Empty tells whether nothing was added since New or Reset.
func (b *Builder) Empty() bool { return b.total.n[cPackets] == 0 && b.sources.used == 0 }

// Add counts a packet. ip is the frame from the network header on (of ARP, its message; nil for other protocols); p's
// offsets are relative to the frame, so ip[p.L4-p.L3:] is the transport header. o is what the flow table said, or empty.
func (b *Builder) Add(p *packet.Packet, ip []byte, nowNs int64, o *flowtable.Observation) {
	m := counted(p, o)
	b.total.add(m, 1, uint64(p.IPLen))
	if !p.IsIP {
		if p.IsARP {
			b.sources.arp(p, nowNs, b)
			b.bindings.add(p, ip, nowNs, b)
		}
		return
	}
	hot, marked := uint16(0), false
	if p.Proto == packet.ProtoUDP && !o.Solicited && !p.LaterFragment && flowtable.ReflectorPort(p.SrcPort) {
		hot, marked = p.SrcPort, amplified(p, ip)
	}
	if d := b.account(p, m, marked); d != nil {
		d.add(p, ip, nowNs, m, hot, marked, b)
	}
	if o.Attempt {
		b.sources.attempt(p, ip, nowNs, o, b)
	}
	if o.Failed {
		b.Failure(o.Failure)
	}
}

// Failure counts an attempt that failed, for its source. Add does this for failures that a packet shows.
func (b *Builder) Failure(f *flowtable.Failure) { b.sources.fail(f, b) }

// Metered counts packets that the kernel forwarded: totals and the destination's packets and bytes.
func (b *Builder) Metered(k flow.Key, packets, bytes uint64) {
	if packets == 0 {
		return
	}
	m := uint32(1)<<cPackets | protocolBit(k.Protocol)
	b.total.add(m, packets, bytes)
	e := b.hosts.touch(&k.Dst, b.hash(&k.Dst), clip(packets))
	if e != nil {
		if e.detail != 0 {
			b.details[e.detail-1].n.add(m, packets, bytes)
		} else {
			e.n.add(m, packets, bytes)
		}
	}
	if e == nil || e.detail == 0 {
		net := prefix(&k.Dst, netLevel)
		if n := b.nets.touch(&net, b.hash(&net), clip(packets)); n != nil {
			n.n.add(m, packets, bytes)
		}
	}
}

func clip(n uint64) uint32 { return uint32(min(n, 1<<30)) } //nolint:gosec // bounded

// account finds or makes the light counters of p's destination, and returns the detail that takes the packet:
// its host's, else its /24's, else its /16's, else none.
func (b *Builder) account(p *packet.Packet, m uint32, marked bool) *detail {
	e := b.hosts.touch(&p.Dst, b.hash(&p.Dst), 1)
	if e != nil {
		if e.detail == 0 && (b.used-b.prefixUsed < plentyHosts || e.guard >= promoteHost || marked) {
			limit := hostDetails
			if marked {
				limit = markedDetails
			}
			if b.used-b.prefixUsed < limit {
				e.detail = b.take()
			}
		}
		if e.detail != 0 {
			d := &b.details[e.detail-1]
			d.n.add(m, 1, uint64(p.IPLen))
			return d
		}
		e.n.add(m, 1, uint64(p.IPLen))
	}
	net := prefix(&p.Dst, netLevel)
	n := b.nets.touch(&net, b.hash(&net), 1)
	if n != nil {
		n.n.add(m, 1, uint64(p.IPLen))
		if d := b.promote(n); d != nil {
			return d
		}
	}
	region := prefix(&p.Dst, regionLevel)
	r := b.regions.touch(&region, b.hash(&region), 1)
	if r == nil {
		return nil
	}
	if n == nil {
		r.n.add(m, 1, uint64(p.IPLen))
	}
	return b.promote(r)
}

// promote returns a prefix's detail, giving it one when it is due.
func (b *Builder) promote(e *lightEntry) *detail {
	if e.detail == 0 {
		if e.guard < promotePrefix || b.prefixUsed == prefixDetails {
			return nil
		}
		e.detail = b.take()
		b.prefixUsed++
	}
	return &b.details[e.detail-1]
}

// take returns the number + 1 of an empty detail; the limits above leave one.
func (b *Builder) take() uint16 {
	b.details[b.used].reset()
	b.used++
	return uint16(b.used) //nolint:gosec // at most maxDetails
}

// hash is for this builder's tables.
func (b *Builder) hash(a *[16]byte) uint64 {
	hi, lo := bits.Mul64(binary.LittleEndian.Uint64(a[:8])^b.k[0], binary.LittleEndian.Uint64(a[8:])^b.k[1])
	return hi ^ lo
}

// next is the following pseudo-random number (xorshift64*, Vigna 2016).
func (b *Builder) next() uint64 {
	x := b.random
	x ^= x >> 12
	x ^= x << 25
	x ^= x >> 27
	b.random = x
	return x * 0x2545F4914F6CDD1D
}

// addrHash is for HyperLogLog registers: the same on every sensor, so that registers merge.
func addrHash(a *[16]byte) uint64 {
	return sketch.Mix(binary.LittleEndian.Uint64(a[:8]) ^ sketch.Mix(binary.LittleEndian.Uint64(a[8:])+0x9e3779b97f4a7c15))
}

// portHash is for registers of (destination, protocol, port).
func portHash(host uint64, protocol uint8, port uint16) uint64 {
	return sketch.Mix(host ^ sketch.Mix(uint64(protocol)<<16|uint64(port)+1))
}
