package rest

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/caller"
)

// captureWrite is how long a client may take to read a part of a capture.
const captureWrite = 30 * time.Second

type captureInput struct {
	Body api.CaptureInput
}

// capture is the route of live captures.
func (a *API) capture() {
	op := operation(caller.Operator, http.MethodPost, "/capture", "capture", "Frames that a sensor receives now, as a capture", "state")
	op.Description = "The answer begins when the capture does and comes while it runs; each part is whole records. The trailer " + api.CaptureTrailer +
		" holds a CaptureSummary. Frames that the driver drops, or forwards for flows that are decided, do not come up to a sensor: " +
		"the summary counts them. Closing the connection ends the capture."
	op.Metadata[metaStreams] = true
	op.Errors = []int{http.StatusNotFound}
	a.huma.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[api.CaptureSummary](), true, "CaptureSummary")
	op.Responses = map[string]*huma.Response{"200": {
		Description: "the capture", Content: map[string]*huma.MediaType{api.CaptureType: {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}}},
	}}
	huma.Register(a.huma, op, func(ctx context.Context, in *captureInput) (*huma.StreamResponse, error) {
		return &huma.StreamResponse{Body: func(hc huma.Context) {
			r, w := humago.Unwrap(hc)
			s := &captureStream{w: w, rc: http.NewResponseController(w), patience: captureWrite}
			summary, err := a.d.Operations.Capture(ctx, in.Body, s.write)
			_ = s.deadline(time.Now().Add(s.patience)) // of the end; where it cannot be set, the connection is gone
			if err != nil {
				writeFailure(w, r, err)
				return
			}
			if text, err := json.Marshal(summary); err == nil {
				w.Header().Set(http.TrailerPrefix+api.CaptureTrailer, string(text))
			}
		}}, nil
	})
}

// captureStream is the answer under way.
type captureStream struct {
	w        http.ResponseWriter
	rc       *http.ResponseController
	patience time.Duration // captureWrite, less in tests
	begun    bool
}

// write passes a part on at once: who reads may be a program that shows it.
func (s *captureStream) write(pcap []byte) error {
	if !s.begun {
		s.begun = true
		// The server's read limit is for requests; a capture is ended by its writes.
		if err := s.rc.SetReadDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return err
		}
		h := s.w.Header()
		h.Set("Content-Type", api.CaptureType)
		h.Set("Content-Disposition", `attachment; filename="capture.pcap"`)
		h.Set("Cache-Control", "no-store")
		h.Set("X-Accel-Buffering", "no")
	}
	if err := s.deadline(time.Now().Add(s.patience)); err != nil {
		return err
	}
	if _, err := s.w.Write(pcap); err != nil {
		return err
	}
	if err := s.rc.Flush(); err != nil {
		return err
	}
	// HTTP/2 resets a stream at its deadline also when nothing waits to be written, and frames may be rare.
	return s.deadline(time.Time{})
}

func (s *captureStream) deadline(t time.Time) error {
	if err := s.rc.SetWriteDeadline(t); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}
