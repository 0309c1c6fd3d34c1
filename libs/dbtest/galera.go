package dbtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/tidegate-mesh/tidegate/libs/netlab"
)

// clusterSize is the smallest that goes on when one is lost.
const clusterSize = 3

// galeraProvider is where Debian's galera-4 puts it.
const galeraProvider = "/usr/lib/galera/libgalera_smm.so"

// Cluster is a Galera cluster. Each node is in a network namespace of its own, with one link to a bridge in a
// further namespace, for the group's communication, and one to the test, for clients. Its methods are for one goroutine.
type Cluster struct {
	Nodes []*Server
	// URL has the hosts of all nodes, separated by commas.
	URL string

	t      testing.TB
	bridge *netlab.NS
}

// galeraNode is a MariaDB server that is a member of a cluster.
type galeraNode struct {
	*mysqld
	c          *Cluster
	i          int
	clientLink string // the test's end
}

// groupAddr is the node's address for the group's communication. The network is in namespaces only.
func groupAddr(i int) string { return fmt.Sprintf("10.0.0.%d", i+1) }

// StartGalera starts the three nodes and waits until each has the cluster's state.
func StartGalera(t testing.TB, options ...Option) *Cluster {
	t.Helper()
	m, as := findMariaDB(t)
	_, err := os.Stat(galeraProvider)
	need(t, err == nil, "Galera is not installed: install Debian's package galera-4 (make setup)")
	_, err = exec.LookPath("rsync")
	need(t, err == nil, "rsync, by which a Galera node gets the state, is not installed (make setup)")
	need(t, os.Geteuid() == 0, "Galera's nodes run in network namespaces, which only root may make")

	if _, err := netlab.Sweep("tgdb"); err != nil { // what killed tests have left
		t.Log(err)
	}
	lab, err := netlab.New("tgdb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Errorf("remove the cluster's network: %v", err)
		}
	})
	c := &Cluster{t: t}
	number := clusters.Add(1)
	if err := c.makeBridge(lab, number); err != nil {
		t.Fatal(err)
	}
	clients, err := clientNetworks()
	if err != nil {
		t.Fatal(err)
	}
	hosts := make([]string, clusterSize)
	for i := range clusterSize {
		node := &galeraNode{mysqld: m, c: c, i: i, clientLink: netlab.Ifname("tgdb", fmt.Sprintf("c%dn%d", number, i))}
		s := &Server{Kind: Galera, t: t, e: node, as: as, host: clients[i].Addr().Next().String(), port: 3306}
		ns, err := lab.Namespace(fmt.Sprintf("c%dn%d", number, i))
		if err == nil {
			s.space = ns.Do
			err = c.connect(lab, ns, i, node.clientLink, clients[i])
		}
		if err != nil {
			t.Fatal(err)
		}
		s.dir = tempDir(t, "", as)
		c.Nodes = append(c.Nodes, s)
		hosts[i] = net.JoinHostPort(s.host, "3306")
	}
	for _, s := range c.Nodes {
		s.setUp(options)
	}
	for _, s := range c.Nodes {
		s.Run()
	}
	c.URL = strings.Replace(c.Nodes[0].URL, hosts[0], strings.Join(hosts, ","), 1)
	return c
}

// clusters numbers those of this process.
var clusters atomic.Int32

// makeBridge makes the namespace in which the group's links meet.
func (c *Cluster) makeBridge(lab *netlab.Lab, number int32) error {
	var err error
	if c.bridge, err = lab.Namespace(fmt.Sprintf("c%dbridge", number)); err != nil {
		return err
	}
	return c.bridge.Do(func() error {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br"}}
		if err := netlink.LinkAdd(br); err != nil {
			return fmt.Errorf("make the group's bridge: %w", err)
		}
		return netlink.LinkSetUp(br)
	})
}

