package hook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

const (
	exitRefused = 65 // sysexits.h: EX_DATAERR
	outputBytes = 4096
	pipeWait    = time.Second // for output of children that were killed
)

// script runs a program for each event.
type script struct {
	path  string
	limit time.Duration
}

func (s *script) run(ctx context.Context, e *event) error {
	// The program dies with this thread, so that an event that comes again is not worked on twice.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	run, cancel := attempt(ctx, s.limit)
	defer cancel()
	var output tail
	c := exec.CommandContext(run, s.path)
	c.Dir = "/"
	// Nothing of the service's own environment, which holds passwords.
	c.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8",
		"TIDEGATE_EVENT_ID=" + e.id, "TIDEGATE_EVENT_TYPE=" + e.kind}
	c.Stdin, c.Stdout, c.Stderr = bytes.NewReader(e.body), &output, &output
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = pipeWait
	err := c.Run()
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay) && run.Err() == nil: // a child in the background holds the output: its affair
		return nil
	case errors.Is(run.Err(), context.DeadlineExceeded):
		return &failure{reason: "timeout", err: fmt.Errorf("%s did not end within %s and was killed%s", s.path, s.limit, shorten(output.Bytes()))}
	case run.Err() != nil:
		return &failure{reason: "stopped", err: fmt.Errorf("%s was killed: persist stops", s.path)}
	case errors.As(err, &exit):
		err = fmt.Errorf("%s ended with %s%s", s.path, exit, shorten(output.Bytes()))
		if exit.ExitCode() == exitRefused {
			return &refusedError{err}
		}
		return &failure{reason: "exit", err: err}
	}
	return &failure{reason: "start", err: fmt.Errorf("run %s: %w", s.path, err)}
}

// tail keeps the last bytes that are written to it.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if len(t.b) > outputBytes {
		t.b = append(t.b[:0], t.b[len(t.b)-outputBytes:]...)
	}
	return len(p), nil
}

// Bytes are what is kept.
func (t *tail) Bytes() []byte { return t.b }
