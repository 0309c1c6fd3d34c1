package app

import "bytes"

// httpMethods are the registered methods in use (RFC 9110 9.3, RFC 5789, RFC 4918, RFC 3253, RFC 5323).
var httpMethods = []string{
	"GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT",
	"PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK", "REPORT", "SEARCH",
}

// webProtocols are HTTP and what it turns into.
var webProtocols = []protocol{
	{label: "http", stream: httpStream, also: []string{"http_proxy", "http_connect", "websocket", "soap", "http2"}},
	{label: "http2", stream: starts("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")}, // RFC 9113 3.4
	{label: "websocket", stream: webSocketStream, rank: loose},
}

// httpStream recognises HTTP/1 by a request line or a status line (RFC 9112 3 and 4).
func httpStream(f *Flow, in *input) outcome {
	b := in.data
	if isStatus, short := httpStatus(b); short {
		return more
	} else if isStatus {
		return f.httpAnswer(in)
	}
	at, short := httpMethod(b)
	if short {
		return more
	}
	if at == 0 {
		return f.simpleAnswer(in)
	}
	line := b[at:]
	end := bytes.IndexByte(line, '\n')
	if end < 0 {
		for _, c := range line {
			if c < ' ' && c != '\r' || c == 0x7F {
				return no
			}
		}
		if len(b) >= maxUndecided || f.dirs[in.dir].exhausted() {
			return label // a request target longer than what is kept of an unknown flow
		}
		return more
	}
	target, version := line[:end], []byte(nil)
	if i := bytes.LastIndexByte(target, ' '); i >= 0 {
		target, version = target[:i], bytes.TrimRight(target[i+1:], "\r")
	}
	if i := bytes.Index(target, []byte("HTTP/1.")); version == nil && i >= 0 && i <= 1 {
		target, version = target[:i], bytes.TrimRight(target[i:], "\r") // a request for nothing, or without the space
		f.risk(true, Malformed)
	}
	if !bytes.HasPrefix(version, []byte("HTTP/1.")) {
		if version == nil && simpleRequest(b) {
			if len(f.other(in)) == 0 {
				return more
			}
			return simpleBody(f.other(in))
		}
		if len(version) != len("HTTP/1.1") || !bytes.HasPrefix(version, []byte("HTTP/")) || version[6] != '.' || len(target) == 0 {
			return no // RTSP, SIP, ICAP and others share the shape
		}
		f.risk(true, Malformed) // a version that does not exist
	}
	f.facts.Method = f.engine.names.get(b[:at-1])
	return f.httpFields(in, target, line[end+1:])
}

// simpleRequest tells whether b begins a request of HTTP/0.9 (RFC 1945 4.1): a path and no version. Several shells of
// text would pass, so what is answered has to be a page.
func simpleRequest(b []byte) bool {
	if end := bytes.IndexByte(b, '\n'); end >= 0 {
		b = b[:end]
	}
	return prefixed(b, "GET /") && bytes.IndexByte(b[4:], ' ') < 0
}

// simpleAnswer is simpleRequest seen from the other side.
func (f *Flow) simpleAnswer(in *input) outcome {
	if o := simpleBody(in.data); o != final {
		return o
	}
	request := f.other(in)
	if len(request) == 0 {
		return more
	}
	if !simpleRequest(request) {
		return no
	}
	return final
}

// simpleBody takes the beginning of a page.
func simpleBody(b []byte) outcome {
	b = bytes.TrimLeft(b, " \t\r\n")
	switch {
	case len(b) == 0:
		return more
	case b[0] == '<':
		return final
	}
	return no
}

