package main

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/lifecycle"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// lateBus is the bus from the moment on at which NATS is reached: the gateway answers before.
type lateBus struct {
	bus  atomic.Pointer[bus.Bus]
	fail atomic.Pointer[string]
}

var errNoBus = errors.New("NATS was not reached yet")

// connect retries until NATS answers, and tells whether it did before ctx ended.
func (l *lateBus) connect(ctx context.Context, t *telemetry.Telemetry, cfg bus.Config) bool {
	return lifecycle.Retry(ctx, 200*time.Millisecond, 5*time.Second, func(ctx context.Context) error {
		b, err := bus.Connect(ctx, t, "tidegate-gateway", cfg)
		if err != nil {
			return err
		}
		l.bus.Store(b)
		return nil
	}, func(err error, _ time.Duration) {
		text := err.Error()
		if old := l.fail.Swap(&text); old == nil || *old != text {
			t.Log.Warn("NATS cannot be reached, retrying", "error", err)
		}
		t.CountError("connect_nats")
	}) == nil
}

func (l *lateBus) close() { _ = l.bus.Load().Close() } // an audit entry that was not acknowledged was reported

// Ready implements gateway.Bus.
func (l *lateBus) Ready() error {
	if b := l.bus.Load(); b != nil {
		return b.Ready()
	}
	if why := l.fail.Load(); why != nil {
		return errors.New(*why)
	}
	return errNoBus
}

// PublishAudit implements gateway.Bus.
func (l *lateBus) PublishAudit(ctx context.Context, entry *eventv1.Audit) error {
	if b := l.bus.Load(); b != nil {
		return b.PublishAudit(ctx, entry)
	}
	return errNoBus
}
