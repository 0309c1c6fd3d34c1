package bus

import (
	"context"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// watchKeys follows the keys of a bucket that match a pattern: once it has begun it calls h for each key there is, with nil
// after the last, and then for each change. It returns nil when ctx ends, and when the connection came back and the state
// must be read again, because deletions may have been missed.
func (b *Bus) watchKeys(ctx context.Context, bucket, keys string, begun func(), h func(jetstream.KeyValueEntry), options ...jetstream.WatchOpt) error {
	again := b.reconnectSignal()
	kv, err := b.bucket(ctx, bucket)
	if err != nil {
		return err
	}
	w, err := kv.Watch(ctx, keys, options...)
	if err != nil {
		return unavailable(err)
	}
	defer func() { _ = w.Stop() }() // fails only when the connection took the watch with it
	begun()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-again:
			return nil
		case e, ok := <-w.Updates():
			if !ok {
				return fmt.Errorf("%w: the watch ended", ErrUnavailable)
			}
			h(e)
		}
	}
}
