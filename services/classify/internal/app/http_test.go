package app

import (
	"strings"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/packet"
)

func TestHTTP(t *testing.T) {
	tcp := uint8(packet.ProtoTCP)
	long := "GET /" + strings.Repeat("a", MaxBytes) + " HTTP/1.1\r\nHost: x\r\n\r\n"
	check(t, []one{
		{"get", tcp, 1, 80, []byte("GET / HTTP/1.1\r\nhost:  Example.org \r\n\r\n"), Result{App: "http", Host: "example.org"}},
		{"other port", tcp, 1, 4711, []byte("POST /x HTTP/1.0\r\nHost: [2001:db8::1]\r\n"), Result{App: "http", Host: "[2001:db8::1]"}},
		{"port in host", tcp, 1, 80, []byte("GET / HTTP/1.1\r\nHost: example.org:81\r\n\r\n"), Result{App: "http", Host: "example.org"}},
		{"bare newlines", tcp, 1, 80, []byte("GET / HTTP/1.1\nHost: example.org\n\n"), Result{App: "http", Host: "example.org"}},
		{"no host", tcp, 1, 80, []byte("GET / HTTP/1.0\r\n\r\n"), Result{App: "http"}},
		{"host to come", tcp, 1, 80, []byte("GET / HTTP/1.1\r\nAccept: */*\r\nHos"), Result{App: "http"}},
		{"long target", tcp, 1, 80, []byte(long), Result{App: "http"}},
		{"status line", tcp, 80, 1, []byte("HTTP/1.1 404 Not Found\r\n"), Result{App: "http"}},
		{"webdav", tcp, 1, 80, []byte("PROPFIND / HTTP/1.1\r\nHost: a\r\n\r\n"), Result{App: "http", Host: "a"}},
		{"short method", tcp, 1, 80, []byte("GE"), unknown},
		{"not a method", tcp, 1, 80, []byte("GETX / HTTP/1.1\r\n"), unknown},
		{"rtsp", tcp, 1, 554, []byte("OPTIONS rtsp://a RTSP/1.0\r\nCSeq: 1\r\n"), Result{App: "rtsp"}},
		{"sip", tcp, 1, 5060, []byte("OPTIONS sip:a SIP/2.0\r\n"), Result{App: "sip"}},
		{"no version", tcp, 1, 80, []byte("GET /\r\n"), unknown},
		{"binary target", tcp, 1, 80, []byte("GET \x00\x01\x02"), unknown},
		{"proxy tunnel", tcp, 1, 3128, []byte("CONNECT a:443 HTTP/1.1\r\n\r\n"), Result{App: "http_connect", Host: "a"}},
		{"proxy request", tcp, 1, 3128, []byte("GET http://a/ HTTP/1.1\r\n\r\n"), Result{App: "http_proxy"}},
	})
}

// TestOtherMethod: an answer tells that a request with a method of somebody's own was HTTP.
func TestOtherMethod(t *testing.T) {
	for request, want := range map[string]string{
		"BCOPY /a HTTP/1.1\r\nHost: Example.org:80\r\n\r\n":                       "example.org",
		"CCM_POST /a HTTP/1.0\nHost: example.org\n":                               "example.org",
		"BCOPY /a RTSP/1.0\r\nHost: example.org\r\n\r\n":                          "",
		"B\x01 /a HTTP/1.1\r\nHost: example.org\r\n\r\n":                          "",
		strings.Repeat("B", maxMethod+1) + " / HTTP/1.1\r\nHost: example.org\r\n": "",
	} {
		s := sample{says: []string{">" + request, "<HTTP/1.1 501 Not Implemented\r\n\r\n"}}
		r := play(NewEngine(), key(packet.ProtoTCP, 1, 80), s.parts()...)
		if r.App != "http" || r.Host != want || (r.Method != "") != (want != "") {
			t.Errorf("%q: %+v", request, r)
		}
	}
}

func FuzzHTTP(f *testing.F) {
	fuzz(f, []byte("GET / HTTP/1.1\r\nHost: example.org:80\r\n\r\n"), []byte("HTTP/1.1 200 OK\r\n\r\n"),
		[]byte("CONNECT a:1 HTTP/1.1\r\n"), []byte("PUT * HTTP/1.0\nHost:[::1]:8\n\n"))
}
