package app

// outcome is a protocol's answer to the bytes so far.
type outcome uint8

const (
	no      outcome = iota // these bytes are another protocol's
	more                   // a prefix of this protocol's, too short to tell
	label                  // this protocol; more bytes may bring a host name
	final                  // this protocol, and nothing is left to learn
	foreign                // a protocol that is known and has no label here: stop looking
)

// input is what a protocol looks at: the contiguous beginning of a direction's stream, or one datagram.
type input struct {
	data []byte // not empty, not kept
	dir  uint8  // 0 from the flow's source
}

// forget lets go of the borrowed bytes.
func (in *input) forget() { in.data = nil }

// protocol is an entry of the table.
type protocol struct {
	label    string
	stream   func(f *Flow, in *input) outcome // TCP; nil = never on TCP
	datagram func(f *Flow, in *input) outcome // UDP; nil = never on UDP
}

// protocols is the table, in the order in which protocols are asked: the exact ones before the loose ones.
var protocols []protocol

// streamProtocols has bit i set when protocols[i] is spoken over TCP.
var streamProtocols uint32

func init() { //nolint:gochecknoinits // the entries refer back to the table
	protocols = []protocol{
		{label: "tls", stream: tlsStream},
		{label: "http", stream: httpStream},
		{label: "ssh", stream: sshStream},
		{label: "quic", datagram: quicDatagram},
		{label: "dhcp", datagram: dhcpDatagram},
		{label: "ssdp", datagram: ssdpDatagram},
		{label: "mdns", datagram: mdnsDatagram},
		{label: "ntp", datagram: ntpDatagram},
		{label: "dns", stream: dnsStream, datagram: dnsDatagram},
		{label: "icmp"},
		{label: "icmpv6"},
	}
	for i, p := range protocols {
		if p.stream != nil {
			streamProtocols |= 1 << i
		}
	}
}
