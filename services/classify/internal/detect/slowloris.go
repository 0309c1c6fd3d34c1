package detect

import (
	"bytes"
	"net/netip"

	"github.com/tidegate-mesh/tidegate/services/classify/internal/header"
)

const (
	stalledNs    = int64(5e9)    // how long a request may take to be sent
	lostNs       = int64(1800e9) // after so long no server waits any more: nobody told its end, as when the sensor is gone
	maxStallers  = 2_048
	maxStalledOf = MaxStalled // connections watched of a pair
	maxHead      = 4_000

	// MaxStalled is the highest threshold of Stalled.
	MaxStalled = 512
)

// Head follows the head of an HTTP/1 request (RFC 9112 2.1) through the segments of a connection. The zero value waits for
// the first segment.
type Head struct {
	state  uint8 // 0 not begun, 1 open, 2 over or no request
	blank  uint8 // line ends at the end of what was read
	length uint32
}

// Read takes in a segment of the client's and says whether the head is unfinished.
func (h *Head) Read(offset uint32, data []byte) (open bool) {
	if h.state == 0 {
		h.state = 2
		if offset == 0 && header.HTTPResource(data) != nil {
			h.state = 1
		}
	}
	if h.state != 1 {
		return false
	}
	h.length = max(h.length, offset+uint32(len(data))) //nolint:gosec // a segment is short
	for _, c := range data {
		switch c {
		case '\n':
			if h.blank++; h.blank == 2 {
				h.state = 2
				return false
			}
		case '\r':
		default:
			h.blank = 0
		}
	}
	if h.length >= maxHead { // no more of it is told
		h.state = 2
	}
	return h.state == 1
}

// Denial tells the answer of an FTP service that a log-in failed (RFC 959 4.2: 530).
func Denial(data []byte) bool { return bytes.HasPrefix(data, []byte("530")) }

// Stallers are sources with unfinished requests: of one source at one port of one host ≥ Stalled that began more than five
// seconds ago and that the server has not answered. One goroutine owns it.
type Stallers struct{ pairs map[loginPair]*staller }

type staller struct {
	flows  map[uint64]int64 // flow → when its request began
	newest int64
}

func (s *staller) last() int64 { return s.newest }

// NewStallers returns an empty memory.
func NewStallers() *Stallers { return &Stallers{pairs: make(map[loginPair]*staller)} }

// Begin notes that a request was begun and is not finished.
func (s *Stallers) Begin(src, dst netip.Addr, port uint16, flow uint64, nowNs int64) {
	p := remember(s.pairs, loginPair{src, dst, port}, maxStallers, func() *staller { return &staller{flows: make(map[uint64]int64)} })
	p.newest = max(p.newest, nowNs)
	if _, ok := p.flows[flow]; !ok && len(p.flows) < maxStalledOf {
		p.flows[flow] = nowNs
	}
}

// Finish forgets a flow: its request is whole, was answered, or the connection is over.
func (s *Stallers) Finish(src, dst netip.Addr, port uint16, flow uint64) {
	k := loginPair{src, dst, port}
	if p := s.pairs[k]; p != nil {
		if delete(p.flows, flow); len(p.flows) == 0 {
			delete(s.pairs, k)
		}
	}
}

// Each calls f with the sources that stall.
func (s *Stallers) Each(nowNs int64, t func(host netip.Addr) *Thresholds, f func(src netip.Addr, s Scan)) {
	for k, p := range s.pairs {
		th := t(k.dst)
		if th == nil || float64(len(p.flows)) < th.Stalled {
			continue
		}
		n, first := 0.0, nowNs
		for id, began := range p.flows {
			switch age := nowNs - began; {
			case age > lostNs || age < -lostNs:
				delete(p.flows, id)
			case age >= stalledNs:
				n++
				first = min(first, began)
			}
		}
		if n >= th.Stalled {
			f(k.src, Scan{
				Type: Slowloris, Target: netip.PrefixFrom(k.dst, k.dst.BitLen()), Host: k.dst, Packets: uint64(n), Sources: 1, FirstNs: first,
				What: "%s keeps requests to %s unfinished",
				Measure: Measure{Level: n / th.Stalled, Packets: uint64(n), Features: map[string]float64{"unfinished_requests": n, "port": float64(k.port)},
					Limits: map[string]float64{"unfinished_requests": th.Stalled}},
			})
		}
	}
}
