package hook

import (
	"crypto/sha1" //nolint:gosec // the method of Community ID; nothing is protected by it
	"encoding/base64"
	"encoding/binary"
	"net/netip"
)

// kind is how a type of attack looks as an alert. The numbers are part of the contract: a type keeps its own.
type kind struct {
	id                uint32
	severity          uint32 // 1 high, 2 medium, 3 low, as Suricata's priorities
	category          string
	proto             string
	srcPort, destPort uint32 // 0: not a single one
}

const (
	catDoS      = "Attempted Denial of Service"
	catScan     = "Detection of a Network Scan"
	catLogin    = "Attempted User Privilege Gain"
	catBad      = "Potentially Bad Traffic"
	catTunnel   = "Misc activity"
	unknownKind = 1000 // a type that this version does not know
)

var kinds = map[string]kind{
	"syn_flood":         {1, 1, catDoS, "TCP", 0, 0},
	"ack_flood":         {2, 1, catDoS, "TCP", 0, 0},
	"rst_fin_flood":     {3, 1, catDoS, "TCP", 0, 0},
	"synack_reflection": {4, 1, catDoS, "TCP", 0, 0},
	"flow_flood":        {5, 1, catDoS, "TCP", 0, 0},
	"udp_flood":         {6, 1, catDoS, "UDP", 0, 0},
	"icmp_flood":        {7, 1, catDoS, "ICMP", 0, 0},
	"fragment_flood":    {8, 1, catDoS, "", 0, 0},
	"amp_dns":           {9, 1, catDoS, "UDP", 53, 0},
	"amp_ntp":           {10, 1, catDoS, "UDP", 123, 0},
	"amp_snmp":          {11, 1, catDoS, "UDP", 161, 0},
	"amp_isakmp":        {12, 1, catDoS, "UDP", 500, 0},
	"amp_bacnet":        {13, 1, catDoS, "UDP", 47808, 0},
	"amp_dhdiscover":    {14, 1, catDoS, "UDP", 37810, 0},
	"amp_ssdp":          {15, 1, catDoS, "UDP", 1900, 0},
	"amp_cldap":         {16, 1, catDoS, "UDP", 389, 0},
	"amp_memcached":     {17, 1, catDoS, "UDP", 11211, 0},
	"amp_other":         {18, 1, catDoS, "UDP", 0, 0},
	"port_scan":         {19, 3, catScan, "", 0, 0},
	"host_sweep":        {20, 3, catScan, "", 0, 0},
	"invalid_tcp_flags": {21, 2, catScan, "TCP", 0, 0},
	"brute_force":       {22, 1, catLogin, "TCP", 0, 0},
	"slowloris":         {23, 1, catDoS, "TCP", 0, 0},
	"http_flood":        {24, 1, catDoS, "TCP", 0, 0},
	"dns_flood":         {25, 1, catDoS, "UDP", 0, 53},
	"dns_tunnel":        {26, 2, catTunnel, "UDP", 0, 53},
	"icmp_tunnel":       {27, 2, catTunnel, "ICMP", 0, 0},
	"arp_spoof":         {28, 2, catBad, "", 0, 0},
	"carpet_bombing":    {29, 1, catDoS, "", 0, 0},
}

func kindOf(typ string) kind {
	if k, ok := kinds[typ]; ok {
		return k
	}
	return kind{id: unknownKind, severity: 2, category: catBad}
}

func (k kind) alert(signature, action string) *eveAlert {
	return &eveAlert{
		Action: action, GID: generator, SignatureID: k.id, Rev: 1, Signature: "TIDEGATE " + signature, Category: k.category, Severity: k.severity,
	}
}

// communityID is version 1 with seed 0 (github.com/corelight/community-id-spec), the same as Suricata's and Zeek's. ICMP
// has none here: a flow record does not hold its types.
func communityID(src, dst netip.Addr, srcPort, dstPort, protocol uint32) string {
	if protocol == 1 || protocol == 58 || !src.IsValid() || !dst.IsValid() || src.Is4() != dst.Is4() {
		return ""
	}
	if c := src.Compare(dst); c > 0 || c == 0 && srcPort > dstPort {
		src, dst, srcPort, dstPort = dst, src, dstPort, srcPort
	}
	b := make([]byte, 2, 2+16+16+2+4)
	b = append(b, src.AsSlice()...)
	b = append(b, dst.AsSlice()...)
	b = append(b, byte(protocol), 0)
	if protocol == 6 || protocol == 17 || protocol == 132 {
		b = binary.BigEndian.AppendUint16(b, uint16(srcPort)) //nolint:gosec // a port
		b = binary.BigEndian.AppendUint16(b, uint16(dstPort)) //nolint:gosec // a port
	}
	sum := sha1.Sum(b) //nolint:gosec // as above
	return "1:" + base64.StdEncoding.EncodeToString(sum[:])
}
