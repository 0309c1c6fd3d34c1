package bench

import (
	"encoding/json"
	"fmt"
	"net"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
)

// TestBenchHost compares a TCP transfer to a machine that protects itself with one through an XDP program that only passes.
func TestBenchHost(t *testing.T) {
	needBench(t)
	iperf, err := exec.LookPath("iperf3")
	rig.Need(t, err == nil, "iperf3 (apt-get install iperf3)")
	turns := 5
	if seconds(4) != 4*time.Second {
		turns = 1
	}
	var bare, host []float64
	for range turns {
		bare = append(bare, transfer(t, iperf, false))
		host = append(host, transfer(t, iperf, true))
	}
	slices.Sort(bare)
	slices.Sort(host)
	b, h := bare[turns/2], host[turns/2]
	t.Logf("iperf3, one TCP connection, medians of %d runs in turns: bare XDP_PASS %.2f Gbit/s, host mode with the whole mesh %.2f Gbit/s, ratio %.2f (bar 0.90)", turns, b, h, h/b)
}

// transfer is Gbit/s of one TCP connection to the host; the server and what protects it have CPU 0.
func transfer(t *testing.T, iperf string, protected bool) float64 {
	t.Helper()
	var gbits float64
	t.Run(fmt.Sprintf("protected=%v", protected), func(t *testing.T) {
		h := rig.NewHost(t)
		if protected {
			p := h.Start(t)
			defer func() {
				var s api.Status
				if err := h.Ask(t, &s, "status"); err != nil {
					t.Error(err)
				}
				t.Logf("passed %d, read %d, ring drops %d", s.Interfaces[0].XDPPackets["pass"], s.Interfaces[0].Received, s.Interfaces[0].RingDrops)
				if err := p.Stop(20 * time.Second); err != nil {
					t.Error(err)
				}
			}()
		} else {
			prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "Apache-2.0", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}})
			if err != nil {
				t.Fatal(err)
			}
			defer closed(t, prog)
			err = h.Host.Do(func() error {
				i, err := net.InterfaceByName(rig.HostIface)
				if err != nil {
					return err
				}
				l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: i.Index})
				if err == nil {
					t.Cleanup(func() { closed(t, l) })
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		server := rig.Start(t, "/usr/bin/nsenter", nil, "--net="+h.Host.Path(), "taskset", "-c", "0", iperf, "-s", "-1")
		time.Sleep(500 * time.Millisecond)
		out, err := rig.Output(t.Context(), "/usr/bin/nsenter", "--net="+h.Peer.Path(), "taskset", "-c", "1", iperf, "-c", loadgen.VictimAddr.String(),
			"-J", "-O", "1", "-t", fmt.Sprint(int(seconds(4).Seconds())))
		if err != nil {
			t.Fatal(err)
		}
		var r struct {
			End struct {
				Received struct {
					Bits float64 `json:"bits_per_second"`
				} `json:"sum_received"`
			} `json:"end"`
		}
		if err := json.Unmarshal(out, &r); err != nil {
			t.Fatal(err)
		}
		gbits = r.End.Received.Bits / 1e9
		if err := server.Wait(10 * time.Second); err != nil {
			t.Error(err)
		}
	})
	return gbits
}
