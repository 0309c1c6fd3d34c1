package app

import "testing"

var rpcCallToMapper = u32(7) + u32(0) + u32(2) + u32(100000) + u32(2) + u32(3) + z(16)

var remoteSamples = []sample{
	{label: "rdp", port: 3389, says: []string{">\x03\x00\x00\x13\x0e\xe0\x00\x00\x00\x00\x00\x01\x00\x08\x00\x0b\x00\x00\x00"}},
	{label: "rdp", port: 3389, says: []string{">\x03\x00" + u16(11+25) + "\x1f\xe0\x00\x00\x00\x00\x00Cookie: mstshash=bobbob\r\n"}},
	{label: "vnc", port: 5900, says: []string{"<RFB 003.008\n"}},
	{label: "teamviewer", port: 5938, says: []string{">\x17\x24\x10\x04\x00abcd"}},
	{label: "telnet", port: 23, says: []string{"<\xff\xfd\x18\xff\xfd\x20"}},
	{label: "nomachine", port: 4000, says: []string{">NXSH-7.0\n"}},
	{label: "nomachine", port: 4000, udp: true, says: []string{">\x01\x00\x01\x00\x0a\x00\x00\x00\x00\x00", "<\x02\x00\x01\x00\x0a\x00\x00\x00\x00\x00"}},
	{label: "xdmcp", port: 177, udp: true, says: []string{">" + u16(1) + u16(2) + in16("\x00")}},
	{label: "radmin", port: 4899, says: []string{">\x01\x00\x00\x00\x01\x00\x00\x00\x08\x08"}},
	{label: "citrix", port: 1494, says: []string{"<\x7f\x7fICA\x00"}},
	{label: "rsync", port: 873, says: []string{"<@RSYNCD: 31.0\n"}},
	{label: "git", port: 9418, says: []string{">0033git-upload-pack /project.git\x00host=example.org\x00"}},
	{label: "afp", port: 548, says: []string{">\x00\x03\x00\x01" + u32(0) + u32(0) + z(4)}},
	{label: "tftp", port: 69, udp: true, says: []string{">\x00\x01boot.img\x00octet\x00"}},
	{label: "tftp", port: 3000, udp: true, says: []string{"<\x00\x03\x00\x01" + x(512), ">\x00\x04\x00\x01"}},
	{label: "uftp", port: 1044, udp: true, says: []string{">\x50\x01" + x(20)}},
	{label: "nfs", port: 111, udp: true, says: []string{">" + rpcCallToMapper}},
	{label: "nfs", port: 2049, says: []string{">\x80\x00\x00\x28" + rpcCallToMapper}},
	{label: "whois_das", port: 43, says: []string{">example.org\r\n", "<% IANA WHOIS server, with more of its text behind it\r\n"}},
	{label: "z3950", port: 210, says: []string{">\xb4\x0c\x83\x02\x05\xe0\x84\x02\x05\xe0\x85\x02\x05\xe0"}, whole: true},
	{label: "kismet", port: 2501, says: []string{"<*KISMET: 0.0.0 1 \x01Kismet\x01"}},
	{label: "ookla", port: 8080, says: []string{">HI 01234567-89ab-4cde-8f01-23456789abcd\n"}},
	{label: "bjnp", port: 8611, udp: true, says: []string{">BJNP\x01\x01" + z(10)}},
	{label: "rx", port: 7001, udp: true, says: []string{">" + u32(1) + u32(4) + u32(1) + u32(1) + u32(1) + "\x01\x05\x00\x00" + z(4) + x(8)}},
	{label: "tivoconnect", port: 2190, udp: true, says: []string{">TiVoConnect=1\nmethod=broadcast\n"}},
}

// TestRSH needs a port that only a privileged process may use.
func TestRSH(t *testing.T) {
	want := Result{App: "rsh", Final: true}
	for sport, w := range map[uint16]Result{1022: want, 40000: {App: Unknown}} {
		same(t, "rsh", play(NewEngine(), key(6, sport, 514), part{0, 0, []byte("1021\x00bob\x00bob\x00ls\x00")}), w)
	}
}

// TestAnnouncedTransfer labels the answer to a TFTP request, which comes from another port.
func TestAnnouncedTransfer(t *testing.T) {
	e := NewEngine()
	play(e, key(17, 40000, 69), part{0, 0, []byte("\x00\x01boot.img\x00octet\x00")})
	back := key(17, 40000, 0).Reverse()
	back.SrcPort = 50123
	if r := play(e, back, part{0, 0, []byte("\x00\x03\x00\x01short")}); r.App != "tftp" || r.Confidence != Session {
		t.Errorf("%+v", r)
	}
}

func FuzzRemote(f *testing.F) { fuzzSamples(f, remoteSamples) }
