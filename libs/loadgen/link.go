package loadgen

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/tidegate-mesh/tidegate/libs/netlab"
)

// The addresses of a Link: documentation ranges (RFC 5737) and one private prefix for benign clients.
var (
	VictimAddr    = netip.MustParseAddr("198.51.100.10")
	GeneratorAddr = netip.MustParseAddr("198.51.100.1")
	BenignPrefix  = netip.MustParsePrefix("10.20.0.0/16")
	GeneratorMAC  = net.HardwareAddr{0x02, 0x54, 0x47, 0, 0, 1}
	VictimMAC     = net.HardwareAddr{0x02, 0x54, 0x47, 0, 0, 2}
)

const (
	generatorIface = "gen0"
	victimIface    = "victim0"
	benignClients  = 16
)

// Link is generator namespace → PortA | PortB → victim namespace. What bridges the two ports, which are in
// the current namespace, is under test. The victim serves TLS, HTTP and DNS and counts what arrives.
type Link struct {
	PortA, PortB string
	BPFFS        string // a BPF file system of the link's own; empty with fixed ports
	Gen, Victim  *netlab.NS
	Clients      []netip.Addr // benign addresses of the generator, inside BenignPrefix
	Servers      *Servers
	Counter      *Counter

	lab     *netlab.Lab
	gen     netlab.End // the generator's end of the pair with PortA
	queues  int
	unmount func() error
	claims  []net.Listener // of fixed ports
}

// LinkOptions says what a Link is for.
type LinkOptions struct {
	Prefix string // of names: letters only; Sweep of netlab takes the same
	Queues int    // rx and tx queues of each interface, at least 1
	Sink   bool   // the victim counts and drops everything: no servers, and no stack that limits
	// Ports are fixed names of PortA and PortB, for services that are configured with them and have a BPF
	// file system of their own. Without them names differ from process to process. What a killed process left
	// under the names is made anew; interfaces that no Link made, and those of a living one, are an error.
	Ports [2]string
}

// NewLink removes what dead processes left under the prefix and builds a link. It needs root.
func NewLink(o LinkOptions) (_ *Link, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("a test link takes network namespaces and XDP programs: run as root")
	}
	sweep, fixed := netlab.Sweep, o.Ports != [2]string{}
	if fixed { // perhaps in a container
		sweep = netlab.SweepNamespaces
	}
	if _, err := sweep(o.Prefix); err != nil {
		return nil, fmt.Errorf("clean up after an earlier run: %w", err)
	}
	lab, err := netlab.New(o.Prefix)
	if err != nil {
		return nil, err
	}
	l := &Link{lab: lab, PortA: o.Ports[0], PortB: o.Ports[1]}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if fixed {
		for _, port := range o.Ports {
			claim, err := claimPort(port)
			if err != nil {
				return nil, err
			}
			l.claims = append(l.claims, claim)
		}
	} else {
		l.PortA, l.PortB = netlab.Ifname(o.Prefix, "a"), netlab.Ifname(o.Prefix, "b")
		l.BPFFS = filepath.Join(os.TempDir(), lab.Name("bpf"))
		if l.unmount, err = netlab.BPFFS(l.BPFFS); err != nil {
			return nil, err
		}
	}
	if l.Gen, err = lab.Namespace("gen"); err != nil {
		return nil, err
	}
	if l.Victim, err = lab.Namespace("victim"); err != nil {
		return nil, err
	}
	addrs := []netip.Prefix{netip.PrefixFrom(GeneratorAddr, 24)}
	client := BenignPrefix.Addr()
	for range benignClients {
		client = client.Next()
		l.Clients = append(l.Clients, client)
		addrs = append(addrs, netip.PrefixFrom(client, 32))
	}
	l.gen, l.queues = netlab.End{NS: l.Gen, Name: generatorIface, Addrs: addrs, MAC: GeneratorMAC}, max(1, o.Queues)
	if err := l.plug(); err != nil {
		return nil, err
	}
	err = lab.Veth(netlab.End{Name: l.PortB},
		netlab.End{NS: l.Victim, Name: victimIface, Addrs: []netip.Prefix{netip.PrefixFrom(VictimAddr, 24)}, MAC: VictimMAC}, l.queues)
	if err != nil {
		return nil, err
	}
	if fixed {
		for _, port := range o.Ports {
			if err := markPort(port); err != nil {
				return nil, err
			}
		}
	}
	if err := l.Victim.Neigh(victimIface, GeneratorAddr, GeneratorMAC); err != nil {
		return nil, err
	}
	if err := l.Victim.DefaultRoute(victimIface, GeneratorAddr); err != nil {
		return nil, err
	}
	if !o.Sink {
		if l.Servers, err = StartServers(l.Victim, VictimAddr); err != nil {
			return nil, err
		}
	}
	l.Counter, err = NewCounter(l.Victim, victimIface, BenignPrefix, o.Sink)
	return l, err
}

