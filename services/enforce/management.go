package enforce

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
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
	found.management = appendHost(found.management, g.sshClient)
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

// sshClient is the address of the SSH client that started this process, "" without one. sudo does not pass SSH_CONNECTION
// on, so the processes that this one comes from are asked, too; those of other users cannot be read. They may end before
// this one does, so it is for the start.
func sshClient() string {
	const variable = "SSH_CONNECTION"
	connection := os.Getenv(variable)
	for pid := os.Getppid(); connection == "" && pid > 1; pid = parent(pid) {
		env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)) //nolint:gosec // a number
		for _, v := range bytes.Split(env, []byte{0}) {
			if value, ok := bytes.CutPrefix(v, []byte(variable+"=")); ok {
				connection = string(value)
			}
		}
	}
	client, _, _ := strings.Cut(connection, " ")
	return client
}

// parent is the process that pid comes from, 0 if that cannot be told.
func parent(pid int) int {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)) //nolint:gosec // a number
	// The name, in parentheses, may have anything in it: proc(5).
	f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(f) < 2 {
		return 0
	}
	up, _ := strconv.Atoi(string(f[1]))
	return up
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
