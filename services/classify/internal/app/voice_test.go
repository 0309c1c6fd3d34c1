package app

import (
	"fmt"
	"net/netip"
	"testing"
)

// stunBinding is a request with nothing but the cookie.
const stunBinding = "\x00\x01\x00\x00" + stunCookie + "0123456789ab"

// media is an RTP packet of a dynamic type.
func media(sequence int) string {
	return "\x80\x60" + u16(sequence) + u32(sequence*160) + u32(77) + x(40)
}

var voiceSamples = []sample{
	{label: "stun", port: 3478, udp: true, says: []string{">" + stunBinding}},
	{label: "stun", port: 3478, udp: true, says: []string{">\x00\x03" + u16(9) + stunCookie + x(12) + "\x00\x15" + in16(x(5))}}, // no padding
	{label: "stun", port: 3478, says: []string{">" + stunBinding + "\x00\x00"}},
	{label: "stun", port: 5000, udp: true, says: []string{">" + stunBinding, ">\x81\xc9\x00\x01" + u32(77)}}, // control alone
	{label: "srtp", port: 5000, udp: true, says: []string{">" + stunBinding, ">" + media(1), ">" + media(2)}},
	{label: "sip", port: 5060, udp: true, says: []string{">INVITE sip:bob@example.org SIP/2.0\r\n"}},
	{label: "sip", port: 5060, says: []string{"<SIP/2.0 200 OK\r\n"}},
	{label: "rtsp", port: 554, says: []string{">DESCRIBE rtsp://example.org/a RTSP/1.0\r\n"}},
	{label: "mgcp", port: 2427, udp: true, says: []string{">RSIP 1200 *@gw.example.org MGCP 1.0\r\n"}},
	{label: "megaco", port: 2944, udp: true, says: []string{">!/1 [192.0.2.1]:2944 T=1{"}},
	{label: "h323", port: 1232, says: []string{"<\x03\x00\x00\x1c\x02\x30\x01\x06\x00\x08\x81\x75\x00\x05" + x(14)}},
	{label: "h323", port: 1720, says: []string{">\x03\x00\x00\x30\x08\x02\x00\x01\x05" + x(39)}},
	{label: "h323", port: 1719, udp: true, says: []string{">\x0e\x80\x01\x02\x00\x06\x00\x08\x91\x4a\x00\x04" + x(20)}},
	{label: "ciscoskinny", port: 2000, says: []string{">" + l32(4) + l32(0) + l32(0)}},
	{label: "iax", port: 4569, udp: true, says: []string{">\x80\x01\x00\x00" + u32(5) + "\x00\x00\x06\x01\x0b\x02\x00\x02"}},
	{label: "bfcp", port: 5000, udp: true, says: []string{">\x20\x0b\x00\x00" + u32(1) + u16(1) + u16(1)}},
	{label: "rtcp", port: 5001, udp: true, says: []string{">\x80\xc8\x00\x06" + u32(77) + z(20) + "\x81\xca\x00\x02" + u32(77) + z(4)}},
	{label: "rtp", port: 5000, udp: true, says: []string{">" + media(1), ">" + media(2)}},
	{label: "rtmp", port: 1935, says: []string{">\x03" + u32(12345678) + z(4) + x(1528), "<\x03" + u32(9) + "\x05\x00\x01\x01" + x(1528)}},
	{label: "mpeg_ts", port: 1234, udp: true, says: []string{">\x47\x40\x00\x10" + x(184) + "\x47\x40\x11\x11" + x(184)}},
	{label: "flute", port: 4000, udp: true, says: []string{">\x10\x00\x04\x00" + z(12) + `<?xml version="1.0"?><FDT-Instance Expires="1">`}},
}

// TestCallWithKeys follows STUN, DTLS and media on one pair of ports.
func TestCallWithKeys(t *testing.T) {
	hello := clientHelloMessage("", "", 0)
	hello[4], hello[5] = 0xFE, 0xFD
	body := append([]byte{}, hello[:39]...) // up to the session's length
	body = append(body, 0)                  // no cookie
	body = append(body, hello[39:]...)
	n := len(body) - 4
	dtls := append([]byte{recordHandshake, 0xFE, 0xFD, 0, 0, 0, 0, 0, 0, 0, 0}, in16(string([]byte{clientHello, 0, byte(n >> 8), byte(n), 0, 0, 0, 0, 0, 0, byte(n >> 8), byte(n)})+string(body[4:]))...) //nolint:gosec // short
	e := NewEngine()
	if r := play(e, key(17, 1, 2), part{0, 0, dtls}); r.App != "dtls" {
		t.Errorf("dtls alone: %+v", r)
	}
	talk := []part{{0, 0, []byte(stunBinding)}, {0, 0, dtls}}
	if r := play(e, key(17, 1, 2), talk...); r.App != "dtls" || r.Confidence != Negotiated {
		t.Errorf("dtls behind stun: %+v", r)
	}
	talk = append(talk, part{0, 0, []byte("\x81\xc9\x00\x01" + u32(77))})
	if r := play(e, key(17, 1, 2), talk...); r.App != "srtp" {
		t.Errorf("control behind dtls: %+v", r)
	}
}

