package xdp

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf/btf"
)

// TestLayout compares Go's mirrors of bpf/state.h with the object's types.
func TestLayout(t *testing.T) {
	spec, err := loadGate()
	must(t, err)
	for name, want := range map[string]struct {
		size    uintptr
		offsets map[string]uintptr
	}{
		"config":      {unsafe.Sizeof(config{}), map[string]uintptr{"mask_set": unsafe.Offsetof(config{}.MaskSet), "flows_used": unsafe.Offsetof(config{}.FlowsUsed), "copies_read": unsafe.Offsetof(config{}.CopiesRead), "rules_version": unsafe.Offsetof(config{}.RulesVersion)}},
		"mask":        {unsafe.Sizeof(mask{}), map[string]uintptr{"id": unsafe.Offsetof(mask{}.ID), "tcp_mask": unsafe.Offsetof(mask{}.TCPMask), "family": unsafe.Offsetof(mask{}.Family), "variant": unsafe.Offsetof(mask{}.Variant), "src_port_care": unsafe.Offsetof(mask{}.Common) + unsafe.Offsetof(common{}.SrcPortCare), "tcp_want": unsafe.Offsetof(mask{}.Common) + unsafe.Offsetof(common{}.TCPWant)}},
		"mask_set":    {unsafe.Sizeof(maskSet{}), map[string]uintptr{"factors": unsafe.Offsetof(maskSet{}.Factors), "masks": unsafe.Offsetof(maskSet{}.Masks)}},
		"rule_key":    {unsafe.Sizeof(ruleKey{}), map[string]uintptr{"mask": unsafe.Offsetof(ruleKey{}.Mask), "tcp_flags": unsafe.Offsetof(ruleKey{}.TCPFlags)}},
		"rule":        {unsafe.Sizeof(ruleValue{}), map[string]uintptr{"expires_ns": unsafe.Offsetof(ruleValue{}.ExpiresNs), "rate": unsafe.Offsetof(ruleValue{}.Rate), "slot": unsafe.Offsetof(ruleValue{}.Slot), "flags": unsafe.Offsetof(ruleValue{}.Flags)}},
		"hits":        {unsafe.Sizeof(hits{}), map[string]uintptr{"last_ns": unsafe.Offsetof(hits{}.LastNs)}},
		"rule_state":  {unsafe.Sizeof(ruleState{}), map[string]uintptr{"lock": unsafe.Offsetof(ruleState{}.Lock)}},
		"source_line": {unsafe.Sizeof(sourceLine{}), nil},
		"talk_line":   {unsafe.Sizeof(talkLine{}), map[string]uintptr{"tick": unsafe.Offsetof(talkLine{}.Tick), "learns_from": unsafe.Offsetof(talkLine{}.LearnsFrom)}},
		"syn_bucket":  {unsafe.Sizeof(synBucket{}), nil},
		"known":       {unsafe.Sizeof(known{}), map[string]uintptr{"due": unsafe.Offsetof(known{}.Due)}},
		"prefix_key":  {unsafe.Sizeof(prefixKey{}), map[string]uintptr{"addr": unsafe.Offsetof(prefixKey{}.Addr)}},
		"never":       {unsafe.Sizeof(neverValue{}), map[string]uintptr{"flags": unsafe.Offsetof(neverValue{}.Flags)}},
		"covered":     {unsafe.Sizeof([8]uint64{}), nil},
		"host_key":    {unsafe.Sizeof(hostKey{}), nil},
		"listed":      {unsafe.Sizeof(listed{}), map[string]uintptr{"action": unsafe.Offsetof(listed{}.Action)}},
		"flow_key":    {unsafe.Sizeof(flowKey{}), map[string]uintptr{"vlan": unsafe.Offsetof(flowKey{}.VLAN), "protocol": unsafe.Offsetof(flowKey{}.Protocol)}},
		"flow_meter":  {unsafe.Sizeof(flowMeter{}), map[string]uintptr{"last_ns": unsafe.Offsetof(flowMeter{}.LastNs), "cpu": unsafe.Offsetof(flowMeter{}.CPU), "other_bytes": unsafe.Offsetof(flowMeter{}.OtherBytes)}},
		"counters":    {unsafe.Sizeof(kernelCounters{}), map[string]uintptr{"no_reader": unsafe.Offsetof(kernelCounters{}.NoReader), "metered": unsafe.Offsetof(kernelCounters{}.Metered), "uncopied": unsafe.Offsetof(kernelCounters{}.Uncopied), "forgotten": unsafe.Offsetof(kernelCounters{}.Forgotten), "drop_bytes": unsafe.Offsetof(kernelCounters{}.DropBytes), "count_bytes": unsafe.Offsetof(kernelCounters{}.CountBytes), "clock_ns": unsafe.Offsetof(kernelCounters{}.ClockNs)}},
		"meta":        {unsafe.Sizeof(meta{}), map[string]uintptr{"build": unsafe.Offsetof(meta{}.Build), "nevers": unsafe.Offsetof(meta{}.Never), "sources": unsafe.Offsetof(meta{}.Sources), "seed": unsafe.Offsetof(meta{}.Seed)}},
	} {
		var s *btf.Struct
		if err := spec.Types.TypeByName(name, &s); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if uintptr(s.Size) != want.size {
			t.Errorf("%s: %d bytes in C, %d in Go", name, s.Size, want.size)
		}
		for _, m := range s.Members {
			if at, ok := want.offsets[m.Name]; ok && at != uintptr(m.Offset.Bytes()) {
				t.Errorf("%s.%s: at %d in C, at %d in Go", name, m.Name, m.Offset.Bytes(), at)
			}
		}
	}
}

// TestGenerated builds the object again and compares it with the committed one.
func TestGenerated(t *testing.T) {
	for _, tool := range []string{"clang-14", "llvm-strip-14", "go"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("TIDEGATE_CI") == "1" {
				t.Fatal(err)
			}
			t.Skipf("cannot build the object: %v", err)
		}
	}
	source, err := os.ReadFile("generate.go")
	must(t, err)
	_, line, found := strings.Cut(string(source), "\n//go:generate ")
	if !found {
		t.Fatal("generate.go has no go:generate line")
	}
	line, _, _ = strings.Cut(line, "\n")
	out := t.TempDir()
	line = strings.Replace(line, "bpf2go -cc", "bpf2go -output-dir "+out+" -cc", 1)
	cmd := exec.Command("sh", "-c", line) //nolint:gosec // this package's own line
	cmd.Env = append(os.Environ(), "GOPACKAGE=xdp")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", line, err, b)
	}
	for _, name := range []string{"gate_bpfel.go", "gate_bpfel.o"} {
		committed, err := os.ReadFile(name) //nolint:gosec // this package's own file
		must(t, err)
		built, err := os.ReadFile(filepath.Join(out, name)) //nolint:gosec // as above
		must(t, err)
		if !bytes.Equal(committed, built) {
			t.Errorf("%s is not what the sources give: run go generate and commit", name)
		}
	}
}
