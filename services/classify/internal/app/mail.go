package app

import "bytes"

// mailProtocols are mail, news and file transfer, whose commands are lines of text.
var mailProtocols = []protocol{
	{label: "smtp", stream: smtpStream, also: []string{"smtps"}},
	{label: "pop3", stream: pop3Stream, also: []string{"pop3s"}},
	{label: "imap", stream: imapStream, also: []string{"imaps"}},
	{label: "usenet", stream: nntpStream},
	{label: "ftp", stream: ftpStream, also: []string{"ftps"}},
	{label: "ftp_data", stream: ftpListing, rank: loose},
}

// A server greets first, and several protocols greet alike. So the greeting alone is enough only where it names
// the protocol; else the client's first command decides.

// noteSecure is set when the client asked for TLS in the middle of a connection.
const noteSecure = 2

// command returns the first word of a line in capital letters, its length bounded by 12.
func command(b []byte, out *[12]byte) []byte {
	n := 0
	for _, c := range b {
		if c == ' ' || c == '\r' || c == '\n' {
			break
		}
		if c >= 'a' && c <= 'z' {
			c -= 'a' - 'A'
		}
		if n == len(out) || c < 'A' || c > 'Z' {
			return nil
		}
		out[n] = c
		n++
	}
	return out[:n]
}

// wholeLine tells whether b holds a line, and whether it may still become one of text.
func wholeLine(b []byte) (whole, text bool) {
	end := bytes.IndexByte(b, '\n')
	if end < 0 {
		return false, len(b) < 512 && printable(b)
	}
	return true, printable(b[:end])
}

// secured refines a label once the client has asked for TLS and got it.
func (f *Flow) secured(in *input, ask, name string) outcome {
	b := in.data
	for at := 1; f.notes&noteSecure == 0 && at+len(ask) <= len(b); at++ {
		if b[at+len(ask)-1] == '\n' && foldedAt(b, at, ask) {
			f.notes |= noteSecure
		}
	}
	if f.notes&noteSecure == 0 {
		return label
	}
	// The handshake's record follows the command.
	if i := bytes.Index(b, []byte("\n\x16\x03")); i >= 0 {
		f.insideTLS(b[i+1:])
		return f.is(name, Negotiated, final)
	}
	return f.is(name, Negotiated, label)
}

// foldedAt tells whether s, in capitals, stands at an offset of b in letters of any case, as commands may (RFC 5321 2.4).
func foldedAt(b []byte, offset int, s string) bool {
	for i := range s {
		c := b[offset+i]
		if c >= 'a' && c <= 'z' {
			c -= 'a' - 'A'
		}
		if c != s[i] {
			return false
		}
	}
	return true
}

// insideTLS reads a ClientHello that another protocol led to, and tells whether it is all there.
func (f *Flow) insideTLS(b []byte) (whole bool) {
	var h hello
	message, whole := tlsMessage(f.engine, b)
	if len(message) > 4 && message[0] == clientHello {
		if h.parse(message); !h.bad {
			h.keep(f)
			h.prints(f, 't')
		}
	}
	return whole
}

// smtpStream recognises SMTP (RFC 5321 3.1, 4.1.1) and LMTP (RFC 2033).
func smtpStream(f *Flow, in *input) outcome {
	b := in.data
	var word [12]byte
	if f.at >= 0 {
		f.risk(anyOf(b, "AUTH LOGIN", "AUTH PLAIN") && f.notes&noteSecure == 0, ClearCredentials)
		return f.secured(in, "STARTTLS\r\n", "smtps")
	}
	whole, text := wholeLine(b)
	if !text {
		return no
	}
	if digit(b[0]) {
		if len(b) < 4 {
			return more
		}
		if c := code(b); c != 220 && c != 421 && c != 554 {
			return no
		}
		if anyOf(b, "SMTP", "Postfix", "Sendmail", "Exim") && !anyOf(b, "FTP") {
			return label
		}
		if smtpCommand(command(f.other(in), &word)) {
			return label
		}
		return more
	}
	if !whole {
		return more
	}
	if smtpCommand(command(b, &word)) {
		return label
	}
	return no
}

