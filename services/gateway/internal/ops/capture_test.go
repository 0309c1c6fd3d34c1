package ops

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tidegate-mesh/tidegate/libs/api"
	ingestv1 "github.com/tidegate-mesh/tidegate/proto/ingest/v1"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/caller"
)

// Capture sends what the request's filter asks for.
func (f *fakeIngest) Capture(r *ingestv1.CaptureRequest, s grpc.ServerStreamingServer[ingestv1.CaptureResponse]) error {
	f.add("ingest.Capture")
	if r.GetFilter() == "bad" {
		return status.Error(codes.InvalidArgument, `filter: column 1, at "bad": no`)
	}
	if r.GetFilter() == "full" {
		return status.Error(codes.ResourceExhausted, "4 captures run on this sensor")
	}
	for range 2 {
		if err := s.Send(&ingestv1.CaptureResponse{Pcap: []byte("part")}); err != nil {
			return err
		}
	}
	if r.GetFilter() == "break" {
		return status.Error(codes.Internal, "secret")
	}
	if r.GetFilter() == "wait" {
		<-s.Context().Done()
		return s.Context().Err()
	}
	return s.Send(&ingestv1.CaptureResponse{Pcap: []byte("end"), Summary: &ingestv1.CaptureSummary{
		Reason: "time", Frames: uint64(r.GetDurationMs()), Missed: 1, Dropped: 2, Forwarded: 3, Passed: 4, Unread: 5,
	}})
}

func TestCapture(t *testing.T) {
	r := newRig(t, "n1")
	var got strings.Builder
	take := func(p []byte) error { got.Write(p); return nil }

	s, err := r.Capture(asOperator(t), api.CaptureInput{Filter: "tcp", For: "2s"}, take)
	if want := (api.CaptureSummary{Sensor: "sensor-1", Reason: "time", Frames: 2000, Missed: 1, Dropped: 2, Forwarded: 3, Passed: 4, Unread: 5}); err != nil || s != want || got.String() != "partpartend" {
		t.Errorf("%q, %+v, %v", got.String(), s, err)
	}
	if want := "audit REQUESTED, ingest.Capture, audit DONE"; !strings.Contains(strings.Join(r.list(), ", "), want) {
		t.Errorf("order %v, want %s", r.list(), want)
	}
	a := r.bus.audits()
	var after api.CaptureSummary
	if err := json.Unmarshal([]byte(a[1].GetAfter()), &after); err != nil || after != s || a[0].GetAction() != "capture" || a[0].GetTarget() != "sensor-1" ||
		a[0].GetActor() != "ada" || !strings.Contains(a[0].GetAfter(), `"filter":"tcp"`) {
		t.Errorf("on record: %v", a)
	}

	for _, c := range []struct {
		in     api.CaptureInput
		status int
		want   string
	}{
		{api.CaptureInput{Filter: "bad"}, 422, "column 1"},
		{api.CaptureInput{Filter: "full"}, 429, "4 captures run"},
		{api.CaptureInput{For: "2h"}, 422, "no time from"},
		{api.CaptureInput{Sensor: "other"}, 404, "there are sensor-1"},
	} {
		_, err := r.Capture(asOperator(t), c.in, take)
		if p := wantProblem(t, err, c.status); !strings.Contains(p.Detail, c.want) {
			t.Errorf("%+v: %s", c.in, p.Detail)
		}
	}

	// After it has begun nothing is an error any more.
	s, err = r.Capture(asOperator(t), api.CaptureInput{Filter: "break"}, take)
	if err != nil || s.Reason != "failed" || s.Problem == "" || strings.Contains(s.Problem, "secret") {
		t.Errorf("%+v, %v", s, err)
	}
	s, err = r.Capture(asOperator(t), api.CaptureInput{}, func([]byte) error { return errors.New("the client is gone") })
	if err != nil || s.Reason != captureCancelled {
		t.Errorf("%+v, %v", s, err)
	}
	ctx, cancel := context.WithCancel(asOperator(t))
	s, err = r.Capture(ctx, api.CaptureInput{Filter: "wait"}, func([]byte) error { cancel(); return nil })
	if err != nil || s.Reason != captureCancelled {
		t.Errorf("%+v, %v", s, err)
	}
	who := caller.From(asOperator(t))
	who.Expires = r.now().Add(50_000_000)
	s, err = r.Capture(caller.With(t.Context(), who), api.CaptureInput{Filter: "wait"}, take)
	if err != nil || s.Reason != "expired" {
		t.Errorf("%+v, %v", s, err)
	}
}
