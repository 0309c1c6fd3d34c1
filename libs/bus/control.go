package bus

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/encoding/protojson"

	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// BucketControl holds states of the whole mesh, written by enforce.
const BucketControl = "tg_control"

// keyPanic is the only key of BucketControl; its value is a Panic as JSON.
const keyPanic = "panic"

// PutPanic sets the panic state of the mesh, whatever was there.
func (b *Bus) PutPanic(ctx context.Context, p *eventv1.Panic) error {
	value, err := protojson.Marshal(p)
	if err != nil {
		return fmt.Errorf("encode the panic state: %w", err)
	}
	kv, err := b.bucket(ctx, BucketControl)
	if err == nil {
		_, err = kv.Put(ctx, keyPanic, value)
		err = unavailable(err)
	}
	if err != nil {
		return fmt.Errorf("set the panic state: %w", err)
	}
	return nil
}

// WatchPanic calls h with the panic state there is (nil: never set, or unreadable) and with each that follows, one
// call at a time. After a reconnect the state comes again. It returns when ctx ends (nil).
func (b *Bus) WatchPanic(ctx context.Context, h func(*eventv1.Panic)) error {
	return b.again(ctx, "watch_panic", func(alive func()) error { return b.watchPanic(ctx, alive, h) })
}

func (b *Bus) watchPanic(ctx context.Context, alive func(), h func(*eventv1.Panic)) error {
	told := false
	return b.watchKeys(ctx, BucketControl, keyPanic, func() {}, func(e jetstream.KeyValueEntry) {
		alive()
		if e == nil { // all that was there has been handed over
			if !told {
				h(nil)
			}
			return
		}
		p := &eventv1.Panic{}
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(e.Value(), p); err != nil {
			b.bad("decode_panic", e.Key(), err)
			return
		}
		told = true
		h(p)
	}, jetstream.IgnoreDeletes())
}

// Panic reads the panic state; nil when it was never set.
func (b *Bus) Panic(ctx context.Context) (*eventv1.Panic, error) {
	kv, err := b.bucket(ctx, BucketControl)
	if err != nil {
		return nil, fmt.Errorf("read the panic state: %w", err)
	}
	e, err := kv.Get(ctx, keyPanic)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, nil //nolint:nilnil // nothing was ever set: that is an answer
	}
	if err != nil {
		return nil, fmt.Errorf("read the panic state: %w", unavailable(err))
	}
	p := &eventv1.Panic{}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(e.Value(), p); err != nil {
		return nil, fmt.Errorf("read the panic state: %w", err)
	}
	return p, nil
}
