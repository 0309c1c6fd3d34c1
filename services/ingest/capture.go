package ingest

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tidegate-mesh/tidegate/libs/pcapfile"
	ingestv1 "github.com/tidegate-mesh/tidegate/proto/ingest/v1"
	"github.com/tidegate-mesh/tidegate/services/ingest/internal/filter"
	"github.com/tidegate-mesh/tidegate/services/ingest/internal/ring"
)

// Bounds of captures; the contract names them.
const (
	maxCaptures         = 4
	defaultCaptureBytes = 64 << 20
	leastCaptureBytes   = 4096
	maxCaptureBytes     = 1 << 30
	defaultCaptureTime  = time.Minute
	maxCaptureTime      = time.Hour

	// captureMemory is what the rings of one capture take together: 20 ms of the smallest frames at 9 million a second.
	captureMemory = 16 << 20
	leastRing     = 128 << 10
	// captureLook is how often the rings are emptied. Frames stay in them for captureHold, so that those of several
	// queues come into the order of their time.
	captureLook = 2 * time.Millisecond
	captureHold = 2 * time.Millisecond
	// captureChunk is about the size of a response.
	captureChunk = 256 << 10
	// captureGrace is how much longer than its time a capture may take to be sent; who reads slower is cut off.
	captureGrace = 5 * time.Second
	linkEthernet = 1 // tcpdump.org/linktypes.html
)

// recording is one caller's. Workers offer it frames; the goroutine that sends takes them out of the rings.
type recording struct {
	filter *filter.Filter
	port   int // index of the interface, -1: all
	snap   int
	count  uint64
	bytes  uint64
	length time.Duration
	rings  []*ring.Ring // by worker

	file    bytes.Buffer
	writer  *pcapfile.Writer
	size    uint64 // of the file so far
	frames  uint64
	scratch []byte
}

// recordings are those that run. Workers look at the list once a batch: nil costs them one load.
type recordings struct {
	list  atomic.Pointer[[]*recording]
	mu    sync.Mutex
	ended chan struct{} // closed when the sensor ends
	grace time.Duration // captureGrace, less in tests
}

func newRecordings() *recordings {
	return &recordings{ended: make(chan struct{}), grace: captureGrace}
}

// offer shows a worker's frames to the captures that run. It never waits and never allocates.
func (c *recordings) offer(worker int, frames [][]byte, nowNs int64, port uint8) {
	list := c.list.Load()
	if list == nil {
		return
	}
	for _, one := range *list {
		if worker < len(one.rings) && (one.port < 0 || one.port == int(port)) {
			one.offer(one.rings[worker], frames, nowNs)
		}
	}
}

func (c *recording) offer(r *ring.Ring, frames [][]byte, nowNs int64) {
	for _, f := range frames {
		if c.filter.Match(f, len(f)) {
			r.Put(nowNs, f[:min(len(f), c.snap)], len(f))
		}
	}
}

func (c *recordings) add(one *recording) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var now []*recording
	if l := c.list.Load(); l != nil {
		now = *l
	}
	if len(now) >= maxCaptures {
		return status.Errorf(codes.ResourceExhausted, "%d captures run on this sensor, as many as may: wait for one to end", len(now))
	}
	next := append(slices.Clone(now), one)
	c.list.Store(&next)
	return nil
}

func (c *recordings) remove(one *recording) {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := slices.DeleteFunc(slices.Clone(*c.list.Load()), func(o *recording) bool { return o == one })
	if len(next) == 0 {
		c.list.Store(nil)
		return
	}
	c.list.Store(&next)
}

// Capture implements IngestService.
func (s *Service) Capture(req *ingestv1.CaptureRequest, stream grpc.ServerStreamingServer[ingestv1.CaptureResponse]) error {
	c, err := s.newRecording(req)
	if err != nil {
		return err
	}
	if err := s.recordings.add(c); err != nil {
		return err
	}
	defer s.recordings.remove(c)
	s.tel.Log.Info("a capture begins", "filter", req.GetFilter(), "iface", req.GetIface(), "length", c.length.String())
	// Sending waits for the caller as long as the stream lives, and it lives until this method returns: so another
	// goroutine sends, and a caller that does not read cannot keep the capture's place.
	done := make(chan error, 1)
	go func() { done <- s.record(c, stream) }()
	limit := time.NewTimer(c.length + s.recordings.grace)
	defer limit.Stop()
	select {
	case err = <-done:
	case <-limit.C:
		err = status.Errorf(codes.DeadlineExceeded, "the capture was not read within %v after its end", s.recordings.grace)
	}
	if err != nil && stream.Context().Err() == nil {
		s.tel.CountError("capture_frames")
		s.tel.Log.Warn("a capture failed", "filter", req.GetFilter(), "error", err)
	}
	return err
}

