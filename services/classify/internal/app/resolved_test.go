package app

import (
	"strings"
	"testing"
)

// dnsAnswer answers a question for www.example.org with an alias and the test flows' destination.
func dnsAnswer() []byte {
	b := dnsQuery("www.example.org", 1)
	b[2], b[3], b[7] = 0x81, 0x80, 2
	b = append(b, 0xC0, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 4, 1, 'a', 0xC0, 16)
	return append(b, 0xC0, 44, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 198, 51, 100, 2)
}

func TestNamesFromAnswers(t *testing.T) {
	resolver := key(17, 40000, 53)
	resolver.Dst[15] = 53
	e := NewEngine()
	noise := part{0, 0, []byte{0x55, 0xAA, 0x13, 0x55}}
	same(t, "before", play(e, key(17, 40001, 9999), noise), unknown)
	play(e, resolver, part{0, 0, dnsQuery("www.example.org", 1)}, part{1, 0, dnsAnswer()})
	same(t, "after", play(e, key(17, 40001, 9999), noise), Result{App: Unknown, Host: "www.example.org", HostSource: "dns"})
	request := part{0, 0, []byte("GET / HTTP/1.1\r\nHost: b.example\r\n\r\n")}
	same(t, "the flow's own name", play(e, key(6, 40001, 80), request), Result{App: "http", Host: "b.example"})
	other := key(17, 40001, 9999)
	other.Src[15] = 99
	same(t, "another client", play(e, other, noise), unknown)
}

func TestAnswersAreBounded(t *testing.T) {
	var r resolved
	for i := range 5 * maxResolved {
		r.add(pair{addr: [16]byte{byte(i), byte(i >> 8), byte(i >> 16)}}, "a.example")
	}
	if len(r.young) > maxResolved || len(r.old) > maxResolved {
		t.Errorf("%d and %d are kept", len(r.young), len(r.old))
	}
}

// TestAnswersThatLie has pointers to themselves, lengths past the end and more answers than there are.
func TestAnswersThatLie(t *testing.T) {
	e := NewEngine()
	good := dnsAnswer()
	for at := 12; at < len(good); at++ {
		for _, v := range []byte{0, 0x3F, 0xC0, 0xFF} {
			b := append([]byte{}, good...)
			b[at], b[6] = v, 0xFF
			play(e, key(17, 40000, 53), part{1, 0, b[:len(b)-at%7]})
		}
	}
}

// dnsFacts replays a conversation with a resolver and returns the flow's facts.
func dnsFacts(t *testing.T, parts ...part) Facts {
	t.Helper()
	e := NewEngine()
	f := e.Open(key(17, 40000, 53))
	for _, p := range parts {
		f.Segment(p.dir, p.at, p.data)
	}
	facts := f.Result().Facts
	f.Release()
	return facts
}

func TestAnswersAsText(t *testing.T) {
	ask := part{0, 0, dnsQuery("www.example.org", 1)}
	if got := dnsFacts(t, ask); got.DNSType != "A" || got.DNSRcode != "" || got.DNSAnswers != "" {
		t.Errorf("without an answer: %+v", got)
	}
	if got := dnsFacts(t, ask, part{1, 0, dnsAnswer()}); got.DNSRcode != "NOERROR" || got.DNSAnswers != "a.example.org 198.51.100.2" {
		t.Errorf("alias and address: %+v", got)
	}
	no := dnsQuery("www.example.org", 1)
	no[2], no[3] = 0x81, 0x83
	if got := dnsFacts(t, ask, part{1, 0, no}); got.DNSRcode != "NXDOMAIN" || got.DNSAnswers != "" {
		t.Errorf("no such name: %+v", got)
	}
	six := dnsQuery("www.example.org", 28)
	six[2], six[3], six[7] = 0x81, 0x80, 40
	for i := range 40 {
		six = append(six, 0xC0, 12, 0, 28, 0, 1, 0, 0, 0, 9, 0, 16, 0x20, 1, 0x0D, 0xB8, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, byte(i))
	}
	got := dnsFacts(t, part{0, 0, dnsQuery("www.example.org", 28)}, part{1, 0, six})
	if n := strings.Fields(got.DNSAnswers); len(n) == 0 || len(n) > maxAnswersKept || len(got.DNSAnswers) > maxAnswerText || n[0] != "2001:db8:102:304:506:708:90a:b00" {
		t.Errorf("forty addresses: %d, %q", len(n), got.DNSAnswers)
	}
	// A name that goes in circles, and one that leads outside, end nothing but themselves.
	lies := dnsQuery("www.example.org", 1)
	lies[2], lies[3], lies[7] = 0x81, 0x80, 3
	at := byte(len(lies))
	lies = append(lies, 0xC0, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 2, 0xC0, at+12)
	lies = append(lies, 0xC0, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 2, 0xFF, 0xFF)
	lies = append(lies, 0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 198, 51, 100, 7)
	if got := dnsFacts(t, ask, part{1, 0, lies}); got.DNSAnswers != "198.51.100.7" {
		t.Errorf("pointers that lie: %+v", got)
	}
}

func FuzzAnswers(f *testing.F) { fuzz(f, dnsAnswer()) }
