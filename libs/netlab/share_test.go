package netlab

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestBesideIPNetns: a lab can be removed though `ip netns add` came in between, and its namespace is listed.
func TestBesideIPNetns(t *testing.T) {
	needRoot(t)
	l, err := New("tgsh")
	if err != nil {
		t.Fatal(err)
	}
	ns, err := l.Namespace("one")
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(mounts), " "+namespaceDir+" rw") {
		t.Errorf("%s is no mount of its own", namespaceDir)
	}
	ip := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("ip", append([]string{"netns"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("ip netns %v: %v: %s", args, err, out)
		}
		return string(out)
	}
	other := l.Name("other")
	ip("add", other)
	if list := ip("list"); !strings.Contains(list, ns.Name()) || !strings.Contains(list, other) {
		t.Errorf("ip netns lists %s", list)
	}
	ip("del", other)
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}
