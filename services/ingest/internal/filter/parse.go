package filter

import (
	"fmt"
	"slices"
	"strconv"
)

// parser builds tests while it reads. Its methods report failure by false and leave the mistake in the parser: the
// one farthest to the right, where it had more than one way to go on.
type parser struct {
	text    string
	tokens  []token
	next    int
	depth   int
	mistake *Error
	last    qualifiers // of the last primitive with a value: "port 80 or 443"

	// Offsets of what is looked at; vlan moves them.
	etherType, payload int
}

// qualifiers say how a value is meant.
type qualifiers struct {
	protocol string
	dir      direction
	typ      string
}

type direction uint8

const (
	either direction = iota
	source
	destination
	both
)

func (p *parser) peek() token { return p.tokens[p.next] }

func (p *parser) ahead(n int) token { return p.tokens[min(p.next+n, len(p.tokens)-1)] }

// fail notes a mistake at the next token and is false.
func (p *parser) fail(format string, args ...any) bool {
	return p.failAt(p.peek(), format, args...)
}

func (p *parser) failAt(t token, format string, args ...any) bool {
	if p.mistake == nil || t.at >= p.mistake.At {
		p.mistake = &Error{p.text, t.at, fmt.Sprintf(format, args...)}
	}
	return false
}

// take skips the next token if it is one of the words or symbols.
func (p *parser) take(texts ...string) bool {
	if t := p.peek(); (t.kind == word || t.kind == symbol) && slices.Contains(texts, t.text) {
		p.next++
		return true
	}
	return false
}

// deeper bounds recursion; the caller undoes it with p.depth--.
func (p *parser) deeper() bool {
	p.depth++
	if p.depth > maxDepth {
		return p.fail("parentheses and negations are nested more than %d deep", maxDepth)
	}
	return true
}

// expression = term { ("and" | "or") term }, grouped from the left.
func (p *parser) expression() (test, bool) {
	left, ok := p.term()
	for ok {
		join := and
		switch {
		case p.take("and", "&&"):
		case p.take("or", "||"):
			join = or
		default:
			return left, true
		}
		var right test
		if right, ok = p.term(); ok {
			left = join(left, right)
		}
	}
	return nil, false
}

// term = "not" term | relation | "(" expression ")" | primitive
func (p *parser) term() (test, bool) {
	defer func() { p.depth-- }()
	if !p.deeper() {
		return nil, false
	}
	if p.take("not", "!") {
		t, ok := p.term()
		if !ok {
			return nil, false
		}
		return not(t), true
	}
	begin := p.next
	if p.arithmeticAhead() {
		if t, ok := p.relation(); ok {
			return t, true
		}
		p.next = begin
	}
	if p.take("(") {
		t, ok := p.expression()
		if ok && !p.take(")") {
			ok = p.fail("expected and, or, or )")
		}
		return t, ok
	}
	return p.primitive()
}

// arithmeticAhead tells whether a relation may begin here. A parenthesis may open either.
func (p *parser) arithmeticAhead() bool {
	t := p.peek()
	if t.kind == symbol {
		return t.text == "(" || t.text == "-"
	}
	_, constant := constants[t.text]
	return t.kind == word && (t.text == "len" || constant || isNumber(t.text) || p.ahead(1).text == "[")
}

// isNumber tells a number from an address such as 10.1: decimal, 0x hexadecimal or 0 octal.
func isNumber(s string) bool {
	_, err := strconv.ParseUint(s, 0, 32)
	return err == nil
}

// number reads a number of at most limit.
func (p *parser) number(what string, limit uint32) (uint32, bool) {
	t := p.peek()
	n, err := strconv.ParseUint(t.text, 0, 32)
	if t.kind != word || err != nil || n > uint64(limit) {
		return 0, p.fail("expected %s, a number from 0 to %d", what, limit)
	}
	p.next++
	return uint32(n), true
}

var (
	qualifying  = []string{"ether", "link", "ip", "ip6", "arp", "rarp", "tcp", "udp", "sctp"}
	types       = []string{"host", "net", "port", "portrange", "proto"}
	unsupported = []string{
		"mpls", "pppoed", "pppoes", "geneve", "vxlan", "gateway", "protochain", "inbound", "outbound", "ifindex", "ifname", "on", "rnr",
		"rulenum", "reason", "rset", "ruleset", "srnr", "subrulenum", "action", "wlan", "type", "subtype", "decnet", "iso", "clnp", "esis", "isis",
		"lat", "moprc", "mopdl", "atalk", "aarp", "stp", "ipx", "netbeui", "llc", "lane", "oam", "fddi", "tr", "ppp", "slip", "byte", "igrp", "carp",
	}
)

