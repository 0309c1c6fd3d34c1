package app

import "testing"

const netbiosHost = " EBFCCACACACACACACACACACACACACAAA\x00"

var discoverySamples = []sample{
	{label: "netbios", port: 137, udp: true, says: []string{">\x12\x34\x01\x10\x00\x01" + z(6) + netbiosHost + "\x00\x20\x00\x01"}},
	{label: "netbios", port: 139, says: []string{">\x81\x00\x00\x44" + netbiosHost + netbiosHost}},
	{label: "llmnr", port: portLLMNR, udp: true, says: []string{">" + string(dnsQuery("wpad", 1))}},
	{label: "llmnr", port: portLLMNR, udp: true, says: []string{">\x30\x39\x79\x00" + string(dnsQuery("wpad", 1))[4:]}}, // no such opcode
	{label: "llmnr", port: portLLMNR, says: []string{">" + in16(string(dnsQuery("wpad", 1)))}},
	{label: "dhcpv6", port: 547, udp: true, says: []string{">\x01abc" + u16(1) + in16("0123456789") + u16(6) + in16("\x00\x17")}},
	{label: "slp", port: 427, udp: true, says: []string{">\x02\x01\x00\x00\x1e\x20\x00\x00\x00\x00\x00\x01\x00\x02en" + x(14)}},
	{label: "wsd", port: 3702, udp: true, says: []string{`><?xml version="1.0"?><s:Envelope xmlns:d="http://schemas.xmlsoap.org/ws/2005/04/discovery">`}},
	{label: "nat_pmp", port: 5351, udp: true, says: []string{">\x00\x00"}},
}

func FuzzDiscovery(f *testing.F) { fuzzSamples(f, discoverySamples) }
