package e2e

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
	"github.com/tidegate-mesh/tidegate/libs/pki"
	"github.com/tidegate-mesh/tidegate/libs/rpc"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/libs/token"
)

// imageUser is who everything in the images runs as.
const imageUser = 10001

// What an image may add to its base, in bytes: one of a service, and the one that has all five and the command line.
const (
	maxService  = 40 << 20
	maxAllInOne = 48 << 20
)

var imageServices = []string{"ingest", "classify", "enforce", "persist", "gateway", "tidegate"}

// needImages is the engine, with the images built (make test-containers does that).
func needImages(t *testing.T) *rig.Engine {
	t.Helper()
	if os.Getenv("TIDEGATE_CONTAINERS") == "" {
		t.Skip("run it with make test-containers, which builds the images")
	}
	rig.NeedRoot(t)
	return rig.Docker(t)
}

type imageConfig struct {
	Size         int64
	Architecture string
	Config       struct {
		User, StopSignal string
		Entrypoint       []string
		Healthcheck      struct{ Test []string }
		Labels           map[string]string
	}
}

func inspectImage(t *testing.T, e *rig.Engine, image string) imageConfig {
	t.Helper()
	var got imageConfig
	if err := json.Unmarshal([]byte(e.Must(t, "image", "inspect", "--format", "{{json .}}", image)), &got); err != nil {
		t.Fatal(err)
	}
	return got
}

// TestImages lists what each image is: how large, whose, how it tells its health, and that nothing in it needs a shell or a library.
func TestImages(t *testing.T) {
	e := needImages(t)
	base := inspectImage(t, e, "debian:bookworm-slim").Size
	for _, service := range imageServices {
		t.Run(service, func(t *testing.T) {
			image := "tidegate/" + service + ":latest"
			got := inspectImage(t, e, image)
			t.Logf("%s: %.1f MiB over its base, user %s, health %v", image, float64(got.Size-base)/(1<<20), got.Config.User, got.Config.Healthcheck.Test)
			limit := int64(maxService)
			if service == "tidegate" {
				limit = maxAllInOne
			}
			if got.Size-base > limit {
				t.Errorf("it adds %d bytes to its base, more than %d", got.Size-base, limit)
			}
			if want := fmt.Sprintf("%d:%d", imageUser, imageUser); got.Config.User != want {
				t.Errorf("user %q, want %s", got.Config.User, want)
			}
			if h := got.Config.Healthcheck.Test; len(h) != 2 || h[0] != "CMD" || h[1] != "/usr/local/bin/tidegate-health" {
				t.Errorf("health check %v", h)
			}
			if got.Config.StopSignal != "SIGTERM" {
				t.Errorf("stop signal %q", got.Config.StopSignal)
			}
			for _, label := range []string{"title", "description", "source", "licenses", "version", "revision"} {
				if got.Config.Labels["org.opencontainers.image."+label] == "" {
					t.Errorf("no label %s", label)
				}
			}
			for _, path := range imageBinaries(t, e, image) {
				if dynamic, err := interpreted(path); err != nil || dynamic {
					t.Errorf("%s is not static: %v", filepath.Base(path), err)
				}
			}
			version := e.Must(t, "run", "--rm", "--read-only", "--cap-drop", "ALL", "--network", "none", image, "--version")
			if want := got.Config.Labels["org.opencontainers.image.version"]; !strings.Contains(version, want) {
				t.Errorf("--version prints %q, want version %s", version, want)
			}
		})
	}
}

// imageBinaries copies the programs out of an image.
func imageBinaries(t *testing.T, e *rig.Engine, image string) []string {
	t.Helper()
	id := e.Must(t, "create", image)
	defer e.Must(t, "rm", id)
	dir := t.TempDir()
	e.Must(t, "cp", id+":/usr/local/bin/.", dir)
	paths, err := filepath.Glob(filepath.Join(dir, "tidegate*"))
	if err != nil || len(paths) != 2 {
		t.Fatalf("programs %v, want the service and its health check: %v", paths, err)
	}
	return paths
}

