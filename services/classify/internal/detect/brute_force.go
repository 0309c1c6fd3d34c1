package detect

import "net/netip"

const (
	loginNs    = int64(120e9)
	maxLogins  = 4_096
	loginTimes = quick * MaxLogins // sessions remembered of a pair

	// MaxLogins is the highest threshold of Logins.
	MaxLogins = 64

	// An SSH server that asks for passwords makes a refusal wait: PAM two seconds (pam_unix(8), nodelay). Where a third of the
	// sessions is shorter than quickNs they are the commands of an automation that has a key, of which thrice as many may be.
	// The others may have taken longer because the host or its link was busy.
	quickNs = int64(1500e6)
	quick   = 3
)

// Session is an ended connection with a service where people log in.
type Session struct {
	Src, Dst        netip.Addr
	Port            uint16
	App             string
	FirstNs, LastNs int64
	Packets, Bytes  uint64
	Answered        bool // payload went both ways
	Denied          bool // the service said that the log-in failed
}

// loginApps are the services where people log in; of those marked only sessions count in which the service said no,
// because programs hold short sessions with them all day.
var loginApps = map[string]bool{"ssh": false, "telnet": false, "rdp": false, "vnc": false, "ftp": true, "ftp_control": true}

// Logins counts short sessions: from one source to one service ≥ Logins within two minutes. Short is at most 30 s, 20 kB
// and 200 packets. Of SSH it takes three times as many where a third of them is below 1.5 s. One goroutine owns it.
type Logins struct{ pairs map[loginPair]*loginTries }

type loginPair struct {
	src, dst netip.Addr
	port     uint16
}

type loginTries struct {
	first [loginTimes]int64
	ends  [loginTimes]int64
	next  int
}

func (l *loginTries) last() int64 { return l.ends[(l.next+loginTimes-1)%loginTimes] }

// NewLogins returns an empty memory.
func NewLogins() *Logins { return &Logins{pairs: make(map[loginPair]*loginTries)} }

// Add takes in an ended session.
func (l *Logins) Add(s *Session, t *Thresholds) (Scan, bool) {
	mustFail, ok := loginApps[s.App]
	if !ok || mustFail && !s.Denied || !s.Answered || s.LastNs-s.FirstNs > 30e9 || s.Bytes > 20_000 || s.Packets > 200 {
		return Scan{}, false
	}
	p := remember(l.pairs, loginPair{s.Src, s.Dst, s.Port}, maxLogins, func() *loginTries { return &loginTries{} })
	p.first[p.next], p.ends[p.next] = s.FirstNs, s.LastNs
	p.next = (p.next + 1) % loginTimes
	n, short, first := 0.0, 0.0, s.FirstNs
	for i := range p.ends {
		if d := s.LastNs - p.ends[i]; p.ends[i] != 0 && d < loginNs && d > -loginNs {
			n++
			if p.ends[i]-p.first[i] < quickNs {
				short++
			}
			first = min(first, p.first[i])
		}
	}
	limit := t.Logins
	if s.App == "ssh" && quick*short >= n {
		limit *= quick
	}
	return Scan{
		Type: BruteForce, Target: netip.PrefixFrom(s.Dst, s.Dst.BitLen()), Host: s.Dst, Packets: s.Packets, Sources: 1, FirstNs: first,
		What: "%s tried to log in again and again at %s",
		Measure: Measure{Level: n / limit, Packets: s.Packets, Bytes: s.Bytes,
			Features: map[string]float64{"short_sessions": n, "quick_sessions": short, "port": float64(s.Port)},
			Limits:   map[string]float64{"short_sessions": limit}},
	}, n >= limit
}
