package lifecycle

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv("LIFECYCLE_TEST_CHILD") == "1" {
		child()
		return
	}
	goleak.VerifyTestMain(m)
}

// journal records the order of events of several goroutines.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) add(line string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, line)
}

// waiting is a service that records its stop.
func (j *journal) waiting(name string, err error) func(context.Context) error {
	return func(ctx context.Context) error {
		<-ctx.Done()
		j.add(name)
		return err
	}
}

func TestGroup(t *testing.T) {
	boom := errors.New("boom")
	late := errors.New("late")
	for _, c := range []struct {
		name   string
		build  func(g *Group, j *journal)
		cancel bool
		order  []string
		want   error
		prefix string
	}{
		{
			name: "context end stops in reverse order",
			build: func(g *Group, j *journal) {
				g.Add("bus", 0, j.waiting("bus", nil))
				g.Add("worker", 0, j.waiting("worker", context.Canceled))
				g.Add("intake", 0, j.waiting("intake", nil))
			},
			cancel: true,
			order:  []string{"intake", "worker", "bus"},
		},
		{
			name: "an error stops all and names the service",
			build: func(g *Group, j *journal) {
				g.Add("bus", 0, j.waiting("bus", nil))
				g.Add("broken", 0, func(context.Context) error { return boom })
				g.Add("intake", 0, j.waiting("intake", late))
			},
			order:  []string{"intake", "bus"},
			want:   boom,
			prefix: "broken: ",
		},
		{
			name: "an exit without error stops all",
			build: func(g *Group, j *journal) {
				g.Add("bus", 0, j.waiting("bus", nil))
				g.Add("done", 0, func(context.Context) error { return nil })
			},
			order: []string{"bus"},
		},
		{
			name: "an error while draining is returned",
			build: func(g *Group, j *journal) {
				g.Add("bus", 0, j.waiting("bus", late))
				g.Add("intake", 0, j.waiting("intake", nil))
			},
			cancel: true,
			order:  []string{"intake", "bus"},
			want:   late,
			prefix: "bus: ",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			var g Group
			j := &journal{}
			c.build(&g, j)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			if c.cancel {
				time.AfterFunc(20*time.Millisecond, cancel)
			}
			err := g.Run(ctx)
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Errorf("error %v, want %v", err, c.want)
			}
			if err != nil && !strings.HasPrefix(err.Error(), c.prefix) {
				t.Errorf("error %q does not name the service as %q", err, c.prefix)
			}
			if !slices.Equal(j.lines, c.order) {
				t.Errorf("stopped %v, want %v", j.lines, c.order)
			}
		})
	}
	if err := new(Group).Run(context.Background()); err != nil {
		t.Errorf("empty group: %v", err)
	}
}

func TestGroupLeavesBehindWhatOverruns(t *testing.T) {
	var g Group
	j := &journal{}
	release := make(chan struct{})
	finished := make(chan struct{})
	g.Add("bus", 0, j.waiting("bus", nil))
	g.Add("stuck", 30*time.Millisecond, func(context.Context) error {
		defer close(finished)
		<-release
		return nil
	})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	err := g.Run(ctx)
	if err == nil || !strings.Contains(err.Error(), "stuck: did not stop within 30ms") {
		t.Errorf("error %v", err)
	}
	if !slices.Equal(j.lines, []string{"bus"}) {
		t.Errorf("the others were not stopped: %v", j.lines)
	}
	close(release)
	<-finished
}

type key struct{}

func TestGroupPassesValuesAndDrainsApart(t *testing.T) {
	ctx, cancel := context.WithCancel(context.WithValue(context.Background(), key{}, "value"))
	var g Group
	drained := false
	g.Add("bus", 0, func(ctx context.Context) error {
		if ctx.Value(key{}) != "value" {
			t.Error("the context's values are lost")
		}
		<-ctx.Done()
		if !drained {
			t.Error("the bus was stopped before the worker had drained")
		}
		return nil
	})
	g.Add("worker", time.Second, func(ctx context.Context) error {
		<-ctx.Done()
		time.Sleep(50 * time.Millisecond)
		drained = true
		return nil
	})
	cancel()
	if err := g.Run(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestRetry(t *testing.T) {
	boom := errors.New("boom")
	var waits []time.Duration
	calls := 0
	err := Retry(context.Background(), 2*time.Millisecond, 8*time.Millisecond, func(context.Context) error {
		if calls++; calls < 6 {
			return boom
		}
		return nil
	}, func(err error, next time.Duration) {
		if !errors.Is(err, boom) {
			t.Errorf("told of %v", err)
		}
		waits = append(waits, next)
	})
	if err != nil || calls != 6 {
		t.Fatalf("%d calls, %v", calls, err)
	}
	for i, limit := range []time.Duration{2, 4, 8, 8, 8} {
		if w := waits[i]; w < limit*time.Millisecond/2 || w > limit*time.Millisecond {
			t.Errorf("wait %d is %s, want %dms/2 to %dms", i, w, limit, limit)
		}
	}

	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	begin := time.Now()
	err = Retry(ctx, time.Hour, time.Hour, func(context.Context) error { return boom }, nil)
	if !errors.Is(err, boom) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want both the operation's and the context's", err)
	}
	if time.Since(begin) > 5*time.Second {
		t.Error("the end of the context did not interrupt the wait")
	}
}

// child waits as a service with an endless drain would, for TestSignals.
func child() {
	ctx, cancel := SignalContext()
	defer cancel()
	_, _ = os.Stdout.WriteString("ready\n")
	<-ctx.Done()
	_, _ = os.Stdout.WriteString("draining\n")
	if os.Getenv("LIFECYCLE_TEST_DRAIN") == "endless" {
		time.Sleep(time.Minute)
	}
}

func TestSignals(t *testing.T) {
	for _, c := range []struct {
		name, drain string
		signals     []os.Signal
		status      int
	}{
		{"first signal ends the context", "short", []os.Signal{syscall.SIGTERM}, 0},
		{"second signal ends the process", "endless", []os.Signal{syscall.SIGINT, syscall.SIGINT}, 130},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "LIFECYCLE_TEST_CHILD=1", "LIFECYCLE_TEST_DRAIN="+c.drain)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			kill := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
			defer kill.Stop()
			buf := make([]byte, 64)
			for _, s := range c.signals {
				if _, err := out.Read(buf); err != nil { // "ready", then "draining"
					t.Fatal(err)
				}
				if err := cmd.Process.Signal(s); err != nil {
					t.Fatal(err)
				}
			}
			_ = cmd.Wait()
			if got := cmd.ProcessState.ExitCode(); got != c.status {
				t.Errorf("exit status %d, want %d", got, c.status)
			}
		})
	}
}

func TestSignalContextCancel(t *testing.T) {
	ctx, cancel := SignalContext()
	cancel()
	cancel()
	if ctx.Err() == nil {
		t.Error("cancel did not end the context")
	}
}
