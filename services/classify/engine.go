// Package classify labels flows by payload, finds attacks in windows and decides what to block. The Engine is
// pure: its only clock is the one handed in, so that captures give the same result each time. The Service
// puts it behind gRPC and NATS.
package classify

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/app"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/detect"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/header"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/hostlist"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/usual"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/verdict"
)

// BatchResult is what a batch led to. Its slices are reused by the next call with the same result.
type BatchResult struct {
	Records    []*eventv1.FlowRecord // flows that ended; owned by the caller
	Enough     []uint64              // ids of flows whose label is final
	Named      []NamedFlow           // flows that name a host which a list or a rule has
	Summarised uint64                // flows that ingest summed up instead of telling one by one
	// Reuse is the caller's: the next call writes over the records, which have no Id then. A flow costs no allocation so.
	Reuse bool

	facts []*eventv1.TcpFacts // of records that were written over
}

// WindowResult is what a window led to. Verdicts carry their rules; trace ids are left to the caller.
type WindowResult struct {
	Attacks  []*eventv1.Attack
	Verdicts []*eventv1.Verdict
}

// NamedFlow is a flow that names a host which a list of domains or a user's rule has.
type NamedFlow struct {
	Key    flow.Key // its source is who named the host
	Host   string
	Found  hostlist.Found
	TimeNs int64 // of the packet that named it
}

// EngineStats are counts since the engine was made.
type EngineStats struct {
	Flows, FlowsEvicted, Targets, Sources, Attacks uint64
	UsualHosts, UsualRaised, UsualRefused          uint64 // hosts that are learned about, those with raised thresholds; for which there was no room
}

// Engine holds flows, destinations, sources and attacks, all of them bounded. Its methods may be called from
// several goroutines; each call holds one lock.
type Engine struct {
	mu      sync.Mutex
	cfg     EngineConfig
	version string
	groups  *groups
	floods  []detect.Flood
	carpets []detect.Flood // those that can be spread over a network

	hosts        atomic.Pointer[hostlist.Table]
	apps         *app.Engine
	flows        *flowMap
	flowsEvicted uint64
	result       app.Result                 // of one flow at hand
	results      [sharedResults]*app.Result // by their hash, which seed is of
	seed         maphash.Seed
	streams      map[string]uint32
	streamCount  uint32
	lastStream   struct { // of the newest batch
		sensor string
		epoch  uint64
		number uint32
	}

	allowed  policy.Cover // sources that nothing is found of
	tried    []tries      // of the window at hand
	peers    *verdict.Peers
	targets  map[netip.Addr]*target
	usual    *usual.Set
	nets     map[netip.Prefix]*network
	scanners map[netip.Addr]*detect.Scanner
	probes   map[[2]netip.Addr]*detect.ProtocolProbe

	repeats  *detect.Repeats
	logins   *detect.Logins
	stallers *detect.Stallers
	names    *detect.Names
	echoes   *detect.Echoes
	stations *detect.Stations
	pending  []finding // of batches, told with the next window
	checked  int64     // when the stallers were last looked at
	firstNs  int64     // start of the first window
	parts    bool      // sensors have other classifiers too
	sensors  map[string]*sensor
	lastEnd  int64  // end of the newest window
	sensor   string // of the newest window

	attacks map[attackKey]*attack
	rules   map[string]*ruleState
	blocked map[netip.Addr]*attack // sources that scans made blocked → the attack whose rule it is
	flooded map[[16]byte]int       // destinations under flood → how many kinds
	bombed  map[netip.Prefix]*attack
	ended   map[string]int64       // ids of attacks that are over → when they began
	known   map[string]*known      // ids of attacks that an earlier run or another classifier has begun
	changed map[string]policy.Rule // rules of detectors that are not as a verdict made them any more, by id

	facts []header.Facts // of the window's target at hand
	raw   [][]byte
}

