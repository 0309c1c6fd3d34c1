package bus_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
)

// TestLate: without NATS calls fail with the address, waiters wait; with it both have the bus.
func TestLate(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	_ = ln.Close()
	l := bus.NewLate()
	if _, err := l.Get(); !errors.Is(err, bus.ErrUnavailable) {
		t.Errorf("before Connect: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	prepared, connected := 0, make(chan bool, 1)
	go func() {
		connected <- l.Connect(ctx, telemetry.Discard("late"), "late", bus.Config{URL: "nats://" + addr}, "waiting",
			func(ctx context.Context, b *bus.Bus) error {
				prepared++
				if prepared == 1 {
					return errors.New("no streams")
				}
				return b.EnsureStreams(ctx)
			})
	}()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if err := l.Ready(); errors.Is(err, bus.ErrUnavailable) && strings.Contains(err.Error(), addr) {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("without a server: %v, want the address", err)
		}
	}
	short, stop := context.WithTimeout(ctx, 50*time.Millisecond)
	defer stop()
	if _, err := l.Wait(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting without a server: %v", err)
	}
	e, err := bus.StartEmbedded(ctx, t.TempDir(), bus.Listen{Addr: addr, Insecure: true})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Shutdown()
	b, err := l.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := l.Get(); err != nil || got != b || l.Ready() != nil {
		t.Errorf("with a server: %p, %v, want %p; ready %v", got, err, b, l.Ready())
	}
	if !<-connected || prepared != 2 {
		t.Errorf("prepared %d times, want a second time after the error", prepared)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}

	never := bus.NewLate()
	ended, end := context.WithCancel(ctx)
	end()
	if never.Connect(ended, telemetry.Discard("late"), "late", bus.Config{URL: "nats://" + addr}, "waiting", nil) {
		t.Error("connected after the context's end")
	}
}
