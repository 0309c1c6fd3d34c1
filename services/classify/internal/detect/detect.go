// Package detect measures windows against thresholds. Each flood detector is one formula over the sums of
// one second; scans are judged by what a source did over a long time. Nothing here decides what to block.
package detect

import (
	"github.com/tidegate-mesh/tidegate/services/classify/internal/header"
)

// Types of attacks, the names of the attack type list.
const (
	SYNFlood  = "syn_flood"
	UDPFlood  = "udp_flood"
	ICMPFlood = "icmp_flood"
	AmpDNS    = "amp_dns"
	AmpNTP    = "amp_ntp"
	PortScan  = "port_scan"
	HostSweep = "host_sweep"
)

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
}

// DefaultThresholds returns the built-in values.
func DefaultThresholds() Thresholds {
	return Thresholds{
		SYN: 150, UDPPackets: 20_000, UDPBits: 500e6, ICMP: 500, DNSAnswers: 300, DNSSources: 20, DNSBits: 10e6,
		NTPAnswers: 300, NTPMonlist: 1, ScanPorts: 7.5, ScanHosts: 7.5, FastPorts: 60, FastHosts: 60, ARPHosts: 40,
		Protocols: 8, InvalidCost: 2,
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
	// Measure judges sums of one second of one destination.
	Measure func(s *Sums, t *Thresholds) Measure
	// Steep: the threshold is so high that twice its rate is an attack before a second is over.
	Steep bool
	// Kind tells the packets that this flood is made of.
	Kind func(f *header.Facts) bool
}

// Floods are all flood detectors.
func Floods() []Flood {
	return []Flood{synFlood, udpFlood, icmpFlood, ampDNS, ampNTP}
}

// scaled is n times share, rounded down.
func scaled(n uint64, share float64) uint64 { return uint64(float64(n) * share) }