// interpreted is whether a program needs the dynamic linker.
func interpreted(path string) (bool, error) {
	f, err := elf.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close() //nolint:errcheck // only read
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return true, nil
		}
	}
	return false, nil
}

// container is a running image of a service, on the host's network with a read-only root.
type container struct {
	t       *testing.T
	e       *rig.Engine
	id      string
	service string
}

func startImage(t *testing.T, e *rig.Engine, service string, options []string, args ...string) *container {
	t.Helper()
	run := append([]string{"run", "--detach", "--read-only", "--cap-drop", "ALL", "--network", "host", "--health-interval", "1s"}, options...)
	c := &container{t: t, e: e, service: service}
	c.id = e.Must(t, append(append(run, "tidegate/"+service+":latest"), args...)...)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if t.Failed() {
			cmd := e.Command(ctx, "logs", "--tail", "40", c.id)
			out, _ := cmd.CombinedOutput() // what there is
			t.Logf("log of %s:\n%s", service, out)
		}
		if _, err := e.Run(ctx, "rm", "--force", "--volumes", c.id); err != nil {
			t.Error(err)
		}
	})
	return c
}

type containerState struct {
	Status   string
	Pid      int
	ExitCode int
	Health   struct {
		Status string
		Log    []struct {
			ExitCode int
			Output   string
		}
	}
}

func (c *container) state() (s containerState) {
	c.t.Helper()
	if err := json.Unmarshal([]byte(c.e.Must(c.t, "inspect", "--format", "{{json .State}}", c.id)), &s); err != nil {
		c.t.Fatal(err)
	}
	return s
}

func (c *container) waitHealthy() {
	c.t.Helper()
	began := time.Now()
	if err := rig.Eventually(60*time.Second, func() error {
		if s := c.state(); s.Health.Status != "healthy" {
			return fmt.Errorf("%s is %s and %s: %+v", c.service, s.Status, s.Health.Status, s.Health.Log)
		}
		return nil
	}); err != nil {
		c.t.Fatal(err)
	}
	c.t.Logf("%s is healthy after %.1f s", c.service, time.Since(began).Seconds())
}

// effective is the set of capabilities that the service has, read from outside.
func (c *container) effective() uint64 {
	c.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.state().Pid))
	if err != nil {
		c.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "CapEff:\t")
	line, _, _ := strings.Cut(rest, "\n")
	set, err := strconv.ParseUint(line, 16, 64)
	if err != nil {
		c.t.Fatal(err)
	}
	return set
}

// stop ends it as the engine does, and wants it to end well and in time.
func (c *container) stop() {
	c.t.Helper()
	began := time.Now()
	c.e.Must(c.t, "stop", "--time", "15", c.id)
	took := time.Since(began)
	if s := c.state(); s.ExitCode != 0 || took > 10*time.Second {
		c.t.Errorf("%s ends with status %d after %.1f s, want 0 within 10 s", c.service, s.ExitCode, took.Seconds())
	}
}

// dataPlane is what ingest and enforce are given here, and the set that it makes: SYS_ADMIN stands in for BPF and PERFMON where
// the engine does not know these.
func dataPlane(t *testing.T, e *rig.Engine) (options []string, set uint64) {
	t.Helper()
	set = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW | 1<<unix.CAP_IPC_LOCK
	names := []string{"NET_ADMIN", "NET_RAW", "IPC_LOCK"}
	if id, err := e.Run(t.Context(), "create", "--cap-add", "BPF", "tidegate/ingest:latest"); err == nil {
		e.Must(t, "rm", id)
		names = append(names, "BPF", "PERFMON")
		set |= 1<<unix.CAP_BPF | 1<<unix.CAP_PERFMON
	} else {
		names = append(names, "SYS_ADMIN")
		set |= 1 << unix.CAP_SYS_ADMIN
	}
	for _, name := range names {
		options = append(options, "--cap-add", name)
	}
	return options, set
}

