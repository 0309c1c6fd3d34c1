package main

import (
	"bytes"
	"crypto/tls"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tidegate-mesh/tidegate/libs/api/client"
	"github.com/tidegate-mesh/tidegate/libs/netlab"
	"github.com/tidegate-mesh/tidegate/libs/pki"
	"github.com/tidegate-mesh/tidegate/libs/token"
)

func prepareForTest(t *testing.T, dir string, more ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	args := append([]string{"prepare", "--dir", dir, "--owner=-1", "--host", "gateway", "--secret", "secrets/db-password", "--data", "nats-data"}, more...)
	err := run(args, &terminal{out: &out, err: &out})
	return out.String(), err
}

// TestPrepareReadsComposesHosts: certificates are good for the names that compose.yaml hands to prepare.
func TestPrepareReadsComposesHosts(t *testing.T) {
	b, err := os.ReadFile("../../compose/compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^\s+(TIDEGATE_\w+): .*\$\{TIDEGATE_HOSTS`).FindSubmatch(b)
	if m == nil {
		t.Fatal("compose.yaml gives prepare no hosts")
	}
	t.Setenv(string(m[1]), "gate.example,192.0.2.7")
	dir := t.TempDir()
	if err := run([]string{"prepare", "--dir", dir, "--owner=-1"}, &terminal{out: io.Discard, err: io.Discard}); err != nil {
		t.Fatal(err)
	}
	files := pki.FilesOf(filepath.Join(dir, pki.Gateway), pki.Gateway)
	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"gate.example", "192.0.2.7"} {
		if err := pair.Leaf.VerifyHostname(name); err != nil {
			t.Errorf("by %s: %v", m[1], err)
		}
	}
}

func TestPrepareMakesWhatEachContainerSees(t *testing.T) {
	dir := t.TempDir()
	if _, err := prepareForTest(t, dir); err != nil {
		t.Fatal(err)
	}
	want := map[string]fs.FileMode{
		"secrets/db-password": 0o444, "nats/nats.conf": 0o400, "gateway/" + token.JWKSFile: 0o400, "operator/credentials.json": 0o600,
		"authority/ca-key.pem": 0o600, "authority/" + token.KeyFile: 0o600,
	}
	for _, name := range pki.Services {
		want[name+"/ca.pem"], want[name+"/"+name+".pem"], want[name+"/"+name+"-key.pem"] = 0o400, 0o400, 0o400
	}
	for name, mode := range want {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
		} else if st.Mode().Perm() != mode {
			t.Errorf("%s has mode %o, want %o", name, st.Mode().Perm(), mode)
		}
	}
	// A service's folder holds its own key and nobody else's.
	for _, name := range pki.Services {
		keys, err := filepath.Glob(filepath.Join(dir, name, "*key*"))
		if err != nil || len(keys) != 1 || filepath.Base(keys[0]) != name+"-key.pem" {
			t.Errorf("keys in the folder of %s: %v, %v", name, keys, err)
		}
	}
	c, err := client.LoadCredentials(filepath.Join(dir, "operator", "credentials.json"))
	if err != nil || c.URL != "https://gateway:8080" || c.Token == "" || !strings.Contains(c.CA, "CERTIFICATE") {
		t.Errorf("credentials of the command line: %+v, %v", c, err)
	}
}

func TestPrepareAgain(t *testing.T) {
	dir := t.TempDir()
	if _, err := prepareForTest(t, dir); err != nil {
		t.Fatal(err)
	}
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	password, cert, keys := read("secrets/db-password"), read("ingest/ingest.pem"), read("gateway/"+token.JWKSFile)
	out, err := prepareForTest(t, dir)
	if err != nil || !strings.Contains(out, " 0 of ") {
		t.Errorf("a second start made certificates: %q, %v", out, err)
	}
	if read("secrets/db-password") != password || read("ingest/ingest.pem") != cert || read("gateway/"+token.JWKSFile) != keys {
		t.Error("a second start changed what was there")
	}
	if _, err := prepareForTest(t, dir, "--renew"); err != nil {
		t.Fatal(err)
	}
	if read("ingest/ingest.pem") == cert || read("secrets/db-password") != password {
		t.Error("--renew changes the certificates and nothing else")
	}
}