// httpFields reads the header of a request.
func (f *Flow) httpFields(in *input, target, head []byte) outcome {
	if equalFold(field(head, "Upgrade"), "websocket") {
		f.httpHost(field(head, "Host"))
		f.userAgent(head)
		return f.upgraded(head)
	}
	done := label
	if len(in.data) >= MaxBytes || bytes.Contains(head, []byte("\n\r\n")) || bytes.HasPrefix(head, []byte("\r\n")) {
		done = f.helloDone(in.dir)
	}
	host := field(head, "Host")
	switch {
	case f.facts.Method == "CONNECT": // RFC 9110 9.3.6
		if host == nil {
			host = target
		}
		f.httpHost(host)
		return f.is("http_connect", Payload, done)
	case bytes.HasPrefix(target, []byte("http://")), bytes.HasPrefix(target, []byte("https://")):
		f.httpHost(host)
		f.userAgent(head)
		return f.is("http_proxy", Payload, done) // RFC 9112 3.2.2
	}
	f.httpHost(host)
	f.userAgent(head)
	f.risk(prefixed(field(head, "Authorization"), "Basic "), ClearCredentials)
	if field(head, "SOAPAction") != nil || bytes.HasPrefix(field(head, "Content-Type"), []byte("application/soap+xml")) {
		return f.is("soap", Negotiated, done) // SOAP 1.1 6.1.1, SOAP 1.2 part 2
	}
	return done
}

// otherMethod reads a request whose method is none of httpMethods, as anybody may have (RFC 9110 9.1), once an answer has
// told that it is HTTP.
func (f *Flow) otherMethod(b []byte) {
	end := bytes.IndexByte(b, '\n')
	if end < 0 {
		return
	}
	line := bytes.TrimRight(b[:end], "\r")
	at := bytes.IndexByte(line, ' ')
	if version := bytes.LastIndexByte(line, ' '); at < 1 || at > maxMethod || version == at || !bytes.HasPrefix(line[version+1:], []byte("HTTP/1.")) {
		return
	}
	for _, c := range line[:at] {
		if (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && !digit(c) && c != '-' && c != '_' {
			return
		}
	}
	f.facts.Method = f.engine.names.get(line[:at])
	f.httpHost(field(b[end+1:], "Host"))
	f.userAgent(b[end+1:])
}

// upgraded reads on behind a header that asks for or agrees to WebSocket: the first frame makes it one (RFC 6455
// 4.1 and 5.2).
func (f *Flow) upgraded(head []byte) outcome {
	end := bytes.Index(head, []byte("\r\n\r\n"))
	if end < 0 || len(head) < end+6 {
		return label
	}
	if frame := head[end+4:]; frame[0]&0x70 == 0 && (frame[0]&15 <= 2 || frame[0]&15 >= 8 && frame[0]&15 <= 10) {
		return f.is("websocket", Negotiated, final)
	}
	return label
}

// httpHost keeps a Host field without its port.
func (f *Flow) httpHost(host []byte) {
	if i := bytes.LastIndexByte(host, ':'); i > 0 && bytes.IndexByte(host[i:], ']') < 0 {
		host = host[:i]
	}
	if len(host) > 0 {
		f.setHost(host)
	}
}

// maxMethod bounds a method that is not registered, in bytes.
const maxMethod = 32

// maxUserAgent bounds what is kept of a User-Agent field, in bytes.
const maxUserAgent = 256

func (f *Flow) userAgent(head []byte) {
	agent := field(head, "User-Agent")
	agent = agent[:min(len(agent), maxUserAgent)]
	if len(agent) > 0 && printable(agent) {
		f.facts.UserAgent = f.engine.names.get(agent)
	}
}

// httpAnswer reads the header of an answer and looks at the first bytes of its body.
func (f *Flow) httpAnswer(in *input) outcome {
	b := in.data
	if f.facts.Method == "" && f.host == "" {
		request := f.other(in)
		if d := &f.dirs[in.dir^1]; d.buf != nil {
			request = d.prefix()
		}
		f.otherMethod(request)
	}
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		if len(b) >= MaxBytes {
			return f.helloDone(in.dir)
		}
		return label
	}
	if at(b, 9, "101") {
		switch upgrade := field(b, "Upgrade"); {
		case equalFold(upgrade, "websocket"):
			return f.upgraded(b)
		case equalFold(upgrade, "h2c"):
			return f.is("http2", Negotiated, final) // RFC 7540 3.2
		}
	}
	if body := b[end+4:]; len(body) >= 4 {
		f.risk(prefixed(body, "MZ") || prefixed(body, "\x7fELF"), Executable)
	}
	return f.helloDone(in.dir)
}

