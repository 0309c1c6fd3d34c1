package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api"
)

const (
	// streamIdle is three heartbeats of the gateway: a stream that is silent for longer is dead.
	streamIdle = 45 * time.Second
	maxEvent   = 1 << 20 // bytes of one line
	longPause  = 10 * time.Second
)

// ErrExpired ends a stream whose token's time is over.
var ErrExpired = errors.New("the token has expired: log in again with `tidegate login`")

// Event is one event of the stream; Data is the object that Type (api.EventAttack …) stands for.
type Event struct {
	ID   string // where to resume after it; empty before the first known id
	Type string
	Data json.RawMessage
}

// Stream hands the events of the types (none: all) to h, beginning after lastID (empty: now), until ctx ends, h
// fails or the token expires (ErrExpired). A stream that breaks is resumed where it was: h misses nothing that is
// stored, or gets an api.EventGap; windows and live states of the break are gone. Only when the first connection
// fails is that the error.
func (c *Client) Stream(ctx context.Context, types []string, lastID string, h func(Event) error) error {
	s := &stream{c: c, id: lastID, h: h, pause: time.Second, query: url.Values{}}
	if len(types) > 0 {
		s.query.Set("types", strings.Join(types, ","))
	}
	for failed := 0; ; failed++ {
		events, wait, err := s.connect(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if events {
			failed = 0
			s.met = true
		}
		var end *endError
		if errors.As(err, &end) {
			return end.error
		}
		var p *api.Problem
		refused := errors.As(err, &p) && p.Status/100 == 4 && p.Status != http.StatusTooManyRequests
		if refused || !s.met {
			return err
		}
		if wait == 0 {
			wait = min(s.pause<<min(failed, 4), longPause)
			wait = wait/2 + mathrand.N(wait/2+1) // hundreds of clients lose a gateway at the same moment
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(min(wait, longPause)):
		}
	}
}

// endError ends a stream for good.
type endError struct{ error }

type stream struct {
	c     *Client
	h     func(Event) error
	query url.Values
	id    string
	pause time.Duration // before a stream is resumed; the gateway may set it
	met   bool          // a connection was made
}

// connect reads one connection to its end. wait is how long the gateway asks to stay away.
func (s *stream) connect(ctx context.Context) (connected bool, wait time.Duration, err error) {
	ctx, watch := s.c.watched(ctx)
	defer watch.stop()
	q := url.Values{}
	for k, v := range s.query {
		q[k] = v
	}
	if s.id != "" {
		q.Set("last_event_id", s.id)
	}
	resp, err := s.c.send(ctx, request{method: http.MethodGet, path: "stream", query: q}, nil, "")
	if err != nil {
		return false, 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return false, retryAfter(resp.Header), s.c.problem(resp)
	}
	return true, 0, s.read(watch.reader(resp.Body))
}

// read takes the stream apart (HTML, section 9.2.6 "Interpreting an event stream").
func (s *stream) read(r io.Reader) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 4096), maxEvent)
	var kind string
	var data []byte
	id := s.id
	for lines.Scan() {
		line := lines.Bytes()
		if len(line) == 0 {
			if data == nil {
				s.id, kind = id, ""
				continue
			}
			if kind == api.EventExpired {
				return &endError{ErrExpired}
			}
			if err := s.h(Event{ID: id, Type: kind, Data: data}); err != nil {
				return &endError{err}
			}
			s.id, kind, data = id, "", nil
			continue
		}
		field, value, _ := strings.Cut(string(line), ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "event":
			kind = value
		case "data":
			if data != nil {
				data = append(data, '\n')
			}
			if len(data)+len(value) > maxEvent {
				return fmt.Errorf("an event of the gateway is above %d KiB", maxEvent>>10)
			}
			data = append(data, value...)
		case "id":
			id = value
		case "retry":
			if ms, err := strconv.ParseUint(value, 10, 31); err == nil && ms > 0 {
				s.pause = time.Duration(ms) * time.Millisecond
			}
		}
	}
	if err := lines.Err(); err != nil {
		return &brokenError{fmt.Errorf("the stream broke: %w", err)}
	}
	return &brokenError{errors.New("the gateway ended the stream")}
}

var errSilent = errors.New("the gateway has been silent for too long")

// watchdog ends a transfer in which nothing comes for the client's idle time.
type watchdog struct {
	idle   time.Duration
	timer  *time.Timer
	cancel context.CancelCauseFunc
}

func (c *Client) watched(ctx context.Context) (context.Context, *watchdog) {
	ctx, cancel := context.WithCancelCause(ctx)
	return ctx, &watchdog{idle: c.idle, timer: time.AfterFunc(c.idle, func() { cancel(errSilent) }), cancel: cancel}
}

func (w *watchdog) stop() {
	w.timer.Stop()
	w.cancel(nil)
}

func (w *watchdog) reader(r io.Reader) io.Reader { return &watchedReader{w: w, r: r} }

type watchedReader struct {
	w *watchdog
	r io.Reader
}

// Read implements io.Reader.
func (r *watchedReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if n > 0 {
		r.w.timer.Reset(r.w.idle)
	}
	return n, err
}
