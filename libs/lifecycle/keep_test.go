package lifecycle

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"
)

func TestKeep(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	wake := make(chan struct{}, 1)
	var waits []time.Duration
	calls := 0
	Keep(ctx, wake, time.Millisecond, 3*time.Millisecond, func(context.Context) error {
		switch calls++; calls {
		case 1, 2, 3, 6:
			return errors.New("not yet")
		case 4, 5:
			wake <- struct{}{}
			return nil
		}
		cancel()
		return errors.New("too late to tell")
	}, func(_ error, wait time.Duration) { waits = append(waits, wait) })
	if want := []time.Duration{1e6, 2e6, 3e6, 1e6}; calls != 7 || !slices.Equal(waits, want) {
		t.Errorf("%d calls, pauses %v, want %v", calls, waits, want)
	}
}
