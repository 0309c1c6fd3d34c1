package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
)

// packetTests are the tests of libs/xdp that run on every kernel: frames in, actions and counters out. Left out are those of
// sizes in the millions and of measured time, for which an emulated machine is too slow, and what needs a compiler.
const packetTests = "^Test(ProgramSize|Modes|PeerGone|Precedence|Tap|Never|Lists|AllowedFlows|Match|NotIP|ReadBack|Bytes|" +
	"FirstDrop|SYNRetry|SyncLists)$"

// TestFullKernels boots Debian's kernel and the newest of its backports in an emulated machine and runs the packet tests of
// the XDP program there.
func TestFullKernels(t *testing.T) {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	rig.Need(t, err == nil, "qemu-system-x86_64 (make setup)")
	cache := os.Getenv("TIDEGATE_KERNELS")
	if cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		cache = filepath.Join(dir, "tidegate", "kernels")
	}
	binaries := t.TempDir()
	guest, tests := filepath.Join(binaries, "guest"), filepath.Join(binaries, "xdp.test")
	goTool(t, "../e2e", "build", "-o", guest, "./guest")
	goTool(t, "../libs", "test", "-c", "-o", tests, "./xdp")
	for _, kind := range []string{"debian", "backports"} {
		t.Run(kind, func(t *testing.T) {
			dir := filepath.Join(cache, kind)
			kernel := filepath.Join(dir, "vmlinuz")
			_, err := os.Stat(kernel)
			rig.Need(t, err == nil, "Debian's kernels (tools/kernels.sh)")
			var image bytes.Buffer
			a := archive{out: &image}
			a.dir("dev") // the kernel opens the console before the first process runs
			a.device("dev/console", 5, 1)
			a.file(t, "init", guest)
			a.file(t, "xdp.test", tests)
			a.file(t, "veth.ko", filepath.Join(dir, "veth.ko"))
			a.add("args", 0o100644, 0, 0, []byte("-test.v\n-test.timeout=9m\n-test.run="+packetTests+"\n"))
			a.end()
			initramfs := filepath.Join(t.TempDir(), "initramfs")
			if err := os.WriteFile(initramfs, image.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			console(t, qemu, kernel, initramfs)
		})
	}
}

// goTool runs go in a folder of the repository, for the machine that is emulated.
func goTool(t *testing.T, dir string, args ...string) {
	t.Helper()
	cmd := exec.Command("go", args...) //nolint:gosec // the test's own
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// console boots a machine and judges what it prints.
func console(t *testing.T, qemu, kernel, initramfs string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, qemu, "-accel", "tcg", "-cpu", "Nehalem", "-smp", "1", "-m", "1024", "-nodefaults", "-display", "none", //nolint:gosec // the test's own
		"-no-reboot", "-serial", "stdio", "-kernel", kernel, "-initrd", initramfs,
		"-append", "console=ttyS0 quiet loglevel=1 panic=-1 mitigations=off")
	out, err := cmd.CombinedOutput()
	text := strings.ReplaceAll(string(out), "\r", "")
	release := regexp.MustCompile(`guest: Linux (\S+)`).FindStringSubmatch(text)
	size := regexp.MustCompile(`program: (.*)`).FindStringSubmatch(text)
	ran := strings.Count("\n"+text, "\n--- PASS: ")
	if err != nil || release == nil || size == nil || !strings.Contains(text, "guest: passed") ||
		strings.Contains(text, "--- SKIP") || ran < strings.Count(packetTests, "|")+1 {
		t.Fatalf("%d tests passed, machine: %v\n%s", ran, err, text)
	}
	t.Logf("Linux %s: %d tests passed; %s", release[1], ran, size[1])
}

// archive writes an initramfs: cpio in its "newc" format (kernel: Documentation/driver-api/early-userspace/buffer-format.rst).
type archive struct {
	out   *bytes.Buffer
	inode int
}

func (a *archive) add(name string, mode, major, minor int, body []byte) {
	a.inode++
	fmt.Fprintf(a.out, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", a.inode, mode, 0, 0, 1, 0, len(body),
		0, 0, major, minor, len(name)+1, 0)
	a.out.WriteString(name + "\x00")
	a.pad()
	a.out.Write(body)
	a.pad()
}

func (a *archive) pad() { a.out.Write(make([]byte, -a.out.Len()&3)) }

func (a *archive) dir(name string) { a.add(name, 0o040755, 0, 0, nil) }

func (a *archive) device(name string, major, minor int) { a.add(name, 0o020600, major, minor, nil) }

func (a *archive) file(t *testing.T, name, from string) {
	t.Helper()
	body, err := os.ReadFile(from) //nolint:gosec // the test's own
	if err != nil {
		t.Fatal(err)
	}
	a.add(name, 0o100755, 0, 0, body)
}

func (a *archive) end() { a.add("TRAILER!!!", 0, 0, 0, nil) }
