package config

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"github.com/tidegate-mesh/tidegate/libs/telemetry"
)

type options struct {
	Rate      int               `name:"rate" default:"1"`
	Level     string            `name:"log-level" default:"info" enum:"debug,info"`
	Idle      time.Duration     `name:"idle" default:"5s"`
	Enforce   bool              `name:"enforce"`
	Ratio     float64           `name:"ratio" default:"0.5"`
	Protected []netip.Prefix    `name:"protected"`
	Names     []string          `name:"names" default:"a,b"`
	Labels    map[string]string `name:"labels"`
	URL       string            `name:"url" env:"TG_TEST_URL"`
	Secret    string            `name:"secret" env:"-"`
	Store     struct {
		Path string `name:"path" default:"/var"`
	} `embed:"" prefix:"store-"`
	Must string `name:"must" required:""`
}

func (o *options) Validate() error {
	if o.Rate < 0 {
		return fmt.Errorf("--rate %d: it must not be negative", o.Rate)
	}
	return nil
}

func writeFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tidegate.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestPrecedence(t *testing.T) {
	for _, c := range []struct {
		name, file, env, flag string
		want                  int
	}{
		{"default", "", "", "", 1},
		{"file over default", "rate: 2", "", "", 2},
		{"environment over file", "rate: 2", "3", "", 3},
		{"flag over environment", "rate: 2", "3", "4", 4},
		{"flag over file", "rate: 2", "", "4", 4},
		{"environment over default", "", "3", "", 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := []string{"--must=x"}
			if c.file != "" {
				args = append(args, "--config", writeFile(t, c.file))
			}
			if c.env != "" {
				t.Setenv("TIDEGATE_INGEST_RATE", c.env)
			}
			if c.flag != "" {
				args = append(args, "--rate", c.flag)
			}
			var cli options
			if _, err := Parse(&cli, "tidegate-ingest", "test", args); err != nil {
				t.Fatal(err)
			}
			if cli.Rate != c.want {
				t.Errorf("rate %d, want %d", cli.Rate, c.want)
			}
		})
	}
}

func TestFileValues(t *testing.T) {
	path := writeFile(t, `
# sections nest, underscores are hyphens
log: {level: debug}
idle: 250ms
enforce: true
ratio: 0.25
protected: [192.0.2.0/24, "2001:db8::/32"]
names:
  - "one, two"
  - three
labels: {site: north, rack: "7"}
store:
  path: &p /data
url: *p
secret: 0123
must: from file
ingest: {rate: 9}
`)
	t.Setenv("TIDEGATE_INGEST_CONFIG", path)
	t.Setenv("TIDEGATE_INGEST_SECRET", "not taken: the flag has no variable")
	var got options
	if _, err := Parse(&got, "ingest", "test", nil); err != nil {
		t.Fatal(err)
	}
	want := options{
		Rate: 9, Level: "debug", Idle: 250 * time.Millisecond, Enforce: true, Ratio: 0.25,
		Protected: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")},
		Names:     []string{"one, two", "three"},
		Labels:    map[string]string{"site": "north", "rack": "7"},
		URL:       "/data", Secret: "0123", Must: "from file",
	}
	want.Store.Path = "/data"
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestMistakes(t *testing.T) {
	for _, c := range []struct {
		name, file string
		args       []string
		want       []string // parts of the sentence
	}{
		{"unknown key", "rate: 1\nrates: 2\n", nil, []string{":2:", `"rates"`, "tidegate.yaml"}},
		{"unknown key in a section", "log:\n  lever: info\n", nil, []string{":2:", `"log.lever"`}},
		{"unknown key in an unknown section", "nope:\n  rate: 1\n", nil, []string{`"nope.rate"`}},
		{"own flags are no keys", "config: other.yaml\n", nil, []string{`"config"`}},
		{"repeated", "log-level: info\nlog: {level: debug}\n", nil, []string{`"log.level"`, `"log-level"`}},
		{"wrong type", "rate: fast\n", nil, []string{"--rate", "fast"}},
		{"list for one value", "rate: [1, 2]\n", nil, []string{`"rate"`, "one plain value", ":1:"}},
		{"empty value", "rate:\n", nil, []string{`"rate"`, "no value"}},
		{"not in the enumeration", "log: {level: loud}\n", nil, []string{"log-level", "loud"}},
		{"no mapping", "- rate\n", nil, []string{"expected keys"}},
		{"no YAML", "rate: [\n", nil, []string{"tidegate.yaml"}},
		{"two documents", "rate: 1\n---\nrate: 2\n", nil, []string{"more than one"}},
		{"section that holds itself", "log: &a {b: *a}\n", nil, []string{":1:", "log.b", "nested"}},
		{"empty section", "rates: {}\n", nil, []string{":1:", `"rates"`, `"rate"`}},
		{"empty section for a value", "rate: {}\n", nil, []string{":1:", `"rate"`, "one plain value"}},
		{"refused by Validate", "rate: -1\n", nil, []string{"must not be negative"}},
		{"unknown flag", "", []string{"--nope"}, []string{"--nope"}},
		{"absent file", "", []string{"--config=/nonexistent/f.yaml"}, []string{"/nonexistent/f.yaml"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := append([]string{"--must=x"}, c.args...)
			if c.file != "" {
				args = append(args, "--config", writeFile(t, c.file))
			}
			var cli options
			_, err := Parse(&cli, "ingest", "test", args)
			if err == nil {
				t.Fatal("accepted")
			}
			if ExitCode(err) != ExitUsage {
				t.Errorf("exit status %d, want %d", ExitCode(err), ExitUsage)
			}
			for _, part := range c.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q lacks %q", err, part)
				}
			}
		})
	}
	var cli options
	if _, err := Parse(&cli, "ingest", "test", nil); err == nil || !strings.Contains(err.Error(), "--must") {
		t.Errorf("a required flag is missing: %v", err)
	}
}

