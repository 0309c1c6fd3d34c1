// Package app labels flows by what their payload says, with names in clear and fingerprints. A port never makes
// a label; it decides only between protocols of the same shape (DNS, mDNS, LLMNR) and backs a weak shape (old
// NTP).
//
// Each family of protocols is one file with a table of its own; protocol.go puts them together.
package app

import (
	"math/bits"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/packet"
)

// Unknown is the label of a flow that nothing recognised.
const Unknown = "unknown"

// Limits of the work a flow may cost, each for one direction. Ingest sends no more than this either.
const (
	MaxPackets = 8
	MaxBytes   = 4096
)

// Confidence tells what a label rests on.
type Confidence uint8

// The kinds of evidence, the best first. The port never stands alone.
const (
	NoLabel    Confidence = iota
	Payload               // the bytes are the protocol's
	Negotiated            // a later packet refined it: STARTTLS, CONNECT, SOCKS, WebSocket, ALPN
	Session               // an earlier flow announced it: FTP data, TFTP data
	Port                  // the bytes leave several, and the port decided between them
)

// String is the name that users see.
func (c Confidence) String() string {
	return [...]string{"", "payload", "negotiated", "session", "port"}[c]
}

// Result is what is known of a flow so far.
type Result struct {
	App        string // a label of the table, or Unknown
	Host       string // server name (SNI), Host field or DNS question, lower case; "" = none seen
	HostSource string // "dns" when Host is what the client had asked its resolver for, "" when the flow itself says it
	ALPN       string // the client's first protocol (RFC 7301)
	Final      bool   // further segments change nothing
	Confidence Confidence
	Facts
}

// Facts are what a flow says in clear beside its label and its names; "" = not seen.
type Facts struct {
	JA3, JA3S  string // MD5 in hex
	JA4        string // of the client; TCP, QUIC and DTLS
	HASSH      string // MD5 in hex, of the SSH client
	TLSVersion string // the one the server chose, else the newest the client offers: 1.3, 1.2, dtls 1.2 …
	UserAgent  string // HTTP
	Method     string // HTTP
	DNSType    string // of the question: A, AAAA, TXT …
	DNSRcode   string // of the answer: NOERROR, NXDOMAIN …
	DNSAnswers string // addresses and names that the answer gives, separated by spaces; see maxAnswerText
	Risks      Risk
}

// Engine opens flows and owns their memory. One goroutine at a time may use it and its flows; a second
// goroutine uses a second Engine.
type Engine struct {
	free     *Flow
	buffers  [len(bufferSizes)][][]byte
	quic     []*quicState
	held     int   // bytes of buffers and quicStates, in use or free
	most     int   // of held
	ghash    ghash // for one call
	names    names
	expected expectations
	resolved resolved
	numbers  [MaxBytes / 2]uint16 // for fingerprints
	text     []byte               // a fingerprint's text before it is hashed
	joined   [MaxBytes]byte       // for one call: a stream\'s kept beginning and the segment behind it
	scratch  [MaxBytes]byte       // for one call: a message without record headers, a packet without protection, a name
	name     [256]byte            // a name under construction
	in       input                // the argument of the protocol being asked; here so that it is not allocated
}

// NewEngine returns an Engine with no flow.
func NewEngine() *Engine {
	e := &Engine{text: make([]byte, 0, 2*MaxBytes), most: maxHeld}
	e.names.reset()
	return e
}

// Flow is the state of one flow. It comes from Engine.Open and goes back by Release; in between it holds at most one
// buffer a direction: of maxUndecided bytes while it has no label, of up to MaxBytes while its protocol reads on, and
// none once it is final.
type Flow struct {
	engine     *Engine
	next       *Flow
	key        flow.Key
	dirs       [2]direction
	quic       *quicState
	at         int16 // index into protocols of the one that labelled the flow, -1 = none
	proto      uint8
	final      bool
	confidence Confidence
	notes      uint16 // bits of the protocol at work; see the note constants
	app        string // "" = unknown
	alias      string // the label that the protocol being asked wants instead of its own, else ""
	host       string
	question   bool   // host is what a resolver is asked for, not whom the flow is with
	told       bool   // NewServerName has told host
	named      string // what the client had asked its resolver for
	alpn       string
	facts      Facts
}

// Open begins a flow; key is in the direction of its first packet. It does not allocate once as many flows
// were released as are in use.
func (e *Engine) Open(key flow.Key) *Flow {
	f := e.free
	if f == nil {
		f = &Flow{}
	} else {
		e.free = f.next
	}
	*f = Flow{engine: e, key: key, at: -1, proto: key.Protocol}
	switch f.proto {
	case packet.ProtoTCP:
		f.dirs[0].alive, f.dirs[1].alive = streamProtocols, streamProtocols
	case packet.ProtoUDP:
	default:
		f.app = LabelOf(key.Protocol)
		f.final = true
		if f.app != "" {
			f.confidence = Payload
		}
	}
	if e.expected.some() && !f.final {
		f.announced()
	}
	if !f.final {
		f.named = e.resolved.get(pair{key.Src, key.Dst})
	}
	return f
}