func TestPrepareRefuses(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "secrets"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "secrets", "db-password"), []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := prepareForTest(t, dir); err == nil || !strings.Contains(err.Error(), "is empty") {
		t.Errorf("an empty secret: %v", err)
	}
	if _, err := prepareForTest(t, t.TempDir(), "--bpffs", t.TempDir()); err == nil || !strings.Contains(err.Error(), "not a BPF file system") {
		t.Errorf("a folder that is no BPF file system: %v", err)
	}
}

// TestPrepareHandsPinsOver: what root has pinned becomes the services', who are not root.
func TestPrepareHandsPinsOver(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("TIDEGATE_CI") != "" {
			t.Fatal("root is missing, and in CI nothing may be skipped")
		}
		t.Skip("needs root, to mount a BPF file system")
	}
	bpffs := filepath.Join(t.TempDir(), "bpf")
	unmount, err := netlab.BPFFS(bpffs)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unmount(); err != nil {
			t.Error(err)
		}
	}()
	pins := filepath.Join(bpffs, "tidegate", "5-eth1")
	if err := os.MkdirAll(pins, 0o700); err != nil {
		t.Fatal(err)
	}
	const user = 10001
	if out, err := prepareForTest(t, t.TempDir(), "--owner", strconv.Itoa(user), "--bpffs", bpffs); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, dir := range []string{filepath.Dir(pins), pins} {
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil || st.Uid != user {
			t.Errorf("%s belongs to user %d, %v", dir, st.Uid, err)
		}
	}
	if st, err := os.Stat(bpffs); err != nil || st.Mode().Perm()&0o001 == 0 {
		t.Errorf("the services do not get through %s: %v, %v", bpffs, st.Mode(), err)
	}
}

// TestDetachTellsAWrongName: who mistypes it must not take the right interface for freed. What is named beside it is freed.
func TestDetachTellsAWrongName(t *testing.T) {
	bpffs := t.TempDir()
	pins := filepath.Join(bpffs, "tidegate", "7-eth1")
	if err := os.MkdirAll(pins, 0o700); err != nil {
		t.Fatal(err)
	}
	err := (&detachCmd{Ifaces: []string{"eht1", "eth1"}, BPFFS: bpffs}).Run()
	if err == nil || !strings.HasPrefix(err.Error(), "detach eht1: ") || strings.Contains(err.Error(), "detach eth1: ") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(pins); !os.IsNotExist(err) {
		t.Errorf("the pins of eth1 are still there: %v", err)
	}
	if err := (&detachCmd{Ifaces: []string{"lo"}, BPFFS: bpffs}).Run(); err != nil {
		t.Errorf("of an interface without pins: %v", err)
	}
}

// TestCertsKeepNATSFolders: certs is run again to renew; the server elsewhere still has its files where they were.
func TestCertsKeepNATSFolders(t *testing.T) {
	dir := t.TempDir()
	conf := func(c certsCmd) string {
		t.Helper()
		c.Dir, c.JSON = dir, true
		if err := c.writeNATSConf(); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(dir, "nats.conf"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if c := conf(certsCmd{}); !strings.Contains(c, strconv.Quote(filepath.Join(dir, "nats.pem"))) || !strings.Contains(c, `"/var/lib/nats"`) {
		t.Errorf("at first:\n%s", c)
	}
	first := conf(certsCmd{NATSDir: "/etc/tidegate/certs", NATSStore: "/data/nats"})
	if c := conf(certsCmd{}); c != first || !strings.Contains(c, `"/etc/tidegate/certs/nats.pem"`) || !strings.Contains(c, `"/data/nats"`) {
		t.Errorf("made again:\n%s", c)
	}
	if c := conf(certsCmd{NATSDir: "/other"}); !strings.Contains(c, `"/other/nats.pem"`) || !strings.Contains(c, `"/data/nats"`) {
		t.Errorf("with another folder:\n%s", c)
	}
}
