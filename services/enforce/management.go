package enforce

import (
	"bufio"
	"bytes"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// discover finds what this node must stay reachable by: the SSH client that started it, the NATS server, default
// gateways and resolvers. It reports whether anything changed. Established connections to the SSH port are not
// taken: whoever tries passwords has one too.
func (g *guard) discover(natsServer string) (changed bool) {
	management := slices.Clone(g.configured)
	if client, _, ok := strings.Cut(os.Getenv("SSH_CONNECTION"), " "); ok {
		management = appendHost(management, client)
	}
	if a, err := netip.ParseAddrPort(natsServer); err == nil {
		management = appendHost(management, a.Addr().String())
	}
	infrastructure := gateways()
	if b, err := os.ReadFile("/etc/resolv.conf"); err == nil {
		for _, r := range resolvers(b) {
			infrastructure = appendHost(infrastructure, r)
		}
	}
	changed = !slices.Equal(management, g.management) || !slices.Equal(infrastructure, g.infrastructure)
	g.management, g.infrastructure = management, infrastructure
	return changed
}

// appendHost adds one address; loopback and unspecified addresses never cross an interface.
func appendHost(list []netip.Prefix, s string) []netip.Prefix {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return list
	}
	if a = a.Unmap().WithZone(""); a.IsLoopback() || a.IsUnspecified() {
		return list
	}
	p := netip.PrefixFrom(a, a.BitLen())
	if slices.Contains(list, p) {
		return list
	}
	return append(list, p)
}

// resolvers reads the nameserver lines of resolv.conf(5).
func resolvers(conf []byte) []string {
	var out []string
	for sc := bufio.NewScanner(bytes.NewReader(conf)); sc.Scan(); {
		if f := strings.Fields(sc.Text()); len(f) >= 2 && f[0] == "nameserver" {
			out = append(out, f[1])
		}
	}
	return out
}

// gateways lists the next hops of the default routes of all tables that the kernel returns by default.
func gateways() []netip.Prefix {
	var out []netip.Prefix
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteList(nil, family)
		if err != nil {
			continue // without permission or IPv6 there is nothing to protect by this list
		}
		for _, r := range routes {
			if r.Dst != nil {
				if ones, _ := r.Dst.Mask.Size(); ones != 0 {
					continue
				}
			}
			out = appendHost(out, r.Gw.String())
			for _, hop := range r.MultiPath {
				out = appendHost(out, hop.Gw.String())
			}
		}
	}
	return out
}
