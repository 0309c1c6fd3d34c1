package enforce

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"github.com/tidegate-mesh/tidegate/libs/policy"
)

// Reason names why a rule was refused. The names are part of the API and of tidegate_enforce_refusals_total.
type Reason string

// The reasons.
const (
	NeverBlock     Reason = "never_block"    // inside a prefix that the operator never blocks
	Management     Reason = "management"     // inside the path this node is managed over
	Infrastructure Reason = "infrastructure" // a resolver or gateway of this node
	BlastRadius    Reason = "blast_radius"   // blocks more addresses than configured
	GoodTraffic    Reason = "good_traffic"   // would hit too much of the last hour's good traffic
	RuleLimit      Reason = "rule_limit"     // too many rules in force
	MaskLimit      Reason = "mask_limit"     // too many different kinds of match for the kernel's lookup
	RateOfRules    Reason = "rate"           // too many new rules a second
	Invalid        Reason = "invalid"        // cannot be read or contradicts itself
	Expired        Reason = "expired"        // the deadline has passed on arrival
	ApplyFailed    Reason = "apply_failed"   // the kernel refused the entry
	Panic          Reason = "panic"          // held until panic ends

	Upstream Reason = "upstream" // it acts here, but has no route upstream

	// Of entries of address lists only.
	AllowList Reason = "allow_list" // an allow list has it
	DropList  Reason = "drop_list"  // a list that drops has what this one only counts
	ListLimit Reason = "list_limit" // the map is full
)

// passing reasons may end by themselves: the rule is tried again every second. Panic ends too, but tells when.
func (r Reason) passing() bool {
	switch r {
	case RateOfRules, RuleLimit, MaskLimit, ApplyFailed:
		return true
	}
	return false
}

// refusal is a reason with a sentence for people.
type refusal struct {
	reason Reason
	detail string
}

func (r *refusal) Error() string { return string(r.reason) + ": " + r.detail }

// guard decides whether a rule may be applied. Its user holds the service's lock.
type guard struct {
	never          []netip.Prefix
	configured     []netip.Prefix // management by configuration
	sshClient      string         // address, "" none
	management     []netip.Prefix // configured and found
	infrastructure []netip.Prefix
	limit          int
	min4, min6     int
	allowBroadUser bool
	good           goodTraffic
	goodLimit      float64
	rate           *rate.Limiter
	panic          panicState
}

// check tests everything that depends on the rule alone.
func (g *guard) check(r *policy.Rule, now time.Time) *refusal {
	if err := r.Validate(); err != nil {
		return &refusal{Invalid, err.Error()}
	}
	if !r.Expires.IsZero() && !r.Expires.After(now) {
		return &refusal{Expired, fmt.Sprintf("the rule expired %s ago", now.Sub(r.Expires).Round(time.Millisecond))}
	}
	if !r.Action.Blocks() || r.Shadow {
		return nil
	}
	for _, list := range g.protected() {
		// A rule that is broader than the list's prefix is fine: the program looks never-block entries up first.
		for _, side := range []struct {
			name   string
			prefix netip.Prefix
		}{{"source", r.Match.Src}, {"destination", r.Match.Dst}} {
			if p, ok := covering(list.prefixes, side.prefix); ok {
				return &refusal{list.reason, fmt.Sprintf("its %s %s is inside %s %s", side.name, side.prefix, list.what, p)}
			}
		}
	}
	if no := g.breadth(r); no != nil {
		return no
	}
	if g.panic.stops(r) { // last: a held rule would act without it
		return &refusal{Panic, g.panic.String()}
	}
	return nil
}

// protectedList is a list of prefixes that nothing inside may be blocked of, and the reason that tells so.
type protectedList struct {
	reason   Reason
	what     string
	prefixes []netip.Prefix
}

func (g *guard) protected() []protectedList {
	return []protectedList{
		{NeverBlock, "the never-block prefix", g.never},
		{Management, "the management address", g.management},
		{Infrastructure, "the resolver or gateway", g.infrastructure},
	}
}

// breadth limits how many addresses a blocking rule may name: the narrower of its two prefixes counts.
func (g *guard) breadth(r *policy.Rule) *refusal {
	if g.allowBroadUser && r.Origin == policy.OriginUser {
		return nil
	}
	if r.Match.Host != "" {
		return nil // it is in no driver: each flow of that host has a rule of its own
	}
	narrow := r.Match.Src
	if !narrow.IsValid() || r.Match.Dst.IsValid() && r.Match.Dst.Bits() > narrow.Bits() {
		narrow = r.Match.Dst
	}
	if !narrow.IsValid() {
		return &refusal{BlastRadius, "it names neither a source nor a destination"}
	}
	least := g.min6
	if narrow.Addr().Is4() {
		least = g.min4
	}
	if narrow.Bits() < least {
		return &refusal{BlastRadius, fmt.Sprintf("%s is broader than /%d, the limit of a blocking rule", narrow, least)}
	}
	return nil
}

// full reports the rule limit; inForce is the number of other rules.
func (g *guard) full(inForce int) *refusal {
	if inForce >= g.limit {
		return &refusal{RuleLimit, fmt.Sprintf("%d rules are in force, the limit", inForce)}
	}
	return nil
}

// take consumes one new rule of the rate.
func (g *guard) take(now time.Time) *refusal {
	if g.rate.AllowN(now, 1) {
		return nil
	}
	return g.tooFast()
}

// peek tells what take would say without consuming anything.
func (g *guard) peek(now time.Time) *refusal {
	if g.rate.TokensAt(now) >= 1 {
		return nil
	}
	return g.tooFast()
}

func (g *guard) tooFast() *refusal {
	return &refusal{RateOfRules, fmt.Sprintf("more than %g new rules a second after a burst of %d", float64(g.rate.Limit()), g.rate.Burst())}
}

// safe lists all prefixes that packets pass from and to whatever the rules say.
func (g *guard) safe() []netip.Prefix {
	all := slices.Concat(g.never, g.management, g.infrastructure)
	slices.SortFunc(all, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	return slices.Compact(all)
}

// covering finds a prefix of the list that holds all of p.
func covering(list []netip.Prefix, p netip.Prefix) (netip.Prefix, bool) {
	if !p.IsValid() {
		return netip.Prefix{}, false
	}
	for _, q := range list {
		if q.Bits() <= p.Bits() && q.Contains(p.Addr()) {
			return q, true
		}
	}
	return netip.Prefix{}, false
}
