// Package configtest keeps the configuration tables of the services' pages equal to their flags.
package configtest

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/config"
)

var update = flag.Bool("update", false, "write the table into the page instead of comparing")

const (
	begin = "<!-- configuration: made by the tests of cmd, go test ./cmd/... -update -->\n"
	end   = "<!-- end of configuration -->\n"
)

// Page compares the table between the marks of a README with the flags of cli.
func Page(t *testing.T, readme string, cli any, name string) {
	t.Helper()
	table, err := config.Table(cli, name)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(readme) //nolint:gosec // the test's own page
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), begin)
	have, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		t.Fatalf("%s lacks the marks of the configuration table:\n%s%s", readme, begin, end)
	}
	if have == table {
		return
	}
	if !*update {
		t.Fatalf("the configuration table of %s is not that of the flags: go test ./cmd/... -update writes it", readme)
	}
	if err := os.WriteFile(readme, []byte(before+begin+table+end+after), 0o644); err != nil { //nolint:gosec // a page for all
		t.Fatal(err)
	}
}
