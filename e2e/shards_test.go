package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/dbtest"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
	"github.com/tidegate-mesh/tidegate/libs/pki"
	"github.com/tidegate-mesh/tidegate/libs/token"
)

// site is a link with a sensor and an enforce node of its own.
type site struct {
	name   string
	ingest *rig.Process
	link   *loadgen.Link
	client *loadgen.Client
	sender *loadgen.Sender
	mark   *loadgen.Mark
}

// flood sends so many packets of an attack and returns how many arrived.
func (s *site) flood(t *testing.T, f *loadgen.Frames, pps, packets int) (arrived uint64) {
	before, err := s.link.Counter.Counts()
	if err != nil {
		t.Error(err)
		return 0
	}
	if _, err := s.sender.Send(t.Context(), f.Next, pps, uint64(packets)); err != nil { //nolint:gosec // small
		t.Error(err)
	}
	time.Sleep(300 * time.Millisecond)
	after, err := s.link.Counter.Counts()
	if err != nil {
		t.Error(err)
	}
	return after.Attack - before.Attack
}

// wide is a mesh with two sites and two classifiers.
type wide struct {
	sites     [2]*site
	classify  map[string]*rig.Process // by the address that sensors have
	addresses [2]string
	gateway   *rig.Gateway
	database  *rig.Database
}

// elsewhere are networks of which at least one is the other classifier's than the victim's.
var elsewhere = netip.MustParsePrefix("203.0.0.0/8")

func newWide(t *testing.T) *wide {
	t.Helper()
	rig.NeedRoot(t)
	m := &wide{classify: map[string]*rig.Process{}}
	certs := rig.Certs(t)
	_, natsURL := rig.NATS(t, certs)
	m.database = rig.NewDatabase(t, dbtest.PostgreSQL)
	env := append(m.database.Env(), "TIDEGATE_TLS_DIR="+certs, "NATS_URL="+natsURL)
	var services []string
	start := func(name string, args ...string) (*rig.Process, string) {
		addr := rig.FreeAddr(t)
		services = append(services, "--"+name, addr)
		args = append(args, "--listen", addr, "--metrics-listen", rig.FreeAddr(t))
		return rig.Start(t, rig.Binary(t, "tidegate-"+name), env, args...), addr
	}
	protected := []string{"--protected", loadgen.VictimAddr.String(), "--protected", elsewhere.String()}
	start("persist")
	flags := append([]string{"--mode", "inline"}, protected...)
	for i := range m.addresses {
		p, addr := start("classify", append(protected, "--instance", fmt.Sprintf("classify-%d", i+1))...)
		m.classify[addr], m.addresses[i] = p, addr
		flags = append(flags, "--classify", addr)
	}
	for i := range m.sites {
		s := &site{name: fmt.Sprintf("site-%d", i+1), link: rig.Link(t, loadgen.LinkOptions{Prefix: "tgsit" + string(rune('a'+i))})}
		ports := []string{"--iface", s.link.PortA, "--iface", s.link.PortB, "--bpffs", s.link.BPFFS, "--instance", s.name}
		start("enforce", append(ports, "--enforce", "--node", s.name)...)
		s.ingest, _ = start("ingest", append(append(ports, "--sensor", s.name), flags...)...)
		var err error
		if s.sender, err = s.link.Sender(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.sender.Close() })
		s.client = s.link.Client(40, uint64(i+1)) //nolint:gosec // small
		m.sites[i] = s
	}
	m.gateway = rig.NewGateway(t, certs, pki.FilesOf(certs, pki.Gateway).CA)
	rig.Start(t, rig.Binary(t, "tidegate-gateway"), env, append(services, "--listen", m.gateway.Addr, "--metrics-listen", rig.FreeAddr(t),
		"--jwks-file", filepath.Join(certs, token.JWKSFile))...)
	m.gateway.WaitReady(t, 7, 60*time.Second)
	return m
}

// attack sends a flood toward target through both sites at once: after the first two seconds, which are for detecting, at most
// 1% may arrive at either.
func (m *wide) attack(t *testing.T, kind string, target netip.Addr, seed uint64) {
	t.Helper()
	const pps = 25000
	done := make(chan struct{})
	for _, s := range m.sites {
		frames, err := loadgen.NewFrames(loadgen.Attack{
			Kind: kind, Seed: seed, Target: target, SrcMAC: [6]byte(loadgen.GeneratorMAC), DstMAC: [6]byte(loadgen.VictimMAC),
			Avoid: []netip.Prefix{loadgen.BenignPrefix, netip.PrefixFrom(loadgen.GeneratorAddr, 24).Masked()},
		})
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			defer func() { done <- struct{}{} }()
			s.flood(t, frames, pps, 2*pps)
			arrived := s.flood(t, frames, pps, 2*pps)
			t.Logf("%s, seed %d through %s: %d of %d packets arrived after detection", target, seed, s.name, arrived, 2*pps)
			if arrived > 2*pps/100 {
				t.Errorf("%s through %s: %d of %d packets arrived after detection, want at most 1%%", target, s.name, arrived, 2*pps)
			}
		}()
	}
	for range m.sites {
		<-done
	}
}

// started lists the ids of attacks on target, each once, that a classifier has told the beginning of.
func started(p *rig.Process, target netip.Addr) (ids []string) {
	for line := range strings.SplitSeq(p.Log(), "\n") {
		var l struct{ Msg, Target, Attack string }
		if json.Unmarshal([]byte(line), &l) == nil && l.Msg == "attack started" && l.Target == target.String() && !slices.Contains(ids, l.Attack) {
			ids = append(ids, l.Attack)
		}
	}
	return ids
}

