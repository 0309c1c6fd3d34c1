package e2e

import (
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/netlab"
)

// TestLabStartsAgain: the demo's link has fixed names, which services are configured with. A lab that was killed stands in
// nobody's way, a second one does not disturb the first, and nobody's interface of the name is touched.
func TestLabStartsAgain(t *testing.T) {
	rig.NeedRoot(t)
	bin := rig.Binary(t, "tidegate")
	ports := []string{netlab.Ifname("tglab", "a"), netlab.Ifname("tglab", "b")}
	args := []string{"lab", "--ports", strings.Join(ports, ",")}
	runs := func(p *rig.Process) {
		t.Helper()
		err := rig.Eventually(20*time.Second, func() error {
			if !strings.Contains(p.Log(), "benign connections") {
				return fmt.Errorf("the lab does not run: %s", p.Log())
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	index := func(name string) int {
		t.Helper()
		i, err := net.InterfaceByName(name)
		if err != nil {
			t.Fatal(err)
		}
		return i.Index
	}

	first := rig.Start(t, bin, nil, args...)
	runs(first)
	before := index(ports[0])
	exit, stderr := endBinary(t, bin, nil, args...)
	checkEnd(t, "a second lab", exit, 1, stderr, []string{"another test link has the port " + ports[0], "name other ports"})
	if index(ports[0]) != before {
		t.Error("the second lab has made the first one's port anew")
	}

	first.Kill()
	index(ports[0]) // it was left, or what follows shows nothing
	second := rig.Start(t, bin, nil, args...)
	runs(second)
	if index(ports[0]) == before {
		t.Error("the killed lab's port is in use again")
	}
	second.Signal(syscall.SIGTERM)
	if err := second.Wait(15 * time.Second); err != nil {
		t.Errorf("the lab ends with %v", err)
	}
	for _, name := range ports {
		if _, err := net.InterfaceByName(name); err == nil {
			t.Errorf("the lab left %s", name)
		}
	}

	lab, err := netlab.New("tglab")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := lab.Veth(netlab.End{Name: ports[1]}, netlab.End{Name: netlab.Ifname("tglab", "x")}, 1); err != nil {
		t.Fatal(err)
	}
	theirs := index(ports[1])
	exit, stderr = endBinary(t, bin, nil, args...)
	checkEnd(t, "an interface of the name", exit, 1, stderr, []string{"port " + ports[1], "no test link made", "name another port"})
	if index(ports[1]) != theirs {
		t.Error("somebody else's interface was made anew")
	}
}
