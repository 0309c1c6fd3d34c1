package enforce

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus/bustest"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
)

// speaker is a program that takes routes and writes down what it was told.
type speaker struct {
	t         *testing.T
	dir, path string
}

// newSpeaker writes the program; where there is a file "hang" in its folder it reads nothing.
func newSpeaker(t *testing.T) *speaker {
	s := &speaker{t: t, dir: t.TempDir()}
	s.path = filepath.Join(s.dir, "speaker")
	text := fmt.Sprintf("#!/bin/sh\ncd %s\necho $$ >>started\n[ -e hang ] && exec sleep 600\nwhile read -r line; do echo \"$line\" >>told; done\necho end >>told\n", s.dir)
	if err := os.WriteFile(s.path, []byte(text), 0o700); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	return s
}

func (s *speaker) lines(file string) []string {
	b, err := os.ReadFile(filepath.Join(s.dir, file))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		s.t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

func (s *speaker) pid() int {
	n := s.lines("started")
	pid, err := strconv.Atoi(n[len(n)-1])
	if err != nil {
		s.t.Fatal(err)
	}
	return pid
}

// waitTold waits for a number of lines and returns them.
func (s *speaker) waitTold(n int) []string {
	s.t.Helper()
	bustest.Wait(s.t, fmt.Sprint(n, " lines"), func() bool { l := s.lines("told"); return len(l) >= n && l[0] != "" })
	if l := s.lines("told"); len(l) != n {
		s.t.Fatalf("%d lines, want %d: %q", len(l), n, l)
	}
	return s.lines("told")
}

// announcing runs an announcer until the returned stop.
func (s *speaker) announcing(change func(*announcer)) (a *announcer, stop func()) {
	a = newAnnouncer(s.path, 10, false, telemetry.Discard("enforce"))
	if change != nil {
		change(a)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); a.run(ctx) }()
	return a, func() { cancel(); <-done }
}

func dropTo(id uint64, dst string, protocol uint8) xdp.Rule {
	return xdp.Rule{ID: id, Action: policy.Drop, Match: policy.Match{Dst: netip.MustParsePrefix(dst), HasProtocol: true, Protocol: protocol}}
}

func mustPut(t *testing.T, a Action, rules ...xdp.Rule) {
	t.Helper()
	if err := a.PutRules(rules); err != nil {
		t.Fatal(err)
	}
}

const (
	udpRoute = "flow route { match { destination 203.0.113.7/32; protocol =17; } then { discard; } }"
	tcpRoute = "flow route { match { destination 203.0.113.7/32; protocol =6; } then { discard; } }"
)

// TestAnnouncerTells: what is accepted is told before what is discarded and taken back after it, the same rule twice is told
// once, two rules of one route are one, and at the end all is taken back.
func TestAnnouncerTells(t *testing.T) {
	s := newSpeaker(t)
	a, stop := s.announcing(nil)
	but := xdp.Rule{ID: 2, Action: policy.Allow, Match: policy.Match{Src: netip.MustParsePrefix("192.0.2.1/32"), Dst: netip.MustParsePrefix("203.0.113.7/32"), HasProtocol: true, Protocol: 17}}
	mustPut(t, a, dropTo(1, "203.0.113.7/32", 17), but)
	accept := "flow route { match { destination 203.0.113.7/32; source 192.0.2.1/32; protocol =17; } then { accept; } }"
	if l := s.waitTold(2); l[0] != "announce "+accept || l[1] != "announce "+udpRoute {
		t.Errorf("told %q", l)
	}
	mustPut(t, a, dropTo(1, "203.0.113.7/32", 17), dropTo(3, "203.0.113.7/32", 17), dropTo(4, "203.0.113.7/32", 6))
	if l := s.waitTold(3); l[2] != "announce "+tcpRoute {
		t.Errorf("told %q", l)
	}
	if err := a.DeleteRules([]uint64{1, 2}); err != nil { // rule 3 means the same route as 1
		t.Fatal(err)
	}
	if l := s.waitTold(4); l[3] != "withdraw "+accept {
		t.Errorf("told %q", l)
	}
	bustest.Wait(t, "its own view", func() bool { told, wanted, problem := a.state(); return problem == nil && told == 2 && wanted == 2 })
	stop()
	l := s.waitTold(7)
	end := slices.Sorted(slices.Values(l[4:]))
	if end[0] != "end" || end[1] != "withdraw "+udpRoute && end[1] != "withdraw "+tcpRoute || end[2] == end[1] || l[6] != "end" {
		t.Errorf("at the end %q", l[4:])
	}
}

