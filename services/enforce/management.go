package enforce

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
)

// lookEvery: gateways and resolvers may change.
const lookEvery = 30 * time.Second

// surroundings are what this node must stay reachable by.
type surroundings struct {
	management, infrastructure []netip.Prefix
	partial                    bool // the routes could not be read to their end
}

// watchSurroundings looks again and again beside the loop: a router's table may take seconds to read.
func (s *Service) watchSurroundings(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		select {
		case <-ctx.Done():
			return
		case s.looked <- s.guard.look(s.bus.ServerAddr()):
		}
	}
}

// learn has all gates spare what was found.
func (s *Service) learn(found surroundings) {
	if !s.guard.learn(found) {
		return
	}
	for _, p := range s.gates() {
		s.putNever(p)
	}
}

// look finds the SSH client that started this node, the NATS server, default gateways and resolvers. Established connections to the
// SSH port are not taken: whoever tries passwords has one too. It may be called by any goroutine.
func (g *guard) look(natsServer string) surroundings {
	found := surroundings{management: slices.Clone(g.configured)}
	if client, _, ok := strings.Cut(os.Getenv("SSH_CONNECTION"), " "); ok {
		found.management = appendHost(found.management, client)
	}
	if a, err := netip.ParseAddrPort(natsServer); err == nil {
		found.management = appendHost(found.management, a.Addr().String())
	}
	found.infrastructure, found.partial = gateways()
	if b, err := os.ReadFile("/etc/resolv.conf"); err == nil {
		for _, r := range resolvers(b) {
			found.infrastructure = appendHost(found.infrastructure, r)
		}
	}
	return found
}

// learn reports whether anything changed. Of what was read in part nothing is known to be gone.
func (g *guard) learn(found surroundings) (changed bool) {
	if found.partial {
		for _, p := range g.infrastructure {
			if !slices.Contains(found.infrastructure, p) {
				found.infrastructure = append(found.infrastructure, p)
			}
		}
	}
	changed = !slices.Equal(found.management, g.management) || !slices.Equal(found.infrastructure, g.infrastructure)
	g.management, g.infrastructure = found.management, found.infrastructure
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

// gateways lists the next hops of the default routes of all tables, those of other VRFs too. A table that changes while it is
// read, as a router's does all the time, may come in part.
func gateways() (found []netip.Prefix, partial bool) {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		hop := func(gw net.IP, via netlink.Destination) {
			if v, ok := via.(*netlink.Via); ok { // RTA_VIA: a next hop of the other family
				gw = v.Addr
			}
			found = appendHost(found, gw.String())
		}
		// Its error other than a change: without permission or IPv6 there is nothing to protect by this list.
		err := netlink.RouteListFilteredIter(family, &netlink.Route{}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST, func(r netlink.Route) bool {
			hop(r.Gw, r.Via)
			for _, n := range r.MultiPath {
				hop(n.Gw, n.Via)
			}
			return true
		})
		partial = partial || errors.Is(err, netlink.ErrDumpInterrupted)
	}
	return found, partial
}
