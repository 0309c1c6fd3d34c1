package hook

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tidegate-mesh/tidegate/libs/bus/bustest"
)

func scriptIn(t *testing.T, body string) (path, out string) {
	t.Helper()
	dir := t.TempDir()
	path, out = filepath.Join(dir, "hook.sh"), filepath.Join(dir, "out")
	write(t, path, "#!/bin/sh\nOUT="+out+"\n"+body, 0o755)
	return path, out
}

func scriptRig(t *testing.T, path string, limit time.Duration) *rig {
	return newRig(t, func(c *Config) { c.Scripts, c.ScriptTimeout = []string{path}, limit })
}

// TestScriptOnceInOrder: each event on standard input, once and in order, with nothing of the service's environment.
func TestScriptOnceInOrder(t *testing.T) {
	t.Setenv("DATABASE_URL", "postgres://user:password@db/x")
	path, out := scriptIn(t, `
n=$(cat "$OUT.n" 2>/dev/null || echo 0); echo $((n + 1)) > "$OUT.n"
[ "$n" = 2 ] && { echo "not today" >&2; exit 1; }
cat >> "$OUT"; echo >> "$OUT"
env >> "$OUT.env"
`)
	r := scriptRig(t, path, 5*time.Second)
	want := names("a", 5)
	for _, id := range want {
		r.attack(id)
	}
	bustest.Wait(t, "all", func() bool { return len(lines(t, out)) == len(want) })
	var list []envelope
	for _, l := range lines(t, out) {
		var e envelope
		if err := json.Unmarshal([]byte(l), &e); err != nil {
			t.Fatal(err)
		}
		list = append(list, e)
	}
	if got := attackIDs(list); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if n := r.count("failures", prometheus.Labels{"hook": "script-1", "reason": "exit"}); n != 1 {
		t.Errorf("%v failures", n)
	}
	env := strings.Join(lines(t, out+".env"), "\n")
	if strings.Contains(env, "DATABASE_URL") || !strings.Contains(env, "TIDEGATE_EVENT_ID="+list[0].ID) || !strings.Contains(env, "TIDEGATE_EVENT_TYPE=attack.started") {
		t.Errorf("the environment is %s", env)
	}
}

// TestScriptHangs: one that does not end is killed with its children when its time is over, and runs again.
func TestScriptHangs(t *testing.T) {
	path, out := scriptIn(t, `
if [ ! -e "$OUT.hung" ]; then
  sleep 60 & echo $! > "$OUT.child"
  : > "$OUT.hung"
  wait
fi
cat >> "$OUT"; echo >> "$OUT"
`)
	r := scriptRig(t, path, 300*time.Millisecond)
	begin := time.Now()
	r.attack("a")
	r.attack("b")
	bustest.Wait(t, "both", func() bool { return len(lines(t, out)) == 2 })
	if took := time.Since(begin); took < 300*time.Millisecond || took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
	if n := r.count("failures", prometheus.Labels{"hook": "script-1", "reason": "timeout"}); n != 1 {
		t.Errorf("%v timeouts", n)
	}
	child := strings.TrimSpace(strings.Join(lines(t, out+".child"), ""))
	bustest.Wait(t, "the child's end", func() bool {
		stat, err := os.ReadFile(filepath.Join("/proc", child, "stat"))
		return err != nil || strings.Contains(string(stat), ") Z ") // a zombie that this container's init does not fetch
	})
}

// TestScriptEnds: what exit statuses and other ends mean.
func TestScriptEnds(t *testing.T) {
	for _, c := range []struct{ name, body, reason, result string }{
		{"refuses", "exit 65", "", refused},
		{"reads nothing", "exit 0", "", delivered},
		{"leaves a child behind", "sleep 3 & exit 0", "", delivered},
		{"is killed", "kill -9 $$", "exit", ""},
		{"talks a lot", "head -c 100000 /dev/zero | tr '\\0' x; exit 3", "exit", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			path, _ := scriptIn(t, c.body+"\n")
			r := scriptRig(t, path, 5*time.Second)
			r.attack("a")
			bustest.Wait(t, "the outcome", func() bool {
				if c.reason != "" {
					return r.count("failures", prometheus.Labels{"hook": "script-1", "reason": c.reason}) >= 1
				}
				return r.count("messages", prometheus.Labels{"hook": "script-1", "result": c.result}) == 1
			})
			if p := strings.Join(r.set.Problems(), "\n"); (p != "") != (c.reason != "") || len(p) > 600 {
				t.Errorf("problems %s", p)
			}
		})
	}
}