// NewEngine makes an engine. The error says which setting cannot work.
func NewEngine(cfg EngineConfig) (*Engine, error) {
	g, err := cfg.groups()
	if err != nil {
		return nil, err
	}
	e := &Engine{cfg: cfg, version: cfg.version(), groups: g, floods: detect.Floods(), carpets: detect.Carpets(), apps: app.NewEngine(), seed: maphash.MakeSeed()}
	e.usual = usual.New(usual.Config{Days: cfg.UsualDays, Factor: cfg.UsualFactor}, e.thresholdsOf)
	e.reset()
	e.streams, e.known, e.ended = make(map[string]uint32), make(map[string]*known), make(map[string]int64)
	e.changed, e.sensors = make(map[string]policy.Rule), make(map[string]*sensor)
	return e, nil
}

// reset empties all memory of traffic.
func (e *Engine) reset() {
	e.flows = newFlowMap()
	e.peers = verdict.NewPeers()
	e.targets, e.nets = make(map[netip.Addr]*target), make(map[netip.Prefix]*network)
	e.scanners = make(map[netip.Addr]*detect.Scanner)
	e.probes = make(map[[2]netip.Addr]*detect.ProtocolProbe)
	e.repeats, e.logins, e.stallers = &detect.Repeats{}, detect.NewLogins(), detect.NewStallers()
	e.names, e.echoes, e.stations, e.pending = detect.NewNames(), detect.NewEchoes(), detect.NewStations(), nil
	e.firstNs, e.lastEnd = 0, 0
	e.attacks = make(map[attackKey]*attack)
	e.rules = make(map[string]*ruleState)
	e.flooded, e.bombed = make(map[[16]byte]int), make(map[netip.Prefix]*attack)
	e.blocked = make(map[netip.Addr]*attack)
}

// Stats returns counts.
func (e *Engine) Stats() EngineStats {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := EngineStats{Flows: uint64(e.flows.len()), FlowsEvicted: e.flowsEvicted, Targets: uint64(len(e.targets)),
		Sources: uint64(len(e.scanners)), Attacks: uint64(len(e.attacks))}
	s.UsualHosts, s.UsualRaised, s.UsualRefused = e.usual.Stats()
	return s
}

// target is a protected destination.
type target struct {
	series   detect.Series
	baseline verdict.Baseline
	minute   usual.Minute
	lastNs   int64
	rises    map[string]*rise
}

// rise is the beginning of what may become an attack: windows in which the rate alone would reach half the
// threshold.
type rise struct {
	startNs int64
	lastNs  int64
	windows []uint64
	ring    sampleRing // of the flood's kind
	sampled int        // samples of any kind meanwhile
	later   int        // of them, later fragments
}

// sampleRing keeps the newest samples with their bytes.
type sampleRing struct {
	facts []header.Facts
	raw   [][]byte
	next  int
}

const ringSize = 256

func (r *sampleRing) add(f header.Facts, raw []byte) {
	if len(r.facts) < ringSize {
		r.facts = append(r.facts, f)
		r.raw = append(r.raw, append([]byte(nil), raw...))
		return
	}
	r.facts[r.next] = f
	r.raw[r.next] = append(r.raw[r.next][:0], raw...)
	r.next = (r.next + 1) % ringSize
}

// Window judges one window at once and fills out, which is overwritten. The window's times are others meanwhile, if its
// sensor's clock is off.
func (e *Engine) Window(w *flowv1.Window, out *WindowResult) error {
	*out = WindowResult{}
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.sensorOf(w)
	if s.repeats(w) {
		return nil
	}
	if d := e.skew(s, w); d != 0 {
		w.StartNs, w.EndNs = w.GetStartNs()+d, w.GetEndNs()+d
		defer func() { w.StartNs, w.EndNs = w.GetStartNs()-d, w.GetEndNs()-d }()
	}
	if e.firstNs == 0 || w.GetStartNs() < e.firstNs {
		e.firstNs = w.GetStartNs()
	}
	e.parts = e.parts || w.GetPart()
	e.noteAllowed(w)
	e.networks(w, out)
	for _, t := range w.GetTargets() {
		if t.GetPrefixLen() == 128 && len(t.GetAddr()) == 16 {
			e.destination(w, t, out)
		}
	}
	e.sources(w, out)
	e.bindings(w)
	e.sessions(w, out)
	e.tick(w, out)
	return nil
}

// A steep flood need not last a second: twice the threshold over two windows is enough.
const (
	steepSlots  = 2
	steepFactor = 2
)

