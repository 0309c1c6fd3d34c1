// Package ingest is the sensor: it takes every packet of its interfaces from AF_XDP (from a mirror port also
// AF_PACKET), passes it on in inline mode, keeps flows and windows, and streams both to classify.
//
// One worker goroutine owns queue n of all interfaces; per packet there are only function calls within it.
// A batch leaves the worker through a classifier's outbox, which never blocks: a sender goroutine streams it, and what
// the classifier does not acknowledge is sent again until memory's bound makes room for newer. Of several classifiers
// each gets what concerns its networks (shards).
package ingest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
	ingestv1 "github.com/tidegate-mesh/tidegate/proto/ingest/v1"
	"github.com/tidegate-mesh/tidegate/services/ingest/internal/flowtable"
	"github.com/tidegate-mesh/tidegate/services/ingest/internal/pipeline"
)

const (
	watchInterval = 500 * time.Millisecond // of the interfaces
	drainLimit    = 3 * time.Second        // for the last acknowledgements
)

// Deps are what the sensor is given.
type Deps struct {
	Telemetry *telemetry.Telemetry
	Registrar grpc.ServiceRegistrar              // takes IngestService; nil: none
	Classify  []classifyv1.ClassifyServiceClient // of Config.Classify, in its order
}

// Service is a sensor.
type Service struct {
	ingestv1.UnimplementedIngestServiceServer

	cfg        Config
	tel        *telemetry.Telemetry
	started    time.Time
	shards     *shards
	windows    *windows
	offload    *offload // nil in tap mode and without kernel forwarding
	counts     []*portCounts
	recordings *recordings
	opened     bool // a plane was; of the goroutine that captures
	hadXDP     bool // one was by AF_XDP; as opened

	mu      sync.Mutex
	workers []*worker
	plane   *plane // open, or nil
	problem error  // why there is none
	running atomic.Int32
}

// New checks the configuration and registers service, metrics and readiness checks. It touches no interface.
func New(cfg Config, d Deps) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if d.Telemetry == nil || len(d.Classify) != len(cfg.Classify) {
		return nil, errors.New("ingest: Deps.Telemetry and a Deps.Classify for each Config.Classify are required")
	}
	now := time.Now()
	s := &Service{cfg: cfg, tel: d.Telemetry, started: now, recordings: newRecordings(), problem: errors.New("not started yet")}
	var err error
	if s.shards, err = newShards(&cfg, uint64(now.UnixNano()), d.Telemetry, d.Classify, s.enough); err != nil { //nolint:gosec // after 1970
		return nil, err
	}
	s.windows = newWindows(d.Telemetry, s.shards.putWindow, func() int { return int(s.running.Load()) })
	if (cfg.Mode == ModeInline || cfg.Mode == ModeHost) && cfg.KernelForwarding && cfg.MaxForwarded > 0 {
		s.offload = newOffload(d.Telemetry, cfg.MaxForwarded, s.post)
	}
	names := cfg.Ifaces
	if cfg.Mode == ModePcap {
		names = []string{ModePcap}
	}
	for _, name := range names {
		c := &portCounts{name: name, queues: make([]queueCounts, maxQueues)}
		c.capture.Store("none")
		c.kind.Store("none")
		s.counts = append(s.counts, c)
	}
	if err := d.Telemetry.Registry.Register(newCollector(s)); err != nil {
		return nil, fmt.Errorf("ingest: register metrics: %w", err)
	}
	d.Telemetry.Check("capture", s.captureCheck)
	d.Telemetry.Check("classify", s.shards.check)
	if d.Registrar != nil {
		ingestv1.RegisterIngestServiceServer(d.Registrar, s)
	}
	return s, nil
}

func (s *Service) captureCheck() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.problem
}

func (s *Service) setProblem(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.problem = err
}

// Run captures until ctx ends, then lets the kernel forward, ends all flows, sends what is left and waits up
// to 3 s for the acknowledgements. An interface that cannot be opened at the start is an error; one that goes
// away later is waited for. In pcap mode it returns when the captures have been read, unless it is to stay.
func (s *Service) Run(ctx context.Context) error {
	streaming, stopStreaming := context.WithCancel(context.WithoutCancel(ctx))
	merging, stopMerging := context.WithCancel(context.WithoutCancel(ctx))
	var streams, merges sync.WaitGroup
	streams.Add(1)
	go func() { defer streams.Done(); s.shards.run(streaming) }()
	merges.Add(1)
	go func() { defer merges.Done(); s.windows.run(merging) }()

	var err error
	if s.cfg.Mode == ModePcap {
		err = s.play(ctx)
	} else {
		err = s.capture(ctx)
	}
	limit := time.Now().Add(drainLimit)
	if s.cfg.Mode != ModePcap {
		s.endFlows(limit)
	}
	close(s.recordings.ended)
	stopMerging()
	merges.Wait()
	if s.cfg.Mode == ModePcap { // what was read is not given up for want of time
		for !s.shards.idle() && sleepFor(ctx, nap) {
		}
		if s.cfg.PcapStay {
			<-ctx.Done()
		}
		limit = time.Now().Add(drainLimit)
	}
	if err == nil || s.cfg.Mode == ModePcap {
		s.awaitAcknowledgements(limit)
	}
	stopStreaming()
	streams.Wait()
	return err
}

