package client

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api"
)

const (
	captureSpare  = 30 * time.Second // beyond the capture's own time
	captureLength = time.Minute      // the sensor's default
	maxFrame      = 1 << 18          // bytes of a record that a sensor sends
)

// Capture copies frames that a sensor receives from now on to w, as a pcap file of whole records, each part at once. It
// ends with a bound of the request, or with ctx: then what was written is whole too, the summary has the reason
// "interrupted" and nothing but the number of frames, and the error is nil. A capture that breaks off is an error, with
// the frames that came in the summary. Nothing is written before the sensor records. It needs the role operator.
func (c *Client) Capture(ctx context.Context, in api.CaptureInput, w io.Writer) (s api.CaptureSummary, err error) {
	length := captureLength
	if d, err := time.ParseDuration(in.For); err == nil {
		length = d
	}
	limited, cancel := context.WithTimeout(ctx, length+captureSpare)
	defer cancel()
	body, err := json.Marshal(in)
	if err != nil {
		return s, fmt.Errorf("encode the request: %w", err)
	}
	whole := &wholeRecords{w: w}
	resp, err := c.send(limited, request{method: http.MethodPost, path: "capture", accept: api.CaptureType}, body, "")
	if err == nil {
		defer func() { _ = resp.Body.Close() }()
		if resp.StatusCode != http.StatusOK {
			return s, c.problem(resp)
		}
		_, err = io.Copy(whole, resp.Body)
	}
	s.Frames = whole.frames
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		s.Reason = "interrupted"
		return s, nil
	case err != nil:
		return s, fmt.Errorf("the capture broke off after %d frames: %w", whole.frames, err)
	}
	if err := json.Unmarshal([]byte(resp.Trailer.Get(api.CaptureTrailer)), &s); err != nil {
		return s, fmt.Errorf("the capture broke off after %d frames: the gateway at %s did not say how it ended", whole.frames, c.base)
	}
	s.Frames = whole.frames
	if s.Problem != "" {
		return s, fmt.Errorf("the capture broke off after %d frames: %s", whole.frames, s.Problem)
	}
	return s, nil
}

// wholeRecords passes a pcap file on as it comes, but never a part of a record: what is cut off is still a file.
type wholeRecords struct {
	w       io.Writer
	held    []byte
	begun   bool
	frames  uint64
	refused error
}

// Write implements io.Writer.
func (r *wholeRecords) Write(p []byte) (int, error) {
	if r.refused != nil {
		return 0, r.refused
	}
	r.held = append(r.held, p...)
	at, frames := 0, uint64(0)
	if !r.begun {
		if len(r.held) < 24 {
			return len(p), nil
		}
		r.begun, at = true, 24
	}
	for len(r.held)-at >= 16 {
		n := int(binary.LittleEndian.Uint32(r.held[at+8:]))
		if n > maxFrame {
			r.refused = errors.New("what comes is no capture")
			return 0, r.refused
		}
		if len(r.held)-at < 16+n {
			break
		}
		at += 16 + n
		frames++
	}
	if at > 0 {
		if _, err := r.w.Write(r.held[:at]); err != nil {
			r.refused = err
			return 0, err
		}
		r.held = append(r.held[:0], r.held[at:]...)
		r.frames += frames
	}
	return len(p), nil
}