// settleWindows is how many windows a live sensor has seen before packets outside any flow mean something.
const settleWindows = 50

// now is the time of decisions: the caller's clock, or the window's end.
func (e *Engine) now(w *flowv1.Window) int64 {
	if e.cfg.Now != nil {
		return e.cfg.Now()
	}
	return w.GetEndNs()
}

// destination judges one destination of a window by all flood detectors.
func (e *Engine) destination(w *flowv1.Window, wt *flowv1.Target, out *WindowResult) {
	addr16 := [16]byte(wt.GetAddr())
	addr := flow.Addr(addr16)
	e.read(wt)
	e.protocolProbes(w, out)
	e.samples(w)
	g := e.groups.of(addr)
	if g == nil {
		return
	}
	t := e.target(addr, w)
	if e.learns() {
		e.usual.At(addr, &t.minute, e.now(w))
	}
	limits := e.limits(addr, g)
	sums := detect.FromTarget(wt)
	sums.TakeSamples(e.facts, e.standing(w), e.allowedSYN(netip.PrefixFrom(addr, addr.BitLen())))
	e.leaveAllowed()
	sums.Samples.Overlaps = detect.Overlaps(e.facts, e.raw)
	t.series.Add(w.GetStartNs(), &sums, wt.GetSourceRegisters())
	second, short, slot := t.series.Sum(detect.Slots), t.series.Sum(steepSlots), t.series.Sum(1)
	calm, name := true, addr.String()
	for i := range e.floods {
		d := &e.floods[i]
		if d.Stray && e.cfg.Now != nil && w.GetSequence() < settleWindows {
			continue // the sensor has just started and meets connections in their middle
		}
		level := d.Measure(&second, limits)
		if d.Steep && level.Level < 1 {
			if m := d.Measure(&short, limits); m.Level*detect.Slots/steepSlots >= steepFactor {
				level = m
				level.Level = 1
			}
		}
		if e.learns() {
			t.minute.Take(d, &level)
		}
		a := e.attacks[attackKey{d.Type, name}]
		if a != nil && a.flood == nil {
			continue // found by what single packets tell
		}
		rate := 0.0
		if level.Level > 0 {
			rate = d.Measure(&slot, limits).Level * detect.Slots
		}
		r := t.rise(d, w, rate >= 0.5 || a != nil && rate > 0.05, e.facts, e.raw)
		if r != nil || a != nil {
			calm = false
		}
		switch {
		case a == nil && level.Level >= 1 && !t.burst(d, &level, &second, limits) && !e.underCarpet(addr, d.Kind):
			t.baseline.Drop()
			start := w.GetStartNs()
			if r != nil {
				start = e.riseNs(r)
			}
			a = e.begin(w, d.Type, name, start, out)
			a.target, a.flood = netip.PrefixFrom(addr, addr.BitLen()), d
			e.flooded[addr16]++
			e.account(a, level.Packets, level.Bytes)
			e.rate(a, w, &level)
			t.series.Registers(detect.Slots, &a.sources)
			e.floodVerdict(w, a, t, r, &level, &second, out)
			e.publish(a, eventv1.AttackState_ATTACK_STATE_STARTED, e.now(w), out)
		case a != nil:
			own := d.Measure(&sums, limits)
			e.account(a, own.Packets, own.Bytes)
			e.rate(a, w, &level)
			t.series.Registers(1, &a.sources)
			if level.Level >= 0.5 {
				a.lastOver = w.GetEndNs()
			}
			e.reconsider(w, a, t, r, limits, 1, out)
		}
	}
	e.settleMinute(addr, t)
	if calm {
		t.baseline.Stage(w.GetStartNs()/int64(detect.Slot), &sums, e.facts)
	}
}

// eachOf is how many packets a client sends at most that is one of many which try together.
const eachOf = 3

// burst tells whether all but half a threshold's worth came within one window, from many, and is too little for that.
func (t *target) burst(d *detect.Flood, level *detect.Measure, second *detect.Sums, limits *detect.Thresholds) bool {
	if level.Level >= d.Burst || float64(level.Packets) > eachOf*second.Sources {
		return false
	}
	most := t.series.Most(func(s *detect.Sums) float64 {
		slot := *s
		slot.Samples.SYNBeside = second.Samples.SYNBeside // what is evidence in the second is in its parts
		m := d.Measure(&slot, limits)
		return m.Level
	})
	return level.Level-most < 0.5
}

