package netlab

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// DefaultRoute sends what no other route covers out of iface to the next hop via, which must be on-link.
func (ns *NS) DefaultRoute(iface string, via netip.Addr) error {
	return ns.Do(func() error {
		link, err := netlink.LinkByName(iface)
		if err != nil {
			return fmt.Errorf("default route in %s: find %s: %w", ns.name, iface, err)
		}
		if err := netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: via.AsSlice()}); err != nil {
			return fmt.Errorf("default route in %s via %s: %w", ns.name, via, err)
		}
		return nil
	})
}