func smtpCommand(word []byte) bool {
	switch string(word) {
	case "EHLO", "HELO", "LHLO", "MAIL", "RCPT", "VRFY", "EXPN":
		return true
	}
	return false
}

// pop3Stream recognises POP3 (RFC 1939 3).
func pop3Stream(f *Flow, in *input) outcome {
	b := in.data
	if f.at >= 0 {
		f.risk(anyOf(b, "\nPASS ", "\npass ") && f.notes&noteSecure == 0, ClearCredentials)
		return f.secured(in, "STLS\r\n", "pop3s")
	}
	if b[0] == '+' {
		if o := begins(b, "+OK"); o != label {
			return o
		}
		if whole, text := wholeLine(b); !text || whole && len(b) > 3 && b[3] != ' ' && b[3] != '\r' && b[3] != '\n' {
			return no
		}
		var word [12]byte
		if anyOf(b, "POP", "pop", "Dovecot") || pop3Command(command(f.other(in), &word)) {
			return label
		}
		return more
	}
	whole, text := wholeLine(b)
	if !text {
		return no
	}
	if !whole {
		return more
	}
	var word [12]byte
	if pop3Command(command(b, &word)) && prefixed(f.other(in), "+OK") {
		return label
	}
	return more
}

func pop3Command(word []byte) bool {
	switch string(word) {
	case "CAPA", "USER", "APOP", "AUTH", "STLS", "PASS", "STAT", "LIST", "RETR", "UIDL", "DELE", "QUIT":
		return true
	}
	return false
}

// imapStream recognises IMAP (RFC 9051 2.2): the greeting, or a tagged command.
func imapStream(f *Flow, in *input) outcome {
	b := in.data
	if f.at >= 0 {
		f.risk(anyOf(b, " LOGIN ", " login ") && f.notes&noteSecure == 0, ClearCredentials)
		return f.secured(in, " STARTTLS\r\n", "imaps")
	}
	whole, text := wholeLine(b)
	if !text {
		return no
	}
	if b[0] == '*' {
		if len(b) < 6 && !whole {
			return more
		}
		if !prefixed(b, "* OK") && !prefixed(b, "* PREAUTH") && !prefixed(b, "* BYE") {
			return no
		}
		if anyOf(b, "IMAP", "imap", "Dovecot", "CAPABILITY") {
			return label
		}
		return more
	}
	if !whole {
		return more
	}
	space := bytes.IndexByte(b, ' ')
	if space < 1 || space > 12 {
		return no
	}
	for _, c := range b[:space] {
		if !alphanumeric(c) && c != '.' {
			return no
		}
	}
	var word [12]byte
	switch string(command(b[space+1:], &word)) {
	case "CAPABILITY", "LOGIN", "STARTTLS", "SELECT", "EXAMINE", "NOOP", "AUTHENTICATE", "LOGOUT", "ID":
		if prefixed(f.other(in), "* ") || string(word[:10]) == "CAPABILITY" {
			return label
		}
		return more
	}
	return no
}

// nntpStream recognises news (RFC 3977 5.1, RFC 4643 2.3).
func nntpStream(f *Flow, in *input) outcome {
	b := in.data
	whole, text := wholeLine(b)
	if !text {
		return no
	}
	if digit(b[0]) {
		if len(b) < 4 {
			return more
		}
		if c := code(b); c != 200 && c != 201 {
			return no
		}
		if anyOf(b, "NNTP", "nntp", "InterNetNews", "INN ", "news server", "News") {
			return final
		}
		return more
	}
	if !whole {
		return more
	}
	if anyOf(b[:min(len(b), 14)], "AUTHINFO USER ", "MODE READER\r\n") && (code(f.other(in)) == 200 || code(f.other(in)) == 201) {
		return final
	}
	return no
}

