package verdict

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/detect"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/header"
)

var (
	target = netip.MustParseAddr("203.0.113.10")
	single = netip.PrefixFrom(target, 32)
)

const began = int64(1e18)

// syn makes n SYN samples; sources come from src.
func syn(n int, src func(i int) netip.Addr, edit func(i int, f *header.Facts)) []header.Facts {
	out := make([]header.Facts, n)
	for i := range out {
		f := &out[i]
		*f = header.Facts{Src: src(i).As16(), Dst: target.As16(), SrcPort: uint16(1024 + i*7), DstPort: 443, Length: 60, TTL: 64, Protocol: 6, Flags: policy.SYN} //nolint:gosec // few
		if edit != nil {
			edit(i, f)
		}
	}
	return out
}

func random(seed uint64) func(int) netip.Addr {
	rng := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // reproducible
	return func(int) netip.Addr {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], rng.Uint32())
		b[0] = 16 + b[0]%200
		return netip.AddrFrom4(b)
	}
}

func client(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, byte(i / 200), byte(1 + i%200)}) } //nolint:gosec // few

func peersOf(n int, addr func(int) netip.Addr) *Peers {
	p := NewPeers()
	for i := range n {
		p.Observe(flow.Key{Src: addr(i).As16(), Dst: target.As16(), DstPort: 443, Protocol: 6}, began-int64(60e9))
	}
	return p
}

func TestChoose(t *testing.T) {
	good := syn(64, client, nil)
	one := func(int) netip.Addr { return netip.MustParseAddr("192.0.2.66") }
	tests := []struct {
		name   string
		in     Input
		key    string
		match  string // of the first rule
		allows bool
	}{
		{"one source", Input{Attack: syn(64, one, nil), Good: good, Sources: 1}, KeySources,
			"proto 6 src 192.0.2.66/32 dst 203.0.113.10/32", false},
		{"sixteen sources", Input{Attack: syn(64, func(i int) netip.Addr { return client(i%16 + 5000) }, nil), Good: good, Sources: 16}, KeySources,
			"proto 6 src 10.1.25.1/32 dst 203.0.113.10/32", false},
		{"length", Input{Attack: syn(64, random(1), func(_ int, f *header.Facts) { f.Length = 40 }), Good: good, Sources: 900}, KeySignature,
			"proto 6 dst 203.0.113.10/32 dport 443 flags S/FSRA length 0-49", true},
		{"ttl", Input{Attack: syn(64, random(2), func(i int, f *header.Facts) { f.TTL = uint8(100 + i%10) }), Good: good, Sources: 900}, KeySignature, //nolint:gosec // few
			"proto 6 dst 203.0.113.10/32 dport 443 flags S/FSRA ttl 83-0", true},
		{"flags", Input{Attack: syn(64, random(3), func(_ int, f *header.Facts) { f.Flags = policy.SYN | policy.ECE | policy.CWR }), Good: good, Sources: 900}, KeySignature,
			"proto 6 dst 203.0.113.10/32 dport 443 flags SEC/FSRPAUEC", true},
		{"other port", Input{Attack: syn(64, random(4), func(_ int, f *header.Facts) { f.DstPort = 25565 }), Good: good, Sources: 900}, KeySignature,
			"proto 6 dst 203.0.113.10/32 dport 25565 flags S/FSRA", true},
		{"random ports", Input{Attack: syn(64, random(5), func(i int, f *header.Facts) { f.DstPort = uint16(i * 9); f.Length = 44 }), Good: good, Sources: 900}, KeySignature, //nolint:gosec // few
			"proto 6 dst 203.0.113.10/32 flags S/FSRA length 0-51", true},
		{"look-alike", Input{Attack: syn(64, random(6), nil), Good: good, Sources: 900}, KeySignature,
			"proto 6 dst 203.0.113.10/32 dport 443 flags S/FSRA", true},
		{"nothing known", Input{Attack: syn(64, random(7), nil), Sources: 900}, KeySignature,
			"proto 6 dst 203.0.113.10/32 dport 443 flags S/FSRA length 60-60", true},
		{"tight spread is no bound", Input{Attack: syn(64, random(8), func(i int, f *header.Facts) { f.TTL = uint8(66 + i%24) }), Good: good, Sources: 900}, KeySignature, //nolint:gosec // few
			"proto 6 dst 203.0.113.10/32 dport 443 flags S/FSRA", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.in.Type, tt.in.Target, tt.in.FirstNs, tt.in.Peers = detect.SYNFlood, single, began, peersOf(100, client)
			c, ok := Choose(&tt.in)
			if !ok || c.Key != tt.key || c.Rules[0].Match.String() != tt.match {
				t.Errorf("got %s %q, want %s %q", c.Key, c.Rules[0].Match.String(), tt.key, tt.match)
			}
			if retry := tt.name == "look-alike" || tt.name == "nothing known" || tt.name == "tight spread is no bound"; retry != c.Rules[0].SYNRetry ||
				retry != (c.Rules[0].Action == policy.RateLimit) || retry != (c.Rules[0].RatePPS > 0) || retry != strings.Contains(c.Explanation, "come again") {
				t.Errorf("retries are waited for: %v, want %v: %s", c.Rules[0].SYNRetry, retry, c.Explanation)
			}
			if allows := len(c.Rules) > 1 && c.Rules[len(c.Rules)-1].Action == policy.Allow; allows != tt.allows {
				t.Errorf("exceptions: %v, want %v", allows, tt.allows)
			}
			if c.AttackShare < minAttackShare || c.Explanation == "" {
				t.Errorf("share %v, explanation %q", c.AttackShare, c.Explanation)
			}
			for _, r := range c.Rules {
				if err := r.Match.Validate(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	if _, ok := Choose(&Input{Type: detect.SYNFlood, Target: single}); ok {
		t.Error("a choice from no samples")
	}
}

// TestExceptions: known peers get through a look-alike flood, attackers among them do not, and exceptions stay
// few and narrow where the attack is dense.
func TestExceptions(t *testing.T) {
	scattered := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{byte(20 + i%150), byte(i), byte(i * 3), 7}) } //nolint:gosec // few
	near := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, byte(i * 3), byte(i * 5)}) }                //nolint:gosec // few
	for _, tt := range []struct {
		name   string
		peers  int
		peer   func(int) netip.Addr
		attack func(int) netip.Addr
		rules  int // at most
		reach  int // peers let through, at least
		leak   int // attack samples let through, at most
	}{
		{"one network", 400, client, random(1), 1, 400, 0},
		{"scattered", 50, scattered, random(2), 50, 45, 0},
		{"too many", 1000, scattered, random(3), MaxAllows, 40, 0},
		{"attack from the peers' network", 60, client, near, 60, 50, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := Input{Type: detect.SYNFlood, Target: single, FirstNs: began, Attack: syn(64, tt.attack, nil), Good: syn(64, tt.peer, nil), Sources: 900,
				Peers: peersOf(tt.peers, tt.peer)}
			c, _ := Choose(&in)
			reach, leak := 0, 0
			for i := range tt.peers {
				reach += allowed(&c, syn(1, func(int) netip.Addr { return tt.peer(i) }, nil)[0])
			}
			for _, f := range in.Attack {
				leak += allowed(&c, f)
			}
			if n := len(c.Rules) - 1; n > tt.rules || reach < tt.reach || leak > tt.leak {
				t.Errorf("%d exceptions, %d peers and %d attack packets get through", n, reach, leak)
			}
		})
	}
}

