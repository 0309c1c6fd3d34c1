// Package hostlist finds the lists of domains, and the users' rules by host, that a flow's host is in: the host itself is
// listed or a domain above it.
package hostlist

import (
	"bytes"
	"cmp"
	"hash/maphash"
	"math/bits"
	"slices"
	"strings"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/policy"
)

// Bounds of a table, over all of its lists. A domain takes 12 bytes besides its text.
const (
	MaxEntries = 4 << 20
	MaxBytes   = 192 << 20
	maxLists   = 1 << 11
)

// List is a list of domains.
type List struct {
	Name             string
	Action           policy.Action
	RatePPS, RateBPS uint64 // of RateLimit
	// Text has the domains, one a line, as policy.FormatDomains writes them. The table refers to it: it must not change.
	Text []byte
}

// Outcome is what became of a list's lines.
type Outcome struct {
	Taken   int // also those that another list has too
	Invalid int // no domains
	Full    int // beyond the table's bounds
}

// Found is why something happens to a flow.
type Found struct {
	Action           policy.Action
	RatePPS, RateBPS uint64
	List             string // name of the list; empty when a user's rule decided
	RuleID           string
	Entry            string // the domain that is listed: the host's end
}

// Table is what flows are compared with. It does not change: any number of goroutines may use it, and another one takes its
// place. A nil Table finds nothing.
//
// The lists' domains lie in one hash table with open addressing. A slot is the list's number plus 1 (11 bits), the domain's
// offset in the list's text (27 bits) and a part of its hash (26 bits); 0 is free. The hash has a seed of its own for each
// table, so that no list makes long chains.
type Table struct {
	seed  maphash.Seed
	lists []List // what wins comes first
	slots []uint64
	depth int // labels of the deepest domain

	rules     map[string][]rule // by host, what wins comes first
	ruleDepth int
}

// rule is a user's rule by host.
type rule struct {
	found     Found
	match     policy.Match
	expiresNs int64 // 0: never
	priority  int32
}

// order is what wins where lists differ about a host.
func order(a policy.Action) int {
	switch a {
	case policy.Allow:
		return 0
	case policy.Drop:
		return 1
	case policy.RateLimit:
		return 2
	}
	return 3
}

// New puts lists and users' rules together. Outcomes are by the lists' names. Rules without a host are not looked at.
func New(lists []List, rules []policy.Rule) (*Table, map[string]Outcome) {
	t := &Table{seed: maphash.MakeSeed(), lists: slices.Clone(lists)}
	slices.SortFunc(t.lists, func(a, b List) int { return cmp.Or(order(a.Action)-order(b.Action), strings.Compare(a.Name, b.Name)) })
	lines, size := 0, 0
	fits := make([]bool, len(t.lists))
	for i := range t.lists {
		if n := len(t.lists[i].Text); i < maxLists-1 && size+n <= MaxBytes && n < 1<<offsetBits {
			fits[i] = true
			size += n
			lines += bytes.Count(t.lists[i].Text, []byte{'\n'})
		}
	}
	if lines = min(lines, MaxEntries); lines > 0 {
		t.slots = make([]uint64, lines+lines/2+1)
	}
	out := make(map[string]Outcome, len(t.lists))
	taken := 0
	for i := range t.lists {
		var o Outcome
		text := t.lists[i].Text
		if !fits[i] {
			o.Full = bytes.Count(text, []byte{'\n'})
			text = nil
		}
		for at := 0; at < len(text); {
			n := bytes.IndexByte(text[at:], '\n')
			if n < 0 {
				o.Invalid++
				break
			}
			domain := text[at : at+n]
			switch {
			case policy.CheckDomain(domain) != nil:
				o.Invalid++
			case taken == lines:
				o.Full++
			default:
				o.Taken++
				if t.insert(i, at, domain) {
					taken++
				}
			}
			at += n + 1
		}
		out[t.lists[i].Name] = o
	}
	t.addRules(rules)
	return t, out
}

const (
	offsetBits = 27
	tagBits    = 26
	tagMask    = 1<<tagBits - 1
)

// place is where the search for a hash begins, and the part of it that the slot keeps.
func (t *Table) place(h uint64) (at int, tag uint64) {
	high, _ := bits.Mul64(h, uint64(len(t.slots)))
	return int(high), h & tagMask //nolint:gosec // below the number of slots
}

// insert adds a domain unless a list that wins has it.
func (t *Table) insert(list, offset int, domain []byte) bool {
	at, tag := t.place(maphash.Bytes(t.seed, domain))
	for t.slots[at] != 0 {
		if s := t.slots[at]; s&tagMask == tag && string(t.domain(s, len(domain))) == string(domain) {
			return false
		}
		if at++; at == len(t.slots) {
			at = 0
		}
	}
	t.slots[at] = uint64(list+1)<<(offsetBits+tagBits) | uint64(offset)<<tagBits | tag //nolint:gosec // bounded by New
	t.depth = max(t.depth, bytes.Count(domain, []byte{'.'})+1)
	return true
}

