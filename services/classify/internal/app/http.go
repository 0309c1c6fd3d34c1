package app

import "bytes"

// httpMethods are the registered methods in use (RFC 9110 9.3, RFC 5789, RFC 4918, RFC 3253, RFC 5323).
var httpMethods = []string{
	"GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT",
	"PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK", "REPORT", "SEARCH",
}

// httpStream recognises HTTP/1 by a request line or a status line (RFC 9112 3 and 4).
func httpStream(f *Flow, in *input) outcome {
	b := in.data
	if isStatus, short := httpStatus(b); short {
		return more
	} else if isStatus {
		return label // the host is in the other direction
	}
	at, short := httpMethod(b)
	if short {
		return more
	}
	if at == 0 {
		return no
	}
	if string(b[:at]) == "CONNECT " {
		return foreign // a proxy's tunnel
	}
	line := b[at:]
	end := bytes.IndexByte(line, '\n')
	if end < 0 {
		for _, c := range line {
			if c < ' ' && c != '\r' || c == 0x7F {
				return no
			}
		}
		if len(b) >= MaxBytes || f.dirs[in.dir].exhausted() {
			return label // a request target longer than what we keep
		}
		return more
	}
	target, version := line[:end], []byte(nil)
	if i := bytes.LastIndexByte(target, ' '); i >= 0 {
		target, version = target[:i], bytes.TrimRight(target[i+1:], "\r")
	}
	if !bytes.HasPrefix(version, []byte("HTTP/1.")) || len(target) == 0 {
		return no // RTSP, SIP, ICAP and others share the shape
	}
	if bytes.HasPrefix(target, []byte("http://")) || bytes.HasPrefix(target, []byte("https://")) {
		return foreign // asks a proxy
	}
	head := line[end+1:]
	if host := field(head, "Host"); host != nil {
		if i := bytes.LastIndexByte(host, ':'); i > 0 && bytes.IndexByte(host[i:], ']') < 0 {
			host = host[:i]
		}
		f.setHost(host)
		return final
	}
	if bytes.Contains(head, []byte("\n\r\n")) || bytes.HasPrefix(head, []byte("\r\n")) {
		return final // no Host at all
	}
	return label
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