// Warm reads what a segment needs first of the flow, so that it is in the CPU's caches, and returns any number.
func (f *Flow) Warm() uint64 {
	return uint64(f.dirs[0].packets) + uint64(f.dirs[1].packets) + uint64(len(f.host)) //nolint:gosec // any sum will do
}

// Release gives the flow's memory back to its engine; f must not be used afterwards. Strings of its Result
// stay valid.
func (f *Flow) Release() {
	e := f.engine
	f.drop()
	*f = Flow{next: e.free}
	e.free = f
}

// Result returns what is known so far.
func (f *Flow) Result() Result {
	r := Result{App: f.app, Host: f.host, ALPN: f.alpn, Final: f.final, Confidence: f.confidence, Facts: f.facts}
	if r.App == "" {
		r.App, r.Confidence = Unknown, NoLabel
	}
	if r.Host == "" && f.named != "" {
		r.Host, r.HostSource = f.named, "dns"
	}
	if f.unexpected() {
		r.Risks |= UnexpectedPort
	}
	return r
}

// NewServerName is the host that the flow itself says it is with, as Result.Host is written, once for each that it says:
// through a proxy there may be several. What a resolver is asked for is none, nor what its answers let guess.
func (f *Flow) NewServerName() (host string, ok bool) {
	if f.told || f.question || f.host == "" {
		return "", false
	}
	f.told = true
	return f.host, true
}

// Segment takes the next payload of one direction: dir 0 is the flow's source, 1 its destination; offset is
// the position in the direction's TCP stream (0 = first byte after the SYN) and is not read for other
// protocols. Segments may be lost, repeated, out of order and overlapping; the first copy of a byte counts.
// data is not kept. It returns true when the result is final, also on every later call.
func (f *Flow) Segment(dir uint8, offset uint32, data []byte) bool {
	if f.final || len(data) == 0 {
		return f.final
	}
	dir &= 1
	d := &f.dirs[dir]
	if d.exhausted() {
		return f.giveUp()
	}
	if d.done {
		d.packets++
		return f.giveUp()
	}
	d.packets++
	first := d.bytes == 0
	d.bytes = uint16(min(int(d.bytes)+len(data), MaxBytes)) //nolint:gosec // bounded on the left
	if f.proto == packet.ProtoTCP {
		f.stream(dir, offset, data, first)
	} else {
		f.datagram(dir, data)
		d.previous.keep(data)
	}
	if first {
		d.first.keep(data)
	}
	if f.final {
		f.drop()
		return true
	}
	return f.giveUp()
}

// stream looks at a TCP segment.
func (f *Flow) stream(dir uint8, offset uint32, data []byte, first bool) {
	d := &f.dirs[dir]
	if first && offset == 1 {
		d.base = 1 // a sender that counts the SYN
	}
	offset -= d.base
	if f.at < 0 {
		// Two versions of the same bytes (a padded acknowledgement, or someone hiding): either may be the one
		// that the receiver takes, so a second beginning is looked at like the first.
		if offset == 0 && (d.alive.none() || d.buf != nil && !agrees(d.prefix(), data)) {
			d.drop(f.engine)
			d.alive = streamProtocols
		}
	}
	if f.at < 0 && offset == 1 && d.base == 0 && d.first.size() == 1 && d.first.data[0] == 0 {
		// What came before may have been a probe whether the other side is still there (RFC 9293 3.8.4): one byte, one too
		// early. Only a protocol that leaves no doubt is believed then.
		in, alive := &f.engine.in, exactStreams
		alive.and(&streamsBy[data[0]])
		*in = input{dir: dir, data: data}
		f.ask(&alive, in)
		in.forget()
		if f.facts.Risks&Malformed != 0 {
			f.at, f.final, f.app, f.confidence, f.facts = -1, false, "", NoLabel, Facts{}
		}
		if f.at >= 0 {
			d.drop(f.engine)
			d.base, offset = 1, 0
		}
	}
	if f.final || f.at < 0 && d.alive.none() {
		return
	}
	f.look(dir, offset, data)
}

