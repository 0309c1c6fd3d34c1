package classify

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/detect"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/usual"
)

// EngineConfig says what is protected and from when on traffic counts as an attack. Rates are per second and
// destination.
type EngineConfig struct {
	Protected []string `name:"protected" help:"Prefix whose hosts are protected (repeatable); none: every address." placeholder:"CIDR"`
	Groups    []Group  `name:"group" help:"Group of protected prefixes with thresholds of its own (repeatable): name;CIDR,CIDR;threshold=value;… In one value several are separated by |." sep:"|" placeholder:"GROUP"`

	SYN        float64 `name:"syn-threshold" default:"150" help:"syn_flood: SYNs beyond twice the completed handshakes."`
	UDPPackets float64 `name:"udp-threshold" default:"20000" help:"udp_flood: packets."`
	UDPBits    float64 `name:"udp-bits-threshold" default:"500000000" help:"udp_flood: bits."`
	ICMP       float64 `name:"icmp-threshold" default:"500" help:"icmp_flood: echo requests and unreachables."`
	DNSAnswers float64 `name:"dns-threshold" default:"300" help:"amp_dns: unsolicited DNS answers."`
	NTPAnswers float64 `name:"ntp-threshold" default:"300" help:"amp_ntp: unsolicited packets from port 123."`
	ScanPorts  float64 `name:"scan-ports" default:"8" help:"port_scan: distinct ports of a host that refused or did not answer."`
	ScanHosts  float64 `name:"scan-hosts" default:"8" help:"host_sweep: distinct hosts that refused or did not answer."`

	Lease      time.Duration `name:"lease" default:"15s" help:"How long a rule lives unless it is hit; enforce renews it while it is."`
	Shadow     []string      `name:"shadow" help:"Attack types whose rules only count what they would keep back, until enforce promotes them or a user changes them (repeatable); all: every type." placeholder:"TYPE"`
	Quiet      time.Duration `name:"quiet" default:"10s" help:"How long an attack must be below half its threshold and not be dropped to count as ended."`
	MaxFlows   int           `name:"max-flows" default:"1000000" help:"Flows remembered; the one idle longest among a few makes room."`
	MaxTargets int           `name:"max-targets" default:"2048" help:"Destinations whose traffic is watched."`
	MaxSources int           `name:"max-sources" default:"8192" help:"Sources remembered for scans."`

	UsualDays   int     `name:"usual-days" default:"7" help:"Days from which it is learned what is usual for a host, which then gets higher thresholds; 0: nothing is learned."`
	UsualFactor float64 `name:"usual-factor" default:"3" help:"How many times the p95 of these days a host may get before it counts as attacked."`

	// LabelsOnly: flows are labelled and nothing watches for attacks, as for captures that nobody asked to judge.
	LabelsOnly bool `kong:"-" yaml:"-" json:"-"`
	// Now gives Unix ns for the times of decisions and leases; nil takes the windows' own clock, as for captures.
	Now func() int64 `kong:"-" yaml:"-" json:"-"`
}

// DefaultEngineConfig is what the flags default to.
func DefaultEngineConfig() EngineConfig {
	return EngineConfig{
		SYN: 150, UDPPackets: 20_000, UDPBits: 500e6, ICMP: 500, DNSAnswers: 300, NTPAnswers: 300, ScanPorts: 8, ScanHosts: 8,
		Lease: 15 * time.Second, Quiet: 10 * time.Second, MaxFlows: 1_000_000, MaxTargets: 2_048, MaxSources: 8_192,
		UsualDays: 7, UsualFactor: 3,
	}
}

// shadows reports whether rules against a type of attack only count.
func (c *EngineConfig) shadows(typ string) bool {
	return slices.Contains(c.Shadow, typ) || slices.Contains(c.Shadow, "all")
}

// Group is a set of protected prefixes with thresholds of its own. As text:
// name;192.0.2.0/24,2001:db8::/32;syn=300;udp=50000. Thresholds left out are the engine's.
type Group struct {
	Name       string
	Prefixes   []netip.Prefix
	Thresholds map[string]float64
}

