package e2e

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/netlab"
)

// TestBadInput: each mistake ends a command with its exit status and one sentence that says what is wrong and
// what to do.
func TestBadInput(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	// Every free port differs, so that what is tested is the mistake and not the default ports.
	apart := []string{"--listen", "", "--metrics-listen", "", "--gateway-listen", ""}
	run := func(args ...string) []string { return append(append([]string{"run"}, args...), apart...) }
	for _, c := range []struct {
		name string
		args []string
		exit int
		says []string
		root bool
	}{
		{"no command", nil, 2, []string{"expected one of"}, false},
		{"inline with one interface", run("--iface", "lo"), 2, []string{"inline bridges two interfaces", "--mode tap"}, false},
		{"data folder that cannot be", run("--iface", "lo", "--mode", "tap", "--data", "/proc/none"), 2, []string{"--data", "name a folder"}, false},
		{"unknown interface", run("--iface", "nosuch0", "--mode", "tap", "--data", filepath.Join(dir, "a")), 1, []string{"nosuch0", "no such interface"}, true},
		{"unknown database", run("--iface", "lo", "--mode", "tap", "--data", filepath.Join(dir, "b"), "--persist-db-type", "oracle"), 2, []string{"oracle", "use postgresql, mysql, mariadb, galera or sqlite"}, false},
		{"unreachable NATS", run("--iface", "lo", "--mode", "tap", "--data", filepath.Join(dir, "c"), "--nats-url", "nats://127.0.0.1:1"), 1, []string{"nats://127.0.0.1:1", "NATS_URL"}, false},
		{"port in use", []string{"run", "--iface", "lo", "--mode", "tap", "--data", filepath.Join(dir, "d"), "--metrics-listen", busy.Addr().String()}, 1, []string{busy.Addr().String(), "in use"}, false},
		{"malformed configuration", []string{"run", "--config", write("bad.yaml", "iface: [a\n")}, 2, []string{"bad.yaml", "line 1"}, false},
		{"unknown key", []string{"run", "--config", write("key.yaml", "ifaec: [a]\n")}, 2, []string{"ifaec"}, false},
		{"no such capture", []string{"replay", filepath.Join(dir, "none.pcap")}, 2, []string{"none.pcap", "no such file"}, false},
		{"not a capture", []string{"replay", write("x.pcap", "hello, this is text")}, 1, []string{"x.pcap", "neither pcap nor pcapng"}, false},
		{"truncated capture", []string{"replay", write("cut.pcap", "\xd4\xc3\xb2\xa1\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x00\x00\x01\x00\x00\x00\x01\x02")}, 1, []string{"cut.pcap"}, false},
		{"port without protocol", []string{"rules", "add", "--action", "drop", "--dport", "80"}, 2, []string{"a port needs protocol"}, false},
		{"bad prefix", []string{"rules", "add", "--action", "drop", "--src", "1.2.3"}, 2, []string{"--src", "1.2.3", "CIDR"}, false},
		{"bad range", []string{"rules", "add", "--action", "drop", "--length", "90-60"}, 2, []string{"--length", "LOW-HIGH"}, false},
		{"no gateway", []string{"attacks", "--gateway", "https://127.0.0.1:1", "--token", "t"}, 1, []string{"127.0.0.1:1"}, false},
		{"no credentials", []string{"attacks", "--credentials", filepath.Join(dir, "none.json")}, 2, []string{"none.json", "tidegate login"}, false},
		{"unknown attack", []string{"demo", "--attacks", "flud"}, 2, []string{"flud", "syn_flood"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.root {
				rig.NeedRoot(t)
			}
			exit, stderr := end(t, nil, c.args...)
			if exit != c.exit {
				t.Errorf("exit status %d, want %d: %s", exit, c.exit, stderr)
			}
			last := lastLine(stderr)
			for _, want := range c.says {
				if !strings.Contains(last, want) {
					t.Errorf("does not say %q: %s", want, last)
				}
			}
			if strings.Contains(stderr, "panic") || strings.Contains(stderr, "goroutine ") {
				t.Errorf("crashed: %s", stderr)
			}
		})
	}
}

// TestNoPrivileges runs as an ordinary user: the error names what is missing.
func TestNoPrivileges(t *testing.T) {
	rig.NeedRoot(t) // to become another user
	stripped := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	dir := binaries(t, "tidegate")
	bin, data := filepath.Join(dir, "tidegate"), filepath.Join(dir, "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	give(t, data)
	lab, err := netlab.New("tgbad")
	if err != nil {
		t.Fatal(err)
	}
	defer lab.Close()
	iface := netlab.Ifname("tgbad", "a")
	if err := lab.Veth(netlab.End{Name: iface}, netlab.End{Name: netlab.Ifname("tgbad", "b")}, 1); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"run", "--iface", iface, "--mode", "tap", "--data", data, "--listen", "", "--metrics-listen", "", "--gateway-listen", ""},
		{"demo"},
	} {
		exit, stderr := endBinary(t, bin, stripped, args...)
		if exit == 0 || !strings.Contains(lastLine(stderr), "root") && !strings.Contains(lastLine(stderr), "mount -t bpf") {
			t.Errorf("%s: exit status %d: %s", args[0], exit, stderr)
		}
	}
}

func end(t *testing.T, attr *syscall.SysProcAttr, args ...string) (exit int, stderr string) {
	t.Helper()
	return endBinary(t, rig.Binary(t, "tidegate"), attr, args...)
}

func endBinary(t *testing.T, bin string, attr *syscall.SysProcAttr, args ...string) (exit int, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, args...)
	cmd.SysProcAttr = attr
	cmd.Dir = os.TempDir()
	var b bytes.Buffer
	cmd.Stderr = &b
	_ = cmd.Run() // the exit status is what is looked at
	if ctx.Err() != nil {
		t.Fatalf("%v did not end: %s", args, b.String())
	}
	return cmd.ProcessState.ExitCode(), b.String()
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}