// plug makes the pair of the generator and PortA. Neighbours are static: answers to a flood must find their way without ARP
// for every random source.
func (l *Link) plug() error {
	if err := l.lab.Veth(l.gen, netlab.End{Name: l.PortA}, l.queues); err != nil {
		return err
	}
	return l.Gen.Neigh(generatorIface, VictimAddr, VictimMAC)
}

// Replug takes PortA away for the given time and makes it anew under its name, with another index. What was opened on
// the generator's side ends.
func (l *Link) Replug(away time.Duration) error {
	port, err := netlink.LinkByName(l.PortA)
	if err == nil {
		err = netlink.LinkDel(port)
	}
	if err != nil {
		return fmt.Errorf("take %s away: %w", l.PortA, err)
	}
	time.Sleep(away)
	return l.plug()
}

// Sender opens a sender on the generator's side.
func (l *Link) Sender() (s *Sender, err error) {
	err = l.Gen.Do(func() error {
		s, err = NewSender(generatorIface, 0)
		return err
	})
	return s, err
}

// Client makes a benign client on the generator's side; see NewClient.
func (l *Link) Client(rate float64, seed uint64) *Client {
	return NewClient(l.Gen, l.Servers, l.Clients, VictimAddr, rate, seed)
}

// Attack prepares an attack on the victim, from any source but benign ones.
func (l *Link) Attack(kind string, seed uint64) (*Frames, error) {
	return NewFrames(Attack{
		Kind: kind, Seed: seed, Target: VictimAddr, Avoid: []netip.Prefix{BenignPrefix, netip.PrefixFrom(GeneratorAddr, 24).Masked()},
		SrcMAC: [6]byte(GeneratorMAC), DstMAC: [6]byte(VictimMAC),
	})
}

// Stream is an even stream from benign addresses through the link; see Stream.
func (l *Link) Stream(flows, hosts, share uint32, size, cpu int) Stream {
	return Stream{
		NS: l.Gen, Iface: generatorIface, SrcMAC: [6]byte(GeneratorMAC), DstMAC: [6]byte(VictimMAC),
		Source: BenignPrefix.Addr(), Target: netip.MustParseAddr("192.0.2.0"), Flows: flows, Hosts: hosts, Share: share, Size: size, CPU: cpu,
	}
}

// GeneratorPackets is how many packets, of every kind, left the generator's interface, and how many it dropped because the other
// end took none: those never came to what is under test.
func (l *Link) GeneratorPackets() (left, dropped uint64, err error) {
	err = l.Gen.Do(func() error {
		link, err := netlink.LinkByName(generatorIface)
		if err != nil {
			return fmt.Errorf("read the generator's counters: %w", err)
		}
		left, dropped = link.Attrs().Statistics.TxPackets, link.Attrs().Statistics.TxDropped
		return nil
	})
	return left, dropped, err
}

// Close removes all that NewLink made; programs pinned on the link's BPF file system go with it.
func (l *Link) Close() error {
	var errs []error
	if l.Counter != nil {
		errs = append(errs, l.Counter.Close())
	}
	if l.Servers != nil {
		errs = append(errs, l.Servers.Close())
	}
	errs = append(errs, l.lab.Close())
	if l.unmount != nil {
		errs = append(errs, l.unmount())
	}
	for _, c := range l.claims {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// portAlias is how the port of a killed process is told from anybody else's interface.
const portAlias = "tidegate test link"

// claimPort takes a fixed name in this network namespace, for as long as the claim is open, and removes what a killed
// process left under it. The claim is an abstract socket: the kernel drops it with the process, and containers in the
// machine's network, which share no files, see each other's.
func claimPort(name string) (net.Listener, error) {
	claim, err := net.Listen("unix", "@tidegate-link-"+name)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("another test link has the port %s: stop it, or name other ports", name)
	}
	if err != nil {
		return nil, fmt.Errorf("claim the port %s: %w", name, err)
	}
	link, err := netlink.LinkByName(name)
	var free netlink.LinkNotFoundError
	switch {
	case errors.As(err, &free):
		return claim, nil
	case err == nil && link.Attrs().Alias != portAlias:
		err = errors.New("there is an interface of this name that no test link made: name another port")
	case err == nil:
		if err = netlink.LinkDel(link); errors.Is(err, syscall.ENODEV) {
			err = nil // it went with its namespace, just now
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("port %s: %w", name, err), claim.Close())
	}
	return claim, nil
}

func markPort(name string) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetAlias(link, portAlias)
	}
	if err != nil {
		return fmt.Errorf("mark the port %s: %w", name, err)
	}
	return nil
}
