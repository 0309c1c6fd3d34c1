package edge

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api"
)

// putEntries sends the entries of a list as an operator; status 0 when there was no whole answer, which is an error of the test.
func (r *rig) putEntries(t *testing.T, h2 bool, body io.Reader) (status int, header http.Header, text string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "https://"+r.addr+listsPath+"x/entries", body)
	if err != nil {
		t.Error(err)
		return 0, nil, ""
	}
	req.Header.Set("Authorization", "Bearer operator")
	req.Header.Set("Content-Type", api.ListType)
	answer, err := r.client(t, h2).Do(req)
	if err != nil {
		t.Error(err)
		return 0, nil, ""
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Error(err)
		return 0, nil, ""
	}
	return answer.StatusCode, answer.Header, string(b)
}

// The entries of a list may come slowly: the time for the answer must not end before they are there.
func TestSlowList(t *testing.T) {
	r := serve(t, func(c *Config) { c.WriteTimeout = 400 * time.Millisecond }, nil)
	for _, h2 := range []bool{false, true} {
		body, in := io.Pipe()
		go func() {
			for range 4 {
				_, _ = io.WriteString(in, "192.0.2.1\n")
				time.Sleep(200 * time.Millisecond)
			}
			_ = in.Close()
		}()
		if status, _, text := r.putEntries(t, h2, body); text != "hello" {
			t.Errorf("HTTP/2 %v: %d %q", h2, status, text)
		}
	}
}

// Of lists that are sent at the same time only so many are taken in as there is memory for.
func TestManyLists(t *testing.T) {
	r := serve(t, nil, nil)
	put := func(body io.Reader) (int, string) {
		status, header, _ := r.putEntries(t, false, body)
		return status, header.Get("Retry-After")
	}
	var slow []*io.PipeWriter
	ended := make(chan int, maxListTexts)
	for range maxListTexts {
		body, in := io.Pipe()
		slow = append(slow, in)
		go func() {
			code, _ := put(body)
			ended <- code
		}()
		_, _ = io.WriteString(in, "192.0.2.1\n") // until the client has begun to send it
	}
	for begin := time.Now(); len(r.chain.texts) < maxListTexts; time.Sleep(time.Millisecond) {
		if time.Since(begin) > 5*time.Second {
			t.Fatalf("%d of %d lists are on their way", len(r.chain.texts), maxListTexts)
		}
	}
	if code, after := put(strings.NewReader("192.0.2.2\n")); code != http.StatusServiceUnavailable || after == "" {
		t.Errorf("one more list: status %d, Retry-After %q, want 503 and a time", code, after)
	}
	for _, in := range slow {
		_ = in.Close()
		if code := <-ended; code != http.StatusOK {
			t.Errorf("a slow list: status %d", code)
		}
	}
	if code, _ := put(strings.NewReader("192.0.2.2\n")); code != http.StatusOK {
		t.Errorf("a list when the others are done: status %d", code)
	}
}