// clientNetworks are a network of two addresses a node, out of those for carriers' own use (RFC 6598), that no
// interface here has. The first address is the test's, the next the node's.
func clientNetworks() ([]netip.Prefix, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("look for a free network: %w", err)
	}
	used := func(p netip.Prefix) bool {
		for _, a := range addrs {
			if q, err := netip.ParsePrefix(a.String()); err == nil && q.Overlaps(p) {
				return true
			}
		}
		return false
	}
	for try := range 64 {
		n := os.Getpid()*64 + try + int(clusters.Load())
		block := netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64 + byte(n>>12)&0x3f, byte(n >> 4), byte(n << 4)}), 28)
		if used(block) {
			continue
		}
		out := make([]netip.Prefix, clusterSize)
		a := block.Addr().As4()
		for i := range out {
			out[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{a[0], a[1], a[2], a[3] + byte(4*i) + 1}), 30)
		}
		return out, nil
	}
	return nil, errors.New("every network of 100.64.0.0/10 that was tried is in use here")
}

// connect makes a node's two links.
func (c *Cluster) connect(lab *netlab.Lab, ns *netlab.NS, i int, clientLink string, client netip.Prefix) error {
	err := lab.Veth(netlab.End{Name: clientLink, Addrs: []netip.Prefix{client}},
		netlab.End{NS: ns, Name: "client", Addrs: []netip.Prefix{netip.PrefixFrom(client.Addr().Next(), client.Bits())}}, 1)
	if err != nil {
		return err
	}
	port := fmt.Sprintf("n%d", i)
	err = lab.Veth(netlab.End{NS: c.bridge, Name: port},
		netlab.End{NS: ns, Name: "group", Addrs: []netip.Prefix{netip.MustParsePrefix(groupAddr(i) + "/24")}}, 1)
	if err != nil {
		return err
	}
	return c.bridge.Do(func() error {
		br, err := netlink.LinkByName("br")
		if err != nil {
			return fmt.Errorf("the group's bridge: %w", err)
		}
		link, err := netlink.LinkByName(port)
		if err != nil {
			return fmt.Errorf("node %d at the group's bridge: %w", i, err)
		}
		return netlink.LinkSetMaster(link, br)
	})
}

// Kill ends a node with SIGKILL.
func (c *Cluster) Kill(i int) { c.Nodes[i].Kill() }

// Run starts a node that is not running and waits until it has the cluster's state. When no node is running it
// begins the cluster again, so that the one that was last alive has to be the first.
func (c *Cluster) Run(i int) {
	c.t.Helper()
	c.Nodes[i].Run()
}

// Cut parts a node from the others. Clients still reach it, but it refuses them as soon as it has noticed.
func (c *Cluster) Cut(i int) {
	c.t.Helper()
	c.must(c.setGroup(i, false))
}

// Isolate parts a node from the others and from its clients, whose connections to it hang.
func (c *Cluster) Isolate(i int) {
	c.t.Helper()
	c.must(errors.Join(c.setGroup(i, false), setLink(c.Nodes[i].e.(*galeraNode).clientLink, false)))
}

// Heal ends Cut or Isolate and waits until the node has the cluster's state.
func (c *Cluster) Heal(i int) {
	c.t.Helper()
	c.must(errors.Join(c.setGroup(i, true), setLink(c.Nodes[i].e.(*galeraNode).clientLink, true)))
	c.must(c.Nodes[i].waitReady(startLimit))
}

func (c *Cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *Cluster) setGroup(i int, up bool) error {
	return c.bridge.Do(func() error { return setLink(fmt.Sprintf("n%d", i), up) })
}

func setLink(name string, up bool) error {
	link, err := netlink.LinkByName(name)
	if err == nil && up {
		err = netlink.LinkSetUp(link)
	} else if err == nil {
		err = netlink.LinkSetDown(link)
	}
	if err != nil {
		return fmt.Errorf("set link %s: %w", name, err)
	}
	return nil
}

