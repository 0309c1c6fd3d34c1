package hook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
)

// tailBytes of the file are searched for lines of a message that comes again. A message is at most 1 MiB of records.
const tailBytes = 16 << 20

// lineBegin is how every line begins (eveLine).
const lineBegin = `{"tidegate":{"id":"`

// eveFile appends lines to a file. Two consumers write to it.
type eveFile struct {
	path       string
	duplicates prometheus.Counter
	t          *telemetry.Telemetry

	mu sync.Mutex
	f  *os.File // nil: to be opened
}

// watch opens the file anew at each SIGHUP, until ctx ends; then it closes the file.
func (e *eveFile) watch(ctx context.Context) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-hup:
			e.mu.Lock()
			e.close()
			e.mu.Unlock()
		case <-ctx.Done():
			// A consumer may still be writing: the next write would open it again, and the end of the process closes it.
			e.mu.Lock()
			defer e.mu.Unlock()
			e.close()
			return
		}
	}
}

// write appends all lines or none. again: a former delivery may have written them.
func (e *eveFile) write(_ context.Context, lines []bus.EVELine, again bool) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	size, err := e.open()
	if err != nil {
		return &failure{reason: "open", err: fmt.Errorf("EVE file: %w", err)}
	}
	if again {
		if lines, err = e.missing(lines, size); err != nil {
			return &failure{reason: "read", err: fmt.Errorf("EVE file: %w", err)}
		}
	}
	n := 0
	for i := range lines {
		n += len(lines[i].JSON) + 1
	}
	if n == 0 {
		return nil
	}
	b := make([]byte, 0, n)
	for i := range lines {
		b = append(append(b, lines[i].JSON...), '\n')
	}
	if _, err := e.f.Write(b); err != nil {
		// What was written of it would be half a line, or come twice.
		back := e.f.Truncate(size)
		e.close()
		return &failure{reason: "write", err: fmt.Errorf("EVE file: %w", errors.Join(err, back))}
	}
	return nil
}

// open makes sure that the file is open and is what its path names, and gives its size.
func (e *eveFile) open() (int64, error) {
	there, err := os.Stat(e.path)
	if e.f != nil {
		mine, mineErr := e.f.Stat()
		if err == nil && mineErr == nil && os.SameFile(there, mine) {
			return mine.Size(), nil
		}
		e.close() // it was moved away or removed
	}
	if err == nil && !there.Mode().IsRegular() {
		return 0, fmt.Errorf("%s is not a file", e.path)
	}
	f, err := os.OpenFile(e.path, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o640) //nolint:gosec // the operator's group may read it
	if err != nil {
		return 0, err
	}
	e.f = f
	size, err := e.whole()
	if err != nil {
		e.close()
	}
	return size, err
}

// whole cuts off half a line that a crash left at the end: its message was not acknowledged and comes again.
func (e *eveFile) whole() (int64, error) {
	info, err := e.f.Stat()
	if err != nil || info.Size() == 0 {
		return 0, err
	}
	last, err := e.tail(info.Size())
	if err != nil {
		return 0, err
	}
	if last[len(last)-1] == '\n' {
		return info.Size(), nil
	}
	half := last[bytes.LastIndexByte(last, '\n')+1:]
	// A power cut can leave zeros instead.
	if !bytes.HasPrefix(half, []byte(lineBegin)) && !bytes.HasPrefix([]byte(lineBegin), half) && half[0] != 0 {
		return 0, fmt.Errorf("%s ends in half a line of another program: name a file that only persist writes to", e.path)
	}
	size := info.Size() - int64(len(half))
	e.t.CountError("eve_half_line")
	e.t.Log.Warn("the EVE file ends in half a line, which is cut off", "file", e.path, "bytes", info.Size()-size)
	return size, e.f.Truncate(size)
}

func (e *eveFile) tail(size int64) ([]byte, error) {
	n := min(size, tailBytes)
	b := make([]byte, n)
	if _, err := e.f.ReadAt(b, size-n); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return b, nil
}

// missing are the lines that the end of the file does not hold.
func (e *eveFile) missing(lines []bus.EVELine, size int64) ([]bus.EVELine, error) {
	if size == 0 {
		return lines, nil
	}
	last, err := e.tail(size)
	if err != nil {
		return nil, err
	}
	known := make(map[string]bool)
	for line := range bytes.SplitSeq(last, []byte("\n")) {
		if id := lineID(line); id != nil {
			known[string(id)] = true
		}
	}
	out := make([]bus.EVELine, 0, len(lines))
	for _, l := range lines {
		if known[string(lineID(l.JSON))] {
			e.duplicates.Inc()
			continue
		}
		out = append(out, l)
	}
	return out, nil
}

// lineID is the id of a line as JSON writes it, nil without one.
func lineID(line []byte) []byte {
	rest, ok := bytes.CutPrefix(line, []byte(lineBegin))
	for i := 0; ok && i < len(rest); i++ {
		switch rest[i] {
		case '"':
			return rest[:i]
		case '\\':
			i++
		}
	}
	return nil
}

func (e *eveFile) close() {
	if e.f == nil {
		return
	}
	if err := errors.Join(e.f.Sync(), e.f.Close()); err != nil {
		e.t.CountError("eve_close")
		e.t.Log.Error("close the EVE file", "file", e.path, "error", err)
	}
	e.f = nil
}

// eveNATS publishes lines.
type eveNATS struct {
	bus Bus

	mu    sync.Mutex
	ready bool // the stream is there
}

// publish stores all lines; those that are there already are stored once.
func (e *eveNATS) publish(ctx context.Context, lines []bus.EVELine, _ bool) error {
	if err := e.ensure(ctx); err != nil {
		return &failure{reason: "stream", err: err}
	}
	const together = 500 // on the way at once
	for len(lines) > 0 {
		n := min(len(lines), together)
		if err := e.bus.PublishEVE(ctx, lines[:n]); err != nil {
			e.mu.Lock()
			e.ready = false // it may be gone
			e.mu.Unlock()
			return &failure{reason: "publish", err: err}
		}
		lines = lines[n:]
	}
	return nil
}

func (e *eveNATS) ensure(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ready {
		return nil
	}
	err := e.bus.EnsureEVE(ctx)
	e.ready = err == nil
	return err
}
