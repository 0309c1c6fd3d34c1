package bus_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/bus/bustest"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
)

func TestEmbeddedInProcess(t *testing.T) {
	bustest.Run(t, func(t *testing.T) bustest.Server {
		e, err := bus.StartEmbedded(context.Background(), t.TempDir(), bus.Listen{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(e.Shutdown)
		return bustest.Server{Config: bus.Config{Embedded: e}}
	})
}

func TestEmbeddedTCP(t *testing.T) {
	bustest.Run(t, func(t *testing.T) bustest.Server {
		dir, listen := t.TempDir(), "127.0.0.1:0"
		var e *bus.Embedded
		s := bustest.Server{
			Stop: func(*testing.T) { e.Shutdown() },
			Start: func(t *testing.T) {
				var err error
				if e, err = bus.StartEmbedded(context.Background(), dir, bus.Listen{Addr: listen, Insecure: true}); err != nil {
					t.Fatal(err)
				}
				listen = e.Addr()
			},
		}
		s.Start(t)
		t.Cleanup(func() { e.Shutdown() })
		s.Config = bus.Config{URL: "nats://" + listen}
		return s
	})
}

// TestSeparateServer runs the suite on a nats-server of its own; TIDEGATE_NATS_SERVER names the binary.
func TestSeparateServer(t *testing.T) {
	binary := os.Getenv("TIDEGATE_NATS_SERVER")
	if binary == "" {
		if os.Getenv("TIDEGATE_CI") == "1" {
			t.Fatal("TIDEGATE_NATS_SERVER does not name a nats-server")
		}
		t.Skip("set TIDEGATE_NATS_SERVER to a nats-server binary")
	}
	bustest.Run(t, func(t *testing.T) bustest.Server {
		dir, addr := t.TempDir(), freeAddr(t)
		_, port, _ := net.SplitHostPort(addr)
		var cmd *exec.Cmd
		stop := func(*testing.T) {
			_ = cmd.Process.Signal(os.Interrupt)
			_ = cmd.Wait()
		}
		s := bustest.Server{
			Config: bus.Config{URL: "nats://" + addr},
			Stop:   stop,
			Start: func(t *testing.T) {
				cmd = exec.Command(binary, "-a", "127.0.0.1", "-p", port, "-js", "-sd", dir) //nolint:gosec // the tester's binary
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				bustest.Wait(t, "nats-server", func() bool {
					c, err := net.Dial("tcp", addr)
					if err == nil {
						_ = c.Close()
					}
					return err == nil
				})
			},
		}
		s.Start(t)
		t.Cleanup(func() { stop(t) })
		return s
	})
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func TestConnectUnavailable(t *testing.T) {
	begin := time.Now()
	_, err := bus.Connect(context.Background(), telemetry.Discard("t"), "t", bus.Config{URL: "nats://user:secret@" + freeAddr(t)})
	if !errors.Is(err, bus.ErrUnavailable) {
		t.Fatalf("%v, want ErrUnavailable", err)
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("took %s", d)
	}
	if s := fmt.Sprint(err); strings.Contains(s, "secret") {
		t.Errorf("the error shows the password: %s", s)
	}
}

// TestConnectHidesPassword: a URL that cannot be read is not repeated, whatever is wrong with it.
func TestConnectHidesPassword(t *testing.T) {
	for _, at := range []string{
		"nats://u:s3cret@127.0.0.1:1", "nats://u:s3cret%zz@127.0.0.1:1", "nats://u:s3cret#x@127.0.0.1:1", "nats://u:s3cret@127.0.0.1:bad",
		"nats://127.0.0.1:1,nats://u:s3cret/x@127.0.0.1:1", "nats://u:1/s3cret@127.0.0.1:1", "u:s3cret@127.0.0.1:1",
	} {
		b, err := bus.Connect(context.Background(), telemetry.Discard("test"), "test", bus.Config{URL: at})
		if err == nil {
			t.Fatal(at, b.Close())
		}
		if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v", at, err)
		}
	}
}

func TestEmbeddedPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if _, err := bus.StartEmbedded(context.Background(), t.TempDir(), bus.Listen{Addr: l.Addr().String(), Insecure: true}); err == nil {
		t.Fatal("started on a port in use")
	}
}

func TestToken(t *testing.T) {
	for in, want := range map[string]string{"": "_", "edge-1.example.org": "edge-1_example_org", "a b>*": "a_b__", "Ok_9": "Ok_9"} {
		if got := bus.Token(in); got != want {
			t.Errorf("Token(%q) = %q, want %q", in, got, want)
		}
	}
}
