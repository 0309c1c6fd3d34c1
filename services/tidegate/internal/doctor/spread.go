package doctor

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"slices"
	"unsafe"

	"github.com/safchain/ethtool"
	"golang.org/x/sys/unix"
)

// spread is how the card gives packets to its receive queues (RSS).
type spread struct {
	table []uint32 // the queue of each value of the hash; empty if the card does not show it
	key   []byte   // of the Toeplitz hash
	hash  uint8    // hashToeplitz or others
	alike bool     // the card orders addresses and ports before it hashes them
	tcp   uint64   // fields of IPv4 packets that are hashed, hash… bits; 0 if the card does not tell
	udp   uint64
}

// Of linux/ethtool.h, which golang.org/x/sys does not have.
const (
	hashToeplitz  = 1 << 0 // ETH_RSS_HASH_TOP
	hashXOR       = 1 << 1 // ETH_RSS_HASH_XOR
	hashSource    = 1 << 4 // RXH_IP_SRC
	hashTarget    = 1 << 5 // RXH_IP_DST
	hashPorts     = 3 << 6 // RXH_L4_B_0_1, RXH_L4_B_2_3
	tcp4          = 1      // TCP_V4_FLOW
	udp4          = 2      // UDP_V4_FLOW
	rxfhHead      = 24     // sizeof(struct ethtool_rxfh): cmd, context, indir_size, key_size, hfunc, input_xfrm, 6 reserved
	rxnfcSize     = 192    // sizeof(struct ethtool_rxnfc): cmd, flow_type, data, and what only other commands use
	mostOfSpread  = 1 << 16
	symmetricXfrm = 3 // RXH_XFRM_SYM_XOR, RXH_XFRM_SYM_OR_XOR
)

// symmetric tells whether both directions of a flow get the same hash: a Toeplitz hash has that if its key repeats itself every
// 16 bits, as addresses and ports are multiples of that.
func (s *spread) symmetric() bool {
	switch {
	case s.alike || s.hash == hashXOR:
		return true
	case s.hash != hashToeplitz && s.hash != 0, len(s.key) == 0: // 0: kernels before 4.1 know but Toeplitz
		return false
	}
	for i := range s.key[:max(len(s.key)-2, 0)] {
		if s.key[i] != s.key[i+2] {
			return false
		}
	}
	return true
}

// unused are those of the queues that get no packets.
func (s *spread) unused(queues int) (out cpus) {
	if len(s.table) == 0 {
		return nil
	}
	for q := range queues {
		if !slices.Contains(s.table, uint32(q)) {
			out = append(out, q)
		}
	}
	return out
}

// driver asks over ethtool's ioctl, in the network namespace of the thread that made it.
type driver struct {
	*ethtool.Ethtool
	fd int
}

func openDriver() (*driver, error) {
	tool, err := ethtool.NewEthtool()
	if err != nil {
		return nil, fmt.Errorf("open ethtool: %w", err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		tool.Close()
		return nil, fmt.Errorf("open ethtool: %w", err)
	}
	return &driver{tool, fd}, nil
}

func (d *driver) close() {
	d.Close()
	_ = unix.Close(d.fd)
}

// Spread implements asker. The library's question for the table writes past its end with tables above 256 entries.
func (d *driver) Spread(iface string) (spread, error) {
	head := make([]byte, rxfhHead)
	binary.NativeEndian.PutUint32(head, unix.ETHTOOL_GRSSH)
	if err := d.ioctl(iface, head); err != nil { // without room: tells the sizes
		return spread{}, err
	}
	entries, keySize := binary.NativeEndian.Uint32(head[8:]), binary.NativeEndian.Uint32(head[12:])
	if entries > mostOfSpread || keySize > mostOfSpread {
		return spread{}, fmt.Errorf("a table of %d entries and a key of %d bytes", entries, keySize)
	}
	all := make([]byte, rxfhHead+4*entries+keySize)
	binary.NativeEndian.PutUint32(all, unix.ETHTOOL_GRSSH)
	copy(all[8:16], head[8:16])
	if err := d.ioctl(iface, all); err != nil {
		return spread{}, err
	}
	s := parseSpread(all)
	s.tcp, s.udp = d.fields(iface, tcp4), d.fields(iface, udp4)
	return s, nil
}

// parseSpread reads a whole struct ethtool_rxfh.
func parseSpread(b []byte) spread {
	s := spread{hash: b[16], alike: b[17]&symmetricXfrm != 0}
	for n := range binary.NativeEndian.Uint32(b[8:]) {
		s.table = append(s.table, binary.NativeEndian.Uint32(b[rxfhHead+4*n:]))
	}
	s.key = b[rxfhHead+4*len(s.table):]
	return s
}

// fields are those that the card hashes of a kind of packets, 0 if it does not tell.
func (d *driver) fields(iface string, kind uint32) uint64 {
	b := make([]byte, rxnfcSize)
	binary.NativeEndian.PutUint32(b, unix.ETHTOOL_GRXFH)
	binary.NativeEndian.PutUint32(b[4:], kind)
	if d.ioctl(iface, b) != nil {
		return 0
	}
	return binary.NativeEndian.Uint64(b[8:])
}

// ioctl hands b, which begins with its command, to the driver, which answers in it.
func (d *driver) ioctl(iface string, b []byte) error {
	req := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&b[0])}
	copy(req.name[:unix.IFNAMSIZ-1], iface)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(d.fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	runtime.KeepAlive(b)
	if errno != 0 {
		return errno
	}
	return nil
}
