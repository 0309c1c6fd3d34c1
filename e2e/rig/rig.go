// Package rig runs the built binaries and real servers for end-to-end tests and benchmarks.
package rig

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/loadgen"
	"github.com/tidegate-mesh/tidegate/libs/logtail"
)

// CI is whether a missing real dependency fails a test instead of skipping it.
func CI() bool { return os.Getenv("TIDEGATE_CI") != "" }

// Need skips the test, or fails it in CI, when what it needs is not there.
func Need(t testing.TB, ok bool, what string) {
	t.Helper()
	switch {
	case ok:
	case CI():
		t.Fatalf("%s is missing, and in CI nothing may be skipped", what)
	default:
		t.Skipf("needs %s", what)
	}
}

// NeedRoot is Need for what only root may do.
func NeedRoot(t testing.TB) {
	t.Helper()
	Need(t, os.Geteuid() == 0, "root (network namespaces, XDP)")
}

// root is the repository's top folder.
func root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.work")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.work above the test's folder")
		}
	}
}

// Binary is the path of a built binary (make build).
func Binary(t testing.TB, name string) string {
	t.Helper()
	p := filepath.Join(root(t), "bin", name)
	if _, err := os.Stat(p); err != nil {
		t.Fatalf("%s is not built: run make build", name)
	}
	return p
}

// Shared is the folder of captures that others labelled; tests skip without it, except in CI.
func Shared(t testing.TB) string {
	t.Helper()
	p := os.Getenv("TIDEGATE_SHARED")
	if p == "" {
		p = filepath.Join(root(t), "..", "shared")
	}
	_, err := os.Stat(filepath.Join(p, "corpus"))
	Need(t, err == nil, "the captures in ../shared/corpus")
	return p
}

// Sample is a bundled capture.
func Sample(t testing.TB, name string) string {
	t.Helper()
	return filepath.Join(root(t), "deploy", "samples", name)
}

// Link builds a test link that is removed when the test ends.
func Link(t testing.TB, o loadgen.LinkOptions) *loadgen.Link {
	t.Helper()
	NeedRoot(t)
	l, err := loadgen.NewLink(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("remove the test link: %v", err)
		}
	})
	return l
}

// FreeAddr is a loopback address with a port that was free a moment ago.
func FreeAddr(t testing.TB) string {
	t.Helper()
	for {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := l.Addr().String()
		_ = l.Close()
		if _, again := given.LoadOrStore(addr, true); !again { // the system may choose a port again before somebody listens on it
			return addr
		}
	}
}

// given are the addresses that FreeAddr has returned.
var given sync.Map

// Process is a running binary of ours.
type Process struct {
	Name string

	t    testing.TB
	path string
	args []string
	env  []string
	attr *syscall.SysProcAttr
	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{}
	err  error
	log  logtail.Buffer
}

// Start starts a binary; it is stopped when the test ends, and its output shown if the test failed.
func Start(t testing.TB, path string, env []string, args ...string) *Process {
	t.Helper()
	return StartAs(t, nil, path, env, args...)
}

// StartAs is Start with another user, or other rights, than the test's.
func StartAs(t testing.TB, attr *syscall.SysProcAttr, path string, env []string, args ...string) *Process {
	t.Helper()
	p := &Process{Name: filepath.Base(path), t: t, path: path, args: args, env: env, attr: attr}
	p.Restart()
	t.Cleanup(func() {
		_ = p.Stop(15 * time.Second)
		if t.Failed() {
			t.Logf("output of %s:\n%s", p.Name, p.log.Tail(6000))
		}
	})
	return p
}

// Restart starts the process again after it ended.
func (p *Process) Restart() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cmd = exec.Command(p.path, p.args...)
	p.cmd.Env = append(os.Environ(), p.env...)
	p.cmd.SysProcAttr = p.attr
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	if err := p.cmd.Start(); err != nil {
		p.t.Fatalf("start %s: %v", p.Name, err)
	}
	p.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) {
		p.err = cmd.Wait()
		close(done)
	}(p.cmd, p.done)
}

// PID is the running process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Log is what the process printed.
func (p *Process) Log() string { return p.log.String() }

// Kill ends the process with SIGKILL and waits for it.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Signal sends a signal.
func (p *Process) Signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// Stop ends the process with SIGTERM, after limit with SIGKILL, and returns how it ended.
func (p *Process) Stop(limit time.Duration) error {
	select {
	case <-p.done:
		return p.err
	default:
	}
	p.Signal(syscall.SIGTERM)
	return p.Wait(limit)
}

// Wait waits for the process to end by itself; after limit it is killed.
func (p *Process) Wait(limit time.Duration) error {
	select {
	case <-p.done:
		return p.err
	case <-time.After(limit):
		p.Kill()
		return fmt.Errorf("%s did not end within %v", p.Name, limit)
	}
}

// Output runs a command to its end and returns its standard output.
func Output(ctx context.Context, path string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s %.200s: %w: %s", filepath.Base(path), strings.Join(args, " "), err, tail(stderr.String(), 2000))
	}
	return out, err
}

// Eventually tries f until it succeeds or limit has passed, and returns its last error.
func Eventually(limit time.Duration, f func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := f()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func tail(s string, n int) string {
	if len(s) > n {
		return "…" + s[len(s)-n:]
	}
	return s
}
