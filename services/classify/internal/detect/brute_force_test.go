package detect

import "testing"

// TestLogins: ten short sessions of one source with one service within two minutes; of FTP only refused ones count, of SSH it
// takes three times as many when a third of them is quick.
func TestLogins(t *testing.T) {
	th := DefaultThresholds()
	base := Session{Src: stranger, Dst: host, Port: 22, App: "ssh", Packets: 30, Bytes: 4000, Answered: true}
	for name, tt := range map[string]struct {
		edit  func(*Session)
		every int64
		want  int // session with which it is found, 0 never
	}{
		"ssh":                  {func(*Session) {}, 5e9, 10},
		"slowly":               {func(*Session) {}, 15e9, 0},
		"long sessions":        {func(s *Session) { s.LastNs += 31e9 }, 5e9, 0},
		"file copies":          {func(s *Session) { s.Bytes = 50_000 }, 5e9, 0},
		"nobody listens":       {func(s *Session) { s.Answered = false }, 5e9, 0},
		"web":                  {func(s *Session) { s.App = "http" }, 1e9, 0},
		"ftp clients at work":  {func(s *Session) { s.App = "ftp" }, 1e9, 0},
		"ftp, refused":         {func(s *Session) { s.App, s.Denied = "ftp", true }, 1e9, 10},
		"commands with a key":  {func(s *Session) { s.LastNs -= 1600e6 }, 6e9, 0},
		"quick, 20 a minute":   {func(s *Session) { s.LastNs -= 1600e6 }, 3e9, 30},
		"on a busy link":       {func(s *Session) { s.LastNs -= s.FirstNs / 6e9 % 2 * 1600e6 }, 6e9, 0},
		"a few quick ones":     {func(s *Session) { s.LastNs -= max(0, s.FirstNs/5e9%5-3) * 1600e6 }, 5e9, 10},
		"two hosts, in turn":   {func(s *Session) { s.Port += uint16(s.FirstNs / 8e9 % 2) }, 8e9, 0}, //nolint:gosec // 0 or 1
		"a session in 12.5 s":  {func(*Session) {}, 12_500_000_000, 10},
		"telnet, at 10 a s":    {func(s *Session) { s.App = "telnet" }, 1e8, 10},
		"remote desktop, once": {func(s *Session) { s.App = "rdp" }, 3600e9, 0},
	} {
		t.Run(name, func(t *testing.T) {
			l := NewLogins()
			got := 0
			for i := range int64(40) {
				s := base
				s.FirstNs = 1e18 + i*tt.every
				s.LastNs = s.FirstNs + 2e9
				tt.edit(&s)
				if scan, ok := l.Add(&s, &th); ok && got == 0 {
					got = int(i) + 1
					if scan.Type != BruteForce || scan.Host != host || scan.FirstNs != 1e18 {
						t.Errorf("found %+v", scan)
					}
				}
			}
			if got != tt.want {
				t.Errorf("found with session %d, want %d", got, tt.want)
			}
		})
	}
}

// TestManyLogins: the highest threshold can be reached, also three times it.
func TestManyLogins(t *testing.T) {
	th := DefaultThresholds()
	th.Logins = MaxLogins
	l, got := NewLogins(), 0
	for i := range int64(300) {
		s := Session{Src: stranger, Dst: host, Port: 22, App: "ssh", Answered: true, FirstNs: 1e18 + i*1e8, LastNs: 1e18 + i*1e8 + 1e9}
		if _, ok := l.Add(&s, &th); ok && got == 0 {
			got = int(i) + 1
		}
	}
	if got != quick*MaxLogins {
		t.Errorf("found with session %d, want %d", got, quick*MaxLogins)
	}
}

// TestLoginsBounded: pairs make room for others.
func TestLoginsBounded(t *testing.T) {
	l, th := NewLogins(), DefaultThresholds()
	for i := range 2 * maxLogins {
		l.Add(&Session{Src: stranger, Dst: host, Port: uint16(i), App: "ssh", Answered: true, FirstNs: int64(i), LastNs: int64(i)}, &th) //nolint:gosec // few
	}
	if len(l.pairs) != maxLogins {
		t.Errorf("%d pairs, want %d", len(l.pairs), maxLogins)
	}
}