// endFlows ends all flows, until the limit no faster than classify takes them: a million are more than the outboxes hold.
func (s *Service) endFlows(limit time.Time) {
	now := time.Now().UnixNano()
	for _, w := range s.workers {
		w.wait = func() {
			for !s.shards.room() && time.Now().Before(limit) {
				time.Sleep(time.Millisecond)
			}
		}
		w.pipe.Close(now)
	}
}

// awaitAcknowledgements waits until classify has everything, or until the limit.
func (s *Service) awaitAcknowledgements(limit time.Time) {
	for !s.shards.idle() && time.Now().Before(limit) {
		time.Sleep(5 * time.Millisecond)
	}
	if c := s.shards.stats(); c.BatchesPending > 0 {
		s.tel.Log.Warn("batches were not acknowledged before the end", "batches", c.BatchesPending, "bytes", c.BytesPending)
	}
}

// capture opens planes one after the other until ctx ends.
func (s *Service) capture(ctx context.Context) error {
	if err := tryCPUs(s.cfg.CPUs); err != nil {
		return fmt.Errorf("ingest: %w", err) // no retry would help
	}
	wait := backoffBase
	for first := true; ; first = false {
		begun := time.Now()
		opened, err := s.runPlane(ctx)
		if first && !opened {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
		s.setProblem(err)
		s.tel.CountError("capture")
		s.tel.Log.Error("capture stopped and will be tried again", "error", err, "retry_in", wait.String())
		if time.Since(begun) > 10*time.Second {
			wait = backoffBase
		}
		if !s.pause(ctx, wait) {
			return nil
		}
		wait = min(2*wait, backoffMax)
	}
}

// pause waits with the queues' timers running, though nobody feeds them.
func (s *Service) pause(ctx context.Context, wait time.Duration) bool {
	tick := time.NewTicker(nap)
	defer tick.Stop()
	for end := time.Now().Add(wait); time.Now().Before(end); {
		select {
		case <-ctx.Done():
			return false
		case now := <-tick.C:
			for _, w := range s.workers {
				w.readMail(mailboxSize)
				w.pipe.Poll(now.UnixNano())
			}
		}
	}
	return true
}

// runPlane opens the interfaces and moves frames until ctx ends or an interface fails. opened tells whether it
// came to that.
func (s *Service) runPlane(ctx context.Context) (opened bool, err error) {
	p, err := s.openPlane()
	if err != nil {
		return false, err
	}
	var gates []flowGate
	for _, q := range p.ports {
		if q.gate == nil {
			continue
		}
		gates = append(gates, q.gate)
		if err := forgetAll(q.gate); err != nil {
			p.close()
			return false, fmt.Errorf("remove the flows that a predecessor left in the kernel: %w", err)
		}
	}
	if s.offload != nil {
		s.offload.start(gates)
	}
	workers := s.staff(p.workers())
	if s.cfg.Tunnels == TunnelsInner && len(workers) > 1 {
		s.tel.Log.Warn("several workers share the frames by their outer headers, so both directions of a flow in a tunnel may come to "+
			"different ones and be two flows: use one queue (ethtool -L IFACE combined 1) or --packet-workers 1", "workers", len(workers))
	}
	s.mu.Lock()
	s.plane = p
	s.mu.Unlock()
	var stop atomic.Bool
	failed := make(chan error, len(workers)+1)
	var wg sync.WaitGroup
	for i, w := range workers {
		w.attach(p, s.cfg.Mode == ModeInline)
		cpu := -1
		if len(s.cfg.CPUs) > 0 {
			cpu = s.cfg.CPUs[i%len(s.cfg.CPUs)]
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := w.run(&stop, cpu, &s.cfg); err != nil {
				failed <- err
			}
		}()
	}
	if err = p.connect(); err == nil {
		s.setProblem(nil)
		s.tel.Log.Info("capture runs", "mode", s.cfg.Mode, "ifaces", s.cfg.Ifaces, "queues", len(workers),
			"capture", s.counts[0].capture.Load())
		err = s.watch(ctx, p, failed)
	}

	// From here on the gates forward in the kernel; the workers empty the rings and end.
	if e := p.disconnect(); e != nil && err == nil {
		s.tel.Log.Warn("sockets could not be taken out of the XDP program", "error", e)
	}
	stop.Store(true)
	wg.Wait()
	s.readAllMail(workers)
	if s.offload != nil {
		s.offload.stop(time.Now())
		s.readAllMail(workers)
	}
	s.mu.Lock()
	s.plane = nil
	s.problem = errors.New("capture has ended")
	p.close() // under the lock: account may be reading
	s.mu.Unlock()
	return true, err
}

func (s *Service) readAllMail(workers []*worker) {
	for _, w := range workers {
		w.readMail(mailboxSize)
	}
}

// watch waits for the end: of ctx, of a worker, or of an interface.
func (s *Service) watch(ctx context.Context, p *plane, failed <-chan error) error {
	look := time.NewTicker(watchInterval)
	defer look.Stop()
	var meters <-chan time.Time
	if s.offload != nil {
		t := time.NewTicker(meterInterval)
		defer t.Stop()
		meters = t.C
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case now := <-meters:
			s.offload.step(now)
		case <-look.C:
			if err := p.alive(); err != nil {
				return err
			}
			s.account()
			// Queues that the interfaces no longer have keep their timers.
			for _, w := range s.workers[p.workers():] {
				w.readMail(mailboxSize)
				w.pipe.Poll(time.Now().UnixNano())
			}
		}
	}
}

