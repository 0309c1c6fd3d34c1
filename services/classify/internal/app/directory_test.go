package app

import "testing"

var directorySamples = []sample{
	{label: "ldap", port: 389, says: []string{">\x30\x0c\x02\x01\x01\x60\x07\x02\x01\x03\x04\x00\x80\x00"}},
	{label: "ldap", port: 389, says: []string{">\x30\x05\x02\x01\x03\x42\x00"}},
	{label: "ldap", port: 389, says: []string{">\x30\x06\x02\x01\x06\x50\x01\x05"}},
	{label: "kerberos", port: 88, udp: true, says: []string{">\x6a\x0e\x30\x0c\xa1\x03\x02\x01\x05\xa2\x03\x02\x01\x0a\x30\x00"}},
	{label: "kerberos", port: 88, says: []string{">" + in32("\x6a\x0e\x30\x0c\xa1\x03\x02\x01\x05\xa2\x03\x02\x01\x0a\x30\x00")}},
	{label: "snmp", port: 161, udp: true, says: []string{">\x30\x26\x02\x01\x01\x04\x06public\xa0\x19\x02\x01\x01\x02\x01\x00\x02\x01\x00\x30\x0e\x30\x0c\x06\x08\x2b\x06\x01\x02\x01\x01\x05\x00\x05\x00"}},
	{label: "radius", port: 1812, udp: true, says: []string{">\x01\x07" + u16(25) + x(16) + "\x01\x05bob"}},
	{label: "diameter", port: 3868, says: []string{">\x01\x00\x00\x2c\x80\x00\x01\x01" + u32(0) + u32(1) + u32(2) + x(24)}},
	{label: "dcerpc", port: 135, says: []string{">\x05\x00\x0b\x03\x10\x00\x00\x00" + l16(72) + z(6) + x(56)}},
	{label: "dcerpc", port: 34964, udp: true, says: []string{">\x04\x00\x20\x00\x10\x00\x00\x00" + z(66) + l16(20) + z(4) + x(20)}},
	{label: "rmcp", port: 623, udp: true, says: []string{">\x06\x00\xff\x07\x00" + z(8) + "\x09\x20\x18\xc8\x81\x00\x38\x8e\x04\xb5"}},
}

// TestLDAPStartTLS reads the name out of the handshake that the client asked for.
func TestLDAPStartTLS(t *testing.T) {
	ask := "\x30\x1d\x02\x01\x01\x77\x18\x80\x16" + startTLS
	hello := record(clientHelloMessage("ldap.example.org", "", 0))
	r := play(NewEngine(), key(6, 1, 389), part{0, 0, []byte(ask)}, part{1, 0, []byte("\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\x00\x04\x00\x04\x00")},
		part{0, uint32(len(ask)), hello}) //nolint:gosec // short
	if r.App != "ldap" || r.Host != "ldap.example.org" || r.Confidence != Negotiated || r.JA4 == "" {
		t.Errorf("%+v", r)
	}
}

func FuzzDirectory(f *testing.F) { fuzzSamples(f, directorySamples) }
