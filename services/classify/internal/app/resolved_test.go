package app

import "testing"

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

func FuzzAnswers(f *testing.F) { fuzz(f, dnsAnswer()) }