func TestAnnouncerKeeps(t *testing.T) {
	s := newSpeaker(t)
	a, stop := s.announcing(func(a *announcer) { a.keep = true })
	mustPut(t, a, dropTo(1, "203.0.113.7/32", 17))
	s.waitTold(1)
	stop()
	if l := s.waitTold(2); l[1] != "end" {
		t.Errorf("told %q", l)
	}
}

// TestAnnouncerKilled: another program is told of all that is wanted, and that what is not wanted any more is gone.
func TestAnnouncerKilled(t *testing.T) {
	s := newSpeaker(t)
	a, stop := s.announcing(nil)
	defer stop()
	mustPut(t, a, dropTo(1, "203.0.113.7/32", 17), dropTo(2, "203.0.113.7/32", 6))
	s.waitTold(2)
	if err := syscall.Kill(s.pid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	bustest.Wait(t, "that it is missed", func() bool { _, _, problem := a.state(); return problem != nil })
	if err := a.DeleteRules([]uint64{2}); err != nil {
		t.Fatal(err)
	}
	if l := s.waitTold(4); l[2] != "announce "+udpRoute || l[3] != "withdraw "+tcpRoute {
		t.Errorf("told %q", l)
	}
	if told, _, problem := a.state(); problem != nil || told != 1 {
		t.Errorf("%v, %d routes", problem, told)
	}
}

// TestAnnouncerSignalled: a service manager that stops a unit signals the program too, which then cannot take routes back.
func TestAnnouncerSignalled(t *testing.T) {
	s := newSpeaker(t)
	a, stop := s.announcing(nil)
	mustPut(t, a, dropTo(1, "203.0.113.7/32", 17))
	s.waitTold(1)
	if err := syscall.Kill(s.pid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	stop()
	if l := s.lines("told"); !slices.Contains(l, "withdraw "+udpRoute) {
		t.Errorf("told %q", l)
	}
}

// TestAnnouncerRemembers: what a process leaves upstream the next one withdraws, once.
func TestAnnouncerRemembers(t *testing.T) {
	s := newSpeaker(t)
	file := filepath.Join(s.dir, "routes")
	keep := func(a *announcer) { a.keep, a.file = true, file } // as a killed process, which withdraws nothing
	a, stop := s.announcing(keep)
	but := xdp.Rule{ID: 2, Action: policy.Allow, Match: policy.Match{Src: netip.MustParsePrefix("192.0.2.1/32"), Dst: netip.MustParsePrefix("203.0.113.7/32"), HasProtocol: true, Protocol: 17}}
	mustPut(t, a, dropTo(1, "203.0.113.7/32", 17), dropTo(3, "203.0.113.7/32", 6), but)
	s.waitTold(3)
	if err := a.DeleteRules([]uint64{3}); err != nil {
		t.Fatal(err)
	}
	s.waitTold(4)
	stop()
	if l := s.lines("routes"); len(l) != 2 {
		t.Errorf("saved %q", l)
	}
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("discard x; } then { accept; } }\nshutdown\n"); err != nil || f.Close() != nil { // nothing but routes gets through
		t.Fatal(err)
	}
	a, stop = s.announcing(keep)
	if l := s.waitTold(7); l[5] != "withdraw "+udpRoute || !strings.HasSuffix(l[6], "{ accept; } }") || !strings.HasPrefix(l[6], "withdraw ") {
		t.Errorf("told %q", l[4:])
	}
	bustest.Wait(t, "its own view", func() bool { told, _, _ := a.state(); return told == 0 })
	stop()
	_, stop = s.announcing(keep)
	bustest.Wait(t, "a third program", func() bool { return len(s.lines("started")) == 3 })
	stop()
	if l := s.lines("told"); len(l) != 9 { // with the ends of three programs
		t.Errorf("told %q", l)
	}
}

// TestAnnouncerHangs: a program that does not read is killed with what it has started and replaced, and delays nobody.
func TestAnnouncerHangs(t *testing.T) {
	s := newSpeaker(t)
	hang := filepath.Join(s.dir, "hang")
	if err := os.WriteFile(hang, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a, stop := s.announcing(func(a *announcer) { a.hang = time.Second; a.limit = 5000 })
	defer stop()
	bustest.Wait(t, "a program", func() bool { _, _, problem := a.state(); return problem == nil && s.lines("started")[0] != "" })
	first := s.pid()
	var many []xdp.Rule
	for i := range 2000 { // more than a pipe holds
		many = append(many, dropTo(uint64(i+1), netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}), 32).String(), 17)) //nolint:gosec // small
	}
	mustPut(t, a, many...)
	if err := os.Remove(hang); err != nil {
		t.Fatal(err)
	}
	s.waitTold(2000)
	if err := syscall.Kill(first, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the program that hangs is still there: %v", err)
	}

	if err := a.DeleteRules(ids(many[2:])); err != nil { // again, with less than a pipe holds
		t.Fatal(err)
	}
	s.waitTold(2000 + 1998)
	if err := os.WriteFile(hang, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	second := s.pid()
	if err := syscall.Kill(second, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	bustest.Wait(t, "that the next one is missed too", func() bool {
		_, _, problem := a.state()
		return s.pid() != second && problem != nil && strings.Contains(problem.Error(), "has read nothing of its input for 1s")
	})
}

func ids(rules []xdp.Rule) (out []uint64) {
	for _, r := range rules {
		out = append(out, r.ID)
	}
	return out
}

// TestAnnouncerMissing: a program that cannot be started is told, and stopping does not wait for it.
func TestAnnouncerMissing(t *testing.T) {
	s := newSpeaker(t)
	a, stop := s.announcing(func(a *announcer) { a.path = "/nonexistent/program" })
	bustest.Wait(t, "that it is told", func() bool {
		_, _, problem := a.state()
		return problem != nil && strings.Contains(problem.Error(), "no such file")
	})
	stop()
}

func TestFlowSpec(t *testing.T) {
	dst := netip.MustParsePrefix("203.0.113.7/32")
	v6 := netip.MustParsePrefix("2001:db8::7/128")
	for _, tt := range []struct {
		match policy.Match
		want  string // empty: it cannot be said
	}{
		{policy.Match{Dst: dst}, "destination 203.0.113.7/32; "},
		{policy.Match{Src: netip.MustParsePrefix("198.51.100.0/24")}, "source 198.51.100.0/24; "},
		{policy.Match{Dst: dst, HasProtocol: true, Protocol: 17, HasSrcPort: true, SrcPort: 53, HasDstPort: true, DstPort: 80, LengthMin: 1000},
			"destination 203.0.113.7/32; protocol =17; destination-port =80; source-port =53; packet-length >=1000; "},
		{policy.Match{Dst: dst, HasProtocol: true, Protocol: 6, TCPFlags: policy.SYN, TCPFlagsMask: policy.SYN | policy.ACK, LengthMin: 40, LengthMax: 60},
			"destination 203.0.113.7/32; protocol =6; tcp-flags [ =syn&!ack ]; packet-length >=40&<=60; "},
		{policy.Match{Dst: dst, LengthMin: 40, LengthMax: 40}, "destination 203.0.113.7/32; packet-length =40; "},
		{policy.Match{Dst: dst, LengthMax: 40}, "destination 203.0.113.7/32; packet-length <=40; "},
		{policy.Match{Dst: dst, Fragment: policy.FragmentsOnly}, "destination 203.0.113.7/32; fragment [ is-fragment first-fragment ]; "},
		{policy.Match{Dst: v6, HasProtocol: true, Protocol: 17}, "destination 2001:db8::7/128; next-header =17; "},
		{policy.Match{HasProtocol: true, Protocol: 17}, ""},
		{policy.Match{Dst: dst, Fragment: policy.WholeOnly}, ""},
		{policy.Match{Dst: dst, TTLMin: 5}, ""},
		{policy.Match{Dst: dst, TTLMax: 5}, ""},
		{policy.Match{Dst: dst, HasProtocol: true, Protocol: 6, OutOfState: true}, ""},
		{policy.Match{Dst: dst, Host: "example.org"}, ""},
	} {
		got, err := flowSpec(&tt.match)
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%s: %q, %v", tt.match.String(), got, err)
		}
	}
}
