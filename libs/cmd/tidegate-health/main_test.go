package main

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/telemetry"
)

// child makes the test binary the command itself.
const child = "TIDEGATE_TEST_HEALTH_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(child) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// serve runs the telemetry of a service, which serves /readyz, and returns its address.
func serve(t *testing.T, checks map[string]error) string {
	t.Helper()
	cfg := telemetry.DefaultConfig("ingest")
	cfg.MetricsListen = "127.0.0.1:0"
	tel, err := telemetry.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"capture", "nats"} {
		if err := checks[name]; err != nil {
			tel.Check(name, func() error { return err })
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- tel.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return tel.Addr().String()
}

func TestCommand(t *testing.T) {
	ready := serve(t, nil)
	unready := serve(t, map[string]error{
		"capture": errors.New("no interface is up"), "nats": errors.New("not connected"),
	})
	absent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = absent.Close()
	_, port, _ := net.SplitHostPort(ready)
	for _, c := range []struct {
		name string
		env  []string
		args []string
		code int
		want string
	}{
		{"ready by the service's variable", []string{"TIDEGATE_HEALTH_SERVICE=ingest", "TIDEGATE_INGEST_METRICS_LISTEN=" + ready}, nil, 0, "ready"},
		{"every address is asked on loopback", []string{"TIDEGATE_METRICS_LISTEN=:" + port}, nil, 0, "ready"},
		{"unspecified v6", []string{"TIDEGATE_METRICS_LISTEN=[::]:" + port}, nil, 0, "ready"},
		{"the flag wins", []string{"TIDEGATE_METRICS_LISTEN=" + unready}, []string{"-address", ready}, 0, "ready"},
		{"not ready", []string{"TIDEGATE_HEALTH_ADDRESS=" + unready}, nil, 1, "capture: no interface is up; nats: not connected"},
		{"nobody listens", nil, []string{"-address", absent.Addr().String()}, 1, "does not answer"},
		{"no address", nil, []string{"-address", "9090"}, 1, "no host:port"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], c.args...) //nolint:gosec // this test's binary
			cmd.Env = append(os.Environ(), append(c.env, child+"=1")...)
			out, err := cmd.Output()
			var exit *exec.ExitError
			code := 0
			if errors.As(err, &exit) {
				code = exit.ExitCode()
			} else if err != nil {
				t.Fatal(err)
			}
			got := strings.TrimSuffix(string(out), "\n")
			if code != c.code || !strings.Contains(got, c.want) || strings.Contains(got, "\n") {
				t.Errorf("status %d, output %q; want %d and one line with %q", code, got, c.code, c.want)
			}
		})
	}
}

// A listener that accepts and is silent, or says something else than HTTP, must not hold or fool the check.
func TestStrangers(t *testing.T) {
	for _, c := range []struct{ name, say, want string }{
		{"silent", "", "timeout"},
		{"not HTTP", "220 mail\r\n\r\n", "does not speak HTTP"},
		{"no reason", "HTTP/1.1 404 Not Found\r\n\r\n", "404 Not Found"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				conn, err := l.Accept()
				if err != nil {
					return
				}
				defer func() { _ = conn.Close() }()
				// The request is read in any case: closing with unread bytes resets the connection.
				_, _ = conn.Read(make([]byte, 4096))
				if c.say != "" {
					_, _ = conn.Write([]byte(c.say))
					return
				}
				_, _ = conn.Read(make([]byte, 1)) // until the check gives up
			}()
			t.Cleanup(func() { _ = l.Close(); <-done })
			err = check(l.Addr().String(), 300*time.Millisecond)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

// The variable must be the one that a service reads.
func TestVariable(t *testing.T) {
	for _, service := range []string{"ingest", "persist", "tidegate"} {
		t.Setenv(variable(service), "127.0.0.1:4242")
		if got := telemetry.DefaultConfig(service).MetricsListen; got != "127.0.0.1:4242" {
			t.Errorf("%s of service %s is not read: it listens at %s", variable(service), service, got)
		}
	}
}