// thresholdNames are the keys of Group.Thresholds.
var thresholdNames = map[string]func(t *detect.Thresholds) *float64{
	"syn":         func(t *detect.Thresholds) *float64 { return &t.SYN },
	"udp":         func(t *detect.Thresholds) *float64 { return &t.UDPPackets },
	"udp-bits":    func(t *detect.Thresholds) *float64 { return &t.UDPBits },
	"icmp":        func(t *detect.Thresholds) *float64 { return &t.ICMP },
	"dns":         func(t *detect.Thresholds) *float64 { return &t.DNSAnswers },
	"dns-sources": func(t *detect.Thresholds) *float64 { return &t.DNSSources },
	"dns-bits":    func(t *detect.Thresholds) *float64 { return &t.DNSBits },
	"ntp":         func(t *detect.Thresholds) *float64 { return &t.NTPAnswers },
	"monlist":     func(t *detect.Thresholds) *float64 { return &t.NTPMonlist },
	"ports":       func(t *detect.Thresholds) *float64 { return &t.ScanPorts },
	"hosts":       func(t *detect.Thresholds) *float64 { return &t.ScanHosts },
	"fast-ports":  func(t *detect.Thresholds) *float64 { return &t.FastPorts },
	"fast-hosts":  func(t *detect.Thresholds) *float64 { return &t.FastHosts },
	"arp-hosts":   func(t *detect.Thresholds) *float64 { return &t.ARPHosts },

	"ack":            func(t *detect.Thresholds) *float64 { return &t.ACK },
	"rst-fin":        func(t *detect.Thresholds) *float64 { return &t.RSTFIN },
	"syn-ack":        func(t *detect.Thresholds) *float64 { return &t.SYNACK },
	"syn-ack-again":  func(t *detect.Thresholds) *float64 { return &t.SYNACKAgain },
	"invalid-flags":  func(t *detect.Thresholds) *float64 { return &t.Invalid },
	"fragments":      func(t *detect.Thresholds) *float64 { return &t.Fragments },
	"amp":            func(t *detect.Thresholds) *float64 { return &t.AmpPackets },
	"amp-sources":    func(t *detect.Thresholds) *float64 { return &t.AmpSources },
	"amp-bits":       func(t *detect.Thresholds) *float64 { return &t.AmpBits },
	"flows":          func(t *detect.Thresholds) *float64 { return &t.Flows },
	"http-pair":      func(t *detect.Thresholds) *float64 { return &t.HTTPPair },
	"http":           func(t *detect.Thresholds) *float64 { return &t.HTTP },
	"dns-names":      func(t *detect.Thresholds) *float64 { return &t.DNSNames },
	"dns-queries":    func(t *detect.Thresholds) *float64 { return &t.DNSQueries },
	"logins":         func(t *detect.Thresholds) *float64 { return &t.Logins },
	"unfinished":     func(t *detect.Thresholds) *float64 { return &t.Stalled },
	"dns-data":       func(t *detect.Thresholds) *float64 { return &t.DNSData },
	"changed-echoes": func(t *detect.Thresholds) *float64 { return &t.EchoData },
	"carpet":         func(t *detect.Thresholds) *float64 { return &t.Carpet },
	"arp-flips":      func(t *detect.Thresholds) *float64 { return &t.ARPFlips },
}

// mostThresholds are the highest values of thresholds of what is counted one by one, up to a limit.
var mostThresholds = map[string]float64{"logins": detect.MaxLogins, "unfinished": detect.MaxStalled}

// usable: a threshold that is infinite has no place in the JSON of evidence and of the API.
func usable(threshold float64) bool { return threshold > 0 && !math.IsInf(threshold, 1) }

