package detect

import (
	"net/netip"
	"strings"
	"testing"
)

// TestHead: a request is unfinished until its empty line, whatever segments it comes in.
func TestHead(t *testing.T) {
	for name, tt := range map[string]struct {
		segments []string
		open     []bool
	}{
		"whole":          {[]string{"GET / HTTP/1.1\r\nHost: a\r\n\r\n"}, []bool{false}},
		"in two":         {[]string{"GET / HTTP/1.1\r\nHost", ": a\r\n\r\n"}, []bool{true, false}},
		"end cut in two": {[]string{"GET / HTTP/1.1\r\nHost: a\r\n\r", "\n"}, []bool{true, false}},
		"slowloris":      {[]string{"GET / HTTP/1.1\r\nHost: a\r\n", "X-a: 1\r\n", "X-b: 1\r\n"}, []bool{true, true, true}},
		"no request":     {[]string{"SSH-2.0-x\r\n", "GET / HTTP/1.1\r\n"}, []bool{false, false}},
		"very long":      {[]string{"GET /" + strings.Repeat("a", maxHead)}, []bool{false}},
	} {
		t.Run(name, func(t *testing.T) {
			var h Head
			at := 0
			for i, s := range tt.segments {
				if got := h.Read(uint32(at), []byte(s)); got != tt.open[i] { //nolint:gosec // short
					t.Errorf("segment %d: open %v, want %v", i, got, tt.open[i])
				}
				at += len(s)
			}
		})
	}
}

// TestStallers: thirty unfinished requests older than five seconds; those that end in time do not count.
func TestStallers(t *testing.T) {
	th := DefaultThresholds()
	of := func(netip.Addr) *Thresholds { return &th }
	for name, tt := range map[string]struct {
		begun, finished uint64
		age             int64
		want            bool
	}{
		"29":                {29, 0, 6e9, false},
		"30":                {30, 0, 6e9, true},
		"30, just begun":    {30, 0, 4e9, false},
		"1,000, all served": {1000, 1000, 6e9, false},
		"31, two served":    {31, 2, 6e9, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := NewStallers()
			for i := range tt.begun {
				s.Begin(stranger, host, 80, i, 1e18)
			}
			for i := range tt.finished {
				s.Finish(stranger, host, 80, i)
			}
			found := false
			s.Each(1e18+tt.age, of, func(src netip.Addr, scan Scan) {
				found = true
				if src != stranger || scan.Type != Slowloris || scan.Host != host || scan.FirstNs != 1e18 {
					t.Errorf("found %v, %+v", src, scan)
				}
			})
			if found != tt.want {
				t.Errorf("found %v, want %v", found, tt.want)
			}
		})
	}
	s := NewStallers()
	for i := range uint64(10_000) {
		s.Begin(stranger, host, uint16(i/1000), i, 1e18) //nolint:gosec // ten ports
	}
	for k, p := range s.pairs {
		if len(p.flows) > maxStalledOf {
			t.Errorf("%d flows of %v", len(p.flows), k)
		}
	}
}

func TestDenial(t *testing.T) {
	if !Denial([]byte("530 Login incorrect.\r\n")) || Denial([]byte("230 Logged in.\r\n")) || Denial([]byte("5")) {
		t.Error("an FTP answer is misread")
	}
}
