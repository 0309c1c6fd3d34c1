package ingest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/tidegate-mesh/tidegate/libs/rpc"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
)

const (
	ackPatience = 2 * time.Second // without any acknowledgement for this long the stream is made anew
	backoffBase = 50 * time.Millisecond
	backoffMax  = 2 * time.Second
)

var errAckMissing = errors.New("classify has acknowledged nothing for 2 s")

// sender moves an outbox to its classifier over one stream, and makes a new stream when it breaks or goes silent.
type sender struct {
	name   string // the classifier's address
	box    *outbox
	client classifyv1.ClassifyServiceClient
	tel    *telemetry.Telemetry
	enough func(ids []byte) // uint64 little-endian; called on the receiving goroutine

	connected  atomic.Bool
	reconnects atomic.Uint64
	answered   atomic.Pointer[time.Time] // when the last acknowledgement came; a Time, because the system's clock may be set
	mu         sync.Mutex
	last       error // why there is no stream
}

// run sends until ctx ends.
func (s *sender) run(ctx context.Context) {
	wait := backoffBase
	told := "" // the sentence in the log
	for ctx.Err() == nil {
		begun := time.Now()
		err := s.session(ctx)
		if ctx.Err() != nil {
			return
		}
		if s.connected.Swap(false) {
			told = ""
		}
		s.fail(err)
		s.tel.CountError("classify_stream")
		if time.Since(begun) > backoffMax {
			wait = backoffBase
		}
		if why := rpc.Sentence(err); why != told {
			told = why
			s.tel.Log.Warn("there is no stream to classify; batches wait in memory until there is", "classify", s.name, "error", why)
		}
		jitter := time.Duration(rand.Int64N(int64(wait)/2 + 1)) //nolint:gosec // spreads retries, no secret
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait/2 + jitter):
		}
		wait = min(2*wait, backoffMax)
		s.reconnects.Add(1)
	}
}

func (s *sender) fail(err error) {
	s.mu.Lock()
	s.last = err
	s.mu.Unlock()
}

// check is the readiness check.
func (s *sender) check() error {
	if s.connected.Load() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last != nil {
		return fmt.Errorf("no stream to classify at %s: %s", s.name, rpc.Sentence(s.last))
	}
	return fmt.Errorf("no stream to classify at %s yet", s.name)
}

// session runs one stream until it fails.
func (s *sender) session(parent context.Context) error {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	stream, err := s.client.Stream(ctx)
	if err != nil {
		return fmt.Errorf("open stream: %w", err)
	}
	s.box.rewind(time.Now())
	s.connected.Store(true)
	s.tel.Log.Info("the stream to classify is open", "classify", s.name)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	wg.Add(2)
	go func() {
		defer wg.Done()
		for {
			r, err := stream.Recv()
			if err != nil {
				cancel(fmt.Errorf("receive: %w", err))
				return
			}
			s.acknowledged(r)
		}
	}()
	go func() {
		defer wg.Done()
		tick := time.NewTicker(ackPatience / 8)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case now := <-tick.C:
				if s.box.silence(now) > ackPatience {
					cancel(errAckMissing)
					return
				}
			}
		}
	}()
	if err := s.transmit(ctx, stream); err != nil && context.Cause(ctx) == nil {
		return err
	}
	return context.Cause(ctx)
}

func (s *sender) transmit(ctx context.Context, stream classifyv1.ClassifyService_StreamClient) error {
	for {
		p := s.box.take(time.Now())
		if p == nil {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-s.box.wake:
			}
			continue
		}
		req := &classifyv1.StreamRequest{}
		if p.window != nil {
			req.Item = &classifyv1.StreamRequest_Window{Window: p.window}
		} else {
			req.Item = &classifyv1.StreamRequest_Batch{Batch: p.batch}
		}
		err := stream.Send(req)
		s.box.sent(p)
		if err != nil {
			if errors.Is(err, io.EOF) {
				<-ctx.Done() // Recv has the reason
			}
			return fmt.Errorf("send: %w", err)
		}
	}
}

func (s *sender) acknowledged(r *classifyv1.StreamResponse) {
	now := time.Now()
	s.answered.Store(&now)
	if r.GetBatch() != 0 {
		s.box.ackBatch(r.GetBatch(), r.GetPublished(), r.GetUnpublished(), now)
	}
	if r.GetWindow() != 0 {
		if p := s.box.ackWindow(r.GetWindow(), now); p != nil {
			s.trace(p, r.GetVerdicts())
		}
	}
	if ids := r.GetEnough(); len(ids) >= 8 {
		s.enough(ids)
	}
}

// trace makes the root span of each verdict that a window led to: from the window's start until it was ready to send.
func (s *sender) trace(p *parcel, verdicts []string) {
	for _, traceparent := range verdicts {
		w := p.window
		span := telemetry.StartRoot(s.tel.Tracer, traceparent, "window close", trace.WithTimestamp(time.Unix(0, w.GetStartNs())),
			trace.WithAttributes(attribute.String("tidegate.sensor", w.GetSensor()),
				attribute.Int64("tidegate.window", int64(w.GetSequence())))) //nolint:gosec // below 2^63
		span.End(trace.WithTimestamp(p.made))
	}
}

// sampled makes a span and returns its W3C trace context when the sampler picked it, else "".
func sampled(tel *telemetry.Telemetry, name string) string {
	ctx, span := tel.Tracer.Start(context.Background(), name)
	defer span.End()
	if !span.SpanContext().IsSampled() {
		return ""
	}
	return telemetry.Inject(ctx)
}