// domain is the text of a slot's domain if it has n bytes, else nil.
func (t *Table) domain(slot uint64, n int) []byte {
	text := t.lists[slot>>(offsetBits+tagBits)-1].Text
	offset := int(slot >> tagBits & (1<<offsetBits - 1)) //nolint:gosec // 27 bits
	if end := offset + n; end < len(text) && text[end] == '\n' {
		return text[offset:end]
	}
	return nil
}

// find is the number of the list that has a domain, or -1.
func (t *Table) find(domain string) int {
	at, tag := t.place(maphash.String(t.seed, domain))
	for {
		s := t.slots[at]
		switch {
		case s == 0:
			return -1
		case s&tagMask == tag && string(t.domain(s, len(domain))) == domain:
			return int(s>>(offsetBits+tagBits)) - 1 //nolint:gosec // 11 bits
		}
		if at++; at == len(t.slots) {
			at = 0
		}
	}
}

func (t *Table) addRules(rules []policy.Rule) {
	for i := range rules {
		r := &rules[i]
		if r.Match.Host == "" {
			continue
		}
		if t.rules == nil {
			t.rules = make(map[string][]rule)
		}
		x := rule{
			found: Found{Action: r.Action, RatePPS: r.RatePPS, RateBPS: r.RateBPS, RuleID: r.ID}, match: r.Match, priority: r.Priority,
		}
		if !r.Expires.IsZero() {
			x.expiresNs = r.Expires.UnixNano()
		}
		t.rules[r.Match.Host] = append(t.rules[r.Match.Host], x)
		t.ruleDepth = max(t.ruleDepth, strings.Count(r.Match.Host, ".")+1)
	}
	for _, list := range t.rules {
		slices.SortFunc(list, func(a, b rule) int {
			return cmp.Or(cmp.Compare(b.priority, a.priority), order(a.found.Action)-order(b.found.Action), strings.Compare(a.found.RuleID, b.found.RuleID))
		})
	}
}

// Entries is the number of distinct domains and of rules' hosts.
func (t *Table) Entries() (n int) {
	if t == nil {
		return 0
	}
	for _, s := range t.slots {
		if s != 0 {
			n++
		}
	}
	return n + len(t.rules)
}

// Find tells what happens to a flow whose client, key's source, names host: lower case, without a dot at its end. Users'
// rules come before lists: of those the one with the longest domain, then the highest priority. Of lists one that allows wins
// over one that drops, that one over one that limits, and that one over one that counts; then the longest domain is told. It
// does not allocate.
func (t *Table) Find(host string, key *flow.Key, nowNs int64) (Found, bool) {
	if t == nil || len(host) > policy.MaxDomain {
		return Found{}, false
	}
	list, entry := -1, ""
	var byRule *rule
	ruleEntry := ""
	labels := 0
	for at := len(host); at > 0; {
		at = strings.LastIndexByte(host[:at], '.')
		labels++
		if labels > t.depth && labels > t.ruleDepth {
			break
		}
		domain := host[at+1:]
		if labels < 2 || domain == "" || domain[0] == '.' {
			continue
		}
		if len(t.slots) > 0 && labels <= t.depth {
			if n := t.find(domain); n >= 0 && (list < 0 || order(t.lists[n].Action) <= order(t.lists[list].Action)) {
				list, entry = n, domain
			}
		}
		if labels <= t.ruleDepth {
			for i, of := 0, t.rules[domain]; i < len(of); i++ {
				if of[i].applies(key, nowNs) {
					byRule, ruleEntry = &of[i], domain
					break
				}
			}
		}
	}
	switch {
	case byRule != nil:
		f := byRule.found
		f.Entry = ruleEntry
		return f, true
	case list >= 0:
		l := &t.lists[list]
		return Found{Action: l.Action, RatePPS: l.RatePPS, RateBPS: l.RateBPS, List: l.Name, Entry: entry}, true
	}
	return Found{}, false
}

// applies reports whether the rest of a rule's match has the flow.
func (r *rule) applies(key *flow.Key, nowNs int64) bool {
	m := &r.match
	return (r.expiresNs == 0 || nowNs < r.expiresNs) &&
		(!m.HasProtocol || m.Protocol == key.Protocol) &&
		(!m.HasSrcPort || m.SrcPort == key.SrcPort) && (!m.HasDstPort || m.DstPort == key.DstPort) &&
		(!m.Src.IsValid() || m.Src.Contains(flow.Addr(key.Src))) && (!m.Dst.IsValid() || m.Dst.Contains(flow.Addr(key.Dst)))
}