// UnmarshalText reads a group from its text form.
func (g *Group) UnmarshalText(text []byte) error {
	parts := strings.Split(string(text), ";")
	if len(parts) < 2 || parts[0] == "" {
		return fmt.Errorf("group %q: write name;CIDR,CIDR;threshold=value", text)
	}
	out := Group{Name: parts[0], Thresholds: make(map[string]float64)}
	for _, s := range strings.Split(parts[1], ",") {
		p, err := policy.ParsePrefix(strings.TrimSpace(s))
		if err != nil {
			return fmt.Errorf("group %s: %w", out.Name, err)
		}
		out.Prefixes = append(out.Prefixes, p)
	}
	for _, s := range parts[2:] {
		name, value, _ := strings.Cut(s, "=")
		name = strings.TrimSpace(name)
		if thresholdNames[name] == nil {
			return fmt.Errorf("group %s: unknown threshold %q", out.Name, name)
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if err != nil || !usable(v) {
			return fmt.Errorf("group %s: threshold %s: %q is not a finite number above 0", out.Name, name, value)
		}
		if most, ok := mostThresholds[name]; ok && v > most {
			return fmt.Errorf("group %s: threshold %s: %g is above %g, so many are never counted", out.Name, name, v, most)
		}
		out.Thresholds[name] = v
	}
	*g = out
	return nil
}

// group is a Group ready for use.
type group struct {
	name       string
	prefixes   []netip.Prefix
	thresholds detect.Thresholds
}

// groups finds the group of an address.
type groups struct {
	list []group
	all  *group // when nothing is said to be protected
}

// thresholds are the engine's own.
func (c *EngineConfig) thresholds() detect.Thresholds {
	t := detect.DefaultThresholds()
	t.SYN, t.UDPPackets, t.UDPBits, t.ICMP = c.SYN, c.UDPPackets, c.UDPBits, c.ICMP
	t.DNSAnswers, t.NTPAnswers, t.ScanPorts, t.ScanHosts = c.DNSAnswers, c.NTPAnswers, c.ScanPorts, c.ScanHosts
	return t
}

// Validate reports the first setting that cannot work.
func (c *EngineConfig) Validate() error {
	for _, v := range []struct {
		name  string
		value float64
	}{
		{"syn-threshold", c.SYN}, {"udp-threshold", c.UDPPackets}, {"udp-bits-threshold", c.UDPBits}, {"icmp-threshold", c.ICMP},
		{"dns-threshold", c.DNSAnswers}, {"ntp-threshold", c.NTPAnswers}, {"scan-ports", c.ScanPorts}, {"scan-hosts", c.ScanHosts},
		{"max-flows", float64(c.MaxFlows)}, {"max-targets", float64(c.MaxTargets)}, {"max-sources", float64(c.MaxSources)},
	} {
		if !usable(v.value) {
			return fmt.Errorf("%s must be above 0 and finite", v.name)
		}
	}
	if c.Lease < time.Second || c.Quiet < time.Second {
		return errors.New("lease and quiet must be at least 1s")
	}
	if c.UsualDays < 0 || c.UsualDays > usual.MaxDays {
		return fmt.Errorf("usual-days must be from 0 to %d", usual.MaxDays)
	}
	if c.UsualDays > 0 && (!(c.UsualFactor > 1) || math.IsInf(c.UsualFactor, 1)) {
		return errors.New("usual-factor must be above 1 and finite")
	}
	for _, typ := range c.Shadow { // a misspelt one would act
		if all := detect.Types(); typ != "all" && !slices.Contains(all, typ) {
			slices.Sort(all)
			return fmt.Errorf("shadow: unknown attack type %q: use all or %s", typ, strings.Join(all, ", "))
		}
	}
	for _, s := range c.Protected {
		if _, err := policy.ParsePrefix(s); err != nil {
			return fmt.Errorf("protected: %w", err)
		}
	}
	of := make(map[netip.Prefix]string)
	for i := range c.Groups {
		for _, p := range c.Groups[i].Prefixes {
			if other, ok := of[p]; ok && other != c.Groups[i].Name {
				return fmt.Errorf("groups %s and %s both have %s: only one's thresholds can hold there", other, c.Groups[i].Name, p)
			}
			of[p] = c.Groups[i].Name
		}
	}
	return nil
}

func (c *EngineConfig) groups() (*groups, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	g := &groups{}
	for i := range c.Groups {
		n := group{name: c.Groups[i].Name, prefixes: c.Groups[i].Prefixes, thresholds: c.thresholds()}
		for name, v := range c.Groups[i].Thresholds {
			*thresholdNames[name](&n.thresholds) = v
		}
		g.list = append(g.list, n)
	}
	own := group{name: "default", thresholds: c.thresholds()}
	for _, s := range c.Protected {
		p, err := policy.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("protected: %w", err)
		}
		own.prefixes = append(own.prefixes, p)
	}
	if len(own.prefixes) > 0 {
		g.list = append(g.list, own)
	}
	if len(g.list) == 0 {
		g.all = &own
	}
	return g, nil
}

// of is the group with the longest prefix that holds addr, or nil when it is not protected.
func (g *groups) of(addr netip.Addr) *group {
	if g.all != nil {
		return g.all
	}
	var best *group
	bits := -1
	for i := range g.list {
		for _, p := range g.list[i].prefixes {
			if p.Bits() > bits && p.Contains(addr) {
				best, bits = &g.list[i], p.Bits()
			}
		}
	}
	return best
}

// network is the protected part of a network and its group: all of it when a protected prefix holds it, else the widest
// protected prefix in it. The group is nil when nothing of it is protected.
func (g *groups) network(p netip.Prefix) (*group, netip.Prefix) {
	if g.all != nil {
		return g.all, p
	}
	var best, inside *group
	bits, part := -1, netip.Prefix{}
	for i := range g.list {
		for _, own := range g.list[i].prefixes {
			switch {
			case own.Bits() <= p.Bits() && own.Contains(p.Addr()):
				if own.Bits() > bits {
					best, bits = &g.list[i], own.Bits()
				}
			case p.Contains(own.Addr()) && (inside == nil || own.Bits() < part.Bits()):
				inside, part = &g.list[i], own
			}
		}
	}
	if best != nil {
		return best, p
	}
	return inside, part
}

// overlapping is the group of protected prefixes that a swept network of a usual size has addresses in common
// with, or nil. Wider networks than /24 (v6 /64) tell nothing.
func (g *groups) overlapping(p netip.Prefix) *group {
	if g.all != nil {
		return g.all
	}
	if p.Bits() < 24 || !p.Addr().Is4() && p.Bits() < 64 {
		return nil
	}
	for i := range g.list {
		for _, own := range g.list[i].prefixes {
			if own.Overlaps(p) {
				return &g.list[i]
			}
		}
	}
	return nil
}

// version is a short hash of everything that decides verdicts.
func (c *EngineConfig) version() string {
	b, err := json.Marshal(c)
	if err != nil { // numbers, strings and prefixes always encode
		return "unknown"
	}
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:6])
}
