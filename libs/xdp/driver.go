package xdp

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Of linux/netdev.h, which golang.org/x/sys does not have.
const (
	netdevDevGet      = 1 // NETDEV_CMD_DEV_GET
	netdevIfindex     = 1 // NETDEV_A_DEV_IFINDEX
	netdevXDPFeatures = 3 // NETDEV_A_DEV_XDP_FEATURES
	xdpBasic          = 1
	xdpZeroCopy       = 8
)

// genlHeader is struct genlmsghdr: command, version and two reserved bytes. Those of nl.Genlmsg are not its own, and the
// kernel refuses a message in which they are not 0.
type genlHeader [nl.SizeofGenlmsg]byte

// Len implements nl.NetlinkRequestData.
func (h genlHeader) Len() int { return len(h) }

// Serialize implements nl.NetlinkRequestData.
func (h genlHeader) Serialize() []byte { return h[:] }

// Driver is what an interface's driver says that it can do.
type Driver struct {
	Native   bool // XDP in the driver; else the kernel has generic XDP, several times slower
	ZeroCopy bool // AF_XDP without copying frames
}

// DriverOf asks the kernel about an interface of the caller's network namespace; nothing is attached. A *FeatureError
// tells that the kernel cannot say, which says nothing about the driver.
func DriverOf(ifindex int) (Driver, error) {
	family, err := netlink.GenlFamilyGet("netdev")
	if err != nil {
		return Driver{}, &FeatureError{Feature: "questions about a driver's XDP", Kernel: "6.3", Err: err}
	}
	req := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_ACK)
	req.AddData(genlHeader{netdevDevGet, 1})
	req.AddData(nl.NewRtAttr(netdevIfindex, nl.Uint32Attr(uint32(ifindex)))) //nolint:gosec // positive
	answers, err := req.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return Driver{}, fmt.Errorf("ask for the driver's XDP features: %w", err)
	}
	for _, answer := range answers {
		attrs, err := nl.ParseRouteAttr(answer[nl.SizeofGenlmsg:])
		if err != nil {
			return Driver{}, fmt.Errorf("read the driver's XDP features: %w", err)
		}
		for _, a := range attrs {
			if a.Attr.Type == netdevXDPFeatures && len(a.Value) == 8 {
				bits := binary.NativeEndian.Uint64(a.Value)
				return Driver{Native: bits&xdpBasic != 0, ZeroCopy: bits&xdpZeroCopy != 0}, nil
			}
		}
	}
	return Driver{}, errors.New("the kernel's answer has no XDP features of the driver")
}
