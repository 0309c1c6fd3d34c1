package filter

import "slices"

// constants are pcap-filter(7)'s names of offsets and values (RFC 9293, RFC 792, RFC 4443).
var constants = map[string]uint32{
	"tcpflags": 13, "tcp-fin": 1, "tcp-syn": 2, "tcp-rst": 4, "tcp-push": 8, "tcp-ack": 16, "tcp-urg": 32, "tcp-ece": 64, "tcp-cwr": 128,

	"icmptype": 0, "icmpcode": 1, "icmp-echoreply": 0, "icmp-unreach": 3, "icmp-sourcequench": 4, "icmp-redirect": 5, "icmp-echo": 8,
	"icmp-routeradvert": 9, "icmp-routersolicit": 10, "icmp-timxceed": 11, "icmp-paramprob": 12, "icmp-tstamp": 13, "icmp-tstampreply": 14,
	"icmp-ireq": 15, "icmp-ireqreply": 16, "icmp-maskreq": 17, "icmp-maskreply": 18,

	"icmp6type": 0, "icmp6code": 1, "icmp6-destinationunreach": 1, "icmp6-packettoobig": 2, "icmp6-timeexceeded": 3, "icmp6-parameterproblem": 4,
	"icmp6-echo": 128, "icmp6-echoreply": 129, "icmp6-multicastlistenerquery": 130, "icmp6-multicastlistenerreportv1": 131,
	"icmp6-multicastlistenerdone": 132, "icmp6-routersolicit": 133, "icmp6-routeradvert": 134, "icmp6-neighborsolicit": 135,
	"icmp6-neighboradvert": 136, "icmp6-redirect": 137, "icmp6-multicastlistenerreportv2": 143,
}

// number computes a value of a frame; false when it reads beyond the end or divides by zero.
type number func(frame []byte, wire int) (uint32, bool)

// term of an arithmetic expression: its value, and the protocols that must be there for it to have one.
type operand struct {
	value   number
	needs   []test
	literal bool // no look at the frame
}

var compare = map[string]func(a, b uint32) bool{
	"=": func(a, b uint32) bool { return a == b }, "==": func(a, b uint32) bool { return a == b }, "!=": func(a, b uint32) bool { return a != b },
	"<": func(a, b uint32) bool { return a < b }, "<=": func(a, b uint32) bool { return a <= b },
	">": func(a, b uint32) bool { return a > b }, ">=": func(a, b uint32) bool { return a >= b },
}

// operators by precedence, the weakest first; all group from the left and are modulo 2³², unsigned.
var operators = [][]string{{"|"}, {"^"}, {"&"}, {"<<", ">>"}, {"+", "-"}, {"*", "/", "%"}}

var compute = map[string]func(a, b uint32) uint32{
	"|": func(a, b uint32) uint32 { return a | b }, "^": func(a, b uint32) uint32 { return a ^ b }, "&": func(a, b uint32) uint32 { return a & b },
	"<<": func(a, b uint32) uint32 { return a << b }, ">>": func(a, b uint32) uint32 { return a >> b },
	"+": func(a, b uint32) uint32 { return a + b }, "-": func(a, b uint32) uint32 { return a - b }, "*": func(a, b uint32) uint32 { return a * b },
	"/": func(a, b uint32) uint32 { return a / b }, "%": func(a, b uint32) uint32 { return a % b },
}

// relation = arithmetic ("=" | "!=" | "<" | "<=" | ">" | ">=") arithmetic
func (p *parser) relation() (test, bool) {
	left, ok := p.arithmetic(0)
	if !ok {
		return nil, false
	}
	op, found := compare[p.peek().text]
	if !found || p.peek().kind != symbol {
		return nil, p.fail("expected one of = != < <= > >=")
	}
	p.next++
	right, ok := p.arithmetic(0)
	if !ok {
		return nil, false
	}
	p.last = qualifiers{}
	a, b := left.value, right.value
	t := test(func(f []byte, wire int) result {
		x, ok := a(f, wire)
		if !ok {
			return beyond
		}
		y, ok := b(f, wire)
		if !ok {
			return beyond
		}
		return is(op(x, y))
	})
	needs := append(slices.Clone(left.needs), right.needs...)
	for _, n := range slices.Backward(needs) {
		t = and(n, t)
	}
	return t, true
}

// arithmetic reads operators of a level and above.
func (p *parser) arithmetic(level int) (operand, bool) {
	if level == len(operators) {
		return p.operand()
	}
	left, ok := p.arithmetic(level + 1)
	for ok {
		op := p.peek()
		if op.kind != symbol || !slices.Contains(operators[level], op.text) {
			return left, true
		}
		p.next++
		var right operand
		if right, ok = p.arithmetic(level + 1); ok {
			left, ok = p.join(left, right, op)
		}
	}
	return operand{}, false
}