// TestScriptGone: a script that is removed under the service fails with a reason, and goes on when it is back.
func TestScriptGone(t *testing.T) {
	path, out := scriptIn(t, `cat >> "$OUT"; echo >> "$OUT"`+"\n")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r := scriptRig(t, path, 5*time.Second)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	r.attack("a")
	bustest.Wait(t, "a failure", func() bool {
		return r.count("failures", prometheus.Labels{"hook": "script-1", "reason": "start"}) > 0
	})
	write(t, path, string(text), 0o755)
	bustest.Wait(t, "the event", func() bool { return len(lines(t, out)) == 1 })
}

// TestValidate: mistakes are told in a sentence that names what to do.
func TestValidate(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		p := filepath.Join(dir, name)
		write(t, p, text, mode)
		return p
	}
	secret, short, empty := file("secret", secretLine, 0o600), file("short", "whsec_c2hvcnQ=", 0o600), file("empty", "\n", 0o600)
	plain, open, good := file("plain.sh", "#!/bin/sh\n", 0o644), file("open.sh", "#!/bin/sh\n", 0o777), file("good.sh", "#!/bin/sh\n", 0o755)
	for _, c := range []struct {
		says   string // empty: valid
		change func(*Config)
	}{
		{"", func(*Config) {}},
		{"", func(c *Config) { c.Webhooks, c.Secrets = []string{"https://hooks.example/x"}, []string{secret} }},
		{"", func(c *Config) { c.Webhooks, c.Secrets = []string{"http://127.0.0.1:8000/"}, []string{secret} }},
		{"", func(c *Config) { c.Webhooks, c.Secrets = []string{"http://localhost:8000/"}, []string{secret} }},
		{"", func(c *Config) {
			c.Webhooks, c.Secrets, c.AllowHTTP = []string{"http://hooks.example/"}, []string{secret}, true
		}},
		{"", func(c *Config) { c.Scripts, c.Events = []string{good}, []string{"attack.*", "rule.hits"} }},
		{"--hook-webhook-allow-http", func(c *Config) { c.Webhooks, c.Secrets = []string{"http://hooks.example/"}, []string{secret} }},
		{"is no URL", func(c *Config) { c.Webhooks, c.Secrets = []string{"hooks.example/x"}, []string{secret} }},
		{"is no URL", func(c *Config) { c.Webhooks, c.Secrets = []string{"ftp://u:hush@hooks.example/x"}, []string{secret} }},
		{"cannot be read", func(c *Config) { c.Webhooks, c.Secrets = []string{"https://u:hush%@hooks.example"}, []string{secret} }},
		{"fragment", func(c *Config) { c.Webhooks, c.Secrets = []string{"https://hooks.example/#x"}, []string{secret} }},
		{"needs its --hook-webhook-secret-file", func(c *Config) { c.Webhooks = []string{"https://hooks.example/"} }},
		{"no such file", func(c *Config) { c.Webhooks, c.Secrets = []string{"https://hooks.example/"}, []string{dir + "/none"} }},
		{"24 to 64 bytes", func(c *Config) { c.Webhooks, c.Secrets = []string{"https://hooks.example/"}, []string{short} }},
		{"is empty", func(c *Config) { c.Webhooks, c.Secrets = []string{"https://hooks.example/"}, []string{empty} }},
		{"holds no certificate", func(c *Config) { c.WebhookCA = secret }},
		{"give 100ms to 5m", func(c *Config) { c.Scripts, c.ScriptTimeout = []string{good}, 0 }},
		{"may be 4 of each", func(c *Config) { c.Scripts = slices.Repeat([]string{good}, 5) }},
		{"absolute path", func(c *Config) { c.Scripts = []string{"good.sh"} }},
		{"does not exist", func(c *Config) { c.Scripts = []string{dir + "/none"} }},
		{"is not a file", func(c *Config) { c.Scripts = []string{dir} }},
		{"chmod +x", func(c *Config) { c.Scripts = []string{plain} }},
		{"chmod o-w", func(c *Config) { c.Scripts = []string{open} }},
		{`"attack.begun"`, func(c *Config) { c.Scripts, c.Events = []string{good}, []string{"attack.begun"} }},
		{"no type of event", func(c *Config) { c.Scripts, c.Events = []string{good}, nil }},
		{`"dns"`, func(c *Config) { c.EVENATS, c.EVETypes = true, []string{"dns"} }},
		{"absolute path", func(c *Config) { c.EVEFile = "eve.json" }},
		{"the folder", func(c *Config) { c.EVEFile = dir + "/none/eve.json" }},
		{"is not a file", func(c *Config) { c.EVEFile = dir }},
	} {
		cfg := DefaultConfig()
		c.change(&cfg)
		err := cfg.Validate()
		if said := fmt.Sprint(err); (err == nil) != (c.says == "") || c.says != "" && !strings.Contains(said, c.says) || strings.Contains(said, "hush") {
			t.Errorf("%+v: %v, want %q", cfg, err, c.says)
		}
	}
}