// TestAnnouncedMedia labels the streams that a call's description names, even one of a single packet.
func TestAnnouncedMedia(t *testing.T) {
	const invite = "INVITE sip:bob@example.org SIP/2.0\r\nContent-Type: application/sdp\r\n\r\nv=0\r\nc=IN IP4 192.0.2.1\r\nm=audio 4000 RTP/AVP 0\r\n"
	const answer = "SIP/2.0 200 OK\r\n\r\nv=0\r\nc=IN IP4 198.51.100.2\r\nm=audio 5004 RTP/AVP 0\r\n"
	e := NewEngine()
	play(e, key(17, 5060, 5060), part{0, 0, []byte(invite)}, part{1, 0, []byte(answer)})
	one := part{0, 0, []byte(media(1))}
	for port, want := range map[uint16]Result{
		5004: {App: "rtp", Confidence: Session}, 5005: {App: "rtcp", Confidence: Session}, 5006: unknown,
	} {
		same(t, fmt.Sprint("port ", port), play(e, key(17, 40000, port), one), want)
	}
	same(t, "the caller's side", play(e, key(17, 40000, 9).Reverse(), one), unknown)
	same(t, "told by its bytes", play(e, key(17, 40000, 5004), part{0, 0, []byte(stunBinding)}), Result{App: "stun"})
}

// TestAnnouncedByRTSP labels the streams whose ports the answer to SETUP names.
func TestAnnouncedByRTSP(t *testing.T) {
	const setup = "SETUP rtsp://example.org/a RTSP/1.0\r\nCSeq: 3\r\nTransport: RTP/AVP;unicast;client_port=4588-4589\r\n\r\n"
	const answer = "RTSP/1.0 200 OK\r\nCSeq: 3\r\nTransport: RTP/AVP;unicast;client_port=4588-4589;server_port=6256-6257\r\n\r\n"
	e := NewEngine()
	play(e, key(6, 40000, 554), part{0, 0, []byte(setup)}, part{1, 0, []byte(answer)})
	one := part{0, 0, []byte(media(1))}
	back := key(17, 4588, 7000).Reverse() // from the server to the client
	same(t, "to the client", play(e, back, one), Result{App: "rtp", Confidence: Session})
	same(t, "reports to the server", play(e, key(17, 5000, 6257), one), Result{App: "rtcp", Confidence: Session})
	same(t, "another port", play(e, key(17, 5000, 6258), one), unknown)
}

// TestAnnouncedOverIPv6 reads an address of version 6 in a call's description.
func TestAnnouncedOverIPv6(t *testing.T) {
	const answer = "SIP/2.0 200 OK\r\n\r\nv=0\r\nc=IN IP6 2001:db8::7\r\nm=audio 5004 RTP/AVP 0\r\n"
	e := NewEngine()
	play(e, key(17, 5060, 5060), part{1, 0, []byte(answer)})
	k := key(17, 40000, 5004)
	k.Dst = netip.MustParseAddr("2001:db8::7").As16()
	same(t, "media", play(e, k, part{0, 0, []byte(media(1))}), Result{App: "rtp", Confidence: Session})
}

func TestAddress4(t *testing.T) {
	for text, ok := range map[string]bool{"192.0.2.1": true, "192.0.2.1/127": true, "192.0.2": false, "192.0.2.256": false, "": false, "a.b.c.d": false} {
		if _, got := address4([]byte(text)); got != ok {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func FuzzDescription(f *testing.F) {
	f.Add([]byte("v=0\r\nc=IN IP4 192.0.2.1\r\nm=audio 4000 RTP/AVP 0\r\n"))
	e := NewEngine()
	f.Fuzz(func(_ *testing.T, b []byte) {
		fl := e.Open(key(17, 1, 2))
		fl.describe(b)
		fl.Release()
	})
}

func FuzzVoice(f *testing.F) { fuzzSamples(f, voiceSamples) }
