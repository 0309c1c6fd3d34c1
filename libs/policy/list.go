package policy

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// A RejectedLine of a list's text says something else than the list's kind has.
type RejectedLine struct {
	Line   int // from 1 on
	Text   string
	Reason string
}

// ListText is what the text of an address list says.
type ListText struct {
	Entries  []netip.Prefix // sorted, each once; a single address has its full length
	Hosts    int            // single addresses among them
	Rejected int            // lines that were left out
	Examples []RejectedLine // the first of these, at most 20
}

const (
	maxExamples = 20
	maxShown    = 64 // bytes of a rejected line that are repeated
)

// ErrListLimit: a list has more entries than may be.
var ErrListLimit = errors.New("the list has too many entries")

// ParseList reads a list: an address or prefix a line, IPv4 or IPv6. What follows a space, tab, comma, semicolon or # is
// not looked at, nor are empty lines: that reads the usual public lists. Lines that say something else are left out and
// told. More than limit entries are ErrListLimit.
func ParseList(text []byte, limit int) (ListText, error) {
	var out ListText
	out.Entries = make([]netip.Prefix, 0, min(bytes.Count(text, []byte{'\n'})+1, limit))
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
	for n := 1; len(text) > 0; n++ {
		line, rest, _ := bytes.Cut(text, []byte{'\n'})
		text = rest
		line = bytes.TrimSpace(line)
		if i := bytes.IndexAny(line, " \t,;#"); i >= 0 {
			line = line[:i]
		}
		if len(line) == 0 {
			continue
		}
		p, err := parseEntry(line)
		if err != nil {
			out.Rejected++
			out.Examples = addExample(out.Examples, n, line, err)
			continue
		}
		if out.Entries = append(out.Entries, p); len(out.Entries) > limit {
			return ListText{}, fmt.Errorf("%w: more than %d", ErrListLimit, limit)
		}
	}
	if !slices.IsSortedFunc(out.Entries, comparePrefixes) { // as FormatList's is
		slices.SortFunc(out.Entries, comparePrefixes)
	}
	out.Entries = slices.Compact(out.Entries)
	for i := range out.Entries {
		if out.Entries[i].IsSingleIP() {
			out.Hosts++
		}
	}
	return out, nil
}

// addExample notes a rejected line while there are few.
func addExample(examples []RejectedLine, n int, text []byte, why error) []RejectedLine {
	if len(examples) == maxExamples {
		return examples
	}
	shown := strings.ToValidUTF8(string(text[:min(len(text), maxShown)]), "?")
	shown = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, shown)
	return append(examples, RejectedLine{Line: n, Text: shown, Reason: why.Error()})
}

const maxEntry = len("ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255/128")

func parseEntry(line []byte) (netip.Prefix, error) {
	if len(line) > maxEntry {
		return netip.Prefix{}, errors.New("too long for an address or a prefix")
	}
	s := string(line)
	if strings.IndexByte(s, '/') < 0 {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return netip.Prefix{}, errors.New("neither an address nor a prefix in CIDR notation")
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, errors.New("neither an address nor a prefix in CIDR notation")
	}
	return unmapped(p), nil
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// FormatList writes entries as ParseList reads them, a line each.
func FormatList(entries []netip.Prefix) []byte {
	out := make([]byte, 0, 16*len(entries))
	for _, p := range entries {
		if p.IsSingleIP() {
			out = p.Addr().AppendTo(out)
		} else {
			out = p.AppendTo(out)
		}
		out = append(out, '\n')
	}
	return out
}

// Cover answers which of many prefixes is around another one. The zero value covers nothing.
type Cover struct {
	outer []netip.Prefix // sorted; none inside another
}

// NewCover takes prefixes in any order.
func NewCover(prefixes ...[]netip.Prefix) Cover {
	all := slices.Concat(prefixes...)
	slices.SortFunc(all, comparePrefixes)
	var c Cover
	for _, p := range all {
		if n := len(c.outer); n == 0 || !holds(c.outer[n-1], p) {
			c.outer = append(c.outer, p)
		}
	}
	return c
}

// Find returns the widest prefix that holds all of p.
func (c Cover) Find(p netip.Prefix) (netip.Prefix, bool) {
	i, found := slices.BinarySearchFunc(c.outer, p, comparePrefixes)
	if found {
		return p, true
	}
	if i == 0 || !holds(c.outer[i-1], p) {
		return netip.Prefix{}, false
	}
	return c.outer[i-1], true
}

func holds(wide, p netip.Prefix) bool { return wide.Bits() <= p.Bits() && wide.Contains(p.Addr()) }
