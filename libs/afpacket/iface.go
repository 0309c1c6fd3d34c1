package afpacket

import (
	"fmt"
	"io"
	"net"
	"os"

	"github.com/safchain/ethtool"
	"golang.org/x/sys/unix"
)

// Promiscuous makes an interface take frames for every address until the closer is closed or the process ends.
func Promiscuous(iface string) (io.Closer, error) {
	ifi, err := net.InterfaceByName(iface)
	if err != nil {
		return nil, fmt.Errorf("make %s promiscuous: %w", iface, ErrNoInterface)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) // of no protocol: it receives nothing
	if err != nil {
		return nil, fmt.Errorf("make %s promiscuous: %w", iface, explain("socket", err))
	}
	f := os.NewFile(uintptr(fd), "promiscuous "+iface) //nolint:gosec // not negative
	if err := promiscuous(fd, ifi.Index); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("make %s promiscuous: %w", iface, err)
	}
	return f, nil
}

func promiscuous(fd, ifindex int) error {
	m := unix.PacketMreq{Ifindex: int32(ifindex), Type: unix.PACKET_MR_PROMISC} //nolint:gosec // the kernel's int
	if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &m); err != nil {
		return explain("join as promiscuous", err)
	}
	return nil
}

// Joins tells whether the interface joins segments of a stream to one (GRO or LRO) before a packet socket sees them: then
// there are fewer packets, and larger ones, than on the wire. XDP comes before GRO.
func Joins(iface string) (bool, error) {
	tool, err := ethtool.NewEthtool()
	if err != nil {
		return false, fmt.Errorf("open ethtool: %w", err)
	}
	defer tool.Close()
	on, err := tool.Features(iface)
	if err != nil {
		return false, fmt.Errorf("read the features of %s: %w", iface, err)
	}
	return on["rx-gro"] || on["rx-lro"], nil
}
