// Package filter compiles the filter expressions of tcpdump (pcap-filter(7)) into functions over Ethernet frames.
//
// The result is what libpcap's compiler gives for Ethernet without help of the kernel; TestAsTcpdump compares the two.
// As there, "and" and "or" have one precedence and group from the left, "vlan" moves the offsets of everything that
// is written after it, a load beyond the end of the frame refuses the frame also under "not", ports are found in
// IPv6 packets without extension headers only, and tcp[…] and its like look into IPv4 only. Other than there, a
// relation such as 1 + ip[8] > 5 never matches a frame that is not IP, whichever operand reads the header, and arithmetic has
// C's precedence.
package filter

import (
	"fmt"
	"strings"
)

// MaxLength bounds an expression in bytes, and with it the work of a frame.
const MaxLength = 4096

// maxDepth bounds nested parentheses and negations.
const maxDepth = 64

// Supported names what Compile takes, for messages.
const Supported = "[ether|ip|ip6|arp|rarp|tcp|udp|sctp] [src|dst] host|net|port|portrange|proto VALUE, " +
	"the protocols ether ip ip6 arp rarp tcp udp sctp icmp icmp6 igmp esp ah pim vrrp, vlan [ID], less, greater, broadcast, multicast, " +
	"relations such as tcp[tcpflags] & tcp-syn != 0 and len > 100, and, or, not, parentheses"

// Error is a mistake in an expression, or something in it that is not supported.
type Error struct {
	Expression string
	At         int // bytes before the place
	Problem    string
}

// Error names the place by its column, which begins at 1, and by what stands there.
func (e *Error) Error() string {
	near := strings.TrimSpace(e.Expression[min(e.At, len(e.Expression)):])
	if near == "" {
		return fmt.Sprintf("filter: at the end: %s", e.Problem)
	}
	if len(near) > 24 {
		near = near[:24] + "…"
	}
	return fmt.Sprintf("filter: column %d, at %q: %s", e.At+1, strings.ToValidUTF8(near, ""), e.Problem)
}

// result is what a test says of a frame. A load beyond the frame's end decides for the whole expression.
type result uint8

const (
	no result = iota
	yes
	beyond
)

// test looks at a frame that had wire bytes on the wire.
type test func(frame []byte, wire int) result

// Filter is a compiled expression. Any number of goroutines may use it at once.
type Filter struct{ run test }

// Compile reads an expression; an empty one matches every frame. The error is an *Error.
func Compile(expression string) (*Filter, error) {
	if len(expression) > MaxLength {
		return nil, &Error{expression, MaxLength, fmt.Sprintf("the expression has %d bytes, at most %d are taken", len(expression), MaxLength)}
	}
	tokens, err := scan(expression)
	if err != nil {
		return nil, err
	}
	p := &parser{text: expression, tokens: tokens, etherType: 12, payload: 14}
	if p.peek().kind == end {
		return &Filter{func([]byte, int) result { return yes }}, nil
	}
	t, ok := p.expression()
	if ok && p.peek().kind != end {
		ok = p.fail("expected and, or, or the end")
	}
	if !ok {
		return nil, p.mistake
	}
	return &Filter{t}, nil
}

// Match reports whether the filter takes a frame that begins with the Ethernet header. wire is its length before it
// was cut, at least len(frame). Nothing is kept or allocated.
func (f *Filter) Match(frame []byte, wire int) bool { return f.run(frame, wire) == yes }

func is(b bool) result {
	if b {
		return yes
	}
	return no
}

func and(a, b test) test {
	return func(f []byte, wire int) result {
		if r := a(f, wire); r != yes {
			return r
		}
		return b(f, wire)
	}
}

func or(a, b test) test {
	return func(f []byte, wire int) result {
		if r := a(f, wire); r != no {
			return r
		}
		return b(f, wire)
	}
}

func not(a test) test {
	return func(f []byte, wire int) result {
		switch a(f, wire) {
		case no:
			return yes
		case yes:
			return no
		}
		return beyond
	}
}
