package e2e

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/api/client"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
)

// needContainers keeps the tests that take images out of all runs but make test-containers.
func needContainers(t *testing.T) {
	t.Helper()
	if os.Getenv("TIDEGATE_CONTAINERS") == "" {
		t.Skip("run it with make test-containers, which builds the images")
	}
	rig.NeedRoot(t)
}

var composePorts = [2]string{"tgcont0", "tgcont1"}

// TestContainers: the five services as containers, once with each database: an attack ends in the driver, and rows, REST,
// health and metrics tell of it.
func TestContainers(t *testing.T) {
	needContainers(t)
	for _, db := range []struct {
		kind, version string // version: how persist names the server
		files         []string
	}{
		{"postgresql", "PostgreSQL", nil},
		{"mysql", "MySQL", []string{"mysql.yaml"}},
		{"mariadb", "MariaDB", []string{"mariadb.yaml"}},
		{"galera", "Galera", []string{"galera.yaml"}},
		{"sqlite", "SQLite", []string{"sqlite.yaml"}},
	} {
		t.Run(db.kind, func(t *testing.T) {
			link := rig.Link(t, loadgen.LinkOptions{Prefix: "tgcont", Ports: composePorts})
			c := rig.NewCompose(t, rig.ComposeOptions{Project: "tidegate-test", Files: db.files, Ports: composePorts})
			began := time.Now()
			c.Up(t, 3*time.Minute)
			t.Logf("up and healthy after %.1f s", time.Since(began).Seconds())
			benign := link.Client(60, 7)
			stop := background(benign)
			defer stop()
			time.Sleep(3 * time.Second)
			stopsAttack(t, link, benign, loadgen.SYNFlood)
			stop()
			cl := c.Client(t)
			stored(t, cl, db.version)
			healthy(t, c)
			exposed(t, c)
			if db.kind == "sqlite" { // the quickest
				renews(t, c, cl)
			}
			endsCleanly(t, c)
		})
	}
}

