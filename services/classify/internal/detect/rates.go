package detect

// Rates are the measures of floods whose thresholds may follow what is usual for a host. Those that no host has usually,
// impossible flags, overlapping fragments and answers of monlist, are not among them, nor is what gates a flood: numbers of
// sources and shares.
const (
	RateSYN = iota
	RateUDPPackets
	RateUDPBits
	RateICMP
	RateDNSAnswers
	RateNTPAnswers
	RateAmpPackets
	RateACK
	RateRSTFIN
	RateSYNACK
	RateFragments
	RateHTTPPair
	RateHTTP
	RateDNSQueries
	RateDNSNames
	NumRates
)

// RateNames are stable: what was learned is stored under them. They are names of Thresholds.Named.
var RateNames = [NumRates]string{"excess_syn", "udp_packets", "udp_bits", "icmp", "unsolicited_dns", "unsolicited_ntp", "unsolicited_udp",
	"stray_ack", "stray_rst_fin", "stray_syn_ack", "fragments", "requests_of_a_source_for_a_resource", "requests_of_a_source", "dns_queries", "new_names"}

// Rate is where t has the threshold of a rate.
func (t *Thresholds) Rate(rate int) *float64 {
	return [NumRates]*float64{&t.SYN, &t.UDPPackets, &t.UDPBits, &t.ICMP, &t.DNSAnswers, &t.NTPAnswers, &t.AmpPackets,
		&t.ACK, &t.RSTFIN, &t.SYNACK, &t.Fragments, &t.HTTPPair, &t.HTTP, &t.DNSQueries, &t.DNSNames}[rate]
}

// Rates tells take what a measure of the flood found, per second. A rate that does not count in the measure, because what
// gates it is missing, is left out: a host does not get used to it.
func (d *Flood) Rates(m *Measure, take func(rate int, value float64)) {
	if m.Level <= 0 {
		return
	}
	x := m.Features
	switch d.Type {
	case SYNFlood:
		take(RateSYN, x["excess_syn"])
	case UDPFlood:
		take(RateUDPPackets, x["udp_packets"])
		take(RateUDPBits, x["udp_bits"])
	case ICMPFlood:
		take(RateICMP, float64(m.Packets))
	case AmpDNS:
		take(RateDNSAnswers, x["unsolicited_dns"])
	case AmpNTP:
		take(RateNTPAnswers, x["unsolicited_ntp"])
	case ACKFlood:
		take(RateACK, x["stray_ack"])
	case RSTFINFlood:
		take(RateRSTFIN, x["stray_rst_fin"])
	case SYNACKReflection:
		take(RateSYNACK, x["stray_syn_ack"])
	case FragmentFlood:
		take(RateFragments, x["fragments"])
	case HTTPFlood:
		take(RateHTTPPair, x["requests_of_a_source_for_a_resource"])
		n := max(x["requests_of_a_source"], x["requests_of_a_settled_peer"]/known)
		if same := x["requests_for_a_resource"]; same >= mostly*x["http_requests"] {
			n = max(n, same)
		}
		take(RateHTTP, n)
	case DNSFlood:
		take(RateDNSQueries, x["dns_queries"])
		if n := x["new_names"]; n >= mostly*x["dns_queries"] {
			take(RateDNSNames, n)
		}
	case InvalidFlags:
	default:
		take(RateAmpPackets, x["unsolicited_udp"])
	}
}

// mostly is the share from which on requests for one resource, or for new names, count by themselves.
const mostly = 0.8
