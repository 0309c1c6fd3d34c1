package app

import "testing"

var mailSamples = []sample{
	{label: "smtp", port: 25, says: []string{"<220 mx.example.org ESMTP ready\r\n", ">EHLO a.example\r\n"}},
	{label: "smtp", port: 2525, says: []string{"<220 mx.example.org ready\r\n", ">HELO a.example\r\n"}},
	{label: "pop3", port: 110, says: []string{"<+OK ready\r\n", ">USER bob\r\n"}},
	{label: "imap", port: 143, says: []string{"<* OK [CAPABILITY IMAP4rev2] ready\r\n", ">a1 LOGIN bob secret\r\n"}},
	{label: "usenet", port: 119, says: []string{"<200 news.example.org InterNetNews NNRP server ready\r\n", ">MODE READER\r\n"}},
	{label: "ftp", port: 21, says: []string{"<220 FTP server\r\n", ">USER bob\r\n"}},
	{label: "ftp", port: 2121, says: []string{"<220 ready\r\n", ">USER bob\r\n", "<331 more\r\n", ">PASS x\r\n"}},
	{label: "ftp_data", port: 5000, says: []string{"<-rw-r--r--   1 bob bob 12 Jan  1 00:00 a\r\n"}},
}

// TestStartTLS refines a label when the client turns to TLS, and reads the name from its hello.
func TestStartTLS(t *testing.T) {
	hello := string(record(clientHelloMessage("mx.example.org", "", 0)))
	for _, tt := range []struct {
		label, greeting, ask, yes string
	}{
		{"smtps", "220 mx ESMTP\r\n", "EHLO a\r\nSTARTTLS\r\n", "220 go\r\n"},
		{"pop3s", "+OK POP3\r\n", "CAPA\r\nSTLS\r\n", "+OK go\r\n"},
		{"imaps", "* OK IMAP4rev1\r\n", "a1 STARTTLS\r\n", "a1 OK go\r\n"},
		{"ftps", "220 FTP\r\n", "AUTH TLS\r\n", "234 go\r\n"},
	} {
		n, m := uint32(len(tt.ask)), uint32(len(tt.greeting))
		r := play(NewEngine(), key(6, 40000, 4711), part{1, 0, []byte(tt.greeting)}, part{0, 0, []byte(tt.ask)},
			part{1, m, []byte(tt.yes)}, part{0, n, []byte(hello)})
		if r.App != tt.label || r.Confidence != Negotiated {
			t.Errorf("%s: %q %v", tt.label, r.App, r.Confidence)
		}
		if tt.label != "ftps" && r.Host != "mx.example.org" {
			t.Errorf("%s: host %q", tt.label, r.Host)
		}
	}
}

// TestAnnounced labels the data connection that a control connection names.
func TestAnnounced(t *testing.T) {
	for name, line := range map[string]string{
		"passive":  "227 Entering Passive Mode (198,51,100,2,200,10)\r\n",
		"extended": "229 Entering Extended Passive Mode (|||51210|)\r\n",
	} {
		e := NewEngine()
		play(e, key(6, 40000, 21), part{1, 0, []byte("220 FTP server\r\n")}, part{0, 0, []byte("PASV\r\n")}, part{1, 16, []byte(line)})
		same(t, name, play(e, key(6, 40001, 51210), part{1, 0, []byte("anything")}), Result{App: "ftp_data", Final: true, Confidence: Session})
		same(t, name+", another port", play(e, key(6, 40001, 51211)), unknown)
	}
}

// TestExpectationsAreBounded announces more than is kept.
func TestExpectationsAreBounded(t *testing.T) {
	var x expectations
	for i := range 5 * maxExpected {
		x.add(endpoint{port: uint16(i), proto: uint8(i >> 16), addr: [16]byte{byte(i >> 8), byte(i)}}, "tftp") //nolint:gosec // any numbers
	}
	if len(x.young)+len(x.old) > 2*maxExpected {
		t.Errorf("%d and %d are kept", len(x.young), len(x.old))
	}
}

// TestClearCredentials notes passwords that anyone can read.
func TestClearCredentials(t *testing.T) {
	r := play(NewEngine(), key(6, 40000, 110), part{1, 0, []byte("+OK POP3\r\n")}, part{0, 0, []byte("USER bob\r\n")}, part{0, 10, []byte("PASS secret\r\n")})
	if r.Risks != ClearCredentials {
		t.Errorf("risks %v", r.Risks)
	}
}

func FuzzMail(f *testing.F) { fuzzSamples(f, mailSamples) }
