package enforce

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/tidegate-mesh/tidegate/libs/policy"
)

// The routes that a program was told of are kept in a file, one a line: what a process leaves upstream that is killed, with
// its program, the next one withdraws. The words are those of the routes.
var savedWords = map[policy.Action]string{policy.Drop: "discard ", policy.Allow: "accept "}

// save makes routes the content of the file. A failure is counted and told: routes go on without it.
func (a *announcer) save(routes map[string]policy.Action) {
	if a.file == "" {
		return
	}
	var b strings.Builder
	for _, conditions := range slices.Sorted(maps.Keys(routes)) {
		b.WriteString(savedWords[routes[conditions]] + conditions + "\n")
	}
	if b.String() == a.saved {
		return
	}
	if err := writeWhole(a.file, []byte(b.String())); err != nil {
		a.t.CountError("upstream_state")
		a.t.Log.Error("the routes upstream could not be saved: a next start does not know them", "file", a.file, "error", err)
		return
	}
	a.saved = b.String()
}

// writeWhole leaves the old content or the new one, whatever happens.
func writeWhole(path string, text []byte) error {
	fresh := path + ".new"
	f, err := os.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600) //nolint:gosec // the operator's choice
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(fresh, path)
}

// recall takes what an earlier process has saved as told.
func (a *announcer) recall() {
	if a.file == "" {
		return
	}
	text, err := os.ReadFile(a.file) //nolint:gosec // the same
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	told := make(map[string]policy.Action)
	for line := range bytes.Lines(text) {
		word, conditions, _ := strings.Cut(strings.TrimSuffix(string(line), "\n"), " ")
		switch {
		case strings.ContainsAny(conditions, "{}") || !strings.HasSuffix(conditions, "; "):
			err = cmp.Or(err, fmt.Errorf("%q is no route", line))
		case word == "discard":
			told[conditions] = policy.Drop
		case word == "accept":
			told[conditions] = policy.Allow
		default:
			err = cmp.Or(err, fmt.Errorf("%q is no route", line))
		}
	}
	if err != nil {
		a.t.CountError("upstream_state")
		a.t.Log.Error("not all routes of an earlier run are known", "file", a.file, "error", err)
	}
	if len(told) > 0 {
		a.t.Log.Warn("an earlier run has left routes upstream: they are withdrawn", "routes", len(told))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.told = told
}
