package rest

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// Nothing may match a capture's filter for long. With HTTP/2 the deadline of the write before would reset the stream.
func TestQuietCapture(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s := &captureStream{w: w, rc: http.NewResponseController(w), patience: 100 * time.Millisecond}
		for _, part := range []string{"one ", "two"} {
			if err := s.write([]byte(part)); err != nil {
				t.Error(err)
			}
			time.Sleep(300 * time.Millisecond)
		}
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	answer, err := server.Client().Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if body, err := io.ReadAll(answer.Body); err != nil || string(body) != "one two" || answer.ProtoMajor != 2 {
		t.Errorf("%q over %s: %v", body, answer.Proto, err)
	}
}
