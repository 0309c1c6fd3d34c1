package ops

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/tidegate-mesh/tidegate/libs/api"
	ingestv1 "github.com/tidegate-mesh/tidegate/proto/ingest/v1"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/caller"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/mesh"
)

// captureSpare is how much longer than its time a capture may take before the gateway gives it up; the sensor's own
// limit is shorter.
const captureSpare = 15 * time.Second

// Capture hands a live capture to write, in parts that after each other are a pcap file of whole records, until it
// ends. Packets are private, so that it is asked for and how it ended are put on record as a change is. The error is of
// a capture that did not begin; what happened later is in the summary, of which the parts that a sensor cannot tell any
// more are 0.
func (o *Operations) Capture(ctx context.Context, in api.CaptureInput, write func(pcap []byte) error) (api.CaptureSummary, error) {
	req := &ingestv1.CaptureRequest{Filter: in.Filter, Iface: in.Iface, Snaplen: in.Snaplen, Count: in.Count, Bytes: in.Bytes}
	length := time.Minute
	if in.For != "" {
		var err error
		if length, err = time.ParseDuration(in.For); err != nil || length < time.Millisecond || length > time.Hour {
			return api.CaptureSummary{}, invalid("body.for", "%q is no time from 1ms to 1h, as 90s", in.For)
		}
		req.DurationMs = uint32(length.Milliseconds()) //nolint:gosec // at most an hour
	}
	peer, name, blocked := o.sensor(ctx, in.Sensor)
	summary := api.CaptureSummary{Sensor: name}
	c := change{action: actionCapture, target: name, intended: in, blocked: blocked}
	err := o.carryOut(ctx, c, func(context.Context) (any, error) {
		ctx, cancel := context.WithTimeout(ctx, length+captureSpare) // the caller's: who goes away ends the capture
		defer cancel()
		err := o.capture(ctx, peer, req, write, &summary)
		return summary, err
	})
	return summary, err
}

// capture fills the summary; the error is of a capture that did not begin.
func (o *Operations) capture(ctx context.Context, peer mesh.Peer, req *ingestv1.CaptureRequest, write func([]byte) error, s *api.CaptureSummary) error {
	ends := caller.From(ctx).Expires
	if !ends.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, ends)
		defer cancel()
	}
	stream, err := ingestv1.NewIngestServiceClient(peer.Conn).Capture(ctx, req)
	for begun := false; err == nil; {
		var m *ingestv1.CaptureResponse
		if m, err = stream.Recv(); err != nil {
			if !begun {
				break
			}
			o.broken(ctx, peer, ends, err, s)
			return nil
		}
		begun = true
		if len(m.GetPcap()) > 0 {
			if err := write(m.GetPcap()); err != nil {
				s.Reason = captureCancelled
				return nil
			}
		}
		if end := m.GetSummary(); end != nil {
			s.Reason, s.Frames, s.Missed = end.GetReason(), end.GetFrames(), end.GetMissed()
			s.Dropped, s.Forwarded, s.Passed, s.Unread = end.GetDropped(), end.GetForwarded(), end.GetPassed(), end.GetUnread()
			return nil
		}
	}
	return o.problem(ctx, &mesh.Error{Peer: peer, Err: err})
}

const captureCancelled = "cancelled"

// broken says why a capture has no summary of the sensor.
func (o *Operations) broken(ctx context.Context, peer mesh.Peer, ends time.Time, err error, s *api.CaptureSummary) {
	switch {
	case !ends.IsZero() && !o.now().Before(ends):
		s.Reason = "expired"
	case errors.Is(ctx.Err(), context.Canceled):
		s.Reason = captureCancelled
	default:
		s.Reason, s.Problem = "failed", o.problem(ctx, &mesh.Error{Peer: peer, Err: err}).Detail
	}
}

// sensor finds a sensor by its name; an empty one is the only one there is.
func (o *Operations) sensor(ctx context.Context, name string) (peer mesh.Peer, found string, err error) {
	if len(o.mesh.Ingest) == 0 {
		return peer, name, o.problem(ctx, errNoPeer)
	}
	answers := mesh.All(ctx, o.mesh.Ingest, mesh.StatusTime, func(ctx context.Context, c grpc.ClientConnInterface) (string, error) {
		s, err := ingestv1.NewIngestServiceClient(c).Status(ctx, &ingestv1.StatusRequest{})
		return s.GetStatus().GetInstance(), err
	})
	var names []string
	var silent *mesh.Error
	for _, a := range answers {
		switch {
		case a.Err != nil:
			silent = a.Err
		case a.Value == name || name == "" && len(answers) == 1:
			return a.Peer, a.Value, nil
		default:
			names = append(names, a.Value)
		}
	}
	switch {
	case silent != nil: // the one that is asked for may be it
		return peer, name, o.problem(ctx, silent)
	case name == "":
		return peer, name, invalid("body.sensor", "there are several sensors: name one of %s", strings.Join(names, ", "))
	}
	return peer, name, problem(http.StatusNotFound, "there is no sensor %q: there are %s", name, strings.Join(names, ", "))
}
