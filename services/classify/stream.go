package classify

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/lifecycle"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

const (
	partRecords = 500  // flow records of one message
	maxJobs     = 1024 // windows of one stream that wait for NATS
	drain       = 3 * time.Second
)

var errStopping = status.Error(codes.Unavailable, "classify is stopping")

// stream is one sensor's connection. Receiving goes on while batches wait for NATS, so that a window is judged
// as soon as it is here.
type stream struct {
	s      *Service
	rpc    grpc.BidiStreamingServer[classifyv1.StreamRequest, classifyv1.StreamResponse]
	ctx    context.Context // of publishing batches
	sendMu sync.Mutex
	slots  chan struct{} // batches in flight
	jobs   chan job
	wg     sync.WaitGroup
}

// job is what a window leaves to publish.
type job struct {
	window   *flowv1.Window
	result   WindowResult
	received time.Time
	rules    []*decision
}

// Stream implements ClassifyService.
func (s *Service) Stream(rpc grpc.BidiStreamingServer[classifyv1.StreamRequest, classifyv1.StreamResponse]) error {
	select {
	case <-s.stopping:
		return errStopping
	default:
	}
	s.streams.Add(1)
	defer s.streams.Done()
	ctx, cancel := context.WithCancel(rpc.Context())
	defer cancel()
	x := &stream{s: s, rpc: rpc, ctx: ctx, slots: make(chan struct{}, s.cfg.MaxInFlight), jobs: make(chan job, maxJobs)}
	jobsDone := make(chan struct{})
	go func() {
		defer close(jobsDone)
		for j := range x.jobs {
			x.publish(&j)
		}
	}()
	requests := make(chan *classifyv1.StreamRequest)
	ended := make(chan error, 1)
	go func() {
		for {
			r, err := rpc.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case requests <- r:
			case <-ctx.Done():
				return
			}
		}
	}()
	err := x.run(requests, ended)
	// What is in hand is finished. A batch of a lost connection is not: it comes again. Events are, unless the
	// service stops and NATS does not answer in time.
	finished := make(chan struct{})
	go func() {
		close(x.jobs)
		x.wg.Wait()
		<-jobsDone
		close(finished)
	}()
	select {
	case <-finished:
	case <-s.base.Done():
		cancel()
		<-finished
	}
	return err
}

// run takes requests until the client ends, the connection breaks or the service stops.
func (x *stream) run(requests <-chan *classifyv1.StreamRequest, ended <-chan error) error {
	for {
		select {
		case r := <-requests:
			switch i := r.GetItem().(type) {
			case *classifyv1.StreamRequest_Batch:
				if err := x.batch(i.Batch); err != nil {
					return err
				}
			case *classifyv1.StreamRequest_Window:
				if err := x.window(i.Window); err != nil {
					return err
				}
			default:
				x.s.t.CountError("empty_request")
			}
		case err := <-ended:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case <-x.s.stopping:
			return errStopping
		}
	}
}

// batch classifies a batch and publishes its records in the background.
func (x *stream) batch(b *flowv1.FlowBatch) error {
	received := time.Now()
	x.s.batches.Add(1)
	var res BatchResult // its records outlive this call
	if err := x.s.engine.Batch(b, &res); err != nil {
		// Sending it again would not help: it is acknowledged, and told apart by the counter.
		x.s.t.CountError("malformed_batch")
		return x.send(&classifyv1.StreamResponse{Batch: b.GetBatch()})
	}
	x.s.judgeNamed(b.GetSensor(), res.Named)
	if len(res.Records) > 0 { // what waits in vain is not counted: it comes again
		select {
		case x.slots <- struct{}{}:
		case <-x.ctx.Done():
			return status.FromContextError(x.ctx.Err()).Err()
		case <-x.s.stopping:
			return errStopping
		}
	}
	x.s.received.Add(uint64(len(res.Records)))
	x.s.summarised.Add(res.Summarised)
	for _, r := range res.Records {
		x.s.metrics.app(r.GetApp()).Inc()
	}
	var enough []byte
	for _, id := range res.Enough {
		enough = binary.LittleEndian.AppendUint64(enough, id)
	}
	ack := &classifyv1.StreamResponse{Batch: b.GetBatch(), Enough: enough}
	if len(res.Records) == 0 {
		x.s.metrics.latency.Observe(time.Since(received).Seconds())
		return x.send(ack)
	}
	x.wg.Add(1)
	go func() {
		defer x.wg.Done()
		defer func() { <-x.slots }()
		published, already, unpublished, ok := x.records(b, res.Records)
		x.s.published.Add(published)
		x.s.already.Add(already)
		x.s.unpublished.Add(unpublished)
		if !ok { // ingest sends the batch again, here or to another classifier
			x.s.received.Add(published + already + unpublished - uint64(len(res.Records))) // less than before: it wraps
			return
		}
		ack.Published, ack.Unpublished = published+already, unpublished
		if err := x.send(ack); err == nil {
			x.s.metrics.latency.Observe(time.Since(received).Seconds())
		}
	}()
	return nil
}

