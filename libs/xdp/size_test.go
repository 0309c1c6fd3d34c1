package xdp

import (
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
)

// TestProgramSize says how large the program is to this kernel's verifier, and that it stays far from the limits: a later
// kernel may count a little more.
func TestProgramSize(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("TIDEGATE_CI") == "1" {
			t.Fatal("needs root to load BPF")
		}
		t.Skip("needs root to load BPF")
	}
	spec, err := sized(Geometry{Rules: 1, Hosts: 1, Prefixes: 1, Flows: 1, Never: 1, Sources: 1})
	must(t, err)
	var objs gateObjects
	must(t, spec.LoadAndAssign(&objs, &ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats}}))
	t.Cleanup(func() { must(t, objs.Close()) })
	info, err := objs.Tidegate.Info()
	must(t, err)
	instructions, err := info.Instructions()
	must(t, err)
	log := objs.Tidegate.VerifierLog
	number := func(pattern string) (sum int) {
		found := regexp.MustCompile(pattern).FindStringSubmatch(log)
		if found == nil {
			t.Fatalf("no %q in the verifier's log:\n%s", pattern, log)
		}
		for _, part := range strings.Split(found[1], "+") { // of the program, and of its functions
			n, err := strconv.Atoi(part)
			must(t, err)
			sum += n
		}
		return sum
	}
	stack, visited := number(`stack depth ([\d+]+)`), number(`processed (\d+) insns`)
	const stackLimit, visitLimit = 512, 1_000_000 // kernel: MAX_BPF_STACK, BPF_COMPLEXITY_LIMIT_INSNS
	if len(instructions) == 0 || visited < len(instructions)/2 || visited > visitLimit/2 || stack == 0 || stack > stackLimit {
		t.Errorf("%d instructions, %d verified (limit %d), stack %d bytes (limit %d)", len(instructions), visited, visitLimit, stack, stackLimit)
	}
	t.Logf("program: %d instructions, %d verified, stack %d bytes", len(instructions), visited, stack)
}
