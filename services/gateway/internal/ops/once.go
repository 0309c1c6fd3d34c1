package ops

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/caller"
)

const (
	pendingTime = time.Minute     // longer than any change takes: who holds a key longer has died
	requestTime = 2 * time.Second // of one step at NATS
	maxStored   = 256 << 10       // bytes of an answer; a larger one is not remembered
	claimTries  = 5
)

// Stored is an answer that can be given again.
type Stored struct {
	Status int               `json:"status"`
	Header map[string]string `json:"header,omitempty"`
	Body   []byte            `json:"body,omitempty"`
}

// Where a remembered request stands.
const (
	statePending  = "pending"
	stateDone     = "done"
	stateReleased = "released" // it failed: it may be tried again
)

type remembered struct {
	Fingerprint string  `json:"fingerprint"`
	State       string  `json:"state"`
	Stored      *Stored `json:"stored,omitempty"`
}

// Once runs do for the first request with the caller's key and gives its answer to later ones for 24 h: replayed is
// true then. The fingerprint stands for everything that the request asks for; the same key with another one is a 422, a
// request that still runs a 409. An answer of 429 or 5xx is not remembered, so that trying again tries again. While
// NATS is away it is a 503 and do does not run. That the key is taken over after a minute relies on clocks of gateway and
// NATS that differ by less.
func (o *Operations) Once(ctx context.Context, key string, fingerprint []byte, do func(context.Context) Stored) (s Stored, replayed bool, err error) {
	id := hashed(caller.From(ctx).Subject, key)
	print := hashed(string(fingerprint))
	revision, earlier, err := o.claim(ctx, id, print)
	if err != nil {
		return Stored{}, false, err
	}
	if earlier != nil {
		return *earlier, true, nil
	}
	entry := remembered{Fingerprint: print, State: stateReleased}
	defer func() { // also when do panics
		o.settle(context.WithoutCancel(ctx), id, entry, revision)
	}()
	s = do(ctx)
	if s.Status < http.StatusInternalServerError && s.Status != http.StatusTooManyRequests && len(s.Body) <= maxStored {
		entry.State, entry.Stored = stateDone, &s
	}
	return s, false, nil
}

// claim takes the key for this request, or finds the answer of an earlier one.
func (o *Operations) claim(ctx context.Context, id, print string) (revision uint64, earlier *Stored, err error) {
	mine, err := json.Marshal(remembered{Fingerprint: print, State: statePending})
	if err != nil {
		return 0, nil, o.problem(ctx, err)
	}
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	var known uint64 // revision of an entry whose key may be taken over; most keys are new, so none is looked for first
	for range claimTries {
		revision, err := o.bus.PutRequest(ctx, id, mine, known)
		if err == nil {
			return revision, nil, nil
		}
		if !errors.Is(err, bus.ErrConflict) {
			return 0, nil, o.keyProblem(ctx, err)
		}
		e, found, err := o.bus.GetRequest(ctx, id)
		if err != nil {
			return 0, nil, o.keyProblem(ctx, err)
		}
		known = e.Revision
		if found {
			if earlier, err = o.judge(&e, print); err != nil || earlier != nil {
				return 0, earlier, err
			}
		}
	}
	return 0, nil, running()
}

// judge says whether the key may be taken over (neither result), or what its request has come to.
func (o *Operations) judge(e *bus.RequestEntry, print string) (*Stored, error) {
	var r remembered
	if err := json.Unmarshal(e.Value, &r); err != nil {
		o.t.CountError("decode_request") // of another version; nobody can answer from it
		return nil, nil                  //nolint:nilnil // the key is free
	}
	switch {
	case r.Fingerprint != print:
		p := problem(http.StatusUnprocessableEntity, "this Idempotency-Key was used for another request: take a new one")
		p.Reason = "idempotency_key_reused"
		return nil, p
	case r.State == stateDone && r.Stored != nil:
		return r.Stored, nil
	case r.State == statePending && o.now().Sub(e.Created) < pendingTime:
		return nil, running()
	}
	return nil, nil //nolint:nilnil // the key is free
}

// settle stores what the request has come to. When that fails the key stays taken for pendingTime, then a retry runs.
func (o *Operations) settle(ctx context.Context, id string, entry remembered, revision uint64) {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	value, err := json.Marshal(entry)
	if err == nil {
		_, err = o.bus.PutRequest(ctx, id, value, revision)
	}
	if err != nil {
		o.t.CountError("remember_request")
		o.t.Log.ErrorContext(ctx, "an answer is not remembered for its Idempotency-Key", "request_id", caller.From(ctx).RequestID, "error", err)
	}
}

func (o *Operations) keyProblem(ctx context.Context, err error) *api.Problem {
	return o.natsProblem(ctx, "idempotency_key", err, "NATS does not answer: without it no request can be made just once")
}

func running() *api.Problem {
	p := problem(http.StatusConflict, "a request with this Idempotency-Key is still running: wait for its answer")
	p.Reason = api.ReasonRunning
	return p
}

// hashed is a key that the bucket takes, whatever the parts hold.
func hashed(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		h.Write([]byte(p))
		h.Write([]byte{0})
	}
	return hex.EncodeToString(h.Sum(nil))
}