// look puts what a direction has with the new segment to the protocols.
func (f *Flow) look(dir uint8, offset uint32, data []byte) {
	d := &f.dirs[dir]
	view, kept := data, false
	switch {
	case d.buf == nil && offset == 0:
	case d.pieces.continues(offset):
		view = append(append(f.engine.joined[:0], d.prefix()...), data[:min(len(data), MaxBytes-int(offset))]...)
	default:
		d.insert(f, offset, data)
		kept = true
		view = d.prefix()
		if len(view) == 0 {
			return
		}
	}
	view = view[:min(len(view), MaxBytes)]
	in := &f.engine.in
	*in = input{dir: dir, data: view}
	defer in.forget()
	if f.at >= 0 {
		f.run(int(f.at), in)
	} else {
		d.alive.and(&streamsBy[view[0]])
		f.ask(&d.alive, in)
		if f.at < 0 && d.alive.none() {
			d.drop(f.engine)
			return
		}
	}
	switch {
	case d.done:
		d.drop(f.engine)
	case !f.final && !kept:
		d.insert(f, offset, data)
	}
}

// ask asks the protocols that are still possible for a direction, until one is sure.
func (f *Flow) ask(alive *protocolSet, in *input) {
	match := &streamMatch
	if f.proto == packet.ProtoUDP {
		match = &datagramMatch
	}
	for w := range alive {
		for rest := alive[w]; rest != 0; rest &= rest - 1 {
			i := w*64 + bits.TrailingZeros64(rest)
			o := match[i&(len(match)-1)](f, in)
			if o == no {
				alive[w] &^= 1 << (i & 63)
				continue
			}
			f.record(i, o)
			if f.at >= 0 || f.final {
				return
			}
		}
	}
}

// datagram looks at a UDP payload. Each is a message of its own, so a protocol that said no is asked again.
func (f *Flow) datagram(dir uint8, data []byte) {
	in := &f.engine.in
	*in = input{dir: dir, data: data}
	defer in.forget()
	if f.at >= 0 {
		f.run(int(f.at), in)
		return
	}
	alive := datagramsBy[data[0]]
	f.ask(&alive, in)
}

// run asks one protocol and records its answer.
func (f *Flow) run(i int, in *input) outcome {
	match := streamMatch[i]
	if f.proto == packet.ProtoUDP {
		match = datagramMatch[i]
	}
	if match == nil {
		return no
	}
	o := match(f, in)
	f.record(i, o)
	return o
}

// record takes what a protocol answered.
func (f *Flow) record(i int, o outcome) {
	p := &protocols[i]
	switch o {
	case label, final:
		f.at = int16(i) //nolint:gosec // the table is short
		f.final = o == final
		name := p.label
		if f.alias != "" {
			name = f.alias
		}
		if f.app == "" || f.app == name || f.alias != "" || f.confidence == Session {
			f.app = name
		}
		if f.confidence == NoLabel || f.confidence == Session {
			f.confidence = Payload // the bytes say more than who announced them
			if p.byPort {
				f.confidence = Port
			}
		}
	case foreign:
		f.at, f.app, f.confidence = -1, "", NoLabel
		f.final = true
	}
	f.alias = ""
}

// giveUp ends a flow whose directions are both used up. One alone is not enough for TCP: a download may show
// much of the answer before the question comes by. Datagrams that nobody answers are a one-way stream.
func (f *Flow) giveUp() bool {
	a, b := &f.dirs[0], &f.dirs[1]
	if a.exhausted() && b.exhausted() {
		f.final = true
	}
	if f.proto != packet.ProtoTCP && (a.exhausted() && b.packets == 0 || b.exhausted() && a.packets == 0) {
		f.final = true
	}
	if f.final {
		f.drop()
	}
	return f.final
}

// drop gives buffers back.
func (f *Flow) drop() {
	f.dirs[0].drop(f.engine)
	f.dirs[1].drop(f.engine)
	if f.quic != nil {
		f.quic.drop(f.engine)
		f.quic = nil
	}
}

// is answers with another label than the table's entry has.
func (f *Flow) is(name string, c Confidence, o outcome) outcome {
	f.alias, f.confidence = name, c
	return o
}

// setHost keeps a lower-case copy of a host name without its trailing dot.
func (f *Flow) setHost(b []byte) {
	n := 0
	for _, c := range b {
		if n == len(f.engine.name) || c <= ' ' || c >= 0x7F {
			return // no name in ASCII (RFC 5890 has others encoded): leave none rather than a part
		}
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		f.engine.name[n] = c
		n++
	}
	for n > 0 && f.engine.name[n-1] == '.' {
		n--
	}
	if n > 0 {
		f.question = false
		if host := f.engine.names.get(f.engine.name[:n]); host != f.host {
			f.host, f.told = host, false
		}
	}
}

// setQuestion keeps what a resolver is asked for.
func (f *Flow) setQuestion(b []byte) {
	f.setHost(b)
	f.question = true
}

// hasPort tells whether either side of the flow uses the port; only for breaking ties.
func (f *Flow) hasPort(port uint16) bool { return f.key.SrcPort == port || f.key.DstPort == port }
