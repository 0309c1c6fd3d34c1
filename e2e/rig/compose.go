package rig

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api/client"
	"github.com/tidegate-mesh/tidegate/libs/logtail"
	"github.com/tidegate-mesh/tidegate/libs/netlab"
)

// Compose is the mesh of compose/compose.yaml, in a project of the test's own.
type Compose struct {
	Project string
	Gateway string // host:port of its HTTPS

	engine *Engine
	files  []string // of Compose, as flags
	env    []string
	dir    string
}

// ComposeOptions says what differs from compose.yaml's defaults.
type ComposeOptions struct {
	Project  string
	Files    []string // overrides in compose/, without the folder
	Profiles []string
	Ports    [2]string // interfaces that ingest bridges
	Env      []string  // variables of compose.yaml
}

// NewCompose starts nothing yet. What the project makes is removed when the test ends, and it is an error if any of it stays.
func NewCompose(t testing.TB, o ComposeOptions) *Compose {
	t.Helper()
	NeedRoot(t)
	e := Docker(t)
	for _, service := range []string{"ingest", "classify", "enforce", "persist", "gateway", "tidegate"} {
		_, err := e.Run(t.Context(), "image", "inspect", "tidegate/"+service+":latest")
		Need(t, err == nil, "the image tidegate/"+service+" (make images)")
	}
	c := &Compose{Project: o.Project, Gateway: FreeAddr(t), engine: e, dir: t.TempDir()}
	bpffs, err := os.MkdirTemp("", o.Project+"-bpf-")
	if err != nil {
		t.Fatal(err)
	}
	unmount, err := netlab.BPFFS(bpffs)
	if err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(root(t), "compose")
	// The test machine has no Grafana image.
	files := append([]string{"compose.yaml", "no-grafana.yaml"}, o.Files...)
	if !knowsBPF(t, e) {
		files = append(files, "older-engine.yaml")
	}
	for _, f := range files {
		c.files = append(c.files, "-f", filepath.Join(folder, f))
	}
	for _, p := range o.Profiles {
		c.files = append(c.files, "--profile", p)
	}
	ports := strings.Join(o.Ports[:], ",")
	c.env = append([]string{
		"TIDEGATE_IFACES=" + ports, "TIDEGATE_ENFORCE_ON=" + ports, "TIDEGATE_BPFFS=" + bpffs, "TIDEGATE_HTTPS=" + c.Gateway,
		"TIDEGATE_NET=172.31.254", "TIDEGATE_JAEGER=" + FreeAddr(t), "TIDEGATE_PROMETHEUS=" + FreeAddr(t),
	}, o.Env...)
	t.Cleanup(func() {
		c.down(t)
		if err := unmount(); err != nil {
			t.Errorf("unmount the BPF file system: %v", err)
		}
		_ = os.Remove(bpffs)
	})
	c.down(t) // of a run that was killed
	return c
}

// knowsBPF tells whether the engine can give CAP_BPF.
func knowsBPF(t testing.TB, e *Engine) bool {
	t.Helper()
	id, err := e.Run(t.Context(), "create", "--cap-add", "BPF", "tidegate/tidegate:latest")
	if err != nil {
		return false
	}
	e.Must(t, "rm", id)
	return true
}

// Env is the value of one of the variables of compose.yaml.
func (c *Compose) Env(name string) string {
	for _, e := range c.env {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			return v
		}
	}
	return ""
}

// Do runs docker compose with arguments and returns its standard output.
func (c *Compose) Do(ctx context.Context, args ...string) ([]byte, error) {
	cmd := c.engine.Command(ctx, append(append([]string{"compose", "--progress", "plain", "-p", c.Project}, c.files...), args...)...)
	cmd.Env = append(cmd.Env, c.env...)
	var stderr logtail.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("docker compose %s: %w: %s", strings.Join(args, " "), err, stderr.Tail(3000))
	}
	return out, err
}

// Up starts the named services, or all, and waits until they are healthy.
func (c *Compose) Up(t testing.TB, limit time.Duration, services ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	args := append([]string{"up", "--detach", "--wait", "--no-build", "--pull", "never"}, services...)
	if _, err := c.Do(ctx, args...); err != nil {
		c.logs(t)
		t.Fatalf("the stack does not come up within %v: %v", limit, err)
	}
}

func (c *Compose) logs(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	ps, _ := c.Do(ctx, "ps", "--all")
	out, _ := c.Do(ctx, "logs", "--no-color", "--tail", "25") // shown is what there is
	t.Logf("containers:\n%s\nlogs:\n%s", ps, tail(string(out), 12000))
}

// down removes the project and fails the test if anything of it stays.
func (c *Compose) down(t testing.TB) {
	t.Helper()
	if t.Failed() {
		c.logs(t)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if _, err := c.Do(ctx, "--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "10"); err != nil {
		t.Errorf("remove the stack: %v", err)
	}
	for _, kind := range [][]string{{"ps", "--all"}, {"volume", "ls"}, {"network", "ls"}} {
		out, err := c.engine.Command(ctx, append(kind, "--quiet", "--filter", "label=com.docker.compose.project="+c.Project)...).Output()
		if err != nil || len(out) > 0 {
			t.Errorf("after its end the stack left, by docker %s: %s %v", strings.Join(kind, " "), out, err)
		}
	}
}

// Credentials are the operator's that prepare made, for this machine.
func (c *Compose) Credentials(t testing.TB) client.Credentials {
	t.Helper()
	file := filepath.Join(c.dir, "credentials.json")
	if _, err := c.Do(t.Context(), "cp", "prepare:/tidegate/operator/credentials.json", file); err != nil {
		t.Fatal(err)
	}
	got, err := client.LoadCredentials(file)
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(c.Gateway)
	got.URL = "https://localhost:" + port
	return got
}

// Client asks its gateway as the operator.
func (c *Compose) Client(t testing.TB) *client.Client {
	t.Helper()
	o, err := c.Credentials(t).Options()
	if err != nil {
		t.Fatal(err)
	}
	cl, err := client.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

// Container is what the engine says about a service's container.
type Container struct {
	ID    string
	State struct {
		Running  bool
		ExitCode int
		Pid      int
		Health   *struct {
			Status string
			Log    []struct{ Output string }
		}
	}
	NetworkSettings struct {
		Networks map[string]struct{ IPAddress string }
	}
}

// Address is the container's in the project's network; empty with the machine's network.
func (c *Container) Address() string {
	for _, n := range c.NetworkSettings.Networks {
		return n.IPAddress
	}
	return ""
}

// Inspect asks the engine about a service's container.
func (c *Compose) Inspect(t testing.TB, service string) *Container {
	t.Helper()
	id, err := c.Do(t.Context(), "ps", "--all", "--quiet", service)
	if err != nil || len(id) == 0 {
		t.Fatalf("container of %s: %v", service, err)
	}
	out, err := c.engine.Command(t.Context(), "inspect", strings.TrimSpace(string(id))).Output()
	if err != nil {
		t.Fatalf("inspect %s: %v", service, err)
	}
	var all []Container
	if err := json.Unmarshal(out, &all); err != nil || len(all) != 1 {
		t.Fatalf("inspect %s: %v, %d containers", service, err, len(all))
	}
	return &all[0]
}
