package edge

import (
	"crypto/sha256"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const eventStream = "text/event-stream"

// minCompress is the smallest body in bytes that is worth compressing.
const minCompress = 1024

// response holds the beginning of an answer back until it is clear whether it is compressed: at minCompress bytes, at
// a flush, or at its end. It belongs to the goroutine of the request.
type response struct {
	w       http.ResponseWriter
	tokenID [sha256.Size]byte

	encoding string // what the client prefers, empty for none
	tagged   bool   // a conditional header named a compressed representation
	head     bool
	status   int  // of the handler; 0: none yet
	decided  bool // the header was sent
	plain    bool
	held     []byte
	enc      encoder // nil: as is
	bytes    int64   // of the body before compression
}

func newResponse(w http.ResponseWriter, r *http.Request) *response {
	x := &response{w: w, head: r.Method == http.MethodHead}
	if accept := r.Header["Accept-Encoding"]; len(accept) > 0 {
		x.encoding = negotiate(strings.Join(accept, ","))
	}
	// A compressed representation has a tag of its own (RFC 9110, section 8.8.3.3). Handlers know the plain one's.
	for _, name := range [...]string{"If-None-Match", "If-Match"} {
		for i, v := range r.Header[name] {
			if stripped := stripTags(v); stripped != v {
				r.Header[name][i] = stripped
				x.tagged = true
			}
		}
	}
	return x
}

// Unwrap is for http.ResponseController.
func (x *response) Unwrap() http.ResponseWriter { return x.w }

func (x *response) setReadDeadline(t time.Time) error {
	return http.NewResponseController(x.w).SetReadDeadline(t)
}

// Header implements http.ResponseWriter.
func (x *response) Header() http.Header { return x.w.Header() }

// WriteHeader implements http.ResponseWriter.
func (x *response) WriteHeader(status int) {
	if status >= 100 && status < 200 && status != http.StatusSwitchingProtocols {
		x.w.WriteHeader(status)
		return
	}
	if x.status != 0 {
		return
	}
	x.status = status
	h := x.w.Header()
	switch {
	case status == http.StatusNotModified:
		addVary(h)
		if x.tagged && x.encoding != "" {
			tagHeader(h, x.encoding)
		}
		x.plain = true
	case status < 200 || status == http.StatusNoContent || x.head || h.Get("Content-Encoding") != "" || status == http.StatusPartialContent:
		x.plain = true
	case !compressible(h.Get("Content-Type")):
		x.plain = true
	default:
		addVary(h)
		x.plain = x.encoding == ""
		if n, err := strconv.Atoi(h.Get("Content-Length")); err == nil && n < minCompress {
			x.plain = true
		}
	}
	if x.plain && h.Get("Content-Type") == eventStream {
		x.send()
	}
}

// Write implements http.ResponseWriter.
func (x *response) Write(p []byte) (int, error) {
	if x.status == 0 {
		if h := x.w.Header(); h.Get("Content-Type") == "" {
			h.Set("Content-Type", http.DetectContentType(p))
		}
		x.WriteHeader(http.StatusOK)
	}
	x.bytes += int64(len(p))
	switch {
	case x.decided:
	case x.plain:
		x.send()
	case len(x.held)+len(p) < minCompress:
		x.held = append(x.held, p...)
		return len(p), nil
	default:
		x.compress()
	}
	if x.enc != nil {
		return x.enc.Write(p)
	}
	return x.w.Write(p)
}

// send passes the header on.
func (x *response) send() {
	if x.decided {
		return
	}
	x.decided = true
	if x.status == 0 {
		x.status = http.StatusOK
	}
	x.w.WriteHeader(x.status)
}

// compress begins a compressed body with what was held back.
func (x *response) compress() {
	h := x.w.Header()
	h.Del("Content-Length")
	h.Del("Accept-Ranges")
	h["Content-Encoding"] = []string{x.encoding}
	tagHeader(h, x.encoding)
	x.send()
	x.enc = newEncoder(x.encoding, x.w)
	if len(x.held) > 0 {
		_, _ = x.enc.Write(x.held) // a lost client shows at the next write
		x.held = nil
	}
}

// FlushError is for http.ResponseController. A flushed answer that is still held is not compressed.
func (x *response) FlushError() error {
	if !x.decided {
		x.release()
	}
	if x.enc != nil {
		if err := x.enc.Flush(); err != nil {
			return err
		}
	}
	return http.NewResponseController(x.w).Flush()
}

// Flush implements http.Flusher.
func (x *response) Flush() { _ = x.FlushError() }

// release sends what is held as it is.
func (x *response) release() {
	x.plain = true
	x.send()
	if len(x.held) > 0 {
		_, _ = x.w.Write(x.held) // as above
		x.held = nil
	}
}

// close ends the answer.
func (x *response) close() {
	switch {
	case x.enc != nil:
		_ = x.enc.Close() // the client may be gone
		putEncoder(x.encoding, x.enc)
		x.enc = nil
	case !x.decided && x.status != 0:
		h := x.w.Header()
		if len(x.held) > 0 && h.Get("Content-Length") == "" {
			h.Set("Content-Length", strconv.Itoa(len(x.held)))
		}
		x.release()
	}
}

// reset forgets an answer that was not sent; it is false when it was.
func (x *response) reset() bool {
	if x.decided {
		return false
	}
	x.status, x.held, x.plain, x.bytes = 0, nil, false, 0
	h := x.w.Header()
	for _, name := range [...]string{"Content-Length", "Content-Type", "Content-Encoding", "Etag", "Set-Cookie", "Location"} {
		h.Del(name)
	}
	return true
}

// sent is the status of the answer.
func (x *response) sent() int {
	if x.status == 0 {
		return http.StatusOK
	}
	return x.status
}
