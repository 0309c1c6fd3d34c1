// Package logtail keeps the end of what a process prints, for tests that start servers.
package logtail

import (
	"bytes"
	"sync"
)

const (
	most = 256 << 10 // kept at most
	step = 128 << 10 // dropped at once when it is more
)

// Buffer is an io.Writer. The zero value is ready; its methods may be called by several goroutines.
type Buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (l *Buffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.b.Len() > most {
		l.b.Next(step)
	}
	return l.b.Write(p)
}

// String is all that was kept.
func (l *Buffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Tail is the last n bytes of it.
func (l *Buffer) Tail(n int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.b.Bytes()
	return string(b[max(0, len(b)-n):])
}