// install makes the data of the first node, lets it found the cluster and stop, and copies it for the others, which
// then need not fetch the state from each other: that takes longer.
func (n *galeraNode) install(s *Server) error {
	data := filepath.Join(s.dir, "data")
	if n.i == 0 {
		if err := n.mysqld.install(s); err != nil {
			return err
		}
		s.Run()
		s.Stop()
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	_, err := output(s.program(ctx, "cp", "-a", filepath.Join(n.c.Nodes[0].dir, "data"), data))
	return err
}

var (
	recovered = regexp.MustCompile(`WSREP: Recovered position: (\S+:-?\d+)`)
	unclean   = regexp.MustCompile(`(?m)^seqno:\s+-1$`)
)

// command starts the node from where its data is, as Galera's own start script does: without that a node that was
// killed would ask for the whole state.
func (n *galeraNode) command(s *Server) (*exec.Cmd, error) {
	cmd, err := n.mysqld.command(s)
	if err != nil {
		return nil, err
	}
	alone := true
	var peers []string
	for i, other := range n.c.Nodes {
		alone = alone && other.cmd == nil
		peers = append(peers, groupAddr(i))
	}
	wsrep := []string{"--wsrep-on=ON", "--wsrep-provider=" + galeraProvider, "--wsrep-cluster-name=tidegate-test",
		"--wsrep-cluster-address=gcomm://" + strings.Join(peers, ","), "--wsrep-node-address=" + groupAddr(n.i),
		fmt.Sprintf("--wsrep-node-name=n%d", n.i), "--wsrep-sst-method=rsync", "--binlog-format=ROW", "--innodb-autoinc-lock-mode=2",
		// A lost node is noticed within a few seconds, not fifteen.
		"--wsrep-provider-options=gcache.size=32M;evs.suspect_timeout=PT3S;evs.inactive_timeout=PT6S"}
	path := filepath.Join(s.dir, "data", "grastate.dat")
	state, err := os.ReadFile(path) //nolint:gosec // the server's own file
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if unclean.Match(state) {
		position, err := n.recover(s, append(cmd.Args[1:], wsrep...))
		if err != nil {
			return nil, err
		}
		wsrep = append(wsrep, "--wsrep-start-position="+position)
	}
	if alone {
		wsrep = append(wsrep, "--wsrep-new-cluster")
	}
	if alone && err == nil {
		state = []byte(strings.Replace(string(state), "safe_to_bootstrap: 0", "safe_to_bootstrap: 1", 1))
		if err := os.WriteFile(path, state, 0o600); err != nil { //nolint:gosec // as above
			return nil, err
		}
	}
	cmd.Args = append(cmd.Args, wsrep...)
	return cmd, nil
}

// recover finds the position of a killed node's data.
func (n *galeraNode) recover(s *Server, args []string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	report := filepath.Join(s.dir, "recovery.log")
	_ = os.Remove(report) // of an earlier start
	if _, err := output(n.program(ctx, s, n.server, append(args, "--wsrep-recover", "--log-error="+report)...)); err != nil {
		return "", err
	}
	text, err := os.ReadFile(report) //nolint:gosec // the server's own file
	if err != nil {
		return "", err
	}
	m := recovered.FindSubmatch(text)
	if m == nil {
		return "", fmt.Errorf("node %d does not say its position: %s", n.i, text)
	}
	return string(m[1]), nil
}

// ready is nil when the node is a member that has the group's state.
func (n *galeraNode) ready(ctx context.Context, s *Server) error {
	out, err := n.sql(ctx, s, "SHOW STATUS WHERE Variable_name IN ('wsrep_ready', 'wsrep_local_state_comment')")
	if err != nil {
		return err
	}
	if !strings.Contains(out, "ON") || !strings.Contains(out, "Synced") {
		return fmt.Errorf("node %d has not the cluster's state: %s", n.i, strings.Join(strings.Fields(out), " "))
	}
	return nil
}

// Size waits until the running node i sees so many members.
func (c *Cluster) Size(i, members int) {
	c.t.Helper()
	want := fmt.Sprintf("wsrep_cluster_size\t%d\n", members)
	for deadline := time.Now().Add(startLimit); ; time.Sleep(100 * time.Millisecond) {
		if out := c.Nodes[i].SQL("SHOW STATUS LIKE 'wsrep_cluster_size'"); out == want {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("node %d does not see %d members within %s", i, members, startLimit)
		}
	}
}
