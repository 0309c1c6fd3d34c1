package bus

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/lifecycle"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
)

// Late is the bus from the moment on at which NATS is reached, so that a service opens, answers and says what else is
// wrong before. Each service adds the calls that it makes. All methods may be called by several goroutines.
type Late struct {
	bus     atomic.Pointer[Bus]
	why     atomic.Pointer[error]
	reached chan struct{} // closed when bus is set
}

// NewLate returns a bus that is not reached yet.
func NewLate() *Late { return &Late{reached: make(chan struct{})} }

// Connect tries until NATS answers and prepare (nil: nothing) succeeds; false when ctx ended before. Each new reason is
// logged once, behind the sentence waiting, which says what that means for the service. Call it once.
func (l *Late) Connect(ctx context.Context, t *telemetry.Telemetry, name string, cfg Config, waiting string,
	prepare func(context.Context, *Bus) error,
) bool {
	var b *Bus
	err := lifecycle.Retry(ctx, 200*time.Millisecond, 5*time.Second, func(ctx context.Context) error {
		var err error
		if b, err = Connect(ctx, t, name, cfg); err != nil || prepare == nil {
			return err
		}
		if err = prepare(ctx, b); err != nil {
			_ = b.Close() // the error says more
		}
		return err
	}, func(err error, _ time.Duration) {
		if old := l.why.Swap(&err); old == nil || (*old).Error() != err.Error() {
			t.Log.Warn(waiting, "error", err)
		}
		t.CountError("connect_nats")
	})
	if err != nil {
		return false
	}
	l.bus.Store(b)
	close(l.reached)
	return true
}

// Close ends the connection that Connect made.
func (l *Late) Close() error { return l.bus.Load().Close() }

// Get is the connection, or why there is none: an error with ErrUnavailable in its chain.
func (l *Late) Get() (*Bus, error) {
	if b := l.bus.Load(); b != nil {
		return b, nil
	}
	if why := l.why.Load(); why != nil {
		return nil, *why
	}
	return nil, fmt.Errorf("%w: it was not reached yet", ErrUnavailable)
}

// Wait is the connection; it blocks until there is one or ctx ends.
func (l *Late) Wait(ctx context.Context) (*Bus, error) {
	select {
	case <-l.reached:
		return l.bus.Load(), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Ready tells why messages cannot be sent now, nil if they can.
func (l *Late) Ready() error {
	b, err := l.Get()
	if err != nil {
		return err
	}
	return b.Ready()
}
