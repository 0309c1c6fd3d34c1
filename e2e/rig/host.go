package rig

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
	"github.com/tidegate-mesh/tidegate/libs/netlab"
)

// Interfaces of a Host.
const (
	HostIface = "host0"
	PeerIface = "peer0"
)

// Host is a machine whose own traffic is protected: a namespace with loadgen.VictimAddr, and one that reaches it directly.
type Host struct {
	Host, Peer *netlab.NS
	BPFFS      string
	Clients    []netip.Addr // addresses of the peer inside loadgen.BenignPrefix

	gateway *Gateway
	flags   []string
}

// NewHost builds both; they go when the test ends.
func NewHost(t testing.TB) *Host {
	t.Helper()
	NeedRoot(t)
	const prefix = "tghos"
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := netlab.Sweep(prefix)
	must(err)
	lab, err := netlab.New(prefix)
	must(err)
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	h := &Host{BPFFS: filepath.Join(t.TempDir(), "bpf")}
	unmount, err := netlab.BPFFS(h.BPFFS)
	must(err)
	t.Cleanup(func() {
		if err := unmount(); err != nil {
			t.Error(err)
		}
	})
	h.Host, err = lab.Namespace("host")
	must(err)
	h.Peer, err = lab.Namespace("peer")
	must(err)
	addrs := []netip.Prefix{netip.PrefixFrom(loadgen.GeneratorAddr, 24)}
	for a := loadgen.BenignPrefix.Addr().Next(); len(h.Clients) < 16; a = a.Next() {
		h.Clients = append(h.Clients, a)
		addrs = append(addrs, netip.PrefixFrom(a, 32))
	}
	must(lab.Veth(netlab.End{NS: h.Peer, Name: PeerIface, Addrs: addrs, MAC: loadgen.GeneratorMAC},
		netlab.End{NS: h.Host, Name: HostIface, Addrs: []netip.Prefix{netip.PrefixFrom(loadgen.VictimAddr, 24)}, MAC: loadgen.VictimMAC}, 1))
	must(h.Peer.Neigh(PeerIface, loadgen.VictimAddr, loadgen.VictimMAC))
	must(h.Host.Neigh(HostIface, loadgen.GeneratorAddr, loadgen.GeneratorMAC))
	must(h.Host.DefaultRoute(HostIface, loadgen.GeneratorAddr))
	return h
}

// Start runs the all-in-one on the host, enforcing, and waits until it is ready.
func (h *Host) Start(t testing.TB, args ...string) *Process {
	t.Helper()
	return h.Run(t, append([]string{"--mode", "host", "--iface", HostIface, "--enforce", "--protected", loadgen.VictimAddr.String()}, args...)...)
}

// Run runs the all-in-one in the namespace h.Host and waits until it is ready.
func (h *Host) Run(t testing.TB, args ...string) *Process {
	t.Helper()
	data := t.TempDir()
	h.gateway = NewGateway(t, data, filepath.Join(data, "certs", "ca.pem"))
	p := Start(t, "/usr/bin/nsenter", nil, append([]string{
		"--net=" + h.Host.Path(), Binary(t, "tidegate"), "run", "--bpffs", h.BPFFS, "--data", data, "--listen", "", "--metrics-listen", "", "--local-credentials", "", "--gateway-listen", h.gateway.Addr,
		"--log-level", "error",
	}, args...)...)
	err := Eventually(30*time.Second, func() error {
		if h.flags == nil {
			if _, err := os.Stat(h.gateway.ca); err != nil {
				return err // made when it starts
			}
			h.flags = h.gateway.Flags(t, "viewer")
		}
		var s api.Status
		if err := h.Ask(t, &s, "status"); err != nil {
			return err
		}
		for _, x := range s.Services {
			if !x.Ready {
				return fmt.Errorf("%s is not ready: %v", x.Service, x.Problems)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Ask reads into v what a command of the host's command line prints with --json.
func (h *Host) Ask(t testing.TB, v any, args ...string) error {
	t.Helper()
	args = append(append([]string{"--net=" + h.Host.Path(), Binary(t, "tidegate")}, args...), append(h.flags, "--json")...)
	out, err := Output(t.Context(), "/usr/bin/nsenter", args...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, v); err != nil {
		return fmt.Errorf("%v: %w: %.200s", args, err, out)
	}
	return nil
}

// Avoid are the addresses of the peer, which are no attacker's.
func (h *Host) Avoid() []netip.Prefix {
	return []netip.Prefix{loadgen.BenignPrefix, netip.PrefixFrom(loadgen.GeneratorAddr, 24).Masked()}
}
