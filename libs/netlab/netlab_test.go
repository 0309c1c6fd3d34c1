package netlab

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("TIDEGATE_CI") == "1" {
		t.Fatal("this test needs root")
	}
	t.Skip("this test needs root")
}

func newLab(t *testing.T) *Lab {
	t.Helper()
	needRoot(t)
	lab, err := New("tgl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	return lab
}

func namespace(t *testing.T, lab *Lab, name string) *NS {
	t.Helper()
	ns, err := lab.Namespace(name)
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

func mac(last byte) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, last} }

// pair links two new namespaces with IPv4 and IPv6.
func pair(t *testing.T, queues int) (a, b *NS) {
	t.Helper()
	lab := newLab(t)
	a, b = namespace(t, lab, "a"), namespace(t, lab, "b")
	err := lab.Veth(
		End{NS: a, Name: "left", MAC: mac(1), Addrs: []netip.Prefix{netip.MustParsePrefix("10.9.0.1/24"), netip.MustParsePrefix("fd00:9::1/64")}},
		End{NS: b, Name: "right", MAC: mac(2), Addrs: []netip.Prefix{netip.MustParsePrefix("10.9.0.2/24"), netip.MustParsePrefix("fd00:9::2/64")}},
		queues)
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

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

func TestNeigh(t *testing.T) {
	a, _ := pair(t, 1)
	want := mac(77)
	for _, ip := range []string{"10.9.0.77", "fd00:9::77"} {
		if err := a.Neigh("left", netip.MustParseAddr(ip), want); err != nil {
			t.Fatal(err)
		}
		found := false
		err := a.Do(func() error {
			list, err := netlink.NeighList(0, 0)
			for _, n := range list {
				if n.IP.String() == ip && n.HardwareAddr.String() == want.String() && n.State == netlink.NUD_PERMANENT {
					found = true
				}
			}
			return err
		})
		if err != nil || !found {
			t.Errorf("no permanent neighbour %s: %v", ip, err)
		}
	}
	if err := a.Neigh("absent", netip.MustParseAddr("10.9.0.7"), want); err == nil {
		t.Error("a neighbour on an absent interface was accepted")
	}
}

func TestDoReturnsToTheNamespace(t *testing.T) {
	lab := newLab(t)
	ns := namespace(t, lab, "a")
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	check := func(when string) {
		t.Helper()
		now, err := netns.Get()
		if err != nil {
			t.Fatal(err)
		}
		defer now.Close()
		if !now.Equal(before) {
			t.Fatalf("%s: the thread stayed in the namespace", when)
		}
	}
	boom := errors.New("boom")
	if err := ns.Do(func() error { return boom }); !errors.Is(err, boom) {
		t.Fatalf("Do returned %v", err)
	}
	check("after an error")
	func() {
		defer func() { _ = recover() }()
		_ = ns.Do(func() error { panic("boom") })
	}()
	check("after a panic")
	err = ns.Do(func() error {
		links, err := netlink.LinkList()
		if err == nil && (len(links) != 1 || links[0].Attrs().Flags&net.FlagUp == 0) {
			err = fmt.Errorf("want only a loopback that is up, got %v", links)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	lab := newLab(t)
	ns := namespace(t, lab, "close")
	name := Ifname("tgl", "c")
	if err := lab.Veth(End{Name: name}, End{NS: ns, Name: "inner"}, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := netlink.LinkByName(name); err != nil {
		t.Fatalf("the end in the current namespace is missing: %v", err)
	}
	if _, err := lab.Namespace("close"); err == nil {
		t.Error("a second namespace of the same name was made")
	}
	if _, err := os.Stat(ns.Path()); err != nil {
		t.Errorf("the failed second creation removed the first: %v", err)
	}
	if err := lab.Veth(End{NS: ns, Name: "inner"}, End{NS: ns, Name: "other"}, 1); err == nil {
		t.Error("a second interface of the same name was made")
	}
	if err := lab.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := netlink.LinkByName(name); err == nil {
		t.Error("the interface is left")
	}
	if _, err := os.Stat(ns.Path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the namespace is left: %v", err)
	}
	if err := lab.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, err := lab.Namespace("late"); err == nil {
		t.Error("a closed lab made a namespace")
	}
}

// deadPid gives a pid that no process has and, being the highest, none will soon.
func deadPid(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		t.Fatal(err)
	}
	limit, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	for pid := limit - 1; pid > 0; pid-- {
		if !alive(pid) {
			return pid
		}
	}
	t.Fatal("no free pid")
	return 0
}

func TestSweep(t *testing.T) {
	needRoot(t)
	prefix := "tgsw" // of this test alone: Sweep acts on the whole machine
	pid := strconv.Itoa(deadPid(t))
	space := prefix + "-" + pid + "-left"
	ns, err := createNamespace(space)
	if err != nil {
		t.Fatal(err)
	}
	ns.handle.Close()
	link := prefix + pid + "a"
	attrs := netlink.NewLinkAttrs()
	attrs.Name = link
	veth := netlink.NewVeth(attrs)
	veth.PeerName = prefix + pid + "b"
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), prefix+"-"+pid+"-bpf")
	if _, err := BPFFS(dir); err != nil {
		t.Fatal(err)
	}
	lab, err := New(prefix)
	if err != nil {
		t.Fatal(err)
	}
	defer lab.Close()
	living := namespace(t, lab, "living")

	removed, err := Sweep(prefix)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"netns " + space, "link " + link, "bpffs " + dir} {
		if !slices.Contains(removed, want) {
			t.Errorf("%q is not among the removed: %q", want, removed)
		}
	}
	if _, err := netlink.LinkByName(link); err == nil {
		t.Error("the interface is left")
	}
	for _, path := range []string{namespacePath(space), dir} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	if _, err := os.Stat(living.Path()); err != nil {
		t.Errorf("Sweep removed what a living process uses: %v", err)
	}
	if removed, err := Sweep(prefix); err != nil || len(removed) != 0 {
		t.Errorf("second Sweep: %q, %v", removed, err)
	}
}

func TestBPFFS(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), fmt.Sprintf("tgl-%d-bpf", os.Getpid()))
	unmount, err := BPFFS(dir)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Type != unix.BPF_FS_MAGIC {
		t.Errorf("%s is no bpffs: type %#x, %v", dir, st.Type, err)
	}
	for range 2 {
		if err := unmount(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
}

func TestNames(t *testing.T) {
	own := strconv.Itoa(os.Getpid())
	for _, c := range []struct{ prefix, suffix, want string }{
		{"tgd", "a", "tgd" + own + "a"},
		{"tgd", "0", "tgd" + own + "_0"},
		{"tg1d", "a", "tgd" + own + "a"},
		{"tgd", "", "tgd" + own},
	} {
		if got := Ifname(c.prefix, c.suffix); got != c.want {
			t.Errorf("Ifname(%q, %q) = %q, want %q", c.prefix, c.suffix, got, c.want)
		}
	}
	if got := Ifname("verylongprefix", "verylongsuffix"); len(got) > maxIfname || !strings.Contains(got, own) {
		t.Errorf("Ifname of long parts = %q", got)
	}
	for _, c := range []struct {
		name string
		pid  int
		ok   bool
	}{
		{"tgd12345a", 12345, true}, {"tgd-77-x", 77, true}, {"tgd12_0", 12, true},
		{"tgd", 0, false}, {"tgdx12", 0, false}, {"other12", 0, false}, {"tgd0a", 0, false},
	} {
		if pid, ok := pidOf("tgd", c.name); pid != c.pid || ok != c.ok {
			t.Errorf("pidOf(%q) = %d, %v", c.name, pid, ok)
		}
	}
	for _, prefix := range []string{"", "with-dash", "d1", "toolongname"} {
		if _, err := New(prefix); err == nil {
			t.Errorf("New(%q) was accepted", prefix)
		}
		if _, err := Sweep(prefix); err == nil {
			t.Errorf("Sweep(%q) was accepted", prefix)
		}
	}
}

// TestSweepNamespaces: interfaces stay, and a process that nobody waited for counts as dead.
func TestSweepNamespaces(t *testing.T) {
	needRoot(t)
	const prefix = "tgsn"
	zombie := exec.Command("sleep", "60")
	if err := zombie.Start(); err != nil {
		t.Fatal(err)
	}
	pid := zombie.Process.Pid
	space := prefix + "-" + strconv.Itoa(pid) + "-left"
	ns, err := createNamespace(space)
	if err != nil {
		t.Fatal(err)
	}
	ns.handle.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = prefix + strconv.Itoa(pid) + "a"
	veth := netlink.NewVeth(attrs)
	veth.PeerName = prefix + strconv.Itoa(pid) + "b"
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := netlink.LinkDel(veth); err != nil {
			t.Errorf("the interface went with the namespaces: %v", err)
		}
	}()

	if removed, err := SweepNamespaces(prefix); err != nil || len(removed) != 0 {
		t.Errorf("of a living process: %q, %v", removed, err)
	}
	if err := zombie.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = zombie.Wait() }()
	deadline := time.Now().Add(5 * time.Second)
	for alive(pid) && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	if removed, err := SweepNamespaces(prefix); err != nil || !slices.Equal(removed, []string{"netns " + space}) {
		t.Errorf("of a killed process: %q, %v", removed, err)
	}
}