// stored checks over REST what persist has in its database.
func stored(t *testing.T, c *client.Client, database string) {
	t.Helper()
	err := rig.Eventually(20*time.Second, func() error {
		s, err := c.Status(t.Context())
		if err != nil {
			return err
		}
		if len(s.Missing) > 0 || s.Ledger.Difference != 0 || len(s.Ledger.Stages) < 7 {
			return fmt.Errorf("missing %+v, ledger %+v", s.Missing, s.Ledger)
		}
		if !strings.Contains(s.Database, database) {
			return fmt.Errorf("the database is %q, want %s", s.Database, database)
		}
		if s.Rows["flows"] == 0 || s.Rows["attacks"] == 0 || s.Rows["verdicts"] == 0 || s.Rows["enforcements"] == 0 {
			return fmt.Errorf("rows %v", s.Rows)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	nodes, err := c.Nodes(t.Context())
	if err != nil || len(nodes) != 4 {
		t.Errorf("%d instances tell that they live, want classify, enforce, persist and gateway: %v", len(nodes), err)
	}
	attacks := 0
	for a, err := range c.Attacks(t.Context(), client.Query{}) {
		if err != nil {
			t.Fatal(err)
		}
		if a.Type == loadgen.SYNFlood && a.TraceID != "" {
			attacks++
		}
	}
	if attacks != 1 {
		t.Errorf("%d attacks with type and trace over REST, want 1", attacks)
	}
	err = rig.Eventually(10*time.Second, func() error {
		for f, err := range c.Flows(t.Context(), client.Query{}) {
			if err != nil {
				return err
			}
			if f.App == "tls" && f.Host == loadgen.HostName {
				return nil
			}
		}
		return fmt.Errorf("no TLS flow to %s over REST", loadgen.HostName)
	})
	if err != nil {
		t.Error(err)
	}
}

var meshServices = []string{"ingest", "classify", "enforce", "persist", "gateway"}

func healthy(t *testing.T, c *rig.Compose) {
	t.Helper()
	for _, s := range meshServices {
		if h := c.Inspect(t, s).State.Health; h == nil || h.Status != "healthy" {
			t.Errorf("%s is not healthy: %+v", s, h)
		}
	}
}

// exposed reads each service's metrics where Prometheus would.
func exposed(t *testing.T, c *rig.Compose) {
	t.Helper()
	bridge := c.Env("TIDEGATE_NET") + ".1"
	for service, want := range map[string]string{
		"ingest": "tidegate_ingest_packets_total", "classify": "tidegate_classify_verdicts_total", "enforce": "tidegate_time_to_first_drop_seconds_count",
		"persist": "tidegate_persist_rows_total", "gateway": "tidegate_gateway_requests_seconds_count",
	} {
		addr := c.Inspect(t, service).Address() + ":9090"
		switch service {
		case "ingest":
			addr = bridge + ":9091"
		case "enforce":
			addr = bridge + ":9092"
		}
		body, err := fetch(t.Context(), "http://"+addr+"/metrics")
		if err != nil {
			t.Errorf("metrics of %s: %v", service, err)
		} else if !strings.Contains(string(body), "\n"+want) {
			t.Errorf("metrics of %s at %s lack %s", service, addr, want)
		}
	}
}

func fetch(ctx context.Context, url string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return body, err
}

// renews makes new certificates: they are in use without a restart.
func renews(t *testing.T, c *rig.Compose, cl *client.Client) {
	t.Helper()
	before := serial(t, c.Gateway)
	if _, err := c.Do(t.Context(), "run", "--rm", "-T", "prepare", "prepare", "--renew"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Do(t.Context(), "kill", "--signal", "HUP", "nats"); err != nil {
		t.Fatal(err)
	}
	err := rig.Eventually(20*time.Second, func() error {
		if serial(t, c.Gateway) == before {
			return fmt.Errorf("the gateway still has its old certificate")
		}
		s, err := cl.Status(t.Context())
		if err == nil && len(s.Missing) > 0 {
			err = fmt.Errorf("after new certificates: %+v", s.Missing)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// serial is the number of the certificate that an address shows.
func serial(t *testing.T, addr string) string {
	t.Helper()
	conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}) //nolint:gosec // looked at, not trusted
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

// endsCleanly stops the services and looks at how they ended.
func endsCleanly(t *testing.T, c *rig.Compose) {
	t.Helper()
	began := time.Now()
	if _, err := c.Do(t.Context(), append([]string{"stop", "--timeout", "15"}, meshServices...)...); err != nil {
		t.Error(err)
	}
	t.Logf("stopped after %.1f s", time.Since(began).Seconds())
	for _, s := range meshServices {
		if code := c.Inspect(t, s).State.ExitCode; code != 0 {
			t.Errorf("%s ended with status %d", s, code)
		}
	}
}

// TestContainersDemo is what a new user does: demo and observability together, until the first attack is dropped and its
// trace is in Jaeger.
func TestContainersDemo(t *testing.T) {
	needContainers(t)
	c := rig.NewCompose(t, rig.ComposeOptions{
		Project: "tidegate-demo", Profiles: []string{"demo", "observability"}, Ports: [2]string{"tgcdem0", "tgcdem1"},
	})
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if _, err := c.Do(ctx, "up", "--detach", "--no-build", "--pull", "never"); err != nil {
		t.Fatal(err)
	}
	cl := c.Client(t)
	var attack api.Attack
	err := rig.Eventually(90*time.Second, func() error {
		for a, err := range cl.Attacks(t.Context(), client.Query{}) {
			if err != nil {
				return err
			}
			d, err := cl.Attack(t.Context(), a.ID)
			if err != nil {
				return err
			}
			if d.FirstDropNs > 0 {
				attack = d.Attack
				return nil
			}
		}
		return fmt.Errorf("no attack was dropped yet")
	})
	if err != nil {
		t.Fatal(err)
	}
	dropped := time.Since(began)
	err = rig.Eventually(60*time.Second, func() error {
		return verdictTrace(t.Context(), "http://"+c.Env("TIDEGATE_JAEGER"), attack.TraceID)
	})
	took := time.Since(began)
	t.Logf("compose up to the first drop: %.1f s; to its trace in Jaeger: %.1f s (bar 60 s)", dropped.Seconds(), took.Seconds())
	if err != nil {
		t.Error(err)
	}
	if took > time.Minute {
		t.Logf("the bar was missed on this run; benchmarks judge it on a quiet machine")
	}
	err = rig.Eventually(30*time.Second, func() error {
		body, err := fetch(t.Context(), "http://"+c.Env("TIDEGATE_PROMETHEUS")+"/api/v1/query?query=count(up==1)")
		if err != nil {
			return err
		}
		var answer struct {
			Data struct {
				Result []struct{ Value [2]any }
			}
		}
		if err := json.Unmarshal(body, &answer); err != nil {
			return err
		}
		if len(answer.Data.Result) != 1 || answer.Data.Result[0].Value[1] != "5" {
			return fmt.Errorf("Prometheus does not see the five services: %s", body)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	// ingest may have begun just now, and the gateway asks those that did not answer from time to time.
	err = rig.Eventually(30*time.Second, func() error {
		out, err := c.Do(t.Context(), "--profile", "cli", "run", "--rm", "-T", "cli", "status", "--json")
		var status api.Status
		if err == nil {
			err = json.Unmarshal(out, &status)
		}
		if err != nil || len(status.Missing) > 0 || len(status.Services) != 4 { // all but the gateway that answers
			return fmt.Errorf("the command line in a container: %v: %s", err, out)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
