package lifecycle

import (
	"context"
	"time"
)

// Keep calls do at once and whenever wake says that something has changed, until ctx ends. After an error, which failed is told of
// with the pause, it is called again after retryMin, and twice as long after each further one, at most retryMax.
func Keep(ctx context.Context, wake <-chan struct{}, retryMin, retryMax time.Duration, do func(context.Context) error, failed func(err error, wait time.Duration)) {
	wait := retryMin
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-wake:
		case <-timer.C:
		}
		timer.Stop()
		err := do(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			wait = retryMin
			continue
		}
		failed(err, wait)
		timer.Reset(wait)
		wait = min(2*wait, retryMax)
	}
}
