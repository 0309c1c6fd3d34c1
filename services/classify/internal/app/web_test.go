package app

import "testing"

var webSamples = []sample{
	{label: "http2", port: 80, says: []string{">PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"}},
	{label: "http_connect", port: 3128, says: []string{">CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n"}},
	{label: "http_proxy", port: 3128, says: []string{">GET http://example.org/ HTTP/1.1\r\nHost: example.org\r\n\r\n"}},
	{label: "soap", port: 80, says: []string{">POST /a HTTP/1.1\r\nHost: example.org\r\nSOAPAction: \"x\"\r\n\r\n"}},
	{label: "websocket", port: 80, says: []string{
		">GET /a HTTP/1.1\r\nHost: example.org\r\nUpgrade: websocket\r\n\r\n", "<HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\n",
		">\x81\x82abcdxy"}},
	{label: "http2", port: 80, says: []string{">GET / HTTP/1.1\r\nHost: example.org\r\nUpgrade: h2c\r\n\r\n", "<HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\n\r\n"}},
	{label: "http", port: 80, says: []string{">GET /a HTTP/1.1\r\nHost: example.org\r\nUpgrade: websocket\r\n\r\n", "<HTTP/1.1 200 OK\r\n\r\n"}},
	{label: "http", port: 80, says: []string{">GET /a\r\n", "<<html>"}},
	{label: "http", port: 80, says: []string{">GET HTTP/1.1\r\nHost: example.org\r\n\r\n", "<HTTP/1.1 400 Bad Request\r\n\r\n"}},
	{label: "websocket", port: 12345, whole: true, says: []string{"<\x81\x05hello", ">\x81\x85abcdxxxxx"}}, // begun before
}

// TestWebFacts reads what a request says of itself.
func TestWebFacts(t *testing.T) {
	r := play(NewEngine(), key(6, 1, 80), part{0, 0, []byte("POST /x HTTP/1.1\r\nHost: a.example\r\nUser-Agent: probe/1\r\nAuthorization: Basic eDp5\r\n\r\n")},
		part{1, 0, []byte("HTTP/1.1 200 OK\r\n\r\nMZ\x90\x00")})
	if r.Method != "POST" || r.UserAgent != "probe/1" || r.Risks != ClearCredentials|Executable || !r.Final {
		t.Errorf("%+v", r)
	}
	if s := r.Risks.String(); s != "clear_credentials,executable" {
		t.Errorf("risks %q", s)
	}
}

func FuzzWeb(f *testing.F) { fuzzSamples(f, webSamples) }
