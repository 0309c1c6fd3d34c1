package main

import (
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestWriteWholeIntoPipe: what is no file, such as /dev/stdout, is written to and not replaced.
func TestWriteWholeIntoPipe(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(pipe, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := writeWhole(pipe, func(w io.Writer) error { _, err := io.WriteString(w, "packets"); return err }); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(pipe); err != nil || info.Mode().Type() != os.ModeNamedPipe {
		t.Fatalf("in its place is %v, %v", info.Mode(), err)
	}
	text := make([]byte, 7)
	if _, err := io.ReadFull(f, text); err != nil || string(text) != "packets" {
		t.Errorf("%q, %v", text, err)
	}
}
