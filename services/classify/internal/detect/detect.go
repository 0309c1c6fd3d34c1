// Package detect measures windows against thresholds. Each flood detector is one formula over the sums of
// one second; scans are judged by what a source did over a long time. Nothing here decides what to block.
package detect

import (
	"github.com/tidegate-mesh/tidegate/services/classify/internal/header"
)

// Types of attacks, the names of the attack type list.
const (
	SYNFlood         = "syn_flood"
	ACKFlood         = "ack_flood"
	RSTFINFlood      = "rst_fin_flood"
	SYNACKReflection = "synack_reflection"
	InvalidFlags     = "invalid_tcp_flags"
	FlowFlood        = "flow_flood"
	UDPFlood         = "udp_flood"
	ICMPFlood        = "icmp_flood"
	FragmentFlood    = "fragment_flood"
	AmpDNS           = "amp_dns"
	AmpNTP           = "amp_ntp"
	AmpSNMP          = "amp_snmp"
	AmpISAKMP        = "amp_isakmp"
	AmpBACnet        = "amp_bacnet"
	AmpDHDiscover    = "amp_dhdiscover"
	AmpSSDP          = "amp_ssdp"
	AmpCLDAP         = "amp_cldap"
	AmpMemcached     = "amp_memcached"
	AmpOther         = "amp_other"
	PortScan         = "port_scan"
	HostSweep        = "host_sweep"
	BruteForce       = "brute_force"
	Slowloris        = "slowloris"
	HTTPFlood        = "http_flood"
	DNSFlood         = "dns_flood"
	DNSTunnel        = "dns_tunnel"
	ICMPTunnel       = "icmp_tunnel"
	ARPSpoof         = "arp_spoof"
	CarpetBombing    = "carpet_bombing"
)

// Types are all types of attacks.
func Types() []string {
	list := []string{FlowFlood, PortScan, HostSweep, BruteForce, Slowloris, DNSTunnel, ICMPTunnel, ARPSpoof, CarpetBombing}
	for _, f := range Floods() {
		list = append(list, f.Type)
	}
	return list
}

// Thresholds of a group of protected prefixes. Rates are per second and destination.
type Thresholds struct {
	SYN         float64 // SYN beyond twice the completed handshakes
	UDPPackets  float64
	UDPBits     float64
	ICMP        float64 // echo requests and unreachables
	DNSAnswers  float64 // unsolicited DNS answers
	DNSSources  float64 // distinct sources of these …
	DNSBits     float64 // … or their bits, either is enough
	NTPAnswers  float64 // unsolicited packets from port 123
	NTPMonlist  float64 // unsolicited monlist answers
	ScanPorts   float64 // distinct ports of one host that refused or did not answer, over hours
	ScanHosts   float64 // distinct hosts that refused or did not answer, over hours
	FastPorts   float64 // distinct ports of one host within a second, whatever the answer
	FastHosts   float64 // distinct hosts within a second
	ARPHosts    float64 // distinct addresses asked for by ARP within a second
	Protocols   float64 // distinct IP protocols of one host that were unreachable
	InvalidCost float64 // how many failed ports one attempt with impossible TCP flags stands for

	ACK         float64 // plain ACKs outside any flow
	RSTFIN      float64 // RST and FIN outside any flow
	SYNACK      float64 // SYN-ACKs that answer nothing
	SYNACKAgain float64 // SYN-ACKs repeated beyond what a connection repeats, within ten minutes
	Invalid     float64 // packets with impossible TCP flags
	Fragments   float64
	AmpPackets  float64 // unsolicited packets of one reflector service …
	AmpSources  float64 // … from so many sources …
	AmpBits     float64 // … or with so many bits
	Flows       float64 // TCP flows that one source begins
	HTTPPair    float64 // HTTP requests of one source for one resource
	HTTP        float64 // HTTP requests of one source, or of all for one resource
	DNSNames    float64 // DNS queries for ever new names of one zone
	DNSQueries  float64 // DNS queries
	Logins      float64 // short sessions with a log-in service within two minutes
	Stalled     float64 // HTTP requests of one source that stay unfinished
	DNSData     float64 // distinct names with data in them within a minute
	EchoData    float64 // echo answers with other data than was sent, within five minutes
	Carpet      float64 // times the threshold of a host that a /24 may get, and the square root of what a /16 may get
	ARPFlips    float64 // changes of an address back to a station it was at before, within five minutes
}

