package capability_test

import (
	"bufio"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tidegate-mesh/tidegate/libs/capability"
)

// child makes the test binary raise its capabilities and print those of all its threads.
const child = "TIDEGATE_TEST_CAPABILITY_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(child) == "" {
		os.Exit(m.Run())
	}
	if err := capability.Raise(); err != nil {
		panic(err)
	}
	threads, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil {
		panic(err)
	}
	for _, path := range threads {
		status, err := os.ReadFile(path) //nolint:gosec // of this process
		if err != nil {
			continue // the thread has ended
		}
		_, _ = os.Stdout.Write(status)
	}
}

// permit writes the extended attribute of capabilities that are permitted and not effective (linux/capability.h).
func permit(t *testing.T, path string, bits ...int) {
	t.Helper()
	var low, high uint32
	for _, b := range bits {
		if b < 32 {
			low |= 1 << b
		} else {
			high |= 1 << (b - 32)
		}
	}
	attr := binary.LittleEndian.AppendUint32(nil, 0x02000000)
	for _, word := range []uint32{low, 0, high, 0} {
		attr = binary.LittleEndian.AppendUint32(attr, word)
	}
	if err := unix.Setxattr(path, "security.capability", attr, 0); err != nil {
		t.Fatalf("give the file capabilities: %v", err)
	}
}

func TestRaise(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("TIDEGATE_CI") != "" {
			t.Fatal("root is missing, and in CI nothing may be skipped")
		}
		t.Skip("needs root: only root gives files capabilities")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(self) //nolint:gosec // this test's binary
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "tidegate-capability-") // t.TempDir is closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "child")
	if err := os.WriteFile(path, image, 0o755); err != nil { //nolint:gosec // another user runs it
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // another user runs what is in it
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		bits []int
		want string // CapEff as the kernel prints it
	}{
		{"none", nil, "0000000000000000"},
		{"network", []int{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW}, "0000000000003000"},
		{"beyond 32", []int{unix.CAP_NET_ADMIN, unix.CAP_BPF}, "0000008000001000"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.bits != nil {
				permit(t, path, c.bits...)
			}
			cmd := exec.Command(path)
			cmd.Env = append(os.Environ(), child+"=1")
			cmd.Dir = "/"
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			threads := 0
			lines := bufio.NewScanner(strings.NewReader(string(out)))
			for lines.Scan() {
				if got, ok := strings.CutPrefix(lines.Text(), "CapEff:\t"); ok {
					threads++
					if got != c.want {
						t.Errorf("a thread has %s, want %s", got, c.want)
					}
				}
			}
			if threads < 2 {
				t.Errorf("only %d threads were looked at", threads)
			}
		})
	}
}
