package xdp

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/policy"
)

// randomListed makes n different entries: hosts, or prefixes of /20 to /31.
func randomListed(n int, hosts bool, seed uint64) []Listed {
	random := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // repeatable
	seen := make(map[netip.Prefix]bool, n)
	out := make([]Listed, 0, n)
	for len(out) < n {
		v := random.Uint32()
		bits := 32
		if !hosts {
			bits = 20 + random.IntN(12)
		}
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}), bits).Masked()
		if !seen[p] {
			seen[p] = true
			out = append(out, Listed{Prefix: p, List: 1, Action: policy.Drop})
		}
	}
	return out
}

func listing(t testing.TB, want []Listed) *Listing {
	t.Helper()
	l, err := NewListing(want)
	must(t, err)
	return l
}

func syncLists(t testing.TB, g *Gate, want []Listed, put, deleted, left int) {
	t.Helper()
	c, err := g.SyncLists(context.Background(), listing(t, want), false, nil)
	must(t, err)
	if put >= 0 && c.Put != put || deleted >= 0 && c.Deleted != deleted || len(c.LeftOut) != left {
		t.Errorf("put %d, deleted %d, left out %d, want %d, %d, %d", c.Put, c.Deleted, len(c.LeftOut), put, deleted, left)
	}
}

