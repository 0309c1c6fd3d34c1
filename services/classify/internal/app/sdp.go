package app

import (
	"bytes"
	"net/netip"

	"github.com/tidegate-mesh/tidegate/libs/packet"
)

// maxMedia bounds the streams that one description may announce.
const maxMedia = 8

// describe announces the media of a session description (RFC 8866 5.7 and 5.14): RTP at each m= line's port and RTCP
// behind it, at the address of the c= line before it.
func (f *Flow) describe(b []byte) {
	var addr [16]byte
	known := false
	for media := 0; len(b) > 0 && media < maxMedia; {
		line := b
		if end := bytes.IndexByte(b, '\n'); end >= 0 {
			line, b = b[:end], b[end+1:]
		} else {
			b = nil
		}
		switch {
		case prefixed(line, "c=IN IP4 "):
			addr, known = address4(line[9:])
		case prefixed(line, "c=IN IP6 "):
			text := bytes.TrimRight(line[9:], "\r ")
			if a, err := netip.ParseAddr(f.engine.names.get(text[:min(len(text), 64)])); err == nil && a.Is6() {
				addr, known = a.As16(), true
			}
		case known && (prefixed(line, "m=audio ") || prefixed(line, "m=video ")):
			if port, _ := decimal(line[8:]); port > 0 && port < 65535 && bytes.Contains(line, []byte(" RTP/")) {
				f.announce("rtp", packet.ProtoUDP, addr, uint16(port))    //nolint:gosec // checked
				f.announce("rtcp", packet.ProtoUDP, addr, uint16(port)+1) //nolint:gosec // checked
				media++
			}
		}
	}
}

// transports announces the media of an RTSP session: the ports of both ends that a server's answer to SETUP names (RFC 2326
// 12.39), at the addresses of the connection.
func (f *Flow) transports(in *input) {
	if !prefixed(in.data, "RTSP/1.0 200") && !bytes.Contains(in.data, []byte("\nRTSP/1.0 200")) {
		return
	}
	server, client := f.key.Src, f.key.Dst
	if in.dir == 1 {
		server, client = client, server
	}
	ports := func(name string, addr [16]byte) {
		for b := in.data; ; {
			i := bytes.Index(b, []byte(name))
			if i < 0 {
				return
			}
			b = b[i+len(name):]
			if port, _ := decimal(b); port > 0 && port < 65535 {
				f.announce("rtp", packet.ProtoUDP, addr, uint16(port))    //nolint:gosec // checked
				f.announce("rtcp", packet.ProtoUDP, addr, uint16(port)+1) //nolint:gosec // checked
			}
		}
	}
	ports("client_port=", client)
	ports("server_port=", server)
}

// decimal reads a number of at most six digits; n is how many there were.
func decimal(b []byte) (v, n int) {
	for n < len(b) && n < 6 && digit(b[n]) {
		v = v*10 + int(b[n]-'0')
		n++
	}
	return v, n
}

// address4 reads a dotted address in the form that flow keys have.
func address4(b []byte) (addr [16]byte, ok bool) {
	addr[10], addr[11] = 0xFF, 0xFF
	for i := 12; i < 16; i++ {
		v, n := decimal(b)
		if n == 0 || v > 255 {
			return addr, false
		}
		addr[i] = byte(v)
		b = b[n:]
		if i < 15 {
			if len(b) == 0 || b[0] != '.' {
				return addr, false
			}
			b = b[1:]
		}
	}
	return addr, true
}
