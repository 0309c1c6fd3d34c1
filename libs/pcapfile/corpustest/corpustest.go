// Package corpustest finds the shared captures with expected results that tests measure against. They are
// not part of the repository: their licences differ from ours.
package corpustest

import (
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
)

// Dir returns the corpus folder: $TIDEGATE_SHARED/corpus, or shared/corpus beside any parent folder of the
// test. Without one the test is skipped, and fails where TIDEGATE_CI=1 promises it.
func Dir(tb testing.TB) string {
	tb.Helper()
	if dir := os.Getenv("TIDEGATE_SHARED"); dir != "" {
		if dir = filepath.Join(dir, "corpus"); isDir(dir) {
			return dir
		}
	}
	at, err := os.Getwd()
	if err != nil {
		tb.Fatal(err)
	}
	for {
		if dir := filepath.Join(at, "shared", "corpus"); isDir(dir) {
			return dir
		}
		up := filepath.Dir(at)
		if up == at {
			break
		}
		at = up
	}
	const why = "no folder shared/corpus beside the repository and none in TIDEGATE_SHARED"
	if os.Getenv("TIDEGATE_CI") == "1" {
		tb.Fatal(why)
	}
	tb.Skip(why)
	return ""
}

// Captures lists all captures below dir, sorted.
func Captures(tb testing.TB, dir string) []string {
	tb.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		switch strings.ToLower(filepath.Ext(path)) {
		case ".pcap", ".pcapng", ".cap", ".trace":
			out = append(out, path)
		}
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	sort.Strings(out)
	return out
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
