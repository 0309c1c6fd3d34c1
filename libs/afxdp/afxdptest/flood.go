package afxdptest

import (
	"fmt"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// Flood sends count copies of a frame to Near from inside the kernel, on the given CPU: a program run on
// live frames redirects each into the far end. It returns when all are sent. The receiving program and
// the copy into the socket's memory run on the same CPU.
func (l *Link) Flood(t testing.TB, cpu int, frame []byte, count uint32) error {
	t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R1, int32(l.far)), //nolint:gosec // an interface index
		asm.Mov.Imm(asm.R2, 0),
		asm.FnRedirect.Call(),
		asm.Return(),
	}})
	if err != nil {
		return fmt.Errorf("load flood program: %w", err)
	}
	defer prog.Close() //nolint:errcheck // nothing depends on it
	return l.ns.Do(func() error {
		unpin := Pin(t, cpu)
		defer unpin()
		_, err := prog.Run(&ebpf.RunOptions{Data: frame, Repeat: count, Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES})
		if err != nil {
			return fmt.Errorf("run flood program: %w", err)
		}
		return nil
	})
}