// TestImageSmoke starts each image alone, beside a real NATS server (about 30 s): it becomes healthy, has just the capabilities
// that it needs, answers, and ends cleanly.
func TestImageSmoke(t *testing.T) {
	e := needImages(t)
	link := rig.Link(t, loadgen.LinkOptions{Prefix: "tgimg"})
	if err := os.Chown(link.BPFFS, imageUser, imageUser); err != nil {
		t.Fatal(err)
	}
	certs := rig.Certs(t)
	if _, err := token.Init(certs); err != nil {
		t.Fatal(err)
	}
	_, natsURL := rig.NATS(t, certs)
	own(t, certs)
	given, set := dataPlane(t, e)
	ports := []string{"--iface", link.PortA, "--iface", link.PortB}
	classify := rig.FreeAddr(t)
	for _, c := range []struct {
		service string
		options []string
		args    []string
		want    uint64
		listen  string
	}{
		{"persist", []string{"--tmpfs", fmt.Sprintf("/var/lib/tidegate:uid=%d,mode=0750", imageUser), "--env", "DB_TYPE=sqlite"}, nil, 0, rig.FreeAddr(t)},
		{"classify", nil, []string{"--protected", loadgen.VictimAddr.String()}, 0, classify},
		{"enforce", append([]string{"--volume", link.BPFFS + ":/sys/fs/bpf"}, given...), ports, set, rig.FreeAddr(t)},
		{"ingest", append([]string{"--volume", link.BPFFS + ":/sys/fs/bpf"}, given...), append([]string{"--classify", classify}, ports...), set, rig.FreeAddr(t)},
		{"gateway", nil, []string{"--jwks-file", "/etc/tidegate/certs/" + token.JWKSFile}, 0, rig.FreeAddr(t)},
	} {
		upper := "TIDEGATE_" + strings.ToUpper(c.service)
		options := append([]string{
			"--volume", certs + ":/etc/tidegate/certs:ro", "--env", "NATS_URL=" + natsURL,
			"--env", upper + "_LISTEN=" + c.listen, "--env", upper + "_METRICS_LISTEN=" + rig.FreeAddr(t),
		}, c.options...)
		s := startImage(t, e, c.service, options, c.args...)
		s.waitHealthy()
		if got := s.effective(); got != c.want {
			t.Errorf("%s has the capabilities %#x, want %#x", c.service, got, c.want)
		}
		if c.service == "gateway" {
			answersHTTPS(t, certs, c.listen)
		} else {
			answersGRPC(t, certs, c.service, c.listen)
		}
		defer s.stop() // the last first: ingest before classify
	}
}

// own gives a folder and what is in it to the images' user.
func own(t *testing.T, dir string) {
	t.Helper()
	if err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, imageUser, imageUser))
	}); err != nil {
		t.Fatal(err)
	}
}

func answersGRPC(t *testing.T, certs, service, addr string) {
	t.Helper()
	cfg := telemetry.DefaultConfig("gateway")
	cfg.MetricsListen = ""
	tel, err := telemetry.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	files, err := rpc.TLS{Dir: certs}.Resolve(pki.Gateway)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := rpc.Dial(tel, addr, files.Expect(service))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // nothing is left to send
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	got, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{})
	if err != nil || got.Status != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("the gRPC health check of %s says %v: %v", service, got, err)
	}
}

