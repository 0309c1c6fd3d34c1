package live

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/caller"
)

const (
	heartbeatDefault = 15
	heartbeatMax     = 60
)

// restarted tells of an event stream that was made anew.
var restarted = gapFrame(bus.Gap{Restarted: true})

func gapFrame(g bus.Gap) frame {
	body, err := json.Marshal(api.StreamGap{From: g.From, To: g.To, Restarted: g.Restarted})
	if err != nil {
		panic(err) // numbers
	}
	return frame{seq: g.To, kind: kindGap, data: encode(strconv.FormatUint(g.To, 10), api.EventGap, body)}
}

// request is what a client asked for.
type request struct {
	cursor    cursor
	heartbeat time.Duration
}

func parse(r *http.Request) (request, *api.Problem) {
	q := request{cursor: cursor{want: kindAll, fresh: true, missed: map[kind]uint64{}}, heartbeat: heartbeatDefault * time.Second}
	bad := func(where, detail string) (request, *api.Problem) {
		return q, &api.Problem{Status: http.StatusBadRequest, Detail: detail, Errors: []api.ProblemDetail{{Location: where, Message: detail}}}
	}
	v := r.URL.Query()
	if types := v.Get("types"); types != "" {
		q.cursor.want = kindGap
		for _, name := range strings.Split(types, ",") {
			k, ok := kindNames[name]
			if !ok {
				return bad("query.types", "give any of attack, verdict, enforcement, window, live, gap, separated by commas")
			}
			q.cursor.want |= k
		}
	}
	where, id := "header.Last-Event-ID", r.Header.Get("Last-Event-ID") // a browser's own knowledge is newer than the address
	if id == "" {
		where, id = "query.last_event_id", v.Get("last_event_id")
	}
	if id != "" {
		n, err := strconv.ParseUint(id, 10, 63)
		if err != nil {
			return bad(where, "give the id of an event of this stream, a number")
		}
		q.cursor.after, q.cursor.fresh = n, false
	}
	if s := v.Get("heartbeat"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > heartbeatMax {
			return bad("query.heartbeat", "give seconds from 1 to 60")
		}
		q.heartbeat = time.Duration(n) * time.Second
	}
	return q, nil
}

// ServeHTTP streams events until the client goes, its token expires or the hub ends. Query: types, last_event_id,
// heartbeat (seconds). The ResponseWriter must support flushing and deadlines through http.ResponseController.
func (h *Hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q, problem := parse(r)
	if problem != nil {
		caller.WriteProblem(w, r, *problem)
		return
	}
	if h.clients.Add(1) > int64(h.cfg.MaxClients) {
		h.clients.Add(-1)
		w.Header().Set("Retry-After", "5")
		caller.WriteProblem(w, r, api.Problem{Status: http.StatusServiceUnavailable, Reason: "too_many_streams",
			Detail: "this gateway serves as many event streams as it may; try again later or another gateway"})
		return
	}
	h.m.clients.Inc()
	defer func() { h.clients.Add(-1); h.m.clients.Dec() }()
	if h.clients.Load() == 1 {
		h.rouse()
	}

	c := &client{h: h, w: w, rc: http.NewResponseController(w), heartbeat: q.heartbeat, cursor: q.cursor, told: -1}
	h.s.join(&c.cursor)
	// The server's read limit is for requests; a stream is ended by its writes.
	if err := c.rc.SetReadDeadline(time.Time{}); err != nil {
		h.d.Telemetry.CountError("stream_deadline")
		caller.WriteProblem(w, r, api.Problem{Status: http.StatusInternalServerError, Detail: "this connection cannot stream"})
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no")
	w.WriteHeader(http.StatusOK)
	h.m.ended.WithLabelValues(c.serve(r.Context())).Inc()
}

// client is one stream; it belongs to its handler's goroutine.
type client struct {
	h         *Hub
	w         http.ResponseWriter
	rc        *http.ResponseController
	heartbeat time.Duration
	cursor    cursor
	told      int64 // the last id that the client has; -1 = none
}

// serve returns why the stream ended.
func (c *client) serve(ctx context.Context) (reason string) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var expired <-chan time.Time
	if at := caller.From(ctx).Expires; !at.IsZero() {
		t := time.NewTimer(time.Until(at))
		defer t.Stop()
		expired = t.C
	}
	beat := time.NewTicker(c.heartbeat)
	defer beat.Stop()
	if !c.write([]byte("retry: 1000\n\n")) {
		return "slow"
	}
	var frames []frame
	var replay <-chan frame
	checked := false
	for {
		var changed <-chan struct{}
		if replay == nil {
			if !checked && !c.cursor.fresh {
				if _, known := c.h.s.end(); known {
					checked = true
					c.checkAhead(ctx)
				}
			}
			var behind bool
			frames, behind, changed = c.h.s.next(&c.cursor, frames[:0])
			if !c.send(frames) || c.told < 0 && !c.tell() {
				return "slow"
			}
			if behind {
				replay, changed = c.replay(ctx), nil
			} else if len(frames) > 0 {
				beat.Reset(c.heartbeat)
				select { // what ends a stream comes before more of it
				case <-expired:
					return c.expire()
				case <-ctx.Done():
					return "client"
				default:
				}
				continue
			}
		}
		select {
		case <-changed:
		case f, ok := <-replay:
			if !ok {
				replay = nil
				continue
			}
			c.cursor.after = f.seq
			if f.kind&c.cursor.want != 0 && !c.send([]frame{f}) {
				return "slow"
			}
		case <-beat.C:
			if !c.write([]byte(":\n\n")) || !c.tell() { // the filter may have let nothing through for long
				return "slow"
			}
		case <-expired:
			return c.expire()
		case <-c.h.done:
			return "shutdown"
		case <-ctx.Done():
			return "client"
		}
	}
}