// staff returns n workers, one a queue; workers of earlier planes go on with their flows.
func (s *Service) staff(n int) []*worker {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.workers) < n {
		s.workers = append(s.workers, s.newWorker(len(s.workers), n))
	}
	s.running.Store(int32(n)) //nolint:gosec // at most 256
	// A worker hardly ever gives up its P, so the other goroutines need Ps of their own, for all CPUs: the kernel shares
	// these out better, as it knows the workers' priority.
	if p := runtime.NumCPU() + n; os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) < p {
		runtime.GOMAXPROCS(p)
	}
	return s.workers[:n]
}

func (s *Service) newWorker(n, of int) *worker {
	w := &worker{
		n: n, mail: make(chan mail, mailboxSize), allowed: make(map[uint64]bool), offload: s.offload, shards: s.shards, tel: s.tel,
		recordings: s.recordings,
	}
	f := flowtable.DefaultConfig()
	f.MaxFlows = min(max(s.cfg.MaxFlows/of, 1024), flowtable.MaxFlowsLimit)
	f.InitialFlows = min(f.MaxFlows, 1<<16)
	f.IdleTCP, f.IdleUDP, f.IdleOther, f.Active = s.cfg.IdleTCP, s.cfg.IdleUDP, s.cfg.IdleOther, s.cfg.ActiveTimeout
	f.Seed = rand.Uint64() //nolint:gosec // seeded by the system at start; an attacker sees no output of it
	// The worker looks at least every nap, so the delay to the sender stays below BatchInterval.
	age := max(s.cfg.BatchInterval-nap, time.Millisecond)
	cfg := pipeline.Config{
		Flow: f, Window: windowConfig(), BatchAge: age, WindowLength: s.cfg.WindowInterval, Inner: s.cfg.inner(),
		Classifiers: len(s.shards.list), Choose: s.shards.choose, OnBatch: w.onBatch, OnWindow: s.windows.take,
		OnBack: func(by time.Duration) {
			s.tel.CountError("clock_back")
			s.tel.Log.Warn("the system's clock was set back; flows and windows go on from there", "by", by.String(), "queue", n)
		},
	}
	if s.cfg.Mode == ModeHost {
		cfg.OnSpent = w.enough
	}
	w.pipe = pipeline.New(cfg, uint8(n)) //nolint:gosec // below maxQueues
	s.windows.provide()
	return w
}

// account brings the ledger up to date with the open plane.
func (s *Service) account() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.plane == nil {
		return
	}
	if err := s.plane.account(); err != nil {
		s.tel.CountError("read_counters")
	}
}

// post leaves a message for the worker of a queue.
func (s *Service) post(queue int, m mail) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return queue < len(s.workers) && s.workers[queue].post(m)
}

// enough routes flow ids (uint64 little-endian) to the workers whose tables they are in. Ids that a busy
// worker does not take stay with user space: that costs speed, nothing else.
func (s *Service) enough(ids []byte) {
	byQueue := make(map[int][]uint64)
	for ; len(ids) >= 8; ids = ids[8:] {
		id := binary.LittleEndian.Uint64(ids)
		byQueue[queueOf(id)] = append(byQueue[queueOf(id)], id)
	}
	for q, list := range byQueue {
		if !s.post(q, mail{enough: list}) {
			s.tel.CountError("enough_not_taken")
		}
	}
}

// flowTotals sums the queues' flow counts.
func (s *Service) flowTotals() flowtable.Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	var t flowtable.Stats
	for _, w := range s.workers {
		f := w.pipe.Flows()
		t.Created += f.Created
		t.Ended += f.Ended
		t.Active += f.Active
		t.Summarised += f.Summarised
		t.Evicted += f.Evicted
		t.Untracked += f.Untracked
		t.Withheld += f.Withheld
	}
	return t
}