func answersHTTPS(t *testing.T, certs, addr string) {
	t.Helper()
	ca, err := os.ReadFile(pki.FilesOf(certs, pki.Gateway).CA)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	defer transport.CloseIdleConnections()
	c := http.Client{Transport: transport, Timeout: 10 * time.Second}
	res, err := c.Get("https://" + addr + "/api/v1/status")
	if err != nil {
		t.Error(err)
		return
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusUnauthorized {
		t.Errorf("REST without a token answers %d, want 401", res.StatusCode)
	}
}

// TestImageTellsWhyNot: docker inspect says what a container waits for.
func TestImageTellsWhyNot(t *testing.T) {
	e := needImages(t)
	certs := rig.Certs(t)
	own(t, certs)
	absent := rig.FreeAddr(t)
	s := startImage(t, e, "classify", []string{
		"--volume", certs + ":/etc/tidegate/certs:ro", "--env", "NATS_URL=nats://" + absent, "--health-start-period", "1ms", "--health-retries", "1",
		"--env", "TIDEGATE_CLASSIFY_LISTEN=" + rig.FreeAddr(t), "--env", "TIDEGATE_CLASSIFY_METRICS_LISTEN=" + rig.FreeAddr(t),
	})
	if err := rig.Eventually(30*time.Second, func() error {
		st := s.state()
		for _, l := range st.Health.Log {
			if st.Health.Status == "unhealthy" && l.ExitCode == 1 && strings.Contains(l.Output, "nats: ") && strings.Contains(l.Output, absent) &&
				strings.Count(strings.TrimSpace(l.Output), "\n") == 0 {
				return nil
			}
		}
		return fmt.Errorf("health %+v, want unhealthy and one line that names NATS at %s", st.Health, absent)
	}); err != nil {
		t.Error(err)
	}
	s.stop()
}

// TestImageBuildInside: the builder image makes the same binaries as this machine. It compiles everything twice, several
// minutes, so it is not part of the full tests.
func TestImageBuildInside(t *testing.T) {
	if os.Getenv("TIDEGATE_BUILD_INSIDE") == "" {
		t.Skip("minutes of compiling: run it with TIDEGATE_BUILD_INSIDE=1 make test-containers")
	}
	needImages(t)
	top := filepath.Dir(filepath.Dir(rig.Binary(t, "tidegate")))
	outside := t.TempDir()
	build := func(args ...string) {
		cmd := exec.Command("make", append([]string{"-C", top, "build"}, args...)...) //nolint:gosec // our own Makefile
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("make build %v: %v: %s", args, err, out)
		}
	}
	build("BIN=" + outside)
	// The builder sees the checkout; the folder for its output lies in it.
	in, err := os.MkdirTemp(filepath.Join(top, "bin"), "inside-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(in) })
	build("BIN="+in, "IN_DOCKER=1")
	paths, err := filepath.Glob(filepath.Join(outside, "*"))
	if err != nil || len(paths) < 8 {
		t.Fatalf("built %v outside: %v", paths, err)
	}
	for _, path := range paths {
		name := filepath.Base(path)
		if a, b := sum(t, path), sum(t, filepath.Join(in, name)); a != b {
			t.Errorf("%s differs between the builder image and this machine", name)
		}
	}
}

func sum(t *testing.T, path string) [sha256.Size]byte {
	t.Helper()
	content, err := os.ReadFile(path) //nolint:gosec // a binary that the test built
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(content)
}

// TestImageARM64 builds the binaries for arm64 and runs them under qemu (about two minutes, most of it compiling).
func TestImageARM64(t *testing.T) {
	needImages(t)
	qemu, err := exec.LookPath("qemu-aarch64-static")
	rig.Need(t, err == nil, "qemu-aarch64-static (make setup)")
	top := filepath.Dir(filepath.Dir(rig.Binary(t, "tidegate")))
	dir := t.TempDir()
	cmd := exec.Command("make", "-C", top, "build", "BIN="+dir) //nolint:gosec // our own Makefile
	cmd.Env = append(os.Environ(), "GOARCH=arm64")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build for arm64: %v: %s", err, out)
	}
	for _, service := range imageServices {
		name := "tidegate-" + service
		if service == "tidegate" {
			name = service
		}
		out, err := rig.Output(t.Context(), qemu, filepath.Join(dir, name), "--version")
		if err != nil || !strings.HasPrefix(string(out), name+" ") {
			t.Errorf("%s --version on arm64 prints %q: %v", name, out, err)
		}
	}
	// The emulator has no BPF: doctor must say so and end, with every finding told.
	doctor := exec.Command(qemu, filepath.Join(dir, "tidegate"), "doctor", "--json") //nolint:gosec // a binary that the test built
	out, err := doctor.Output()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
		t.Fatalf("doctor on arm64: %v: %s", err, out)
	}
	found := map[string]string{}
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		var f struct{ Name, Found string }
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			t.Fatalf("doctor prints %q: %v", line, err)
		}
		found[f.Name] = f.Found
	}
	if !strings.HasSuffix(found["kernel"], "arm64") || found["privileges"] == "" || found["xdp"] == "" || found["af_xdp"] == "" {
		t.Errorf("doctor on arm64 found %v", found)
	}
}