// primitive is everything but relations.
func (p *parser) primitive() (test, bool) {
	t := p.peek()
	if t.kind == end {
		return nil, p.fail("expected an expression")
	}
	if t.kind != word {
		return nil, p.fail("expected an expression; supported are %s", Supported)
	}
	q := qualifiers{}
	switch {
	case t.text == "vlan":
		p.next++
		return p.vlan()
	case t.text == "less" || t.text == "greater":
		p.next++
		return p.lengthLimit(t.text)
	case t.text == "broadcast" || t.text == "multicast":
		return p.cast("ether")
	case slices.Contains(unsupported, t.text):
		return nil, p.fail("%q is not supported; supported are %s", t.text, Supported)
	case isProtocol(t.text) && p.ahead(1).text == "[":
		return nil, p.relationOnly()
	case isProtocol(t.text):
		p.next++
		q.protocol = t.text
		switch f := p.peek(); {
		case f.kind == word && (f.text == "broadcast" || f.text == "multicast"):
			return p.cast(q.protocol)
		case f.kind == word && (f.text == "src" || f.text == "dst" || slices.Contains(types, f.text)):
			if !slices.Contains(qualifying, t.text) {
				return nil, p.failAt(t, "%s takes no value; write %s and …", t.text, t.text)
			}
		default:
			p.last = qualifiers{}
			return p.protocol(t)
		}
	case t.text != "src" && t.text != "dst" && !slices.Contains(types, t.text):
		return p.value(p.last) // a value by itself
	}
	dir, ok := p.direction()
	if !ok {
		return nil, false
	}
	q.dir = dir
	if f := p.peek(); f.kind == word && slices.Contains(types, f.text) {
		q.typ = f.text
		p.next++
	}
	p.last = q
	return p.values(q)
}

// relationOnly keeps the relation's own mistake; it is false.
func (p *parser) relationOnly() bool {
	if p.mistake == nil {
		return p.fail("expected a relation such as %s[0] = 1", p.peek().text)
	}
	return false
}

// direction = [ "src" | "dst" [ ("or" | "and") the other ] ]
func (p *parser) direction() (direction, bool) {
	first := p.peek().text
	if !p.take("src", "dst") {
		return either, true
	}
	join, second := p.peek().text, p.ahead(1).text
	if (join == "or" || join == "and") && (second == "src" || second == "dst") && second != first && p.ahead(2).kind == word {
		p.next += 2
		if join == "or" {
			return either, true
		}
		return both, true
	}
	if first == "src" {
		return source, true
	}
	return destination, true
}

// values = value | "(" values { ("and" | "or") values } ")", all meant alike.
func (p *parser) values(q qualifiers) (test, bool) {
	if !p.take("(") {
		return p.value(q)
	}
	defer func() { p.depth-- }()
	if !p.deeper() {
		return nil, false
	}
	left, ok := p.values(q)
	for ok {
		join := and
		switch {
		case p.take("and", "&&"):
		case p.take("or", "||"):
			join = or
		case p.take(")"):
			return left, true
		default:
			return nil, p.fail("expected and, or, or )")
		}
		var right test
		if right, ok = p.values(q); ok {
			left = join(left, right)
		}
	}
	return nil, false
}

// vlan [ID]: a tag of 802.1Q or 802.1ad; what follows it in the expression is looked for behind the tag.
func (p *parser) vlan() (test, bool) {
	at := p.etherType
	t := func(f []byte, _ int) result {
		v, ok := u16(f, at)
		if !ok {
			return beyond
		}
		return is(v == 0x8100 || v == 0x88A8 || v == 0x9100)
	}
	if f := p.peek(); f.kind == word && isNumber(f.text) {
		id, ok := p.number("a VLAN id", 4095)
		if !ok {
			return nil, false
		}
		t = and(t, func(f []byte, _ int) result {
			v, ok := u16(f, at+2)
			if !ok {
				return beyond
			}
			return is(v&0xFFF == id)
		})
	}
	p.last = qualifiers{}
	p.etherType += 4
	p.payload += 4
	return t, true
}

func (p *parser) lengthLimit(which string) (test, bool) {
	n, ok := p.number("a length", 1<<32-1)
	if !ok {
		return nil, false
	}
	p.last = qualifiers{}
	if which == "less" {
		return func(_ []byte, wire int) result { return is(wire <= int(n)) }, true
	}
	return func(_ []byte, wire int) result { return is(wire >= int(n)) }, true
}
