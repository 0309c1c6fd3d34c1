package e2e

import (
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
)

// TestServiceBadInput: each service, alone, ends at a mistake with its exit status and one sentence that names the
// setting.
func TestServiceBadInput(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = busy.Close() }()
	needs := map[string][]string{
		"ingest":   {"--iface", "lo", "--mode", "host"},
		"classify": {"--nats-url", "nats://127.0.0.1:1"},
		"enforce":  {"--iface", "lo", "--nats-url", "nats://127.0.0.1:1"},
		"persist":  {"--db-type", "sqlite", "--data-dir", t.TempDir(), "--nats-url", "nats://127.0.0.1:1"},
		"gateway":  {"--nats-url", "nats://127.0.0.1:1"},
	}
	for name, flags := range needs {
		bin := rig.Binary(t, "tidegate-"+name)
		variable := "TIDEGATE_" + strings.ToUpper(name) + "_"
		for _, c := range []struct {
			mistake string
			args    []string
			exit    int
			says    []string
		}{
			{"unknown flag", []string{"--metrics-listn", ""}, 2, []string{"--metrics-listn", "--metrics-listen"}},
			{"unknown log level", []string{"--log-level", "loud"}, 2, []string{"log-level", "loud", "debug"}},
			{"absent file", []string{"--config", filepath.Join(t.TempDir(), "none.yaml")}, 2, []string{"none.yaml", "no such file"}},
			{"metrics port taken", []string{"--metrics-listen", busy.Addr().String()}, 1,
				[]string{busy.Addr().String(), "in use", "--metrics-listen", variable + "METRICS_LISTEN"}},
		} {
			args := append(append([]string{"--insecure"}, flags...), c.args...)
			exit, stderr := endBinary(t, bin, nil, args...)
			checkEnd(t, name+": "+c.mistake, exit, c.exit, stderr, c.says)
		}
		t.Run(name, func(t *testing.T) { // the variable is this test's own
			t.Setenv(variable+"LOG_LEVL", "info")
			exit, stderr := endBinary(t, bin, nil, append([]string{"--insecure", "--check-config"}, flags...)...)
			checkEnd(t, name+": unknown variable", exit, 2, stderr, []string{variable + "LOG_LEVL", variable + "LOG_LEVEL"})
		})
	}
	for _, name := range []string{"classify", "persist"} {
		args := append([]string{"--insecure", "--listen", busy.Addr().String(), "--metrics-listen", ""}, needs[name]...)
		exit, stderr := endBinary(t, rig.Binary(t, "tidegate-"+name), nil, args...)
		checkEnd(t, name+": gRPC port taken", exit, 1, stderr, []string{busy.Addr().String(), "in use", "--listen"})
	}
	persist := rig.Binary(t, "tidegate-persist")
	for _, c := range []struct {
		mistake string
		args    []string
		says    []string
	}{
		{"unknown database", []string{"--db-type", "postgresq"}, []string{"postgresq", "did you mean postgresql"}},
		{"malformed URL", []string{"--db-type", "postgresql", "--database-url", "postgres://u:p w@h:x/d"}, []string{"DATABASE_URL", "%XX"}},
		{"webhook without a secret", []string{"--hook-webhook", "https://hooks.example/x"}, []string{"--hook-webhook-secret-file", "openssl"}},
		{"script that is not there", []string{"--hook-script", "/nosuch/script"}, []string{"/nosuch/script", "does not exist"}},
		{"unknown type of event", []string{"--hook-script", "/bin/true", "--hook-events", "attack.begun"}, []string{"attack.begun", "attack.started"}},
		{"EVE file in no folder", []string{"--hook-eve-file", "/nosuch/eve.json"}, []string{"/nosuch", "make it"}},
	} {
		exit, stderr := endBinary(t, persist, nil, append([]string{"--insecure", "--metrics-listen", ""}, c.args...)...)
		checkEnd(t, "persist: "+c.mistake, exit, 2, stderr, c.says)
		if strings.Contains(stderr, "p w@") {
			t.Errorf("%s: the password is in the log: %s", c.mistake, stderr)
		}
	}
}

func checkEnd(t *testing.T, what string, exit, want int, stderr string, says []string) {
	t.Helper()
	last := lastLine(stderr)
	if exit != want {
		t.Errorf("%s: exit status %d, want %d: %s", what, exit, want, last)
	}
	for _, part := range says {
		if !strings.Contains(last, part) {
			t.Errorf("%s: does not say %q: %s", what, part, last)
		}
	}
}

// TestServiceNotReady: a service that waits for NATS, or for a secret, says so in /readyz and lives on.
func TestServiceNotReady(t *testing.T) {
	for name, flags := range map[string][]string{
		"classify": nil,
		"persist":  {"--db-type", "postgresql", "--database-url", "postgres://u@127.0.0.1:1/d", "--database-password-file", "/nonexistent/secret"},
	} {
		metrics := rig.FreeAddr(t)
		p := rig.Start(t, rig.Binary(t, "tidegate-"+name), nil, append([]string{"--insecure", "--nats-url", "nats://127.0.0.1:1",
			"--listen", rig.FreeAddr(t), "--metrics-listen", metrics}, flags...)...)
		var body string
		err := rig.Eventually(10*time.Second, func() error {
			r, err := http.Get("http://" + metrics + "/readyz")
			if err != nil {
				return err
			}
			defer func() { _ = r.Body.Close() }()
			if r.StatusCode != http.StatusServiceUnavailable {
				t.Errorf("%s: /readyz is %s without NATS", name, r.Status)
			}
			b, err := io.ReadAll(r.Body)
			body = string(b)
			return err
		})
		if err != nil {
			t.Fatalf("%s: %v: %s", name, err, p.Log())
		}
		for _, part := range []string{"nats: ", "nats://127.0.0.1:1", "check NATS_URL"} {
			if !strings.Contains(body, part) {
				t.Errorf("%s: /readyz lacks %q: %s", name, part, body)
			}
		}
		if name == "persist" {
			sayUntil(t, p, metrics, "DATABASE_PASSWORD_FILE", "/nonexistent/secret", "no such file")
		}
		if err := p.Stop(10 * time.Second); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