// owner is the classifier that has found attacks on target, and their ids.
func (m *wide) owner(t *testing.T, target netip.Addr) (addr string, ids []string) {
	t.Helper()
	for a, p := range m.classify {
		if found := started(p, target); len(found) > 0 {
			if addr != "" {
				t.Fatalf("both classifiers found attacks on %s", target)
			}
			addr, ids = a, found
		}
	}
	if addr == "" {
		t.Fatalf("no classifier found an attack on %s", target)
	}
	return addr, ids
}

// shares waits until the share of a classifier is as wanted at both sensors, and returns how long that took.
func (m *wide) shares(t *testing.T, addr, what string, ok func(share float64) bool) time.Duration {
	t.Helper()
	begun := time.Now()
	c := m.gateway.Client(t, "viewer")
	err := rig.Eventually(30*time.Second, func() error {
		s, err := c.Status(t.Context())
		if err != nil {
			return err
		}
		sums, good := map[string]float64{}, 0
		for _, x := range s.Streams {
			sums[x.Sensor] += x.Share
			if x.Address == addr && ok(x.Share) {
				good++
			}
		}
		for _, s := range m.sites {
			if sums[s.name] < 0.999 || sums[s.name] > 1.001 {
				return fmt.Errorf("the shares of %s add up to %v", s.name, sums[s.name])
			}
		}
		if good != len(m.sites) {
			return fmt.Errorf("%s: streams %+v", what, s.Streams)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return time.Since(begun)
}

// TestFullTwoClassifiersTwoNodes: two sensors share their networks out among two classifiers, and both enforce nodes have
// the rules of either. While one classifier stands still, the other goes on with its attack, under its id; then it gets back
// what is its own. Nothing is lost meanwhile, and good traffic goes on.
func TestFullTwoClassifiersTwoNodes(t *testing.T) {
	m := newWide(t)
	db := m.database.Open(t)
	for _, s := range m.sites {
		defer background(s.client)()
	}
	time.Sleep(3 * time.Second)
	for _, s := range m.sites {
		s.mark = s.client.SetMark()
	}

	victim := loadgen.VictimAddr
	m.attack(t, loadgen.UDPFlood, victim, 11)
	home, _ := m.owner(t, victim)
	var other string
	for i := range byte(24) {
		target := netip.AddrFrom4([4]byte{203, i, 113, 10})
		m.attack(t, loadgen.SYNFlood, target, 21)
		if other, _ = m.owner(t, target); other != home {
			t.Logf("%s is %s's, %s is %s's", victim, home, target, other)
			break
		}
	}
	if other == home {
		t.Fatal("one classifier has every network")
	}
	m.shares(t, home, "both have a part", func(share float64) bool { return share > 0.3 && share < 0.7 })

	m.attack(t, loadgen.UDPFlood, victim, 14)
	_, ids := m.owner(t, victim)
	id := ids[len(ids)-1]
	m.classify[home].Signal(syscall.SIGSTOP)
	m.shares(t, home, "they move", func(share float64) bool { return share == 0 })
	for _, s := range m.sites {
		for line := range strings.SplitSeq(s.ingest.Log(), "\n") {
			var l struct{ Msg, Silent string }
			if json.Unmarshal([]byte(line), &l) == nil && l.Silent != "" {
				t.Logf("%s moved the networks after %s without an acknowledgement", s.name, l.Silent)
			}
		}
	}
	time.Sleep(2 * time.Second)               // the other meets the clients of the victim
	m.attack(t, loadgen.UDPFlood, victim, 12) // other sources, which no rule stops so far
	if got := started(m.classify[other], victim); len(got) != 1 || got[0] != id {
		t.Errorf("the other classifier began the attacks %v on %s, want to go on with %s", got, victim, id)
	}

	m.classify[home].Signal(syscall.SIGCONT)
	t.Logf("they came home after %v", m.shares(t, home, "they come home", func(share float64) bool { return share > 0.3 && share < 0.7 }).Round(time.Millisecond))
	time.Sleep(time.Second)
	m.attack(t, loadgen.UDPFlood, victim, 13)

	for _, s := range m.sites {
		s.client.ClearMark()
	}
	time.Sleep(3500 * time.Millisecond) // the longest a benign exchange may take
	for _, s := range m.sites {
		st := s.mark.Stats()
		t.Logf("%s: %d of %d benign connections completed", s.name, st.Completed, st.Begun)
		if st.Begun < 200 || float64(st.Completed) < 0.95*float64(st.Begun) {
			t.Errorf("%s: %d of %d benign connections completed, want at least 95%% of at least 200", s.name, st.Completed, st.Begun)
		}
	}
	// Both told of one attack, and one of them in the end that it was over.
	err := rig.Eventually(60*time.Second, func() error {
		if n := count(t, db, "SELECT count(DISTINCT id) FROM attacks WHERE target = $1", victim.String()); n != len(ids) {
			return fmt.Errorf("%d attacks on the victim, want %d", n, len(ids))
		}
		if count(t, db, "SELECT count(*) FROM attacks WHERE id = $1 AND state = 'ended' AND revision = (SELECT max(revision) FROM attacks WHERE id = $1)", id) == 0 {
			return fmt.Errorf("attack %s is not over", id)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	for _, s := range m.sites {
		if n := count(t, db, "SELECT count(DISTINCT rule_id) FROM enforcements WHERE node = $1 AND state = 'first_drop'", s.name); n < 2 {
			t.Errorf("%s dropped by %d rules", s.name, n)
		}
	}
	m.gateway.WaitBalanced(t, time.Minute)
}
