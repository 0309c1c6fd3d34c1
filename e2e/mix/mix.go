// Package mix makes good traffic of many kinds through a test link, with real sockets on both sides: all that looks like an
// attack and is none. Every exchange must complete, and none may raise a verdict.
package mix

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tidegate-mesh/tidegate/libs/loadgen"
	"github.com/tidegate-mesh/tidegate/libs/netlab"
)

// Addresses of the generator's side, all in loadgen.BenignPrefix. The generator's namespace takes the whole prefix for its
// own, so that any of it can be a client.
var (
	Scanner   = netip.MustParseAddr("10.20.7.1")
	outside   = netip.MustParseAddr("10.20.3.1") // servers that the protected host asks
	tester    = netip.MustParseAddr("10.20.4.1")
	robot     = netip.MustParseAddr("10.20.6.1")
	vault     = netip.MustParseAddr("10.20.6.2") // what makes backups
	monitor   = netip.MustParseAddr("10.20.6.3")
	browser   = netip.MustParseAddr("10.20.8.1")
	firstGame = netip.MustParseAddr("10.20.5.1")
	firstOne  = netip.MustParseAddr("10.20.1.0") // of a crowd
)

const (
	crowdSize = 512
	patience  = 20 * time.Second // of an exchange: a link that was away comes back within
)

// Mix is the servers of both sides and a count of what was exchanged.
type Mix struct {
	gen, victim *netlab.NS
	outside     *loadgen.Servers
	hello       []byte
	ssh         sshKeys
	closers     []io.Closer
	wg          sync.WaitGroup

	mu      sync.Mutex
	tallies map[string]*Tally
}

// Tally counts exchanges of one kind. Err is the first failure.
type Tally struct {
	Begun, Completed int
	Err              error
}

// New starts the servers. Close stops them.
func New(l *loadgen.Link) (_ *Mix, err error) {
	m := &Mix{gen: l.Gen, victim: l.Victim, tallies: make(map[string]*Tally)}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()
	if err := m.gen.Do(ownBenignPrefix); err != nil {
		return nil, fmt.Errorf("give the generator its clients' addresses: %w", err)
	}
	if m.hello, err = clientHello(); err != nil {
		return nil, err
	}
	if m.ssh, err = newSSHKeys(); err != nil {
		return nil, err
	}
	if m.outside, err = loadgen.StartServers(m.gen, outside); err != nil {
		return nil, err
	}
	for _, side := range []struct {
		ns   *netlab.NS
		addr netip.Addr
	}{{m.victim, loadgen.VictimAddr}, {m.gen, outside}} {
		if err := errors.Join(
			m.serveTCP(side.ns, side.addr, portHello, m.answerHello), m.serveTCP(side.ns, side.addr, portSpeed, answerSpeed),
			m.serveTCP(side.ns, side.addr, portSSH, m.answerSSH), m.serveUDP(side.ns, side.addr, portGame, answerGame),
			m.serveUDP(side.ns, side.addr, portNTP, answerNTP), m.serveUDP(side.ns, side.addr, portSpeed, answerTest),
			m.serveUDP(side.ns, side.addr, portQUIC, answerDownload),
		); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// ownBenignPrefix makes every address of the prefix this namespace's own.
func ownBenignPrefix() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	p := loadgen.BenignPrefix
	return netlink.RouteReplace(&netlink.Route{
		LinkIndex: lo.Attrs().Index, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST,
		Dst: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)},
	})
}

// Close stops the servers and waits for them.
func (m *Mix) Close() error {
	var errs []error
	for _, c := range m.closers {
		errs = append(errs, c.Close())
	}
	if m.outside != nil {
		errs = append(errs, m.outside.Close())
	}
	m.wg.Wait()
	return errors.Join(errs...)
}

// Outward makes connections of the protected host to servers outside: web and DNS, rate times a second.
func (m *Mix) Outward(rate float64, seed uint64) *loadgen.Client {
	return loadgen.NewClient(m.victim, m.outside, []netip.Addr{loadgen.VictimAddr}, outside, rate, seed)
}

// exchange counts what f does.
func (m *Mix) exchange(kind string, f func() error) {
	m.count(kind, func(t *Tally) { t.Begun++ })
	err := f()
	m.count(kind, func(t *Tally) {
		if err == nil {
			t.Completed++
		} else if t.Err == nil {
			t.Err = err
		}
	})
}

func (m *Mix) count(kind string, f func(t *Tally)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.tallies[kind]
	if t == nil {
		t = &Tally{}
		m.tallies[kind] = t
	}
	f(t)
}

// Tallies are copies of the counts, by kind.
func (m *Mix) Tallies() map[string]Tally {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make(map[string]Tally, len(m.tallies))
	for kind, t := range m.tallies {
		out[kind] = *t
	}
	return out
}

// Summary is a line about the counts.
func (m *Mix) Summary() string {
	tallies := m.Tallies()
	var parts []string
	for _, kind := range slices.Sorted(maps.Keys(tallies)) {
		parts = append(parts, fmt.Sprintf("%s %d of %d", kind, tallies[kind].Completed, tallies[kind].Begun))
	}
	return strings.Join(parts, ", ")
}

// every calls f once a period in ns until ctx ends. A call that takes longer delays the next one.
func every(ctx context.Context, ns *netlab.NS, period time.Duration, f func()) error {
	return ns.Do(func() error {
		tick := time.NewTicker(period)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
				f()
			}
		}
	})
}

// Background makes what goes on all the time, until ctx ends: players, time and pings, an automation's SSH sessions, and a
// backup that takes minutes.
func (m *Mix) Background(ctx context.Context) error {
	const players = 8
	jobs := []func() error{
		func() error { return m.backup(ctx) },
		func() error { return every(ctx, m.gen, 6*time.Second, m.command) },
		func() error {
			return every(ctx, m.gen, 5*time.Second, func() { m.askTime(monitor, loadgen.VictimAddr) })
		},
		func() error {
			return every(ctx, m.victim, 5*time.Second, func() { m.askTime(loadgen.VictimAddr, outside) })
		},
		func() error { return m.ping(ctx) },
	}
	player := firstGame
	for range players {
		addr := player
		jobs = append(jobs, func() error { return m.play(ctx, addr) })
		player = player.Next()
	}
	errs := make(chan error, len(jobs))
	for _, job := range jobs {
		go func() { errs <- job() }()
	}
	var err error
	for range jobs {
		err = errors.Join(err, <-errs)
	}
	return err
}