func allowed(c *Choice, f header.Facts) int {
	for i := range c.Rules {
		if c.Rules[i].Action == policy.Allow && f.Matched(&c.Rules[i].Match) {
			return 1
		}
	}
	return 0
}

// TestAmplification: resolvers that the target asked are let through, later fragments of the answers are not.
func TestAmplification(t *testing.T) {
	p := NewPeers()
	resolver := netip.MustParseAddr("9.9.9.9")
	p.Observe(flow.Key{Src: target.As16(), Dst: resolver.As16(), SrcPort: 5000, DstPort: 53, Protocol: 17}, began-int64(1e9))
	answers := syn(64, random(4), func(_ int, f *header.Facts) {
		f.Protocol, f.SrcPort, f.DstPort, f.Flags, f.Length = 17, 53, f.SrcPort, 0, 1200
	})
	c, ok := Choose(&Input{Type: detect.AmpDNS, Target: single, FirstNs: began, Attack: answers, Sources: 900, Peers: p, Fragments: 0.3})
	if !ok || len(c.Rules) != 3 {
		t.Fatalf("choice %+v", c)
	}
	if m := c.Rules[1].Match; m.Fragment != policy.FragmentsOnly || m.HasSrcPort {
		t.Errorf("second rule %s", m.String())
	}
	f := header.Facts{Src: resolver.As16(), Dst: target.As16(), SrcPort: 53, DstPort: 6000, Protocol: 17, Length: 1200, TTL: 60}
	if allowed(&c, f) != 1 {
		t.Errorf("the target's resolver is not let through: %v", c.Rules[2].Match)
	}
}