func (c *client) expire() string {
	c.write(encode("", api.EventExpired, []byte(`{"detail":"the token has expired: log in again"}`)))
	return "expired"
}

// checkAhead handles an id that this gateway has not seen: another gateway was faster, or the event stream is
// another one than the id is of.
func (c *client) checkAhead(ctx context.Context) {
	end, _ := c.h.s.end()
	if c.cursor.after <= end {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	st, err := c.h.d.Events.State(ctx, bus.StreamEvents)
	if err != nil || c.cursor.after <= st.LastSeq {
		return
	}
	c.cursor.after = end
	g := restarted
	g.seq, g.data = end, encode(strconv.FormatUint(end, 10), api.EventGap, []byte(`{"restarted":true}`))
	c.send([]frame{g})
}

// replay reads events from NATS until the ring has what follows, then closes the channel. It ends with ctx.
func (c *client) replay(ctx context.Context) <-chan frame {
	out := make(chan frame)
	after, h := c.cursor.after, c.h
	go func() {
		defer close(out)
		select {
		case h.replays <- struct{}{}:
			defer func() { <-h.replays }()
		case <-ctx.Done():
			return
		case <-h.done:
			return
		}
		h.m.replays.Inc()
		ctx, enough := context.WithCancel(ctx)
		defer enough()
		give := func(f frame) {
			select {
			case out <- f:
			case <-ctx.Done():
				return
			}
			if h.s.covers(f.seq) {
				enough()
			}
		}
		err := h.d.Events.FollowEvents(ctx, after, nil, func(m bus.EventMsg) {
			if ctx.Err() != nil {
				return
			}
			if f, ok := h.frame(&m); ok {
				give(f)
			}
		}, func(g bus.Gap) { give(gapFrame(g)) })
		if err != nil {
			h.d.Telemetry.CountError("replay_events")
			pause(ctx, startRetry) // the caller tries again
		}
	}()
	return out
}

// send writes frames and counts them and what was missed.
func (c *client) send(frames []frame) bool {
	for k, n := range c.cursor.missed {
		c.h.m.dropped.WithLabelValues(k.String()).Add(float64(n))
		delete(c.cursor.missed, k)
	}
	if len(frames) == 0 {
		return true
	}
	data := make([][]byte, len(frames))
	for i, f := range frames {
		data[i] = f.data
		if f.seq > 0 || f.kind == kindGap {
			c.told = int64(f.seq)
		}
	}
	if !c.write(data...) {
		return false
	}
	for _, f := range frames {
		c.h.m.sent.WithLabelValues(f.kind.String()).Inc()
	}
	return true
}

// tell gives the client the id to resume from when it has all stored events up to there.
func (c *client) tell() bool {
	at := int64(c.cursor.after)
	if c.cursor.fresh || at == c.told {
		return true
	}
	c.told = at
	return c.write([]byte("id: " + strconv.FormatInt(at, 10) + "\n\n"))
}

func (c *client) write(data ...[]byte) bool {
	if c.rc.SetWriteDeadline(time.Now().Add(c.h.cfg.WriteTimeout)) != nil {
		return false
	}
	for _, b := range data {
		if _, err := c.w.Write(b); err != nil {
			return false
		}
	}
	if c.rc.Flush() != nil {
		return false
	}
	// HTTP/2 resets a stream at its deadline also when nothing waits to be written: it lasts over the next heartbeat.
	return c.rc.SetWriteDeadline(time.Now().Add(c.heartbeat+c.h.cfg.WriteTimeout)) == nil
}
