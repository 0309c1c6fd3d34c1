package netlab

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestTCPCrossesWithoutOffload(t *testing.T) {
	a, b := pair(t, 2)
	for _, address := range []string{"10.9.0.2", "fd00:9::2"} {
		t.Run(address, func(t *testing.T) {
			var ln net.Listener
			err := b.Do(func() (err error) {
				ln, err = net.Listen("tcp", net.JoinHostPort(address, "0"))
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			go func() {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
			err = a.Do(func() error {
				conn, err := net.DialTimeout("tcp", ln.Addr().String(), 3*time.Second)
				if err != nil {
					return err
				}
				defer conn.Close()
				// More than a segment, so that cutting and checksumming by the stack is exercised.
				sent := strings.Repeat("tide", 20000) + "\n"
				go func() { _, _ = io.WriteString(conn, sent) }()
				got, err := bufio.NewReaderSize(conn, len(sent)).ReadString('\n')
				if err == nil && got != sent {
					err = fmt.Errorf("echo differs: %d bytes of %d", len(got), len(sent))
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

// Checksums must be right on the wire: a receiver that looks at raw frames sees what a cable would carry.
func TestFramesCarryChecksums(t *testing.T) {
	a, b := pair(t, 1)
	raw := -1
	err := b.Do(func() (err error) {
		raw, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_IP)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(raw)
	if err := unix.SetsockoptTimeval(raw, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 3}); err != nil {
		t.Fatal(err)
	}
	err = a.Do(func() error {
		conn, err := net.Dial("udp", "10.9.0.2:9999")
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write([]byte("checksum me"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2048)
	for {
		n, _, err := unix.Recvfrom(raw, buf, 0)
		if err != nil {
			t.Fatalf("no UDP frame arrived: %v", err)
		}
		if ip := buf[:n]; ip[9] == unix.IPPROTO_UDP {
			if sum := udpSum(ip); sum != 0xffff {
				t.Fatalf("UDP checksum does not verify: sum %#x", sum)
			}
			return
		}
	}
}

// udpSum is the one's complement sum over pseudo header and datagram (RFC 768): 0xffff when the checksum is right.
func udpSum(ip []byte) uint16 {
	udp := ip[20:]
	data := append(append([]byte{}, ip[12:20]...), 0, ip[9], udp[4], udp[5])
	data = append(data, udp...)
	if len(data)%2 == 1 {
		data = append(data, 0)
	}
	var sum uint32
	for i := 0; i < len(data); i += 2 {
		sum += uint32(data[i])<<8 | uint32(data[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

func TestPing(t *testing.T) {
	if _, err := exec.LookPath("ping"); err != nil {
		if os.Getenv("TIDEGATE_CI") != "" {
			t.Fatal("ping is not installed")
		}
		t.Skip("ping is not installed; TestTCPCrossesWithoutOffload covers the path")
	}
	a, _ := pair(t, 1)
	err := a.Do(func() error {
		out, err := exec.Command("ping", "-c", "1", "-W", "3", "10.9.0.2").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestVethProperties(t *testing.T) {
	const queues = 3
	a, b := pair(t, queues)
	for _, end := range []struct {
		ns   *NS
		name string
		mac  net.HardwareAddr
	}{{a, "left", mac(1)}, {b, "right", mac(2)}} {
		err := end.ns.Do(func() error {
			link, err := netlink.LinkByName(end.name)
			if err != nil {
				return err
			}
			attrs := link.Attrs()
			if attrs.NumRxQueues != queues || attrs.NumTxQueues != queues {
				t.Errorf("%s: %d rx and %d tx queues, want %d", end.name, attrs.NumRxQueues, attrs.NumTxQueues, queues)
			}
			if attrs.HardwareAddr.String() != end.mac.String() {
				t.Errorf("%s: MAC %s, want %s", end.name, attrs.HardwareAddr, end.mac)
			}
			if attrs.Flags&net.FlagUp == 0 {
				t.Errorf("%s is down", end.name)
			}
			tool, err := ethtool.NewEthtool()
			if err != nil {
				return err
			}
			defer tool.Close()
			features, err := tool.Features(end.name)
			if err != nil {
				return err
			}
			for _, name := range offloads {
				if features[name] {
					t.Errorf("%s: %s is on", end.name, name)
				}
			}
			if !features[receiveOffload] {
				t.Errorf("%s: %s is off", end.name, receiveOffload)
			}
			channels, err := tool.GetChannels(end.name)
			if err != nil {
				return err
			}
			if channels.RxCount != queues || channels.TxCount != queues {
				t.Errorf("%s: %d rx and %d tx channels in use, want %d", end.name, channels.RxCount, channels.TxCount, queues)
			}
			addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
			if err != nil {
				return err
			}
			for _, addr := range addrs {
				if addr.Flags&unix.IFA_F_TENTATIVE != 0 {
					t.Errorf("%s: %s is tentative: duplicate address detection runs", end.name, addr.IP)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// An end without IPv6 addresses must send nothing by itself, else packet counts of tests do not add up.
func TestSilentWithoutIPv6(t *testing.T) {
	lab := newLab(t)
	a, b := namespace(t, lab, "a"), namespace(t, lab, "b")
	if err := lab.Veth(End{NS: a, Name: "left"}, End{NS: b, Name: "right"}, 1); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1500 * time.Millisecond)
	for ns, name := range map[*NS]string{a: "left", b: "right"} {
		err := ns.Do(func() error {
			link, err := netlink.LinkByName(name)
			if err == nil {
				if sent := link.Attrs().Statistics.TxPackets; sent != 0 {
					t.Errorf("%s sent %d packets by itself", name, sent)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