func (p *parser) join(left, right operand, op token) (operand, bool) {
	a, b, do := left.value, right.value, compute[op.text]
	division := op.text == "/" || op.text == "%"
	if right.literal {
		n, _ := b(nil, 0)
		switch {
		case division && n == 0:
			return operand{}, p.failAt(op, "division by zero")
		case (op.text == "<<" || op.text == ">>") && n > 31:
			return operand{}, p.failAt(op, "shift by more than 31 bits")
		}
	}
	return operand{
		needs: append(slices.Clone(left.needs), right.needs...), literal: left.literal && right.literal,
		value: func(f []byte, wire int) (uint32, bool) {
			x, ok := a(f, wire)
			if !ok {
				return 0, false
			}
			y, ok := b(f, wire)
			if !ok || division && y == 0 {
				return 0, false
			}
			return do(x, y), true
		},
	}, true
}

// operand = number | constant | "len" | "-" operand | "(" arithmetic ")" | protocol "[" arithmetic [ ":" size ] "]"
func (p *parser) operand() (operand, bool) {
	defer func() { p.depth-- }()
	if !p.deeper() {
		return operand{}, false
	}
	t := p.peek()
	n, constant := constants[t.text]
	switch {
	case p.take("-"):
		o, ok := p.operand()
		if !ok {
			return operand{}, false
		}
		value := o.value
		o.value = func(f []byte, wire int) (uint32, bool) {
			v, ok := value(f, wire)
			return -v, ok
		}
		return o, true
	case p.take("("):
		o, ok := p.arithmetic(0)
		if ok && !p.take(")") {
			ok = p.fail("expected an operator or )")
		}
		return o, ok
	case t.kind == word && isProtocol(t.text) && t.text != "link":
		return p.index(t.text)
	case t.kind == word && t.text == "len":
		p.next++
		return operand{value: func(_ []byte, wire int) (uint32, bool) { return uint32(wire), true }}, true //nolint:gosec // a frame's length
	case t.kind == word && constant:
		p.next++
		return operand{value: func([]byte, int) (uint32, bool) { return n, true }, literal: true}, true
	case t.kind == word && isNumber(t.text):
		n, _ := p.number("a number", 1<<32-1)
		return operand{value: func([]byte, int) (uint32, bool) { return n, true }, literal: true}, true
	}
	return operand{}, p.fail("expected a number, len, or a protocol with an offset as ip[0]")
}

// index reads bytes of a protocol's header.
func (p *parser) index(protocol string) (operand, bool) {
	p.next++
	if !p.take("[") {
		return operand{}, p.fail("expected [ and an offset after %s", protocol)
	}
	offset, ok := p.arithmetic(0)
	if !ok {
		return operand{}, false
	}
	load := u8
	if p.take(":") {
		switch t := p.peek(); {
		case p.take("1"):
		case p.take("2"):
			load = u16
		case p.take("4"):
			load = u32
		default:
			return operand{}, p.failAt(t, "expected a size of 1, 2 or 4 bytes")
		}
	}
	if !p.take("]") {
		return operand{}, p.fail("expected an operator, : or ]")
	}
	base, needs := p.header(protocol)
	at := offset.value
	return operand{needs: append(needs, offset.needs...), value: func(f []byte, wire int) (uint32, bool) {
		n, ok := at(f, wire)
		if !ok || n > 1<<20 { // beyond every frame, and a sum that cannot overflow
			return 0, false
		}
		from, ok := base(f)
		if !ok {
			return 0, false
		}
		return load(f, from+int(n))
	}}, true
}

// header is where a protocol's header begins, and what must be there for it to begin there.
func (p *parser) header(protocol string) (func(f []byte) (int, bool), []test) {
	at := p.payload
	fixed := func(n int) func([]byte) (int, bool) { return func([]byte) (int, bool) { return n, true } }
	if protocol == "ether" {
		return fixed(0), nil
	}
	if v, ok := etherTypes[protocol]; ok {
		return fixed(at), []test{p.ether(v)}
	}
	v := ipProtocols[protocol]
	if !v.ip4 {
		return fixed(at + 40), []test{p.ether(etherIP6), byteIs(at+6, v.number)}
	}
	first := func(f []byte, _ int) result { // of the packet's fragments
		v, ok := u16(f, at+6)
		if !ok {
			return beyond
		}
		return is(v&0x1FFF == 0)
	}
	return func(f []byte) (int, bool) {
		v, ok := u8(f, at)
		return at + 4*int(v&15), ok
	}, []test{p.ip4Protocol(v.number), first}
}