func TestPeersAreBounded(t *testing.T) {
	p := NewPeers()
	for i := range uint32(MaxPeers + 100) {
		var a [16]byte
		binary.BigEndian.PutUint32(a[12:], i)
		p.Observe(flow.Key{Src: a, Dst: target.As16(), Protocol: 6}, began+int64(i))
	}
	if n := len(p.sets[target.As16()].peers); n != MaxPeers || p.Evicted == 0 {
		t.Errorf("%d peers, %d evicted", n, p.Evicted)
	}
	for i := range uint32(MaxDestinations + 100) {
		var a [16]byte
		binary.BigEndian.PutUint32(a[8:], i+1)
		p.Observe(flow.Key{Src: target.As16(), Dst: a, Protocol: 17, DstPort: 53}, began)
	}
	if len(p.sets) > MaxDestinations {
		t.Errorf("%d destinations", len(p.sets))
	}
	// A UDP peer that came just before an attack may be the attack.
	var late [16]byte
	p.Observe(flow.Key{Src: late, Dst: target.As16(), Protocol: 17}, began-1e9)
	if p.Trusted(target.As16(), late, 17, 5000, began) {
		t.Error("a peer of the last second is trusted")
	}
	// Unless it has proved its address by a connection, which alone is not enough either.
	proved := [16]byte{15: 9}
	p.Observe(flow.Key{Src: proved, Dst: target.As16(), Protocol: 6}, began-1e9)
	if p.Trusted(target.As16(), proved, 17, 5000, began) {
		t.Error("UDP is trusted that the target never answered")
	}
	p.Observe(flow.Key{Src: proved, Dst: target.As16(), Protocol: 17}, began-1e9)
	if !p.Trusted(target.As16(), proved, 17, 5000, began) {
		t.Error("UDP of a peer with a connection is not trusted")
	}
}

func TestBaseline(t *testing.T) {
	var b Baseline
	kind := func(f *header.Facts) bool { return f.Flags == policy.SYN }
	b.Stage(100, &detect.Sums{SYN: 5}, syn(20, client, nil))
	if got, _ := b.Good(kind); len(got) != 0 {
		t.Errorf("%d samples count at once", len(got))
	}
	b.Stage(105, &detect.Sums{SYN: 5}, syn(20, client, nil))
	b.Stage(110, &detect.Sums{SYN: 5}, nil)
	if got, rate := b.Good(kind); len(got) != stagedPerClass || rate != 5 {
		t.Errorf("%d samples, rate %v", len(got), rate)
	}
	b.Drop()
	b.Stage(200, &detect.Sums{}, nil)
	if got, _ := b.Good(kind); len(got) != stagedPerClass {
		t.Errorf("dropped samples count: %d", len(got))
	}
}

// TestNetwork: a flood over a /24 gets one rule for the network, and peers of its hosts get through to all of it.
func TestNetwork(t *testing.T) {
	network := netip.MustParsePrefix("203.0.113.0/24")
	over := func(i int, f *header.Facts) {
		f.Dst = netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}).As16() //nolint:gosec // few
		f.Length = 40
	}
	p := peersOf(20, client)
	other := netip.MustParseAddr("203.0.113.77")
	p.Observe(flow.Key{Src: client(0).As16(), Dst: other.As16(), DstPort: 443, Protocol: 6}, began-int64(60e9))
	p.Observe(flow.Key{Src: netip.MustParseAddr("192.0.2.9").As16(), Dst: other.As16(), DstPort: 443, Protocol: 6}, began-int64(60e9))
	p.Observe(flow.Key{Src: netip.MustParseAddr("198.18.0.1").As16(), Dst: netip.MustParseAddr("203.0.114.1").As16(), DstPort: 443, Protocol: 6}, began-int64(60e9))
	in := Input{Type: detect.SYNFlood, Target: network, FirstNs: began, Attack: syn(64, random(9), over), Good: syn(64, client, nil), Sources: 900, Peers: p}
	c, ok := Choose(&in)
	if !ok || c.Key != KeySignature || c.Rules[0].Match.String() != "proto 6 dst 203.0.113.0/24 dport 443 flags S/FSRA length 0-49" {
		t.Fatalf("got %s %q", c.Key, c.Rules[0].Match.String())
	}
	allowed := func(src netip.Addr) bool {
		for _, r := range c.Rules[1:] {
			if r.Match.Dst != network {
				t.Errorf("an exception for %v", r.Match.Dst)
			}
			if r.Match.Src.Contains(src) {
				return true
			}
		}
		return false
	}
	if !allowed(client(0)) || !allowed(netip.MustParseAddr("192.0.2.9")) || allowed(netip.MustParseAddr("198.18.0.1")) {
		t.Errorf("exceptions: %v", c.Rules[1:])
	}
	one := syn(64, func(int) netip.Addr { return netip.MustParseAddr("192.0.2.66") }, over)
	if c, ok = Choose(&Input{Type: detect.UDPFlood, Target: network, FirstNs: began, Attack: one, Sources: 1, Peers: p}); !ok || c.Key != KeySources ||
		c.Rules[0].Match.Dst != network {
		t.Errorf("one source: %s %v", c.Key, c.Rules)
	}
}

// TestAskedPorts: of the ports that a host asked of a peer the newest four are known.
func TestAskedPorts(t *testing.T) {
	p := NewPeers()
	host, peer := [16]byte{15: 1}, [16]byte{15: 2}
	for port := range uint16(11) {
		p.Observe(flow.Key{Src: host, Dst: peer, Protocol: 17, SrcPort: 999, DstPort: port + 1}, 1e18)
	}
	for port := range uint16(11) {
		if got, want := p.Known(host, peer).AskedPort(port+1), port >= 7; got != want {
			t.Errorf("port %d is known: %v, want %v", port+1, got, want)
		}
	}
}