// DefaultThresholds returns the built-in values.
func DefaultThresholds() Thresholds {
	return Thresholds{
		SYN: 150, UDPPackets: 20_000, UDPBits: 500e6, ICMP: 500, DNSAnswers: 300, DNSSources: 20, DNSBits: 10e6,
		NTPAnswers: 300, NTPMonlist: 1, ScanPorts: 7.5, ScanHosts: 7.5, FastPorts: 60, FastHosts: 60, ARPHosts: 40,
		Protocols: 8, InvalidCost: 2,
		ACK: 1000, RSTFIN: 500, SYNACK: 300, SYNACKAgain: 20, Invalid: 50, Fragments: 2000, AmpPackets: 300, AmpSources: 10, AmpBits: 50e6,
		Flows: 1000, HTTPPair: 150, HTTP: 1000, DNSNames: 200, DNSQueries: 5000, Logins: 10, Stalled: 30, DNSData: 12,
		EchoData: 10, ARPFlips: 4, Carpet: 4,
	}
}

// Named returns the thresholds under the names that evidence uses (Measure.Limits).
func (t *Thresholds) Named() map[string]float64 {
	return map[string]float64{
		"excess_syn": t.SYN, "udp_packets": t.UDPPackets, "udp_bits": t.UDPBits, "icmp": t.ICMP,
		"unsolicited_dns": t.DNSAnswers, "sources": t.DNSSources, "bits": t.DNSBits,
		"unsolicited_ntp": t.NTPAnswers, "monlist": t.NTPMonlist,
		"failed_ports": t.ScanPorts, "failed_hosts": t.ScanHosts, "ports_in_a_second": t.FastPorts,
		"hosts_in_a_second": t.FastHosts, "arp_hosts": t.ARPHosts, "unreachable_protocols": t.Protocols,
		"stray_ack": t.ACK, "stray_rst_fin": t.RSTFIN, "stray_syn_ack": t.SYNACK, "repeated_syn_ack": t.SYNACKAgain,
		"invalid_flags": t.Invalid, "fragments": t.Fragments, "unsolicited_udp": t.AmpPackets, "reflectors": t.AmpSources,
		"reflected_bits": t.AmpBits, "flows": t.Flows, "requests_of_a_source_for_a_resource": t.HTTPPair,
		"requests_of_a_source": t.HTTP, "requests_for_a_resource": t.HTTP, "requests_of_a_settled_peer": known * t.HTTP,
		"new_names": t.DNSNames, "dns_queries": t.DNSQueries, "short_sessions": t.Logins, "unfinished_requests": t.Stalled,
		"overlaps": 1, "data_names": t.DNSData, "changed_echoes": t.EchoData,
		"arp_flips": t.ARPFlips, "times_the_threshold_of_a_host": t.Carpet,
	}
}

// Measure is one formula's result. Level is value over threshold: 1 and more is an attack, below 0.5 is
// quiet, between the two an attack that is on goes on.
type Measure struct {
	Level            float64
	Packets, Bytes   uint64 // of the attack's kind, in the sums measured
	Features, Limits map[string]float64
}

// Flood is a detector of one type. Both functions are pure.
type Flood struct {
	Type string
	// Measure judges sums of one second of one destination; the zero Measure says that nothing of the kind was there.
	Measure func(s *Sums, t *Thresholds) Measure
	// Steep: the threshold is so high that twice its rate is an attack before a second is over.
	Steep bool
	// Burst: what many sources send within one window is an attack from this level on only; 0: from 1 on, as all else. Clients
	// that try again together are answered late when the server is busy.
	Burst float64
	// Kind tells the packets that this flood is made of.
	Kind func(f *header.Facts) bool
	// Stray: it counts packets outside any flow, which every sensor sees that has just started.
	Stray bool
}

// Floods are all flood detectors.
func Floods() []Flood {
	list := []Flood{synFlood, udpFlood, icmpFlood, ampDNS, ampNTP, ackFlood, rstFINFlood, synACKReflection, invalidFlags, fragmentFlood,
		httpFlood, dnsFlood}
	return append(list, amplifications()...)
}

// scaled is n times share, rounded down.
func scaled(n uint64, share float64) uint64 { return uint64(float64(n) * share) }
