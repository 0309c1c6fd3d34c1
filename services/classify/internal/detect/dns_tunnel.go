package detect

import (
	"bytes"
	"net/netip"

	"github.com/tidegate-mesh/tidegate/libs/sketch"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/header"
)

const (
	namesNs    = int64(60e9)
	maxClients = 4_096
)

// Names counts DNS names that carry data: distinct ones of one client below one zone within a minute ≥ DNSData. Which
// names do is told by carries. One goroutine owns it.
type Names struct{ clients map[clientZone]*carried }

type clientZone struct {
	client netip.Addr
	zone   string
}

type carried struct {
	since, newest int64
	names         sketch.HLL
	packets       uint64
	bytes         uint64
}

func (c *carried) last() int64 { return c.newest }

// NewNames returns an empty memory.
func NewNames() *Names { return &Names{clients: make(map[clientZone]*carried)} }

// Add takes in a query of client's that server got.
func (n *Names) Add(client, server netip.Addr, q *header.Question, nowNs int64, t *Thresholds) (Scan, bool) {
	size := carries(q)
	if size == 0 {
		return Scan{}, false
	}
	c := remember(n.clients, clientZone{client, string(q.Zone())}, maxClients, func() *carried { return &carried{since: nowNs} })
	if d := nowNs - c.since; d > namesNs || d < -namesNs {
		*c = carried{since: nowNs}
	}
	c.newest = nowNs
	h := uint64(14695981039346656037)
	for _, b := range q.Name {
		h = (h ^ uint64(b)) * 1099511628211
	}
	c.names.Add(sketch.Mix(h))
	c.packets++
	c.bytes += uint64(size) //nolint:gosec // at most a name
	names := c.names.Estimate()
	return Scan{
		Type: DNSTunnel, Target: netip.PrefixFrom(server, server.BitLen()), Host: server, Packets: c.packets, Sources: 1, FirstNs: c.since, Alert: true,
		What: "%s sends data in names through %s",
		Measure: Measure{Level: names / t.DNSData, Packets: c.packets, Bytes: c.bytes,
			Features: map[string]float64{"data_names": names, "data_bytes": float64(c.bytes)}, Limits: map[string]float64{"data_names": t.DNSData}},
	}, names >= t.DNSData
}

// carries is how many bytes of a name may be data, 0 when it looks like a name. Questions for an address carry it only if
// 100 bytes or more look encoded: services that look sums up ask shorter ones. The types that tunnels use because their
// answers have room (NULL, TXT, CNAME, MX, KEY, private ones) carry it from 16 bytes on, NULL and private ones always.
func carries(q *header.Question) int {
	zone := q.Zone()
	left := bytes.TrimSuffix(q.Name, zone)
	if len(zone) > 0 && bytes.HasPrefix(q.Name, zone) { // the last label is data
		left = q.Name[len(zone):]
	}
	if bytes.HasPrefix(left, []byte("_")) || bytes.Contains(left, []byte("._")) {
		return 0 // names of services (RFC 8552)
	}
	size := len(left) - bytes.Count(left, []byte("."))
	switch {
	case q.Type == 10 || q.Type >= 65280:
		return size
	case q.Type == 16 || q.Type == 5 || q.Type == 15 || q.Type == 25:
		if size >= 16 && encoded(left) {
			return size
		}
	case (q.Type == 0 || q.Type == 1 || q.Type == 28) && size >= 80:
		if encoded(left) {
			return size
		}
	}
	return 0
}

// encoded: a fifth of the bytes are digits or bytes outside of names, or vowels make less than a fifth of the letters.
func encoded(b []byte) bool {
	digits, vowels, letters, other := 0, 0, 0, 0
	for _, c := range b {
		switch l := c | 0x20; {
		case c >= '0' && c <= '9':
			digits++
		case l == 'a' || l == 'e' || l == 'i' || l == 'o' || l == 'u':
			vowels++
			letters++
		case l >= 'a' && l <= 'z':
			letters++
		case c != '.' && c != '-':
			other++
		}
	}
	return 5*(digits+other) >= len(b) || 5*vowels < letters
}
