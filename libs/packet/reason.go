package packet

// Reason says how decoding a frame ended. The zero value means success; every other value names what was
// wrong, except NotIP, which is a sound frame of another protocol.
type Reason uint8

// The reasons. Their String forms are fixed: they are metric labels and keys of the replay's ledger.
const (
	// OK is an IP packet whose headers were read in full.
	OK Reason = iota
	// NotIP is a frame of another protocol (ARP, LLDP, spanning tree). It is accounted, not undecodable.
	NotIP
	// TruncatedEthernet is a frame shorter than an Ethernet header.
	TruncatedEthernet
	// TruncatedLink is a frame shorter than the header of a link type other than Ethernet.
	TruncatedLink
	// TruncatedVLAN is a frame that ends inside a VLAN tag.
	TruncatedVLAN
	// TooManyVLANs is a frame with more than two VLAN tags.
	TooManyVLANs
	// TruncatedARP is an ARP message for IPv4 over Ethernet that ends early.
	TruncatedARP
	// TruncatedIPv4 is an IPv4 header that ends early.
	TruncatedIPv4
	// BadIPv4Version is an IPv4 EtherType whose version nibble is not 4.
	BadIPv4Version
	// BadIPv4HeaderLength is an IHL below 5.
	BadIPv4HeaderLength
	// BadIPv4TotalLength is a total length below the header's own.
	BadIPv4TotalLength
	// TruncatedIPv6 is an IPv6 header that ends early.
	TruncatedIPv6
	// BadIPv6Version is an IPv6 EtherType whose version nibble is not 6.
	BadIPv6Version
	// TruncatedIPv6Extension is an extension header that ends early.
	TruncatedIPv6Extension
	// TooManyIPv6Extensions is a chain of more than MaxExtensions headers.
	TooManyIPv6Extensions
	// TruncatedTCP is a TCP header that ends early.
	TruncatedTCP
	// BadTCPHeaderLength is a data offset below 5 words.
	BadTCPHeaderLength
	// TruncatedUDP is a UDP header that ends early.
	TruncatedUDP
	// BadUDPLength is a UDP length of 1 to 7.
	BadUDPLength
	// TruncatedSCTP is an SCTP common header that ends early.
	TruncatedSCTP
	// TruncatedICMP is an ICMP message that ends before type, code and checksum.
	TruncatedICMP
	// TruncatedICMPv6 is an ICMPv6 message that ends before type, code and checksum.
	TruncatedICMPv6
	// UnsupportedLinkType is a capture link type that DecodeLink does not know.
	UnsupportedLinkType

	// NumReasons is the number of reasons, for arrays indexed by Reason.
	NumReasons
)

var reasonNames = [NumReasons]string{
	OK:                     "ok",
	NotIP:                  "not_ip",
	TruncatedEthernet:      "truncated_ethernet",
	TruncatedLink:          "truncated_link",
	TruncatedVLAN:          "truncated_vlan",
	TooManyVLANs:           "too_many_vlans",
	TruncatedARP:           "truncated_arp",
	TruncatedIPv4:          "truncated_ipv4",
	BadIPv4Version:         "bad_ipv4_version",
	BadIPv4HeaderLength:    "bad_ipv4_header_length",
	BadIPv4TotalLength:     "bad_ipv4_total_length",
	TruncatedIPv6:          "truncated_ipv6",
	BadIPv6Version:         "bad_ipv6_version",
	TruncatedIPv6Extension: "truncated_ipv6_extension",
	TooManyIPv6Extensions:  "too_many_ipv6_extensions",
	TruncatedTCP:           "truncated_tcp",
	BadTCPHeaderLength:     "bad_tcp_header_length",
	TruncatedUDP:           "truncated_udp",
	BadUDPLength:           "bad_udp_length",
	TruncatedSCTP:          "truncated_sctp",
	TruncatedICMP:          "truncated_icmp",
	TruncatedICMPv6:        "truncated_icmpv6",
	UnsupportedLinkType:    "unsupported_link_type",
}

// String returns the fixed name of the reason.
func (r Reason) String() string {
	if r < NumReasons {
		return reasonNames[r]
	}
	return "unknown_reason"
}

// Undecodable tells whether the frame counts as undecodable in the ledger: anything but OK and NotIP.
func (r Reason) Undecodable() bool { return r > NotIP }