// TestShared: a binary that only finds out when it listens ends with the status that has systemd start it again.
func TestShared(t *testing.T) {
	for _, c := range []struct {
		flag, value string
		good        bool
	}{
		{"listen", "127.0.0.1:50051", true}, {"listen", ":50051", true}, {"listen", "[::1]:0", true}, {"listen", "", true},
		{"listen", "50051", false}, {"listen", "127.0.0.1", false}, {"listen", "127.0.0.1:70000", false}, {"listen", "::1:9090", false},
		{"metrics-listen", "0.0.0.0:9090", true}, {"metrics-listen", "localhost", false},
		{"sample-ratio", "1", true}, {"sample-ratio", "1.5", false}, {"sample-ratio", "-0.1", false}, {"sample-ratio", "nan", false},
	} {
		var cli struct {
			Listen    string           `name:"listen"`
			Telemetry telemetry.Config `embed:""`
		}
		_, err := Parse(&cli, "ingest", "test", []string{"--" + c.flag + "=" + c.value})
		if (err == nil) != c.good || err != nil && (ExitCode(err) != ExitUsage || !strings.Contains(err.Error(), "--"+c.flag)) {
			t.Errorf("--%s=%s: %v", c.flag, c.value, err)
		}
	}
}

func TestEmptyFiles(t *testing.T) {
	for _, content := range []string{"log: {}\n", "\n", "# nothing\n", "---\n"} {
		var cli options
		if _, err := Parse(&cli, "ingest", "test", []string{"--must=x", "--config", writeFile(t, content)}); err != nil {
			t.Errorf("%q: %v", content, err)
		}
	}
}

type exited struct{ status int }

func TestCheckConfig(t *testing.T) {
	run := func(args ...string) (out string, status int, err error) {
		var buf bytes.Buffer
		status = -1
		defer func() {
			out = buf.String()
			if e, ok := recover().(exited); ok {
				status = e.status
			}
		}()
		var cli options
		_, err = Parse(&cli, "ingest", "test", args, kong.Writers(&buf, &buf), kong.Exit(func(s int) { panic(exited{s}) }))
		return out, status, err
	}
	if out, status, err := run("--must=x", "--check-config"); status != 0 || err != nil || !strings.Contains(out, "valid") {
		t.Errorf("good configuration: status %d, %v, %q", status, err, out)
	}
	if _, status, err := run("--must=x", "--check-config", "--rate=-1"); status != -1 || ExitCode(err) != ExitUsage {
		t.Errorf("bad configuration: status %d, %v", status, err)
	}
	out, status, _ := run("--help")
	for _, part := range []string{"--config", "--check-config", "TIDEGATE_INGEST_STORE_PATH", "TG_TEST_URL"} {
		if !strings.Contains(out, part) {
			t.Errorf("help lacks %s", part)
		}
	}
	if status != 0 {
		t.Errorf("--help: status %d", status)
	}
}

func TestCommands(t *testing.T) {
	type commands struct {
		Run struct {
			Iface []string `name:"iface" required:""`
		} `cmd:""`
		Rules struct {
			Add struct {
				Source string `name:"src"`
			} `cmd:""`
		} `cmd:""`
	}
	path := writeFile(t, "run: {iface: [eth0, eth1]}\nrules: {add: {src: 192.0.2.1}}\n")
	var cli commands
	ctx, err := Parse(&cli, "tidegate", "test", []string{"run", "--config", path})
	if err != nil {
		t.Fatal(err)
	}
	if ctx.Command() != "run" || !reflect.DeepEqual(cli.Run.Iface, []string{"eth0", "eth1"}) {
		t.Errorf("command %q, iface %q", ctx.Command(), cli.Run.Iface)
	}
	t.Setenv("TIDEGATE_SRC", "198.51.100.1")
	cli = commands{}
	if _, err := Parse(&cli, "tidegate", "test", []string{"rules", "add", "--config", path}); err != nil {
		t.Fatal(err)
	}
	if cli.Rules.Add.Source != "198.51.100.1" {
		t.Errorf("src %q: the environment must win over the file", cli.Rules.Add.Source)
	}
}

func TestExitCode(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("disk full"), ExitRuntime},
		{Usagef("--for %d", -1), ExitUsage},
		{fmt.Errorf("demo: %w", Usagef("--for")), ExitUsage},
	} {
		if got := ExitCode(c.err); got != c.want {
			t.Errorf("ExitCode(%v) = %d, want %d", c.err, got, c.want)
		}
	}
}

func TestVersionNeedsNothingElse(t *testing.T) {
	var out bytes.Buffer
	ended := errors.New("ended")
	defer func() {
		if got := recover(); got != ended {
			t.Fatalf("the process goes on: %v", got)
		}
		if got := out.String(); !strings.HasPrefix(got, "tidegate-ingest ") || strings.Count(got, "\n") != 1 {
			t.Errorf("--version prints %q", got)
		}
	}()
	var cli options // --must is not given
	_, err := Parse(&cli, "tidegate-ingest", "test", []string{"--version"}, kong.Writers(&out, &out),
		kong.Exit(func(code int) {
			if code != 0 {
				t.Errorf("status %d", code)
			}
			panic(ended)
		}))
	t.Errorf("Parse returns %v", err)
}
