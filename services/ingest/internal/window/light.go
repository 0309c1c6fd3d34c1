package window

// light is a set-associative table of destinations with few counters. A set has four places. When all are
// taken a newcomer wears down the weakest of them and takes its place once that is worn out (Misra and Gries
// 1982, per set), so heavy destinations stay whatever passes by. Entries with a detail are never replaced.
type light struct {
	entries []lightEntry
	mask    uint64 // number of sets - 1
}

const ways = 4

type lightEntry struct {
	addr   [16]byte
	guard  uint32 // packets, less those that wore it down; 0 = empty
	detail uint16 // number + 1, 0 = none
	n      counters
}

func newLight(n int) light {
	return light{entries: make([]lightEntry, n), mask: uint64(n/ways - 1)} //nolint:gosec // n is a positive constant
}

func (l *light) reset() { clear(l.entries) }

// touch returns addr's entry, made if need be, or nil when it did not get a place.
func (l *light) touch(addr *[16]byte, hash uint64, weight uint32) *lightEntry {
	at := int(hash&l.mask) * ways //nolint:gosec // below len(entries)
	set := l.entries[at : at+ways : at+ways]
	weakest := -1
	for i := range set {
		e := &set[i]
		if e.guard == 0 {
			e.addr, e.guard = *addr, weight
			return e
		}
		if e.addr == *addr {
			e.guard += weight
			return e
		}
		if e.detail == 0 && (weakest < 0 || e.guard < set[weakest].guard) {
			weakest = i
		}
	}
	if weakest < 0 {
		return nil
	}
	e := &set[weakest]
	if e.guard > weight {
		e.guard -= weight
		return nil
	}
	*e = lightEntry{addr: *addr, guard: weight}
	return e
}

type level int

const (
	hostLevel level = iota
	netLevel
	regionLevel
)

func isV4(a *[16]byte) bool {
	return a[10] == 0xFF && a[11] == 0xFF && [10]byte(a[:10]) == [10]byte{}
}

// prefix is the /24 or /16 of an IPv4 address, the /64 or /48 of an IPv6 one.
func prefix(a *[16]byte, l level) [16]byte {
	p := *a
	clear(p[length(a, l)/8:])
	return p
}

// length is the prefix length in the 128-bit form.
func length(a *[16]byte, l level) uint32 {
	v4 := isV4(a)
	switch {
	case l == hostLevel:
		return 128
	case v4 && l == netLevel:
		return 120
	case v4:
		return 112
	case l == netLevel:
		return 64
	}
	return 48
}