// webSocketStream recognises a connection whose upgrade was not seen: a frame with text or a control code, no
// reserved bits, whose length is the segment's; a client's is masked (RFC 6455 5.2). Two bytes are little, so
// both sides have to look like it.
func webSocketStream(f *Flow, in *input) outcome {
	masked, ok := webSocketFrame(in.data)
	if !ok {
		return no
	}
	other := f.other(in)
	if len(other) == 0 {
		return more
	}
	size := f.dirs[in.dir^1].first.size()
	if len(other) < 2 || other[0]&0x70 != 0 || other[0]&0x80 == 0 || other[1]&0x80 != 0 == masked {
		return no
	}
	if code := other[0] & 15; code != 1 && code != 2 && code < 8 || code > 10 || int(other[1]&0x7F)+2 > size && other[1]&0x7F < 126 {
		return no
	}
	return final
}

// webSocketFrame reads a frame header and compares lengths.
func webSocketFrame(b []byte) (masked, ok bool) {
	if len(b) < 2 || b[0]&0xF0 != 0x80 {
		return false, false
	}
	code := b[0] & 15
	if code != 1 && code != 2 && (code < 8 || code > 10) {
		return false, false
	}
	masked = b[1]&0x80 != 0
	head, size := 2, int(b[1]&0x7F)
	if size == 126 {
		if len(b) < 4 {
			return false, false
		}
		head, size = 4, be16(b[2:])
	}
	if size == 127 {
		return false, false
	}
	body := b[head:]
	if masked {
		if len(body) < 4 {
			return false, false
		}
		body = body[4:]
	}
	if len(body) < size || !masked && code == 1 && !printable(body[:size]) {
		return false, false
	}
	return masked, len(body) == size || len(body) > size && body[size]&0x70 == 0
}

// httpMethod returns the length of a method with its space, 0 when b begins with none.
func httpMethod(b []byte) (n int, short bool) {
	for _, m := range httpMethods {
		if len(b) > len(m) {
			if b[len(m)] == ' ' && string(b[:len(m)]) == m {
				return len(m) + 1, false
			}
		} else if string(b) == m[:len(b)] {
			return 0, true
		}
	}
	return 0, false
}

// httpStatus tells whether b begins with a status line.
func httpStatus(b []byte) (ok, short bool) {
	const prefix = "HTTP/1."
	n := min(len(b), len(prefix))
	if string(b[:n]) != prefix[:n] {
		return false, false
	}
	if len(b) < 12 {
		return false, true
	}
	return b[8] == ' ' && digit(b[9]) && digit(b[10]) && digit(b[11]), false
}

func digit(c byte) bool { return c >= '0' && c <= '9' }

// field returns the value of a header field whose line is complete, nil when there is none.
func field(head []byte, name string) []byte {
	for len(head) > 0 {
		end := bytes.IndexByte(head, '\n')
		if end < 0 {
			return nil
		}
		line := head[:end]
		head = head[end+1:]
		if len(line) > len(name) && line[len(name)] == ':' && equalFold(line[:len(name)], name) {
			return bytes.TrimSpace(line[len(name)+1:])
		}
	}
	return nil
}

// equalFold compares ASCII without case.
func equalFold(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i := range b {
		x, y := b[i], s[i]
		if x >= 'A' && x <= 'Z' {
			x += 'a' - 'A'
		}
		if y >= 'A' && y <= 'Z' {
			y += 'a' - 'A'
		}
		if x != y {
			return false
		}
	}
	return true
}
