package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// BucketRequests remembers the answers to requests with an Idempotency-Key, for every gateway.
const BucketRequests = "tg_requests"

const requestTTL = 24 * time.Hour

// RequestEntry is a remembered request.
type RequestEntry struct {
	Value    []byte
	Revision uint64
	Created  time.Time // of this revision, by the server's clock
}

// GetRequest reads a remembered request; ok is false when there is none.
func (b *Bus) GetRequest(ctx context.Context, key string) (e RequestEntry, ok bool, err error) {
	kv, err := b.bucket(ctx, BucketRequests)
	if err != nil {
		return e, false, fmt.Errorf("read request: %w", err)
	}
	v, err := kv.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return e, false, nil
	}
	if err != nil {
		return e, false, fmt.Errorf("read request: %w", unavailable(err))
	}
	return RequestEntry{Value: v.Value(), Revision: v.Revision(), Created: v.Created()}, true, nil
}

// PutRequest remembers a request for 24 h if its key still has the revision, and returns the new one; revision 0
// means that the key must not exist. ErrConflict otherwise.
func (b *Bus) PutRequest(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	kv, err := b.bucket(ctx, BucketRequests)
	if err != nil {
		return 0, fmt.Errorf("remember request: %w", err)
	}
	var rev uint64
	if revision == 0 {
		rev, err = kv.Create(ctx, key, value)
	} else {
		rev, err = kv.Update(ctx, key, value, revision)
	}
	if err != nil {
		return 0, fmt.Errorf("remember request: %w", conflict(err))
	}
	return rev, nil
}
