package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/pcapfile"
)

// someCapture is a file of n frames of 100 bytes.
func someCapture(t *testing.T, n int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := pcapfile.NewWriter(&b, 1, 0)
	for i := range n {
		err = errors.Join(err, w.Write(int64(i), make([]byte, 100), 0))
	}
	if err := errors.Join(err, w.Flush()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// framesIn reads a whole file.
func framesIn(t *testing.T, file []byte) (n uint64) {
	t.Helper()
	r, err := pcapfile.NewReader(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err = r.Next(nil); err != nil {
			if !errors.Is(err, io.EOF) {
				t.Errorf("the file is not whole: %v", err)
			}
			return n
		}
		n++
	}
}

func TestCapture(t *testing.T) {
	file := someCapture(t, 5)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c, _ := rig(t, func(w http.ResponseWriter, r *http.Request) {
		var in api.CaptureInput
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || r.URL.Path != "/api/v1/capture" || !strings.Contains(r.Header.Get("Accept"), api.CaptureType) {
			t.Errorf("%s %v: %v", r.URL, r.Header, err)
		}
		send := func(b []byte) {
			_, _ = w.Write(b)
			_ = http.NewResponseController(w).Flush()
		}
		end := func(s api.CaptureSummary) {
			b, _ := json.Marshal(s)
			w.Header().Set(http.TrailerPrefix+api.CaptureTrailer, string(b))
		}
		switch in.Filter {
		case "refuse":
			refuse(w, api.Problem{Status: 422, Detail: "filter: column 1"})
		case "cut":
			send(file[:24+2*116+50])
			panic(http.ErrAbortHandler)
		case "broken":
			send(file)
			end(api.CaptureSummary{Reason: "failed", Problem: "ingest does not answer"})
		case "hang":
			send(file[:24+3*116+50])
			<-r.Context().Done()
		default:
			for i := range file { // bit by bit
				send(file[i : i+1])
			}
			end(api.CaptureSummary{Sensor: "s", Reason: "count", Frames: 5, Missed: 2})
		}
	})
	for _, k := range []struct {
		filter, reason, err string
		frames              uint64
	}{
		{"", "count", "", 5},
		{"refuse", "", "column 1", 0},
		{"cut", "", "broke off after 2 frames", 2},
		{"broken", "failed", "does not answer", 5},
		{"hang", "interrupted", "", 3},
	} {
		var out bytes.Buffer
		w := io.Writer(&out)
		if k.filter == "hang" {
			w = writerFunc(func(p []byte) (int, error) { cancel(); return out.Write(p) })
		}
		s, err := c.Capture(ctx, api.CaptureInput{Filter: k.filter, For: "5s"}, w)
		if (err == nil) != (k.err == "") || err != nil && !strings.Contains(err.Error(), k.err) || s.Reason != k.reason || s.Frames != k.frames {
			t.Errorf("%q: %+v, %v", k.filter, s, err)
		}
		if k.filter == "refuse" {
			if out.Len() != 0 {
				t.Errorf("a refused capture wrote %d bytes", out.Len())
			}
			continue
		}
		if n := framesIn(t, out.Bytes()); n != k.frames {
			t.Errorf("%q: the file has %d frames, want %d", k.filter, n, k.frames)
		}
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