// newRecording checks a request.
func (s *Service) newRecording(req *ingestv1.CaptureRequest) (*recording, error) {
	invalid := func(format string, args ...any) error { return status.Errorf(codes.InvalidArgument, format, args...) }
	c := &recording{
		port: -1, snap: int(min(req.GetSnaplen(), 1<<18)), count: req.GetCount(), bytes: req.GetBytes(),
		length: time.Duration(req.GetDurationMs()) * time.Millisecond,
	}
	var err error
	if c.filter, err = filter.Compile(req.GetFilter()); err != nil {
		return nil, invalid("%v", err)
	}
	if c.snap == 0 {
		c.snap = 1 << 18
	}
	if c.bytes == 0 {
		c.bytes = defaultCaptureBytes
	}
	if c.length == 0 {
		c.length = defaultCaptureTime
	}
	if name := req.GetIface(); name != "" {
		if c.port = slices.Index(s.cfg.Ifaces, name); c.port < 0 {
			return nil, invalid("%s is no interface of this sensor, which has %v", name, s.cfg.Ifaces)
		}
	}
	switch {
	case c.bytes < leastCaptureBytes || c.bytes > maxCaptureBytes:
		return nil, invalid("%d bytes: use %d to %d", c.bytes, leastCaptureBytes, maxCaptureBytes)
	case c.length > maxCaptureTime:
		return nil, invalid("a capture of %v: use at most %v", c.length, maxCaptureTime)
	case s.cfg.Mode == ModeHost:
		return nil, status.Error(codes.FailedPrecondition, "this sensor is in host mode: frames go to the machine's own stack, where tcpdump sees them")
	case s.cfg.Mode == ModePcap:
		return nil, status.Error(codes.FailedPrecondition, "this sensor reads captures, which are files already: take from them with tcpdump -r")
	}
	if err := s.captureCheck(); err != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "this sensor receives nothing now: %v", err)
	}
	s.mu.Lock()
	workers := len(s.workers)
	s.mu.Unlock()
	for range workers {
		c.rings = append(c.rings, ring.New(max(captureMemory/workers, leastRing)))
	}
	if c.writer, err = pcapfile.NewWriter(&c.file, linkEthernet, c.snap); err != nil {
		return nil, status.Errorf(codes.Internal, "%v", err)
	}
	c.size = 24 // the file's header
	return c, nil
}

// record sends the capture and how it ended.
func (s *Service) record(c *recording, stream grpc.ServerStreamingServer[ingestv1.CaptureResponse]) error {
	before := s.unseen(c.port)
	send := func(summary *ingestv1.CaptureSummary) error {
		if err := c.writer.Flush(); err != nil {
			return status.Errorf(codes.Internal, "%v", err)
		}
		if c.file.Len() == 0 && summary == nil {
			return nil
		}
		// A message must stay as it is after Send.
		err := stream.Send(&ingestv1.CaptureResponse{Pcap: bytes.Clone(c.file.Bytes()), Summary: summary})
		c.file.Reset()
		return err
	}
	if err := send(nil); err != nil {
		return err
	}
	reason, err := s.collect(stream.Context(), c, send)
	if err != nil {
		return err
	}
	after := s.unseen(c.port)
	summary := &ingestv1.CaptureSummary{
		Reason: reason, Frames: c.frames, Missed: c.missed(),
		Dropped: after.dropped - before.dropped, Forwarded: after.forwarded - before.forwarded,
		Passed: after.passed - before.passed, Unread: after.unread - before.unread,
	}
	s.tel.Log.Info("a capture ends", "reason", reason, "frames", c.frames, "bytes", c.size, "missed", summary.Missed)
	return send(summary)
}

// collect moves frames from the rings to the caller until a bound is reached.
func (s *Service) collect(ctx context.Context, c *recording, send func(*ingestv1.CaptureSummary) error) (reason string, err error) {
	look := time.NewTicker(captureLook)
	defer look.Stop()
	end := time.NewTimer(c.length)
	defer end.Stop()
	for reason == "" {
		until := int64(0)
		select {
		case <-ctx.Done():
			return "", status.FromContextError(ctx.Err()).Err()
		case <-s.recordings.ended:
			reason = "stopped"
		case <-end.C:
			reason = "time"
		case now := <-look.C:
			until = now.Add(-captureHold).UnixNano()
		}
		if until == 0 {
			until = time.Now().UnixNano()
		}
		for full := true; full; {
			var bound string
			if full, bound, err = c.drain(until); err != nil {
				return "", status.Errorf(codes.Internal, "%v", err)
			}
			if bound != "" {
				return bound, nil
			}
			if err := send(nil); err != nil {
				return "", err
			}
		}
	}
	return reason, nil
}

// drain writes frames stamped at most until, in the order of their time. full tells that the chunk is, and that more
// may be there; bound names the bound of the request that is reached.
func (c *recording) drain(until int64) (full bool, bound string, err error) {
	for chunk := 0; chunk < captureChunk; {
		var next *ring.Ring
		first := until
		for _, r := range c.rings {
			if t, ok := r.Next(); ok && t <= first {
				next, first = r, t
			}
		}
		if next == nil {
			return false, "", nil
		}
		data, timeNs, wire := next.Take(c.scratch[:0])
		c.scratch = data
		n := uint64(16 + len(data)) //nolint:gosec // a frame's length
		if c.size+n > c.bytes {
			return false, "bytes", nil
		}
		if err := c.writer.Write(timeNs, data, wire); err != nil {
			return false, "", err
		}
		c.size += n
		c.frames++
		chunk += int(n) //nolint:gosec // small
		if c.frames == c.count {
			return false, "count", nil
		}
	}
	return true, "", nil
}

func (c *recording) missed() uint64 {
	n := uint64(0)
	for _, r := range c.rings {
		n += r.Missed()
	}
	return n
}

// unseen are frames that no capture can have.
type unseen struct{ dropped, forwarded, passed, unread uint64 }

// unseen sums them up over the interfaces, or of one.
func (s *Service) unseen(port int) (u unseen) {
	s.account()
	for i, p := range s.counts {
		if port >= 0 && port != i {
			continue
		}
		l := p.ledger()
		u.dropped += l.xdp.Drop + l.xdp.RateLimited
		u.forwarded += l.xdp.Forward
		u.passed += l.xdp.Pass - min(l.xdp.Pass, l.packets.Copied) // AF_PACKET reads what passes
		u.unread += l.lost() + l.xdp.NoReader + l.lostAtRestart
	}
	return u
}
