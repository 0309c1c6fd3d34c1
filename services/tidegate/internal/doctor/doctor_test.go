package doctor

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// child makes the test binary print its findings as another user.
const child = "TIDEGATE_TEST_DOCTOR_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(child) != "" {
		for _, f := range Run("/sys/fs/bpf", nil, nil) {
			println(f.Name + "|" + string(f.Level) + "|" + f.Found + "|" + f.Advice)
		}
		return
	}
	os.Exit(m.Run())
}

func find(t *testing.T, findings []Finding, name string) Finding {
	t.Helper()
	for _, f := range findings {
		if f.Name == name {
			return f
		}
	}
	t.Fatalf("nothing about %s in %v", name, findings)
	return Finding{}
}

// Whatever is not well must come with what to do about it.
func TestAdvice(t *testing.T) {
	dir := t.TempDir() // no BPF file system
	findings := Run(dir, []string{"lo", "tg-absent"}, nil)
	for _, f := range findings {
		if f.Level != OK && f.Advice == "" {
			t.Errorf("%s is %s (%s) and nothing is advised", f.Name, f.Level, f.Found)
		}
	}
	for _, c := range []struct {
		name  string
		level Level
		part  string
	}{
		{"bpffs", Warn, dir},
		{"modes", OK, "inline, tap and host"},
		{"interface lo", Fail, "loopback"},
		{"interface tg-absent", Fail, "ip link"},
	} {
		f := find(t, findings, c.name)
		if f.Level != c.level || !strings.Contains(f.Found+f.Advice, c.part) {
			t.Errorf("%s: %+v, want %s and a word of %q", c.name, f, c.level, c.part)
		}
	}
	if f := find(t, findings, "kernel"); !strings.Contains(f.Found, ".") {
		t.Errorf("kernel %+v", f)
	}
}

func TestModes(t *testing.T) {
	for _, c := range []struct {
		xdp, packets bool
		level        Level
		part         string
	}{{true, false, OK, "inline, tap and host"}, {false, true, Warn, "tap alone, by AF_PACKET"}, {false, false, Fail, "none"}} {
		if f := modes(c.xdp, c.packets); f.Level != c.level || !strings.Contains(f.Found, c.part) || (f.Advice == "") != (f.Level == OK) {
			t.Errorf("%+v: %+v", c, f)
		}
	}
}

func TestWithoutPrivileges(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("TIDEGATE_CI") != "" {
			t.Fatal("root is missing, and in CI nothing may be skipped")
		}
		t.Skip("needs root, to give its privileges away")
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), child+"=1")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"privileges|fail|missing CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF, CAP_PERFMON|", "af_xdp|fail|", "af_packet|fail|", "modes|fail|none|"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no finding %q in\n%s", want, out)
		}
	}
}
