package policy

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestParseDomains(t *testing.T) {
	text := "\xef\xbb\xbf# a comment\r\n" +
		"Example.ORG\r\n" +
		"*.wild.example\n" +
		".dotted.example.\n" +
		"\n" +
		"   spaced.example ; why\n" +
		"example.org,again\n" +
		"0.0.0.0 ads.example tracker.example # two names\n" +
		"127.0.0.1\tlocalhost\n" +
		"::1 ip6-localhost ip6-loopback\n" +
		"fe80::1%lo0 localhost\n" +
		"bücher.example\n" +
		"BÜCHER.example\n" +
		"_dmarc.under_score.example#x\n" +
		"xn--bcher-kva.test\n" +
		"192.0.2.1\n" +
		"10.0.0.0/8\n" +
		"com\n" +
		"*.\n" +
		"*.*.example\n" +
		"a..example\n" +
		"-a.example\n" +
		"https://example.net/x\n" +
		strings.Repeat("a", 64) + ".example\n" +
		strings.Repeat("a.", 127) + "example\n" +
		"||adblock.example^\n" +
		"name.123\n" +
		"0.0.0.0 good.example bad..example\n" +
		"<html\x1b[2J>"
	got, err := ParseDomains([]byte(text), 100)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"_dmarc.under_score.example", "ads.example", "dotted.example", "example.org", "good.example", "spaced.example", "tracker.example",
		"wild.example", "xn--bcher-kva.example", "xn--bcher-kva.test",
	}
	if !slices.Equal(got.Entries, want) {
		t.Errorf("entries %q, want %q", got.Entries, want)
	}
	var lines []int
	for _, e := range got.Examples {
		lines = append(lines, e.Line)
		if e.Reason == "" || len(e.Text) > maxShown || strings.ContainsRune(e.Text, 0x1b) {
			t.Errorf("example %+v", e)
		}
	}
	if wanted := []int{16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29}; got.Rejected != len(wanted) || !slices.Equal(lines, wanted) {
		t.Errorf("%d rejected, lines %v", got.Rejected, lines)
	}
	again, err := ParseDomains(FormatDomains(got.Entries), len(want))
	if err != nil || !slices.Equal(again.Entries, got.Entries) || again.Rejected != 0 {
		t.Errorf("read again: %+v, %v", again, err)
	}
	if _, err := ParseDomains(FormatDomains(got.Entries), len(want)-1); !errors.Is(err, ErrListLimit) {
		t.Errorf("one more than the limit: %v", err)
	}
	many, err := ParseDomains([]byte(strings.Repeat("no\n", 1000)), 10)
	if err != nil || many.Rejected != 1000 || len(many.Examples) != maxExamples {
		t.Errorf("1000 bogus lines: %d, %d examples, %v", many.Rejected, len(many.Examples), err)
	}
}

func FuzzParseDomains(f *testing.F) {
	f.Add([]byte("example.org\n*.b.example\n0.0.0.0 a.example c.example\nbücher.example\nbad\n"))
	f.Add([]byte("::1 ip6-localhost\n.x.y.\n\xff.example\nß.example\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		l, err := ParseDomains(text, 1000)
		if err != nil {
			return
		}
		for _, d := range l.Entries {
			if err := CheckDomain(d); err != nil || CheckDomain([]byte(d)) != nil || !InDomain(d, d) || !InDomain("x."+d, d) || InDomain("x"+d, d) {
				t.Errorf("%q: %v", d, err)
			}
		}
		again, err := ParseDomains(FormatDomains(l.Entries), 1000)
		if err != nil || again.Rejected != 0 || !slices.Equal(again.Entries, l.Entries) {
			t.Errorf("%q became %q, %v", l.Entries, again.Entries, err)
		}
	})
}

func TestInDomain(t *testing.T) {
	for host, want := range map[string]bool{
		"example.org": true, "www.example.org": true, "a.b.example.org": true, "badexample.org": false, "example.org.net": false, "org": false, "": false, ".example.org": true,
	} {
		if InDomain(host, "example.org") != want {
			t.Errorf("%q in example.org: %v", host, !want)
		}
	}
}

func TestHostRule(t *testing.T) {
	r := Rule{ID: "r", Action: Drop, Origin: OriginUser, Match: Match{Host: "example.org", Protocol: 6, HasProtocol: true, DstPort: 443, HasDstPort: true}}
	b, err := Marshal(&r)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := Unmarshal(b); err != nil || back != r {
		t.Errorf("%s: %+v, %v", b, back, err)
	}
	if got := r.Match.String(); got != "host example.org proto 6 dport 443" {
		t.Errorf("it reads %q", got)
	}
	of := Rule{ID: "f", Action: Drop, Host: "www.example.org", List: "bad", HostRule: "r", Match: Match{Protocol: 6, HasProtocol: true}}
	if b, err = Marshal(&of); err != nil {
		t.Fatal(err)
	}
	if back, err := Unmarshal(b); err != nil || back != of {
		t.Errorf("%s: %+v, %v", b, back, err)
	}
	limit := r
	limit.Action, limit.RatePPS = RateLimit, 5
	if err := limit.Validate(); err != nil {
		t.Error(err)
	}
	if limit.PerSource = true; limit.Validate() == nil {
		t.Error("a rule by host limits each source")
	}
	for name, m := range map[string]Match{
		"upper case": {Host: "Example.org"}, "top-level": {Host: "org"}, "icmp": {Host: "a.b", Protocol: 1, HasProtocol: true},
		"flags": {Host: "a.b", Protocol: 6, HasProtocol: true, TCPFlags: SYN, TCPFlagsMask: SYN}, "length": {Host: "a.b", LengthMax: 60},
		"ttl": {Host: "a.b", TTLMin: 3}, "fragments": {Host: "a.b", Fragment: WholeOnly},
	} {
		if m.Validate() == nil {
			t.Errorf("%s: %+v was accepted", name, m)
		}
	}
}
