package policy

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestParseList(t *testing.T) {
	text := "\xef\xbb\xbf# a comment\r\n" +
		"192.0.2.7\r\n" +
		"198.51.100.0/24 ; SBL1\n" +
		"\n" +
		"192.0.2.7,again\n" +
		"2001:db8::1#x\n" +
		"  203.0.113.9/25\n" + // host bits are cleared
		"::ffff:192.0.2.8\n" +
		"::ffff:192.0.2.64/122\n" +
		"example.org\n" +
		"192.0.2.300\n" +
		"10.0.0.0/33\n" +
		"fe80::1%eth0\n" +
		"<html\x1b[2J>" + strings.Repeat("x", 200)
	got, err := ParseList([]byte(text), 100)
	if err != nil {
		t.Fatal(err)
	}
	var entries []string
	for _, p := range got.Entries {
		entries = append(entries, p.String())
	}
	want := []string{"192.0.2.7/32", "192.0.2.8/32", "192.0.2.64/26", "198.51.100.0/24", "203.0.113.0/25", "2001:db8::1/128"}
	if !slices.Equal(entries, want) {
		t.Errorf("entries %v, want %v", entries, want)
	}
	if got.Hosts != 3 || got.Rejected != 5 {
		t.Errorf("%d hosts, %d rejected", got.Hosts, got.Rejected)
	}
	var lines []int
	for _, e := range got.Examples {
		lines = append(lines, e.Line)
		if e.Reason == "" || len(e.Text) > maxShown || strings.ContainsRune(e.Text, 0x1b) {
			t.Errorf("example %+v", e)
		}
	}
	if !slices.Equal(lines, []int{10, 11, 12, 13, 14}) {
		t.Errorf("rejected lines %v", lines)
	}
	again, err := ParseList(FormatList(got.Entries), 6)
	if err != nil || !slices.Equal(again.Entries, got.Entries) || again.Rejected != 0 {
		t.Errorf("read again: %+v, %v", again, err)
	}
	if _, err := ParseList(FormatList(got.Entries), 5); !errors.Is(err, ErrListLimit) {
		t.Errorf("six entries with a limit of five: %v", err)
	}
	many, err := ParseList([]byte(strings.Repeat("no\n", 1000)), 10)
	if err != nil || many.Rejected != 1000 || len(many.Examples) != maxExamples {
		t.Errorf("1000 bogus lines: %d, %d examples, %v", many.Rejected, len(many.Examples), err)
	}
}

func FuzzParseList(f *testing.F) {
	f.Add([]byte("192.0.2.1\n10.0.0.0/8 ; x\n2001:db8::/32\nbad\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		l, err := ParseList(text, 1000)
		if err != nil {
			return
		}
		again, err := ParseList(FormatList(l.Entries), 1000)
		if err != nil || again.Rejected != 0 || !slices.Equal(again.Entries, l.Entries) || again.Hosts != l.Hosts {
			t.Errorf("%v became %v, %v", l.Entries, again.Entries, err)
		}
	})
}

func TestCover(t *testing.T) {
	p := netip.MustParsePrefix
	c := NewCover([]netip.Prefix{p("10.0.0.0/8"), p("10.1.0.0/16"), p("192.0.2.0/25"), p("2001:db8::/32")}, []netip.Prefix{p("192.0.2.200/32")})
	for s, want := range map[string]string{
		"10.0.0.0/8": "10.0.0.0/8", "10.1.2.3/32": "10.0.0.0/8", "10.255.0.0/16": "10.0.0.0/8", "8.0.0.0/5": "", "11.0.0.1/32": "", "9.255.255.255/32": "",
		"192.0.2.127/32": "192.0.2.0/25", "192.0.2.128/32": "", "192.0.2.200/32": "192.0.2.200/32", "192.0.2.0/24": "", "2001:db8:1::/48": "2001:db8::/32",
		"::/0": "", "0.0.0.0/0": "", "2001:db9::1/128": "",
	} {
		got, ok := c.Find(p(s))
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("around %s: %v %v, want %q", s, got, ok, want)
		}
	}
	if _, ok := (Cover{}).Find(p("10.0.0.0/8")); ok {
		t.Error("nothing covers something")
	}
}
