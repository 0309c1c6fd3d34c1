package e2e

// ourLabels says which of our labels agree with a protocol name of Zeek, Suricata or Arkime. Without one, the name is
// outside our label set, or a note that is no protocol. A name that is not here fails the test, so that nothing is
// passed over. Zeek's dns is every protocol of DNS's shape, and http is every version for Suricata.
var ourLabels = map[string]string{
	"bacnet": "bacnet", "bgp": "bgp", "bittorrent": "bittorrent", "bittorrent-dht": "bittorrent", "bittorrent_dht": "bittorrent",
	"c1222": "ansi_c1222", "dce_rpc": "dcerpc", "dcerpc": "dcerpc", "dhcp": "dhcp", "dhcpv6": "dhcpv6", "diameter": "diameter",
	"dnp3": "dnp3", "dns": "dns mdns llmnr netbios", "doh2": "http2", "dtls": "dtls", "enip": "ethernetip", "esp": "ipsec", "fbzero": "",
	"ftp": "ftp ftps", "ftp-data": "ftp_data", "ftp_data": "ftp_data", "gridftp": "ftp", "gtp": "gtp", "gtpv1": "gtp",
	"http": "http http2 http_connect http_proxy", "http2": "http2", "icmp": "icmp icmpv6", "igmp": "igmp", "ike": "ipsec", "imap": "imap imaps", "irc": "irc",
	"isakmp": "ipsec", "kerberos": "kerberos", "krb": "kerberos", "krb5": "kerberos", "ldap": "ldap", "ldap_tcp": "ldap",
	"llmnr": "llmnr", "mdns": "mdns", "modbus": "modbus", "mqtt": "mqtt", "mqtt_publish": "mqtt", "mysql": "mysql",
	"nbds": "netbios", "nbns": "netbios", "nfs": "nfs", "ntp": "ntp", "oracle": "oracle", "ospf": "ospf", "pgsql": "postgresql",
	"pim": "ip_pim", "pop3": "pop3 pop3s", "postgresql": "postgresql", "quic": "quic", "radius": "radius", "rdp": "rdp",
	"redis": "resp", "rfb": "vnc", "s7comm": "s7comm", "s7comm-plus": "s7commplus", "sctp": "sctp", "sip": "sip", "smtp": "smtp smtps",
	"snmp": "snmp", "socks": "socks", "ssh": "ssh", "ssl": "tls dtls", "stun": "stun", "synchrophasor": "ieee_c37118",
	"syslog": "syslog", "tds": "mssql", "telnet": "telnet", "teredo": "teredo", "tftp": "tftp", "thrift": "thrift", "tls": "tls",
	"websocket": "websocket", "xmpp": "xmpp",

	// Carriers, which every session of Arkime names, and what a packet was that carries nothing else.
	"tcp": "", "udp": "", "arp": "", "gre": "", "isis": "", "lldp": "", "mpls": "", "pppoe": "", "unknown-ether": "", "unknown-ip": "",
	"corrupt-ether": "", "corrupt-ip": "",
	// Protocols without a label of ours.
	"adb": "", "blah": "", "camel": "", "geneve": "", "gssapi": "", "gridftp-data": "", "irc-dcc-data": "", "isup": "", "m2ua": "", "m3ua": "",
	"ntlm": "", "pana": "", "rdpeudp": "", "sccp": "", "smb": "", "tup": "", "vxlan": "", "vxlan-gpe": "",
	// Interfaces inside dcerpc.
	"atsvc": "", "drsuapi": "", "dssetup": "", "efsr": "", "efsrpc": "", "epmapper": "", "iremunknown": "", "iremunknown2": "",
	"isystemactivator": "", "itaskscheduler": "", "lsarpc": "", "netlogon": "", "samr": "", "srvsvc": "", "svcctl": "", "winreg": "", "wkssvc": "",
	// Rules of a test.
	"iprulztest": "", "socksipset": "", "tlsrulestest": "",
}