func TestSyncLists(t *testing.T) {
	r := newRig(t, 1)
	g := r.open(t, Options{Mode: ModeHost, Geometry: Geometry{Hosts: 4, Prefixes: 4}})
	p := program(t, g)
	from := func(src string) uint32 {
		t.Helper()
		dst := "198.51.100.9"
		if netip.MustParseAddr(src).Is6() {
			dst = "2001:db8::9"
		}
		return send(t, p, udp(src, dst).frame(t))
	}
	expect := func(want uint32, sources ...string) {
		t.Helper()
		for _, s := range sources {
			if got := from(s); got != want {
				t.Errorf("%s: action %d, want %d", s, got, want)
			}
		}
	}
	entry := func(p string, list ListID, a policy.Action) Listed {
		return Listed{Prefix: pfx(p), List: list, Action: a}
	}
	want := []Listed{
		entry("192.0.2.1/32", 1, policy.Drop), entry("2001:db8:1::1/128", 1, policy.Drop),
		entry("203.0.112.0/22", 2, policy.Drop), entry("203.0.113.64/27", 3, policy.Allow), entry("2001:db8:100::/40", 2, policy.Drop),
		entry("192.0.2.1/32", 4, policy.Allow), // the first counts
	}
	syncLists(t, g, want, 5, 0, 0)
	expect(drop, "192.0.2.1", "2001:db8:1::1", "203.0.112.0", "203.0.115.255", "203.0.113.63", "2001:db8:100::1", "2001:db8:1ff:ffff::1")
	expect(pass, "192.0.2.2", "203.0.116.0", "203.0.111.255", "203.0.113.64", "203.0.113.95", "2001:db8:200::1", "2001:db8::1")
	syncLists(t, g, want, 0, 0, 0)

	must(t, g.PauseLists(true))
	expect(pass, "192.0.2.1", "203.0.112.0", "2001:db8:100::1")
	syncLists(t, g, want[:4], 0, 1, 0) // a change while they are paused does not put them back
	expect(pass, "192.0.2.1", "203.0.112.0")
	must(t, g.PauseLists(false))
	expect(drop, "192.0.2.1", "203.0.112.0")
	expect(pass, "2001:db8:100::1")

	// An entry changes its list and action in its place; what is over goes, and its bits with it.
	syncLists(t, g, []Listed{entry("192.0.2.1/32", 5, policy.Count), entry("203.0.113.64/27", 3, policy.Drop)}, 2, 2, 0)
	expect(pass, "192.0.2.1", "203.0.112.0", "2001:db8:1::1")
	expect(drop, "203.0.113.64")
	if c, err := g.covered(atOnce); err != nil || ones(c) != 1 {
		t.Errorf("%d bits are set, %v: want 1", ones(c), err)
	}

	// What is kept stays without being named.
	c, err := g.SyncLists(context.Background(), listing(t, nil), false, map[ListID]bool{3: true})
	must(t, err)
	if c.Put != 0 || c.Deleted != 1 {
		t.Errorf("with a list to keep: %+v", c)
	}
	expect(drop, "203.0.113.64")

	// A full map: the last are left out and named.
	var many []Listed
	for i := range 6 {
		many = append(many, entry(fmt.Sprintf("192.0.2.%d/32", i), 1, policy.Drop))
	}
	syncLists(t, g, many, 4, 1, 2)
	expect(drop, "192.0.2.0", "192.0.2.3")
	expect(pass, "192.0.2.4", "203.0.113.64")
	syncLists(t, g, nil, 0, 4, 0)
	if c, err := g.config(); err != nil || c.HostsUsed != 0 || c.PrefixesUsed != 0 {
		t.Errorf("empty lists are looked at: %+v, %v", c, err)
	}
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := g.SyncLists(cancelled, listing(t, many), false, nil); err == nil {
		t.Error("a sync that was cancelled reports no error")
	}
	for _, bad := range []Listed{{}, {Prefix: pfx("192.0.2.0/24"), List: maxLists, Action: policy.Drop}, {Prefix: pfx("192.0.2.0/24"), Action: policy.RateLimit}} {
		if _, err := NewListing([]Listed{bad}); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
	// Wide prefixes set many bits at once.
	syncLists(t, g, []Listed{entry("0.0.0.0/0", 1, policy.Drop), entry("2000::/3", 1, policy.Drop)}, 2, 0, 0)
	expect(drop, "1.2.3.4", "255.0.0.1", "2001:db8::1", "3fff::1")
	expect(pass, "fd00::1")
}

func ones(c coverage) (n int) {
	for _, line := range c {
		for _, w := range line {
			n += bits.OnesCount64(w)
		}
	}
	return n
}

// TestSyncListsRandom asks the program about random sources beside a plain search.
func TestSyncListsRandom(t *testing.T) {
	r := newRig(t, 1)
	g := r.open(t, Options{Mode: ModeHost})
	p := program(t, g)
	list := randomListed(20_000, false, 7)
	syncLists(t, g, list, len(list), 0, 0)
	random := rand.New(rand.NewPCG(3, 4)) //nolint:gosec // repeatable
	hits := 0
	for range 2000 {
		near := list[random.IntN(len(list))].Prefix.Addr().As4() // at most about 16 /24s away
		v := binary.BigEndian.Uint32(near[:]) ^ random.Uint32N(1<<12)
		a := netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
		want := uint32(pass)
		for i := range list {
			if list[i].Prefix.Contains(a) {
				want = drop
				hits++
				break
			}
		}
		if got := send(t, p, udp(a.String(), "198.51.100.9").frame(t)); got != want {
			t.Fatalf("%s: action %d, want %d", a, got, want)
		}
	}
	if hits < 200 || hits > 1900 {
		t.Errorf("%d of 2000 sources were listed: the test says little", hits)
	}
}

// TestSyncMillion: a million entries are there, and again after a new Open without a write.
func TestSyncMillion(t *testing.T) {
	for _, hosts := range []bool{true, false} {
		t.Run(fmt.Sprint("hosts ", hosts), func(t *testing.T) {
			r := newRig(t, 1)
			g := r.open(t, Options{Mode: ModeHost})
			list := randomListed(1_000_000, hosts, 1)
			begin := time.Now()
			syncLists(t, g, list, len(list), 0, 0)
			first := time.Since(begin)
			must(t, g.Close())
			g = r.open(t, Options{Mode: ModeKeep})
			begin = time.Now()
			syncLists(t, g, list, 0, 0, 0)
			t.Logf("first sync %s, nothing to do %s", first.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond))
		})
	}
}