// records publishes flow records in parts. ok is false when the stream ended before all were acknowledged. already are those
// that another classifier had published.
func (x *stream) records(b *flowv1.FlowBatch, records []*eventv1.FlowRecord) (published, already, unpublished uint64, ok bool) {
	ctx, span := x.s.batchSpan(x.ctx, b)
	defer span.End()
	part := uint32(0)
	size := partRecords
	for len(records) > 0 {
		n := min(size, len(records))
		m := &eventv1.FlowRecords{Sensor: b.GetSensor(), Epoch: b.GetEpoch(), Batch: b.GetBatch(), Part: part, Records: records[:n]}
		tooLarge, stored, tries := false, false, 0
		err := lifecycle.Retry(ctx, retryMin, retryMax, func(ctx context.Context) error {
			tries++
			var err error
			stored, err = x.s.bus.PublishFlows(ctx, m)
			if errors.Is(err, bus.ErrTooLarge) {
				tooLarge = true
				return nil
			}
			return err
		}, func(err error, _ time.Duration) {
			x.s.t.CountError("publish_flows")
			x.s.trouble(err)
		})
		switch {
		case err != nil:
			return published, already, unpublished, false
		case tooLarge && n > 1:
			size = n / 2
			continue
		case tooLarge:
			unpublished++
		case stored && tries == 1: // else it was an attempt of our own whose acknowledgement was lost
			x.s.well()
			already += uint64(n) //nolint:gosec // at most partRecords
		default:
			x.s.well()
			published += uint64(n) //nolint:gosec // at most partRecords
		}
		records = records[n:]
		part++
	}
	return published, already, unpublished, true
}

// well clears a problem after a success.
func (s *Service) well() {
	if s.problem.Load() != nil && s.ready.Load() {
		s.trouble(nil)
	}
}

// window judges a window and starts storing its rules before anything else.
func (x *stream) window(w *flowv1.Window) error {
	j := job{window: w, received: time.Now()}
	x.s.windows.Add(1)
	if err := x.s.engine.Window(w, &j.result); err != nil {
		x.s.t.CountError("malformed_window")
		return x.send(&classifyv1.StreamResponse{Window: w.GetSequence()})
	}
	judged := time.Now()
	for _, v := range j.result.Verdicts {
		j.rules = append(j.rules, x.s.decide(w, v, j.received, judged))
	}
	select {
	case x.jobs <- j:
		return nil
	case <-x.ctx.Done():
		return status.FromContextError(x.ctx.Err()).Err()
	case <-x.s.stopping:
		return errStopping
	}
}

// publish tells the world of a window's attacks and verdicts, after the rules, and acknowledges it.
func (x *stream) publish(j *job) {
	for _, d := range j.rules {
		<-d.stored
		x.s.traces.Store(d.verdict.GetAttackId(), &eventv1.Verdict{TraceId: d.verdict.GetTraceId(), Traceparent: d.verdict.GetTraceparent()})
		if err := x.s.bus.PublishVerdict(d.ctx, d.verdict); err != nil {
			x.s.t.CountError("publish_verdict")
			x.s.t.Log.Error("a verdict is not recorded", "verdict", d.verdict.GetId(), "error", err)
		}
		d.end()
	}
	for _, a := range j.result.Attacks {
		a.Classifier = x.s.t.Instance()
		if err := x.s.bus.PublishAttack(x.s.traceAttack(a), a); err != nil {
			x.s.t.CountError("publish_attack")
			x.s.t.Log.Error("an attack's state is not recorded", "attack", a.GetId(), "state", a.GetState().String(), "error", err)
			return
		}
		x.s.log(a)
	}
	if err := x.s.bus.PublishWindow(x.s.base, j.window.GetSensor(), j.window); err != nil {
		x.s.t.CountError("publish_window") // live view only, it may be lost
	}
	ack := &classifyv1.StreamResponse{Window: j.window.GetSequence()}
	for _, d := range j.rules {
		ack.Verdicts = append(ack.Verdicts, d.root)
	}
	if err := x.send(ack); err == nil {
		x.s.metrics.latency.Observe(time.Since(j.received).Seconds())
	}
}

func (x *stream) send(r *classifyv1.StreamResponse) error {
	x.sendMu.Lock()
	defer x.sendMu.Unlock()
	return x.rpc.Send(r)
}