// standing tells what the source of a sample is to its destination.
func (e *Engine) standing(w *flowv1.Window) func(f *header.Facts) detect.Standing {
	return func(f *header.Facts) detect.Standing {
		switch {
		case e.allows(flow.Addr(f.Src)):
			return detect.Allowed
		case !e.peers.Trusted(f.Dst, f.Src, f.Protocol, f.SrcPort, w.GetStartNs()):
			return detect.Stranger
		case e.settled(f.Dst, f.Src, w.GetStartNs()):
			return detect.Settled
		}
		return detect.Peer
	}
}

// read parses the samples of a window's target into e.facts and e.raw.
func (e *Engine) read(wt *flowv1.Target) {
	e.facts, e.raw = e.facts[:0], e.raw[:0]
	for _, s := range wt.GetSamples() {
		if f, ok := header.Parse(s); ok {
			e.facts = append(e.facts, f)
			e.raw = append(e.raw, s.GetHeader())
		}
	}
}

// target returns the destination's state; the one idle longest among a few makes room.
func (e *Engine) target(addr netip.Addr, w *flowv1.Window) *target {
	t := e.targets[addr]
	if t == nil {
		if len(e.targets) >= e.cfg.MaxTargets {
			e.evictTarget()
		}
		t = &target{rises: make(map[string]*rise)}
		e.targets[addr] = t
	}
	t.lastNs = max(t.lastNs, w.GetEndNs())
	return t
}

func (e *Engine) evictTarget() {
	var oldest netip.Addr
	var found *target
	n := 0
	for a, t := range e.targets {
		if e.flooded[a.As16()] > 0 {
			continue
		}
		if found == nil || t.lastNs < found.lastNs {
			oldest, found = a, t
		}
		if n++; n == evictTries {
			break
		}
	}
	delete(e.targets, oldest)
}

// rise notes the beginning of a possible attack and its samples; nil while the rate is low. It ends when the
// rate was low for a second.
func (t *target) rise(d *detect.Flood, w *flowv1.Window, high bool, facts []header.Facts, raw [][]byte) *rise {
	r := t.rises[d.Type]
	if r != nil && (w.GetStartNs()-r.lastNs > int64(detect.Slots*detect.Slot) || w.GetStartNs() < r.startNs-int64(detect.Slots*detect.Slot)) {
		delete(t.rises, d.Type)
		r = nil
	}
	if !high {
		return r
	}
	if r == nil {
		r = &rise{startNs: w.GetStartNs()}
		t.rises[d.Type] = r
	}
	r.lastNs = max(r.lastNs, w.GetStartNs())
	if len(r.windows) < maxWindows {
		r.windows = append(r.windows, w.GetSequence())
	}
	for i := range facts {
		r.sampled++
		if facts[i].Later {
			r.later++
		}
		if d.Kind(&facts[i]) {
			r.ring.add(facts[i], raw[i])
		}
	}
	return r
}

// maxWindows bounds the window numbers in evidence.
const maxWindows = 32

// Flush ends all attacks, as at the end of a capture, and forgets all traffic. Flows that did not end are
// given up: a table that is flushed before has told all ends. Either argument may be nil.
func (e *Engine) Flush(b *BatchResult, out *WindowResult) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if b != nil {
		*b = BatchResult{Records: b.Records[:0], Named: b.Named[:0], Reuse: b.Reuse, facts: b.facts}
	}
	var drop WindowResult
	if out == nil {
		out = &drop
	}
	*out = WindowResult{}
	if e.lastEnd != 0 {
		e.sessions(&flowv1.Window{StartNs: e.lastEnd, EndNs: e.lastEnd, Sensor: e.sensor}, out)
	}
	for _, a := range e.ordered() {
		e.finish(a, a.updatedNs, out)
	}
	e.flows.each(func(f *flowState) {
		if f.label != nil {
			f.label.Release()
		}
	})
	e.reset()
}