// ftpStream recognises the control connection of FTP (RFC 959 4.1, RFC 4217) and reads where data will flow.
func ftpStream(f *Flow, in *input) outcome {
	b := in.data
	var word [12]byte
	if f.at < 0 {
		whole, text := wholeLine(b)
		if !text {
			return no
		}
		if digit(b[0]) {
			if len(b) < 4 {
				return more
			}
			if c := code(b); c != 220 && c != 120 && c != 421 && c != 230 && c != 331 && c != 530 {
				return no
			}
			if !anyOf(b, "FTP", "ftp", "FileZilla", "Microsoft FTP") && !ftpCommand(command(f.other(in), &word)) {
				return more
			}
			return label
		}
		if !whole {
			return more
		}
		w := command(b, &word)
		if !ftpCommand(w) {
			return no
		}
		if c := code(f.other(in)); c != 220 && (c != 0 || string(w) == "USER" || string(w) == "AUTH") {
			return more
		}
	}
	f.ftpPorts(in)
	f.risk(anyOf(b, "\nPASS ") && f.notes&noteSecure == 0, ClearCredentials)
	if bytes.Contains(b, []byte("AUTH TLS\r\n")) || bytes.Contains(b, []byte("AUTH SSL\r\n")) {
		f.notes |= noteSecure
		return f.is("ftps", Negotiated, label)
	}
	return label
}

func ftpCommand(word []byte) bool {
	switch string(word) {
	case "USER", "AUTH", "FEAT", "SYST", "PASV", "EPSV", "PORT", "EPRT", "RETR", "STOR", "NLST", "CWD", "OPTS", "SITE", "PWD", "TYPE":
		return true
	}
	return false
}

// ftpPorts reads the replies to PASV (227, six numbers) and EPSV (229, RFC 2428 3), and the command PORT.
func (f *Flow) ftpPorts(in *input) {
	const passive, extended, active = "227 ", "229 ", "PORT "
	for rest := in.data; len(rest) > 0; {
		line := rest
		if end := bytes.IndexByte(rest, '\n'); end >= 0 {
			line, rest = rest[:end], rest[end+1:]
		} else {
			return
		}
		own := f.key.Src // the side that sends this line opens the port
		if in.dir == 1 {
			own = f.key.Dst
		}
		switch {
		case prefixed(line, passive), prefixed(line, active):
			if port := lastTwoNumbers(line); port != 0 {
				f.announce("ftp_data", 6, own, port)
			}
		case prefixed(line, extended):
			if at := bytes.Index(line, []byte("|||")); at >= 0 {
				port := 0
				for _, c := range line[at+3:] {
					if !digit(c) || port > 65535 {
						break
					}
					port = port*10 + int(c-'0')
				}
				if port <= 65535 {
					f.announce("ftp_data", 6, own, uint16(port)) //nolint:gosec // checked
				}
			}
		}
	}
}

// lastTwoNumbers is the port of h1,h2,h3,h4,p1,p2; 0 when there are not six numbers.
func lastTwoNumbers(line []byte) uint16 {
	var numbers [6]int
	n, digits := 0, 0
	for i := 4; i < len(line); i++ {
		c := line[i]
		switch {
		case digit(c):
			if n == len(numbers) || digits == 3 {
				return 0
			}
			numbers[n] = numbers[n]*10 + int(c-'0')
			digits++
		case digits > 0 && c == ',':
			n, digits = n+1, 0
		case digits > 0:
			n, digits = n+1, 0
			i = len(line)
		}
	}
	if digits > 0 {
		n++
	}
	if n != 6 || numbers[4] > 255 || numbers[5] > 255 {
		return 0
	}
	return uint16(numbers[4]<<8 | numbers[5]) //nolint:gosec // checked
}

// ftpListing recognises a data connection that nobody announced by a listing as ls writes it.
func ftpListing(_ *Flow, in *input) outcome {
	b := in.data
	if b[0] != '-' && b[0] != 'd' {
		return no
	}
	if len(b) < 10 {
		return more
	}
	for i, c := range b[1:10] {
		if c != '-' && c != "rwxrwxrwx"[i] && c != 's' && c != 't' {
			return no
		}
	}
	return final
}
