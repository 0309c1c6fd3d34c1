package rig

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Engine is a Docker engine.
type Engine struct {
	// Env is what a docker or compose command needs in its environment, over the process's own.
	Env []string
	// Client is a docker command that can build with BuildKit.
	Client string
}

// engine is the one of this test binary: starting it takes seconds.
var engine struct {
	once   sync.Once
	found  *Engine
	err    error
	script string // ends what this process started; empty when it started none
}

// Docker returns the engine that answers, or starts one (tools/engine.sh). What a test started ends with the test
// binary, if its TestMain calls StopDocker.
func Docker(t testing.TB) *Engine {
	t.Helper()
	script := filepath.Join(root(t), "tools", "engine.sh")
	engine.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		out, err := Output(ctx, script, "start")
		if err != nil {
			engine.err = err
			return
		}
		e := &Engine{}
		lines := bufio.NewScanner(bytes.NewReader(out))
		for lines.Scan() {
			for _, word := range strings.Fields(strings.TrimPrefix(lines.Text(), "export ")) {
				key, value, _ := strings.Cut(word, "=")
				value = strings.Trim(value, "'")
				switch key {
				case "TIDEGATE_DOCKER":
					e.Client = value
				case "TIDEGATE_ENGINE":
					if value == "started" {
						engine.script = script
					}
				default:
					e.Env = append(e.Env, key+"="+value)
				}
			}
		}
		engine.found = e
	})
	Need(t, engine.err == nil, fmt.Sprintf("a Docker engine (%v)", engine.err))
	return engine.found
}

// StopDocker ends the engine if this process started it. TestMain calls it after the tests.
func StopDocker() {
	if engine.script == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := Output(ctx, engine.script, "stop"); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// Command is a docker command against the engine.
func (e *Engine) Command(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, e.Client, args...) //nolint:gosec // the client that the engine's script found
	c.Env = append(os.Environ(), e.Env...)
	return c
}

// Run runs a docker command to its end and returns its standard output without surrounding space.
func (e *Engine) Run(ctx context.Context, args ...string) (string, error) {
	c := e.Command(ctx, args...)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		err = fmt.Errorf("docker %.200s: %w: %s", strings.Join(args, " "), err, tail(stderr.String(), 2000))
	}
	return strings.TrimSpace(string(out)), err
}

// Must is Run whose failure fails the test.
func (e *Engine) Must(t testing.TB, args ...string) string {
	t.Helper()
	out, err := e.Run(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
